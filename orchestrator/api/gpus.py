"""What is known of nodes' GPUs, from agents or exporters, as the API's JSON and as gauges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import Gauge

from orchestrator.loop.gpu_watch import GpuWatch
from orchestrator.loop.loop import Snapshot
from orchestrator.metrics import metrics
from orchestrator.views import api as views
from policies.gpu_errors import Remedy, asked_for
from policies.gpu_health import broken
from policies.gpu_peers import Pace
from policies.gpu_readings import REASONS, GpuReading, GpuState, NodeGpus, Xid, lasts, throttled

_MIB: Final = 1024.0 * 1024.0
_MHZ: Final = 1e6
_FATAL: Final = (Remedy.RESET, Remedy.REPLACE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was read last of each node's GPUs, how fast each node is, why exporters cannot be read, and the
    nodes whose GPUs nobody can read.
    """

    looked: Mapping[str, NodeGpus] = field(default_factory=dict)
    paces: Mapping[str, Pace] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    unread: Set[str] = frozenset()

    @staticmethod
    def of(watch: GpuWatch | None) -> Seen:
        """What a pool's watch knows now; nothing before it was begun."""
        if watch is None:
            return Seen()
        return Seen(
            looked=watch.looked(), paces=watch.paces, errors=dict(watch.errors), unread=watch.unread()
        )


def view(seen: Seen, node: str, state: GpuState | None, now: float) -> views.GpusView | None:
    """What is known of one node; None where nothing is."""
    looked, pace, error = seen.looked.get(node), seen.paces.get(node), seen.errors.get(node, "")
    if looked is None and pace is None and state is None and not error:
        return None
    known = state or GpuState(node=node)
    return views.GpusView(
        source="" if looked is None else looked.source,
        read_s=None if looked is None else max(0.0, now - looked.at),
        gpus=[] if looked is None else [gpu_view(gpu) for gpu in looked.gpus],
        xids=[] if looked is None else [xid_view(xid) for xid in looked.xids],
        asks=str(known.remedy),
        why=known.fault,
        throttled_s=lasts(known.throttled_since, known.throttled_at, now),
        throttle=known.throttle,
        speed=None if pace is None else pace.share,
        speed_by="" if pace is None else pace.by,
        slow_s=lasts(known.slow_since, known.slow_at, now),
        error=error,
    )


def gpu_view(gpu: GpuReading) -> views.GpuView:
    """One GPU."""
    return views.GpuView(
        index=gpu.index,
        name=gpu.name,
        state=gpu.state,
        utilisation_percent=gpu.utilisation_percent,
        memory_used_mib=gpu.memory_used_mib,
        memory_total_mib=gpu.memory_total_mib,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_w,
        power_limit_w=gpu.power_limit_w,
        sm_clock_mhz=gpu.sm_clock_mhz,
        throttled=throttled(gpu.throttle_reasons),
        ecc_corrected=gpu.ecc_corrected,
        ecc_uncorrected=gpu.ecc_uncorrected,
        retired_pages=gpu.retired_pages,
        remapped_rows=gpu.remapped_rows,
        waits_for_reset=bool(gpu.retired_pending or gpu.remap_pending),
    )


def xid_view(xid: Xid) -> views.XidView:
    """One error, with what NVIDIA's catalogue says of it."""
    asked = asked_for(xid.code, xid.text)
    return views.XidView(
        pci=xid.pci,
        code=xid.code,
        text=xid.text,
        count=xid.count,
        fatal=asked.remedy in _FATAL,
        asks=str(asked.remedy),
        says=asked.text.partition(": ")[2],
    )


def publish(snapshot: Snapshot, seen: Seen) -> None:
    """Set the gauges of nodes that there are; a value that a node does not tell has no series."""
    pool, now, states = snapshot.fleet.pool.name, snapshot.world.now, snapshot.world.gpus
    nodes = snapshot.fleet.by_id
    metrics.CONDEMNED.labels(pool).set(sum(broken(s) for n, s in states.items() if n in nodes))
    metrics.GPUS_UNREAD.labels(pool).set(len(seen.unread & nodes.keys()))
    for node, looked in seen.looked.items():
        if node in nodes:
            errors = Counter[int]()
            for xid in looked.xids:
                errors[xid.code] += xid.count
            for code, count in errors.items():
                metrics.GPU_XIDS.labels(pool, node, str(code)).set(count)
            for gpu in looked.gpus:
                _publish(gpu, (pool, node, str(gpu.index)))
    for node, pace in seen.paces.items():
        if node in nodes:
            metrics.NODE_SPEED.labels(pool, node, pace.by).set(pace.share)
    for node, state in states.items():
        if node not in nodes:
            continue
        lasted = lasts(state.slow_since, state.slow_at, now)
        metrics.NODE_SLOW.labels(pool, node).set(lasted)
        if state.at is None:
            continue
        lasted = lasts(state.throttled_since, state.throttled_at, now)
        metrics.NODE_THROTTLED.labels(pool, node).set(lasted)
        for remedy in Remedy:
            metrics.GPUS_ASK.labels(pool, node, str(remedy)).set(state.remedy is remedy)


def _publish(gpu: GpuReading, labels: tuple[str, str, str]) -> None:
    for gauge, value, unit in (
        (metrics.GPU_BUSY, gpu.utilisation_percent, 0.01),
        (metrics.GPU_MEMORY_USED, gpu.memory_used_mib, _MIB),
        (metrics.GPU_MEMORY, gpu.memory_total_mib, _MIB),
        (metrics.GPU_TEMPERATURE, gpu.temperature_c, 1.0),
        (metrics.GPU_POWER, gpu.power_w, 1.0),
        (metrics.GPU_POWER_LIMIT, gpu.power_limit_w, 1.0),
        (metrics.GPU_CLOCK, gpu.sm_clock_mhz, _MHZ),
        (metrics.GPU_CLOCK_MOST, gpu.sm_clock_most_mhz, _MHZ),
        (metrics.GPU_ECC, gpu.ecc_uncorrected, 1.0),
        (metrics.GPU_ECC_CORRECTED, gpu.ecc_corrected, 1.0),
        (metrics.GPU_PAGES, gpu.retired_pages, 1.0),
        (metrics.GPU_ROWS, gpu.remapped_rows, 1.0),
        (metrics.GPU_ROWS_WAITING, gpu.remap_pending, 1.0),
    ):
        _set(gauge, labels, value, unit)
    if gpu.throttle_reasons is not None:
        bits = int(gpu.throttle_reasons) if 0 <= gpu.throttle_reasons < 2**53 else 0
        for bit, name in REASONS.items():
            metrics.GPU_THROTTLED.labels(*labels, name).set(bool(bits & bit))


def _set(gauge: Gauge, labels: tuple[str, ...], value: float | None, unit: float) -> None:
    if value is not None:
        gauge.labels(*labels).set(value * unit)
