"""What a hyper-parameter search draws for each method, from which range, and why.

A range is published where a paper or its code names the values that its authors tried
or use. Elsewhere it is ours: the published value divided and multiplied by ten, uniform
in the logarithm. docs/experiments_search.md has the same as a table.

What is not searched: the number of epochs (the best one is chosen on the same clips);
the batch size, which DomainBed draws for runs of equally many steps (here epochs are
fixed, so that it would change the number of steps, and memory and the contrastive
losses hang on it); temperatures and widths of heads, which nobody's command varies.
"""

from __future__ import annotations

from dataclasses import dataclass

from .distributions import Below1, Choice, Distribution, LogUniform, Uniform


@dataclass(frozen=True)
class HyperParameter:
    """One that a search draws.

    Attributes:
        name: For tables and for a grid file's ``ranges``.
        key: As ``--cfg-options`` takes it; ``[Type]`` in place of an index stands for
            the element of that type, ``*`` for every key.
        range: Where it is drawn from.
        source: Where the range is from.
        published: Whether others name it; else it is ours.
        scratch: The range for networks without pretrained weights; ``range`` if None.
        with_pretrained_only: Left at the config's value for other networks.
    """

    name: str
    key: str
    range: Distribution
    source: str
    published: bool = False
    scratch: Distribution | None = None
    with_pretrained_only: bool = False


DOMAINBED = "DomainBed (Gulrajani and Lopez-Paz 2021, appendix D, and its code)"


def _around(value: float) -> LogUniform:
    """From a tenth to ten times a published value."""
    return LogUniform(float(f"{value / 10:.4g}"), float(f"{value * 10:.4g}"))


def _weight(name: str, key: str, value: float, source: str) -> HyperParameter:
    return HyperParameter(name, key, _around(value), f"around {value:g}: {source}")


COMMON = (
    HyperParameter(
        "lr",
        "optim_wrapper.optimizer.lr",
        LogUniform(1e-5, 3.162e-4),
        f"{DOMAINBED}: 10^U(-5, -3.5); from scratch that for small images",
        published=True,
        scratch=LogUniform(3.162e-5, 3.162e-3),
    ),
    HyperParameter(
        "weight_decay",
        "optim_wrapper.optimizer.weight_decay",
        LogUniform(1e-6, 1e-2),
        DOMAINBED,
        published=True,
    ),
    HyperParameter(
        "feature_dropout",
        "model.encoders.*.dropout",
        Choice((0.0, 0.1, 0.5)),
        DOMAINBED,
        published=True,
    ),
)
"""Of every method; erm has no other."""

_BETA = HyperParameter(
    "beta",
    "custom_hooks[TeacherEMAHook].beta",
    Below1(0.9, 0.9999),
    "MBCD's Table 7: 0.9, 0.99, 0.999, 0.9999",
    published=True,
)
_INNER_LR = _weight(
    "inner_lr", "optim_wrapper.inner_lr", 1e-4, "MBCD's implementation details"
)
_DISTILLATION = _weight(
    "distillation",
    "model.objectives[CollaborativeDistillation].weight",
    1.0,
    "MBCD's implementation details, fixed there",
)
_MBCD = (_BETA, _INNER_LR, _DISTILLATION)

_CONTRAST_AND_SPLIT = (
    _weight(
        "contrast",
        "model.objectives[SupervisedContrastiveLoss].weight",
        3.0,
        "SimMMDG's code",
    ),
    _weight(
        "split", "model.objectives[FeatureSplitLoss].weight", 0.7, "SimMMDG's code"
    ),
)
_TRANSLATION = _weight(
    "translation",
    "model.objectives[TranslationLoss].weight",
    0.1,
    "SimMMDG's code; the authors' commands have 0.1, 0.5 and 1.0",
)
_SIMMMDG = (
    _TRANSLATION,
    HyperParameter(
        "translator_width",
        "model.objectives[TranslationLoss].hidden_channels",
        Choice((1024, 2048)),
        "the authors' commands",
        published=True,
    ),
    *_CONTRAST_AND_SPLIT,
)
_MOOSA = (
    HyperParameter(
        "entropy",
        "model.objectives[EntropyWeightedClassification].entropy_weight",
        LogUniform(1e-3, 1.0),
        "the authors' commands: 0.001, 0.1, 1.0",
        published=True,
    ),
    HyperParameter(
        "mask_ratio",
        "model.objectives[TranslationLoss].mask_ratio",
        Uniform(0.3, 0.7),
        "the authors' commands: 0.3, 0.7",
        published=True,
    ),
    HyperParameter(
        "permutations",
        "model.objectives[JigsawLoss].permutations",
        Choice((64, 128)),
        "the authors' commands",
        published=True,
    ),
    _weight("jigsaw", "model.objectives[JigsawLoss].weight", 1.0, "MOOSA's code"),
    _TRANSLATION,
    *_CONTRAST_AND_SPLIT,
)

