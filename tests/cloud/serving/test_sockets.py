"""Who may connect to a unix socket that is served, and that it is served whatever one connection does."""

from __future__ import annotations

import asyncio
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cloud.serving.sockets import SocketFile, listen_unix


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: a socket's may have a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="orch-") as name:
        yield Path(name)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_socket_is_for_its_owner_and_group_where_nothing_else_is_said(folder: Path) -> None:
    runner = await listen_unix(web.Application(), folder / "a.sock")
    try:
        assert mode_of(folder / "a.sock") == 0o660
    finally:
        await runner.cleanup()
    file = SocketFile(folder / "b.sock")
    with file.open():
        assert mode_of(folder / "b.sock") == 0o660
    file.release()


@pytest.mark.parametrize("first", [ConnectionAbortedError(), OSError(24, "Too many open files")])
async def test_a_connection_that_is_gone_before_it_is_accepted_ends_nothing(
    folder: Path, first: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    accept, left = loop.sock_accept, [first]

    async def fails_once(listener: socket.socket) -> Any:
        if left:
            raise left.pop()
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", fails_once)
    monkeypatch.setattr("cloud.serving.sockets._ACCEPT_PAUSE", 0.0)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="yes")

    app = web.Application()
    app.router.add_get("/", answer)
    path = folder / "a.sock"
    runner = await listen_unix(app, path)
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(path)), timeout=aiohttp.ClientTimeout(total=20.0)
            ) as session,
            session.get("http://localhost/") as said,
        ):
            assert await said.text() == "yes"
    finally:
        await runner.cleanup()
    assert not left
