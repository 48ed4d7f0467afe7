"""Sockets that serve HTTP: opened without taking another's place, with a bound on who may hold them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Middleware

_CLEANUP = 0.5
"""Seconds that a stopping daemon gives answers on their way; a long poll is cut off."""

CONNECTIONS_MOST = 256
"""Connections that each listener holds at the same time."""
_HANDSHAKE = 10.0  # s

Factory = Callable[[], asyncio.BaseProtocol]
Listen = Callable[[Factory], Awaitable[asyncio.Server]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Asking = set[web.RequestHandler]


async def listen_unix(app: web.Application, path: Path, *, mode: int = 0o660) -> web.AppRunner:
    """Serve on a unix socket with this file mode, owner and group if not said otherwise. Raises OSError.

    A socket that nobody serves is what a killed process left and is replaced.
    """
    _make_way(path)
    old = os.umask(0o777 & ~mode)
    try:
        loop = asyncio.get_running_loop()
        return await _serve(app, str(path), lambda factory: loop.create_unix_server(factory, str(path)))
    finally:
        os.umask(old)


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
    loop = asyncio.get_running_loop()
    handshake = _HANDSHAKE if tls is not None else None

    def listen(factory: Factory) -> Awaitable[asyncio.Server]:
        return loop.create_server(factory, host, port, ssl=tls, ssl_handshake_timeout=handshake)

    return await _serve(app, f"{host}:{port}", listen, lingering)


class _Refusal(asyncio.Protocol):
    """A connection too many, where every other one is being answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """End it."""
        cast(asyncio.Transport, transport).abort()


class _BoundedSite(web.BaseSite):
    """A listener that holds so many connections at most: callers that stay must not use up the descriptors
    which the daemon needs for clouds, balancers and engines.

    Nor may they keep others out: for one too many, the oldest that asks for nothing now is ended.
    """

    def __init__(self, runner: web.AppRunner, name: str, listen: Listen, asking: Asking) -> None:
        super().__init__(runner)
        self._name, self._listen, self._asking = name, listen, asking

    @property
    def name(self) -> str:
        """Where it listens."""
        return self._name

    async def start(self) -> None:
        """Open it. Raises OSError."""
        await super().start()
        self._server = await self._listen(self._protocol)

    def _protocol(self) -> asyncio.BaseProtocol:
        server = cast(web.Server, self._runner.server)
        held = [one for one in server.connections if one.transport is not None]
        if len(held) >= CONNECTIONS_MOST:
            silent = next((one for one in held if one not in self._asking), None)
            if silent is None:
                return _Refusal()
            silent.force_close()
        return server()


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


async def _serve(app: web.Application, name: str, listen: Listen, lingering: float = 10.0) -> web.AppRunner:
    asking: Asking = set()
    app.middlewares.insert(0, _noting(asking))
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=_CLEANUP, lingering_time=lingering
    )
    await runner.setup()
    try:
        await _BoundedSite(runner, name, listen, asking).start()
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
