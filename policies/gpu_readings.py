"""What a node's GPUs say of themselves, and what one look after another makes of it.

What it decides: what the readings of one node ask for by themselves, and since when it has been throttled.
Why: an agent reads NVML or nvidia-smi, the daemon a DCGM exporter; all of them show the same few numbers, and
what follows from them must not depend on who read them.
Never: a clock that is held back by choice, for an idle GPU or by the power limit that is set counts as
throttled; a run of looks ends with one look that shows nothing, since a GPU at its limit goes back and forth.

Source: NVML, nvmlClocksEventReasons (the bits of `throttle_reasons`); NVIDIA's GPU memory error management
(a row that waits to be replaced harms nobody, one that could not be is the end of a GPU; an error that was
contained needs no reset).

Example:
    >>> throttled(0x4 | 0x1)
    ''
    >>> throttled(0x40 | 0x8 | 0x4)
    'thermal slowdown by hardware, hardware slowdown'
"""

from __future__ import annotations

from collections.abc import Iterator

from policies.gpu_errors import Asked, Remedy, asked_for, gravest
from policies.value import replace, value

FRESH = 60.0
"""Seconds for which a reading holds: a few heartbeats."""

GAP = 60.0
"""Seconds without a sign of trouble after which a run of it is over."""

MOST_XIDS = 64
"""Errors of one node that are remembered."""

CONTAINED = 94
"""The Xid of uncorrected errors that ended one program and harm no other; counters count them too."""

WORKS = 50.0
"""Percent of utilisation from which a GPU's clock says how fast it can be."""

_SLOWDOWNS = (
    (0x40, "thermal slowdown by hardware"),
    (0x20, "thermal slowdown by software"),
    (0x80, "power brake"),
    (0x08, "hardware slowdown"),
)
"""Reasons for slower clocks that are not by choice. The others: idle 0x1, application clocks 0x2, power cap
0x4, sync boost 0x10, display clock 0x100."""

REASONS = {
    0x04: "power-cap",
    0x08: "hw-slowdown",
    0x20: "sw-thermal",
    0x40: "hw-thermal",
    0x80: "power-brake",
}
"""Short names of reasons, for metrics. A power cap is a limit that was set on purpose."""


@value
class GpuReading:
    """One GPU as its driver shows it; None for what it does not show.

    Memory errors count since the driver was loaded, pages and rows for the life of the board.
    """

    index: int
    uuid: str = ""
    name: str = ""
    utilisation_percent: float | None = None
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: float | None = None
    sm_clock_most_mhz: float | None = None
    throttle_reasons: float | None = None  # bits
    ecc_corrected: float | None = None
    ecc_uncorrected: float | None = None
    retired_pages: float | None = None
    retired_pending: float | None = None  # 1: some wait for a reset
    remapped_rows: float | None = None
    remap_pending: float | None = None  # 1: some wait for a reset
    remap_failed: float | None = None  # 1: some could not be replaced
    state: str = ""  # what the driver says of a GPU that does not answer, such as "lost"


@value
class Xid:
    """An error that the GPU driver wrote to the kernel log; the codes are in NVIDIA's Xid catalogue.

    `count`: how often it came, `text` being that of the last time.
    """

    pci: str
    code: int
    text: str
    count: int = 1


@value
class NodeGpus:
    """The GPUs of one node at one look."""

    node: str
    at: float
    source: str  # who read them, "agent" or "dcgm"
    gpus: tuple[GpuReading, ...] = ()
    xids: tuple[Xid, ...] = ()
    error: str = ""  # why not all were read


@value
class GpuState:
    """What is known of one node's GPUs, and of its speed."""

    node: str
    at: float | None = None  # when the GPUs were read; None: never
    source: str = ""
    remedy: Remedy = Remedy.NOTHING  # what the readings ask for
    fault: str = ""  # why
    throttle: str = ""  # what slowed the GPUs when that was seen last
    throttled_at: float | None = None  # when it was seen last
    throttled_since: float | None = None  # when that run began
    clock: float | None = None  # mean of the GPUs that work, MHz
    slow: str = ""  # how the node is slower than its peers (`policies.gpu_peers`)
    slow_at: float | None = None  # when it was seen last
    slow_since: float | None = None  # when that run began


