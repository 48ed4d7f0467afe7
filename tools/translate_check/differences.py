"""The differences that are known, each with whose it is, and what shows it.

`reads_as`: the server's own OpenAI route, asked with these fields in place of the case's, answers just what
came through the translation: so the server reads a rightly translated request in another way. Without it the
answer itself shows it, and `what` says where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cases import CALL, HI, Fields

PLAIN, STREAMED = ("plain",), ("streamed",)
BOTH = ("plain", "streamed")


@dataclass(frozen=True)
class Difference:
    """Of these requests to this server (none named: of all), on these ways. `fields`: those of the answers
    that may differ; `untold`: only where no usage is told.
    """

    server: str
    asked: tuple[str, ...]
    whose: str
    what: str
    ways: tuple[str, ...] = BOTH
    fields: frozenset[str] = frozenset({"text", "usage"})
    untold: bool = False
    reads_as: Fields | None = None

    def of(self, server: str, asked: str) -> bool:
        """Whether it is of this case of this server."""
        return server == self.server and (not self.asked or asked in self.asked)


_TURNED: list[Any] = [
    *HI,
    {"role": "assistant", "content": "I look", "tool_calls": [CALL]},
    {"role": "user", "content": "and?"},
    {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
]

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "llama.cpp",
        (),
        "llama.cpp",
        "a stream whose first token has no text lacks its `message_start`, and with it the tokens of the "
        "prompt: the answer is whole, its usage is not known",
        ways=STREAMED,
        fields=frozenset({"usage"}),
        untold=True,
    ),
    Difference(
        "llama.cpp",
        ("tool, named",),
        "llama.cpp",
        "`tool_choice` of type `tool` is read as `any`; its chat route ignores the named function altogether",
        reads_as={"tool_choice": "required"},
    ),
    Difference(
        "llama.cpp",
        ("tool, none",),
        "llama.cpp",
        "`tool_choice` of type `none` is read as `auto`",
        reads_as={"tool_choice": "auto"},
    ),
    Difference(
        "llama.cpp",
        ("tool results and text",),
        "llama.cpp",
        "in a turn of tool results and text the text is put in front of the results",
        reads_as={"messages": _TURNED},
    ),
    Difference(
        "llama.cpp",
        ("JSON schema",),
        "llama.cpp",
        "`output_config.format` is ignored",
        reads_as={"response_format": None},
    ),
    Difference(
        "vllm",
        ("tool, named",),
        "vLLM",
        "a named call ends with `stop` on its chat route (as at OpenAI) and with `tool_use` as a message",
        fields=frozenset({"finish"}),
    ),
    Difference(
        "vllm",
        ("tool, required, loose",),
        "vLLM",
        "without `strict` its grammar lets arguments be what is no object; its own conversion into a message "
        "then fails with 400 (streams pass)",
        ways=PLAIN,
        fields=frozenset({"fault", "status"}),
    ),
    Difference(
        "litellm",
        ("tool, required",),
        "LiteLLM",
        "arguments that the limit of tokens cut off become `{}` in a plain message",
        ways=PLAIN,
        fields=frozenset({"calls"}),
    ),
)
