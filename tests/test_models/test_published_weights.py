"""The three published files fill the paper's encoders, and no other file does.

The names and shapes below are written down from the architectures, not read from the
models under test. What vouches for them: the metafiles of MMAction2 0.x publish the
exact numbers of parameters, and the tables agree with them (a fast pathway of depth 50,
which an early config of the same name had, would give 62,470,584); MMAction2's issue
840 quotes `backbone.slow_path.conv1.conv.weight` and `.bn.*`; VGGSound publishes the
module, `audnet`, that its file was saved from. What could not be checked, for want of
the files: that they hold these keys and no others, in which of torch's formats, and
what stands beside the weights.
"""

import http.server
import re
import threading
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from mmaction.registry import MODELS
from mmengine.config import Config

from mmaction_mbcd.models import weights
from mmaction_mbcd.models.weights import load_backbone

CONFIG = (
    Path(__file__).parents[2]
    / "configs/mbcd/_base_/models/slowfast_slowonly_resnet18.py"
)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

# --- the tables: {key: shape}


def norm(name, channels):
    keys = {f"{name}.{part}": (channels,) for part in ("weight", "bias")}
    keys |= {f"{name}.{part}": (channels,) for part in STATISTICS[:2]}
    return keys | {f"{name}.num_batches_tracked": ()}


def conv_norm(name, *shape):
    """A convolution without bias and its BatchNorm, as MMAction2 names them."""
    return {f"{name}.conv.weight": shape} | norm(f"{name}.bn", shape[0])


def pathway(at, blocks, base, channels, conv1, inflate, fused=False):
    """A bottleneck ResNet3d. ``fused``: a quarter of its width comes from the side."""
    keys = conv_norm(f"{at}conv1", base, channels, conv1, 7, 7)
    entering = base
    for n, count in enumerate(blocks):
        width = base * 2**n
        for i in range(count):
            block = f"{at}layer{n + 1}.{i}"
            # alpha x beta = 2 x 1/8 of the slow width comes over the lateral.
            read = entering + entering // 4 if fused and i == 0 else entering
            time = 3 if inflate[n] else 1
            keys |= conv_norm(f"{block}.conv1", width, read, time, 1, 1)
            keys |= conv_norm(f"{block}.conv2", width, width, 1, 3, 3)
            keys |= conv_norm(f"{block}.conv3", 4 * width, width, 1, 1, 1)
            if i == 0:
                keys |= conv_norm(f"{block}.downsample", 4 * width, read, 1, 1, 1)
            entering = 4 * width
    return keys


def below(prefix, keys):
    return {f"{prefix}{key}": shape for key, shape in keys.items()}


def slowfast(blocks=(3, 4, 23, 3)):
    """SlowFast 8x8: the lateral's kernel is 7 in time, without a norm."""
    sides = dict(conv1=8, layer1=32, layer2=64, layer3=128)
    keys = pathway("slow_path.", blocks, 64, 3, 1, (0, 0, 1, 1), fused=True)
    keys |= {
        f"slow_path.{after}_lateral.conv.weight": (2 * width, width, 7, 1, 1)
        for after, width in sides.items()
    }
    keys |= pathway("fast_path.", blocks, 8, 3, 5, (1, 1, 1, 1))
    return below("backbone.", keys) | {
        "cls_head.fc_cls.weight": (400, 2304),
        "cls_head.fc_cls.bias": (400,),
    }


def slowonly(blocks=(3, 4, 6, 3), channels=2):
    keys = pathway("", blocks, 64, channels, 1, (0, 0, 1, 1))
    return below("backbone.", keys) | {
        "cls_head.fc_cls.weight": (400, 2048),
        "cls_head.fc_cls.bias": (400,),
    }


