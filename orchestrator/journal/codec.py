"""Journal records and memory snapshots as JSON, and back.

Encoding is orjson's reading of dataclasses; decoding goes through pydantic, so that a record written by hand
or by an older version fails with a sentence instead of becoming a half-built value.
"""

from __future__ import annotations

import collections.abc
import dataclasses
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import orjson
from pydantic import TypeAdapter, ValidationError

from policies import events as event_types
from policies.events import Event
from policies.memory import Memory

EVENT_TYPES: dict[str, type] = {kind.__name__: kind for kind in get_args(event_types.Event)}
"""Event classes by the name that the journal stores."""


class UnknownRecord(ValueError):
    """A journal record that this version cannot read."""


def encode(value: Any) -> bytes:
    """A dataclass (or anything orjson knows) as compact JSON.

    Text from outside may hold what UTF-8 cannot (half of a surrogate pair in a forged notice); such
    characters become question marks: a bad message must not stop the journal.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        return orjson.dumps(_printable(value), option=orjson.OPT_NON_STR_KEYS)


def printable(text: str) -> str:
    """The text as far as UTF-8 and every database can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def decode_event(kind: str, body: bytes) -> Event:
    """A stored event. Raises UnknownRecord with what is wrong."""
    if kind not in EVENT_TYPES:
        raise UnknownRecord(f"event kind {kind!r} is not known to this version")
    try:
        value: Event = _adapter(EVENT_TYPES[kind]).validate_python(orjson.loads(body))
    except (ValidationError, orjson.JSONDecodeError) as error:
        raise UnknownRecord(f"event {kind} cannot be read: {error}") from error
    return value


def encode_memory(memory: Memory) -> bytes:
    """A snapshot of memory; mappings become lists of pairs, since some keys are placements."""
    return encode({f.name: _pairs(getattr(memory, f.name)) for f in dataclasses.fields(memory)})


def decode_memory(body: bytes) -> Memory:
    """A snapshot. Raises UnknownRecord with what is wrong."""
    try:
        stored = orjson.loads(body)
        if not isinstance(stored, dict):
            raise ValueError(f"an object belongs here, not {type(stored).__name__}")
        fields: dict[str, Any] = {}
        for name, hint in get_type_hints(Memory).items():
            if name not in stored:
                continue
            if get_origin(hint) is collections.abc.Mapping:
                key, value = (_adapter(kind) for kind in get_args(hint))
                fields[name] = {key.validate_python(k): value.validate_python(v) for k, v in stored[name]}
            else:
                fields[name] = _adapter(hint).validate_python(stored[name])
        return Memory(**fields)
    except (ValueError, TypeError, AttributeError) as error:
        raise UnknownRecord(f"the memory snapshot cannot be read: {error}") from error


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _printable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, collections.abc.Mapping):
        return {_printable(k): _printable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(v) for v in value]
    return value


def _pairs(value: Any) -> Any:
    return list(value.items()) if isinstance(value, collections.abc.Mapping) else value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
