"""One client's connection: what it may cost before it is a request, and after it was answered.

aiohttp's connection reads heads for ever and of up to a hundred fields of full length, waits for ever for a
client that does not read, and tells nobody of a body that turns out to be broken. This one

- refuses a head that takes longer than its time (408) or is larger than its limit (431),
- ends a body that is broken at once, and one that goes on with anything but its bytes (trailers, extensions),
- reads nothing further while a request is answered and another one waits,
- ends with a client that leaves its answer unread.

Under TLS all of this is said of the TCP connection below, which it has from the moment it is accepted.
"""

from __future__ import annotations

import asyncio
from asyncio.sslproto import _SSLProtocolTransport
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

from cloud.serving.requests import Connection, Server
from orchestrator.gateway.headers import PSEUDONYM
from orchestrator.gateway.ids import RequestIds
from orchestrator.gateway.replies import ANTHROPIC_REQUEST_ID, REQUEST_ID

_FIELDS_MOST = 128
_MANY_FIELDS = "Too many headers"
"""How aiohttp begins to say that a head has more fields than that."""
_TIMEOUT, _TOO_LARGE = 408, 431
_LINE_ENDS = b"\r\n"
_LAST_MOMENT = 1.0  # s for which a client that is refused may still send: cut off, it might not read why
_BUFFER = 2**16
_BOUNDLESS = 2**62


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a connection: sizes in bytes, times in seconds, rates in bytes a second."""

    head: int  # request line and fields together
    head_time: float  # for all of them
    unread_time: float  # how long a part of an answer may lie here until the client reads it
    unread_rate: int  # a second more for each so many bytes


class Unread:
    """The parts of answers that clients have not read: `most` bytes of all of them together. For more, the
    connection ends that holds most. `on_ended` hears of every one that ends for not reading.
    """

    def __init__(self, most: int, on_ended: Callable[[], None]) -> None:
        self._most, self._on_ended = most, on_ended
        self._sizes: dict[ClientConnection, int] = {}
        self._total = 0

    def waits(self, connection: ClientConnection, size: int) -> None:
        """So many bytes wait for this client."""
        self._total += size - self._sizes.get(connection, 0)
        self._sizes[connection] = size
        while self._total > self._most:
            self.end(max(self._sizes, key=self._sizes.__getitem__))

    def read(self, connection: ClientConnection) -> None:
        """None do. Idempotent."""
        self._total -= self._sizes.pop(connection, 0)

    def end(self, connection: ClientConnection) -> None:
        """End a connection whose client does not read."""
        self.read(connection)
        self._on_ended()
        connection.abort()


class ClientRequest(web.BaseRequest):
    """A request whose answer always says who answers, without versions, and which request it was."""

    def __init__(self, *args: Any, ids: RequestIds, **more: Any) -> None:
        super().__init__(*args, **more)
        self._ids = ids

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers["Server"] = PSEUDONYM
        if REQUEST_ID not in response.headers:
            response.headers[REQUEST_ID] = self._ids.of(self.headers)
        response.headers[ANTHROPIC_REQUEST_ID] = response.headers[REQUEST_ID]


class ClientConnection(Connection):
    """A connection of a client of the gateway."""

    __slots__ = (
        "_body",
        "_bounds",
        "_head_timer",
        "_over",
        "_overhead",
        "_unread",
        "_unread_timer",
        "_wire",
    )

    def __init__(self, manager: Server, *, bounds: Bounds, unread: Unread, **more: Any) -> None:
        super().__init__(
            manager,
            max_line_size=bounds.head,
            max_field_size=bounds.head,
            max_headers=_FIELDS_MOST,
            **more,
        )
        self._bounds, self._unread = bounds, unread
        self._body: StreamReader = EMPTY_PAYLOAD  # of the last request that came
        self._overhead = 0  # bytes in a row that ended no head and brought no byte of a body
        self._over = False  # nothing that comes now is read
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None  # of TCP

    def arrives(self, wire: asyncio.Transport) -> None:
        """Take a TCP connection. What the system does not take off us at once the client has not read."""
        wire.set_write_buffer_limits(high=0)
        self._wire = wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Speak HTTP on it: on the TCP connection itself, or on TLS above it, which buffers nothing then."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of TCP or TLS
        if isinstance(transport, _SSLProtocolTransport):
            transport.set_write_buffer_limits(high=_BOUNDLESS)
            transport.set_read_buffer_limits(high=_BUFFER)
        else:
            self.arrives(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._stop_head_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def abort(self) -> None:
        """End it, also where it was ended already and the client does not read what is left."""
        if self._wire is not None:
            self._wire.abort()

    def data_received(self, data: bytes) -> None:
        """Parse what came, within bounds."""
        if self._over:
            return
        count, body = self._request_count, self._body
        in_body, size = not body.is_eof(), body.total_bytes
        super().data_received(data)
        if self._request_count > count:
            self._message_came(len(data))
        elif in_body and body.total_bytes > size:
            self._overhead = 0
        elif self._overhead or data.strip(_LINE_ENDS):
            self._overhead += len(data)
            self._check(in_body)
        if self._messages and self._request_in_progress and not self._buffer_paused:
            self._pause_reading_for_buffer()

    def _message_came(self, read: int) -> None:
        """A head is whole, or what was to be one is broken; `read` bytes came with its end."""
        self._stop_head_timer()
        read, self._overhead = self._overhead + read, 0
        message, payload = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._body = payload
            if read > self._bounds.head and _size(message) > self._bounds.head:
                self._messages.pop()
                self._refuse(_error(_TOO_LARGE, self._too_large()))
        elif self._body.is_eof():
            self._messages.pop()
            self._refuse(message)
        else:  # it is not a head that is broken, but this
            self._messages.pop()
            self._spoil(message.message)

    def _check(self, in_body: bool) -> None:
        """Bytes came that end neither a head nor bring a part of a body."""
        if self._overhead > self._bounds.head:
            if in_body:
                self._spoil("more trailers or extensions than bytes")
            else:
                self._refuse(_error(_TOO_LARGE, self._too_large()))
        elif not in_body and self._head_timer is None:
            self._start_head_timer()

    def _start_head_timer(self) -> None:
        self._head_timer = self._loop.call_later(self._bounds.head_time, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self._buffer_paused:  # it may be here, and is not read yet
            self._start_head_timer()
        else:
            late = f"the head of a request did not come within {self._bounds.head_time:g} s"
            self._refuse(_error(_TIMEOUT, late))

    def _spoil(self, text: str) -> None:
        """The body that comes now is none."""
        self._over = True
        self._body.set_exception(RequestPayloadError(text))

    def _refuse(self, error: _ErrInfo) -> None:
        """Answer in the place of a request, after those that came before, and end."""
        self._over = True
        self._stop_head_timer()
        self._lingering_time = _LAST_MOMENT
        self._messages.append((error, StreamReader(self, _BUFFER, loop=self._loop)))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer. After the last one the client hears at once that no more follows, but on TLS,
        which cannot be closed by half."""
        finished = await super().finish_response(request, resp, start_time)
        wire = self.transport
        if self._over and not self._messages and wire and wire.can_write_eof() and not wire.is_closing():
            wire.write_eof()
        return finished

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request; what is too large for one has a status of its own."""
        if isinstance(exc, LineTooLong):
            status, message = _TOO_LARGE, self._too_large()
        elif message is not None and message.startswith(_MANY_FIELDS):
            status, message = _TOO_LARGE, f"the head of the request has more than {_FIELDS_MOST} fields"
        return super().handle_error(request, status, exc, message)

    def _too_large(self) -> str:
        return f"the head of the request is larger than {self._bounds.head} bytes"

    def pause_writing(self) -> None:
        """A part of an answer waits for the client."""
        super().pause_writing()
        size = 0 if self._wire is None else self._wire.get_write_buffer_size()
        patience = self._bounds.unread_time + size / self._bounds.unread_rate
        self._unread_timer = self._loop.call_later(patience, self._unread.end, self)
        self._unread.waits(self, size)

    def resume_writing(self) -> None:
        """The client has it."""
        self._stop_unread_timer()
        super().resume_writing()

    def _stop_unread_timer(self) -> None:
        self._unread.read(self)
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None


def _error(status: int, text: str) -> _ErrInfo:
    return _ErrInfo(status, HttpProcessingError(code=status, message=text), text)


def _size(message: RawRequestMessage) -> int:
    """Bytes of a head, as good as exactly."""
    return len(message.method) + len(message.path) + sum(len(n) + len(v) + 4 for n, v in message.raw_headers)
