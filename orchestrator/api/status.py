"""The last turn as the API's JSON (see orchestrator.views.api)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import orjson

from orchestrator.config.checks.certificates import doubt
from orchestrator.journal.codec import UnknownRecord, decode_event
from orchestrator.journal.store import StoredEvent, Totals
from orchestrator.loop.loop import Snapshot
from orchestrator.views import api as views
from orchestrator.words import age, plural
from policies import bill, explain
from policies.actions import Action, Alarm
from policies.boot_memory import BOOTS_KEPT
from policies.economics import rate
from policies.event_text import sentence
from policies.fleet import Fleet
from policies.memory import Memory, Swap
from policies.model import Market, Notice, Phase, World
from policies.node import Node
from policies.prices import Failing, failing
from policies.records import FailedBoot
from policies.remedies import remedy
from policies.spot_loss import SpotLoss
from policies.verdict import State, Verdict, unread

_SWAPS_SHOWN = 20
_RECENT = 3600.0  # s for which a failed boot is a problem of now
_UNKNOWN = "unknown"  # the state of a target whose balancer does not answer


def pool_view(snapshot: Snapshot, totals: Totals, *, down: str = "") -> views.PoolView:
    """One pool: wanted against actual, money, notices, swaps, nodes.

    `down` says why its loop does not turn; what is shown of it is then what was last seen.
    """
    fleet, world, memory = snapshot.fleet, snapshot.world, snapshot.memory
    pool, now = fleet.pool, world.now
    spot, on_demand = fleet.ready_by_market[Market.SPOT], fleet.ready_by_market[Market.ON_DEMAND]
    money = rate(fleet)
    states, found = _target_states(fleet, world, memory), snapshot.verdict
    lost = found.spot_loss
    return views.PoolView(
        name=pool.name,
        model=pool.model,
        units=dict(pool.units) if pool.weighted else {},
        wanted=pool.replicas,
        ready=fleet.ready_units,
        ready_nodes=len(fleet.ready),
        serving=found.serving,
        spot_ready=spot,
        on_demand_ready=on_demand,
        spot_wanted=pool.spot_wanted,
        on_demand_floor=pool.on_demand_floor,
        spot_share=spot / (spot + on_demand) if spot + on_demand else 0.0,
        temporary_on_demand=fleet.temporary_on_demand,
        standby_hot=hot_standbys(fleet),
        standby_stopped=stopped_standbys(fleet),
        state="down" if down else found.state.value,
        cost_per_hour=money.cost,
        on_demand_cost_per_hour=money.on_demand,
        saved_share=money.saved_share,
        spend_cap_per_hour=pool.limits.spend_per_hour,
        spot_lost_at=lost.since if lost is not None else None,
        spot_next_try_s=_wait(lost.next_try, now) if lost is not None else None,
        spent_usd=totals.usd,
        saved_usd=totals.on_demand_usd - totals.usd,
        notices=[
            _notice(node, notice, memory, fleet, now)
            for node in fleet.nodes
            for notice in _newest(node, fleet)
        ],
        swaps=[_swap(s) for s in sorted(memory.swaps.values(), key=lambda s: s.opened_at)][-_SWAPS_SHOWN:],
        nodes=[_node(n, world, states.get(n.id), memory) for n in fleet.nodes],
        failed_boots=[failed_boot_view(boot) for boot in memory.failed_boots],
        problems=[
            *([f"nothing is decided for this pool: {down}"] if down else []),
            *_problems(snapshot, found),
        ],
        notes=[*explain.pool_sentences(fleet, world, memory), *snapshot.plan.notes],
    )


def pool_state(snapshot: Snapshot) -> views.PoolState:
    """One word for the pool, which the exit code of `orchestrator status` follows."""
    return snapshot.verdict.state.value


def status_line(snapshot: Snapshot) -> str:
    """The pool in one line, for the service manager. Says no number that changes with every turn."""
    fleet, ready, found = snapshot.fleet, snapshot.fleet.ready_by_market, snapshot.verdict
    noticed = sum(n.notice is not None for n in fleet.nodes)
    return (
        f"{fleet.pool.name}: {found.state.value}, {found.serving} of {fleet.pool.replicas} serving, "
        f"{fleet.ready_units} ready "
        f"({ready[Market.SPOT]} spot, {ready[Market.ON_DEMAND]} on-demand)"
        + (f", {noticed} under notice" if noticed else "")
    )


def plan_view(snapshot: Snapshot) -> views.PoolPlanView:
    """The plan of the last turn."""
    plan = snapshot.plan
    return views.PoolPlanView(
        name=snapshot.fleet.pool.name,
        actions=[_action(a) for a in plan.actions],
        deferred=[
            views.DeferredView(
                kind=str(d.kind),
                node=d.node or None,
                placement=str(d.placement) if d.placement is not None else None,
                reason=d.reason,
            )
            for d in plan.deferred
        ],
        notes=list(plan.notes),
        targets=[
            views.TargetSpecView(
                id=t.id,
                address=t.address,
                phase=str(t.phase),
                weight=t.weight,
                drain_deadline=t.drain_deadline,
            )
            for t in plan.targets
        ],
    )


def node_view(snapshot: Snapshot, node: Node) -> views.NodeView:
    """One node."""
    world, memory = snapshot.world, snapshot.memory
    target = _target_states(snapshot.fleet, world, memory).get(node.id)
    return _node(node, world, target, memory)


def failed_boot_view(boot: FailedBoot) -> views.FailedBootView:
    """A machine that never became ready."""
    found = remedy(boot.why, boot.placement.region, boot.placement.market, boot.console)
    return views.FailedBootView(
        node=boot.node,
        at=boot.at,
        placement=str(boot.placement),
        why=boot.why,
        console=boot.console.split("\n") if boot.console else [],
        remedy=None if found is None else found.text,
        commands=[] if found is None else [*found.commands],
    )


def event_view(entry: StoredEvent) -> views.EventView:
    """One journal entry, with a sentence; an entry of another version is shown by its kind."""
    try:
        text = sentence(decode_event(entry.kind, entry.body))
    except UnknownRecord:
        text = entry.kind
    return views.EventView(
        seq=entry.seq,
        at=entry.at,
        kind=entry.kind,
        node=entry.node,
        text=text,
        data=orjson.loads(entry.body),
    )


def price_problem(failed: Failing, fleet: Fleet, now: float) -> str:
    """Prices that cannot be read: which, since when, why, and what that means."""
    since = "never read" if failed.read_at is None else f"last read {age(now - failed.read_at)} ago"
    cap = fleet.pool.limits.spend_per_hour
    if not failed.unknown:
        effect = "launches go on at the last known prices"
    elif cap is None:
        effect = "launches go on, some at prices that are not known"
    else:
        places = plural(len(failed.unknown), "offering")
        effect = f"{places} without a price cannot be launched under the spend cap"
    return f"prices of {failed.part} cannot all be read ({since}): {failed.error}; {effect}"


def hot_standbys(fleet: Fleet) -> int:
    """On-demand units ready beyond the floor, as far as they are wanted as standbys."""
    return max(
        0, min(fleet.pool.standby.hot, fleet.ready_by_market[Market.ON_DEMAND] - fleet.pool.on_demand_floor)
    )


def stopped_standbys(fleet: Fleet) -> int:
    """Units of the machines that are stopped and wait to be put to work."""
    return sum(n.units for n in fleet.nodes if n.aside and n.phase is Phase.STOPPED)


def _target_states(fleet: Fleet, world: World, memory: Memory) -> dict[str, str]:
    """The state of each target. Of a balancer that does not answer nothing is known, neither what it last
    showed nor what it took since."""
    found: dict[str, str] = {}
    for name, view in world.balancers.items():
        if unread(fleet, world, name):
            held = {*memory.targets.get(name, {}), *(t.id for t in view.value)}
            found.update(dict.fromkeys(held, _UNKNOWN))
        else:
            found.update({t.id: str(t.state) for t in view.value})
    return found


def _newest(node: Node, fleet: Fleet) -> Sequence[Notice]:
    """One notice to show per node: the believed one, else the newest that time has not proved wrong."""
    if node.notice is not None:
        return (node.notice,)
    over = fleet.now - fleet.pool.patience.vanish_grace
    live = [n for n in node.notices if not n.cancelled and (n.deadline is None or n.deadline > over)]
    return live[-1:]


def _notice(node: Node, notice: Notice, memory: Memory, fleet: Fleet, now: float) -> views.NoticeView:
    swap = memory.swaps.get(node.id)
    incoming = fleet.by_id.get(swap.incoming) if swap is not None else None
    remaining = notice.deadline - now if notice.deadline is not None else None
    stage = swap.stage if swap is not None else ("noticed" if node.notice is not None else "not believed")
    parts = [f"{notice.kind} notice {max(0.0, now - notice.seen_at):.0f} s ago: {stage}"]
    if node.notice is not None:
        parts.append(f"{node.in_flight} requests left")
    if incoming is not None:
        parts.append(f"replacement {incoming.id} {incoming.phase}")
    return views.NoticeView(
        node=node.id,
        kind=str(notice.kind),
        source=notice.source,
        confidence=str(notice.confidence),
        seen_at=notice.seen_at,
        deadline=notice.deadline,
        remaining_s=remaining,
        stage=stage,
        in_flight=node.in_flight,
        replacement=(swap.incoming or None) if swap is not None else None,
        replacement_phase=str(incoming.phase) if incoming is not None else None,
        text=", ".join(parts),
    )


def _swap(swap: Swap) -> views.SwapView:
    return views.SwapView(
        outgoing=swap.outgoing,
        incoming=swap.incoming or None,
        stage=swap.stage,
        noticed_at=swap.opened_at,
        detached_at=swap.detached_at,
        drained_at=swap.drained_at,
        replaced_at=swap.replaced_at,
        deadline=swap.deadline,
        cause=str(swap.cause),
    )


def _node(node: Node, world: World, target: str | None, memory: Memory) -> views.NodeView:
    reading, now = world.engines.get(node.id), world.now
    return views.NodeView(
        id=node.id,
        market=str(node.placement.market),
        provider=node.placement.provider,
        zone=node.placement.zone,
        instance_type=node.placement.instance_type,
        units=node.units,
        phase=str(node.phase),
        age_s=max(0.0, now - node.launched_at),
        in_flight=node.in_flight if reading is not None else None,
        running=reading.running if reading is not None else None,
        waiting=reading.waiting if reading is not None else None,
        target=target,
        attached=node.serving,
        healthy=node.healthy,
        conditions=list(node.conditions),
        price=node.price,
        why=explain.why(node, memory, now, world.gpus.get(node.id)),
        address=node.address,
        launched_at=node.launched_at,
        token=node.token,
        build=node.build,
        adapters=_adapters(node.id, world),
        continuation=_continuation(node.id, world),
    )


def _adapters(node: str, world: World) -> list[str]:
    """What balancers send it requests for."""
    shown = (t for view in world.balancers.values() for t in view.value if t.id == node)
    rows = (f"{held.name}@{held.revision}" for target in shown for held in target.adapters or ())
    return list(dict.fromkeys(rows))


def _continuation(node: str, world: World) -> views.ContinuationView | None:
    """What the first balancer says that says anything."""
    for view in world.balancers.values():
        for target in view.value:
            if target.id == node and target.continues is not None:
                return views.ContinuationView(way=target.continues, why=target.continues_why)
    return None


def _action(action: Action) -> views.ActionView:
    placement = getattr(action, "placement", None)
    return views.ActionView(
        kind=str(action.kind),
        node=getattr(action, "node", None),
        placement=str(placement) if placement is not None else None,
        reason=f"{action.name}: {action.reason}" if isinstance(action, Alarm) else action.reason,
        token=getattr(action, "token", None),
    )


def _wait(until: float | None, now: float) -> float | None:
    return None if until is None else max(0.0, until - now)


def _spot_words(lost: SpotLoss, snapshot: Snapshot) -> str:
    """That spot cannot be had, since when, and when it is tried again."""
    pool, now = snapshot.fleet.pool, snapshot.world.now
    left = f"{lost.ready} of {pool.spot_wanted}" if lost.ready else "no"
    since = f" for {age(now - lost.since)}" if lost.since is not None and not lost.ready else ""
    wait = _wait(lost.next_try, now)
    if lost.coming:
        then = f"{plural(lost.coming, pool.noun(1))} on the way"
    elif snapshot.memory.pause is not None and snapshot.memory.pause.holds(now):
        then = "no try while paused"
    elif wait is None:
        then = "next try once it is offered again"
    else:
        then = f"next try in {age(wait)}" if wait > 0 else "next try now"
    stands_in = "all on demand" if not lost.ready else "on-demand stands in"
    return f"{left} spot {pool.noun(lost.ready or 2)} ready{since}, spot cannot be had: {stands_in}; {then}"


def _certificates(world: World) -> Iterator[str]:
    """What clients are about to refuse."""
    for name, service in sorted(world.services.items()):
        if (shown := service.certificate) is None:
            continue
        if shown.fault:
            yield f"{name} does not show its newest certificate: {shown.fault}"
        if said := doubt(0.0, shown.expires, world.now):
            yield f"the certificate that {name} shows {said}"


def _problems(snapshot: Snapshot, verdict: Verdict) -> list[str]:
    world, fleet = snapshot.world, snapshot.fleet
    found = [*verdict.reasons]
    if verdict.spot_loss is not None:
        found.append(_spot_words(verdict.spot_loss, snapshot))
    if world.failsafe_since is not None:
        found.append(
            f"the database has not answered for {world.now - world.failsafe_since:.0f} s: noticed nodes are "
            "still taken out of the balancers; nothing is launched or ended"
        )
    elif not world.leading:
        found.append("this daemon does not hold the lease: it only watches")
    if not world.durable and world.failsafe_since is None:
        found.append("the journal cannot be written: nothing is launched or ended until it can")
    found += _unlisted(fleet, world)
    for name, view in sorted(world.balancers.items()):
        if view.error and not unread(fleet, world, name):
            found.append(f"{name} cannot be read: {view.error}")
    found += _certificates(world)
    found += [price_problem(failed, fleet, world.now) for failed in failing(world, snapshot.memory)]
    if unpriced := rate(fleet).unpriced:
        nodes = f"{plural(unpriced, 'node')} {'costs' if unpriced == 1 else 'cost'}"
        found.append(f"what {nodes} is not known, so the cost of the pool is not known either")
    found += [a.reason for a in snapshot.plan.actions if isinstance(a, Alarm)]
    found += _failed_boots(snapshot.memory, world.now)
    found += [
        f"{plural(round(failed.weight), 'node')} in a row at {placement} never became ready: it is avoided"
        for placement, failed in sorted(snapshot.memory.boot_failures.items())
        if failed.weight >= fleet.pool.health.boot_failures
    ]
    cap = bill.below_floor(fleet.pool, bill.prices_of(fleet.pool, fleet.prices.on_sale))
    if cap:
        found.append(f"limits.spend_per_hour: {cap}")
    if snapshot.memory.whole_at is not None and verdict.state is not State.STARTING:
        found += _below_floor(fleet)
    return found


def _failed_boots(memory: Memory, now: float) -> Iterator[str]:
    """Boots that failed lately, why the last one did, and where to read on. Since somebody resumed, that is:
    then what was wrong is fixed."""
    resumed_at = 0.0 if memory.resumed_at is None else memory.resumed_at
    recent = [boot for boot in memory.failed_boots if now - boot.at < _RECENT and boot.at >= resumed_at]
    if not recent:
        return
    last = recent[-1]
    found = remedy(last.why, last.placement.region, last.placement.market, last.console)
    least = "at least " if len(recent) == BOOTS_KEPT else ""
    todo = f"; {found.text}" if found is not None else ""
    yield (
        f"{least}{plural(len(recent), 'boot')} failed in the last hour, the last one "
        f"{age(now - last.at)} ago: {last.why}{todo}; see `orchestrator node {last.node}`"
    )


def _below_floor(fleet: Fleet) -> Iterator[str]:
    """What is missing of the nodes that a pool must never be without."""
    pool, ready = fleet.pool, fleet.ready_units
    if ready < pool.min_serving:
        are = f"{ready} {pool.noun(ready)} {'is' if ready == 1 else 'are'}"
        yield f"only {are} ready, fewer than the {pool.min_serving} that drain.min_serving asks for"
    short = pool.on_demand_floor - fleet.ready_by_market[Market.ON_DEMAND]
    if short > 0:
        are = f"{short} on-demand {pool.noun(short)} {'is' if short == 1 else 'are'}"
        yield f"{are} missing below the floor of {pool.on_demand_floor}"


def _unlisted(fleet: Fleet, world: World) -> Iterator[str]:
    """Regions whose machines cannot be listed, and what becomes of their nodes."""
    for region, view in sorted(world.regions.items()):
        if not view.error:
            continue
        found = f"{region or 'instances'} cannot be listed: {view.error}"
        if len(world.regions) > 1:
            nodes = sum(n.placement.region == region for n in fleet.nodes)
            stay = f"its {plural(nodes, 'node')} {'stays as it is' if nodes == 1 else 'stay as they are'}, "
            waits = fleet.sight.waits
            rest = f"all other regions wait for it {waits}" if waits else "other regions go on"
            since = f" for {world.now - view.failing_since:.0f} s" if view.failing_since is not None else ""
            found = f"{region} cannot be listed{since}: {view.error}; {stay if nodes else ''}{rest}"
        yield found
    left = Counter(n.placement.region for n in fleet.nodes if world.region(n.placement.region) is None)
    for region, nodes in sorted(left.items()):
        yield (
            f"{region} is not configured any more and has {plural(nodes, 'node')}, which this daemon can "
            "neither list nor end; write it back into the configuration, or end them by hand"
        )
