"""How many connections a listener holds, and who keeps his."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from cloud.serving import sockets
from cloud.serving.sockets import CONNECTIONS_MOST, SocketFile, listen_tcp, listen_unix
from tests.support.connections import still_open
from tests.support.node_bench import make_certificate

pytestmark = pytest.mark.asyncio

BURST = 100  # as many as come to a listener while its process does not run
TURNS = 20 * BURST  # of the loop: more than it takes to accept and answer them, on a machine of any speed


class Asked:
    """An application that answers at once, and on /slow when it is told to."""

    def __init__(self) -> None:
        self.slow = asyncio.Event()

    def app(self) -> web.Application:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(text="yes")

        async def wait(_: web.Request) -> web.Response:
            await self.slow.wait()
            return web.Response(text="at last")

        app = web.Application()
        app.router.add_get("/", answer)
        app.router.add_get("/slow", wait)
        return app


@contextlib.asynccontextmanager
async def listening(app: web.Application, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve it on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    runner = await listen_tcp(app, "127.0.0.1", port, tls=tls)
    try:
        yield port
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def callers() -> Iterator[list[socket.socket]]:
    """Connections that are closed at the end."""
    found: list[socket.socket] = []
    try:
        yield found
    finally:
        for caller in found:
            caller.close()


async def burst(found: list[socket.socket], port: int, words: bytes = b"") -> None:
    """So many at once: the listener's loop has no turn before the last has called."""
    for _ in range(BURST):
        caller = socket.create_connection(("127.0.0.1", port), timeout=10)
        caller.setblocking(False)
        caller.send(words)
        found.append(caller)
    await turns()


async def turns() -> None:
    """Let the listener's loop turn until it has nothing to do."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def get(port: int, tls: ssl.SSLContext | None = None) -> str:
    scheme = "https" if tls is not None else "http"
    timeout = aiohttp.ClientTimeout(total=30)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"{scheme}://127.0.0.1:{port}/", ssl=tls or True) as answer,
    ):
        return await answer.text()


async def test_callers_that_come_at_once_are_held_to_the_bound() -> None:
    async with listening(Asked().app()) as port:
        with callers() as found:
            for _ in range(5):
                await burst(found, port)
            held = [still_open(caller) for caller in found]
            assert sum(held) == CONNECTIONS_MOST
            assert all(held[-CONNECTIONS_MOST:]), "the oldest are ended"
            assert await get(port) == "yes"


async def test_callers_that_never_shake_hands_are_held_to_the_bound(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=certificate)
    async with listening(Asked().app(), server) as port:
        with callers() as found:
            for _ in range(5):
                await burst(found, port)
            assert sum(map(still_open, found)) == CONNECTIONS_MOST
            assert await get(port, client) == "yes"


async def test_a_caller_whose_request_is_answered_keeps_his_connection() -> None:
    asked = Asked()
    async with listening(asked.app()) as port:
        with callers() as found:
            for _ in range(2):
                await burst(found, port, b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
            waiting = list(found)
            for _ in range(3):
                await burst(found, port)
            assert all(map(still_open, waiting))
            await burst(waiting, port, b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
            held = [still_open(caller) for caller in waiting]
            assert sum(held) == CONNECTIONS_MOST
            assert all(held[: 2 * BURST]), "who comes too late is refused"
            found += waiting[2 * BURST :]
            asked.slow.set()
            await turns()
            assert b"at last" in waiting[0].recv(1000)


async def test_where_nothing_can_be_accepted_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    accept, errors = loop.sock_accept, iter([ConnectionAbortedError(), OSError(errno.EMFILE, "")])

    async def accepts(listener: socket.socket) -> Any:
        for error in errors:
            raise error
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", accepts)
    with capture_logs() as lines:
        async with listening(Asked().app()) as port:
            assert await get(port) == "yes"
    assert [(line["event"], line["error"]) for line in lines] == [
        ("connection.accept_failed", "too many open files")
    ]


async def test_a_caller_that_breaks_something_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    connect, errors = loop.connect_accepted_socket, iter([ConnectionResetError(), RuntimeError("odd")])

    async def connects(*given: Any, **more: Any) -> Any:
        for error in errors:
            raise error
        return await connect(*given, **more)

    monkeypatch.setattr(loop, "connect_accepted_socket", connects)
    async with listening(Asked().app()) as port:
        with callers() as found:
            for _ in range(2):
                found.append(socket.create_connection(("127.0.0.1", port)))
                await turns()
            assert await get(port) == "yes"


async def test_a_name_may_have_an_address_of_a_kind_that_the_host_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")

    async def resolved(_: str, port: int, **__: Any) -> Any:
        return [(socket.AF_INET6, *kind, ("::1", port, 0, 0)), (socket.AF_INET, *kind, ("127.0.0.1", port))]

    def opened(family: int = socket.AF_INET, *given: Any, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *given, **more)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    real = socket.socket
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", opened)
        runner = await listen_tcp(Asked().app(), "localhost", port)
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    await runner.cleanup()


async def test_a_place_is_taken_once_and_free_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    for _ in range(2):
        runner = await listen_unix(Asked().app(), path)
        with pytest.raises(FileExistsError, match="another process serves it"):
            await listen_unix(Asked().app(), path)
        await runner.cleanup()
    async with listening(Asked().app()) as port:
        with pytest.raises(OSError, match="in use"):
            await listen_tcp(Asked().app(), "127.0.0.1", port)


# -- the file of a unix socket ---------------------------------------------------------------------


async def ask_unix(path: Path) -> str:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://localhost/") as answer,
    ):
        return await answer.text()


async def back(path: Path) -> None:
    """Wait until it is served again."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError, aiohttp.ClientError):
                assert await ask_unix(path) == "yes"
                return
            await asyncio.sleep(0.02)


