"""What a request asks for, read once: its body is parsed here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import orjson

from orchestrator.gateway.dialects import Dialect, Unfit
from orchestrator.gateway.dialects.rules import items, number
from orchestrator.gateway.dialects.table import row_of

__all__ = ["Asked", "Unfit", "ask"]

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})  # RFC 9110, 9.2.2: may be repeated
_STORES = frozenset({"responses", "files", "batches"})
_YES = frozenset({"1", "on", "t", "true", "y", "yes"})
_STORED_FIELDS = ("previous_response_id", "input_file_id")
_FORM_FIELD = re.compile(rb'\bname="?(?P<name>\w+)"?')
_LONGEST_FIELD = 1024  # bytes of a form field that is read
_BYTES_OF_A_TOKEN = 4
_USUAL_ANSWER = 512  # tokens, where a request has no limit
_LIMITS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "chat": (("max_tokens", "max_completion_tokens"), ("n_predict",)),
    "completions": (("max_tokens",), ("max_completion_tokens", "n_predict")),
    "messages": (("max_tokens",), ()),
    "responses": (("max_output_tokens",), ("max_tokens", "max_completion_tokens", "n_predict")),
}
"""The fields that limit an answer, by dialect: those that every engine heeds, the first of which is set where
there is none, and those that some do (llama.cpp) before the others."""

_MODEL_FIELD = re.compile(
    rb'(\r\n[Cc]ontent-[Dd]isposition:[^\r\n]*?\bname="?model"?(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n)'
    rb"([^\r\n]{0,1024})(?=\r\n--)"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read once."""

    dialect: Dialect
    path: str  # as the client sent it, without the query
    query: str
    raw: bytes  # the body as it came
    inner: dict[str, Any] | None
    """What goes to the engine, JSON in OpenAI's form; None where the body is no JSON object."""
    inner_path: str  # where it goes, with the query
    model: str  # empty where none is named
    stream: bool
    choices: int  # answers asked for: n for each prompt
    max_tokens: int | None
    tools: bool
    repeatable: bool  # it may run twice
    stored: str | None  # id of a thing that only the node which made it has
    unfit: Unfit | None = None
    """Why no engine can have it: it says something that OpenAI's form has no words for."""

    @property
    def texts(self) -> int:
        """Answers asked for; 0 where what comes is no text."""
        return self.choices if self.dialect.name in _LIMITS else 0

    @property
    def tokens(self) -> int:
        """Roughly how many tokens it has and may bring, by its bytes and its limit."""
        answer = _USUAL_ANSWER if self.max_tokens is None else self.max_tokens
        return len(self.raw) // _BYTES_OF_A_TOKEN + answer * self.texts

    def named(self, model: str) -> Asked:
        """The same request for another model, where its body names one in a place known here."""
        if self.inner is None:
            raw = _form_named(self.raw, model) if self.model else self.raw
            return replace(self, raw=raw, model=model)
        return replace(self.having({"model": model}), model=model)

    def having(self, fields: Mapping[str, Any]) -> Asked:
        """The same request with these fields, where its body has any."""
        if self.inner is None:
            return self
        inner = {**self.inner, **fields}
        raw = self.raw if self.dialect.translate is not None else orjson.dumps(inner)
        return replace(self, raw=raw, inner=inner)

    def limited(self, most: int) -> Asked:
        """The same request with a limit of tokens, where it has none and its dialect knows one."""
        if self.dialect.name not in _LIMITS or self.inner is None or self.max_tokens is not None:
            return self
        heeded, others = _LIMITS[self.dialect.name]
        kept = {name: value for name, value in self.inner.items() if name not in (*heeded, *others)}
        inner = {**kept, heeded[0]: most}
        raw = self.raw if self.dialect.translate is not None else orjson.dumps(inner)
        return replace(self, raw=raw, inner=inner, max_tokens=most)

    def body(self) -> bytes:
        """The body for the engine: as it came, unless it was translated."""
        if self.dialect.translate is None or self.inner is None:
            return self.raw
        return orjson.dumps(self.inner)


