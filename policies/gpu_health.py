"""Which nodes are replaced for their GPUs, and when none is although its GPUs ask for it.

What it decides: whether a node goes for what its GPUs say, at once or once its replacement is ready, and what
people are told instead.
Why: a broken GPU may go on answering, and wrongly; a slow one costs as much as a good one. A restart of the
engine, which NVIDIA's catalogue asks for where a program failed, is the node's own affair: the engine that
such an error ends is started again there, and one that then hangs is silent (`policies.health`). A reset asks
for a GPU without any program and for root on the node; on a cloud another machine is as quick, and sure.
Never: what nodes say of themselves takes a pool down. Where more than `health.max_unhealthy` of the nodes
are broken at once, one goes at a time and once its replacement is ready; so does a node that is only doubted,
with `gpu.again_after` between two, and only while the pool is whole. Where as many are throttled, none goes
for it. Faults replace no more than `max_unhealthy` of the nodes within an hour, but three at least. A node
that an operator took back is spared from then on; one that was doubted, and is well for minutes before its
replacement is ready, stays. With `gpu.replace` off none goes.

Example: of eight nodes one has Xid 48: it drains at once, and another one is launched. Five are throttled by
heat: an alarm, and none is replaced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from policies.actions import Alarm, Cause
from policies.events import GpuAcquitted, GpuCondemned
from policies.fleet import Fleet
from policies.gpu_errors import Remedy
from policies.gpu_readings import FRESH, GpuState, lasts
from policies.model import Phase, Pool, World
from policies.node import ENDING, Node
from policies.plan_builder import Turn
from policies.records import Memory

SUSPECT = "gpus-suspect"
"""Name of the alarm: so many nodes are in trouble that the fault may lie elsewhere."""

WELL_FOR = 300.0
"""Seconds without a sign of trouble after which a doubted node stays that does not drain yet."""

_HOUR = 3600.0
_LEAST_AN_HOUR = 3
_URGENT = (Remedy.RESET, Remedy.REPLACE)
_ASKS = {Remedy.RESET: "a reset of the GPU", Remedy.REPLACE: "a new start of the machine"}


@dataclass
class Judgement:
    """Who goes now, what people are told, and why others stay."""

    condemned: list[GpuCondemned] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def broken(state: GpuState | None) -> bool:
    """The readings of a node ask for a reset or for another machine."""
    return state is not None and state.remedy in _URGENT


def news(pool: Pool, world: World, fleet: Fleet, memory: Memory) -> tuple[GpuCondemned | GpuAcquitted, ...]:
    """Nodes that are to go and that memory does not know of, and those that are well again."""
    condemned = judge(pool, world, fleet, memory).condemned if world.gpus else ()
    well = (GpuAcquitted(at=world.now, node=n.id) for n in fleet.nodes if _well(world, n))
    return (*condemned, *well)


def tell(turn: Turn) -> None:
    """Raise the alarms, and say why nodes stay whose GPUs ask for more."""
    if turn.world.gpus:
        found = judge(turn.pool, turn.world, turn.fleet, turn.memory)
        turn.actions.extend(found.alarms)
        for text in found.notes:
            turn.note(text)


def judge(pool: Pool, world: World, fleet: Fleet, memory: Memory) -> Judgement:
    """What the states of all nodes come to. Linear in their number."""
    found, able = Judgement(), pool.gpu.replace and world.able
    here = [n for n in fleet.nodes if n.phase not in ENDING]
    _faults(found, pool, world, memory, here, able=able)
    _doubts(found, pool, world, memory, fleet, here, able=able)
    return found


def _faults(
    found: Judgement, pool: Pool, world: World, memory: Memory, here: list[Node], *, able: bool
) -> None:
    faulty = [n for n in here if broken(world.gpus.get(n.id))]
    if not faulty:
        return
    suspect = _too_many(pool, len(faulty), len(here))
    if suspect:
        text = f"the GPUs of {len(faulty)} of {len(here)} nodes are broken at once: one goes at a time"
        found.alarms.append(Alarm(name=SUSPECT, about="faults", reason=text))
    lately = sum(c.fault and world.now - c.at < _HOUR for c in memory.condemned)
    most = max(_LEAST_AN_HOUR, math.ceil(pool.health.max_unhealthy * pool.replicas))
    under_way = any(_condemned(n) for n in here)
    for node in faulty:
        state = world.gpus[node.id]
        if not _open(memory, node, urgent=not suspect):
            continue
        if not able:
            found.notes.append(f"{node.id}: {state.fault}; {_unable(pool)}")
        elif lately >= most:
            text = f"{lately} nodes were replaced for GPU faults within an hour, and {node.id} waits"
            found.alarms.append(Alarm(name=SUSPECT, about="an hour", reason=f"{text}: {state.fault}"))
            return
        elif suspect and under_way:
            found.notes.append(f"{node.id}: {state.fault}; it waits while another one is replaced")
        else:
            reason = f"{state.fault}; it asks for {_ASKS[state.remedy]}, and another node takes its place"
            found.condemned.append(_event(pool, world, node, reason, state.remedy, urgent=not suspect))
            lately, under_way = lately + 1, True


def _doubts(
    found: Judgement,
    pool: Pool,
    world: World,
    memory: Memory,
    fleet: Fleet,
    here: list[Node],
    *,
    able: bool,
) -> None:
    """At most one node that is throttled or slow, the one that has been for longest."""
    rules, now = pool.gpu, world.now
    throttled = {n.id: _throttled_for(world, n, now) for n in here}
    hot = sum(lasted is not None for lasted in throttled.values())
    together = _too_many(pool, hot, len(here))
    late: list[tuple[float, Node, str]] = []
    for node in here:
        state, lasted = world.gpus.get(node.id), throttled[node.id]
        if state is None or not _open(memory, node, urgent=False) or broken(state):
            continue
        if lasted is not None and lasted >= rules.throttled_for and not together:
            late.append((lasted, node, f"throttled for {lasted:.0f} s: {state.throttle}"))
        slow = lasts(state.slow_since, state.slow_at, now)
        if rules.slow_share > 0.0 and slow >= rules.slow_for and node.phase is Phase.READY:
            late.append((slow, node, f"slow for {slow:.0f} s: {state.slow}"))
    if together and max(lasted or 0.0 for lasted in throttled.values()) >= rules.throttled_for:
        text = f"{hot} of {len(here)} nodes are throttled at once, and none is replaced for it"
        found.alarms.append(Alarm(name=SUSPECT, about="throttling", reason=text))
    late.sort(key=lambda entry: (-entry[0], entry[1].id))
    for _, node, text in late:
        why = _unable(pool) if not able else _not_yet(pool, memory, fleet, here, now, found)
        if why:
            found.notes.append(f"{node.id}: {text}; {why}")
        else:
            reason = f"{text}; another node takes its place"
            found.condemned.append(_event(pool, world, node, reason, None, urgent=False))


def _not_yet(pool: Pool, memory: Memory, fleet: Fleet, here: list[Node], now: float, found: Judgement) -> str:
    """Why no node is replaced for a doubt now; empty when one may be."""
    if found.condemned or any(_condemned(n) for n in here):
        return "it waits while another one is replaced"
    if fleet.suspect or fleet.ready_units < pool.replicas:
        return "it waits until the pool is whole"
    last = max((c.at for c in memory.condemned if not c.fault), default=None)
    if last is not None and now - last < pool.gpu.again_after:
        return f"the last one was replaced for a doubt {now - last:.0f} s ago"
    return ""


def _unable(pool: Pool) -> str:
    return "gpu.replace is off" if not pool.gpu.replace else "it waits for the lease and the journal"


def _too_many(pool: Pool, count: int, of: int) -> bool:
    return count > 1 and count > pool.health.max_unhealthy * of


def _condemned(node: Node) -> bool:
    return node.operator is not None and node.operator.cause is not Cause.OPERATOR


def _open(memory: Memory, node: Node, *, urgent: bool) -> bool:
    """True for a node that may still be condemned: one that stays as far as is decided."""
    if node.leaving or node.aside or memory.nodes[node.id].spared:
        return False
    return node.operator is None or (urgent and node.operator.cause is not Cause.GPU)


def _throttled_for(world: World, node: Node, now: float) -> float | None:
    """Seconds for which a node has been throttled; None for one that is not now."""
    state = world.gpus.get(node.id)
    if state is None or state.throttled_at is None:
        return None
    lasted = lasts(state.throttled_since, state.throttled_at, now)
    return lasted if lasted > 0.0 else None


def _well(world: World, node: Node) -> bool:
    """True for a doubted node that has shown no trouble for long, as far as somebody looked."""
    request = node.operator
    if request is None or request.cause is not Cause.GPU_DOUBT or node.drain is not None:
        return False
    state = world.gpus.get(node.id) or GpuState(node=node.id)
    read = state.at is None or world.now - state.at <= FRESH
    seen_at = (node.evidence.watched_since(request.since), state.throttled_at or 0.0, state.slow_at or 0.0)
    return read and not broken(state) and world.now - max(seen_at) >= WELL_FOR


def _event(
    pool: Pool, world: World, node: Node, reason: str, remedy: Remedy | None, *, urgent: bool
) -> GpuCondemned:
    return GpuCondemned(
        at=world.now,
        node=node.id,
        reason=reason,
        remedy="" if remedy is None else str(remedy),
        urgent=urgent,
        budget=pool.drain.budget,
    )
