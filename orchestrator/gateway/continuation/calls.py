"""Calls to an engine for a continuation: JSON answers and event streams, every fault raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import aiohttp
import orjson
from aiohttp import hdrs
from multidict import CIMultiDict

from cloud.sse import Splitter, event_data, only_comments, split_events
from orchestrator.gateway.continuation.kinds import Broken
from orchestrator.gateway.failure import Failure, of_status
from orchestrator.gateway.upstream import target_url
from policies.held import Held

_OK = 200
_DONE = b"[DONE]"
_WORDS = 200  # characters of an engine's own words that are kept
_PATIENCE = 15.0  # s for an answer that no token is generated for
_LONGEST = 4 * 2**20  # bytes of an event without an end


class Engine:
    """One target. `headers` go with every call; `moved` is called whenever bytes of an answer come. `held`:
    the adapter that is asked for.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: str,
        headers: CIMultiDict[str],
        moved: Callable[[], None] = lambda: None,
        held: Held | None = None,
    ) -> None:
        self._session = session
        self._address = address
        self._headers = headers.copy()
        self._headers[hdrs.CONTENT_TYPE] = "application/json"
        self._headers.pop(hdrs.CONTENT_LENGTH, None)
        self._moved = moved
        self._held = held

    async def get(self, path: str) -> Any:
        """The JSON answer to a GET. Raises Broken, aiohttp.ClientError, OSError."""
        return await self._ask(hdrs.METH_GET, path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to a POST. Raises Broken, aiohttp.ClientError, OSError."""
        return await self._ask(hdrs.METH_POST, path, orjson.dumps(body))

    async def stream(self, path: str, body: bytes) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The chunks of an event stream, those together that came together, up to `[DONE]` or its end.

        Raises Broken for another answer than a stream, an error event and an event that is no JSON object.
        """
        async with self._call(hdrs.METH_POST, path, body) as answer:
            if answer.status != _OK:
                raise self._refused(path, answer.status, await answer.read())
            splitter = Splitter()
            while data := await answer.content.readany():
                if not only_comments(data):
                    self._moved()
                block = splitter.feed(data)
                if splitter.size > _LONGEST:
                    raise Broken(Failure.BAD_RESPONSE, "an event of the stream has no end")
                parts = [part for event in split_events(block) if (part := event_data(event).strip())]
                chunks = [_chunk(part) for part in parts if part != _DONE]
                if chunks:
                    yield chunks
                if _DONE in parts:
                    return

    async def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        try:
            async with asyncio.timeout(_PATIENCE), self._call(method, path, body) as answer:
                said = await answer.read()
                self._moved()
                if answer.status != _OK:
                    raise self._refused(path, answer.status, said)
        except TimeoutError:
            raise Broken(Failure.STALLED, f"{path} is not answered") from None
        try:
            return orjson.loads(said)
        except orjson.JSONDecodeError:
            raise Broken(Failure.BAD_RESPONSE, f"{path} answered no JSON") from None

    def _call(
        self, method: str, path: str, body: bytes | None
    ) -> aiohttp.client._BaseRequestContextManager[aiohttp.ClientResponse]:
        return self._session.request(
            method, target_url(self._address, path), headers=self._headers, data=body, allow_redirects=False
        )

    def _refused(self, path: str, status: int, said: bytes) -> Broken:
        words = said[:_WORDS].decode("utf-8", "replace")
        failure = of_status(status, said, draining=False, held=self._held) or Failure.BAD_RESPONSE
        return Broken(failure, f"{path} answered {status}: {words}")


def _chunk(data: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        chunk = None
    if not isinstance(chunk, dict):
        raise Broken(Failure.BAD_RESPONSE, "an event of the stream is no JSON object")
    if chunk.get("error"):
        raise Broken(Failure.ENGINE_ERROR, data[:_WORDS].decode("utf-8", "replace"))
    return chunk
