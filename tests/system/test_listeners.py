"""Every listener of a running pool: its socket comes back, and strangers' broken requests leave few lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.client import ControlClient
from orchestrator.config.sockets import reading_socket

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

BROKEN = (
    b"\x00\xff garbage\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nnothing\r\n\r\n",
    b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n\r\n",
    b"POST /v1/pause HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
)
HEADS = b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
CUT = (
    b"POST /v1/pause" + HEADS,
    b"PUT /v1/targets" + HEADS,
    b"POST /v1/instances" + HEADS,
    b"POST /v1/completions" + HEADS,
    b"GET / HT",
)
ROUNDS = 15
"""So often is each sent to each listener: many times as many as lines may come of it."""
LINES_MOST = 12
"""Of one listener within the seconds that this takes: one, and one after 1, 2, 4, 8 s and so on."""


def places(stack: Any) -> dict[str, Path | int]:
    control = stack.sockets / "daemon"
    return {
        "control": control,
        "reading": reading_socket(control),
        "monitoring": stack.monitoring_port,
        "gateway": stack.gateway_port,
        "gateway's control": stack.sockets / "gateway",
        "local cloud": stack.sockets / "cloud",
    }


def connected(place: Path | int) -> socket.socket:
    caller = socket.socket(socket.AF_INET if isinstance(place, int) else socket.AF_UNIX)
    caller.settimeout(60)
    caller.connect(("127.0.0.1", place) if isinstance(place, int) else str(place))
    return caller


def answer(place: Path | int, words: bytes) -> bytes:
    with connected(place) as caller, contextlib.suppress(ConnectionError):
        caller.sendall(words)
        return b"".join(iter(lambda: caller.recv(65536), b""))
    return b""


def cut(place: Path | int, words: bytes) -> None:
    with connected(place) as caller:
        caller.sendall(words)


def attack(place: Path | int) -> None:
    for _ in range(ROUNDS):
        for words in BROKEN:
            said = answer(place, words)
            if said:  # where its rest was not read, the answer may be lost
                head, _, body = said.partition(b"\r\n\r\n")
                assert b" 400 " in head.splitlines()[0] or b" 415 " in head.splitlines()[0], said
                assert json.loads(body)["error"]
        for words in CUT:
            cut(place, words)


async def test_broken_requests_leave_a_few_short_lines_and_no_traceback(stack: Any) -> None:
    before = {name: part.log.stat().st_size for name, part in stack.parts.items()}
    for place in places(stack).values():
        await asyncio.to_thread(attack, place)
    await stack.settled()
    seen: dict[str, int] = {}
    for name, part in stack.parts.items():
        lines = part.log.read_bytes()[before[name] :].decode().splitlines()
        assert not [line for line in lines if "Traceback" in line or "Error handling" in line], lines[:3]
        for line in lines:
            if "request.malformed" in line:
                entry = json.loads(line)
                seen[entry["listener"]] = seen.get(entry["listener"], 0) + 1
                assert len(line) < 500
    assert len(seen) == len(places(stack)), seen
    assert max(seen.values()) <= LINES_MOST, seen
    assert (await stack.status())["daemon"]["paused"] is None


async def test_every_unix_socket_comes_back(stack: Any) -> None:
    """Deleted, or replaced by a file; the processes stay, and so does what is asked for meanwhile."""
    pids = {name: part.pid for name, part in stack.parts.items()}
    files = [place for place in places(stack).values() if isinstance(place, Path)]
    modes = [file.stat().st_mode for file in files]
    last = (await stack.events())[-1]["seq"]
    waiting = asyncio.create_task(asyncio.to_thread(stack.client.events, after=last, wait=30.0))
    await stack.turns(2)
    for file in files:
        file.unlink()
    files[0].write_text("somebody's", encoding="utf-8")

    async def all_back() -> bool:
        return all(file.is_socket() for file in files)

    await stack.until("the sockets are there again", all_back)
    assert [file.stat().st_mode for file in files] == modes
    node = (await stack.a_node("spot"))["id"]
    assert (await stack.cli("drain", node)).code == 0, "and serve"
    assert (await waiting)["events"], "a long poll from before goes on"
    assert ControlClient(files[1]).status()["pools"]
    await stack.settled()
    assert pids == {name: part.pid for name, part in stack.parts.items()}
    assert "socket.restored" in stack.parts["daemon"].log.read_text(encoding="utf-8")
    (aside,) = [file for file in stack.sockets.iterdir() if ".replaced-" in file.name]
    assert aside.read_text(encoding="utf-8") == "somebody's"
    aside.unlink()


async def test_a_foreign_name_is_refused_everywhere(stack: Any) -> None:
    for name, place in places(stack).items():
        words = b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        said = await asyncio.to_thread(answer, place, words)
        assert said.startswith(b"HTTP/1.1 421 "), name
    said = await asyncio.to_thread(answer, stack.monitoring_port, words)
    assert b'write allowed_hosts = [\\"evil.example\\"] in [daemon] ' in said
    said = await asyncio.to_thread(answer, stack.gateway_port, words)
    assert b'write allowed_hosts = [\\"evil.example\\"] in [pool.test.gateway] ' in said
    own = f"GET /healthz HTTP/1.1\r\nHost: {socket.gethostname()}\r\nConnection: close\r\n\r\n".encode()
    for port in (stack.monitoring_port, stack.gateway_port):
        assert (await asyncio.to_thread(answer, port, own)).startswith(b"HTTP/1.1 200 ")
