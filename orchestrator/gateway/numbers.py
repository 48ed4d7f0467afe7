"""Whether a number means at an engine what the target set says, for engines that know adapters by number.

The engine of a target may have been started again with others a moment ago, and llama.cpp answers whatever a
number means by then, or as its model where it means nothing. Its process ends with all of its connections. So
it is asked for its list over one connection once another one is there, and before a request goes out on that:
if it was started again in between, the request meets a connection that is dead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson
from yarl import URL

from policies.held import Held, revision_of

PATH: Final = "/lora-adapters"
_OK: Final = 200

Numbers = Mapping[int, str]
"""The revision of each adapter of an engine, by its number."""


class OtherNumber(aiohttp.ClientError):
    """The engine knows another adapter by the number, or none."""


@dataclass(frozen=True, slots=True)
class Meant:
    """What a number has to mean where a request goes; `ask` asks the engine."""

    held: Held
    ask: Callable[[], Awaitable[Numbers]]

    def check(self, numbers: Numbers) -> None:
        """Raises OtherNumber."""
        held = self.held
        if held.number is None or numbers.get(held.number) != held.revision:
            raise OtherNumber(f"it does not know {held.name} by its number")


_meant: ContextVar[Meant | None] = ContextVar("meant", default=None)


def meant() -> Meant | None:
    """What the requests of this task need of their connections; None for nothing."""
    return _meant.get()


@contextlib.contextmanager
def meaning(
    held: Held | None, session: aiohttp.ClientSession, url: URL, headers: Mapping[str, str]
) -> Iterator[None]:
    """Have requests of this task sent only where the number of an adapter means that adapter.

    `url`: of the engine's list; `headers`: of the request.
    """

    async def ask() -> Numbers:
        inner = _meant.set(None)
        try:
            return await _numbers(session, url, headers)
        finally:
            _meant.reset(inner)

    outer = _meant.set(Meant(held, ask) if held is not None and held.number is not None else None)
    try:
        yield
    finally:
        _meant.reset(outer)


async def _numbers(session: aiohttp.ClientSession, url: URL, headers: Mapping[str, str]) -> Numbers:
    """What an engine knows by number now, as ``[{"id": 0, "path": "/l/sql.gguf", ...}]`` (llama.cpp)."""
    keys = {name: value for name, value in headers.items() if name.lower() == "authorization"}
    async with session.get(url, headers=keys, allow_redirects=False) as answer:
        said: Any = await answer.read()
    if answer.status != _OK:
        return {}
    try:
        return {int(row["id"]): revision_of(str(row["path"])) for row in orjson.loads(said)}
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return {}
