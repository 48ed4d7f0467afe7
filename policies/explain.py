"""Plans, nodes and refusals as sentences for operators.

What it decides: nothing. Why: a decision nobody can read is a decision nobody trusts.
Never: a sentence says more than the values do; numbers are the ones that were decided with.

Example: `why(node)` of a node under notice is "interruption notice (local-feed), reclaim in 84 s".
"""

from __future__ import annotations

from collections.abc import Iterator

from policies import bars
from policies.actions import Cause
from policies.fleet import Fleet
from policies.gpu_health import broken
from policies.gpu_readings import GpuState
from policies.model import EVERYWHERE, Market, NoticeKind, Phase, Pool, World
from policies.node import Node
from policies.placement import Scorer
from policies.prices import usd_per_hour
from policies.records import AdapterRecord, Memory, decayed

_ASKED = {Cause.OPERATOR: "cordoned", Cause.OUTDATED: "its adapters"}


def why(node: Node, memory: Memory, now: float, gpus: GpuState | None = None) -> str:
    """One phrase: why this node is as it is. `gpus`: what its GPUs say."""
    if node.notice is not None:
        left = node.notice.deadline
        when = f", reclaim in {max(0.0, left - now):.0f} s" if left is not None else ""
        late = "" if node.drain is not None else ", still serving"
        return f"{node.notice.kind} notice ({node.notice.source}){when}{late}"
    if node.drain is not None:
        return node.drain.reason
    if not node.healthy and node.failure and node.phase in (Phase.READY, Phase.STARTING):
        return node.failure
    if node.operator is not None:
        return f"{_ASKED.get(node.operator.cause, 'its GPUs')}: {node.operator.reason}"
    if node.aside:
        return "stopped standby" if node.phase is Phase.STOPPED else "standby warming up"
    outgoing = memory.incoming.get(node.id)
    if outgoing and node.phase in (Phase.PENDING, Phase.STARTING):
        return f"replaces {outgoing}"
    if node.phase in (Phase.PENDING, Phase.STARTING):
        return f"starting for {max(0.0, now - node.started_at):.0f} s"
    if node.phase is Phase.READY and any(
        n.kind is NoticeKind.REBALANCE and not n.cancelled for n in node.notices
    ):
        return "healthy, rebalance recommended"
    if node.phase is Phase.READY and gpus is not None and broken(gpus):
        return f"serves on with a broken GPU: {gpus.fault}"
    return "healthy" if node.phase is Phase.READY else str(node.phase)


def pool_sentences(fleet: Fleet, world: World, memory: Memory) -> tuple[str, ...]:
    """Why the pool is as it is: the mix, the cover, what is refused, what is believed and how old it is."""
    pool = fleet.pool
    spot, on_demand = fleet.ready_by_market[Market.SPOT], fleet.ready_by_market[Market.ON_DEMAND]
    ready = spot + on_demand
    wanted = (
        f"{pool.replicas} {pool.noun(pool.replicas)} {_are(pool.replicas)} wanted: {pool.spot_wanted} spot "
        f"and {pool.on_demand_floor} on-demand ({pool.spot_share:.0%} spot, the on-demand share rounded up)."
    )
    found = [
        wanted
        if pool.replicas
        else "None are wanted: none is launched, and those that are there drain and end.",
        f"{ready} {_are(ready)} ready: {spot} spot and {on_demand} on-demand.",
    ]
    if pool.weighted:
        found.append(f"{len(fleet.ready)} nodes serve them: {units_sentence(pool)}.")
    cover = fleet.temporary_on_demand
    if cover > 0:
        stand = f"{pool.noun(cover)} {'stands' if cover == 1 else 'stand'}"
        found.append(f"{cover} on-demand {stand} in for spot that is not ready; this is temporary.")
    if fleet.suspect:
        found.append("Too many nodes are silent at once: the fault may be on our side, nothing is replaced.")
    sold = fleet.prices.on_sale
    scorer = Scorer(pool, memory, now=world.now, offerings=sold, held={}, sight=fleet.sight)
    for placement, refusal in sorted(memory.refusals.items()):
        if decayed(refusal, world.now, pool.placement.refusal_half_life) > 0.1:
            wait = scorer.opens_at(placement) - world.now
            again = f"not tried again for {wait:.0f} s" if wait > 0 else "may be tried again"
            found.append(f"{placement} refused {world.now - refusal.at:.0f} s ago, {again}.")
    found += _held_back(pool, world, memory, scorer)
    found += _regions(fleet, world)
    if memory.pause is not None and memory.paused(world.now):
        found.append(f"Paused by {memory.pause.by}: {memory.pause.reason}. Noticed nodes are still drained.")
    return tuple(found)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _held_back(pool: Pool, world: World, memory: Memory, scorer: Scorer) -> Iterator[str]:
    """What launches that fail for another reason than capacity hold back."""
    if bars.never_started(pool, memory):
        stopped = bars.stopped_words(pool, memory)
        yield f"{stopped[0].upper()}{stopped[1:]}."
    throttled = sum(intent.unanswered and intent.throttled > 0 for intent in memory.intents.values())
    if throttled:
        calls = "call waits" if throttled == 1 else "calls wait"
        yield f"{throttled} {calls}: the provider takes no more at once, and each is asked again."
    for key, over_at in sorted(scorer.pauses.items()):
        wait = over_at - world.now
        again = f"the next in {wait:.0f} s" if wait > 0 else "now"
        text = bars.pause_words(key, memory.bars[key])
        yield f"{text[0].upper()}{text[1:]}, {again}."


