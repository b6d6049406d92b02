"""Fixtures of the tests of downloads."""

import pytest

from download_support import Server
from mmaction_mbcd.preparation.downloads.common import Monitor


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server = Server()
    yield server
    server.close()


@pytest.fixture
def other(server):
    """A second one, for redirects."""
    second = Server()
    yield second
    second.close()


@pytest.fixture
def waits(monkeypatch):
    """The seconds between tries, which are not spent."""
    waits = []
    monkeypatch.setattr(Monitor, "wait", lambda self, seconds: waits.append(seconds))
    return waits
