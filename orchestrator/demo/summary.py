"""The demo's summary: what was promised, what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.demo import loss as lost
from orchestrator.demo.load import LoadReport, total
from orchestrator.demo.loss import PoolLoss
from orchestrator.percentile import percentile
from orchestrator.views.api import EventView, PoolView


@dataclass
class Samples:
    """What was seen of the pool while the load ran, sampled a few times a second."""

    ready: list[int] = field(default_factory=list)
    serving: list[int] = field(default_factory=list)
    on_demand: list[int] = field(default_factory=list)
    spot_share: list[float] = field(default_factory=list)
    last: PoolView | None = None

    def add(self, pool: PoolView) -> None:
        """One more sample."""
        self.ready.append(pool["ready"])
        self.serving.append(pool["serving"])
        self.on_demand.append(pool["on_demand_ready"])
        self.spot_share.append(pool["spot_share"])
        self.last = pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Detachment:
    """One noticed node: from the arrival of its notice to the gateway's acknowledgement, in milliseconds."""

    node: str
    ms: float
    late: bool  # by choice: it went on serving because too few nodes would have been left


def detachments(events: Sequence[EventView]) -> list[Detachment]:
    """Every first notice of a node that served, with the time to its detachment, from the journal."""
    noticed: dict[str, float] = {}
    drained: set[str] = set()
    held: set[str] = set()
    serving: set[str] = set()
    found = []
    for event in events:
        data, node = event["data"], event["node"] or ""
        if event["kind"] == "NoticeSeen" and data["notice"]["kind"] == "interruption" and node in serving:
            noticed.setdefault(node, event["at"])
        elif event["kind"] == "DrainStarted":
            drained.add(node)
        elif event["kind"] == "DrainHeld":
            held.add(node)
        elif event["kind"] == "TargetsApplied":
            for target, phase in data["changes"]:
                if phase == "active":
                    serving.add(target)
                    continue
                left = target in serving
                serving.discard(target)
                if left and target in noticed and target in drained:
                    began = noticed[target]
                    ms = (event["at"] - began) * 1000.0
                    found.append(Detachment(node=target, ms=ms, late=target in held))
    return found


def completed_swaps(events: Sequence[EventView]) -> int:
    """Outgoing nodes whose replacement became ready, from the journal."""
    replacing: set[str] = set()
    nodes: set[str] = set()
    completed = 0
    for event in events:
        data, node = event["data"], event["node"] or ""
        if event["kind"] == "IntentOpened" and data["replaces"]:
            replacing.add(data["token"])
        elif event["kind"] == "IntentClosed" and data["token"] in replacing:
            nodes.add(node)
        elif event["kind"] == "NodeReady" and node in nodes:
            nodes.discard(node)
            completed += 1
    return completed


def build(
    *,
    reports: Sequence[LoadReport],
    samples: Samples,
    events: Sequence[EventView],
    cloud: dict[str, Any],
    retried: int,
    provider_usd: float,
    pools: Sequence[PoolView],
    leaked: Sequence[str],
    options: dict[str, Any],
    drills: int,
    killed: int,
    loss: PoolLoss | None,
) -> dict[str, Any]:
    """The summary as one JSON object.

    The first pool is the one that the market plays with; the second, with the second report, the one that is
    lost as a whole. Requests and money are those of all; what machines cost is in market time.
    """
    pool, load = pools[0], total(reports)
    ours = [event for event in events if event.get("pool", pool["name"]) == pool["name"]]
    detached = detachments(ours)
    prompt = [d.ms for d in detached if not d.late]
    speed = float(options["speed"])
    spent, saved = (speed * sum(one[key] for one in pools) for key in ("spent_usd", "saved_usd"))
    return {
        "schema": "demo/1",
        "requests": load.sent,
        "answered": load.answered,
        "failed": load.failed,
        "failures": dict(load.failures),
        "retried": retried,
        "streams": load.streams,
        "streams_cut": load.streams_cut,
        "streams_continued": load.streams_continued,
        "seam_ms": {
            "count": len(load.seams),
            "p50": _milliseconds(percentile(load.seams, 0.5)),
            "longest": _milliseconds(max(load.seams, default=None)),
        },
        "tokens": load.tokens,
        "backends": dict(sorted(load.backends.items())),
        "by_provider": load.by_provider,
        "provider_usd": round(provider_usd, 6),
        "lost_pool": lost.summary(loss, reports[1], events) if loss is not None else None,
        "preemptions": cloud["preemptions_with_notice"] + cloud["preemptions_without_notice"],
        "preemptions_with_notice": cloud["preemptions_with_notice"],
        "preemptions_without_notice": cloud["preemptions_without_notice"],
        "drills": drills,
        "engines_killed": killed,
        "swaps": completed_swaps(ours),
        "wanted": pool["wanted"],
        "min_ready": min(samples.ready, default=0),
        "min_serving": min(samples.serving, default=0),
        "min_on_demand": min(samples.on_demand, default=0),
        "on_demand_floor": pool["on_demand_floor"],
        "spot_at_end": pool["spot_ready"],
        "spot_wanted": pool["spot_wanted"],
        "mean_spot_share": round(sum(samples.spot_share) / max(1, len(samples.spot_share)), 4),
        "cost_usd": round(spent, 4),
        "cost_on_demand_usd": round(spent + saved, 4),
        "notice_to_detached_ms": {
            "count": len(prompt),
            "p50": _rounded(percentile(prompt, 0.5)),
            "p99": _rounded(percentile(prompt, 0.99)),
        },
        "late_drains": sum(d.late for d in detached),
        "leaked_nodes": len(leaked),
        "leaked": list(leaked),
        **options,
    }


