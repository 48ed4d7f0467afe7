"""What a start consisted of: from the launch of a machine to requests that reach its engine, in parts.

What it decides: nothing. It joins what the daemon saw (launch, ready, routed), what the node said (when it
began which stage) and what the engine's log told (how long it loaded and compiled) to one sum, and names
what shortens the longest part.
Why: a cold start is what a preemption costs; nobody shortens what nobody measured.
Never: a guess. A part that nobody measured is missing, not 0; seconds that no source explains are
`Part.OTHER`; what cannot be true together (two clocks, a log of another start) is left out. The parts always
add up to the whole.

Example:
    >>> said = NodeStart(stages=(("checks", 40.0), ("weights", 42.0), ("start", 102.0)), took={"load": 8.0})
    >>> parts = parts_of(Seen(began=0.0, ready=130.0, routed=131.0), said)
    >>> {str(part): seconds for part, seconds in parts.items()}
    {'machine': 40.0, 'prepare': 2.0, 'fetch': 60.0, 'process': 20.0, 'load': 8.0, 'route': 1.0}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from itertools import pairwise

from policies.memory_builder import MemoryBuilder
from policies.model import Word
from policies.records import StartMeasured
from policies.value import value


class Part(Word):
    """A part of a start, in their order."""

    MACHINE = "machine"  # from the launch until the machine does something for its engine: boot, cloud-init
    RETRIES = "retries"  # earlier starts of the engine that ended early, and the pauses after them
    PREPARE = "prepare"  # local disks, checks, secrets
    IMAGE = "image"  # the container's image is brought
    FETCH = "fetch"  # weights are brought to the machine, from S3 or by the engine from a hub
    PROCESS = (
        "process"  # the engine's programs: interpreter, imports, workers, and what its log does not name
    )
    LOAD = "load"  # weights into the memory of the GPU
    COMPILE = "compile"
    GRAPHS = "graphs"  # CUDA graphs are captured
    WARM_UP = "warm-up"  # profiling, the KV cache, warm-up runs
    ENGINE = "engine"  # all of the engine's start, where its log does not tell it apart
    TOKEN = "first-token"  # noqa: S105 - from the server's word that it serves to its first token
    ROUTE = "route"  # from ready until a balancer sends it requests
    OTHER = "other"  # not told apart by anybody


STARTS_KEPT = 64
"""Starts that are remembered, the newest ones."""

SHORTENED: Mapping[Part, str] = {
    Part.MACHINE: "use an image that boots with little in cloud-init, or stopped standbys",
    Part.RETRIES: "see why its first starts failed: `orchestrator node`",
    Part.PREPARE: "see what its checks wait for: `orchestrator node`",
    Part.IMAGE: "keep the container's image on the machine image",
    Part.FETCH: "keep the weights on the machine image, or have them fetched from S3 to local NVMe disks",
    Part.PROCESS: "keep the engine's programs on a disk that reads fast; nothing else shortens imports",
    Part.LOAD: "keep the weights on local NVMe disks, or stream them (`--load-format runai_streamer`)",
    Part.COMPILE: "keep the compile cache on the machine image",
    Part.GRAPHS: "capture fewer batch sizes (`--cudagraph-capture-sizes`), or keep the compile cache",
    Part.WARM_UP: "keep the caches of compiled kernels on the machine image",
    Part.ENGINE: "let the node agent report, which tells it apart",
    Part.TOKEN: "keep the caches of compiled kernels on the machine image",
    Part.ROUTE: "see the balancer's health check: its interval and how many it wants",
    Part.OTHER: "let the node agent report, which tells it apart",
}
"""What shortens each part; docs/how-to/fast-starts.md says how."""

_STAGES: Mapping[str, Part] = {
    "disks": Part.PREPARE,
    "checks": Part.PREPARE,
    "secrets": Part.PREPARE,
    "image": Part.IMAGE,
    "weights": Part.FETCH,
}
_ENGINE: Mapping[str, Part] = {
    "load": Part.LOAD,
    "compile": Part.COMPILE,
    "graphs": Part.GRAPHS,
    "warm_up": Part.WARM_UP,
}
_SLACK = 2.0
"""Seconds by which two witnesses may differ: clocks, times that are rounded, the pace of probes."""


@value
class NodeStart:
    """What a node said of its newest start, by the clock of the control host.

    `first`: when it began to work on its engine since it booted. `stages`: when each stage of the newest
    start began, the last one "start" with the engine's own program. `took`: seconds of "fetch", "load",
    "compile", "graphs" and "warm_up" by the engine's log. `serves`: the log told that it serves, and when.
    """

    first: float | None = None
    stages: tuple[tuple[str, float], ...] = ()
    took: Mapping[str, float] = field(default_factory=dict)
    serves: bool = False
    serves_at: float | None = None


@value
class Seen:
    """What the daemon saw: when the start was asked for, the engine ready, and requests routed to it."""

    began: float
    ready: float
    routed: float | None = None

    @property
    def seconds(self) -> float:
        """The whole start."""
        return max(0.0, max(self.ready, self.routed or self.ready) - self.began)


def parts_of(seen: Seen, said: NodeStart | None) -> dict[Part, float]:
    """Seconds of each part that is known, in order. They add up to `seen.seconds`."""
    said = NodeStart() if said is None else said
    found = dict.fromkeys(Part, 0.0)
    known: set[Part] = set()

    def add(part: Part, seconds: float) -> None:
        found[part] += max(0.0, seconds)
        known.add(part)

    marks = _marks(seen, said)
    for (part, at), (_, until) in pairwise(marks):
        add(part, until - at)
    apart = marks[-1][0] is Part.ENGINE
    for part, seconds in _of_engine(marks[-1], seen, said, apart=apart):
        add(part, seconds)
    if seen.routed is not None:
        add(Part.ROUTE, seen.routed - max(seen.ready, seen.began))
    return {part: seconds for part, seconds in found.items() if part in known}


def _marks(seen: Seen, said: NodeStart) -> list[tuple[Part, float]]:
    """When each part before the engine's began, and the engine's own; only what can be true."""
    stages = [(_STAGES.get(name, Part.ENGINE), at) for name, at in said.stages]
    times = [at for _, at in stages]
    if said.first is not None and times:
        times = [said.first, *times]
    true = times == sorted(times) and all(seen.began - _SLACK <= at <= seen.ready + _SLACK for at in times)
    if not stages or not true or stages[-1][0] is not Part.ENGINE:
        return [(Part.OTHER, seen.began)]
    bounded = [(part, min(seen.ready, max(seen.began, at))) for part, at in stages]
    marks = [(Part.MACHINE, seen.began), *bounded]
    if said.first is not None and said.first < times[-len(stages)]:
        marks.insert(1, (Part.RETRIES, min(seen.ready, max(seen.began, said.first))))
    return marks


def _of_engine(
    mark: tuple[Part, float], seen: Seen, said: NodeStart, *, apart: bool
) -> Iterator[tuple[Part, float]]:
    """The engine's own start, as far as its log tells it apart. `apart`: when it began is known."""
    _, began = mark
    whole = max(0.0, seen.ready - began)
    took = {name: seconds for name, seconds in said.took.items() if name in _ENGINE or name == "fetch"}
    if sum(took.values()) > whole + _SLACK:
        took = {}  # a log of another start
    first = None if said.serves_at is None else seen.ready - said.serves_at
    if first is not None and not -_SLACK <= first <= whole:
        first = None
    rest = whole
    for name, seconds in took.items():
        seconds = min(rest, seconds)
        rest -= seconds
        yield _ENGINE.get(name, Part.FETCH), seconds
    if first is not None:
        first = min(rest, max(0.0, first))
        rest -= first
        yield Part.TOKEN, first
    if not apart:
        yield Part.OTHER, rest
    else:
        yield Part.PROCESS if took else Part.ENGINE, rest


def advice(part: Part, share: float) -> str:
    """A sentence for people: what takes longest, and what shortens it.

    >>> advice(Part.COMPILE, 0.613)
    'compile takes 61 % of a start: keep the compile cache on the machine image (docs/how-to/fast-starts.md)'
    """
    return f"{part} takes {share * 100:.0f} % of a start: {SHORTENED[part]} (docs/how-to/fast-starts.md)"


def measured(builder: MemoryBuilder, event: StartMeasured) -> None:
    """A start was measured: the newest STARTS_KEPT stay. Twice told, as over a restart, it is one."""
    known: tuple[StartMeasured, ...] = builder.get("starts")
    others = tuple(s for s in known if (s.node, s.began_at) != (event.node, event.began_at))
    builder.set("starts", (*others, event)[-STARTS_KEPT:])