def vggsound():
    keys = {"conv1.weight": (64, 1, 7, 7)} | norm("bn1", 64)
    entering = 64
    for n in range(4):
        width = 64 * 2**n
        for i in range(2):
            block, read = f"layer{n + 1}.{i}", entering if i == 0 else width
            keys |= {f"{block}.conv1.weight": (width, read, 3, 3)}
            keys |= norm(f"{block}.bn1", width)
            keys |= {f"{block}.conv2.weight": (width, width, 3, 3)}
            keys |= norm(f"{block}.bn2", width)
        if n:
            keys |= {f"layer{n + 1}.0.downsample.0.weight": (width, entering, 1, 1)}
            keys |= norm(f"layer{n + 1}.0.downsample.1", width)
        entering = width
    keys |= {"fc.weight": (309, 512), "fc.bias": (309,)}
    return below("audnet.", keys)


# Of torchvision's ResNet-18, 11,689,512 parameters with 3 channels and 1000 classes:
# 2 x 64 x 7 x 7 and 691 x (512 + 1) fewer.
PARAMETERS = [
    (slowfast(), 62_912_312),
    (slowonly(), 32_450_960),
    (slowonly(channels=3), 32_454_096),
    (slowfast((3, 4, 6, 3)), 34_565_560),
    (vggsound(), 11_328_757),
]


@pytest.mark.parametrize(("keys", "count"), PARAMETERS)
def test_the_tables_have_the_published_numbers_of_parameters(keys, count):
    trained = {k: s for k, s in keys.items() if not k.endswith(STATISTICS)}
    assert sum(map(prod, trained.values())) == count


# --- the files

FILES = dict(video=slowfast(), flow=slowonly(), audio=vggsound())
HEADS = dict(
    video=["cls_head.fc_cls.weight", "cls_head.fc_cls.bias"],
    flow=["cls_head.fc_cls.weight", "cls_head.fc_cls.bias"],
    audio=["fc.weight", "fc.bias"],
)
PREFIXES = dict(video="backbone.", flow="backbone.", audio="audnet.")


def numbers(keys, first=1):
    """Every key's tensor has a number of its own; none takes more room than that."""
    state = {}
    for i, (key, shape) in enumerate(keys.items(), first):
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(i)
        else:
            state[key] = torch.tensor(i / 1024).expand(shape)
    return state


def save(path, state, **kwargs):
    """As MMAction2 publishes them, or as VGGSound does."""
    if next(iter(state)).startswith("audnet."):
        # Saved before torch 1.6 changed its format; beside the weights what a
        # training script of its day keeps.
        content = dict(epoch=49, acc=np.float64(0.488), model_state_dict=state)
        kwargs.setdefault("_use_new_zipfile_serialization", False)
    else:
        meta = dict(mmaction_version="0.11.0", seed=None, config="model = dict()\n")
        content = dict(meta=meta, state_dict=state)
    torch.save(content, path, **kwargs)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    names = dict(video="slowfast.pth", flow="slowonly.pth", audio="H.pth.tar")
    return {m: save(folder / names[m], numbers(keys)) for m, keys in FILES.items()}


@pytest.fixture(scope="module")
def encoders(files):
    """The paper's, built once, each initialised from its file."""
    built = {}
    for modality, encoder in Config.fromfile(CONFIG).model.encoders.items():
        assert encoder.pretrained.prefix == PREFIXES[modality]
        encoder.pretrained.checkpoint = files[modality]
        built[modality] = MODELS.build(encoder)
        built[modality].init_weights()
    return built


def load(encoders, modality, path, **kwargs):
    kwargs = dict(prefix=PREFIXES[modality]) | kwargs
    return load_backbone(encoders[modality].backbone, str(path), **kwargs)


def held(modality):
    """``{the backbone's key: the file's tensor}``, without the head."""
    prefix = PREFIXES[modality]
    return {
        key.removeprefix(prefix): value
        for key, value in numbers(FILES[modality]).items()
        if key.startswith(prefix) and ".fc." not in key
    }


def assert_holds(encoder, modality):
    state, expected = encoder.backbone.state_dict(), held(modality)
    assert state.keys() == expected.keys()
    different = [key for key in state if not torch.equal(state[key], expected[key])]
    assert not different