def throttled(reasons: float | None) -> str:
    """What slows a GPU and is not by choice, in words; empty where nothing does."""
    bits = 0 if reasons is None or not 0 <= reasons < 2**53 else int(reasons)
    return ", ".join(words for bit, words in _SLOWDOWNS if bits & bit)


def asks(looked: NodeGpus) -> Asked:
    """What the readings of a node ask for: the gravest of its errors and of what its GPUs say."""
    return gravest(_asked(looked))


def follow(before: GpuState | None, looked: NodeGpus | None, now: float) -> GpuState | None:
    """What is known after one more look; None where nothing is. What was read last holds, and what a node
    asked for while its GPUs could be read holds until they are read again.
    """
    if looked is None:
        over = before is None or (before.at is None and now - (before.slow_at or 0.0) > GAP)
        return None if over else before
    known = before or GpuState(node=looked.node)
    held = () if looked.gpus else (Asked(remedy=known.remedy, text=known.fault),)
    asked = gravest(iter((*held, asks(looked))))
    known = replace(
        known, at=looked.at, source=looked.source, remedy=asked.remedy, fault=asked.text, clock=_clock(looked)
    )
    if now - looked.at > FRESH:
        return replace(known, clock=None)
    why = next((words for gpu in looked.gpus if (words := throttled(gpu.throttle_reasons))), "")
    if not why:
        return known
    since = run_since(known.throttled_since, known.throttled_at, looked.at)
    return replace(known, throttle=why, throttled_at=looked.at, throttled_since=since)


def with_earlier(before: NodeGpus | None, looked: NodeGpus) -> NodeGpus:
    """A look with the errors that earlier ones saw, for a source that shows only the last one."""
    if before is None:
        return looked
    known = {(x.pci, x.code): x for x in (*before.xids, *looked.xids)}
    return replace(looked, xids=tuple(known.values())[-MOST_XIDS:])


def run_since(since: float | None, seen_at: float | None, now: float) -> float:
    """When a run of trouble began that is seen now: the one of before goes on unless it was over."""
    run = _run(since, seen_at, now)
    return run[0] if run else now


def lasts(since: float | None, seen_at: float | None, now: float) -> float:
    """Seconds from the first to the last sign of a run of trouble that is not over; 0 for none."""
    began, last = _run(since, seen_at, now) or (0.0, 0.0)
    return last - began


def _run(since: float | None, seen_at: float | None, now: float) -> tuple[float, float] | None:
    """The first and the last sign of a run of trouble that is not over; None for none."""
    return None if since is None or seen_at is None or now - seen_at > GAP else (since, seen_at)


def _asked(looked: NodeGpus) -> Iterator[Asked]:
    contained = any(xid.code == CONTAINED for xid in looked.xids)
    for xid in looked.xids:
        yield asked_for(xid.code, xid.text)
    for gpu in looked.gpus:
        if gpu.state:
            remedy = Remedy.RESET if "reset" in gpu.state else Remedy.REPLACE
            yield Asked(remedy=remedy, text=f"GPU {gpu.index}: {gpu.state}")
        if gpu.remap_failed:
            yield Asked(remedy=Remedy.REPLACE, text=f"GPU {gpu.index}: a row of memory could not be replaced")
        if gpu.ecc_uncorrected and not contained:
            text = f"GPU {gpu.index}: {gpu.ecc_uncorrected:.0f} uncorrected memory errors"
            yield Asked(remedy=Remedy.RESET, text=text)


def _clock(looked: NodeGpus) -> float | None:
    works = [g.sm_clock_mhz for g in looked.gpus if (g.utilisation_percent or 0.0) >= WORKS]
    clocks = [clock for clock in works if clock]
    return sum(clocks) / len(clocks) if clocks else None
