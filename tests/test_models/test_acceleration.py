"""The same numbers by another way: channels last, folded BatchNorm."""

import copy

import pytest
import torch
from backbones import BACKBONES
from mmaction.registry import MODELS
from mmaction_mbcd.models.acceleration import folded, put_channels_last
from torch import nn

from tests_support import gradients
from toys import PlainInnerStep, build_toy, total, toy_batch


def encoder(name, stages=1, **options):
    backbone, shape, _ = BACKBONES[name]
    torch.manual_seed(1)
    built = MODELS.build(
        dict(
            type="ModalityEncoder",
            backbone=backbone,
            frozen_stages=stages,
            feature_channels=1,
            **options,
        )
    )
    for module in built.modules():
        if hasattr(module, "running_var"):  # as of a trained network
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return built.double().train(), torch.randn(shape, dtype=torch.float64)


def maps(state):
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_folded_stem_gives_the_same(name):
    plain, x = encoder(name)
    fast = copy.deepcopy(plain)
    fast.fold_stem_norm = True
    for own, other in zip(maps(fast.stem(x)), maps(plain.stem(x)), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-11)
        assert not own.requires_grad
    kinds = [type(m).__name__ for m in fast._folded[0].modules()]
    assert not any(kind.startswith("BatchNorm") for kind in kinds)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert len(list(fast.parameters())) == len(list(plain.parameters()))
    # The branch is not in the copy.
    count = sum(p.numel() for p in fast._folded[0].parameters())
    assert count < sum(p.numel() for p in plain.parameters())


def test_new_weights_are_folded_again():
    fast, x = encoder("slowonly", fold_stem_norm=True)
    other, _ = encoder("slowonly")
    nn.init.normal_(other.backbone.conv1.conv.weight, std=3.0)
    before = fast.stem(x)
    fast.load_state_dict(other.state_dict())
    assert not torch.allclose(fast.stem(x), before)
    torch.testing.assert_close(fast.stem(x), other.stem(x), rtol=1e-11, atol=1e-11)
    assert fast.float().stem(x.float()).dtype == torch.float32


def test_a_stem_that_drifts_or_is_empty_is_not_folded():
    drifting, x = encoder("resnet3d", fold_stem_norm=True, stem_norm_eval=False)
    plain, _ = encoder("resnet3d", stem_norm_eval=False)
    assert torch.equal(drifting.train().stem(x), plain.train().stem(x))
    empty, x = encoder("resnet3d", stages=-1, fold_stem_norm=True)
    assert empty.stem(x) is x


def test_a_norm_without_a_convolution_is_refused():
    with pytest.raises(
        ValueError, match="fold_stem_norm: 0 of Sequential have no conv"
    ):
        folded(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)))


@pytest.mark.parametrize("name", BACKBONES)
def test_channels_last_is_a_layout(name):
    plain, x = encoder(name)
    plain.eval()  # statistics of two samples would divide rounding by almost nothing
    fast = copy.deepcopy(plain)
    put_channels_last(fast)
    for own, other in zip(fast.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other)
    found = fast(fast.stem(x)).sum()
    expected = plain(plain.stem(x)).sum()
    found.backward(), expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for key, slope in gradients(plain).items():
        torch.testing.assert_close(gradients(fast)[key], slope, rtol=1e-9, atol=1e-9)


def test_channels_last_of_a_model_and_its_inner_step():
    """theta' keeps the layout, since it is computed from theta."""
    backbone = BACKBONES["mmpretrain"][0]
    encoders = {
        m: dict(type="ModalityEncoder", backbone=backbone, frozen_stages=0)
        for m in ("video", "audio")
    }
    _, samples = toy_batch(count=4)
    inputs = {m: torch.randn(4, 1, 40, 34, dtype=torch.float64) for m in encoders}
    losses = {}
    for last in (False, True):
        model = build_toy(inner_step=dict(), encoders=encoders, channels_last=last)
        model.bind_optimizer(PlainInnerStep())
        losses[last] = total(model.loss(inputs, samples))
        weight = model.encoders["video"].backbone.layer2[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
    torch.testing.assert_close(losses[True], losses[False], rtol=1e-8, atol=1e-8)
