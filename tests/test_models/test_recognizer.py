"""The order of events, missing modalities, and configs that cannot work."""

import copy
import pickle

import pytest
import torch
from mmaction.registry import MODELS
from torch.nn import functional as F

from tests_support import gradients
from toys import (
    PlainInnerStep,
    build_toy,
    labels_of,
    total,
    toy_batch,
    toy_config,
)

MBCD = [
    dict(type="ClassificationObjective"),
    dict(type="CollaborativeDistillation"),
]
FULL = dict(inner_step=dict(), objectives=MBCD, neck=dict(type="AMDFusion"))


def full_model(modalities=("video", "audio"), **kwargs):
    options = FULL | kwargs
    model = build_toy(names=modalities, **options)
    teacher = build_toy(seed=9, names=modalities, **options).eval()
    for m, encoder in model.encoders.items():  # as TeacherEMAHook shares the stem
        teacher.encoders[m].backbone.conv1 = encoder.backbone.conv1
    model.bind_teacher(teacher)
    model.bind_optimizer(PlainInnerStep())
    return model


def test_the_stem_runs_once_per_step():
    model = full_model()
    stem, branch, teacher = {}, {}, []
    for m, encoder in model.encoders.items():
        encoder.backbone.conv1.register_forward_hook(
            lambda *_, m=m: stem.__setitem__(m, stem.get(m, 0) + 1)
        )
        encoder.backbone.layer2.register_forward_hook(
            lambda *_, m=m: branch.__setitem__(m, branch.get(m, 0) + 1)
        )
    model._lent.teacher.encoders["video"].backbone.layer2.register_forward_hook(
        lambda *_: teacher.append(1)
    )
    model.loss(*toy_batch())
    assert stem == {"video": 1, "audio": 1}  # for both passes and the teacher
    assert branch == {"video": 2, "audio": 2}
    assert teacher == [1]


def test_equation_nine_is_the_sum_of_its_terms():
    """Every term of the total loss recomputed from the parts, M = 3."""
    modalities = ("video", "audio", "flow")
    model = full_model(
        modalities,
        neck=dict(type="ConcatFusion"),
        objectives=[MBCD[0], dict(MBCD[1], weight=0.3)],
    )
    inputs, samples = toy_batch(modalities)
    labels = labels_of(samples)
    losses = model.loss(inputs, samples)

    def logits_of(recognizer):
        features, uni = [], {}
        for m, encoder in recognizer.encoders.items():
            x = encoder.backbone(inputs[m]).mean(2)
            centred = x - x.mean(1, keepdim=True)
            z = centred / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            features.append(z)
            uni[m] = recognizer.unimodal_heads[m](z)
        return uni, recognizer.fused_head(torch.cat(features, 1))

    moved = copy.deepcopy(model)
    uni, _ = logits_of(moved)
    inner = sum(F.cross_entropy(x, labels) for x in uni.values())
    theta = [p for p in moved.encoders.parameters() if p.requires_grad]
    steps = torch.autograd.grad(inner, theta)
    with torch.no_grad():
        for p, g in zip(theta, steps, strict=True):
            p -= 0.1 * g
        _, fused = logits_of(moved)
        uni, _ = logits_of(model)
        _, target = logits_of(model._lent.teacher)
    p = target.softmax(1)
    kl = [
        (p * (p.log() - x.log_softmax(1))).sum(1).mean() for x in [fused, *uni.values()]
    ]
    ce = {m: F.cross_entropy(x, labels) for m, x in uni.items()}
    expected = {"loss_fused": F.cross_entropy(fused, labels)}
    expected |= {f"loss_{m}": value for m, value in ce.items()}
    expected["loss_distill"] = 0.3 * sum(kl)
    assert {k for k in losses if "loss" in k} == set(expected)
    for key, value in expected.items():
        assert losses[key].item() == pytest.approx(value.item(), abs=1e-10), key


def test_every_loss_and_every_balance_figure_is_logged_by_name():
    losses = full_model().loss(*toy_batch())
    for m in ("video", "audio"):
        for key in (f"loss_{m}", f"r/{m}", f"drop_prob/{m}", f"acc/{m}"):
            assert key in losses
    r = {m: losses[f"r/{m}"].item() for m in ("video", "audio")}
    assert r["video"] * r["audio"] == pytest.approx(1)  # M = 2: r_v = s_v / s_a


def test_inputs_are_not_changed():
    inputs, samples = toy_batch()
    kept = {m: x.clone() for m, x in inputs.items()}
    total(full_model().loss(inputs, samples)).backward()
    assert all(torch.equal(inputs[m], kept[m]) for m in kept)


