"""Which notices are believed, and until when their nodes stay.

What it decides: for each node, the notice (if any) that takes it away. The earliest deadline wins.
Why: a noticed node stops counting as capacity at once, so its replacement starts in the same turn.
Never: a spot interruption, or a stop, takes away an on-demand node: a standby is stopped by us, and comes
back. Notices that only a node reported, and the cloud did not confirm, are believed for at most the
disruption budget of units at a time (or one node), those that drain for one first, then the oldest: a forged
message cannot empty a pool, nor can the next one of a node that was believed before make room for another.
A report of a node that serves nobody anyway is believed beyond that budget: its engine has been silent to
this daemon for `unhealthy_after`, no balancer that could be read finds it healthy, and it is not one of so
many silent ones that the fault may be on this side (`policies.evidence`). One look that failed is no silence.
A rebalance recommendation takes nothing away, it has no deadline; `policies.rebalance` says what it does.

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
from policies.evidence import CONFIRMED, Evidence
from policies.model import Market, Notice, NoticeKind, Pool, kept_aside
from policies.records import NodeRecord, applies


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


def believed(evidence: Evidence, *, suspect: bool) -> Mapping[str, Notice]:
    """The believed notice of every noticed node, by node. `suspect`: a silence may be this side's fault."""
    pool, confirmed = evidence.pool, dict[str, Notice]()
    reported: list[tuple[tuple[bool, float, str], NodeRecord, Notice]] = []
    taken = 0  # units on their way out for a report, or to be put back in this turn
    for record in evidence.memory.nodes.values():
        drains = record.drain is not None and record.drain.cause is Cause.NOTICE
        if not (record.notices or drains):
            continue
        spot = record.placement.market is Market.SPOT
        valid = [n for n in record.notices if applies(n, spot=spot)]
        sure = [n for n in valid if n.confidence in CONFIRMED]
        if sure:
            confirmed[record.id] = min(sure, key=_urgency)
        elif valid:
            rank = not drains, min(n.seen_at for n in valid), record.id
            reported.append((rank, record, min(valid, key=_urgency)))
        elif drains:
            taken += _units(evidence, record, suspect=suspect)
    for _, record, notice in sorted(reported, key=lambda entry: entry[0]):
        units = _units(evidence, record, suspect=suspect)
        if units == 0 or taken == 0 or taken + units <= pool.disruption_budget:
            confirmed[record.id] = notice
            taken += units
    return confirmed


def _units(evidence: Evidence, record: NodeRecord, *, suspect: bool) -> int:
    """Units that a node takes of the budget; none when all who may tell find that it serves nobody.

    A stopped standby says nothing by its silence.
    """
    gone = (
        not suspect
        and not kept_aside(record.standby)
        and evidence.heard(record.id).fails(evidence.pool.health.unhealthy_after)
        and record.id not in evidence.routing.surely_healthy
    )
    return 0 if gone else evidence.pool.units_of(record.placement)


def _urgency(notice: Notice) -> tuple[float, float, str]:
    deadline = notice.deadline if notice.deadline is not None else notice.seen_at
    return deadline, notice.seen_at, notice.id
