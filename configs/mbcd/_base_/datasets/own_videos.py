"""Your own videos: a folder with annotations.csv, videos/, flow/ and audio/.

Clips as long as HAC's, but with the repaired sampling: any frame, and the sound of just
these frames by each file's own rate. Crop, flip and time agree between video and flow.
Classes and domains are those of annotations.csv; the target must be named
(tools/train.py --target).
"""

_base_ = "./hac.py"

data_root = "data/own_videos"
num_classes = None

_dataset = dict(
    type="VideoFolderDataset",
    data_root=data_root,
    target=None,
    sampling="repaired",
    joint_augment=True,
)
train_dataloader = dict(dataset=_dataset)
val_dataloader = dict(dataset=_dataset)
test_dataloader = dict(dataset=_dataset)

# Parts of the above, not settings of their own.
del _dataset
