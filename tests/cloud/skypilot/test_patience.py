"""What SkyPilot asks without a limit of time ends."""

import socket

import pytest
import requests

from cloud.skypilot.helper.patience import limit_requests


@pytest.fixture
def silent(monkeypatch):
    """The address of a server that takes connections and says nothing."""
    monkeypatch.setattr(requests.Session, "send", requests.Session.send)  # is put back
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def test_a_request_without_a_limit_has_one_and_a_limit_stays(silent):
    limit_requests((1.0, 0.2))
    with pytest.raises(requests.ReadTimeout):
        requests.get(silent)  # noqa: S113 - as SkyPilot does
    with pytest.raises(requests.ReadTimeout, match=r"read timeout=0\.1"):
        requests.Session().get(silent, timeout=(1.0, 0.1))
