"""Good answers of a node, for every dialect: each names the request that it answers.

A request carries a marker, `q` and eight hex digits. Texts, vectors, counts and sounds are made of it, so an
answer that went to another request, lost a part or has one twice differs from what its client expects.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_MARKER = re.compile(rb"q[0-9a-f]{8}")
DONE = b"data: [DONE]\n\n"
VECTORS = 2  # that each embeddings request asks for
_HEAD = {"id": "x-1", "created": 1, "model": "m"}
RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": [],
    "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
}  # fmt: skip
_USAGE = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}


def marker_of(body: bytes) -> str:
    """The marker of a request, empty where it has none."""
    found = _MARKER.search(body)
    return found.group().decode() if found else ""


def pieces(marker: str) -> list[str]:
    """The tokens of the text that answers a request; letters of two bytes and a quoted key among them."""
    return [marker, " says:", " Grüße", ' "finish_reason"', " one", " two", " three"]


def text_of(marker: str) -> str:
    """The whole text."""
    return "".join(pieces(marker))


def arguments_of(marker: str) -> str:
    """The arguments of the tool call that answers a request with tools."""
    return json.dumps({"city": marker, "days": 3})


def vectors_of(marker: str) -> list[list[float]]:
    """One vector for each input."""
    digits = [float(int(digit, 16)) for digit in marker[1:]]
    return [[float(number), *digits] for number in range(VECTORS)]


def count_of(marker: str) -> int:
    """Tokens of the prompt, as a tokenizer would count them."""
    return 1 + int(marker[1:], 16) % 1000


def sound_of(marker: str) -> bytes:
    """A recording."""
    return f"RIFF{marker}".encode() * 50


@dataclass(frozen=True, slots=True)
class Script:
    """What a good node sends: `events` of a stream, or a plain `body` of this content type."""

    kind: str = "application/json"
    body: bytes = b""
    events: tuple[bytes, ...] = ()


def script_for(path: str, body: bytes) -> Script | None:
    """The good answer to a request; None for a path that such a node does not have."""
    make = _BY_PATH.get(path.partition("?")[0])
    fields = json.loads(body) if body.startswith(b"{") else {}
    return None if make is None else make(marker_of(body), fields)


def event(value: Any, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> bytes:
    """One event of a chat stream."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event({**_HEAD, "object": "chat.completion.chunk", "choices": [choice]})


def point_of(data: bytes) -> str:
    """Which point of a stream an event is: role, text, finish, usage or done."""
    if b"data: [DONE]" in data:
        return "done"
    value = json.loads(data.partition(b"data: ")[2])
    if "type" in value:
        return {"response.output_text.delta": "text", "response.completed": "finish"}.get(
            value["type"], "role"
        )
    if not value["choices"]:
        return "usage"
    choice = value["choices"][0]
    if choice["finish_reason"]:
        return "finish"
    if "delta" in choice:
        said = choice["delta"].get("content") or choice["delta"].get("tool_calls")
    else:
        said = choice.get("text", choice.get("token_ids"))
    return "text" if said else "role"


def _plain(value: Any) -> Script:
    return Script(body=json.dumps(value).encode())


def _stream(events: list[bytes]) -> Script:
    return Script(kind="text/event-stream; charset=utf-8", events=tuple(events))


def _usage(fields: dict[str, Any], kind: str) -> list[bytes]:
    if not (fields.get("stream_options") or {}).get("include_usage"):
        return []
    return [event({**_HEAD, "object": kind, "choices": [], "usage": _USAGE})]


def _call(marker: str) -> list[dict[str, Any]]:
    """The pieces of a tool call: its name, then its arguments bit by bit."""
    said = arguments_of(marker)
    first = {"index": 0, "id": f"call-{marker}", "type": "function"}
    cuts = [said[at : at + 9] for at in range(0, len(said), 9)]
    head = {**first, "function": {"name": "look", "arguments": ""}}
    return [head, *({"index": 0, "function": {"arguments": part}} for part in cuts)]


