"""Sockets that serve HTTP: opened without taking another's place, and with a bound on who may hold them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from cloud.logger import structlog
from cloud.serving.hosts import Hosts, guard
from cloud.serving.requests import ErrorAnswer, Runner, peer_name, plain_error

log = structlog.get_logger("serving")

_CLEANUP = 0.5
"""Seconds that a stopping daemon gives answers on their way; a long poll is cut off."""

CONNECTIONS_MOST = 256
"""Connections that each listener holds at the same time."""
_BACKLOG = 128  # callers that wait to be accepted
_HANDSHAKE = 10.0  # s
_ACCEPT_PAUSE = 1.0
"""Seconds until the next try where no connection could be accepted, as without descriptors."""
_LOOK_EVERY = 1.0
"""Seconds between two looks at the file of a unix socket."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Asking = set[web.RequestHandler]


class SocketInUse(FileExistsError):
    """Another process serves a unix socket."""


class SocketFile:
    """The file of a listening unix socket: made, looked after, removed. `listener` is the socket of today.

    A file that is deleted, or replaced by one that nobody serves, is made again by `look`, with the owner,
    group and mode that it had; a socket that another process serves is left to that.
    """

    def __init__(self, path: Path, *, mode: int = 0o660) -> None:
        self.path = path
        self.listener: socket.socket | None = None
        self._mode, self._group = mode, -1
        self._ours: tuple[int, int] | None = None  # device and inode
        self._strange: tuple[int, int] | None = None  # what was in its place at the last look
        self._lost = ""

    def open(self) -> socket.socket:
        """A listening socket. Raises OSError, FileExistsError for what is in its place.

        A socket that nobody serves is what a killed process left and is replaced.
        """
        if _is_left_over(self.path):
            self.path.unlink()
        return self._bind()

    def adopt(self, listener: socket.socket) -> None:
        """Look after the file of a socket that was opened by the process before this one."""
        self.listener = listener
        with contextlib.suppress(OSError):
            self._remember(os.lstat(self.path))

    def leave(self) -> None:
        """Leave the file to another process, which adopts it."""
        self.listener = self._ours = None

    def look(self) -> socket.socket | None:
        """A new listening socket where the file had to be made again; None where all is well, or may not be.

        What is in its place must have been there at the look before too: another process that is about to
        serve there makes its file a moment earlier. A file that is no socket is set aside, not deleted.
        """
        if self.listener is None:
            return None
        try:
            there = _stat(self.path)
            if there is not None and _identity(there) == self._ours:
                self._remember(there)
                return None
            if there is not None:
                strange, self._strange = self._strange, _identity(there)
                if strange != self._strange:
                    return None
                self._clear(there)
            again = self._bind()
        except OSError as error:
            self._say_lost(reason_of(error))
            return None
        log.warning("socket.restored", path=str(self.path))
        self._lost, self._strange = "", None
        return again

    def release(self) -> None:
        """Remove the file, unless it is another's by now. Idempotent."""
        with contextlib.suppress(OSError):
            if self._ours is not None and _identity(os.lstat(self.path)) == self._ours:
                self.path.unlink()
        self.leave()

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o777 & ~self._mode)
        try:
            listener.bind(os.fspath(self.path))
            with contextlib.suppress(PermissionError):  # a group that this process is not in
                os.chown(self.path, -1, self._group)
            self._remember(os.lstat(self.path))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(old)
        self.listener = listener
        return listener

    def _remember(self, there: os.stat_result) -> None:
        self._ours = _identity(there)
        self._mode, self._group = stat.S_IMODE(there.st_mode), there.st_gid

    def _clear(self, there: os.stat_result) -> None:
        """Make room where something else lies. Raises FileExistsError where another process serves it."""
        if stat.S_ISSOCK(there.st_mode) and _is_left_over(self.path):
            self.path.unlink()
        else:
            self.path.rename(self.path.with_name(f"{self.path.name}.replaced-{there.st_ino}"))

    def _say_lost(self, why: str) -> None:
        """Once for each reason."""
        if why != self._lost:
            self._lost = why
            log.error("socket.lost", path=str(self.path), error=why)