def text(summary: dict[str, Any]) -> str:
    """The summary for people."""
    detached = summary["notice_to_detached_ms"]
    fast = (
        f"p50 {detached['p50']} ms, p99 {detached['p99']} ms of {detached['count']} notices"
        if detached["count"]
        else "no notice"
    )
    reference = summary["cost_on_demand_usd"]
    saved = 1.0 - summary["cost_usd"] / reference if reference else 0.0
    rows = (
        ("requests", f"{summary['requests']}, {summary['answered']} answered in full"),
        ("failed", f"{summary['failed']}  {summary['failures'] or ''}".rstrip()),
        ("retried", f"{summary['retried']} by the gateway, unseen by clients"),
        ("streams cut", _cut(summary)),
        ("streams continued", _continued(summary)),
        *_routed(summary),
        (
            "preemptions",
            f"{summary['preemptions_with_notice']} with notice, "
            f"{summary['preemptions_without_notice']} without ({summary['drills']} were drills), "
            f"{summary['engines_killed']} engines killed",
        ),
        ("swaps", str(summary["swaps"])),
        ("ready nodes", f"at least {summary['min_ready']} of {summary['wanted']}"),
        ("serving nodes", f"at least {summary['min_serving']}"),
        (
            "on-demand nodes",
            f"at least {summary['min_on_demand']}, {summary['on_demand_floor']} are the floor",
        ),
        ("spot at the end", f"{summary['spot_at_end']} of {summary['spot_wanted']} wanted"),
        ("spot share", f"{summary['mean_spot_share']:.0%} on average"),
        ("notice to detached", f"{fast}, {summary['late_drains']} late by choice"),
        (
            "cost",
            f"${summary['cost_usd']:.2f} in market time, on-demand ${reference:.2f}, saved {saved:.0%}",
        ),
        ("leaked nodes", str(summary["leaked_nodes"])),
        ("replay", summary["replay"]),
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows) + "\n"


def _cut(summary: dict[str, Any]) -> str:
    """Streams that broke after their beginning; a provider cannot go on with what a pool began."""
    lost = summary["lost_pool"]
    where = f", {lost['streams_cut']} of them in the pool that was lost" if lost else ""
    return f"{summary['streams_cut']} of {summary['streams']}{where if summary['streams_cut'] else ''}"


def _routed(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Who answered, what the provider took for it, and what the loss of a pool was for its clients."""
    lost, rows = summary["lost_pool"], []
    if lost or summary["by_provider"]:
        shares = ", ".join(f"{name} {count}" for name, count in summary["backends"].items())
        rows += [
            ("answered by", shares),
            ("provider", f"{summary['by_provider']} answers for ${summary['provider_usd']:.4f}"),
        ]
    if lost:
        first, back, ready = (lost[f"{key}_after_s"] for key in ("provider", "back", "ready"))
        rows += [
            (
                f"pool {lost['pool']} lost",
                f"all {lost['nodes']} nodes at once; "
                + ("no answer since" if first is None else f"the provider answered after {first:.2f} s"),
            ),
            (
                f"pool {lost['pool']} back",
                "not yet"
                if back is None
                else f"after {back:.1f} s, {back - ready:.2f} s after its first node",
            ),
        ]
    return rows


def _continued(summary: dict[str, Any]) -> str:
    """How many streams changed nodes, and how long their clients waited there."""
    seam = summary["seam_ms"]
    if not summary["streams_continued"]:
        return "none had to be"
    waited = f"the seam p50 {seam['p50']:.0f} ms, longest {seam['longest']:.0f} ms"
    return f"{summary['streams_continued']} by another node, {waited}"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 1)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
