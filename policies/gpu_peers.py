"""How fast a node is beside its peers: nodes of one type that run the same and have work.

What it decides: the share of its peers' speed that a node makes, and since when that has been too little.
Why: a GPU may be slow without an error: a cold plate that sits badly, a link that lost lanes, a neighbour on
the same host. No limit in tokens a second holds for every model; but its peers do the same work.
Never: a node that has no work, or fewer than two peers with work, is slow. A node with more requests makes
each of them slower, and with fewer makes fewer tokens in all, so it is slow only by both: tokens a second for
each request, and tokens a second. The peers' median counts: if all of them are slow, none is.

Example: four nodes have 10 requests each and make 500, 510, 490 and 120 tokens a second: the last one makes
24 % of the median, for each request and in all. Had it only 2 requests and made 120, it would be the fastest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from operator import attrgetter
from statistics import median

from policies.gpu_readings import GpuState, run_since
from policies.model import EngineReading, GpuRules
from policies.value import replace, value

FEWEST = 3
"""Nodes with work, itself among them, of which a median says something."""

_HALF = 20.0
"""Seconds after which what was measured weighs half."""

_LONGEST = 30.0
"""Seconds between two looks beyond which nothing is measured."""


@value
class Pace:
    """The share of its peers' speed that a node makes, by `tokens` or by `clocks`, whichever is less."""

    share: float
    by: str


def paced(before: EngineReading | None, reading: EngineReading) -> EngineReading:
    """A reading with the tokens a second, and the requests, that its engine had lately while it had work."""
    if before is None or not (before.ok and reading.ok) or reading.progress < before.progress:
        return reading
    took, load = reading.at - before.at, 0.5 * (before.running + reading.running)
    if not 0.0 < took <= _LONGEST or load < 1.0:
        return reading
    rate = (reading.progress - before.progress) / took
    if before.rate is not None:
        old = 0.5 ** (took / _HALF)
        rate, load = old * before.rate + (1 - old) * rate, old * before.load + (1 - old) * load
    return replace(reading, rate=rate, load=load)


def paces(
    engines: Mapping[str, EngineReading], gpus: Mapping[str, GpuState], kinds: Mapping[str, object]
) -> Mapping[str, Pace]:
    """How fast each node is beside its peers. `kinds`: nodes with the same one are peers."""
    works = {r.node: (r.rate, r.load) for r in engines.values() if r.rate is not None and r.load > 0.0}
    each = _beside({node: rate / load for node, (rate, load) in works.items()}, kinds)
    in_all = _beside({node: rate for node, (rate, _) in works.items()}, kinds)
    clocks = _beside({node: gpu.clock for node, gpu in gpus.items() if gpu.clock is not None}, kinds)
    found = {node: Pace(share=max(share, in_all[node]), by="tokens") for node, share in each.items()}
    for node, share in clocks.items():
        pace = Pace(share=share, by="clocks")
        found[node] = min(found.get(node, pace), pace, key=attrgetter("share"))
    return found


def watch(
    states: Mapping[str, GpuState], found: Mapping[str, Pace], rules: GpuRules, now: float
) -> Mapping[str, GpuState]:
    """The states of nodes with what is slow now. A node without readings has one only while slow."""
    slow = {node: pace for node, pace in found.items() if pace.share < rules.slow_share}
    if not slow:
        return states
    changed = dict(states)
    for node, pace in slow.items():
        known = changed.get(node) or GpuState(node=node)
        since = run_since(known.slow_since, known.slow_at, now)
        what = "tokens a second" if pace.by == "tokens" else "clock"
        words = f"{pace.share:.0%} of the {what} of its peers"
        changed[node] = replace(known, slow=words, slow_at=now, slow_since=since)
    return changed


def _beside(values: Mapping[str, float], kinds: Mapping[str, object]) -> Mapping[str, float]:
    """Each value as a share of the median of its kind, where there are enough; nodes of no kind have none."""
    peers: defaultdict[object, dict[str, float]] = defaultdict(dict)
    for node, made in values.items():
        if node in kinds:
            peers[kinds[node]][node] = made
    enough = [(ours, median(ours.values())) for ours in peers.values() if len(ours) >= FEWEST]
    return {node: made / middle for ours, middle in enough if middle > 0.0 for node, made in ours.items()}
