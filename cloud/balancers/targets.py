"""The target set as a document: what the daemon wants a gateway to route to.

It is the body of a push and, with a checksum around it (`targets_file`), the content of the file, so a
gateway that starts from the file and one that was pushed to hold the same set. The document names no gateway
process and no incarnation; it is the wanted state only. `generation` orders documents: a reader keeps the
highest one it has seen.

    {"schema": "targets/3", "generation": 7, "pool": "chat", "written_at": 1764000000.0,
     "targets": [{"id": "i-1", "address": "10.0.0.5:8000", "phase": "active", "weight": 100,
                  "drain_deadline": null, "build": "8f3a0c1d92",
                  "adapters": [{"name": "sql", "served_as": "sql@f9c12638", "number": null,
                                "revision": "f9c12638"}]}]}

Times are seconds since the epoch. `drain_deadline` is set only on draining targets. `build` stands for what
the node runs, empty where that is not known; what makes two of them equal is the daemon's affair. `adapters`
are those that the target gets requests for, see `policies.held.Held`: of several rows of one name the first
gets the new requests.

`targets/2` is the same without `adapters`, and `targets/1` without `build` either: what earlier versions
write and read. A gateway says in its state which schemas it reads, and the daemon writes the newest of those,
in the file too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import orjson

from policies.held import Held
from policies.model import TargetPhase, TargetSpec
from policies.value import replace

SCHEMA = "targets/3"
WITHOUT_ADAPTERS = "targets/2"
WITHOUT_BUILDS = "targets/1"
SCHEMAS = (WITHOUT_BUILDS, WITHOUT_ADAPTERS, SCHEMA)
"""What this version reads, oldest first."""

MAX_ADAPTERS = 1024
"""Rows of adapters of one target at most."""

MAX_NAME = 256
MAX_WEIGHT = 65535
MAX_ID = 128
MAX_BUILD = 128
MAX_GENERATION = (1 << 62) - 1
"""No daemon gets so far; balancers and JSON hold numbers of 64 bits."""

MAX_BYTES = 64 * 1024 * 1024
"""The longest document that is read, pushed or from a file."""

_TOP_KEYS = frozenset({"schema", "generation", "pool", "written_at", "targets"})
_FIELDS = tuple(field.name for field in fields(TargetSpec))
_OLD_KEYS = frozenset({"id", "address", "phase", "weight", "drain_deadline"})
_TARGET_KEYS = {
    WITHOUT_BUILDS: _OLD_KEYS,
    WITHOUT_ADAPTERS: _OLD_KEYS | {"build"},
    SCHEMA: _OLD_KEYS | {"build", "adapters"},
}
_HELD_KEYS = tuple(field.name for field in fields(Held))


class TargetsError(ValueError):
    """The document is not a valid target set. The message says where, what is there and what belongs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSet:
    """A wanted target set with its place in the order of sets. See the module for the fields.

    `schema` is the form in which it is, or was, written down.
    """

    generation: int
    pool: str
    written_at: float
    targets: tuple[TargetSpec, ...]
    schema: str = SCHEMA


def in_schema(spec: TargetSpec, schema: str) -> TargetSpec:
    """The target with nothing that this schema cannot say."""
    keys = _TARGET_KEYS[schema]
    left_out: dict[str, Any] = {"build": "", "adapters": ()}
    lost = {name: empty for name, empty in left_out.items() if name not in keys}
    return replace(spec, **lost) if lost else spec