def _regions(fleet: Fleet, world: World) -> Iterator[str]:
    """What cannot be seen, since when, and what that holds back."""
    if fleet.sight.unaccounted:
        yield f"{fleet.sight.unaccounted}: nothing is launched or ended anywhere {fleet.sight.waits}."
    for region, view in sorted(world.regions.items()):
        if not (unseen := fleet.sight.hidden(region)):
            if why := fleet.sight.avoided(region):
                yield f"{region} gets no new nodes: {why}."
            continue
        why = view.error or ("first look under way" if view.at is None else "")
        found = f"{unseen[0].upper()}{unseen[1:]}{f': {why}' if why else ''}"
        alone = region == EVERYWHERE or len(world.regions) == 1
        yield f"{found}: nothing is launched or ended {'' if alone else 'there '}meanwhile."
    for region in sorted(
        {n.placement.region for n in fleet.nodes if world.region(n.placement.region) is None}
    ):
        yield f"{region} is not configured any more: its nodes serve on, and nobody can end them from here."


def _adapter(adapter: AdapterRecord) -> str:
    """What is known of an adapter that its engine loads while it runs, and the engine's own words."""
    call = adapter.call
    held = "is loaded" if adapter.held else "is not loaded"
    if call is None:
        return f"Adapter {adapter.adapter} {held}."
    verb, reason = ("load" if call.load else "unload"), f" ({call.reason})" if call.reason else ""
    if not call.failure:
        return f"Adapter {adapter.adapter} {held}; its engine is asked to {verb} it{reason}."
    tries = "once" if call.attempts == 1 else f"{call.attempts} times"
    return f"Adapter {adapter.adapter} {held}: it could not {verb} it, tried {tries}{reason}: {call.failure}."


def units_sentence(pool: Pool) -> str:
    """How many units the nodes of each instance type serve, as part of a sentence."""
    each = [f"of {kind} {units}" for kind, units in sorted(pool.units.items())]
    return f"a node {', '.join(each)}, of any other type 1"


def node_sentences(node: Node, memory: Memory, now: float, gpus: GpuState | None = None) -> tuple[str, ...]:
    """A node's state in words. `gpus`: what its GPUs say."""
    age = max(0.0, now - node.launched_at)
    cost = ", price not known" if node.price is None else f" at {usd_per_hour(node.price)}"
    found = [f"{node.id} is {node.phase}: {node.placement}, launched {age:.0f} s ago{cost}."]
    if node.units > 1:
        found.append(f"It serves {node.units} units.")
    found.append(f"Why: {why(node, memory, now, gpus)}.")
    if node.serving:
        found.append(f"It is in the target set with {node.in_flight} requests in flight.")
    elif node.attached:
        found.append(f"It takes no new requests; {node.in_flight} are in flight.")
    swap = memory.swaps.get(node.id)
    if swap is not None:
        by = f"replaced by {swap.incoming}" if swap.incoming else "nothing takes its place yet"
        found.append(f"Swap: {swap.stage}, {by}.")
    outgoing = memory.incoming.get(node.id)
    if outgoing:
        found.append(f"It takes the place of {outgoing}.")
    record = memory.nodes.get(node.id)
    found += map(_adapter, () if record is None else record.adapters)
    for notice in node.notices:
        when = f", deadline in {notice.deadline - now:.0f} s" if notice.deadline is not None else ""
        found.append(f"Notice: {notice.kind} from {notice.source} ({notice.confidence}){when}.")
    return tuple(found)
