"""Has a running engine load and unload adapters, by the routes of its dialect, and tries what it loaded.

vLLM 0.32 (run): a name that is taken is a 400, also with the same path; a path that is not there a 404, and
so is the route itself without VLLM_ALLOW_RUNTIME_LORA_UPDATING; what the engine cannot take (a rank too high,
files that are missing) a 500 with the reason. SGLang 0.5.23 (read) answers 400 whatever it does not take. A
name is a digest of its source too, so one that is taken is what was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import orjson

from cloud.engines.row import Dialect
from cloud.engines.wire import LookFailed, Wire, own_words
from cloud.errors import CloudError, Denied, Misconfigured, NotFound, Uncertain

_OK, _REFUSED, _NOT_ALLOWED, _ABSENT, _BROKEN = 200, 400, (401, 403), 404, 500


class AdapterCalls:
    """The calls, over the connections of `wire`. Nothing bounds their time."""

    def __init__(self, dialect: Dialect, wire: Wire) -> None:
        self._dialect, self._wire = dialect, wire

    async def load(self, address: str, served_as: str, source: str) -> None:
        """See `Engine.load_adapter`."""
        path, what = self._path(self._dialect.load), f"loading {served_as} from {source}"
        body = orjson.dumps({"lora_name": served_as, "lora_path": source})
        status, answer = await self._asked(address, path, body, what)
        if status != _OK and not (status == _REFUSED and await self._lists(address, served_as)):
            raise self._error(status, answer, what)
        try:
            await self._wire.works(address, served_as)
        except LookFailed as error:
            with contextlib.suppress(CloudError):
                await self.unload(address, served_as)
            raise Misconfigured(f"{served_as} was loaded from {source} and does not work: {error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Uncertain(f"{what}: the engine did not answer when it was tried: {error}") from None

    async def unload(self, address: str, served_as: str) -> None:
        """See `Engine.unload_adapter`."""
        path, what = self._path(self._dialect.unload), f"unloading {served_as}"
        status, answer = await self._asked(address, path, orjson.dumps({"lora_name": served_as}), what)
        gone = status in (_REFUSED, _ABSENT) and not await self._lists(address, served_as)
        if status != _OK and not gone:
            raise self._error(status, answer, what)

    def _path(self, path: str) -> str:
        if not path:
            raise Misconfigured(f"{self._dialect.title} takes no adapters while it runs")
        return path

    async def _asked(self, address: str, path: str, body: bytes, what: str) -> tuple[int, bytes]:
        try:
            return await self._wire.request("POST", address, path, body)
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise Uncertain(f"{what}: the engine at {address} did not answer: {error}") from None

    async def _lists(self, address: str, served_as: str) -> bool:
        try:
            return served_as in (await self._wire.listed(address)).adapters
        except (LookFailed, aiohttp.ClientError, OSError, ValueError) as error:
            raise Uncertain(
                f"the engine at {address} does not say whether it holds {served_as}: {error}"
            ) from None

    def _error(self, status: int, answer: bytes, what: str) -> CloudError:
        words = f"{what} answers {status}: {own_words(answer)}"
        if status in _NOT_ALLOWED:
            return Denied(words)
        if status == _ABSENT and b'"detail"' in answer:
            return Misconfigured(f"{words}; the engine was started without its routes for adapters")
        if status == _ABSENT:
            return NotFound(words)
        return Misconfigured(words) if status in (_REFUSED, _BROKEN) else Uncertain(words)
