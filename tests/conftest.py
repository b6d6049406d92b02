"""Makes ``tests.toys`` importable and keeps the tests' processes small."""

import gc
import importlib
import os
import signal
import sys
import uuid
from pathlib import Path

import pytest
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))

# The tests compare bits of a CPU's runs, and start two processes where there may be one
# GPU. What needs one asks for it: `make test-gpu`.
if not os.environ.get("MBCD_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(trylast=True)  # pytest-cov has begun by then
def pytest_sessionstart(session):
    """Imports for all tests of a process, but not where others run them."""
    config = session.config
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    # The first repairs MMAction2.
    for module in ("mmaction_mbcd.preparation.check", "mmaction.models",
                   "mmpretrain.models"):  # fmt: skip
        importlib.import_module(module)
    # MMEngine's datasets collect garbage as they are built: 0.3 s each for what the
    # imports left, which stays anyway.
    gc.collect()
    gc.freeze()
    # Toy tensors: a second thread costs more than it brings, most of all beside others.
    importlib.import_module("torch").set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """What earlier modules left alive is not looked at again, either."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory, worker_id):
    """Six actions, two training and one test clip each, in three domains."""
    from mmaction_mbcd.datasets.synth import SynthConfig, generate

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny_synth"
    with FileLock(f"{folder}.lock"):  # one of the test processes makes it for all
        if not folder.exists():
            config = SynthConfig(train_per_class=2, test_per_class=1)
            # More processes would first import MMAction2, which takes as long.
            generate(folder, config, workers=1, progress=False)
    return folder


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _in_mmaction():
    """Another test of this process may have left another scope."""
    from mmengine.registry import DefaultScope

    scope = DefaultScope.get_current_instance()
    if scope is not None and scope.scope_name != "mmaction":
        DefaultScope.get_instance(uuid.uuid4().hex, scope_name="mmaction")


@pytest.fixture(autouse=True)
def _interruptible():
    """Ctrl-C as in a terminal: pytest-xdist's workers ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
