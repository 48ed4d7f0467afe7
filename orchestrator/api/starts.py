"""Starts that were, in parts, for `GET /v1/history` and `GET /v1/nodes/{id}`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.percentile import percentile
from orchestrator.views import starts as views
from policies.records import StartMeasured
from policies.starts import Part, advice

Starts = Iterable[tuple[str, StartMeasured]]
"""Starts, each with its pool, empty where the daemon has one."""


def view(start: StartMeasured, pool: str = "") -> views.PastStartView:
    """One start."""
    shown = views.PastStartView(
        node=start.node,
        instance_type=start.placement.instance_type,
        market=str(start.placement.market),
        standby=start.standby,
        began_at=start.began_at,
        seconds=start.seconds,
        parts=dict(start.parts),
    )
    if pool:
        shown["pool"] = pool
    return shown


def newest(starts: Starts, limit: int) -> list[tuple[str, StartMeasured]]:
    """The newest `limit` of them, oldest first."""
    return sorted(starts, key=lambda pair: (pair[1].at, pair[1].node))[-limit:]


def kinds(starts: Starts) -> list[views.StartKindView]:
    """The starts summed up, by pool, instance type, and what was started."""
    found: dict[tuple[str, str, bool], list[StartMeasured]] = {}
    for pool, start in starts:
        found.setdefault((pool, start.placement.instance_type, start.standby), []).append(start)
    return [_kind(*key, found[key]) for key in sorted(found)]


def _kind(pool: str, kind: str, standby: bool, starts: Sequence[StartMeasured]) -> views.StartKindView:
    whole = [start.seconds for start in starts]
    parts = [
        _part(part, times, sum(whole))
        for part in Part
        if (times := [seconds for start in starts for name, seconds in start.parts if name == part])
    ]
    longest = max(parts, key=lambda part: part["share"], default=None)
    shown = views.StartKindView(
        instance_type=kind,
        standby=standby,
        starts=len(starts),
        median_s=percentile(whole, 0.5) or 0.0,
        p90_s=percentile(whole, 0.9) or 0.0,
        parts=parts,
        advice="" if longest is None else advice(Part(longest["part"]), longest["share"]),
    )
    if pool:
        shown["pool"] = pool
    return shown


def _part(part: Part, times: Sequence[float], whole: float) -> views.StartPartView:
    return views.StartPartView(
        part=str(part),
        starts=len(times),
        median_s=percentile(times, 0.5) or 0.0,
        p90_s=percentile(times, 0.9) or 0.0,
        share=sum(times) / whole if whole > 0 else 0.0,
    )
