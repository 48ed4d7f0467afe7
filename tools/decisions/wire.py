"""What a turn knew as JSON that another version of the same types can read.

The types of two versions never meet in one process, so nothing here knows any of them: what a turn is made of
is read from the annotations of `decide`, in each process from its own version. A value on the wire is

* a number: the leaf that was sent under this number before,
* text: itself,
* `{"v": ...}`: a leaf as plain JSON,
* `{"f": {name: value}}`: the fields of a world, of a memory, or of a generic class like `Observed`,
* `{"m": [[key, value], ...]}`: a mapping in its order,
* a list: a tuple, item by item.

Leaves (a machine, a reading, a record) repeat from turn to turn: each is sent once. A field of a world or of
a memory that is the same as in the turn before is left out.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import orjson
from pydantic import TypeAdapter

LEAVES_KEPT = 50_000
"""Leaves that both ends keep at most; then they begin anew."""

PARTS = ("pool", "world", "memory")
"""What `decide` is given, in its order."""

Decide = Callable[[Any, Any, Any], Any]
Wire = Any


def dump(value: Any) -> bytes:
    """A value of any version as plain JSON; a mapping has text for keys."""
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, collections.abc.Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


class Encoder:
    """Turns values into what goes on the wire, for one `Decoder`.

    `inline`: every leaf is written out where it stands, so that what comes out can be read by itself.
    """

    def __init__(self, *, inline: bool = False) -> None:
        self._inline = inline
        self._begin()

    def _begin(self) -> None:
        self._anew = True
        self._numbers: dict[bytes, int] = {}
        self._known: dict[
            int, tuple[object, int]
        ] = {}  # by id(): the object, so that it stays, and its number
        self._last: dict[tuple[str, str], object] = {}
        self._fresh: dict[str, orjson.Fragment] = {}

    def turn(self, pool: object, world: object, memory: object) -> bytes:
        """What one call of `decide` is given."""
        if len(self._known) > LEAVES_KEPT or len(self._numbers) > LEAVES_KEPT:
            self._begin()
        anew, self._anew = self._anew, False
        parts = {"pool": self._leaf(pool), "world": self._fields("world", world)}
        parts["memory"] = self._fields("memory", memory)
        fresh, self._fresh = self._fresh, {}
        return orjson.dumps({"anew": anew, "fresh": fresh, "parts": parts})

    def _fields(self, part: str, value: Any) -> dict[str, Wire]:
        """The fields that are not the same as in the turn before."""
        found = {}
        for name in _names(type(value)):
            field = getattr(value, name)
            if (part, name) in self._last and self._last[part, name] is field:
                continue
            self._last[part, name] = field
            found[name] = self._value(field)
        return {"f": found}

    def _value(self, value: Any) -> Wire:
        if isinstance(value, str):
            return str(value)
        if value is None or isinstance(value, bool | int | float):
            return {"v": value}
        if isinstance(value, collections.abc.Mapping):
            return {"m": [[self._value(k), self._value(v)] for k, v in value.items()]}
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            return [self._value(item) for item in value]
        if dataclasses.is_dataclass(value) and _generic(type(value)):
            return {"f": {name: self._value(getattr(value, name)) for name in _names(type(value))}}
        return self._leaf(value)

    def _leaf(self, value: object) -> Wire:
        if self._inline:
            return {"v": orjson.Fragment(dump(value))}
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        text = dump(value)
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self._numbers)
            self._fresh[str(number)] = orjson.Fragment(text)
        self._known[id(value)] = value, number
        return number


class Unreadable(ValueError):
    """A turn that this version's types cannot hold. The message says what is wrong."""


