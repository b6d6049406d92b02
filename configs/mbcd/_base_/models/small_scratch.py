"""Three small networks trained from scratch, so with an empty stem.

A frozen stem of random weights makes no sense; see the EPIC-Kitchens and HAC models
for the pretrained ones. Feature dropout is off for all methods: row 1's 0.5 is the
published setting of pretrained networks.
"""

_base_ = "./recognizer.py"

_head = dict(type="MLPHead", hidden_channels=64)
_clip = dict(
    type="ResNet3d",
    depth=18,
    base_channels=8,
    num_stages=3,
    stage_blocks=(1, 1, 1),
    spatial_strides=(1, 2, 2),
    temporal_strides=(1, 2, 2),
    dilations=(1, 1, 1),
    out_indices=(2,),
    inflate=(0, 1, 1),
    non_local=(0, 0, 0),
    conv1_kernel=(3, 5, 5),
    conv1_stride_t=1,
    pool1_stride_t=1,
    with_pool2=False,
    zero_init_residual=False,
)

model = dict(
    # Displacements are a few of the 16 pixels that 8 bits span.
    data_preprocessor=dict(preprocessors=dict(flow=dict(std=[32.0, 32.0]))),
    encoders=dict(
        video=dict(type="ModalityEncoder", backbone=_clip),
        audio=dict(
            type="ModalityEncoder",
            backbone=dict(
                type="mmpretrain.ResNet",
                depth=18,
                in_channels=1,
                stem_channels=8,
                base_channels=8,
                num_stages=3,
                strides=(1, 2, 2),
                dilations=(1, 1, 1),
                out_indices=(2,),
                zero_init_residual=False,
            ),
        ),
        flow=dict(type="ModalityEncoder", backbone=dict(_clip, in_channels=2)),
    ),
    fused_head=_head,
    unimodal_head=_head,
)

# Parts of the above, not settings of their own.
del _head, _clip
