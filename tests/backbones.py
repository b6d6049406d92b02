"""Small backbones of every family, as configs."""

PATHWAY = dict(
    type="resnet3d", depth=18, pretrained=None, base_channels=8, conv1_kernel=(1, 7, 7)
)
BACKBONES = {
    "slowfast": (
        dict(
            type="ResNet3dSlowFast",
            resample_rate=4,
            speed_ratio=4,
            channel_ratio=8,
            slow_pathway=dict(
                PATHWAY,
                base_channels=16,
                lateral=True,
                fusion_kernel=7,
                conv1_stride_t=1,
                pool1_stride_t=1,
                inflate=(0, 0, 1, 1),
            ),
            fast_pathway=dict(
                PATHWAY,
                lateral=False,
                base_channels=2,
                conv1_kernel=(5, 7, 7),
                conv1_stride_t=1,
                pool1_stride_t=1,
            ),
        ),
        (2, 3, 8, 16, 16),
        144,
    ),
    "slowonly": (
        dict(
            type="ResNet3dSlowOnly",
            depth=50,
            base_channels=4,
            in_channels=2,
            conv1_kernel=(1, 7, 7),
            conv1_stride_t=1,
            pool1_stride_t=1,
            inflate=(0, 0, 1, 1),
            with_pool2=False,
        ),
        (2, 2, 4, 16, 16),
        128,
    ),
    "resnet3d": (
        dict(
            type="ResNet3d",
            depth=18,
            base_channels=4,
            num_stages=3,
            spatial_strides=(1, 2, 2),
            temporal_strides=(1, 1, 2),
            dilations=(1, 1, 1),
            out_indices=(2,),
            inflate=(1, 1, 1),
            non_local=(0, 0, 0),
        ),
        (2, 3, 8, 16, 16),
        16,
    ),
    "resnet": (dict(type="ResNet", depth=18, in_channels=1), (2, 1, 20, 17), 512),
    "mmpretrain": (
        dict(
            type="mmpretrain.ResNet",
            depth=18,
            in_channels=1,
            stem_channels=8,
            base_channels=8,
        ),
        (2, 1, 20, 17),
        64,
    ),
    "mmpretrain deep stem": (
        dict(
            type="mmpretrain.ResNetV1d",
            depth=50,
            in_channels=1,
            stem_channels=8,
            base_channels=4,
        ),
        (2, 1, 20, 17),
        128,
    ),
}
