"""Which nodes are doomed: the notices that are believed, and until when.

What it decides: for each node, the notice (if any) that takes it away. The earliest deadline wins.
Why: a doomed node stops counting as capacity at once, so its replacement starts in the same turn.
Never: a spot interruption, or a stop, dooms no on-demand node: a standby is stopped by us, and comes back.
Notices that only a node reported, and the cloud did
not confirm, doom at most the disruption budget of units at a time (or one node), those that drain for one
first, then the oldest: a forged message cannot empty a pool, nor can the next one of a node that was believed
before make room for another. Reported nodes whose engine is silent are believed beyond it, they serve nobody
anyway; one look that failed is no silence.
A rebalance recommendation dooms nothing, it has no deadline; `policies.rebalance` says what it does.

Example:
    >>> from policies.model import Confidence, Notice, NoticeKind
    >>> notice = Notice(id="n1", kind=NoticeKind.INTERRUPTION, node="a", deadline=120.0, source="feed",
    ...                 confidence=Confidence.CONFIRMED, seen_at=0.0)
    >>> applies(notice, spot=True), applies(notice, spot=False)
    (True, False)
"""

from __future__ import annotations

from collections.abc import Mapping

from policies.actions import Cause
from policies.model import (
    TAKES_SPOT,
    Confidence,
    EngineReading,
    Market,
    Notice,
    NoticeKind,
    Pool,
    StandbyKind,
    World,
)
from policies.records import Memory, NodeRecord


def applies(notice: Notice, *, spot: bool) -> bool:
    """True when a notice of this kind can take away a node of this market."""
    if notice.cancelled or notice.kind is NoticeKind.REBALANCE:
        return False
    return spot or notice.kind not in TAKES_SPOT


def recommended(pool: Pool, record: NodeRecord, now: float) -> Notice | None:
    """The oldest rebalance recommendation that a node is under; None where the pool heeds none."""
    rules = pool.rebalance
    if not rules.replace or not record.notices or record.placement.market is not Market.SPOT:
        return None
    held = [
        n
        for n in record.notices
        if n.kind is NoticeKind.REBALANCE and not n.cancelled and now - n.seen_at < rules.timeout
    ]
    return min(held, key=_urgency, default=None)


def doom(pool: Pool, world: World, memory: Memory) -> Mapping[str, Notice]:
    """The believed notice of every doomed node."""
    confirmed: dict[str, Notice] = {}
    reported: list[tuple[tuple[bool, float, str], NodeRecord, Notice]] = []
    told = 0  # units whose engine answers
    for record in memory.nodes.values():
        acted_on = record.drain is not None and record.drain.cause is Cause.NOTICE
        if not (record.notices or acted_on):
            continue
        spot = record.placement.market is Market.SPOT
        valid = [n for n in record.notices if applies(n, spot=spot)]
        sure = [n for n in valid if n.confidence is Confidence.CONFIRMED]
        if sure:
            confirmed[record.id] = min(sure, key=_urgency)
        elif valid:
            rank = not acted_on, min(n.seen_at for n in valid), record.id
            reported.append((rank, record, min(valid, key=_urgency)))
        elif acted_on:  # on its way out, or to be put back in this turn
            told += _answering(pool, world, record)
    believed = dict(confirmed)
    for _, record, notice in sorted(reported, key=lambda entry: entry[0]):
        units = _answering(pool, world, record)
        if units == 0 or told == 0 or told + units <= pool.disruption_budget:
            believed[record.id] = notice
            told += units
    return believed


def _answering(pool: Pool, world: World, record: NodeRecord) -> int:
    """Units of a node, none when it has been silent for long. A stopped standby says nothing by that."""
    reading = world.engines.get(record.id)
    works = record.standby is not StandbyKind.STOPPED
    silent = works and reading is not None and _silent_for(reading) >= pool.health.unhealthy_after
    return 0 if silent else pool.units_of(record.placement)


def _silent_for(reading: EngineReading) -> float:
    """Seconds for which an engine has answered nothing, as far as it was looked at."""
    return 0.0 if reading.failing_since is None else reading.at - reading.failing_since


def _urgency(notice: Notice) -> tuple[float, float, str]:
    deadline = notice.deadline if notice.deadline is not None else notice.seen_at
    return deadline, notice.seen_at, notice.id
