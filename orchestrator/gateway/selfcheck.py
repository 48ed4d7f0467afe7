"""Whether clients get in: the gateway calls its own listener as they do.

The control socket may answer while nobody gets through the other one: it was closed, its queue of callers is
full, or no descriptor is left. What is asked is answered by the gateway itself, so no node is troubled.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

from cloud.logger import structlog
from cloud.ports import Clock
from cloud.serving.sockets import reason_of

log = structlog.get_logger("gateway")

_EVERY: Final = 1.0  # s between two calls
_PATIENCE: Final = 3.0  # s for a call
_FALL: Final = 2  # calls that fail in a row before it is said: one may meet a busy moment
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where this host answers
_QUESTION: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class SelfCheck:
    """Calls `host` and `port` for ever, with `tls` where clients do. `fault` says why these do not get in,
    empty while they do; the certificate is not what it looks at."""

    def __init__(self, host: str, port: int, clock: Clock, *, tls: bool = False) -> None:
        self._host, self._port, self._clock = _ANY.get(host, host), port, clock
        self._trust = _anyone() if tls else None
        self._failed = 0
        self.fault = ""

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await self._clock.sleep(_EVERY)
            await self.look()

    async def look(self) -> None:
        """Call once."""
        found = await self._call()
        self._failed = self._failed + 1 if found else 0
        before, self.fault = self.fault, found if self._failed >= _FALL else ""
        if self.fault and not before:
            log.error("clients.locked_out", reason=self.fault)
        elif before and not self.fault:
            log.info("clients.admitted")

    async def _call(self) -> str:
        """What went wrong, empty when there was an answer, whatever it says."""
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._trust)
                try:
                    writer.write(_QUESTION)
                    said = await reader.readexactly(len(b"HTTP/1."))
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except TimeoutError:
            return f"a call to its own listener had no answer within {_PATIENCE:.0f} s"
        except asyncio.IncompleteReadError:
            return "a call to its own listener was hung up on"
        except OSError as error:
            return f"a call to its own listener failed: {reason_of(error)}"
        return "" if said == b"HTTP/1." else "its own listener answers with something else than HTTP"


def _anyone() -> ssl.SSLContext:
    """TLS without verification: the caller is the listener's own process."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
