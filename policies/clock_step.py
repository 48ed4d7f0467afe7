"""Memory after the clock was set back: nothing that it remembers lies in the future.

What it decides: what a daemon makes of instants that are later than its own start.
Why: the journal outlives a wrong clock. A call asked "tomorrow" would be asked again only after tomorrow, a
drain that began then would end then, and a refusal would never decay.
Never: a deadline that the cloud named is changed; it is the cloud's own time, not ours.

Example: the host's clock was a day ahead and is right again: an open launch counts as asked just now, and a
drain that had 20 s left of its budget has it still.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from policies.records import AdapterRecord, DrainRecord, Memory, NodeRecord, Pause, StateRecord
from policies.value import replace

_INSTANTS = frozenset(
    [
        *("accepted_at", "asked_at", "at", "back_at", "bad_at", "denied_at", "detached_at"),
        *("drained_at", "gone_at"),
        *("idle_since", "launched_at", "losing_since", "lost_at", "missing_since", "opened_at", "ready_at"),
        *("replaced_at", "resumed_at", "seen_at"),
        *("served_at", "since", "spot_lost_at", "started_at", "whole_at"),
    ]
)
"""Fields of memory and of its records that hold an instant which is over."""


_HELD: Mapping[type, tuple[str, ...]] = {
    Memory: (
        *("nodes", "intents", "refusals", "reclaims", "boot_failures", "bars", "quota_at", "swaps"),
        *("early_notices", "early_requests", "ended", "launches", "pause", "zones", "parts", "prices"),
        *("fallbacks", "failing", "condemned", "failed_boots", "starts", "state"),
    ),
    NodeRecord: ("notices", "drain", "operator", "adapters"),
    AdapterRecord: ("call",),
    StateRecord: ("changes",),
}
"""Fields that hold records or instants, one or many."""

_WAITS: Mapping[type, str] = {DrainRecord: "deadline", Pause: "until"}
"""Fields that hold the end of a wait which began at `since`: it lasts as long as it did."""


def not_in_future(memory: Memory, now: float) -> Memory:
    """The same memory with every instant that is over at `now` at the latest. Linear in its size."""
    past: Memory = _past(memory, now)
    return past


def _past(found: Any, now: float) -> Any:
    """An instant, a record, or a collection of either, with what is over at `now` at the latest."""
    match found:
        case None:
            return None
        case int() | float():
            return min(found, now)
        case tuple():
            return tuple(_past(each, now) for each in found)
        case Mapping():
            return {key: _past(each, now) for key, each in found.items()}
    kind: Any = type(found)
    changed = {name: _past(getattr(found, name), now) for name in _looked_at(kind)}
    wait = _WAITS.get(kind, "")
    if wait and getattr(found, wait) is not None:
        changed[wait] = getattr(found, wait) - (found.since - changed["since"])
    return replace(found, **changed)


@cache
def _looked_at(kind: Any) -> tuple[str, ...]:
    """The fields of a kind of record that hold what is over, or records that do."""
    return (*_HELD.get(kind, ()), *(f.name for f in fields(kind) if f.name in _INSTANTS))
