"""The counters of a pool: notices, drains, swaps, boots, preemptions, tokens.

The loop passes every event on; decisions do not depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.metrics import metrics
from policies.adapter_events import AdapterAnswered, AdapterLost
from policies.events import BootFailed, Event, NodeGone, NodeIdle, NodeReady, NoticeSeen, TargetsApplied
from policies.memory import Memory, Swap
from policies.model import Market, Notice, NoticeKind, TargetPhase, World
from policies.records import StartMeasured

ARRIVALS_KEPT = 10_000
"""Nodes whose first notice's arrival is kept to measure the detachment; forged names must not pile up."""

_STAGES = ("detached", "drained", "replaced")


class PoolCounters:
    """Counts the events of one pool."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._arrived: dict[str, float] = {}  # noticed node -> when its first notice arrived
        self._held: set[str] = set()
        self._progress: dict[str, float] = {}
        # Made here, so that they are 0 before the first one and a rate has a first value.
        self._noticed = metrics.PREEMPTIONS.labels(pool, "yes")
        self._unannounced = metrics.PREEMPTIONS.labels(pool, "no")
        self._unknown = metrics.NOTICES_UNKNOWN.labels(pool)
        self._late_drains = metrics.LATE_DRAINS.labels(pool)
        self._drains_cut = metrics.DRAINS_CUT.labels(pool)
        self._swap_failures = metrics.SWAP_FAILURES.labels(pool)
        self._tokens = metrics.TOKENS.labels(pool)
        self._detached = metrics.NOTICE_TO_DETACHED.labels(pool)
        self._drained = metrics.DRAIN_SECONDS.labels(pool)
        self._boots = {str(m): metrics.BOOT_SECONDS.labels(pool, str(m)) for m in Market}
        self._boots_failed = {str(m): metrics.BOOTS_FAILED.labels(pool, str(m)) for m in Market}
        self._lost = metrics.ADAPTERS_LOST.labels(pool)
        self._stages = {stage: metrics.SWAP_SECONDS.labels(pool, stage) for stage in _STAGES}

    def notice(self, event: NoticeSeen, *, known: bool, first: bool) -> None:
        """Count a notice; the time to the detachment runs from the `first` one that takes its node."""
        notice = event.notice
        if not known:
            self._unknown.inc()
        if first and takes_node(notice):
            self._arrived[notice.node] = event.at
        if len(self._arrived) > ARRIVALS_KEPT:
            self._arrived.pop(next(iter(self._arrived)))
        metrics.NOTICES.labels(self._pool, str(notice.kind), notice.source).inc()
        if notice.deadline is not None and not notice.cancelled:
            lead = metrics.NOTICE_LEAD.labels(self._pool, notice.source)
            lead.observe(max(0.0, notice.deadline - event.at))

    def newly_held(self, nodes: Sequence[str]) -> list[str]:
        """Of nodes whose drain waits by choice, those not reported before."""
        found = [n for n in nodes if n in self._arrived and n not in self._held]
        self._held |= set(found)
        return found

    def detached(self, event: TargetsApplied, memory: Memory) -> None:
        """Measure how long noticed nodes still got new requests."""
        for node, phase in event.changes:
            if phase is TargetPhase.ACTIVE:
                continue
            arrived = self._arrived.pop(node, None)
            if arrived is None or node not in memory.swaps:
                continue
            if node in self._held:
                self._held.discard(node)
                self._late_drains.inc()
            else:
                self._detached.observe(event.at - arrived)

    def events(self, events: Sequence[Event], before: Memory, after: Memory) -> None:
        """Count what the events brought; `before` and `after` are memory around them."""
        for event in events:
            if isinstance(event, NodeGone):
                self._gone(event, before)
            elif isinstance(event, BootFailed) and all(b.node != event.node for b in before.failed_boots):
                self._boots_failed[str(event.placement.market)].inc()
            elif isinstance(event, AdapterAnswered):
                call, outcome = "load" if event.load else "unload", "failed" if event.failure else "done"
                metrics.ADAPTER_CALLS.labels(self._pool, call, outcome).inc()
            elif isinstance(event, AdapterLost):
                self._lost.inc()
            elif isinstance(event, NodeReady) and event.node in after.nodes:
                record = after.nodes[event.node]
                self._boots[str(record.placement.market)].observe(event.at - record.started_at)
            elif isinstance(event, StartMeasured):
                for part, seconds in event.parts:
                    metrics.START_PART_SECONDS.labels(self._pool, part).observe(seconds)
            elif isinstance(event, NodeIdle) and event.node in after.nodes:
                record = after.nodes[event.node]
                if record.drain is not None:
                    began = max(record.drain.since, record.detached_at or record.drain.since)
                    self._drained.observe(event.at - began)
        if after.swaps is not before.swaps:
            for outgoing, swap in after.swaps.items():
                known = before.swaps.get(outgoing)
                if swap is not known:
                    self._swap(known, swap, after)
        if after.preemptions != before.preemptions:
            unannounced = after.preemptions_without_notice - before.preemptions_without_notice
            self._noticed.inc(after.preemptions - before.preemptions - unannounced)
            self._unannounced.inc(unannounced)

    def tokens(self, world: World) -> None:
        """Count tokens since the last turn. Those of before a node was first seen are not ours to count."""
        seen = {node: reading.progress for node, reading in world.engines.items()}
        made = 0.0
        for node, progress in seen.items():
            known = self._progress.get(node, progress)
            # A count that fell began anew with its engine.
            made += progress - known if progress >= known else progress
        self._tokens.inc(made)
        self._progress = seen

    def _gone(self, event: NodeGone, before: Memory) -> None:
        self._arrived.pop(event.node, None)
        self._held.discard(event.node)
        record = before.nodes.get(event.node)
        if record is not None and record.drain is not None and record.ready_at is not None:
            self._drains_cut.inc(record.idle_since is None)

    def _swap(self, before: Swap | None, after: Swap, memory: Memory) -> None:
        """Time the stages that a swap has reached, and notice when its replacement does not come."""
        for stage, seconds in self._stages.items():
            at = getattr(after, f"{stage}_at")
            if at is not None and (before is None or getattr(before, f"{stage}_at") is None):
                seconds.observe(max(0.0, at - after.opened_at))
        lost = before is not None and before.incoming not in ("", after.incoming)
        if before is not None and lost and not after.incoming and before.incoming not in memory.incoming:
            self._swap_failures.inc()


def takes_node(notice: Notice) -> bool:
    """A notice of a kind that takes nodes away."""
    return notice.kind is not NoticeKind.REBALANCE
