"""Makes ``tests.toys`` importable and keeps the tests' processes small."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402

import mmaction_mbcd  # noqa: E402, F401

# Toy tensors: a second thread costs more than it brings, and far more on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
