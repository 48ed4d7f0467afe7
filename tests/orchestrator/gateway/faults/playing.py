"""How a node plays its part of one request: whole or broken at a point that is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.orchestrator.gateway.faults.answers import Script, marker_of, point_of
from tests.support.upstreams import Conversation

_TEXTS_BEFORE = 2  # text events that come before a stream breaks in its middle


@dataclass
class Play:
    """One request that meets a fault. `part` is set once its client was shown text."""

    talk: Conversation
    script: Script
    part: asyncio.Event

    @property
    def marker(self) -> bytes:
        return marker_of(self.talk.request.body).encode()

    async def send(self, data: bytes) -> None:
        await self.talk.send(data)

    async def chunks(self, *parts: bytes) -> None:
        for part in parts:
            await self.talk.chunk(part)

    async def leave(self) -> None:
        """Silence until the gateway closes the connection."""
        await self.talk.until_client_leaves()

    def close(self) -> None:
        self.talk.writer.close()

    def reset(self) -> None:
        self.talk.reset()

    async def head(self, more: str = "", length: int | None = None, kind: str = "") -> None:
        """The head of a good answer, of this length or in chunks."""
        size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind or self.script.kind}\r\n{size}\r\n{more}\r\n"
        await self.send(head.encode())

    async def whole(self) -> None:
        """The good answer."""
        if not self.script.events:
            await self.head(length=len(self.script.body))
            await self.send(self.script.body)
            return
        await self.head()
        await self.chunks(*self.script.events)
        await self.end()

    async def end(self) -> None:
        """The proper end of a body in chunks."""
        await self.talk.end_stream()

    def index(self, point: str) -> int:
        """Where the first event of this kind stands, the end where there is none."""
        events = self.script.events
        return next((at for at, data in enumerate(events) if point_of(data) == point), len(events))

    @property
    def middle(self) -> int:
        return self.index("text") + _TEXTS_BEFORE

    async def begin(self, events: int | None = None) -> None:
        """So many events of the stream, else those up to its middle, until the client has a part of them."""
        await self.head()
        await self.chunks(*self.script.events[: self.middle if events is None else events])
        await self.part.wait()

    async def finish(self) -> None:
        """The stream up to the event that ends its answer, with that event."""
        await self.head()
        await self.chunks(*self.script.events[: self.index("finish") + 1])

    async def json(self, status: str, value: object, more: str = "") -> None:
        await self.talk.reply(status, json.dumps(value).encode(), more=more)

    async def freeze(self) -> None:
        """From here on the node says nothing any more, to its checks neither."""
        self.talk.upstream.frozen = True
        await self.leave()


Fault = Callable[[Play], Awaitable[None]]


def error(status: int, message: str, kind: str = "InternalServerError") -> dict[str, object]:
    """An error as vLLM tells it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