class Decoder:
    """Reads what an `Encoder` wrote, as the types that `decide` of this process is annotated with."""

    def __init__(self, decide: Decide) -> None:
        self._hints = parts_of(decide)
        self._begin()

    def _begin(self) -> None:
        self._leaves: dict[int, Any] = {}
        self._read: dict[tuple[int | str, Any], Any] = {}
        self._fields: dict[str, dict[str, Any]] = {part: {} for part in PARTS}

    def turn(self, message: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Pool, world and memory. Raises Unreadable."""
        if message["anew"]:
            self._begin()
        self._leaves.update((int(number), leaf) for number, leaf in message["fresh"].items())
        wires = message["parts"]
        try:
            pool = self._value(wires["pool"], self._hints["pool"])
            return pool, self._part("world", wires["world"]), self._part("memory", wires["memory"])
        except (ValueError, TypeError, KeyError) as error:
            raise Unreadable(" ".join(str(error).split())) from error

    def _part(self, part: str, wire: Mapping[str, Any]) -> Any:
        """A world or a memory; a field that is not on the wire is the one of the turn before."""
        kind, known = self._hints[part], self._fields[part]
        hints = _hints(kind)
        for name, field in wire["f"].items():
            if name in hints:
                try:
                    known[name] = self._value(field, hints[name])
                except (ValueError, TypeError, KeyError) as error:
                    known[name] = error  # as long as it stays so, no turn can be read
        for value in known.values():
            if isinstance(value, Exception):
                raise value
        return kind(**known)

    def _value(self, wire: Wire, hint: Any) -> Any:
        if isinstance(wire, int):
            return self._leaf(wire, hint)
        if isinstance(wire, str):
            return wire if hint is str else self._leaf(wire, hint)
        origin, args = get_origin(hint), get_args(hint)
        if isinstance(wire, list) and origin is tuple and len(args) == 2 and args[1] is Ellipsis:
            return tuple(self._value(item, args[0]) for item in wire)
        if isinstance(wire, dict) and "m" in wire and origin is collections.abc.Mapping:
            return {self._value(k, args[0]): self._value(v, args[1]) for k, v in wire["m"]}
        if isinstance(wire, dict) and "f" in wire and dataclasses.is_dataclass(origin):
            hints = _hints(hint)
            return origin(**{n: self._value(v, hints[n]) for n, v in wire["f"].items() if n in hints})
        return _adapter(hint).validate_python(self._json(wire))

    def _leaf(self, name: int | str, hint: Any) -> Any:
        key = name, hint
        if key not in self._read:
            self._read[key] = _adapter(hint).validate_python(self._json(name))
        return self._read[key]

    def _json(self, wire: Wire) -> Any:
        return plain(wire, self._leaves)


def plain(wire: Wire, leaves: Mapping[int, Any]) -> Any:
    """What is on the wire as plain JSON, its mappings with text for keys."""
    if isinstance(wire, int):
        return leaves[wire]
    if isinstance(wire, list):
        return [plain(item, leaves) for item in wire]
    if not isinstance(wire, dict):
        return wire
    if "v" in wire:
        return wire["v"]
    if "f" in wire:
        return {name: plain(value, leaves) for name, value in wire["f"].items()}
    pairs = ((plain(k, leaves), plain(v, leaves)) for k, v in wire["m"])
    return {k if isinstance(k, str) else orjson.dumps(k).decode(): v for k, v in pairs}


# -- types -----------------------------------------------------------------------------------------


def parts_of(decide: Decide) -> dict[str, Any]:
    """The types of what `decide` is given, by `PARTS`."""
    hints = get_type_hints(decide)
    hints.pop("return", None)
    return dict(zip(PARTS, hints.values(), strict=True))


def schema(decide: Decide) -> set[str]:
    """Every field of what `decide` is given, as a path: "world.regions.value.state"."""
    return {path for part, hint in parts_of(decide).items() for path in _paths(hint, part, 0)}


def _paths(hint: Any, path: str, depth: int) -> Iterator[str]:
    if depth > 12:
        raise ValueError(f"{path}: its types do not end")
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint if isinstance(hint, type) else origin):
        for name, inner in _hints(hint).items():
            yield f"{path}.{name}"
            yield from _paths(inner, f"{path}.{name}", depth + 1)
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        yield from (f"{path}={member.value}" for member in hint)
    else:
        for inner in get_args(hint):
            if inner not in (Ellipsis, NoneType):
                yield from _paths(inner, path, depth + 1)


@cache
def _hints(hint: Any) -> dict[str, Any]:
    """The types of a dataclass's fields; of a generic one with its arguments in their places."""
    origin = get_origin(hint) or hint
    hints = get_type_hints(origin)
    places = dict(zip(getattr(origin, "__parameters__", ()), get_args(hint), strict=False))
    return {f.name: _placed(hints[f.name], places) for f in dataclasses.fields(origin) if f.init}


def _placed(hint: Any, places: Mapping[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return places.get(hint, hint)
    left = getattr(hint, "__parameters__", ())
    return hint[tuple(places.get(each, each) for each in left)] if left else hint


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.init)


@cache
def _generic(kind: type) -> bool:
    return bool(getattr(kind, "__parameters__", ()))


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
