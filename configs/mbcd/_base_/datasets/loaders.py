"""The loaders of every dataset, but for what they load."""

# The tools take fewer where this process has fewer cores: reading keeps a core busy.
most_workers = 16

train_dataloader = dict(
    batch_size=16,
    num_workers=most_workers,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type="collate_views"),
    sampler=dict(type="ResumableSampler", shuffle=True),
    dataset=dict(use="train"),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=most_workers,
    persistent_workers=True,
    collate_fn=dict(type="collate_views"),
    sampler=dict(type="ResumableSampler", shuffle=False),
    dataset=dict(use="val"),
)
test_dataloader = dict(
    batch_size=16,
    num_workers=most_workers,
    persistent_workers=True,
    collate_fn=dict(type="collate_views"),
    sampler=dict(type="ResumableSampler", shuffle=False),
    dataset=dict(use="test", eval_split="full"),
)

# Part of the above, not a setting of its own.
del most_workers