def _identity(there: os.stat_result) -> tuple[int, int]:
    return there.st_dev, there.st_ino


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _is_left_over(path: Path) -> bool:
    """Whether a socket is there that nobody serves. Raises FileExistsError for anything else in its place."""
    there = _stat(path)
    if there is None:
        return False
    if not stat.S_ISSOCK(there.st_mode):
        raise FileExistsError(errno.EEXIST, "it is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
    raise SocketInUse(errno.EEXIST, "another process serves it")


async def listen_unix(app: web.Application, path: Path, *, mode: int = 0o660, **more: Any) -> Runner:
    """Serve on a unix socket with this file mode, owner and group if not said otherwise. Raises OSError.

    The file is looked after while it is served, and removed at the end. `more` is for `serve`.
    """
    file = SocketFile(path, mode=mode)
    return await serve(app, str(path), [file.open()], file=file, **more)


async def listen_tcp(
    app: web.Application,
    host: str,
    port: int,
    **more: Any,
) -> Runner:
    """Serve on an address. Raises OSError, for one when the port is in use. `more` is for `serve`."""
    places = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    can = [place for place in dict.fromkeys(places) if place[0] != socket.AF_INET6 or _has_ipv6()] or places
    with contextlib.ExitStack() as undo:
        listeners = []
        for family, _, _, _, address in can:
            listeners.append(
                undo.enter_context(socket.create_server(address, family=family, backlog=_BACKLOG))
            )
        undo.pop_all()
    return await serve(app, f"{host}:{port}", listeners, **more)


def _has_ipv6() -> bool:
    """Whether this host can open an IPv6 socket; the name "localhost" may have an address that it cannot."""
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError:
        return False
    return True


class _BoundedSite(web.BaseSite):
    """Listeners that hold so many connections at most: callers that stay must not use up the descriptors
    which the daemon needs for clouds, balancers and engines.

    Nor may they keep others out. For one too many, the oldest that has not shaken hands is ended, or else the
    oldest that asks for nothing now; where every one is being answered, the newcomer is. Connections are
    accepted one by one, since asyncio's own servers take a whole queue at once, before any can be counted.
    """

    def __init__(
        self,
        runner: Runner,
        name: str,
        listeners: Sequence[socket.socket],
        asking: Asking,
        tls: ssl.SSLContext | None,
        file: SocketFile | None,
    ) -> None:
        super().__init__(runner, ssl_context=tls)
        self._name, self._listeners, self._asking = name, list(listeners), asking
        self._serving = runner
        self._file = file
        self._accepting: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._arriving: dict[asyncio.Task[None], socket.socket] = {}

    @property
    def name(self) -> str:
        """Where it listens."""
        return self._name

    async def start(self) -> None:
        """Open it. Raises OSError."""
        await super().start()
        for listener in self._listeners:
            listener.setblocking(False)
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in self._listeners]
        if self._file is not None:
            self._watching = asyncio.create_task(self._watch(self._file))

    async def stop(self) -> None:
        """Close it. Connections that are established stay."""
        tasks = [*self._accepting, *self._arriving, *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        if self._file is not None:
            self._file.release()
        await super().stop()

    async def _watch(self, file: SocketFile) -> None:
        """Serve on the file again when it was made again. Callers that are connected stay so."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)  # noqa: TID251 - real sockets
            again = file.look()
            if again is None:
                continue
            again.setblocking(False)
            for accepting, listener in zip(self._accepting, self._listeners, strict=True):
                accepting.cancel()
                await asyncio.gather(accepting, return_exceptions=True)
                listener.close()
            self._listeners[:] = [again]
            self._accepting = [asyncio.create_task(self._accept(again))]

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.warning("connection.accept_failed", listener=self._name, error=reason_of(error))
                await asyncio.sleep(_ACCEPT_PAUSE)  # noqa: TID251 - real sockets
                continue
            if not self._made_room():
                connection.close()
            elif self._ssl_context is None:
                await self._arrive(connection)
            else:
                arriving = asyncio.create_task(self._arrive(connection))
                self._arriving[arriving] = connection
                arriving.add_done_callback(self._arrived)
            await asyncio.sleep(0)  # noqa: TID251 - a turn for what was ended to close, and for the daemon

    def _made_room(self) -> bool:
        """Whether there is room for one more, after one has been ended where that was needed."""
        held = [one for one in self._serving.serving.connections if one.transport is not None]
        if len(held) + len(self._arriving) < CONNECTIONS_MOST:
            return True
        if (oldest := next(iter(self._arriving), None)) is not None and oldest.cancel():
            return True
        if (silent := next((one for one in held if one not in self._asking), None)) is not None:
            silent.force_close()
        return silent is not None

    async def _arrive(self, connection: socket.socket) -> None:
        peer = ""
        try:
            peer = peer_name(connection.getpeername())
            await asyncio.get_running_loop().connect_accepted_socket(
                self._serving.serving,
                connection,
                ssl=self._ssl_context,
                ssl_handshake_timeout=_HANDSHAKE if self._ssl_context is not None else None,
            )
        except ssl.SSLError:
            self._serving.serving.malformed.note(peer=peer, what="it does not speak TLS")
        except Exception:  # noqa: S110 - it hung up; the next one is accepted
            pass

    def _arrived(self, arriving: asyncio.Task[None]) -> None:
        connection = self._arriving.pop(arriving)
        if arriving.cancelled():
            connection.close()


def _noting(asking: Asking) -> Middleware:
    """Notes which connections have a request that is being answered."""

    @web.middleware
    async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
        asking.add(request.protocol)
        try:
            return await handler(request)
        finally:
            asking.discard(request.protocol)

    return noted


async def serve(
    app: web.Application,
    name: str,
    listeners: Sequence[socket.socket],
    *,
    hosts: Hosts | None = None,
    changes: bool = True,
    file: SocketFile | None = None,
    error_answer: ErrorAnswer = plain_error,
    tls: ssl.SSLContext | None = None,
    lingering: float = 10.0,
    cleanup: float = _CLEANUP,
) -> Runner:
    """Serve an application on listening sockets, which are its own from now on.

    `hosts` are the names that it answers to, by default those of this machine itself; `changes` is for
    `guard`. `file` is the socket's, to be looked after. `error_answer` makes the answers to requests that
    never reach the application. `lingering`: seconds for which the rest of a body is read that was refused;
    `cleanup`: seconds that answers get at the end.
    """
    asking: Asking = set()
    app.middlewares.insert(0, guard(hosts if hosts is not None else Hosts(), error_answer, changes=changes))
    app.middlewares.insert(0, _noting(asking))
    runner = Runner(
        app, listener=name, error_answer=error_answer, shutdown_timeout=cleanup, lingering_time=lingering
    )
    await runner.setup()
    try:
        await _BoundedSite(runner, name, listeners, asking, tls, file).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def reason_of(error: Exception) -> str:
    """What the system says, without what asyncio and aiohttp wrap around it."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in errno.errorcode and not isinstance(error, FileExistsError):
        return os.strerror(number).lower()
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
