"""What a stream has shown so far: enough to finish it elsewhere, at a few bytes a token.

Events are read as vLLM sends them: a chat stream tells the ids of its prompt at the top of its first chunk, a
text stream in the choice; every chunk tells its own ids in the choice. Without `return_token_ids` the same
fields are null, so that a client that did not ask for ids sees null.
"""

from __future__ import annotations

from array import array
from typing import Any

import orjson

from orchestrator.gateway.continuation.kinds import Asked, Capability, Kind, Plan, Way
from orchestrator.gateway.continuation.prepare import RETURN_IDS, prepared

_TAIL = 64  # characters of the answer's end that are kept, beside what stop strings need
_PROMPT_IDS, _IDS = b'"prompt_token_ids":[', b'"token_ids":['
_HEAD = ("id", "object", "created", "model")


class Transcript:
    """One stream, and the continuations of it. Pure.

    `head` holds the fields that every chunk repeats. `prompt` and `ids` are token ids, `lens` how many of
    them each chunk brought, `length` the characters of text that the client has, `tail` the last of them.
    `calls` are the ids of the tool calls by index. `visible`: the client has more than white space.
    `finish` is the finish_reason, empty before it came. `fields` are the request's.
    """

    def __init__(self, asked: Asked, plan: Plan) -> None:
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
        self.length = 0
        self.tail = ""
        self.calls: list[str] = []
        self.parsed = False
        self.visible = False
        self.finish = ""
        self._keep = max((len(text) for text in plan.stops), default=0) + _TAIL
        self._lost = False

    @property
    def tokens(self) -> int:
        """Tokens generated so far, as far as the engine told their ids."""
        return len(self.ids)

    def take(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        """Note an event of the engine, whole with its blank line, and its JSON.

        Gives the event for the client: the same, without the ids unless it asked for them.
        """
        choices = chunk.get("choices")
        choice = choices[0] if choices else None
        if not isinstance(choice, dict):
            return event
        ids = choice.get("token_ids")
        if self.prompt is None and self._begin(chunk, choice) and not self.wants_ids:
            event = _without(event, _PROMPT_IDS, chunk)
        self.note(choice, ids)
        return event if self.wants_ids or not ids else _without(event, _IDS, chunk)

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
            self.length += len(text)
            if not self.visible:
                self.visible = not text.isspace()
            if self.plan.stops:
                self.tail = (self.tail + text)[-self._keep :]
        if finish := choice.get("finish_reason"):
            self.finish = finish

    def drop(self, count: int) -> None:
        """Forget the last ids, which showed no text: they are generated again."""
        del self.ids[len(self.ids) - count :]

    def restart(self) -> None:
        """Forget all ids: the whole request is asked again."""
        self.prompt, self.ids, self.lens, self.calls = None, array("I"), array("I"), []
        self._lost = False

    def body_for(self, capability: Capability) -> bytes:
        """The body of the whole request for a target."""
        return prepared(self._asked, self.plan, capability)

    @property
    def again(self) -> bool:
        """Whether asking the whole request again would show the client nothing twice."""
        return not self.visible and self.plan.kind is not Kind.ENDED

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
            return "the engine told no token ids"
        if self.parsed and self.plan.stops:
            return "stop strings beside reasoning"
        if capability is None:
            return ""
        if capability.way is Way.NONE:
            return capability.why
        if not self.needs_parser(capability):
            return ""
        if self.plan.stops:
            return "stop strings beside reasoning"
        return "" if capability.way is Way.DERENDER else "tool calls and reasoning need --enable-scale-out"

    def needs_parser(self, capability: Capability) -> bool:
        """Whether what comes must pass the target's parsers."""
        return self.chat and (self.plan.parser or self.parsed or capability.reasons)

    def _begin(self, chunk: dict[str, Any], choice: dict[str, Any]) -> bool:
        """The first chunk: what all chunks repeat, and whether it tells the prompt's ids."""
        if not self.head:
            self.head = {name: chunk[name] for name in _HEAD if name in chunk}
        self.prompt = chunk.get("prompt_token_ids") or choice.get("prompt_token_ids")
        return self.prompt is not None

    def _other(self, delta: dict[str, Any]) -> None:
        """A delta of more than text: reasoning, tool calls."""
        for call in delta.get("tool_calls") or ():
            self.parsed = self.visible = True
            if call.get("id"):
                self.calls.append(call["id"])
        if delta.get("reasoning") or delta.get("reasoning_content"):
            self.parsed = self.visible = True


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
