"""Splitting MMAction2's backbones, and loading weights into them."""

import copy

import pytest
import torch
from mmaction.registry import MODELS

from mmaction_mbcd.models.modality_encoders import ModalityEncoders
from mmaction_mbcd.models.stages import backbone_stages
from mmaction_mbcd.models.weights import load_backbone
from tests_support import assert_same_trees, gradients
from toys import PlainInnerStep, build_toy, total, toy_batch

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


def build(name, frozen, **kwargs):
    backbone, shape, channels = BACKBONES[name]
    config = dict(
        type="ModalityEncoder", backbone=backbone, frozen_stages=frozen, **kwargs
    )
    encoder = MODELS.build(config).double()
    for p in encoder.parameters():  # zero-initialised residuals would hide stages
        torch.nn.init.normal_(p, std=0.1)
    return encoder, torch.randn(shape, dtype=torch.float64), channels


@pytest.mark.parametrize("name", BACKBONES)
def test_branch_after_stem_equals_the_backbone(name):
    last = len(backbone_stages(build(name, -1)[0].backbone)) - 2
    for frozen in {-1, 0, 1, last}:
        torch.manual_seed(0)
        encoder, x, channels = build(name, frozen)
        encoder.eval()
        kept = x.clone()
        with torch.no_grad():
            whole = encoder.backbone(x)
            state = encoder.stem(x)
            before = [
                t.clone() for t in (state if isinstance(state, tuple) else [state])
            ]
            out = encoder(state)
        maps = whole if isinstance(whole, tuple) else (whole,)
        expected = torch.cat([m.flatten(2).mean(2) for m in reversed(maps)], 1)
        assert out.shape == (2, channels) and encoder.feature_channels == channels
        assert torch.equal(out, expected), (name, frozen)
        # Inputs are read up to three times a step and must not change.
        after = state if isinstance(state, tuple) else [state]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert torch.equal(x, kept)


def test_slowfast_features_put_the_fast_pathway_first():
    encoder, x, _ = build("slowfast", 3)
    encoder.eval()
    slow, fast = encoder.backbone(x)
    out = encoder(encoder.stem(x))
    assert torch.equal(out[:, :16], fast.mean((2, 3, 4)))
    assert torch.equal(out[:, 16:], slow.mean((2, 3, 4)))


@pytest.mark.parametrize("name", ["slowfast", "slowonly", "resnet", "mmpretrain"])
def test_only_the_branch_is_trainable_and_the_stem_stays_in_eval_mode(name):
    encoder, x, _ = build(name, 3)
    encoder.train()
    buffers = {n: b.clone() for n, b in encoder.named_buffers()}
    encoder(encoder.stem(x)).sum().backward()
    for n, p in encoder.named_parameters():
        assert (p.grad is not None) == ("layer4" in n), n
    changed = {n for n, b in encoder.named_buffers() if not torch.equal(b, buffers[n])}
    assert changed and all("layer4" in n for n in changed)


def test_a_drifting_stem_updates_its_statistics():
    encoder, x, _ = build("resnet", 3, stem_norm_eval=False)
    encoder.train()
    before = encoder.backbone.conv1.bn.running_mean.clone()
    encoder(encoder.stem(x))
    assert not torch.equal(encoder.backbone.conv1.bn.running_mean, before)


def test_feature_dropout_and_dsu_act_in_training_only():
    encoder, x, _ = build("mmpretrain", 2, dropout=0.5, dsu=1.0)
    state = encoder.eval().stem(x)
    assert torch.equal(encoder(state, apply_dsu=True), encoder(state))
    encoder.dropout.p = 0.0
    for m in encoder.modules():  # statistics noise alone
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 0.0
    encoder.training = True
    clean, noisy = encoder(state), encoder(state, apply_dsu=True)
    assert not torch.allclose(clean, noisy)


def test_frozen_stages_out_of_range():
    with pytest.raises(ValueError, match=r"between -1 \(none\) and 3 \(all but"):
        build("resnet", 4)


def test_a_backbone_without_stages_is_refused():
    with pytest.raises(TypeError, match="C3D cannot be split into stages"):
        MODELS.build(dict(type="ModalityEncoder", backbone=dict(type="C3D")))


