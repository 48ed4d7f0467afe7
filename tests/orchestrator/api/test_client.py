"""The way to the daemon, and every sentence when there is none."""

from __future__ import annotations

import contextlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.client import ClientError, ControlClient, Unreachable, find_socket
from orchestrator.config.load import load_config


def test_answers(api: Any) -> None:
    client = ControlClient(api.socket)
    assert client.status() == api.status
    assert client.plan() == api.plan
    assert client.explain("a b&c")["subject"] == "a b&c"
    assert client.node("i-0001")["node"]["id"] == "i-0001"
    assert client.events(after=1, limit=2)["events"] == api.events[2:4]
    assert client.events(node="none") == {"events": [], "last": 4}
    assert client.post("/v1/pause", {"reason": "x"}) == {"text": "done: /v1/pause"}
    assert api.posts == [("/v1/pause", {"reason": "x"})]


def test_queries_that_are_not_given_are_not_sent(api: Any) -> None:
    client = ControlClient(api.socket)
    client.events()
    client.events(after=0, wait=0.5)
    assert api.gets == ["/v1/events", "/v1/events?after=0&wait=0.5"]


def test_a_node_id_cannot_leave_its_path(api: Any) -> None:
    with pytest.raises(ClientError, match="no node"):
        ControlClient(api.socket).node("../status?x=1#y")
    assert api.gets == ["/v1/nodes/..%2Fstatus%3Fx%3D1%23y"]


def test_a_refusal_is_the_daemons_own_sentence(api: Any) -> None:
    with pytest.raises(ClientError) as caught:
        ControlClient(api.socket).post("/v1/nodes/i-0001/undrain")
    assert str(caught.value) == "i-0001 is not drained by an operator; there is nothing to take back"
    assert caught.value.exit_code == 1


def test_no_socket(short_dir: Path) -> None:
    with pytest.raises(
        Unreachable, match="there is no such socket; start one with `orchestrator run"
    ) as caught:
        ControlClient(short_dir / "none.sock").status()
    assert caught.value.exit_code == 3
    assert "none.sock" in str(caught.value)


def test_nobody_listens(short_dir: Path) -> None:
    path = short_dir / "dead.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
    with pytest.raises(Unreachable, match="nothing listens on it, so the daemon is not running"):
        ControlClient(path).status()


def test_not_allowed(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(Unreachable, match="this user may not open it"):
        ControlClient(short_dir / "x.sock").status()


def test_where_many_ask_it_waits_for_its_turn(short_dir: Path) -> None:
    path = short_dir / "full.sock"
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as crowd:
        server.bind(os.fspath(path))
        server.listen(0)
        fill_queue(path, crowd)
        with pytest.raises(Unreachable, match="it did not answer in time"):
            ControlClient(path, timeout=0.05).status()
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(ControlClient(path, timeout=30.0).status)
            while not (wire := crowd.enter_context(server.accept()[0])).recv(1000):
                wire.close()
            wire.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")
            wire.close()
            assert asked.result() == {}


def fill_queue(path: Path, crowd: contextlib.ExitStack) -> None:
    """Connect until no more callers may wait, and hang up."""
    with contextlib.suppress(BlockingIOError):
        while True:
            caller = crowd.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            caller.connect(os.fspath(path))
            caller.shutdown(socket.SHUT_WR)


def test_a_daemon_that_does_not_answer(short_dir: Path) -> None:
    path = short_dir / "slow.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()
        with pytest.raises(Unreachable, match="did not answer in time; look at the daemon's log"):
            ControlClient(path, timeout=0.05).status()


def test_a_path_the_kernel_refuses(short_dir: Path) -> None:
    with pytest.raises(Unreachable, match="path too long"):
        ControlClient(short_dir / ("x" * 200)).status()


def test_something_else_listens(api: Any) -> None:
    api.broken = b"<html>"
    with pytest.raises(ClientError, match="answered 200 with something that is not JSON"):
        ControlClient(api.socket).status()


def test_a_daemon_that_dies_while_answering(short_dir: Path) -> None:
    import threading

    path = short_dir / "dying.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()

        def answer_badly() -> None:
            for reply in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"hello\r\n"):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

        thread = threading.Thread(target=answer_badly, daemon=True)
        thread.start()
        client = ControlClient(path)
        for _ in range(2):
            with pytest.raises(Unreachable, match="ended before its answer did"):
                client.status()
        with pytest.raises(ClientError, match="does not speak the control API"):
            client.status()
        thread.join(timeout=30)
        assert not thread.is_alive()


CONFIGS = [
    "[pool.a]\nreplicas = 1\n",
    "[daemon]\nstate_dir = '../var'\n[pool.a]\nreplicas = 1\n",
    "[daemon]\nsocket = 'x.sock'\n[pool.a]\nreplicas = 1\n",
    "[daemon]\nstate_dir = '~'\nsocket = '{state_dir}/run/x.sock'\n[pool.a]\nreplicas = 1\n",
]


@pytest.mark.parametrize("text", CONFIGS)
def test_the_socket_of_a_file_is_where_the_daemon_puts_it(text: str, short_dir: Path) -> None:
    directory = short_dir / "etc"
    directory.mkdir()
    file = directory / "pool.toml"
    file.write_text(text, encoding="utf-8")
    assert find_socket(None, file, {}) == load_config(file).daemon.socket


def test_which_socket_counts(short_dir: Path) -> None:
    file = short_dir / "pool.toml"
    file.write_text(CONFIGS[0], encoding="utf-8")
    environment = {"ORCHESTRATOR_SOCKET": "/run/env.sock"}
    assert find_socket(Path("given.sock"), file, environment) == Path("given.sock")
    assert find_socket(None, file, environment) == short_dir / "state/orchestrator.sock"
    assert find_socket(None, None, environment) == Path("/run/env.sock")
    assert find_socket(None, None, {}) == Path("state/orchestrator.sock")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "cannot be read"),
        ("x = [", "is not TOML"),
        ("x = " + "[" * 5000, ":1: tables or arrays"),
        ("x = " + "9" * 5000, ":1: an integer"),
        ("daemon = 3", "daemon is not a table"),
    ],
)
def test_a_file_that_names_no_socket(text: str | None, complaint: str, short_dir: Path) -> None:
    file = short_dir / "pool.toml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ClientError, match=complaint):
        find_socket(None, file, {})
