"""The connections to the targets: sockets that notice a vanished machine."""

from __future__ import annotations

import os
import socket
from typing import Any

import aiohttp
from yarl import URL

from orchestrator.gateway.answers import Unreadable
from orchestrator.gateway.config import IDLE
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.kept import KeptConnections
from orchestrator.gateway.numbers import OtherNumber

_USER_TIMEOUT_MS = 5000  # unacknowledged data older than this ends the connection
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_PROBES = 2, 1, 3
_READ_BUFFER = 2**16

_OURS_ONLY = frozenset({"User-Agent", "Content-Type", "Accept", "Accept-Encoding"})


def make_session(connect_timeout: float) -> aiohttp.ClientSession:
    """The session for proxied requests: no limits of its own, no total timeout, bodies as they are."""
    return aiohttp.ClientSession(
        connector=KeptConnections(limit=0, keepalive_timeout=IDLE, socket_factory=make_socket),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_OURS_ONLY,
        read_bufsize=_READ_BUFFER,
        max_line_size=_READ_BUFFER,
        max_field_size=_READ_BUFFER,
    )


def target_url(address: str, raw_path: str) -> URL:
    """Where a request goes, its path and query exactly as the client sent them."""
    return URL(f"http://{address}{raw_path}", encoded=True)


def failure_of(error: BaseException) -> Failure | None:
    """The failure an error of the client library stands for; None for our own timers and others."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Failure.CONNECT
    if isinstance(error, OtherNumber):
        return Failure.NO_ADAPTER
    if isinstance(error, aiohttp.ClientResponseError | Unreadable):
        return Failure.BAD_RESPONSE
    if isinstance(error, aiohttp.ClientError):
        return Failure.DISCONNECTED
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return Failure.DISCONNECTED
    return None


def words_of(error: BaseException) -> str:
    """An error of the client library in words that a client may see: no address of a node, no inner value."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before the answer came"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the answer is not HTTP: {_line(error.message)}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return _line(str(error)) or type(error).__name__


def _line(text: str) -> str:
    return text.partition("\n")[0]


def make_socket(info: Any) -> socket.socket:
    """A socket that sends at once and gives up on a peer that vanished without a word within seconds."""
    family, kind, proto, _, _ = info
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _LINUX_OPTIONS:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


_LINUX_OPTIONS: list[tuple[int, int]] = [
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_USER_TIMEOUT", _USER_TIMEOUT_MS),
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
    )
    if hasattr(socket, name)
]