class TestWeights:
    backbone = dict(type="mmpretrain.ResNet", depth=18, in_channels=1)

    def build(self, **kwargs):
        config = dict(type="ModalityEncoder", backbone=self.backbone, **kwargs)
        return MODELS.build(config)

    def save(self, path, change=None, prefix="audnet."):
        state = {
            f"{prefix}{k}": torch.full_like(v, 0.25)
            for k, v in self.build().backbone.state_dict().items()
        }
        state["audnet.fc.weight"] = torch.zeros(309, 512)
        if change:
            change(state)
        torch.save({"model_state_dict": state}, path)
        return str(path)

    def test_every_key_is_filled_and_reported(self, tmp_path):
        path = self.save(tmp_path / "H.pth.tar")
        encoder = self.build(pretrained=dict(checkpoint=path, prefix="audnet."))
        encoder.init_weights()
        for value in encoder.backbone.state_dict().values():
            if value.dtype.is_floating_point:
                assert bool((value == 0.25).all())
        report = load_backbone(encoder.backbone, path, prefix="audnet.")
        assert not report.missing and report.unexpected == ["fc.weight"]
        assert len(report.matched) == len(encoder.backbone.state_dict())

    def test_renamed_keys(self, tmp_path):
        def swap(state):
            for key in [k for k in state if "downsample.0" in k]:
                state[key.replace("downsample.0", "shortcut.conv")] = state.pop(key)

        path = self.save(tmp_path / "renamed.pth", swap)
        rename = [(r"shortcut\.conv", "downsample.0")]
        report = load_backbone(
            self.build().backbone, path, prefix="audnet.", rename=rename
        )
        assert not report.missing

    def test_a_missing_layer_is_an_error(self, tmp_path):
        path = self.save(
            tmp_path / "cut.pth", lambda s: s.pop("audnet.layer4.1.bn2.weight")
        )
        with pytest.raises(ValueError, match=r"Missing: layer4\.1\.bn2\.weight"):
            load_backbone(self.build().backbone, path, prefix="audnet.")

    def test_a_wrong_prefix_and_a_wrong_shape_are_errors(self, tmp_path):
        path = self.save(tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"prefix looked for is 'backbone\.'"):
            load_backbone(self.build().backbone, path)
        three = MODELS.build(dict(self.backbone, in_channels=3))
        with pytest.raises(ValueError, match=r"conv1\.weight \(file \(64, 1, 7, 7\)"):
            load_backbone(three, path, prefix="audnet.")

    def test_a_recognizer_loads_its_encoders_weights(self, tmp_path):
        """Through init_weights of the whole model, as the runner calls it."""
        path = self.save(tmp_path / "H.pth.tar")
        encoder = dict(
            type="ModalityEncoder",
            backbone=self.backbone,
            pretrained=dict(checkpoint=path, prefix="audnet."),
        )
        config = dict(
            type="MultiModalRecognizer", encoders=dict(audio=encoder), num_classes=3
        )
        model = MODELS.build(config)
        model.init_weights()
        assert bool((model.encoders["audio"].backbone.conv1.weight == 0.25).all())
        encoder["pretrained"]["checkpoint"] = str(tmp_path / "none.pth")
        with pytest.raises(FileNotFoundError, match="none.pth"):
            MODELS.build(config).init_weights()

    def test_skipped_layers_stay_as_they_were(self, tmp_path):
        path = self.save(
            tmp_path / "cut.pth", lambda s: s.pop("audnet.layer4.1.bn2.weight")
        )
        backbone = self.build().backbone
        before = backbone.layer4[0].conv1.weight.clone()
        report = load_backbone(backbone, path, prefix="audnet.", skip=r"^layer4")
        assert torch.equal(backbone.layer4[0].conv1.weight, before)
        assert bool((backbone.layer3[0].conv1.weight == 0.25).all())
        assert not any("layer4" in k for k in report.matched)


@pytest.mark.parametrize("name", BACKBONES)
def test_channels_last_is_a_layout(name):
    backbone, shape, _ = BACKBONES[name]
    config = dict(type="ModalityEncoder", backbone=backbone, frozen_stages=1)
    plain = ModalityEncoders(dict(a=config), ["a"]).double()
    for p in plain.parameters():
        torch.nn.init.normal_(p, std=0.1)
    plain.eval()  # statistics of two samples would divide rounding by almost nothing
    fast = copy.deepcopy(plain)
    fast.put_channels_last()
    assert_same_trees(dict(fast.state_dict()), dict(plain.state_dict()))
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for p in fast.parameters():
        if p.dim() in layouts:
            assert p.is_contiguous(memory_format=layouts[p.dim()])
    x = torch.randn(shape, dtype=torch.float64)
    found, expected = (e["a"](e["a"].stem(x)) for e in (fast, plain))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found.sum().backward(), expected.sum().backward()
    slopes = gradients(fast)
    for key, slope in gradients(plain).items():
        torch.testing.assert_close(slopes[key], slope, rtol=1e-9, atol=1e-9)


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
