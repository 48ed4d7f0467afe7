"""Connections that are kept open between requests, and which requests got one.

A server may close a kept connection at the moment at which a request is written to it; llama.cpp's does so
after each stream, and does not say so. Such a request failed for no fault of the server. A server that closed
one may have closed them all, as when its machine ended: `renew` has none of them used again.

Which adapters the process at the other end knows by number is known of a connection that a request for one
was sent on: see `numbers`.
"""

from __future__ import annotations

import functools
import weakref
from contextvars import ContextVar
from typing import cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from orchestrator.gateway.answers import Answers
from orchestrator.gateway.numbers import Meant, Numbers, meant

_kept: ContextVar[bool] = ContextVar("kept", default=False)


class KeptConnections(aiohttp.TCPConnector):
    """A connector that knows whether the last connection this task got had served before (`was_kept`)."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self._factory = cast(
            "functools.partial[ResponseHandler]", functools.partial(Answers, loop=self._loop)
        )
        self._served: weakref.WeakKeyDictionary[ResponseHandler, str] = weakref.WeakKeyDictionary()
        self._numbers: weakref.WeakKeyDictionary[ResponseHandler, Numbers] = weakref.WeakKeyDictionary()
        self._spent: weakref.WeakSet[ResponseHandler] = weakref.WeakSet()

    async def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """See aiohttp."""
        _kept.set(False)
        while True:
            connection = await super().connect(req, traces, timeout)
            if (protocol := connection.protocol) is None:
                return connection
            if protocol not in self._spent:
                break
            connection.close()
        if (needed := meant()) is not None:
            await self._check(connection, protocol, needed)
        _kept.set(protocol in self._served)
        self._served[protocol] = req.url.authority
        return connection

    async def _check(self, connection: Connection, protocol: ResponseHandler, needed: Meant) -> None:
        """Raises OtherNumber, and what asking does."""
        try:
            if protocol not in self._numbers:
                self._numbers[protocol] = await needed.ask()
            needed.check(self._numbers[protocol])
        except BaseException:
            connection.close()
            raise

    def renew(self, address: str) -> None:
        """Use none of the connections again that are kept to this host and port."""
        self._spent.update(p for p, server in self._served.items() if server == address)


def was_kept() -> bool:
    """Whether the last connection that this task got from `KeptConnections` had served before."""
    return _kept.get()
