"""Questions to a balancer over HTTP: one warm connection, bounded answers, and failures as errors of a port.

A balancer may be dead, frozen, half restarted, of another version, or another program altogether: nothing
that it sends may end a pool that it is one balancer of.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from cloud.balancers.targets import MAX_BYTES, MAX_GENERATION
from cloud.errors import Misconfigured, Uncertain
from cloud.serving.sockets import reason_of

_KEEP_WARM: Final = 3600.0  # s that an idle connection is kept

_PLAIN: Final = {"Accept-Encoding": "identity"}
"""A short answer that is packed may be a very long one."""


class Exchange:
    """Asks one peer, which `peer` names in errors.

    `base`: what its URLs begin with. `socket`: its unix socket, if it has one. `token`: a bearer token, if it
    asks for one. `tls`: whom its certificate may be signed by, where not by the system's authorities. `warm`:
    whether the connection is kept. Several may be asked at the same time.
    """

    def __init__(
        self,
        peer: str,
        base: str,
        *,
        timeout: float,
        socket: Path | None = None,
        token: str = "",
        tls: ssl.SSLContext | None = None,
        warm: bool = True,
    ) -> None:
        self.peer = peer
        self._base, self._socket, self._timeout, self._warm = base.rstrip("/"), socket, timeout, warm
        self._tls = tls if tls is not None else True
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self, method: str, path: str = "", data: bytes | None = None, *, most: int = MAX_BYTES
    ) -> tuple[int, bytes]:
        """The status and all of the answer. Raises Uncertain, Misconfigured for a token that no header holds.

        `data` is JSON; `most`: bytes of an answer.
        """
        session = self._session
        if session is None:
            session = self._connected()
            self._session = session if self._warm else None
        try:
            headers = {"Content-Type": "application/json"} if data is not None else {}
            async with session.request(
                method, self._base + path, data=data, headers=headers, allow_redirects=False
            ) as answer:
                return answer.status, await _body(answer, most)
        except TimeoutError:
            raise Uncertain(f"{self.peer} did not answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Uncertain(f"{self.peer} cannot be reached: {reason_of(error)}") from None
        except _TooLong:
            raise Uncertain(f"{self.peer} sent more than {most} bytes") from None
        finally:
            if not self._warm:
                await session.close()

    async def close(self) -> None:
        """Release the connection. It may be used again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _connected(self) -> aiohttp.ClientSession:
        token = self._token
        if not (token.isascii() and token.isprintable()):
            raise Misconfigured(f"the token for {self.peer} has lines or characters that no header may have")
        warm: dict[str, Any] = {"keepalive_timeout": _KEEP_WARM} if self._warm else {"force_close": True}
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, **warm)
            if self._socket is None
            else aiohttp.UnixConnector(str(self._socket), **warm),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            headers=_PLAIN | ({"Authorization": f"Bearer {token}"} if token else {}),
            auto_decompress=False,
        )


class _TooLong(Exception):
    """An answer has more bytes than it may."""


async def _body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    raw = bytearray()
    async for chunk in answer.content.iter_any():
        raw += chunk
        if len(raw) > most:
            raise _TooLong
    return bytes(raw)


@contextmanager
def read_as_ours(peer: str) -> Iterator[None]:
    """What the body finds missing in an answer, or of another type than it should be, is Uncertain."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Uncertain(f"{peer} sent what this version cannot read: {error!r:.200}") from None


def json_of(peer: str, data: bytes) -> Any:
    """An answer as JSON. Raises Uncertain."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Uncertain(f"{peer} sent no JSON: {error}") from None


def text_of(data: bytes) -> str:
    """An answer as text, whatever it is."""
    return data.decode(errors="replace")


def word(value: Any) -> str:
    """A text of an answer. Raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def count(value: Any) -> int:
    """A number of things, or the time in whole seconds. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r:.60} is no whole number")
    if not 0 <= value <= MAX_GENERATION:
        raise ValueError(f"{value} is out of range")
    return value


def generation_in(value: Any) -> int:
    """A generation that a balancer shows. Raises ValueError for one that no daemon gave it."""
    found = int(value) if isinstance(value, str) else count(value)
    if not 0 <= found <= MAX_GENERATION:
        raise ValueError(f"no generation: {found:.3g}")
    return found


def told(body: Mapping[str, Any]) -> str:
    """The error that an answer tells of."""
    error = body.get("error")
    return str(error.get("message", error)) if isinstance(error, dict) else "no reason given"