def leave_dead(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_LOOK_EVERY", 0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "replace", [None, leave_dead, Path.touch, Path.mkdir], ids=["gone", "dead", "file", "dir"]
)
async def test_a_file_that_goes_comes_back_as_it_was(short_dir: Path, replace: Any) -> None:
    """What runs goes on; a file of somebody else's is kept."""
    asked, path = Asked(), short_dir / "socket"
    runner = await listen_unix(asked.app(), path, mode=0o640)
    connector = aiohttp.UnixConnector(str(path))
    with capture_logs() as lines:
        async with aiohttp.ClientSession(connector=connector) as session:
            running = asyncio.create_task(session.get("http://localhost/slow"))
            await back(path)
            before = path.stat()
            for _ in range(2):
                path.unlink()
                if replace is not None:
                    replace(path)
                await back(path)
            asked.slow.set()
            assert await (await running).text() == "at last"
    assert path.stat().st_mode == before.st_mode
    assert [line["event"] for line in lines] == ["socket.restored"] * 2
    aside = [name for name in os.listdir(short_dir) if name.startswith("socket.replaced-")]
    assert len(aside) == (2 if replace in (Path.touch, Path.mkdir) else 0)
    await runner.cleanup()
    assert not path.exists()


@pytest.mark.usefixtures("quick")
async def test_a_directory_that_is_made_again_has_its_socket_again(short_dir: Path) -> None:
    directory = short_dir / "run"
    directory.mkdir()
    path = directory / "socket"
    runner = await listen_unix(Asked().app(), path)
    with capture_logs() as lines:
        shutil.rmtree(directory)
        async with asyncio.timeout(30):
            while not lines:  # noqa: ASYNC110 - a log is read
                await asyncio.sleep(0.01)
        directory.mkdir()
        await back(path)
    assert [line["event"] for line in lines] == ["socket.lost", "socket.restored"], "once each"
    await runner.cleanup()


@pytest.mark.usefixtures("quick")
async def test_a_socket_that_another_serves_is_left_to_it(short_dir: Path) -> None:
    """Also at the end; and when that one is gone, it comes back."""
    path = short_dir / "socket"
    first = await listen_unix(Asked().app(), path)
    with capture_logs() as lines:
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            inode = path.stat().st_ino
            async with asyncio.timeout(30):
                while not lines:  # noqa: ASYNC110 - a log is read
                    await asyncio.sleep(0.01)
            assert path.stat().st_ino == inode
        await back(path)
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            await first.cleanup()
            assert path.is_socket()
    assert [line["event"] for line in lines] == ["socket.lost", "socket.restored"]
    assert lines[0]["error"] == "another process serves it"


async def test_a_file_comes_back_with_the_mode_and_group_that_it_had(short_dir: Path) -> None:
    """Also those that an administrator gave it later."""
    path = short_dir / "socket"
    ours = SocketFile(path, mode=0o660)
    listener = ours.open()
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, -1, 65534)
    before = path.stat()
    assert ours.look() is None
    listener.close()
    path.unlink()
    again = ours.look()
    assert again is not None
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    again.close()
    ours.release()
    assert not path.exists()


async def test_a_socket_that_is_about_to_be_served_is_not_taken(short_dir: Path) -> None:
    """Between bind and listen it looks like one that a killed process left."""
    path = short_dir / "socket"
    ours = SocketFile(path)
    listener = ours.open()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        inode = path.stat().st_ino
        assert ours.look() is None
        other.listen()
        assert ours.look() is None
        assert path.stat().st_ino == inode
    again = ours.look()
    assert again is not None
    again.close()
    listener.close()
