"""What is asked of every server, in OpenAI's form; and what is refused before any server is asked.

The taught model (`tools/vllm/teach_tiny_model.py`) calls tools and thinks when asked in the words of its
lessons; where a server has a model of random weights alone, its grammar forces calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]

HI = [{"role": "user", "content": "hi"}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
FAR_PICTURE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Bern"}'},
}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}


def tool(name: str = "get_weather", **more: Any) -> Fields:
    """A function that the model may call."""
    return {
        "type": "function",
        "function": {"name": name, "description": "of a city", "parameters": CITY, **more},
    }


@dataclass(frozen=True)
class Case:
    """One request. `servers`: those that can be asked it; empty: all. `shows`: what is to be seen in the
    answer by its name in `run.said`; without it the case would compare nothing.
    """

    name: str
    fields: Fields
    servers: Sequence[str] = ()
    tokens: int = 24
    shows: str = ""

    def body(self) -> Fields:
        """The chat request; greedy."""
        return {"messages": HI, "max_tokens": self.tokens, "temperature": 0, **self.fields}


NAMED = {"type": "function", "function": {"name": "get_weather"}}
STRICT = tool(strict=True)
GRAMMAR = ("vllm", "llama.cpp", "litellm")

CASES = (
    Case("plain", {}),
    Case("system and developer", {"messages": [{"role": "system", "content": "be brief"}, *HI]}),
    Case(
        "parts, several turns",
        {
            "messages": [
                {"role": "system", "content": "a"},
                {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
                {"role": "assistant", "content": "z"},
                {"role": "user", "content": "w"},
            ]
        },
    ),
    Case(
        "letters of many alphabets", {"messages": [{"role": "user", "content": "Köln 日本語 🚦"}]}, tokens=48
    ),
    Case("one token", {}, tokens=1),
    Case("stop string", {"stop": ["3"]}, tokens=60),
    Case("top_p, top_k", {"top_p": 0.9, "top_k": 1}),
    Case("tool, auto", {"tools": [tool()]}),
    Case(
        "a call, auto",
        {"tools": [tool()], "messages": [{"role": "user", "content": "weather?"}]},
        ("vllm",),
        tokens=90,
        shows="calls",
    ),
    Case(
        "two calls, auto",
        {"tools": [tool(), tool("get_time")], "messages": [{"role": "user", "content": "two calls"}]},
        ("vllm",),
        tokens=90,
        shows="calls",
    ),
    Case(
        "tool, required", {"tools": [STRICT], "tool_choice": "required"}, GRAMMAR, tokens=120, shows="calls"
    ),
    Case("tool, named", {"tools": [STRICT], "tool_choice": NAMED}, GRAMMAR, tokens=120, shows="calls"),
    Case("tool, required, loose", {"tools": [tool()], "tool_choice": "required"}, ("vllm",), tokens=120),
    Case("tool, none", {"tools": [tool()], "tool_choice": "none"}),
    Case(
        "tool results",
        {
            "tools": [tool()],
            "messages": [
                *HI,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
            ],
        },
    ),
    Case(
        "tool results and text",
        {
            "tools": [tool()],
            "messages": [
                *HI,
                {"role": "assistant", "content": "I look", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
                {"role": "user", "content": "and?"},
            ],
        },
    ),
    Case(
        "JSON schema",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        tokens=60,
    ),
    Case(
        "thinking",
        {"messages": [{"role": "user", "content": "think"}]},
        ("vllm-thinks",),
        tokens=90,
        shows="reasoning",
    ),
    Case(
        "thinking, then a call",
        {"tools": [tool()], "messages": [{"role": "user", "content": "think and call"}]},
        ("vllm-thinks",),
        tokens=120,
        shows="reasoning",
    ),
    Case(
        "an image, of a model without eyes",
        {"messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "what?"}]}]},
        ("vllm", "llama.cpp"),
    ),
    Case(
        "images as they reach the engine",
        {
            "messages": [
                {"role": "user", "content": [PICTURE, {"type": "text", "text": "what?"}, FAR_PICTURE]}
            ],
            "model": "echo",
        },
        ("litellm",),
    ),
    Case("too many tokens", {"messages": [{"role": "user", "content": "x " * 9_000}]}),
    Case("an unknown model", {"model": "no-such-model"}),
)

REFUSED: tuple[tuple[str, Fields], ...] = (
    ("several answers", {"n": 2}),
    ("probabilities", {"logprobs": True}),
    ("bias", {"logit_bias": {"5": 1}}),
    ("JSON without a schema", {"response_format": {"type": "json_object"}}),
    ("an answer's beginning", {"messages": [*HI, {"role": "assistant", "content": "It is"}]}),
    ("sound in answers", {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}),
    ("sound in questions", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
    ("files", {"messages": [{"role": "user", "content": [{"type": "file"}]}]}),
    ("functions of the old form", {"functions": [{"name": "f"}]}),
    ("custom tools", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}),
    ("a search of OpenAI's", {"web_search_options": {"search_context_size": "low"}}),
    ("a grammar of vLLM's", {"structured_outputs": {"regex": "a+"}}),
    ("a stop of white space", {"stop": "\n\n"}),
    ("a seed, to models that take temperature", {"seed": 7}),
    ("a penalty, to models that take temperature", {"presence_penalty": 0.5}),
)

NATIVE: tuple[tuple[str, str, Fields], ...] = (
    ("completions", "/v1/completions", {"prompt": "hi", "max_tokens": 12, "temperature": 0}),
    (
        "responses",
        "/v1/responses",
        {"input": "hi", "max_output_tokens": 16, "temperature": 0, "store": False},
    ),
)
"""OpenAI's own forms, asked natively: plain and streamed have to tell the same usage."""