@pytest.mark.parametrize("modality", FILES)
def test_frozen_stem_and_trained_branch_hold_the_file(encoders, modality):
    """As init_weights() left them."""
    encoder, expected = encoders[modality], held(modality)
    frozen, trained = set(), set()
    for name, p in encoder.backbone.named_parameters():
        assert torch.equal(p, expected[name]), name
        (trained if p.requires_grad else frozen).add(name)
    parameters = {key for key in expected if not key.endswith(STATISTICS)}
    assert trained == {key for key in parameters if "layer4." in key}
    assert frozen == parameters - trained
    assert_holds(encoder, modality)  # BatchNorm's statistics too


def test_layer4_of_the_published_baselines_starts_at_random(files):
    """Kaiming's deviation sqrt(2 / (out x 3 x 3)), BatchNorm's weights N(1, 0.02)."""
    cfg = Config.fromfile(CONFIG)
    changes = cfg.published_encoders.audio.to_dict()
    cfg.merge_from_dict({"model.encoders.audio": changes})
    config = cfg.model.encoders.audio.to_dict()
    config["pretrained"]["checkpoint"] = str(files["audio"])
    torch.manual_seed(0)
    encoder = MODELS.build(config)
    encoder.init_weights()
    expected = held("audio")
    for name, value in encoder.backbone.state_dict().items():
        if not name.startswith("layer4."):
            assert torch.equal(value, expected[name]), name
        elif name.endswith("conv2.weight"):
            assert value.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
        elif ".bn" in name and name.endswith(".weight"):
            assert value.mean().item() == pytest.approx(1, abs=0.005)
            assert value.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("modality", FILES)
def test_every_key_is_matched_and_the_head_is_left_out(
    encoders, files, modality, monkeypatch
):
    said = []
    monkeypatch.setattr(weights, "print_log", lambda text, logger: said.append(text))
    report = load(encoders, modality, files[modality])
    backbone, head = encoders[modality].backbone, HEADS[modality]
    count = len(held(modality))
    assert (
        report.matched == list(backbone.state_dict()) and len(report.matched) == count
    )
    assert report.missing == []
    # VGGSound's head lies under the prefix of its network.
    places = [report.unexpected, report.left_out]
    assert places == ([head, []] if modality == "audio" else [[], head])
    assert said == [
        f"{files[modality]}: {count} of {count} keys of {type(backbone).__name__} "
        f"matched, 0 missing, {len(places[0])} unexpected, {len(places[1])} left out "
        f"(not loaded: {', '.join(head)})"
    ]


def without(pattern):
    return lambda s: {k: v for k, v in s.items() if not re.search(pattern, k)}


def with_(key, *shape):
    return lambda s: s | {key: torch.zeros(shape)}


def renamed(old, new):
    return lambda s: {k.replace(old, new, 1): v for k, v in s.items()}


def as_is(state):
    return state


