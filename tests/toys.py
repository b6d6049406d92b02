"""Small float64 models and data on which numbers can be checked exactly."""

import torch
from mmaction.registry import MODELS
from mmaction.structures import ActionDataSample
from torch import nn

import mmaction_mbcd  # noqa: F401
from mmaction_mbcd.models.stages import Stage, backbone_stages


@MODELS.register_module()
class ToyBackbone(nn.Module):
    """Three stages of ``Linear - [BatchNorm] - tanh`` on ``(N, C, T)`` inputs."""

    def __init__(
        self, in_channels: int = 4, width: int = 5, norm: bool = False
    ) -> None:
        super().__init__()
        self.feat_dim = width
        self.res_layers = ["layer1", "layer2"]
        for name, channels in zip(
            ("conv1", "layer1", "layer2"), (in_channels, width, width), strict=True
        ):
            block = [nn.Conv1d(channels, width, 1)]
            if norm:
                block.append(nn.BatchNorm1d(width))
            self.add_module(name, nn.Sequential(*block, nn.Tanh()))

    def forward(self, x):
        return self.layer2(self.layer1(self.conv1(x)))


@backbone_stages.register
def _(backbone: ToyBackbone) -> list[Stage]:
    return [
        Stage(name, (name,), getattr(backbone, name))
        for name in ("conv1", "layer1", "layer2")
    ]


def toy_config(names=("video", "audio"), batchnorm=False, frozen_stages=0, **kwargs):
    """A recognizer config; ``kwargs`` replace its entries."""
    head = dict(type="MLPHead", hidden_channels=6, dropout=0.0)
    config = dict(
        type="MultiModalRecognizer",
        num_classes=3,
        encoders={
            m: dict(
                type="ModalityEncoder",
                frozen_stages=frozen_stages,
                backbone=dict(
                    type="ToyBackbone", in_channels=2 + i, width=4 + i, norm=batchnorm
                ),
            )
            for i, m in enumerate(names)
        },
        norm=dict(type="LayerNorm", affine=False),
        fused_head=head,
        unimodal_head=head,
        neck=dict(type="ConcatFusion"),
    )
    return config | kwargs


def build_toy(seed=0, dtype=torch.float64, **kwargs):
    """A built toy recognizer in training mode."""
    torch.manual_seed(seed)
    return MODELS.build(toy_config(**kwargs)).to(dtype).train()


def toy_batch(
    modalities=("video", "audio"), count=8, seed=0, dtype=torch.float64, absent=None
):
    """Inputs and data samples; ``absent`` is ``{modality: [rows]}``."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        m: torch.randn(count, 2 + i, 3, generator=generator, dtype=dtype)
        for i, m in enumerate(modalities)
    }
    absent = absent or {}
    for m, rows in absent.items():
        inputs[m][rows] = 0
    samples = []
    for row in range(count):
        sample = ActionDataSample()
        sample.set_gt_label(int(torch.randint(3, (), generator=generator)))
        sample.set_metainfo(
            dict(
                sample_id=f"toy{row}",
                domain=f"d{row % 2}",
                domain_index=row % 2,
                role="source",
                present={m: row not in absent.get(m, ()) for m in modalities},
            )
        )
        samples.append(sample)
    return inputs, samples


def labels_of(samples):
    """``(N,)`` class indices."""
    return torch.cat([sample.gt_label for sample in samples])


def total(losses):
    """The sum that MMEngine minimises."""
    return sum(value for key, value in losses.items() if "loss" in key)


class PlainInnerStep:
    """An inner step written from eq. 5, for use without an optimizer wrapper."""

    def __init__(self, alpha=0.1, order=1):
        self.alpha, self.order = alpha, order

    def inner_update(self, loss, params):
        gradients = torch.autograd.grad(
            loss, list(params.values()), create_graph=self.order == 2, retain_graph=True
        )
        return {
            name: p - self.alpha * g
            for (name, p), g in zip(params.items(), gradients, strict=True)
        }

    def sync_confidences(self, sums, counts, present):
        return sums, counts, present
