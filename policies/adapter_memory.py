"""How events change what is remembered of the adapters of nodes.

What it decides: whether a node counts as holding an adapter, and when a call that failed is made again.
Why: an engine's list says what is there, and not whether it works: only a call of ours that came back says
so. An engine that was started again holds nothing, whatever it held before.
Never: a node counts as holding what was loaded and not tried; a call that fails is made again at once, or is
given up for good: its pause doubles up to `LONGEST_PAUSE`.

Example: a load comes back as done: the node holds the adapter until its engine's list lacks it.
"""

from __future__ import annotations

from policies.actions import Cause
from policies.adapter_events import AdapterAnswered, AdapterAsked, AdapterLost, NodeCurrent, NodeOutdated
from policies.memory_builder import MemoryBuilder
from policies.records import AdapterCall, AdapterRecord, OperatorRequest
from policies.value import replace

LONGEST_PAUSE = 60.0
"""Seconds between two tries of a call that fails, at most."""

_UNLOADED_FOR = 60.0
"""Seconds for which it is remembered that an adapter was unloaded: a list that shows it may be older."""


def due(call: AdapterCall, now: float, patience: float) -> bool:
    """True when a call is to be made again: after a pause where it failed, else after `patience` seconds."""
    pause = min(LONGEST_PAUSE, 2.0 ** min(call.attempts - 1, 16)) if call.failure else patience
    return now - call.asked_at >= pause


def asked(builder: MemoryBuilder, event: AdapterAsked) -> None:
    """A call is about to be made, for the first time or again."""
    known = _of(builder, event.node, event.adapter)
    call = known.call
    again = call is not None and call.load is event.load
    attempts = call.attempts + 1 if call is not None and again else 1
    asked = AdapterCall(load=event.load, asked_at=event.at, attempts=attempts, reason=event.reason)
    _put(builder, event.node, replace(known, call=asked), event.at)


def answered(builder: MemoryBuilder, event: AdapterAnswered) -> None:
    """A call came back."""
    known = _of(builder, event.node, event.adapter)
    call = known.call
    if not event.failure:
        found = AdapterRecord(adapter=event.adapter, held=event.load, since=event.at)
    elif call is None or call.load is not event.load:
        return
    else:
        held = known.held and (event.load or event.certain)
        found = replace(known, held=held, call=replace(call, failure=event.failure))
    _put(builder, event.node, found, event.at)


def lost(builder: MemoryBuilder, event: AdapterLost) -> None:
    """It is not there."""
    _put(builder, event.node, AdapterRecord(adapter=event.adapter, held=False, since=event.at), event.at)


def outdated(builder: MemoryBuilder, event: NodeOutdated) -> None:
    """A node is to go once its replacement is ready; what an operator or a GPU asked for comes first."""
    record = builder.get("nodes").get(event.node)
    if record is not None and record.operator is None:
        request = OperatorRequest(
            since=event.at, budget=event.budget, reason=event.reason, cause=Cause.OUTDATED
        )
        builder.node(event.node, operator=request)
    if event.again:
        builder.set("started_with", replace(builder.get("started_with"), again_at=event.at))


def current(builder: MemoryBuilder, event: NodeCurrent) -> None:
    """It need not go."""
    record = builder.get("nodes").get(event.node)
    if record is not None and record.operator is not None and record.operator.cause is Cause.OUTDATED:
        builder.node(event.node, operator=None)


def restarted(builder: MemoryBuilder) -> None:
    """The daemon that made the calls is gone: none of them will come back."""
    for node, record in [*builder.get("nodes").items()]:
        if any(a.call is not None and not a.call.failure for a in record.adapters):
            builder.node(node, adapters=tuple(map(_unanswered, record.adapters)))


def _unanswered(record: AdapterRecord) -> AdapterRecord:
    if record.call is None or record.call.failure:
        return record
    return replace(record, call=replace(record.call, failure="the daemon that asked has ended"))


def _of(builder: MemoryBuilder, node: str, adapter: str) -> AdapterRecord:
    record = builder.get("nodes").get(node)
    known = () if record is None else record.adapters
    return next((a for a in known if a.adapter == adapter), AdapterRecord(adapter=adapter))


def _put(builder: MemoryBuilder, node: str, changed: AdapterRecord, at: float) -> None:
    record = builder.get("nodes").get(node)
    if record is None:
        return
    others = (
        a
        for a in record.adapters
        if a.adapter != changed.adapter and (a.held or a.call is not None or at - a.since < _UNLOADED_FOR)
    )
    builder.node(node, adapters=tuple(sorted((*others, changed), key=lambda a: a.adapter)))