_CMRF_CLASSES = "model.objectives[WeightedClassification]"
_FLATTENING = "model.objectives[RepresentationFlattening]"
_CMRF = (
    _weight("unimodal", f"{_CMRF_CLASSES}.unimodal_weight", 2.0, "CMRF's code"),
    _weight("contrast", f"{_FLATTENING}.contrast_weight", 3.0, "CMRF's code"),
    _weight("distillation", f"{_FLATTENING}.distill_weight", 3.0, "CMRF's code"),
    _weight("mixing", f"{_FLATTENING}.mixing", 0.1, "CMRF's code"),
    HyperParameter(
        "average_from",
        "custom_hooks[TeacherEMAHook].begin_iter",
        Choice((100, 400)),
        "CMRF's README, for HAC and for EPIC-Kitchens; runs from scratch are shorter",
        published=True,
        with_pretrained_only=True,
    ),
)

_NEL_TERMS = "model.objectives[NonpolarizedEmbedding]"
_NEL = (
    _weight("views", f"{_NEL_TERMS}.unc_weight", 0.7, "NEL's code"),
    _weight("contrast", f"{_NEL_TERMS}.contrast_weight", 0.3, "NEL's code"),
    _weight("spectrum", f"{_NEL_TERMS}.nee_weight", 0.0625, "NEL's code, 1 / 16 clips"),
)

_RNA = _weight(
    "norm_alignment",
    "model.objectives[NormAlignmentLoss].weight",
    1.0,
    "RNA-Net's code",
)

_ADVERSARIAL = "model.objectives[JointAdversarialLoss]"
_JAT = tuple(
    _weight(name, f"{_ADVERSARIAL}.{key}", value, "JAT's code")
    for name, key, value in (
        ("unimodal", "unimodal_weight", 3.0),
        ("global_domain", "global_weight", 0.5),
        ("local_domain", "local_weight", 0.5),
        ("modality", "modality_weight", 0.1),
        ("domain_reversal", "domain_reversal", 0.3),
        ("modality_reversal", "modality_reversal", 0.1),
    )
)


def _modulation(place: str) -> tuple[HyperParameter, ...]:
    """GMP's own: alone among the objectives, or on top of those of another method."""
    names = dict(
        alpha_class="alpha_k", alpha_domain="alpha_p", domain_weight="lambda",
        reversal="the same lambda",
    )  # fmt: skip
    return tuple(
        HyperParameter(
            key,
            f"model.{place}[GradientModulation].{key}",
            Uniform(0.0, 1.0),
            f"GMP's paper tunes {symbol} in [0, 1]",
            published=True,
        )
        for key, symbol in names.items()
    )


_GMP = (
    *_modulation("objectives"),
    _weight(
        "unimodal",
        "model.objectives[ClassificationObjective].unimodal_weight",
        3.0,
        "GMP's code",
    ),
)
_GMP_ADD_ON = _modulation("extra_objectives")
_MER_DG_ADD_ON = (
    _weight(
        "entropy_regularizer",
        "model.extra_objectives[MaximumEntropyRegularizer].weight",
        3.0,
        "MER-DG's paper",
    ),
)
_DSU_ADD_ON = (
    HyperParameter(
        "dsu",
        "model.encoders.*.dsu",
        Uniform(0.0, 1.0),
        "around 0.5: MBCD's code; a probability",
    ),
)

RANGES: dict[str, tuple[HyperParameter, ...]] = {
    "erm": (),
    "ema": (_BETA,),
    "mbcd": _MBCD,
    "rna_net": (_RNA,),
    "simmmdg": _SIMMMDG,
    "moosa": _MOOSA,
    "cmrf": _CMRF,
    "nel": _NEL,
    "jat": _JAT,
    "gmp": _GMP,
    # Add-ons.
    "rna_net_gmp": (_RNA, *_GMP_ADD_ON),
    "simmmdg_gmp": (*_SIMMMDG, *_GMP_ADD_ON),
    "moosa_gmp": (*_MOOSA, *_GMP_ADD_ON),
    "cmrf_gmp": (*_CMRF, *_GMP_ADD_ON),
    "erm_mer_dg": _MER_DG_ADD_ON,
    "simmmdg_mer_dg": (*_SIMMMDG, *_MER_DG_ADD_ON),
    "cmrf_mer_dg": (*_CMRF, *_MER_DG_ADD_ON),
    "mbcd_dsu": (*_MBCD, *_DSU_ADD_ON),
    "mbcd_second_order": _MBCD,
    # Ablations, whose rows lack parts of MBCD or fix them.
    "table4_ema_amd": (_BETA,),
    "table4_ema_gcc": (_BETA, _INNER_LR),
    "table4_ema_dl": (_BETA, _DISTILLATION),
    "table5_no_dropout": _MBCD,
    "table5_fixed_dropout": _MBCD,
    **{
        f"table7_beta_{beta}": (_INNER_LR, _DISTILLATION)
        for beta in ("09", "099", "0999", "09999")
    },
}
"""Of each method, by the name of its config, beside :data:`COMMON`."""
