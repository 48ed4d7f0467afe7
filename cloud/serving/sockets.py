"""Sockets that serve HTTP: opened without taking another's place, with a bound on who may hold them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import cast

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

log = structlog.get_logger("sockets")

_CLEANUP = 0.5
"""Seconds that a stopping daemon gives answers on their way; a long poll is cut off."""

CONNECTIONS_MOST = 256
"""Connections that each listener holds at the same time."""
_BACKLOG = 128  # callers that wait to be accepted
_HANDSHAKE = 10.0  # s
_ACCEPT_PAUSE = 1.0
"""Seconds until the next try where no connection could be accepted, as without descriptors."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Asking = set[web.RequestHandler]


async def listen_unix(app: web.Application, path: Path, *, mode: int = 0o660) -> web.AppRunner:
    """Serve on a unix socket with this file mode, owner and group if not said otherwise. Raises OSError.

    A socket that nobody serves is what a killed process left and is replaced.
    """
    _make_way(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o777 & ~mode)
    try:
        listener.bind(os.fspath(path))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(old)
    return await _serve(app, str(path), [listener])


def _make_way(path: Path) -> None:
    """Remove a socket that nobody serves. Raises FileExistsError for anything else in its place."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()
                return
        raise FileExistsError(errno.EEXIST, "another process serves it")
    if path.exists():
        raise FileExistsError(errno.EEXIST, "it is not a socket")


async def listen_tcp(
    app: web.Application,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    lingering: float = 10.0,
) -> web.AppRunner:
    """Serve on an address. Raises OSError, for one when the port is in use.

    `lingering`: seconds for which the rest of a body is read that was refused.
    """
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
    return await _serve(app, f"{host}:{port}", listeners, tls, lingering)


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
        runner: web.AppRunner,
        name: str,
        listeners: Sequence[socket.socket],
        asking: Asking,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(runner, ssl_context=tls)
        self._name, self._listeners, self._asking = name, listeners, asking
        self._accepting: list[asyncio.Task[None]] = []
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

    async def stop(self) -> None:
        """Close it. Connections that are established stay."""
        tasks = [*self._accepting, *self._arriving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        await super().stop()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.warning("accept_failed", listener=self._name, error=reason_of(error))
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
        held = [one for one in self._aiohttp.connections if one.transport is not None]
        if len(held) + len(self._arriving) < CONNECTIONS_MOST:
            return True
        if (oldest := next(iter(self._arriving), None)) is not None and oldest.cancel():
            return True
        if (silent := next((one for one in held if one not in self._asking), None)) is not None:
            silent.force_close()
        return silent is not None

    @property
    def _aiohttp(self) -> web.Server:
        return cast(web.Server, self._runner.server)

    async def _arrive(self, connection: socket.socket) -> None:
        with contextlib.suppress(Exception):  # it hung up, or does not speak TLS; the next one is accepted
            await asyncio.get_running_loop().connect_accepted_socket(
                self._aiohttp,
                connection,
                ssl=self._ssl_context,
                ssl_handshake_timeout=_HANDSHAKE if self._ssl_context is not None else None,
            )

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


async def _serve(
    app: web.Application,
    name: str,
    listeners: Sequence[socket.socket],
    tls: ssl.SSLContext | None = None,
    lingering: float = 10.0,
) -> web.AppRunner:
    asking: Asking = set()
    app.middlewares.insert(0, _noting(asking))
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=_CLEANUP, lingering_time=lingering
    )
    await runner.setup()
    try:
        await _BoundedSite(runner, name, listeners, asking, tls).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def reason_of(error: OSError) -> str:
    """What the system says, without what asyncio wraps around it."""
    number = error.errno
    if number is None or number not in errno.errorcode or isinstance(error, FileExistsError):
        return error.strerror or str(error)
    return os.strerror(number).lower()
