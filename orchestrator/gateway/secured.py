"""TLS between a client's TCP connection and its HTTP: what a connection may cost before it is one.

asyncio counts a connection from the end of its handshake on, waits for that for a minute, and looks at its
own buffer alone to see whether a client reads. Here a connection is one of the clients' from the moment it is
accepted, its handshake has a time, what the system has not taken off us is what the client has not read, and
one that speaks plain HTTP gets an answer that says so.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from cloud.serving.requests import peer_name
from orchestrator.gateway.connection import ClientConnection
from orchestrator.gateway.replies import bad_request

_FAREWELL: Final = 2.0  # s for a client to say that it ends too, after its last answer
_LAST_MOMENT: Final = 1.0  # s in which a client that is turned away may still send
_METHODS: Final = range(ord("A"), ord("Z") + 1)  # what plain HTTP begins with; a handshake begins with 22
_OF_THE_CLIENT: Final = "ALERT_"
"""What OpenSSL's words hold for a handshake that the client ended: it does not take our certificate."""


class Shaken(StrEnum):
    """How a handshake ended."""

    DONE = "done"
    PLAIN_HTTP = "plain_http"  # the client does not speak TLS
    PROTOCOL = "protocol"  # what it speaks is no TLS, or none that is spoken here
    REFUSED = "refused"  # it refused the certificate
    TIMEOUT = "timeout"
    HUNG_UP = "hung_up"


class Handshakes:
    """Those that are under way, and how the others ended.

    `context` gives the server's side for the next one; each may take `patience` seconds. `on_ended` hears of
    every end.
    """

    def __init__(
        self,
        context: Callable[[], ssl.SSLContext],
        *,
        patience: float,
        on_ended: Callable[[Shaken], None],
    ) -> None:
        self.context, self.patience = context, patience
        self._on_ended = on_ended
        self._under_way: set[ClientConnection] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __contains__(self, client: ClientConnection) -> bool:
        return client in self._under_way

    def begins(self, client: ClientConnection) -> None:
        """One more."""
        self._under_way.add(client)
        self._idle.clear()

    def ended(self, client: ClientConnection, how: Shaken) -> None:
        """A handshake is over."""
        self._under_way.discard(client)
        if not self._under_way:
            self._idle.set()
        self._on_ended(how)

    async def wait_idle(self) -> None:
        """Until none is under way; each has its time."""
        await self._idle.wait()

    def break_off(self) -> None:
        """End the connections of all that are under way."""
        for client in tuple(self._under_way):
            client.abort()


class Secured(SSLProtocol):
    """TLS of one client. `admit` takes its connection or ends one; `left` hears of one that ended before its
    handshake did, with what its client did wrong, if anything, and its address."""

    max_size = 2**14 + 2**9  # bytes: a record (RFC 8446, 5.2); asyncio would hold 256 KiB for each client

    def __init__(
        self,
        client: ClientConnection,
        handshakes: Handshakes,
        *,
        admit: Callable[[ClientConnection], None],
        left: Callable[[ClientConnection, str, str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            loop,
            client,
            handshakes.context(),
            None,  # type: ignore[arg-type]  # nobody waits
            server_side=True,
            ssl_handshake_timeout=handshakes.patience,  # type: ignore[arg-type]  # seconds of any kind
            ssl_shutdown_timeout=_FAREWELL,
        )
        self._running, self._client, self._handshakes = loop, client, handshakes
        self._admit, self._left = admit, left
        self._wire: asyncio.Transport
        self._view = memoryview(b"")
        self._fresh, self._turned_away, self._full = True, False, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, and begin to shake hands."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of TCP
        self._wire = transport
        self._handshakes.begins(self._client)
        self._client.arrives(transport)
        self._admit(self._client)
        if not transport.is_closing():
            super().connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        self._view = super().get_buffer(sizehint)
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came. The first one tells TLS from plain HTTP."""
        if self._fresh:
            self._fresh = False
            if self._view[0] in _METHODS:
                self._turn_away()
        if not self._turned_away:
            super().buffer_updated(nbytes)

    def _turn_away(self) -> None:
        self._turned_away = True
        self._wire.write(_plain_answer())
        self._wire.write_eof()
        self._running.call_later(_LAST_MOMENT, self._wire.abort)

    def pause_writing(self) -> None:
        """The system does not take more for now. The client hears of it at once, not with its next bytes."""
        super().pause_writing()
        if self._client not in self._handshakes:
            self._full = True
            self._client.pause_writing()

    def resume_writing(self) -> None:
        """It does again; what waited here may be too much at once."""
        if self._full:
            self._full = False
            self._client.resume_writing()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        if self._client in self._handshakes:
            how, what = (Shaken.PLAIN_HTTP, "plain HTTP") if self._turned_away else _why(exc)
            self._handshakes.ended(self._client, how)
            self._left(self._client, what, peer_name(self._wire.get_extra_info("peername")))


def _why(error: BaseException | None) -> tuple[Shaken, str]:
    """How a handshake ended that is not done, and what to say of it, if anything."""
    if isinstance(error, ConnectionAbortedError):
        return Shaken.TIMEOUT, "its handshake took too long"
    if not isinstance(error, ssl.SSLError):
        return Shaken.HUNG_UP, ""
    reason = (error.reason or "unknown").replace(" ", "_")
    words = reason.replace("_", " ").lower()
    if _OF_THE_CLIENT in reason:
        return Shaken.REFUSED, f"it refuses the certificate: {words.partition('alert ')[2]}"
    return Shaken.PROTOCOL, f"no handshake: {words}"


def _plain_answer() -> bytes:
    """To a request in plain HTTP."""
    answer = bad_request(400, "this address takes HTTPS only; ask for https:// and not for http://")
    body = answer.body
    assert isinstance(body, bytes)  # noqa: S101 - made by us
    head = "HTTP/1.1 400 Bad Request", f"Content-Type: {answer.content_type}", f"Content-Length: {len(body)}"
    return "\r\n".join((*head, "Connection: close", "", "")).encode("ascii") + body
