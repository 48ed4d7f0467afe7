"""Adapters of the simulated engine, loaded and unloaded while it runs, as vLLM 0.32 does (ran).

    POST /v1/load_lora_adapter {"lora_name": "sql", "lora_path": "/srv/sql"[, "load_inplace": true]}
    POST /v1/unload_lora_adapter {"lora_name": "sql"}

What an adapter says follows from its path. One that is loaded stays listed until it is unloaded; the memory
has room for so many, and what is used beyond that is read again, which takes as long as loading it. A path
that ends in "missing" is not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from zlib import crc32

from aiohttp import web

from cloud.engines.simulated_server.requests import BadRequest, read_object

if TYPE_CHECKING:
    from cloud.ports import Clock

_VARIANTS = 1000  # of one adapter: more outputs than a request may ask for


class Adapters:
    """The adapters by name. `models` is what clients can ask for, the base model first; it changes as they
    do. `load_time`: seconds for one; `room`: how many are in memory at a time, 0 for any number.
    """

    def __init__(
        self, clock: Clock, base: str, given: Iterable[tuple[str, str]], *, load_time: float, room: int
    ) -> None:
        self.paths = dict(given)
        self.models = [base, *self.paths]
        self._clock = clock
        self._load_time = load_time
        self._room = room
        self._in_memory: dict[str, None] = {}  # paths, the one that was used last at the end
        self._disk = asyncio.Lock()
        for path in self.paths.values():
            self._note(path)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve what loads and unloads them."""
        router.add_post("/v1/load_lora_adapter", self._load)
        router.add_post("/v1/unload_lora_adapter", self._unload)

    def variant(self, model: str) -> int:
        """Which model says it: 0 for the base, another for each path."""
        path = self.paths.get(model)
        return 0 if path is None else (crc32(path.encode()) + 1) * _VARIANTS

    async def use(self, model: str) -> None:
        """Read the adapter if it is not in memory."""
        if (path := self.paths.get(model)) is not None:
            await self._read(path)

    async def _read(self, path: str) -> None:
        async with self._disk:
            if path not in self._in_memory:
                await self._clock.sleep(self._load_time)
        self._note(path)

    def _note(self, path: str) -> None:
        self._in_memory.pop(path, None)
        self._in_memory[path] = None
        if self._room and len(self._in_memory) > self._room:
            del self._in_memory[next(iter(self._in_memory))]

    async def _load(self, request: web.Request) -> web.Response:
        body = read_object(await request.read())
        name, path = _text(body, "lora_name"), _text(body, "lora_path")
        inplace = body.get("load_inplace") is True
        if name == self.models[0] or (name in self.paths and not inplace):
            said = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
            raise BadRequest(f"{said}place, set 'load_inplace' to True.", kind="InvalidUserInput")
        if path.endswith("missing"):
            raise BadRequest(f"No adapter found for {path}", status=404, kind="NotFoundError")
        self._in_memory.pop(path, None)
        await self._read(path)
        if name not in self.paths:
            self.models.append(name)
        self.paths[name] = path
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        """Requests that use it go on to their end."""
        name = _text(read_object(await request.read()), "lora_name")
        if name not in self.paths:
            said = f"The lora adapter '{name}' cannot be found."
            raise BadRequest(said, status=404, kind="NotFoundError")
        del self.paths[name]
        self.models.remove(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


def _text(body: dict[str, Any], field: str) -> str:
    """A field that may not be empty. Raises BadRequest."""
    found = body.get(field)
    if not isinstance(found, str) or not found:
        raise BadRequest(f"'{field}' must be provided.", kind="InvalidUserInput")
    return found
