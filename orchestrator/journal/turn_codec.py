"""Recorded turns as bytes, and back: what a turn saw (the world) and what it decided (the plan).

Worlds repeat themselves: machines, addresses and prices seldom change, requests in flight always do. So each
list of a world is a table whose columns are stored one by one, by content: a column that did not change since
it was stored costs its name. Short columns stay in the turn's own body.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

import orjson
from pydantic import TypeAdapter, ValidationError

from orchestrator.journal.codec import UnknownRecord, encode
from policies.actions import Plan
from policies.gpu_readings import GpuState
from policies.grant import Grant
from policies.held import AdapterUse
from policies.model import (
    EVERYWHERE,
    EngineReading,
    Instance,
    Observed,
    Offering,
    Pool,
    Target,
    TargetSpec,
    World,
)
from policies.service import Service

T = TypeVar("T")

INLINE = 512
"""Bytes of JSON up to which a column stays in the turn's body: of a small pool everything does."""

_DIGEST_BYTES = 12
_PART = "part"


class Packer:
    """Turns worlds and plans into bodies and parts. Remembers what is stored already, so as not to repeat it.

    `forget` when that is not sure any more, or when another recording begins: parts belong to one.
    """

    def __init__(self) -> None:
        self._stored: set[bytes] = set()
        self._tables: dict[str, tuple[object, dict[str, Any]]] = {}
        self._fresh: dict[bytes, bytes] = {}

    def forget(self) -> None:
        """Nothing is stored yet."""
        self._stored.clear()
        self._tables.clear()

    def pack(self, world: World, plan: Plan | Failure) -> tuple[bytes, dict[bytes, bytes]]:
        """The body of a turn, and the parts that it needs and that were not packed before."""
        self._fresh = {}
        body = encode(
            {
                "now": world.now,
                "durable": world.durable,
                "leading": world.leading,
                "failsafe_since": world.failsafe_since,
                "grant": world.grant,
                "epoch": world.epoch,
                "awake_since": world.awake_since,
                "regions": {
                    name: self._observed(f"region {name}", view, Instance)
                    for name, view in world.regions.items()
                },
                "offerings": {
                    part: self._observed(f"offerings {part}", view, Offering)
                    for part, view in world.offerings.items()
                },
                "balancers": {
                    name: self._observed(f"balancer {name}", view, Target)
                    for name, view in world.balancers.items()
                },
                "services": world.services,
                "writing": world.writing,
                "heard": world.heard,
                "adapter_use": world.adapter_use,
                "readings": self._table(
                    "engines", world.engines, EngineReading, list(world.engines.values())
                ),
                "engines": self._column(list(world.engines)),
                "gpu_states": self._table("gpus", world.gpus, GpuState, list(world.gpus.values())),
                "gpus": self._column(list(world.gpus)),
                "plan": plan if isinstance(plan, Failure) else self._plan(plan),
            }
        )
        fresh, self._fresh = self._fresh, {}
        return zlib.compress(body, 6), fresh

    def _plan(self, plan: Plan) -> dict[str, Any]:
        return {
            "actions": [_exact(a) for a in plan.actions],
            "targets": self._table("plan", plan.targets, TargetSpec, [*map(_exact, plan.targets)]),
            "write": plan.write,
            "deferred": plan.deferred,
            "notes": plan.notes,
        }

    def _observed(self, name: str, view: Observed[Any], kind: type) -> dict[str, Any]:
        rows = self._table(name, view.value, kind, view.value)
        instants = {"at": view.at, "since": view.since, "failing_since": view.failing_since}
        return {"error": view.error, "rows": rows, **instants}

    def _table(self, name: str, source: object, kind: type, rows: Collection[Any]) -> dict[str, Any]:
        """Rows by column. `source` is the object that they come from: the same one has the same rows."""
        known = self._tables.get(name)
        if known is not None and known[0] is source:
            return known[1]
        table: dict[str, Any] = {
            field.name: self._column([getattr(row, field.name) for row in rows]) for field in fields(kind)
        }
        self._tables[name] = (source, table)
        return table

    def _column(self, values: list[Any]) -> Any:
        text = encode(values)
        if len(text) <= INLINE:
            return values
        digest = hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()
        if digest not in self._stored:
            self._stored.add(digest)
            self._fresh[digest] = zlib.compress(text, 1)
        return {_PART: digest.hex()}