SLOW = "backbone.slow_path"
WRONG = [
    # Other architectures: shallower, deeper, one pathway, another library's names.
    ("video", slowfast((3, 4, 6, 3)), as_is, r"Missing: slow_path\.layer3\.6\.conv1"),
    ("video", slowonly(), as_is, r"Missing: slow_path\.conv1\.conv\.weight.*conv1\."),
    ("flow", slowfast(), as_is, r"Missing: conv1\.conv\.weight"),
    (
        "flow",
        slowonly((3, 4, 23, 3)),
        as_is,
        r"0 missing.*Not in the model: layer3\.6\.conv1\.conv\.weight.* and 250 more",
    ),
    (
        "flow",
        slowonly(),
        with_("backbone.layer2.1.non_local_block.g.weight", 4, 4),
        r"Not in the model: layer2\.1\.non_local_block\.g\.weight\.",
    ),
    ("audio", slowonly(), as_is, r"Missing: conv1\.weight.*prefix.*'audnet\.'"),
    # The RGB file in the place of the flow file.
    (
        "flow",
        slowonly(channels=3),
        as_is,
        r"0 missing.*Other shape: conv1\.conv\.weight \(file \(64, 3, 1, 7, 7\), "
        r"model \(64, 2, 1, 7, 7\)\)\. The file",
    ),
    # Kernels of 5 in the laterals are SlowFast 4x16.
    (
        "video",
        slowfast(),
        with_(f"{SLOW}.layer1_lateral.conv.weight", 64, 32, 5, 1, 1),
        r"Other shape: slow_path\.layer1_lateral\.conv\.weight \(file \(64, 32, 5, ",
    ),
    # Wrong prefixes.
    (
        "audio",
        vggsound(),
        renamed("audnet.", "audio_net."),
        r"keys such as audio_net\.conv1\.weight, .*looked for is 'audnet\.'\. Give",
    ),
    (
        "video",
        slowfast(),
        renamed("backbone.", ""),
        r"keys such as slow_path\.conv1\.conv\.weight, .*looked for is 'backbone\.'",
    ),
    # One key less: a weight, a statistic, in the stem and in the branch.
    (
        "video",
        slowfast(),
        without(r"slow_path\.layer2_lateral"),
        r"1 missing.*Missing: slow_path\.layer2_lateral\.conv\.weight\. The file",
    ),
    (
        "flow",
        slowonly(),
        without(r"layer4\.2\.conv3\.bn\.running_var"),
        r"1 missing.*Missing: layer4\.2\.conv3\.bn\.running_var\. The file",
    ),
    (
        "audio",
        vggsound(),
        without(r"layer3\.0\.downsample\.0\.weight"),
        r"1 missing.*Missing: layer3\.0\.downsample\.0\.weight\. The file",
    ),
    # One shape.
    (
        "audio",
        vggsound(),
        with_("audnet.layer4.1.bn2.bias", 511),
        r"Other shape: layer4\.1\.bn2\.bias \(file \(511,\), model \(512,\)\)\. The",
    ),
]


@pytest.mark.parametrize(("modality", "keys", "change", "message"), WRONG)
def test_a_wrong_file_is_named_and_changes_nothing(
    encoders, tmp_path, modality, keys, change, message
):
    # Other numbers, so that a single loaded tensor would show.
    path = save(tmp_path / "wrong.pth", change(numbers(keys, first=5000)))
    with pytest.raises(ValueError, match=rf"wrong weights\. {path}: .*{message}"):
        load(encoders, modality, path)
    assert_holds(encoders[modality], modality)


def test_what_a_deeper_file_has_more_can_be_skipped_by_name(encoders, tmp_path):
    """The way out for those who mean it."""
    path = save(tmp_path / "r101.pth", numbers(slowonly((3, 4, 23, 3))))
    beyond = r"^layer3\.([6-9]|1\d|2\d)\."
    backbone = encoders["flow"].backbone
    kept = {key: value.clone() for key, value in backbone.state_dict().items()}
    report = load(encoders, "flow", path, skip=beyond)
    assert not report.missing and not report.unexpected
    assert len(report.matched) == len(kept)
    backbone.load_state_dict(kept)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: p.write_bytes(b""), r"it is empty"),
        (
            lambda p: p.write_text("<html>404 Not Found</html>"),
            r"not a checkpoint \(it begins with",
        ),
        (lambda p: p.write_bytes(p.read_bytes()[:9000]), r"it ends after 9,000 bytes"),
        (lambda p: torch.save([torch.zeros(2)], p), r"holds a list; expected a dict"),
        (
            lambda p: torch.save(dict(state_dict={}, path=Path("x")), p),
            r"holds pathlib\.",
        ),
    ],
    ids=["empty", "html", "truncated", "list", "objects"],
)
def test_a_file_that_is_no_checkpoint(encoders, tmp_path, write, message):
    path = tmp_path / "broken.pth"
    save(path, numbers(slowonly()))
    write(path)
    with pytest.raises(ValueError, match=rf"^{path} .*{message}"):
        load(encoders, "flow", path)
    assert_holds(encoders["flow"], "flow")


