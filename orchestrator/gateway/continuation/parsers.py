"""A target's parsers of tool calls and reasoning, run over ids by vLLM's streaming `derender`.

Its answer hands back a state that goes with the next call. The first state is rebuilt from what a transcript
recorded. Each call replays all ids, so its cost grows with the answer.
"""

from __future__ import annotations

from typing import Any

from orchestrator.gateway.continuation.calls import Engine
from orchestrator.gateway.continuation.decode import MARKUP, Decoder
from orchestrator.gateway.continuation.shape import without_nulls
from orchestrator.gateway.continuation.transcript import Transcript

_PATH = "/v1/chat/completions/derender"
_LONG, _GROUP = 256, 16  # from so many ids on, so many new ones at a time


class Parsers:
    """The parsers over one answer. `chat` is the request; `hides`: its answer shows no special tokens.

    Ids go through in the portions in which the engine tells them: parsers may read a portion in another way
    than its ids one by one.
    """

    def __init__(
        self, engine: Engine, decoder: Decoder, chat: dict[str, Any], transcript: Transcript, *, hides: bool
    ) -> None:
        self._engine = engine
        self._decoder = decoder
        self._hides = hides
        self._fed = transcript.tokens
        self._waiting: list[int] = []
        self._body = {
            "stream": True,
            "model": chat.get("model"),
            "chat_request": {**chat, "stream": True},
            "prompt_token_ids": transcript.prompt,
        }
        self._state: dict[str, Any] = {
            "role_sent": True,
            "output_token_ids": list(transcript.ids),
            "output_chunk_lens": list(transcript.lens),
            "tools_streamed": bool(transcript.calls),
            "last_tool_call_ids": transcript.calls,
        }

    async def feed(
        self, ids: list[int], finish: str | None, reason: int | str | None
    ) -> tuple[dict[str, Any], list[int]]:
        """Take new ids: the choice (delta, finish_reason) for the client, and the ids that it stands for.

        Both are empty while ids are gathered. An id that ended the answer is no text.
        """
        self._waiting += ids
        if not finish and len(self._waiting) < (_GROUP if self._fed > _LONG else 1):
            return {}, []
        ids, self._waiting = self._waiting, []
        self._fed += len(ids)
        shown = ids[:-1] if finish == "stop" and not isinstance(reason, str) else ids
        told, state = await self._told(shown, finish, reason)
        if self._hides and MARKUP.search(_text(told)):
            await self._decoder.find_special(shown)
            if (left := self._decoder.shown(shown)) != shown:
                told, state = await self._told(left, finish, reason)
        self._state = state
        return told, ids

    async def _told(
        self, ids: list[int], finish: str | None, reason: int | str | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        choice = {"index": 0, "token_ids": ids, "finish_reason": finish, "stop_reason": reason}
        part = {"request_id": "continued", "choices": [choice]}
        asked = {**self._body, "stream_state": self._state, "generate_chunk": part}
        answer = await self._engine.post(_PATH, asked)
        told: dict[str, Any] = without_nulls(answer["chunk"]["choices"][0])
        told.get("delta", {}).pop("role", None)
        return told, answer["stream_state"]


def _text(told: dict[str, Any]) -> str:
    delta = told.get("delta", {})
    return f"{delta.get('content', '')}{delta.get('reasoning', '')}"
