"""The text of token ids, from a target's `/detokenize`."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

from orchestrator.gateway.continuation.calls import Engine
from orchestrator.gateway.continuation.kinds import Broken
from orchestrator.gateway.continuation.stops import StopStrings
from orchestrator.gateway.failure import Failure

_TOKENIZE, _DETOKENIZE, _COMPLETIONS = "/tokenize", "/detokenize", "/v1/completions"
_UNFINISHED = "\ufffd"  # how an unfinished character at the end of decoded ids shows
WINDOW = 8  # ids that decide how the next one reads, and whether a text ends inside a character
_MOST_UNFINISHED = 64  # ids without one whole character; more is no text
MARKUP = re.compile(r"<[^<>\s]{1,60}>|\[[A-Z_/]{1,40}\]")  # how special tokens read, of all models known
_MOST_MARKUP = 32  # different pieces of markup in one answer that are looked into


class Decoder:
    """Texts of a model's ids. All methods raise Broken, aiohttp.ClientError, OSError.

    `/detokenize` tells special tokens, which engines leave out of answers, and no route tells which tokens
    are special: `find_special` finds out. Until then they count as text.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine = engine
        self._model = model
        self._special: set[int] = set()

    async def find_special(self, ids: Sequence[int]) -> None:
        """Find the special tokens among ids: each single token that reads like markup is generated once."""
        marks = sorted(set(MARKUP.findall(await self._decoded(ids))))
        if len(marks) > _MOST_MARKUP:
            raise Broken(Failure.REFUSED_HERE, "too much markup in the answer to tell its special tokens")
        for mark in marks:
            asked = {"model": self._model, "prompt": mark, "add_special_tokens": False}
            tokens = (await self._engine.post(_TOKENIZE, asked))["tokens"]
            if len(tokens) == 1 and tokens[0] in ids and not await self._text_of(tokens[0]):
                self._special.add(tokens[0])

    def shown(self, ids: Sequence[int]) -> list[int]:
        """The ids without the special tokens found so far."""
        return [token for token in ids if token not in self._special]

    async def _text_of(self, token: int) -> str:
        """The text that the engine shows for a token: it is asked for just that one."""
        answer = await self._engine.post(
            _COMPLETIONS,
            {
                "model": self._model,
                "prompt": [token],
                "max_tokens": 1,
                "allowed_token_ids": [token],
                "ignore_eos": True,
            },
        )
        return str(answer["choices"][0]["text"])

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
        raise Broken(Failure.REFUSED_HERE, "the answer so far ends in no text")

    async def text(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that ids add to those before them, without a character that is not whole."""
        seed = before[-WINDOW:]
        start = await self._decoded(seed) if seed else ""
        both = await self._decoded([*seed, *ids])
        if not both.startswith(start):
            raise Broken(Failure.REFUSED_HERE, "the same ids were decoded to two texts")
        return both[len(start) :].rstrip(_UNFINISHED)

    async def up_to(self, stops: StopStrings, before: Sequence[int], ids: Sequence[int]) -> int:
        """How many of the ids, which came together, it takes until a stop string is complete."""
        for count in range(1, len(ids)):
            if copy.copy(stops).feed(await self.text(before, ids[:count]))[1]:
                return count
        return len(ids)

    async def _decoded(self, ids: Sequence[int]) -> str:
        asked = {"model": self._model, "tokens": self.shown(ids)}
        answer = await self._engine.post(_DETOKENIZE, asked)
        text = answer.get("prompt") if isinstance(answer, dict) else None
        if not isinstance(text, str):
            raise Broken(Failure.BAD_RESPONSE, f"{_DETOKENIZE} returned no text")
        return text