@pytest.mark.parametrize("modality", FILES)
def test_files_of_both_torch_formats_and_of_data_parallel(encoders, tmp_path, modality):
    state = {f"module.{key}": v for key, v in numbers(FILES[modality]).items()}
    for new in (False, True):
        path = save(tmp_path / "w.pth", state, _use_new_zipfile_serialization=new)
        assert not load(encoders, modality, path).missing
    assert_holds(encoders[modality], modality)


def test_a_file_of_torch_before_the_batch_counters(encoders, tmp_path):
    """torch < 0.4.1 kept no num_batches_tracked; nothing here needs it."""
    state = without("num_batches_tracked")(numbers(slowonly()))
    report = load(encoders, "flow", save(tmp_path / "old.pth", state))
    assert not report.missing
    assert_holds(encoders["flow"], "flow")


# --- from a URL


class Opened:
    """What a harmful pickle would call."""

    def __reduce__(self):
        return open, ("opened.txt", "w")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder behind a web server on this machine: its path, its URL, its log."""
    root, log = tmp_path / "site", []
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, template, *args):
            log.append(template % args)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(root))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    yield root, f"http://127.0.0.1:{server.server_port}", log
    server.shutdown()
    thread.join()
    server.server_close()


TOY = dict(
    type="ResNet3dSlowOnly",
    depth=50,
    base_channels=2,
    in_channels=2,
    conv1_kernel=(1, 7, 7),
    inflate=(0, 0, 1, 1),
    with_pool2=False,
)


def toy_file(base=2):
    return below("backbone.", pathway("", (3, 4, 6, 3), base, 2, 1, (0, 0, 1, 1)))


def toy_encoder(url):
    return MODELS.build(
        dict(
            type="ModalityEncoder",
            backbone=TOY,
            frozen_stages=3,
            pretrained=dict(checkpoint=url, prefix="backbone."),
        )
    )


@pytest.mark.parametrize("new_format", [True, False])
def test_weights_from_a_url_are_fetched_once(site, new_format):
    root, url, log = site
    state = numbers(toy_file())
    save(root / "toy.pth", state, _use_new_zipfile_serialization=new_format)
    for _ in range(2):
        encoder = toy_encoder(f"{url}/toy.pth")
        encoder.init_weights()
        loaded = below("backbone.", encoder.backbone.state_dict())
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert len(log) == 1 and "GET /toy.pth" in log[0]


def test_a_wrong_file_at_a_url(site):
    root, url, _ = site
    save(root / "wide.pth", numbers(toy_file(base=4)))
    with pytest.raises(ValueError, match=rf"wrong weights\. {url}/wide\.pth: .*shape"):
        toy_encoder(f"{url}/wide.pth").init_weights()


def test_a_url_without_a_file(site):
    _, url, _ = site
    with pytest.raises(ValueError, match=rf"{url}/none\.pth cannot .* 404"):
        toy_encoder(f"{url}/none.pth").init_weights()


def test_a_damaged_download_says_where_it_is_kept(site, tmp_path):
    root, url, _ = site
    path = Path(save(root / "toy.pth", numbers(toy_file())))
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    kept = tmp_path / "torch/hub/checkpoints"
    with pytest.raises(ValueError, match=rf"{url}/toy\.pth cannot .*{kept}"):
        toy_encoder(f"{url}/toy.pth").init_weights()
    path.write_bytes(whole)
    (kept / "toy.pth").unlink()
    toy_encoder(f"{url}/toy.pth").init_weights()


def test_a_download_runs_no_code(site, tmp_path):
    root, url, _ = site
    state = numbers(toy_file())
    torch.save(dict(state_dict=state, extra=Opened()), root / "harmful.pth")
    with pytest.raises(
        ValueError, match=r"harmful\.pth is not loaded: it holds io.open"
    ):
        toy_encoder(f"{url}/harmful.pth").init_weights()
    assert not (tmp_path / "opened.txt").exists()
