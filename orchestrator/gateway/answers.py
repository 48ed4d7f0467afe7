"""The client side of HTTP: an answer that cannot be read on ends with an error, whatever broke it.

aiohttp forgets the body that it was reading when the framing of that body is wrong: it closes the connection,
and who reads the body is never told.
"""

from __future__ import annotations

import aiohttp
from aiohttp.client_proto import ResponseHandler


class Unreadable(aiohttp.ClientPayloadError):
    """What came is not HTTP."""


class Answers(ResponseHandler):
    """A connection to a target: no reader of an answer outlives it."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.Protocol."""
        body = self._payload
        super().connection_lost(exc)
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(Unreadable("the rest of the answer is not HTTP"))