def ask(
    method: str, raw_path: str, content_type: str, body: bytes, allow_paths: tuple[str, ...] = ()
) -> Asked:
    """Read a request. `raw_path` is as sent, with its query; `allow_paths` are served beside the table.

    Raises Unfit: 404 for a path that is not served, 400 for a body that is no JSON object where the dialect
    asks for one. What a translation cannot carry is left in `unfit`: a backend may need none.
    """
    path, _, query = raw_path.partition("?")
    dialect = row_of(method, path, allow_paths)
    posted = method == "POST"
    fields = _fields(dialect, content_type, body) if posted else None
    unfit: Unfit | None = None
    try:
        inner, inner_path = _inner(dialect, fields, raw_path)
    except Unfit as found:
        inner, inner_path, unfit = None, raw_path, found
    told = inner or fields or (_form(content_type, body) if posted else {})
    stream = dialect.streams and _truth(told.get("stream"))
    return Asked(
        dialect=dialect,
        path=path,
        query=query,
        raw=body,
        inner=inner,
        inner_path=inner_path,
        model=_text(told.get("model")),
        stream=stream,
        choices=_choices(told),
        max_tokens=_limit(dialect, told),
        tools=bool(told.get("tools")),
        repeatable=dialect.repeats(inner) if posted else method in _SAFE_METHODS,
        stored=_stored_in_path(path) or _stored_in_body(told, body),
        unfit=unfit,
    )


def _fields(dialect: Dialect, content_type: str, body: bytes) -> dict[str, Any] | None:
    """The body as a JSON object; None where it is none and need not be."""
    if not dialect.json and "json" not in content_type:
        return None
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if dialect.json:
            raise Unfit(400, "bad_json", f"the request body is no JSON: {error}") from None
        return None
    if isinstance(fields, dict):
        return fields
    if dialect.json:
        raise Unfit(400, "bad_json", "the request body is no JSON object")
    return None


def _inner(
    dialect: Dialect, fields: dict[str, Any] | None, raw_path: str
) -> tuple[dict[str, Any] | None, str]:
    if fields is None or dialect.translate is None:
        return fields, raw_path
    return dialect.translate(fields), dialect.engine_path


def _choices(fields: dict[str, Any]) -> int:
    """Answers asked for: `n` for each prompt. A list of token ids is one prompt, so is one conversation."""
    prompts = items(fields.get("prompt")) + items(fields.get("prompt_embeds"))
    messages = fields.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[0], list):
        prompts = len(messages)
    return max(prompts, 1) * (number(fields.get("n")) or 1)


def _limit(dialect: Dialect, fields: dict[str, Any]) -> int | None:
    """The most tokens to generate, None where a request sets no limit, or one that is no count.

    Of several limits it is the greatest: engines differ in which of them they obey.
    """
    heeded, others = _LIMITS.get(dialect.name, ((), ()))
    said = {name: number(fields[name]) for name in (*heeded, *others) if fields.get(name) is not None}
    counts = [count for count in said.values() if count is not None]
    if len(counts) < len(said) or said.keys().isdisjoint(heeded):
        return None
    return max(counts)


def _truth(value: Any) -> bool:
    """A boolean as engines read it: pydantic takes 1, "true", "yes" and the like too."""
    return value.strip().lower() in _YES if isinstance(value, str) else value in (True, 1)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _stored_in_path(path: str) -> str | None:
    """ID of `/v1/responses/ID`, `/v1/files/ID/content` and the like."""
    segments = path.split("/", 4)
    return unquote(segments[3]) if len(segments) > 3 and unquote(segments[2]) in _STORES else None


def _stored_in_body(fields: dict[str, Any], body: bytes) -> str | None:
    for name in _STORED_FIELDS:
        if isinstance(found := fields.get(name), str) and found:
            return found
    return _file_id(fields) if b'"file_id"' in body else None


def _file_id(value: Any) -> str | None:
    """The first `file_id` anywhere in a body, which is as deep as the parser allows at most."""
    inside = [value]
    while inside:
        value = inside.pop()
        if isinstance(value, dict):
            if isinstance(found := value.get("file_id"), str):
                return found
            inside.extend(value.values())
        elif isinstance(value, list):
            inside.extend(value)
    return None


def _form(content_type: str, body: bytes) -> dict[str, str]:
    """The short text fields of a multipart form (RFC 7578), empty for any other body."""
    kind, _, rest = content_type.partition("boundary=")
    if not kind.lower().startswith("multipart/form-data") or not rest:
        return {}
    line = b"--" + rest.partition(";")[0].strip().strip('"').encode()
    fields: dict[str, str] = {}
    start = body.find(line) + len(line)
    while (end := body.find(line, start)) >= 0:
        head, blank, value = body[start : min(end, start + 2 * _LONGEST_FIELD)].partition(b"\r\n\r\n")
        name = _FORM_FIELD.search(head)
        if blank and name and b"filename" not in head and len(value) <= _LONGEST_FIELD:
            fields[name["name"].decode()] = value.decode("utf-8", "replace").strip()
        start = end + len(line)
    return fields


def _form_named(body: bytes, model: str) -> bytes:
    """A multipart form with another value in its field `model`, and nothing else changed."""
    return _MODEL_FIELD.sub(lambda found: found[1] + model.encode(), body, count=1)