class Unpacker:
    """Reads the bodies of one recording. `part` gives a part by its digest, or None when there is none."""

    def __init__(self, part: Callable[[bytes], bytes | None]) -> None:
        self._part = part
        self._columns: dict[str, list[Any]] = {}
        self._rows: dict[tuple[Any, ...], Any] = {}

    def unpack(self, body: bytes) -> tuple[World, dict[str, Any]]:
        """The world of a turn, and its plan (or Failure) as JSON has it.

        Raises UnknownRecord with what is wrong.
        """
        try:
            stored = orjson.loads(zlib.decompress(body))
            engines = self._values(stored["engines"])
            readings = self._read(stored["readings"], EngineReading)
            world = World(
                now=float(stored["now"]),
                durable=bool(stored["durable"]),
                leading=bool(stored["leading"]),
                failsafe_since=_instant(stored.get("failsafe_since")),  # older journals do not have it
                grant=_adapter(Grant | None).validate_python(stored.get("grant")),  # older journals have none
                epoch=int(stored["epoch"]),
                awake_since=float(stored.get("awake_since", 0.0)),  # older journals do not have it
                regions=self._regions(stored),
                offerings={p: self._view(v, Offering) for p, v in _parts(stored["offerings"]).items()},
                balancers={n: self._view(v, Target) for n, v in stored["balancers"].items()},
                services=_adapter(dict[str, Service]).validate_python(stored.get("services", {})),
                writing={n: tuple(map(str, nodes)) for n, nodes in stored.get("writing", {}).items()},
                gpus=self._gpus(stored),
                heard={n: _instant(at) for n, at in stored.get("heard", {}).items()},
                adapter_use=_adapter(dict[str, AdapterUse]).validate_python(stored.get("adapter_use", {})),
                engines=dict(zip(engines, readings, strict=True)),
            )
            plan: dict[str, Any] = stored["plan"]
            if "raised" not in plan:
                # Older journals have neither builds nor adapters.
                plan["targets"] = [
                    row | {"build": row.get("build", ""), "adapters": row.get("adapters", [])}
                    for row in self._json_rows(plan["targets"])
                ]
        except (
            zlib.error,
            orjson.JSONDecodeError,
            ValidationError,
            ValueError,
            TypeError,
            KeyError,
        ) as error:
            raise UnknownRecord(f"the recorded turn cannot be read: {error!r}") from error
        return world, plan

    def _regions(self, stored: Mapping[str, Any]) -> dict[str, Observed[tuple[Instance, ...]]]:
        """The lists of machines. Older journals have one of all regions."""
        lists = stored["regions"] if "regions" in stored else {EVERYWHERE: stored["instances"]}
        return {name: self._view(view, Instance) for name, view in lists.items()}

    def _gpus(self, stored: Mapping[str, Any]) -> dict[str, GpuState]:
        """What was known of GPUs. Older journals do not say."""
        if "gpus" not in stored:
            return {}
        nodes, states = self._values(stored["gpus"]), self._read(stored["gpu_states"], GpuState)
        return dict(zip(nodes, states, strict=True))

    def _view(self, stored: Mapping[str, Any], kind: type[T]) -> Observed[tuple[T, ...]]:
        at, since, failing = (_instant(stored.get(n)) for n in ("at", "since", "failing_since"))
        rows = self._read(stored["rows"], kind)
        return Observed(value=rows, at=at, error=stored["error"], since=since, failing_since=failing)

    def _read(self, table: Mapping[str, Any], kind: type[T]) -> tuple[T, ...]:
        key = (kind, *((n, c[_PART]) for n, c in table.items() if isinstance(c, dict)))
        whole = len(key) == len(table) + 1  # every column is a part: the same parts, the same rows
        if whole and key in self._rows:
            known: tuple[T, ...] = self._rows[key]
            return known
        rows: tuple[T, ...] = _adapter(tuple[kind, ...]).validate_python(self._json_rows(table))  # type: ignore[valid-type]
        if whole:
            self._rows[key] = rows
        return rows

    def _json_rows(self, table: Mapping[str, Any]) -> list[dict[str, Any]]:
        columns = [self._values(column) for column in table.values()]
        return [dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)]

    def _values(self, column: Any) -> list[Any]:
        if isinstance(column, list):
            return column
        digest: str = column[_PART]
        if digest not in self._columns:
            body = self._part(bytes.fromhex(digest))
            if body is None:
                raise ValueError(f"its part {digest} is missing")
            self._columns[digest] = orjson.loads(zlib.decompress(body))
        return self._columns[digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Instead of a plan: `decide` raised, and what."""

    raised: str


def _parts(offerings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parts of the prices; older journals have one without a name."""
    return {"": offerings} if "rows" in offerings else offerings


def failure(error: Exception) -> Failure:
    """What stands for the plan of a turn in which `decide` raised this."""
    return Failure(raised=f"{type(error).__name__}: {error}")


def canonical(plan: Plan | Failure) -> bytes:
    """A plan as bytes: two plans are the same when these are."""
    if isinstance(plan, Failure):
        return encode(plan)
    exact = replace(
        plan,
        actions=tuple(_exact(a) for a in plan.actions),
        targets=tuple(_exact(t) for t in plan.targets),
    )
    return encode(exact)


def _instant(stored: Any) -> float | None:
    return None if stored is None else float(stored)


def encode_pool(pool: Pool) -> bytes:
    """The wanted state of a pool."""
    return encode(pool)


def decode_pool(body: bytes) -> Pool:
    """The inverse of `encode_pool`. Raises UnknownRecord with what is wrong."""
    try:
        pool: Pool = _adapter(Pool).validate_python(orjson.loads(body))
    except (ValidationError, orjson.JSONDecodeError) as error:
        raise UnknownRecord(f"the recorded pool cannot be read: {error}") from error
    return pool


def _exact(value: T) -> T:
    """The same value with floats where floats belong: 5 and 5.0 are equal, but their JSON is not."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    whole = {name: float(v) for name in _floats(type(value)) if type(v := getattr(value, name)) is int}
    return replace(value, **whole) if whole else value


@cache
def _floats(kind: type) -> tuple[str, ...]:
    hints = get_type_hints(kind)
    return tuple(n for n, hint in hints.items() if hint is float or float in get_args(hint))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
