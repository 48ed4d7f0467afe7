"""Parts the simulated model's output into reasoning, content and tool calls, as vLLM's parsers do.

Reads a token and its text at a time and holds back what it cannot place yet. vLLM's hermes parser is the
model for tools (`<tool_call>` JSON `</tool_call>`), its qwen3 parser for reasoning (`<think>` ...
`</think>`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cloud.engines.simulated_server.tokens import CALL, CALL_END, THINK, THINK_END

_HEAD = re.compile(r'\s*\{"name": "((?:[^"\\]|\\.)*)", "arguments": ')


@dataclass(frozen=True, slots=True)
class Parsing:
    """What to look for. `named`: the request names the tool, which changes the reason of the end; `idle`: the
    server has a parser that reads this output too, though there may be nothing for it to find.
    """

    reasoning: bool = False
    tools: bool = False
    named: bool = False
    idle: bool = False

    @property
    def active(self) -> bool:
        """True when a parser reads the output."""
        return self.reasoning or self.tools or self.idle


@dataclass(slots=True)
class Delta:
    """What a few tokens brought. `calls` are the entries of a delta's `tool_calls`."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """True when there is nothing to show."""
        return not (self.content or self.reasoning or self.calls)


class Parser:
    """The state of one output. `new_id` makes the id of a call."""

    def __init__(self, parsing: Parsing, new_id: Callable[[], str]) -> None:
        self._parsing = parsing
        self._new_id = new_id
        self._thinking = False
        self._calling = False
        self._buffer = ""  # the text of the call that is open
        self._named = False  # the open call's name is out
        self._begun = 0  # where its arguments begin in the buffer
        self._sent = 0  # how much of them is out
        self.calls = 0

    def feed(self, token: int, text: str, delta: Delta) -> None:
        """Add what this token shows to the delta."""
        if self._parsing.reasoning and token in (THINK, THINK_END):
            self._thinking = token == THINK
        elif self._thinking:
            delta.reasoning += text
        elif self._parsing.tools and token == CALL:
            self._calling, self._buffer, self._named, self._sent = True, "", False, 0
        elif not self._calling:
            delta.content += text
        elif token == CALL_END:
            self._close(delta)
        else:
            self._buffer += text
            self._show(delta)

    def finish(self, text: str, delta: Delta) -> None:
        """The end of the output, with the text that was still held back."""
        if self._thinking:
            delta.reasoning += text
        elif not self._calling:
            delta.content += text
        else:
            self._buffer += text
            self._show(delta)

    def _show(self, delta: Delta) -> None:
        """The open call's name once it is whole, then its arguments as far as they are certain."""
        if not self._named and (head := _HEAD.match(self._buffer)):
            self._name(head[1], head.end(), delta)
        if self._named:
            self._arguments(self._buffer[self._begun :].rstrip("} \n"), delta)

    def _name(self, name: str, begun: int, delta: Delta) -> None:
        self._named, self._begun = True, begun
        function = {"name": name}
        delta.calls.append(
            {"id": self._new_id(), "type": "function", "index": self.calls, "function": function}
        )
        self.calls += 1

    def _arguments(self, certain: str, delta: Delta) -> None:
        new = certain[self._sent :]
        if not new:
            return
        self._sent += len(new)
        last = delta.calls[-1] if delta.calls else None
        if last is not None and last["index"] == self.calls - 1 and "arguments" in last["function"]:
            last["function"]["arguments"] += new
        else:
            delta.calls.append({"index": self.calls - 1, "function": {"arguments": new}})

    def _close(self, delta: Delta) -> None:
        """The last of the arguments, without the bracket that closes the call around them."""
        if self._named:
            self._arguments(self._buffer[self._begun :].rstrip(" \n").removesuffix("}"), delta)
        self._calling = False