def encode(document: TargetSet) -> bytes:
    """The document as one line of JSON. Raises TargetsError where `parse` would refuse the result."""
    _check_top(document.generation, document.pool, document.written_at)
    for position, spec in enumerate(document.targets):
        try:
            _spec(
                spec.id,
                spec.address,
                spec.phase.value,
                spec.weight,
                spec.drain_deadline,
                spec.build,
                tuple(_held_row(held) for held in spec.adapters),
            )
        except _Fault as fault:
            raise TargetsError(f"targets[{position}].{fault}") from None
        for name in ("build", "adapters"):
            if getattr(spec, name) and name not in _TARGET_KEYS[document.schema]:
                said = f"targets[{position}].{name}: {getattr(spec, name)!r}"
                raise TargetsError(f"{said}: {document.schema!r} has none")
    _unique(spec.id for spec in document.targets)
    body = {
        "schema": document.schema,
        "generation": document.generation,
        "pool": document.pool,
        "written_at": document.written_at,
        "targets": [_row(spec, _TARGET_KEYS[document.schema]) for spec in document.targets],
    }
    return orjson.dumps(body) + b"\n"


def parse(data: bytes) -> TargetSet:
    """Read a document strictly: a key too many, a wrong type or a repeated id is an error, never a guess.

    Raises TargetsError.
    """
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise TargetsError(f"target set is not JSON: {error}") from None
    return _document(body)


class _Fault(Exception):
    """What is wrong with one target, without its place in the list."""


def _document(body: Any) -> TargetSet:
    _object(body, "target set", _TOP_KEYS)
    schema = body["schema"]
    if schema not in SCHEMAS:
        raise TargetsError(f"schema: {schema!r}: this version reads {' and '.join(map(repr, SCHEMAS))}")
    generation, pool, written_at = body["generation"], body["pool"], body["written_at"]
    _check_top(generation, pool, written_at)
    rows = body["targets"]
    if not isinstance(rows, list):
        raise TargetsError(f"targets: {type(rows).__name__}: expected a list")
    targets = tuple(_target(row, position, _TARGET_KEYS[schema]) for position, row in enumerate(rows))
    _unique(spec.id for spec in targets)
    return TargetSet(
        generation=generation, pool=pool, written_at=float(written_at), targets=targets, schema=schema
    )


def _check_top(generation: Any, pool: Any, written_at: Any) -> None:
    if not _is_int(generation) or not 0 <= generation <= MAX_GENERATION:
        raise TargetsError(f"generation: {generation!r}: expected a whole number from 0 to {MAX_GENERATION}")
    if not isinstance(pool, str) or not pool:
        raise TargetsError(f"pool: {pool!r}: expected a non-empty string")
    if not _is_time(written_at):
        raise TargetsError(f"written_at: {written_at!r}: expected seconds since the epoch")


def _row(spec: TargetSpec, keys: frozenset[str]) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in _FIELDS if name in keys}


def _held_row(held: Held) -> tuple[Any, ...]:
    return tuple(getattr(held, name) for name in _HELD_KEYS)


def _held_rows(rows: Any) -> tuple[tuple[Any, ...], ...]:
    """The adapters of a row, each by its fields in order. Raises _Fault."""
    if not isinstance(rows, list) or len(rows) > MAX_ADAPTERS:
        raise _Fault(f"adapters: expected a list of at most {MAX_ADAPTERS}")
    found = []
    for position, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != set(_HELD_KEYS):
            raise _Fault(f"adapters[{position}]: expected an object with {', '.join(_HELD_KEYS)}")
        found.append(tuple(row[name] for name in _HELD_KEYS))
    return tuple(found)


def _target(row: Any, position: int, keys: frozenset[str]) -> TargetSpec:
    _object(row, f"targets[{position}]", keys)
    try:
        return _spec(
            row["id"],
            row["address"],
            row["phase"],
            row["weight"],
            row["drain_deadline"],
            row.get("build", ""),
            _held_rows(row.get("adapters", [])),
        )
    except _Fault as fault:
        raise TargetsError(f"targets[{position}].{fault}") from None
    except TypeError:  # a list or an object where a plain value belongs cannot be looked up
        raise TargetsError(f"targets[{position}]: expected plain values only") from None


