"""Every method's config at toy size, for tests in process and in two processes."""

import copy
import functools
from pathlib import Path

from mmengine.config import Config

from toys import toy_config

ROOT = Path(__file__).parent.parent / "configs" / "mbcd"
SYNTHETIC = sorted(
    p.stem
    for p in (ROOT / "synth_action").glob("*.py")
    if not p.stem.startswith(("table", "mbcd_second"))
)
# Add-ons of the published tables, which HAC's leaves have in full.
ADD_ONS = [p.stem for p in ROOT.glob("hac/*_*.py") if p.stem.endswith(("gmp", "dg"))]
METHODS = sorted({*SYNTHETIC, *ADD_ONS})
NAMES = ("video", "audio", "flow")


def shrunk(part):
    """A config with small hidden layers and no dropout."""
    if isinstance(part, dict):
        part = {k: shrunk(v) for k, v in part.items()}
        for key, value in dict(
            hidden_channels=16, out_channels=8, permutations=6, neighbours=3
        ).items():
            if isinstance(part.get(key), int):
                part[key] = value
        return part
    if isinstance(part, (list, tuple)):
        return [shrunk(x) for x in part]
    return part


def method_config(method):
    """The leaf's whole config as plain values."""
    return copy.deepcopy(_read(method))


@functools.cache
def _read(method):
    dataset = "synth_action" if method in SYNTHETIC else "hac"
    return Config.fromfile(ROOT / dataset / f"{method}.py").to_dict()


def method_model(method, names=NAMES, **kwargs):
    """The leaf's model with toy encoders, whose widths are multiples of four."""
    model = shrunk(method_config(method)["model"])
    parts = (
        "norm neck unimodal_head probe inner_step objectives extra_objectives "
        "num_domains fused_head"
    ).split()
    config = toy_config(names, batchnorm=True, **{
        key: model[key] for key in parts if key in model
    })  # fmt: skip
    for i, (m, encoder) in enumerate(config["encoders"].items()):
        encoder["backbone"]["width"] = 8 + 4 * i
        if "dsu" in model["encoders"].get(m, {}):
            encoder["dsu"] = model["encoders"][m]["dsu"]
    return config | kwargs


def views_of(method):
    """Views of a training clip that the leaf asks for."""
    return method_config(method)["train_dataloader"]["dataset"].get("views", 1)
