"""Memory after the clock was set back: nothing that it remembers lies in the future.

What it decides: what a daemon makes of instants that are later than its own start.
Why: the journal outlives a wrong clock. A call asked "tomorrow" would be asked again only after tomorrow, a
drain that began then would end then, and a refusal would never decay.
Never: a deadline that the cloud named is changed; it is the cloud's own time, not ours.

Example: the host's clock was a day ahead and is right again: an open launch counts as asked just now, and a
drain that had 20 s left of its budget has it still.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from policies.records import AdapterRecord, DrainRecord, Memory, NodeRecord, Pause, StateRecord
from policies.value import replace

T = TypeVar("T")

_INSTANTS = frozenset(
    [
        *("accepted_at", "asked_at", "at", "back_at", "bad_at", "denied_at", "detached_at"),
        *("drained_at", "gone_at"),
        *("idle_since", "launched_at", "losing_since", "lost_at", "missing_since", "opened_at", "ready_at"),
        *("replaced_at", "resumed_at", "seen_at"),
        *("served_at", "since", "spot_lost_at", "started_at", "whole_at"),
    ]
)
"""Fields of records that hold an instant which is over."""


_RECORDS = (
    *("intents", "refusals", "reclaims", "boot_failures", "bars", "swaps", "early_notices", "early_requests"),
    *("zones", "parts", "prices", "fallbacks", "condemned", "failed_boots", "starts"),
    *("quota_at", "ended", "launches", "failing"),
)
"""Fields of memory that hold records with such instants, or instants, by key or in a row."""


def not_in_future(memory: Memory, now: float) -> Memory:
    """The same memory with every instant that is over at `now` at the latest. Linear in its size."""
    return replace(
        _past(memory, now),
        nodes={k: _node(r, now) for k, r in memory.nodes.items()},
        pause=None if memory.pause is None else _pause(memory.pause, now),
        state=None if memory.state is None else _state(memory.state, now),
        **{name: _all(getattr(memory, name), now) for name in _RECORDS},
    )


def _all(held: Any, now: float) -> Any:
    """A record or an instant, or all of them that a mapping or a tuple holds, none in the future."""
    if isinstance(held, Mapping):
        return {key: _all(each, now) for key, each in held.items()}
    if isinstance(held, tuple):
        return tuple(_all(each, now) for each in held)
    return min(held, now) if isinstance(held, int | float) else _past(held, now)


def _past(record: T, now: float) -> T:
    """A record whose own instants are over."""
    changed: dict[str, Any] = {}
    for name in _instants(type(record)):  # type: ignore[arg-type]  # any class can be hashed
        at = getattr(record, name)
        if at is not None and at > now:
            changed[name] = now
    return replace(record, **changed) if changed else record  # type: ignore[type-var]


@cache
def _instants(kind: type[Any]) -> tuple[str, ...]:
    """The fields of a kind of record that hold an instant which is over."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.name in _INSTANTS)


def _node(record: NodeRecord, now: float) -> NodeRecord:
    record = _past(record, now)
    if record.notices:
        record = replace(record, notices=_all(record.notices, now))
    if record.drain is not None:
        record = replace(record, drain=_drain(record.drain, now))
    if record.operator is not None:
        record = replace(record, operator=_past(record.operator, now))
    if record.adapters:
        record = replace(record, adapters=tuple(_adapter(adapter, now) for adapter in record.adapters))
    return record


def _adapter(record: AdapterRecord, now: float) -> AdapterRecord:
    call = None if record.call is None else _past(record.call, now)
    return replace(_past(record, now), call=call)


def _drain(drain: DrainRecord, now: float) -> DrainRecord:
    """It has as long as it had."""
    early = max(0.0, drain.since - now)
    return replace(_past(drain, now), deadline=drain.deadline - early)


def _state(state: StateRecord, now: float) -> StateRecord:
    return replace(_past(state, now), changes=tuple(min(at, now) for at in state.changes))


def _pause(pause: Pause, now: float) -> Pause:
    """It lasts as long as was asked for."""
    early = max(0.0, pause.since - now)
    until = None if pause.until is None else pause.until - early
    return replace(_past(pause, now), until=until)