@functools.lru_cache(maxsize=8192, typed=True)
def _spec(
    node: Any,
    address: Any,
    phase: Any,
    weight: Any,
    deadline: Any,
    build: Any,
    adapters: tuple[tuple[Any, ...], ...],
) -> TargetSpec:
    """One target, checked. Remembered, since most targets of a set are those of the set before.

    Raises _Fault.
    """
    if not isinstance(node, str) or not 0 < len(node) <= MAX_ID or not node.isprintable() or " " in node:
        raise _Fault(f"id: {node!r}: expected 1 to {MAX_ID} printable characters, no spaces")
    if not _is_address(address):
        raise _Fault(f"address: {address!r}: expected host:port, such as 10.0.0.5:8000 or [fd00::5]:8000")
    if not _is_int(weight) or not 0 <= weight <= MAX_WEIGHT:
        raise _Fault(f"weight: {weight!r}: expected a whole number from 0 to {MAX_WEIGHT}")
    try:
        wanted = TargetPhase(phase)
    except ValueError:
        known = ", ".join(phase.value for phase in TargetPhase)
        raise _Fault(f"phase: {phase!r}: expected one of {known}") from None
    if deadline is not None:
        if not _is_time(deadline):
            raise _Fault(f"drain_deadline: {deadline!r}: expected seconds since the epoch")
        if wanted is not TargetPhase.DRAINING:
            raise _Fault(f"drain_deadline: {deadline}: only a draining target has one")
        deadline = float(deadline)
    if not isinstance(build, str) or len(build) > MAX_BUILD or not build.isprintable() or " " in build:
        raise _Fault(f"build: {build!r}: expected up to {MAX_BUILD} printable characters, no spaces")
    return TargetSpec(
        id=node,
        address=address,
        phase=wanted,
        weight=weight,
        drain_deadline=deadline,
        build=build,
        adapters=_adapters(adapters),
    )


def _adapters(rows: tuple[tuple[Any, ...], ...]) -> tuple[Held, ...]:
    """The adapters of one target, checked. Raises _Fault."""
    found = tuple(_held(position, *row) for position, row in enumerate(rows))
    seen: set[tuple[str, str]] = set()
    for held in found:
        if (held.name, held.revision) in seen:
            raise _Fault(f"adapters: {held.name!r} of revision {held.revision!r} is listed twice")
        seen.add((held.name, held.revision))
    return found


def _held(position: int, name: Any, served_as: Any, number: Any, revision: Any) -> Held:
    where = f"adapters[{position}]"
    for field, word in (("name", name), ("served_as", served_as), ("revision", revision)):
        if not isinstance(word, str) or len(word) > MAX_NAME or not word.isprintable() or " " in word:
            raise _Fault(
                f"{where}.{field}: {word!r}: expected up to {MAX_NAME} printable characters, no spaces"
            )
    if not name:
        raise _Fault(f"{where}.name: {name!r}: expected a name")
    if number is not None and (not _is_int(number) or number < 0):
        raise _Fault(f"{where}.number: {number!r}: expected a whole number, zero or more, or null")
    if bool(served_as) is (number is not None):
        raise _Fault(f"{where}: expected either served_as or a number")
    return Held(name=name, served_as=served_as, number=number, revision=revision)


def _is_address(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]") and len(host) > 2
    plain = bool(host) and not any(sign in host for sign in ":[]/@?# \t\r\n%")
    well_formed = bool(colon) and (plain or bracketed) and port.isascii() and port.isdigit()
    return well_formed and 0 < int(port) <= 65535


def _object(value: Any, where: str, keys: frozenset[str]) -> None:
    if not isinstance(value, dict):
        raise TargetsError(f"{where}: {type(value).__name__}: expected an object")
    if value.keys() != keys:
        missing = ", ".join(sorted(keys - value.keys()))
        unknown = ", ".join(sorted(map(str, value.keys() - keys)))
        faults = [f"missing {missing}"] if missing else []
        faults += [f"unknown {unknown}"] if unknown else []
        raise TargetsError(f"{where}: {' and '.join(faults)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unique(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for node in ids:
        if node in seen:
            raise TargetsError(f"targets: id {node!r} is listed twice")
        seen.add(node)
