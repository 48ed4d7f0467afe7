"""Who may do what on which listener: the control socket, the reading socket, TCP."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.client import ClientError, ControlClient
from orchestrator.config.sockets import reading_socket

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

CHANGING = ("/v1/pause", "/v1/resume", "/v1/reload", "/v1/nodes/i-1/drain", "/v1/nodes/i-1/undrain")
READING = (
    "/v1/status",
    "/v1/plan",
    "/v1/events",
    "/v1/history",
    "/v1/cost",
    "/v1/explain",
    "/metrics",
    "/healthz",
)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_every_socket_has_its_mode(stack: Any) -> None:
    control = stack.sockets / "daemon"
    assert mode(control) == 0o660
    assert mode(reading_socket(control)) == 0o666
    assert mode(stack.sockets / "gateway") == 0o600
    assert mode(stack.sockets / "cloud") == 0o600


def refused_for_size(path: Path, method: str, route: str, size: int) -> bool:
    """Send so many bytes; True when the answer says that they are too many, whether or not all were read."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        head = f"{method} {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head.encode() + b" " * size)
        return connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("name", "method", "route", "most"),
    [
        ("daemon", "POST", "/v1/pause", 64 * 1024),
        ("daemon", "POST", "/v1/nodes/{node}/drain", 64 * 1024),
        ("gateway", "PUT", "/v1/targets", 64 * 1024 * 1024),
    ],
)
async def test_a_body_that_is_too_large_is_refused(
    stack: Any, name: str, method: str, route: str, most: int
) -> None:
    node = (await stack.a_node("spot"))["id"]
    path, route = stack.sockets / name, route.format(node=node)
    assert await asyncio.to_thread(refused_for_size, path, method, route, most + 1)
    assert not await asyncio.to_thread(refused_for_size, path, method, route, most - 1)
    assert (await stack.status())["daemon"]["paused"] is None
    assert not (await stack.nodes())[node]["conditions"].count("cordoned")


async def test_the_reading_socket_answers_questions_only(stack: Any) -> None:
    reader = ControlClient(reading_socket(stack.sockets / "daemon"))
    for path in READING:
        assert await asyncio.to_thread(reader.text, path)
    for path in CHANGING:
        with pytest.raises(ClientError, match="this socket is read-only"):
            await asyncio.to_thread(reader.post, path)
    assert (await stack.status())["daemon"]["paused"] is None


async def test_tcp_changes_nothing_and_tells_nobody_of_nodes_lives(stack: Any) -> None:
    for path in CHANGING:
        connection = http.client.HTTPConnection("127.0.0.1", stack.monitoring_port, timeout=30)
        await asyncio.to_thread(connection.request, "POST", path, b"{}")
        assert connection.getresponse().status in (404, 405)
        connection.close()
    assert "404" in (await stack.get(stack.monitoring_port, "/v1/events")).splitlines()[0]


async def test_whoever_may_not_open_the_control_socket_reads_all_the_same(stack: Any) -> None:
    """As root every file may be opened, so a child becomes somebody else first."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    stack.sockets.chmod(0o711)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.api.client import ControlClient, ClientError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "client = ControlClient(Path(sys.argv[1]))\n"
        "print(client.status()['pools'][0]['wanted'])\n"
        "try: client.post('/v1/pause')\n"
        "except ClientError as error: print(error)\n"
    )
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(stack.sockets / "daemon")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=stack.full_environment,
    )
    out, err = await child.communicate()
    assert out.decode().splitlines()[:1] == ["4"], err.decode()
    assert "this user may not open it" in out.decode().splitlines()[1]


async def test_a_crowd_of_readers_is_turned_away(stack: Any) -> None:
    """Long polls hold their places; the next reader is told to come again, and the control socket answers."""
    path = str(reading_socket(stack.sockets / "daemon"))
    last = (await stack.events())[-1]["seq"] + 1_000_000
    crowd = []
    for _ in range(32):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        connection.sendall(
            f"GET /v1/events?after={last}&wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        crowd.append(connection)

    def turned_away() -> bool:
        with socket.socket(socket.AF_UNIX) as late:
            late.settimeout(10)
            late.connect(path)
            late.sendall(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return late.recv(4096).startswith(b"HTTP/1.1 503")

    async def full() -> bool:
        return await asyncio.to_thread(turned_away)

    try:
        await stack.until("the reading socket is full", full)
        assert json.loads(stack.ask("GET", "/v1/status")[1])["schema"] == "status/1"
    finally:
        for connection in crowd:
            connection.close()

    async def free() -> bool:
        return not await asyncio.to_thread(turned_away)

    await stack.until("places are free again", free)
