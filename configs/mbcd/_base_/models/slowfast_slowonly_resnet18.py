"""The paper's encoders: SlowFast-R101 8x8, SlowOnly-R50 for flow, VGGSound ResNet-18.

Everything up to layer3 is frozen. The files are looked for in checkpoints/:
slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth and
slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth (MMAction2 0.x), and
H.pth.tar from the VGGSound page. All of audio's file is loaded, layer4 too; eight of
the nine published scripts leave layer4 random, and so do the configs below published/.
"""

_base_ = "./recognizer.py"

_pathway = dict(
    type="resnet3d",
    depth=101,
    pretrained=None,
    conv1_stride_t=1,
    pool1_stride_t=1,
)

model = dict(
    encoders=dict(
        video=dict(
            type="ModalityEncoder",
            frozen_stages=3,
            backbone=dict(
                type="ResNet3dSlowFast",
                pretrained=None,
                resample_rate=4,
                speed_ratio=4,
                channel_ratio=8,
                slow_pathway=dict(
                    _pathway,
                    lateral=True,
                    fusion_kernel=7,
                    conv1_kernel=(1, 7, 7),
                    dilations=(1, 1, 1, 1),
                    inflate=(0, 0, 1, 1),
                ),
                fast_pathway=dict(
                    _pathway, lateral=False, base_channels=8, conv1_kernel=(5, 7, 7)
                ),
            ),
            pretrained=dict(
                checkpoint="checkpoints/slowfast_r101_8x8x1_256e_kinetics400_rgb_"
                "20210218-0dd54025.pth",
                prefix="backbone.",
            ),
        ),
        audio=dict(
            type="ModalityEncoder",
            frozen_stages=3,
            backbone=dict(type="mmpretrain.ResNet", depth=18, in_channels=1),
            pretrained=dict(checkpoint="checkpoints/H.pth.tar", prefix="audnet."),
        ),
        flow=dict(
            type="ModalityEncoder",
            frozen_stages=3,
            backbone=dict(
                type="ResNet3dSlowOnly",
                depth=50,
                pretrained=None,
                in_channels=2,
                lateral=False,
                conv1_kernel=(1, 7, 7),
                conv1_stride_t=1,
                pool1_stride_t=1,
                inflate=(0, 0, 1, 1),
                with_pool2=False,
            ),
            pretrained=dict(
                checkpoint="checkpoints/slowonly_r50_8x8x1_256e_kinetics400_flow_"
                "20200704-6b384243.pth",
                prefix="backbone.",
            ),
        ),
    ),
    fused_head=dict(type="MLPHead"),
)

# Leaves below published/, all but MBCD's. BatchNorm of the frozen stems of video and
# flow follows the batches there, audio's does not. Audio's layer4 starts at random: the
# code gives it the file's keys, which all begin with `audnet.`, and ignores what does
# not match.
published_encoders = dict(
    video=dict(stem_norm_eval=False),
    audio=dict(
        pretrained=dict(skip=r"^layer4\."),
        backbone=dict(
            zero_init_residual=False,
            init_cfg=[
                dict(type="Kaiming", layer="Conv2d"),
                dict(type="Normal", mean=1, std=0.02, bias=0, layer="BatchNorm2d"),
            ],
        ),
    ),
    flow=dict(stem_norm_eval=False),
)

# Parts of the above, not settings of their own.
del _pathway
