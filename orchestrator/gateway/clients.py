"""Who may hold a connection to the gateway: callers that say nothing must not use up its descriptors.

A request that is being answered takes two descriptors, one to its client and one to its node, so clients may
hold half of what the process may open, and no more than the configuration allows. For one more, the
connection ends whose client has owed us something for longest: a request, or the rest of one. Where each of
them is being answered, or has owed us nothing until a moment ago, the newcomer ends: answers go on.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from cloud.serving.requests import Server
from orchestrator.gateway.connection import Bounds, ClientConnection, Unread

log = structlog.get_logger("orchestrator.gateway")

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

    `on_ended` hears of each that was one too many; `unread` bounds what they leave unread.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        most: int,
        bounds: Bounds,
        on_ended: Callable[[], None],
        unread: Unread,
        **more: Any,
    ) -> None:
        super().__init__(self._answer, **more)
        self._handler, self._most, self._on_ended = handler, most, on_ended
        self._bounds, self._unread = bounds, unread
        self._silent: dict[web.RequestHandler, float] = {}  # that owe us something, the longest first
        self._asking: set[web.RequestHandler] = set()
        self._said_at: float | None = None
        self._now = asyncio.get_running_loop().time

    def __call__(self) -> ClientConnection:
        """A new connection."""
        return ClientConnection(
            self, loop=self._loop, bounds=self._bounds, unread=self._unread, **self._kwargs
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Take a connection, or end one."""
        super().connection_made(handler, transport)
        now = self._now()
        if len(self._silent) + len(self._asking) >= self._most:
            self._on_ended()
            self._say(now)
            oldest, since = next(iter(self._silent.items()), (None, now))
            if not isinstance(oldest, ClientConnection) or now - since < _MOMENT:
                transport.abort()
                return
            del self._silent[oldest]
            oldest.abort()
        self._silent[handler] = now

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget it."""
        self._silent.pop(handler, None)
        self._asking.discard(handler)
        super().connection_lost(handler, exc)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        client, answered = request.protocol, False

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
            log.warning("too_many_connections", most=self._most, answered=len(self._asking))
