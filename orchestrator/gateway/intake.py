"""Takes in request bodies: a request can be sent again only if the gateway has all of its body.

What clients send costs memory and a descriptor, so each body has a limit of size and of time, and all of them
together have a limit of memory. Who sends nothing for a while, or less than the least rate, is refused; where
the memory is used up, the largest body that is still coming is, so that a few large ones which never end
cannot keep small ones out.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import StreamReader, hdrs, web
from aiohttp.web_protocol import RequestPayloadError

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Refusal(Exception):
    """A request is refused for its body. The connection must end with the answer: the rest is not read."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class _Crowded(RequestPayloadError):
    """This body had to go, since all of them together were too large."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a body has to come: with no silence of `silence` seconds, and after those not slower than
    `rate` bytes a second on the whole.
    """

    silence: float
    rate: int

    def until(self, started: float, now: float, received: int) -> float:
        """When a body fails that began at `started` and of which `received` bytes are here at `now`."""
        return min(now, started + received / self.rate) + self.silence


class Intake:
    """Reads bodies of up to `limit` bytes; all that are held at one time have up to `total`.

    A body is held from its first byte until it is released: until then it may be sent again.
    """

    def __init__(self, *, limit: int, total: int, pace: Pace) -> None:
        self._limit, self._total, self._pace = limit, max(limit, total), pace
        self._coming: dict[StreamReader, int] = {}  # bytes so far of each that is not whole
        self._whole = 0  # bytes of those that are
        self.held = 0

    async def read(self, request: web.BaseRequest) -> bytes:
        """The whole body, empty where there is none. Raises Refusal, ConnectionError when the client left."""
        if not request.body_exists:
            return b""
        content, length = request.content, request.content_length or 0
        if length > self._limit:
            raise self._too_large()
        if self._whole + length > self._total:
            raise self._no_room()
        self._coming[content] = 0
        try:
            if content.is_eof():
                body = self._take(content, content.read_nowait())
            else:
                await _invite(request)
                body = await self._receive(request, content)
            self._whole += self._coming.pop(content)
        except _Crowded:
            raise self._no_room() from None
        except RequestPayloadError as error:
            raise Refusal(400, "bad_body", f"the request body is broken: {error}") from None
        finally:
            self.held -= self._coming.pop(content, 0)
        return body

    async def _receive(self, request: web.BaseRequest, content: StreamReader) -> bytes:
        now = asyncio.get_running_loop().time
        started, parts, size = now(), [], 0
        try:
            async with asyncio.timeout_at(self._pace.until(started, started, 0)) as timer:
                while not content.at_eof():
                    if request.transport is None:
                        raise ConnectionResetError("the client left")
                    part = self._take(content, await content.readany())
                    parts.append(part)
                    size += len(part)
                    timer.reschedule(self._pace.until(started, now(), size))
        except TimeoutError:
            rate, silence = self._pace.rate, self._pace.silence
            raise Refusal(
                408,
                "body_timeout",
                f"{size} bytes of the request body came, then none for {silence:g} s, or fewer than {rate} "
                "bytes a second on the whole",
            ) from None
        return b"".join(parts)

    def _take(self, content: StreamReader, part: bytes) -> bytes:
        """Count a part. Raises Refusal where it is too much for this body, or where all are too large."""
        size = self._coming[content] = self._coming[content] + len(part)
        self.held += len(part)
        if size > self._limit:
            raise self._too_large()
        while self.held > self._total:
            largest = max(self._coming, key=self._coming.__getitem__)
            if largest is content:
                raise self._no_room()
            self.held -= self._coming.pop(largest)
            largest.set_exception(_Crowded("all bodies together are too large"))
        return part

    def release(self, size: int) -> None:
        """A body of so many bytes that was read is not needed any more."""
        self._whole -= size
        self.held -= size

    def _too_large(self) -> Refusal:
        return Refusal(413, "body_too_large", f"the request body is larger than {self._limit} bytes")

    def _no_room(self) -> Refusal:
        return Refusal(
            503,
            "bodies_too_large",
            f"the bodies of all requests would be larger than {self._total} bytes together; try again later",
        )


async def _invite(request: web.BaseRequest) -> None:
    """Tell a client to send its body where it waits for that (RFC 9110, 10.1.1)."""
    if request.version >= (1, 1) and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(_CONTINUE)