def test_evaluation_gives_the_same_logits_in_every_mode():
    model = full_model().eval()
    inputs, samples = toy_batch()
    logits = model(inputs, samples, mode="tensor")
    predicted = model(inputs, samples, mode="predict")
    assert torch.equal(
        torch.stack([s.pred_score for s in predicted]), logits.softmax(1)
    )
    single = [
        model({m: x[i : i + 1] for m, x in inputs.items()}, [samples[i]])
        for i in range(len(samples))
    ]
    assert torch.allclose(torch.cat(single), logits, atol=1e-12)


@pytest.mark.parametrize("modalities", [("video",), ("audio", "video"), None])
def test_a_subset_of_modalities_is_one_value(modalities):
    config = toy_config(("video", "audio", "flow"), modalities=modalities)
    model = MODELS.build(config).double()
    used = list(modalities or ("video", "audio", "flow"))
    assert model.modalities == used == list(model.encoders)
    width = sum(model.encoders[m].feature_channels for m in used)
    assert model.fused_head.layers[0].in_features == width
    inputs, samples = toy_batch(("video", "audio", "flow"))
    total(model.loss(inputs, samples)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


class TestMissingModality:
    def test_absent_samples_leave_everything_that_concerns_the_modality(self):
        """Equal to a model run on the present rows alone, fused slot zero."""
        model = build_toy(batchnorm=True)
        inputs, samples = toy_batch(absent={"audio": [1, 4]})
        inputs["audio"][[1, 4]] = 1e6  # a placeholder may hold anything
        here = [0, 2, 3, 5, 6, 7]
        reference = copy.deepcopy(model)
        losses = model.loss(inputs, samples)
        encoder = reference.encoders["audio"]
        z = reference.norms["audio"](encoder(encoder.stem(inputs["audio"][here])))
        labels = labels_of(samples)
        ce = F.cross_entropy(reference.unimodal_heads["audio"](z), labels[here])
        assert losses["loss_audio"].item() == pytest.approx(ce.item(), abs=1e-12)
        video = reference.encoders["video"]
        z_video = reference.norms["video"](video(video.stem(inputs["video"])))
        z_audio = torch.zeros(8, 5, dtype=torch.float64)
        z_audio[here] = z
        fused = reference.fused_head(torch.cat([z_video, z_audio], 1))
        expected = F.cross_entropy(fused, labels)
        assert losses["loss_fused"].item() == pytest.approx(expected.item(), abs=1e-12)
        for (name, own), (_, other) in zip(
            model.named_buffers(), reference.named_buffers(), strict=True
        ):
            assert torch.equal(own, other), name  # BatchNorm saw present rows only

    def test_half_the_audio_missing_is_not_half_the_confidence(self):
        model = full_model()
        torch.manual_seed(0)
        for head in model.unimodal_heads.values():  # certain, whatever the input
            head.layers[-1].bias.data = torch.tensor([50.0, 0, 0]).double()
        losses = model.loss(*toy_batch(absent={"audio": [0, 1, 2, 3]}))
        assert losses["r/video"].item() == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("affine", [False, True])
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("rows", [[0], list(range(7)), list(range(8))])
    def test_never_nan_and_every_parameter_keeps_its_gradient(self, rows, norm, affine):
        model = full_model(batchnorm=norm, norm=dict(type="LayerNorm", affine=affine))
        losses = model.loss(*toy_batch(absent={"audio": rows}))
        total(losses).backward()
        assert all(torch.isfinite(v).all() for v in losses.values())
        found = gradients(model)
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert found.keys() == trainable
        assert all(torch.isfinite(g).all() for g in found.values())
        if len(rows) == 8:
            assert losses["loss_audio"].item() == 0
            assert "r/audio" not in losses or losses["r/audio"].item() == 1
            for name, g in found.items():
                if "audio" in name:
                    assert torch.equal(g, torch.zeros_like(g)), name

    def test_evaluation_with_an_absent_modality(self):
        model = build_toy().eval()
        inputs, samples = toy_batch(absent={"video": list(range(8))})
        out = model(inputs, samples, mode="predict")
        assert all(torch.isfinite(s.pred_score).all() for s in out)

    def test_amd_never_drops_a_samples_only_modality(self):
        model = full_model(neck=dict(type="AMDFusion", mode="fixed", p=0.9))
        seen = []
        model.fused_head.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        model.loss(*toy_batch(count=200, absent={"audio": list(range(150))}))
        video, audio = seen[0][:, :4], seen[0][:, 4:]
        assert (video[:150] != 0).any(1).all()
        assert (audio[:150] == 0).all()
        assert ((video[150:] != 0).any(1) | (audio[150:] != 0).any(1)).all()


class TestFusion:
    def run(self, count=20000, **kwargs):
        neck = MODELS.build(dict(type="AMDFusion", **kwargs)).train()
        features = {m: torch.ones(count, 2) for m in ("video", "audio", "flow")}
        present = {m: torch.ones(count, dtype=torch.bool) for m in features}
        s = {"video": 0.9, "audio": 0.5, "flow": 0.45}
        s = {m: torch.tensor(v) for m, v in s.items()}
        return neck, *neck(features, present, s)

    def test_adaptive_drops_the_confident_ones_with_equation_four(self):
        _, fused, logs = self.run()
        # r_v = (.9/.5 + .9/.45)/2 = 1.9; r_a = (.5/.9 + .5/.45)/2 = .8333; r_f = .7.
        assert logs["r/video"].item() == pytest.approx(1.9)
        assert logs["r/audio"].item() == pytest.approx(0.83333, abs=1e-4)
        p = torch.tanh(torch.tensor(0.9)).item()
        assert logs["drop_prob/video"].item() == pytest.approx(p, abs=1e-6)
        dropped = (fused[:, 0] == 0).float().mean().item()
        assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / 20000) ** 0.5)
        assert (fused[:, 2:] == 1).all()  # no rescaling, the others stay
        assert (fused[:, 0] == fused[:, 1]).all()  # a modality goes as a whole

    @pytest.mark.parametrize("mode", ["adaptive", "fixed"])
    def test_rescale_keeps_the_mean(self, mode):
        _, fused, logs = self.run(rescale=True, mode=mode)
        p = [logs[f"drop_prob/{m}"].item() for m in ("video", "audio", "flow")]
        keep = (1 - p[0]) / (1 - p[0] * p[1] * p[2])  # given that not all are dropped
        kept = fused[fused[:, 0] != 0, 0]
        assert torch.allclose(kept, torch.full_like(kept, 1 / keep), rtol=1e-5)
        assert fused[:, 0].mean().item() == pytest.approx(1, abs=0.03)

    def test_rescale_stays_finite_when_dropping_is_certain(self):
        neck = MODELS.build(dict(type="AMDFusion", rescale=True)).train()
        features = {m: torch.ones(50, 2) for m in ("video", "audio")}
        present = {m: torch.ones(50, dtype=torch.bool) for m in features}
        s = {"video": torch.tensor(0.99), "audio": torch.tensor(0.05)}
        fused, logs = neck(features, present, s)
        assert logs["drop_prob/video"].item() == 1.0  # tanh(18.8) in float32
        assert torch.isfinite(fused).all() and (fused[:, 2:] == 1).all()

    def test_batch_granularity_drops_for_all_samples_at_once(self):
        for _ in range(5):
            _, fused, _ = self.run(count=50, granularity="batch")
            assert fused[:, 0].unique().numel() == 1

    def test_none_and_evaluation_concatenate(self):
        _, fused, logs = self.run(mode="none")
        assert (fused == 1).all() and not logs
        neck, _, _ = self.run(mode="fixed")
        features = {m: torch.rand(4, 2) for m in ("a", "b")}
        present = {m: torch.ones(4, dtype=torch.bool) for m in features}
        fused, _ = neck.eval()(features, present)
        assert torch.equal(fused, torch.cat([features["a"], features["b"]], 1))

    def test_wrong_values_are_reported_together(self):
        with pytest.raises(ValueError, match="mode must be.*granularity.*p is a prob"):
            MODELS.build(dict(type="AMDFusion", mode="x", granularity="y", p=1.0))


