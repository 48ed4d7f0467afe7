"""What a stream has shown so far: enough to finish it elsewhere, at a few bytes a token.

Events are read as vLLM sends them: a chat stream tells the ids of its prompt at the top of its first chunk, a
text stream in the choice; every chunk tells its own ids in the choice. Without `return_token_ids` the same
fields are null, so that a client that did not ask for ids sees null.
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING, Any

import orjson

from orchestrator.gateway.continuation.kinds import Capability, Kind, Plan, Way
from orchestrator.gateway.continuation.prepare import RETURN_IDS, prepared
from orchestrator.gateway.continuation.shape import event_of, usage_of

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

_TAIL = 64  # characters of the answer's end that are kept, beside what stop strings need
_PROMPT_IDS, _IDS = b'"prompt_token_ids":[', b'"token_ids":['
_IDS_TOLD, _NO_IDS = re.compile(rb'"token_ids":\[[^\]]+\]'), b'"token_ids":null'
_HEAD = ("id", "object", "created", "model")


class Transcript:
    """One stream, and the continuations of it. Pure.

    `head` holds the fields that every chunk repeats. `prompt` and `ids` are token ids, `lens` how many of
    them each chunk brought, `length` the characters of text that the client has, `tail` the last of them.
    `solid` of the ids came up to the last chunk with text, `lumped` with others in it.
    `calls` are the ids of the tool calls by index. `reasoned`: reasoning came; `spoken`: text other than
    white space did.
    `finish` is the finish_reason, empty before it came. `fields` are the request's. `dropped` counts ids that
    were generated and are generated again. `asks`: the engine is asked for the usage, which its client did
    not ask for. `usage` is from an engine that answered the whole request, as it came.
    """

    def __init__(self, asked: Asked, plan: Plan, *, asks: bool = False) -> None:
        self.asks = asks
        self.usage: Any = None
        self.dropped = 0
        self.plan = plan
        self._asked = asked
        self.fields: dict[str, Any] = asked.inner or {}
        self.path = asked.inner_path
        self.chat = self.path.startswith("/v1/chat/")
        self.wants_ids = bool(self.fields.get(RETURN_IDS))
        self.head: dict[str, Any] = {}
        self.prompt: list[int] | None = None
        self.ids = array("I")
        self.lens = array("I")
        self.solid = 0
        self.lumped = False
        self.length = 0
        self.tail = ""
        self.calls: list[str] = []
        self.reasoned = False
        self.spoken = False
        self.finish = ""
        self._keep = max((len(text) for text in plan.stops), default=0) + _TAIL
        self._lost = False
        self._counted = False
        options = self.fields.get("stream_options")
        options = options if isinstance(options, dict) else {}
        self._usage = bool(options.get("include_usage"))
        self.usage_always = self._usage and bool(options.get("continuous_usage_stats"))

    @property
    def tokens(self) -> int:
        """Tokens generated so far, as far as the engine sent their ids."""
        return len(self.ids)

    def take(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        """Note an event of the engine, whole with its blank line, and its JSON.

        Gives the event for the client: the same, without the ids unless it asked for them.
        """
        choices = chunk.get("choices")
        choice = choices[0] if choices else None
        if not isinstance(choice, dict):
            return self._take_usage(event, chunk.get("usage"))
        if choice.get("index"):
            return b""  # nobody asked for it: what is recorded has one choice
        ids = self._noted(choice)
        if self.finish:
            self.usage = chunk.get("usage") or self.usage
        if self.prompt is None and self._begin(chunk, choice) and not self.wants_ids:
            event = _without(event, _PROMPT_IDS, chunk)
        return event if self.wants_ids or not ids else _without(event, _IDS, chunk)

    def _take_usage(self, event: bytes, usage: Any) -> bytes:
        """Note an event without a choice."""
        if not usage:
            return event
        self._counted = True
        self.usage = usage if self.finish else None
        return b"" if self.asks else event

    def take_plain(self, block: bytes, chunks: list[Any]) -> bytes | None:
        """The same for several events at once that hold ordinary text, one chunk for each.

        None, and nothing is noted, where there is more to it.
        """
        if self.prompt is None or not chunks:
            return None
        try:
            choices = [chunk["choices"][0] for chunk in chunks]
            told = sum(bool(choice["token_ids"]) for choice in choices)
            if any(choice.get("index") for choice in choices):
                return None
        except (LookupError, TypeError):
            return None
        passed = block
        if not self.wants_ids:
            passed, cut = _IDS_TOLD.subn(_NO_IDS, block)
            if cut != told:
                return None
        for choice in choices:
            self._noted(choice)
        return passed

    def _noted(self, choice: dict[str, Any]) -> list[int] | None:
        """Note a choice of the engine; the ids that it tells."""
        ids = choice.get("token_ids")
        try:
            self.note(choice, ids)
        except (TypeError, ValueError, OverflowError, AttributeError):
            self._lost = self.spoken = True  # not what an engine says
        return ids

    def note(self, choice: dict[str, Any], ids: list[int] | None) -> None:
        """Note a choice that the client gets, and the ids it stands for."""
        if self.chat:
            delta = choice.get("delta") or {}
            text = delta.get("content") or ""
            if len(delta) > 1 or not text:
                self._other(delta)
        else:
            text = choice.get("text") or ""
        if ids:
            self.ids.extend(ids)
            self.lens.append(len(ids))
        elif text:
            self._lost = True
        if text:
            self.solid, self.lumped = len(self.ids), ids is not None and len(ids) > 1
            self.length += len(text)
            if not self.spoken:
                self.spoken = not text.isspace()
            if self.plan.stops:
                self.tail = (self.tail + text)[-self._keep :]
        if finish := choice.get("finish_reason"):
            self.finish = finish

    def keep(self, count: int) -> int:
        """Forget all ids but the first so many, and give how many those were: they are generated again."""
        dropped = len(self.ids) - count
        self.dropped += dropped
        del self.ids[count:]
        while dropped and (over := sum(self.lens) - count) > 0:
            last = self.lens.pop()
            if last > over:
                self.lens.append(last - over)
        return dropped

    def restart(self) -> None:
        """Forget all ids: the whole request is asked again."""
        self.dropped += len(self.ids)
        self.prompt, self.ids, self.lens, self.calls = None, array("I"), array("I"), []
        self.solid, self._lost = 0, False

    def aim(self, asked: Asked) -> None:
        """The next target is asked in these words, which name the adapter as it does."""
        self._asked, self.fields = asked, asked.inner or {}

    def body_for(self, capability: Capability) -> bytes:
        """The body of the whole request for a target."""
        return prepared(self._asked, self.plan, capability, asks=self.asks)

    def used(self) -> dict[str, int]:
        """Usage up to here, in tokens."""
        return usage_of(len(self.prompt or ()), self.tokens)

    @property
    def told(self) -> bool:
        """Whether the answer is whole and `used` is all of it: the engines sent the ids of every token."""
        return bool(self.finish) and self.prompt is not None and not self._lost

    def closing(self) -> bytes:
        """The usage that a finished stream still owes to a client that asked for it."""
        if not (self._usage and self.finish and self.prompt) or self._counted or self._lost:
            return b""
        self._counted = True
        return event_of({**self.head, "choices": [], "usage": self.used()})

    @property
    def again(self) -> bool:
        """Whether asking the whole request again would show the client nothing twice."""
        visible = self.spoken or self.reasoned or self.calls
        return not visible and self.plan.kind is not Kind.ENDED

    def obstacle(self, capability: Capability | None = None) -> str:
        """Why this stream cannot be finished elsewhere, or by a target of this capability; "" when it can.

        While `again` holds any target can, whatever it is able to do.
        """
        return "" if self.again else self.obstacle_by_ids(capability)

    def obstacle_by_ids(self, capability: Capability | None = None) -> str:
        """The same for the way by ids alone."""
        if not self.plan.by_ids:
            return self.plan.why
        if self.prompt is None or self._lost or not self.head:
            return "the engine sent no token ids"
        if capability is None:
            return ""
        if capability.way is Way.NONE:
            return capability.why
        if not self.needs_parser(capability):
            return ""
        if self.plan.stops:
            return "stop strings inside reasoning"
        return "" if capability.way is Way.DERENDER else "tool calls and reasoning need --enable-scale-out"

    def needs_parser(self, capability: Capability) -> bool:
        """Whether what comes must pass the target's parsers: reasoning does until text has come after it."""
        reasons = (self.reasoned or capability.reasons) and not self.spoken
        return self.chat and (self.plan.parser or reasons)

    def _begin(self, chunk: dict[str, Any], choice: dict[str, Any]) -> bool:
        """The first chunk: what all chunks repeat, and whether it tells the prompt's ids."""
        if not self.head:
            self.head = {name: chunk[name] for name in _HEAD if name in chunk}
        self.prompt = chunk.get("prompt_token_ids") or choice.get("prompt_token_ids")
        return self.prompt is not None

    def _other(self, delta: dict[str, Any]) -> None:
        """A delta of more than text: reasoning, tool calls."""
        for call in delta.get("tool_calls") or ():
            if call.get("id"):
                self.calls.append(call["id"])
        if delta.get("reasoning") or delta.get("reasoning_content"):
            self.reasoned = True


def _without(event: bytes, key: bytes, chunk: dict[str, Any]) -> bytes:
    """An event with null in place of a list of ids.

    By bytes where the engine writes JSON without spaces: a key in quotes cannot appear inside a string.
    """
    at = event.find(key)
    if at >= 0:
        start = at + len(key) - 1
        return event[:start] + b"null" + event[event.index(b"]", start) + 1 :]
    name = key[1 : key.index(b'"', 1)].decode()
    bare = {name: None} if name in chunk else {}
    choices = [{**choice, name: None} if name in choice else choice for choice in chunk["choices"]]
    return b"data: " + orjson.dumps({**chunk, **bare, "choices": choices}) + b"\n\n"