def _chat(marker: str, fields: dict[str, Any]) -> Script:
    tools = bool(fields.get("tools"))
    finish = "tool_calls" if tools else "stop"
    if not fields.get("stream"):
        message: dict[str, Any] = {"role": "assistant", "content": None if tools else text_of(marker)}
        if tools:
            function = {"name": "look", "arguments": arguments_of(marker)}
            message["tool_calls"] = [{"id": f"call-{marker}", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return _plain({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE})
    if tools:
        said = [chunk({"tool_calls": [part]}) for part in _call(marker)]
    else:
        said = [chunk({"content": piece}) for piece in pieces(marker)]
    events = [chunk({"role": "assistant", "content": ""}), *said, chunk({}, finish)]
    return _stream([*events, *_usage(fields, "chat.completion.chunk"), DONE])


def _completions(marker: str, fields: dict[str, Any]) -> Script:
    def row(text: str, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        return {**_HEAD, "object": "text_completion", "choices": [choice]}

    if not fields.get("stream"):
        return _plain({**row(text_of(marker), "stop"), "usage": _USAGE})
    events = [*(event(row(piece, None)) for piece in pieces(marker)), event(row("", "stop"))]
    return _stream([*events, *_usage(fields, "text_completion"), DONE])


def _embeddings(marker: str, fields: dict[str, Any]) -> Script:
    data = [
        {"object": "embedding", "index": number, "embedding": vector}
        for number, vector in enumerate(vectors_of(marker))
    ]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return _plain({"object": "list", "model": "m", "data": data, "usage": usage})


def _responses(marker: str, fields: dict[str, Any]) -> Script:
    part = {"type": "output_text", "text": text_of(marker), "annotations": []}
    message = {"id": "i-1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    whole = {**RESPONSE, "status": "completed", "output": [message]}
    if not fields.get("stream"):
        return _plain(whole)
    begun = {**RESPONSE, "status": "in_progress"}
    at = {"item_id": "i-1", "output_index": 0, "content_index": 0, "logprobs": []}
    values: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        *({"type": "response.output_text.delta", **at, "delta": piece} for piece in pieces(marker)),
        {"type": "response.completed", "response": whole},
    ]
    return _stream(
        [event({**value, "sequence_number": at}, value["type"]) for at, value in enumerate(values)]
    )


def _tokenize(marker: str, fields: dict[str, Any]) -> Script:
    count = count_of(marker)
    return _plain({"count": count, "max_model_len": 8192, "tokens": list(range(count)), "token_strs": None})


def _rerank(marker: str, fields: dict[str, Any]) -> Script:
    scores = [vector[1] for vector in vectors_of(marker)]
    results = [
        {"index": number, "document": {"text": marker}, "relevance_score": score}
        for number, score in enumerate(scores)
    ]
    return _plain({"id": "rerank-1", "model": "m", "usage": {"total_tokens": 3}, "results": results})


def _speech(marker: str, fields: dict[str, Any]) -> Script:
    return Script(kind="audio/mpeg", body=sound_of(marker))


def _transcription(marker: str, fields: dict[str, Any]) -> Script:
    return _plain({"text": text_of(marker), "usage": {"type": "duration", "seconds": 1}})


def _file(marker: str, fields: dict[str, Any]) -> Script:
    row = {"id": f"file-{marker}", "object": "file", "bytes": 3, "created_at": 1, "filename": "a.jsonl"}
    return _plain({**row, "purpose": "batch", "status": "processed"})


_BY_PATH = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/embeddings": _embeddings,
    "/v1/responses": _responses,
    "/tokenize": _tokenize,
    "/v1/rerank": _rerank,
    "/v1/audio/speech": _speech,
    "/v1/audio/transcriptions": _transcription,
    "/v1/files": _file,
}