def test_probes_watch_without_touching_the_encoders():
    probed = build_toy(probe=True)
    plain = build_toy(unimodal_head=None)
    plain.fused_head.load_state_dict(probed.fused_head.state_dict())
    plain.encoders.load_state_dict(probed.encoders.state_dict())
    batch = toy_batch()
    losses = probed.loss(*batch)
    total(losses).backward()
    total(plain.loss(*batch)).backward()
    own, other = gradients(probed), gradients(plain)
    assert all(torch.equal(own[n], other[n]) for n in other)
    assert "loss_probe_audio" in losses
    assert own["unimodal_heads.audio.layers.0.weight"].abs().sum() > 0


def test_copies_and_pickles_carry_nothing_that_was_lent():
    model = full_model()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._lent.teacher is None and other._lent.optimizer is None
    assert model._lent.teacher is not None
    assert not any("teacher" in n for n, _ in model.named_modules())


def test_the_other_model_is_reported_under_its_name():
    model = full_model().eval()
    teacher = model._lent.teacher
    model.bind_teacher(teacher, beside="student")
    inputs, samples = toy_batch()
    out = model(inputs, samples, mode="predict")
    expected = teacher(inputs, samples).softmax(1)
    assert torch.equal(
        torch.stack([s.get("pred_scores")["student"] for s in out]), expected
    )
    keys = {"video", "audio", "student", "student/video", "student/audio"}
    assert set(out[0].get("pred_scores")) == keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(modalities=("video", "smell")), r"names \['smell'\].*has \['video'"),
        (dict(modalities=("video", "video")), "none twice"),
        (
            dict(modalities=("video",), neck=dict(type="AMDFusion")),
            r"needs at least two; got \['video'\]",
        ),
        (dict(neck=dict(type="AMDFusion"), probe=True), "needs trained unimodal heads"),
        (dict(inner_step=dict(), unimodal_head=None), "inner step follows the unimod"),
        (dict(inner_step=dict(alpha=1)), r"unknown keys \['alpha'\]"),
        (dict(inner_step=dict(scope="layer9")), "matches no trainable"),
        (dict(inner_step=dict(bn_second_pass="x")), "must be discard or shared"),
        (dict(objectives=MBCD, probe=True), "trains unimodal heads"),
        (dict(norm=dict(type="BN")), "only dict"),
    ],
)
def test_a_config_that_cannot_work_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(toy_config(**change))


