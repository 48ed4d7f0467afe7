"""The text of token ids, told by a target's `/detokenize`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from orchestrator.gateway.continuation.calls import Engine
from orchestrator.gateway.continuation.kinds import Broken
from orchestrator.gateway.continuation.stops import StopStrings
from orchestrator.gateway.failure import Failure

_PATH = "/detokenize"
_UNFINISHED = "\ufffd"  # how an unfinished character at the end of decoded ids shows
WINDOW = 8  # ids that decide how the next one reads, and whether a text ends inside a character
_MOST_UNFINISHED = 64  # ids without one whole character; more is no text


class Decoder:
    """Texts of a model's ids. All methods raise Broken, aiohttp.ClientError, OSError."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model

    async def whole(self, ids: Sequence[int]) -> int:
        """How many of the ids, from the first on, end with a whole character.

        The others have shown nothing: engines hold text back while it ends inside a character.
        """
        for count in range(len(ids), max(0, len(ids) - _MOST_UNFINISHED), -1):
            text = await self._decoded(ids[max(0, count - WINDOW) : count])
            if not text.endswith(_UNFINISHED):
                return count
        if len(ids) <= _MOST_UNFINISHED:
            return 0
        raise Broken(Failure.BAD_RESPONSE, "the answer so far ends in no text")

    async def text(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that ids add to those before them, without a character that is not whole."""
        seed = before[-WINDOW:]
        start = await self._decoded(seed) if seed else ""
        both = await self._decoded([*seed, *ids])
        if not both.startswith(start):
            raise Broken(Failure.BAD_RESPONSE, "the text of the ids before is told in two ways")
        return both[len(start) :].rstrip(_UNFINISHED)

    async def up_to(self, stops: StopStrings, before: Sequence[int], ids: Sequence[int]) -> int:
        """How many of the ids, which came together, it takes until a stop string is complete."""
        for count in range(1, len(ids)):
            if copy.copy(stops).feed(await self.text(before, ids[:count]))[1]:
                return count
        return len(ids)

    async def _decoded(self, ids: Sequence[int]) -> str:
        answer = await self._engine.post(_PATH, {"model": self._model, "tokens": list(ids)})
        text = answer.get("prompt") if isinstance(answer, dict) else None
        if not isinstance(text, str):
            raise Broken(Failure.BAD_RESPONSE, f"{_PATH} told no text")
        return text
