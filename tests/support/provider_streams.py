"""What providers answer, in the shapes of their references: Anthropic's messages, OpenAI's chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Fields = dict[str, Any]

USAGE = {
    "input_tokens": 20,
    "cache_creation_input_tokens": 3,
    "cache_read_input_tokens": 7,
    "output_tokens": 1,
}


def event(kind: str, **fields: Any) -> bytes:
    """One event as Anthropic's servers write it."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode())


def chunk(fields: Fields) -> bytes:
    """One event as OpenAI's servers write it."""
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def message(content: list[Fields], stop: str = "end_turn", **fields: Any) -> Fields:
    """A plain message."""
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {**USAGE, "output_tokens": 9},
        **fields,
    }


def pieces(text: str, size: int = 3) -> list[str]:
    """A text in pieces as a model streams it."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def _block(at: int, block: Fields) -> Iterable[bytes]:
    kind = block["type"]
    if kind == "text":
        yield event("content_block_start", index=at, content_block={"type": "text", "text": ""})
        deltas = [{"type": "text_delta", "text": part} for part in pieces(block["text"])]
    elif kind == "thinking":
        begun = {"type": "thinking", "thinking": "", "signature": ""}
        yield event("content_block_start", index=at, content_block=begun)
        deltas = [{"type": "thinking_delta", "thinking": part} for part in pieces(block["thinking"])]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    elif kind == "tool_use":
        yield event("content_block_start", index=at, content_block={**block, "input": {}})
        told = json.dumps(block["input"]) if block["input"] else ""
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in ["", *pieces(told)]]
    else:
        yield event("content_block_start", index=at, content_block=block)
        deltas = []
    for delta in deltas:
        yield event("content_block_delta", index=at, delta=delta)
    yield event("content_block_stop", index=at)


def message_stream(whole: Fields) -> list[bytes]:
    """The events of the stream of this message."""
    begun = {**whole, "content": [], "stop_reason": None, "stop_sequence": None}
    begun["usage"] = {**whole["usage"], "output_tokens": 1}
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}
    return [
        event("message_start", message=begun),
        event("ping"),
        *(each for at, block in enumerate(whole["content"]) for each in _block(at, block)),
        event("message_delta", delta=ended, usage={"output_tokens": whole["usage"]["output_tokens"]}),
        event("message_stop"),
    ]


def chunks(texts: list[str], finish: str | None = "stop", *, usage: Fields | None = None) -> list[bytes]:
    """The events of a chat stream."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "gpt-test"}

    def said(delta: Fields, reason: str | None = None) -> bytes:
        return chunk({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    events = [said({"role": "assistant", "content": ""}), *(said({"content": text}) for text in texts)]
    if finish:
        events.append(said({}, finish))
    if usage:
        events.append(chunk({**head, "choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"]


def lines(stream: bytes) -> bytes:
    """A stream with line feeds alone: where it breaks, the CR of a CR LF may have come without its LF."""
    return stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def read_chat(stream: bytes) -> Fields:
    """What a chat stream comes to, as a client of OpenAI's puts it together."""
    out: Fields = {"content": "", "reasoning": "", "calls": {}, "finish": None, "usage": None, "roles": 0}
    events = [each for each in stream.split(b"\n\n") if each]
    out["done"] = bool(events) and events[-1] == b"data: [DONE]"
    for each in events[:-1] if out["done"] else events:
        fields = json.loads(each.removeprefix(b"data: "))
        out["usage"] = fields.get("usage") or out["usage"]
        for choice in fields["choices"]:
            delta = choice["delta"]
            out["roles"] += "role" in delta
            out["content"] += delta.get("content") or ""
            out["reasoning"] += delta.get("reasoning_content") or ""
            out["finish"] = choice["finish_reason"] or out["finish"]
            for call in delta.get("tool_calls") or []:
                kept = out["calls"].setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
                kept["id"] += call.get("id") or ""
                kept["name"] += call["function"].get("name") or ""
                kept["arguments"] += call["function"]["arguments"]
    return out
