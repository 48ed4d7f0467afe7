"""Who may hold a connection to the gateway: callers that say nothing must not use up its descriptors.

A request that is being answered takes two descriptors, one to its client and one to its node, so clients may
hold half of what the process may open, and no more than the configuration allows. For one more, the
connection ends whose client has owed us something for longest: a handshake, a request, or the rest of one.
Where each of them is being answered, or has owed us nothing until a moment ago, the newcomer ends: answers
go on.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from cloud.logger import structlog
from cloud.serving.requests import Server
from orchestrator.gateway.connection import Bounds, ClientConnection, Unread
from orchestrator.gateway.secured import Handshakes, Secured, Shaken

log = structlog.get_logger("gateway")

_RESERVE = 256  # descriptors for health checks, files, and callers that are accepted before they are counted
_FEWEST = 16
_MOMENT = 1.0  # s of silence in which an answer may still be on its way, or a first request
_SAID_AGAIN = 60.0  # s between two log lines

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def connections_most() -> int:
    """How many connections clients may hold, by what this process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if limit == resource.RLIM_INFINITY else max(_FEWEST, (limit - _RESERVE) // 2)


class Clients(Server):
    """An HTTP server that holds `most` connections within `bounds`.

    `on_ended` hears of each that was one too many; `unread` bounds what they leave unread. `handshakes` are
    those of TLS, None for plain HTTP.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        most: int,
        bounds: Bounds,
        on_ended: Callable[[], None],
        unread: Unread,
        handshakes: Handshakes | None = None,
        **more: Any,
    ) -> None:
        super().__init__(self._answer, **more)
        self._handler, self._most, self._on_ended = handler, most, on_ended
        self._bounds, self._unread, self._handshakes = bounds, unread, handshakes
        self._silent: dict[ClientConnection, float] = {}  # that owe us something, the longest first
        self._asking: set[ClientConnection] = set()
        self._said_at: float | None = None
        self._now = asyncio.get_running_loop().time

    def __call__(self) -> ClientConnection | Secured:  # type: ignore[override]
        """A new connection."""
        made = ClientConnection(
            self, loop=self._loop, bounds=self._bounds, unread=self._unread, **self._kwargs
        )
        return (
            made
            if self._handshakes is None
            else Secured(made, self._handshakes, admit=self._admit, left=self._left)
        )

    async def shaken(self) -> None:
        """Until all who are accepted have shaken hands; under plain HTTP they have nothing to shake."""
        if self._handshakes is not None:
            await self._handshakes.wait_idle()

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection, or end one. Under TLS it is taken already."""
        super().connection_made(handler, transport)
        assert isinstance(handler, ClientConnection)  # noqa: S101 - made by us
        if self._handshakes is None:
            self._admit(handler)
        else:
            self._handshakes.ended(handler, Shaken.DONE)

    def _admit(self, client: ClientConnection) -> None:
        """Take a connection, or end one."""
        now = self._now()
        if len(self._silent) + len(self._asking) >= self._most:
            self._on_ended()
            self._say(now)
            oldest, since = next(iter(self._silent.items()), (None, now))
            if oldest is None or now - since < _MOMENT:
                client.abort()
                return
            del self._silent[oldest]
            oldest.abort()
        self._silent[client] = now

    def _left(self, client: ClientConnection, what: str, peer: str) -> None:
        """A connection ended before its handshake did; `what` its client did wrong, empty for nothing."""
        self._silent.pop(client, None)
        if what:
            self.malformed.note(peer=peer, what=what)

    async def shutdown(self, timeout: float | None = None) -> None:
        """End all connections."""
        if self._handshakes is not None:
            self._handshakes.break_off()
        await super().shutdown(timeout)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget it."""
        assert isinstance(handler, ClientConnection)  # noqa: S101 - made by us
        self._silent.pop(handler, None)
        self._asking.discard(handler)
        super().connection_lost(handler, exc)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        client, answered = request.protocol, False
        assert isinstance(client, ClientConnection)  # noqa: S101 - made by us

        def is_whole() -> None:
            if not answered and self._silent.pop(client, None) is not None:
                self._asking.add(client)

        request.content.on_eof(is_whole)
        try:
            return await self._handler(request)
        finally:
            answered = True
            if client in self._asking:  # it has not hung up meanwhile
                self._asking.remove(client)
                self._silent[client] = self._now()

    def _say(self, now: float) -> None:
        if self._said_at is None or now - self._said_at >= _SAID_AGAIN:
            self._said_at = now
            log.warning("connections.limited", limit=self._most, answered=len(self._asking))