def test_all_problems_are_reported_together():
    with pytest.raises(ValueError, match="AMDFusion.*CollaborativeDist.*inner step"):
        MODELS.build(toy_config(**FULL, unimodal_head=None))


def test_a_missing_input_and_a_missing_teacher_are_named():
    model = build_toy(objectives=MBCD)
    inputs, samples = toy_batch()
    with pytest.raises(RuntimeError, match="TeacherEMAHook"):
        model.loss(inputs, samples)
    del inputs["audio"]
    with pytest.raises(KeyError, match=r"inputs lack \['audio'\]"):
        model.loss(inputs, samples)


def test_two_objectives_with_one_name_are_refused():
    model = build_toy(objectives=[MBCD[0], MBCD[0]])
    with pytest.raises(ValueError, match="two objectives return"):
        model.loss(*toy_batch())


@pytest.mark.parametrize("modalities", [("video", "audio"), ("a", "b", "c", "d", "e")])
def test_five_modalities_run_the_same_lines(modalities):
    model = full_model(modalities)
    losses = model.loss(*toy_batch(modalities))
    total(losses).backward()
    assert sum(k.startswith("r/") for k in losses) == len(modalities)


def test_a_skipped_sample_takes_part_in_nothing():
    """Losses and gradients are those of the batch without it."""
    modalities = ("video", "audio")
    states = []
    for lost in (True, False):
        model = full_model(modalities, neck=dict(type="ConcatFusion"))
        inputs, samples = toy_batch(modalities)
        if lost:
            samples[3].set_metainfo(
                dict(skipped="cut off", present=dict.fromkeys(modalities, False))
            )
        else:
            kept = [i for i in range(8) if i != 3]
            inputs = {m: x[kept] for m, x in inputs.items()}
            samples = [samples[i] for i in kept]
        losses = model.loss(inputs, samples)
        total(losses).backward()
        states.append((losses, gradients(model)))
    (with_it, ours), (without, expected) = states
    assert with_it.pop("skipped") == 1 and "skipped" not in without
    assert with_it.keys() == without.keys()
    for key, value in without.items():
        assert with_it[key].item() == pytest.approx(value.item(), abs=1e-12), key
    for name, gradient in expected.items():
        assert torch.allclose(ours[name], gradient, atol=1e-12), name


def test_a_sample_without_the_model_s_modalities_takes_part_in_nothing():
    """The dataset yields video too, but the model hears only."""
    results = []
    for how in ("absent", "skipped"):
        model = build_toy(names=("video", "audio"), modalities=["audio"])
        inputs, samples = toy_batch(absent={"audio": [2]})
        if how == "skipped":
            samples[2].set_metainfo(dict(skipped="x", present=dict(audio=False)))
        losses = model.loss(inputs, samples)
        total(losses).backward()
        results.append((losses["loss_fused"], gradients(model)))
    (loss, found), (expected, without) = results
    assert torch.equal(loss, expected)
    assert all(torch.equal(found[n], without[n]) for n in without)


def test_a_batch_of_skipped_samples_gives_zero_gradients():
    model = full_model(neck=dict(type="AMDFusion", mode="fixed"))
    inputs, samples = toy_batch(count=2)
    for sample in samples:
        sample.set_metainfo(
            dict(skipped="cut off", present=dict(video=False, audio=False))
        )
    losses = model.loss(inputs, samples)
    total(losses).backward()
    found = gradients(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == trained
    assert total(losses) == 0 and not any(g.any() for g in found.values())
