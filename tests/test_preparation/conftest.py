"""Fixtures of the tests of downloads."""

import time

import pytest

from helpers.download_server import Server


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The client writes 10 MB at a time.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
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
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits
