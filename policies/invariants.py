"""What must hold of every plan. Checked in production: a plan that breaks one does nothing destructive.

What it decides: the list of violations of a plan (empty when it is sound).
Why: policies are many and change; these few sentences are the promise, so they are checked apart from the
code that should keep them, with their own counting.
Never: an invariant trusts a number that a policy computed. All count in units. Nodes come whole, so what
lives may be over the limit by less than one of the nodes that were added.

Example: a plan that terminates an on-demand node while only the floor is left has the violation
"floor: 2 on-demand nodes would be left, the floor is 3".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from policies.actions import (
    Action,
    Cause,
    Drain,
    Launch,
    Plan,
    Start,
    Stop,
    Terminate,
    Undrain,
    UnloadAdapter,
)
from policies.bars import PAUSE_FIRST
from policies.evidence import Witness
from policies.fleet import Fleet
from policies.grant import Ask, Grant, SharedBudget
from policies.limits import within_cap
from policies.model import Phase, Pool, StandbyKind, TargetPhase, TargetState, World, kept_aside
from policies.node import Node
from policies.records import Memory

_HAIR = 1e-6  # USD/h

Destructive = (Launch, Start, Stop, Terminate)
"""Action types that a plan with violations may not carry out, with drains that nothing forces."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant, by name and in numbers."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def check(pool: Pool, world: World, fleet: Fleet, memory: Memory, plan: Plan) -> tuple[Violation, ...]:
    """All violations of a plan. Linear in nodes plus actions."""
    found: list[Violation] = []
    if plan.actions:
        found += _authority(world, fleet, plan)
        found += _in_vain(pool, fleet, memory, plan)
        found += _self_harm(pool, fleet, plan)
        found += _disruption(pool, fleet, plan)
        found += _bounds(pool, fleet, plan)
        found += _order(fleet, plan)
        found += _adapters(fleet, plan)
    found += (
        _beyond_the_lease(fleet, plan)
        if world.failsafe_since is not None
        else _targets(pool, world, fleet, plan)
    )
    return tuple(found)


def without_destruction(plan: Plan) -> tuple[Action, ...]:
    """The actions of a plan that remain allowed when it has violations."""
    return tuple(
        a
        for a in plan.actions
        if not isinstance(a, (*Destructive, UnloadAdapter))
        and not (isinstance(a, Drain) and a.cause is not Cause.NOTICE)
    )


def _nodes(plan: Plan, *kinds: type[Drain | Undrain | Terminate | Stop | Start]) -> set[str]:
    """Nodes of the actions of these types."""
    return {a.node for a in plan.actions if isinstance(a, kinds)}


def _new_launches(fleet: Fleet, plan: Plan) -> list[Launch]:
    """What is asked for again is no new launch."""
    known = {intent.token for intent in fleet.launching}
    return [a for a in plan.actions if isinstance(a, Launch) and a.token not in known]


def _units(nodes: Iterable[Node]) -> int:
    return sum(node.units for node in nodes)


def _works(node: Node) -> bool:
    """It serves, or would at once: it is ready, well and no standby."""
    return node.phase is Phase.READY and node.healthy and not node.aside


def _authority(world: World, fleet: Fleet, plan: Plan) -> list[Violation]:
    costly = [a for a in plan.actions if isinstance(a, Destructive)]
    if costly and not world.able:
        return [Violation("authority", f"{len(costly)} calls planned without lease or journal")]
    blind = 0
    for action in costly:
        placement = action.placement if isinstance(action, Launch) else None
        if not isinstance(action, Launch) and action.node in fleet.by_id:
            placement = fleet.by_id[action.node].placement
        view = None if placement is None else world.region(placement.region)
        blind += placement is not None and (view is None or not world.seen(view))
    if blind:
        return [Violation("authority", f"{blind} calls planned before their region was seen whole")]
    return []


def _in_vain(pool: Pool, fleet: Fleet, memory: Memory, plan: Plan) -> list[Violation]:
    """A pool that never started launches nothing new, nor more than one node where launches just failed."""
    new = _new_launches(fleet, plan)
    if not new:
        return []
    given_up = {a.node for a in plan.actions if isinstance(a, Terminate) and a.cause is Cause.BOOT}
    began = [record.started_at for node, record in memory.nodes.items() if node in given_up]
    found, failed = [], memory.failed_starts + sum(at >= (memory.resumed_at or 0.0) for at in began)
    if not memory.ready_once and failed >= pool.health.give_up_after:
        text = f"{len(new)} launches planned after {failed} boots that failed, and none was ever ready"
        found.append(Violation("in-vain", text))
    by_market = Counter((a.placement.region, a.placement.market) for a in new)
    for key, bar in sorted(memory.bars.items()):
        paused = bar.denied or bar.boots >= pool.health.boot_failures
        if paused and (count := by_market[key]) and (count > 1 or fleet.now - bar.at < PAUSE_FIRST):
            ago = f"{fleet.now - bar.at:.0f} s after one failed"
            found.append(Violation("in-vain", f"{count} launches planned {ago}: {key[1]} in {key[0]}"))
    return found


def _adapters(fleet: Fleet, plan: Plan) -> list[Violation]:
    """Nothing is unloaded that a target is sent requests for, now or by the wanted set."""
    unloads = {(a.node, a.served_as) for a in plan.actions if isinstance(a, UnloadAdapter)}
    if not unloads:
        return []
    routed = {(s.id, held.served_as) for s in plan.targets for held in s.adapters}
    for balancer in fleet.evidence.routing:
        routed |= {(t.id, held.served_as) for t in balancer.targets for held in t.adapters or ()}
    return [
        Violation("adapters", f"{served_as} would be unloaded from {node}, which gets requests for it")
        for node, served_as in sorted(unloads & routed)
    ]


def _self_harm(pool: Pool, fleet: Fleet, plan: Plan) -> list[Violation]:
    """Our own choice takes neither ready units below wanted nor on-demand units below the floor."""
    leaving, back = _nodes(plan, Drain, Terminate, Stop), _nodes(plan, Undrain)
    chosen = {a.node for a in plan.actions if isinstance(a, Drain | Terminate) and a.cause.voluntary}
    given = [n for n in fleet.nodes if n.reliable and n.id in chosen]
    if not given:
        return []
    left = [
        n
        for n in fleet.nodes
        if (n.reliable and n.id not in leaving)
        or (n.id in back and n.answers and n.in_service and not n.aside)
    ]
    found, noun, ready = list[Violation](), pool.noun(), _units(left)
    if ready < pool.replicas:
        text = f"{ready} ready {noun} would be left, {pool.replicas} are wanted"
        found.append(Violation("self-harm", text))
    on_demand = _units(n for n in left if not n.spot)
    if on_demand < pool.on_demand_floor and not all(n.spot for n in given):
        text = f"{on_demand} on-demand {noun} would be left, the floor is {pool.on_demand_floor}"
        found.append(Violation("floor", text))
    return found


def _disruption(pool: Pool, fleet: Fleet, plan: Plan) -> list[Violation]:
    """Drains of working nodes that somebody chose stay within the disruption budget."""
    chosen = {a.node for a in plan.actions if isinstance(a, Drain) and a.cause.by_choice}
    drains = [n for n in fleet.nodes if n.id in chosen and _works(n)]
    if not drains:
        return []
    back = _nodes(plan, Undrain)
    drains += [
        n
        for n in fleet.nodes
        if n.phase is Phase.DRAINING
        and n.drain is not None
        and n.drain.cause.by_choice
        and n.noticed.witness is not Witness.CLOUD
        and not n.aside
        and n.id not in back
    ]
    units = _units(drains)
    if len(drains) > 1 and units > pool.disruption_budget:
        text = f"{units} {pool.noun()} would drain by choice, the budget is {pool.disruption_budget}"
        return [Violation("disruption", text)]
    return []


def _bounds(pool: Pool, fleet: Fleet, plan: Plan) -> list[Violation]:
    added, starting, found = _new_launches(fleet, plan), _nodes(plan, Start), list[Violation]()
    leaving, back = _nodes(plan, Drain, Terminate), _nodes(plan, Undrain)
    staying = [n for n in fleet.nodes if not n.leaving and n.id not in leaving]
    if added:
        units = [pool.units_of(a.placement) for a in added]
        living = _units(staying) + _units(n for n in fleet.nodes if n.id in back and n.leaving) + sum(units)
        living += sum(pool.units_of(i.placement) for i in fleet.launching)
        if living - max(units) >= pool.most_units:
            text = f"{living} {pool.noun()} would live, the most is {pool.most_units}"
            found.append(Violation("surplus", text))
    share = pool.share
    if added and share is not None and share.nodes is not None:
        nodes = len(staying) + len(fleet.launching) + len(added)
        if nodes > share.nodes:
            text = f"{nodes} nodes would live, the share of the budget is {share.nodes}"
            found.append(Violation("budget", text))
    cap = pool.limits.spend_per_hour
    if cap is not None and (added or starting):
        prices = [n.price for n in fleet.nodes if _bills(n.phase, n.standby) or n.id in starting]
        prices += [*(i.price for i in fleet.launching), *(a.price for a in added)]
        if unknown := prices.count(None):
            text = f"the price of {unknown} nodes is not known, the cap is {cap:.2f}"
            found.append(Violation("spend", text))
        spend = sum(price for price in prices if price is not None)
        if not within_cap(pool, spend):
            name = "budget" if share is not None and share.dollars else "spend"
            found.append(Violation(name, f"{spend:.2f} USD/h would be spent, the cap is {cap:.2f}"))
    if len({a.token for a in added}) != len(added):
        found.append(Violation("token", "two launches share a token"))
    return found


def overrun(
    ask: Ask,
    grant: Grant,
    asks: Iterable[Ask],
    others: Mapping[str, Grant],
    budget: SharedBudget,
    *,
    unknown: float,
) -> Violation | None:
    """How a new grant adds to what its pool has more than a shared budget leaves; None when it does not.

    `asks` of all pools; `others`: the grants that the other pools may still act on. `unknown`: USD/h at which
    a node of unknown price counts.
    """
    spend = nodes = 0.0
    for other in asks:
        held = grant if other.pool == ask.pool else others.get(other.pool)
        may_spend, may_have = (None, None) if held is None else (held.spend_per_hour, held.nodes)
        spend += max(other.spend(unknown), may_spend or 0.0)
        nodes += max(other.nodes, may_have or 0)
    dollars, count = budget.spend_per_hour, budget.nodes
    adds = grant.spend_per_hour is None or grant.spend_per_hour > ask.spend(unknown) + _HAIR
    if dollars is not None and adds and (grant.spend_per_hour is None or spend > dollars + _HAIR):
        return Violation("budget", f"grants of {spend:.2f} USD/h, the budget is {dollars:.2f}")
    adds = grant.nodes is None or grant.nodes > ask.nodes
    if count is not None and adds and (grant.nodes is None or nodes > count):
        return Violation("budget", f"grants of {nodes:.0f} nodes, the budget is {count}")
    return None


def _bills(phase: Phase, standby: StandbyKind | None) -> bool:
    return phase is not Phase.GONE and not (phase is Phase.STOPPED and kept_aside(standby))


def _order(fleet: Fleet, plan: Plan) -> list[Violation]:
    """Detach before drain before terminate."""
    found = []
    for action in plan.actions:
        if not isinstance(action, Terminate):
            continue
        node = fleet.by_id.get(action.node)
        if node is None:
            found.append(Violation("stranger", f"{action.node} is not a node of this pool and would end"))
        elif _works(node):
            found.append(Violation("order", f"{node.id} would end while it works, without a drain"))
        elif node.phase is Phase.DRAINING and node.serving and node.healthy:
            found.append(Violation("order", f"{node.id} would end while it gets requests"))
    return found


def _targets(pool: Pool, world: World, fleet: Fleet, plan: Plan) -> list[Violation]:
    found = []
    drains, back = _nodes(plan, Drain), _nodes(plan, Undrain)
    active: list[str] = []
    wrong: list[str] = []
    unknown = False
    for spec in plan.targets:
        node = fleet.by_id.get(spec.id)
        if node is None and world.unlisted:
            unknown = unknown or spec.phase is TargetPhase.ACTIVE
            continue
        if node is None or node.phase is Phase.GONE:
            found.append(Violation("target", f"{spec.id} is gone and would be a target"))
        elif spec.phase is TargetPhase.ACTIVE:
            draining = (node.drain is not None or node.id in drains) and node.id not in back
            (wrong if draining else active).append(node.id)
    if wrong and active:
        found.append(Violation("target", f"{', '.join(wrong)} drains and would get new requests"))
    can_answer = any(
        n.serving and n.healthy and n.phase not in (Phase.TERMINATING, Phase.GONE) for n in fleet.nodes
    )
    if pool.replicas and can_answer and not (active or wrong or unknown):
        found.append(Violation("last-target", "the last node that can answer would leave the target set"))
    return found


def _beyond_the_lease(fleet: Fleet, plan: Plan) -> list[Violation]:
    """Without the database only noticed nodes leave, none enters, and no balancer loses its last target."""
    found = []
    known = {n.id for n in fleet.serving}
    for balancer in fleet.evidence.routing:
        known |= {*(t.id for t in balancer.targets), *balancer.being_written}
    out = {s.id for s in plan.targets if s.phase is TargetPhase.DRAINING}
    for spec in plan.targets:
        node = fleet.by_id.get(spec.id)
        if spec.id in out and (node is None or node.notice is None):
            found.append(
                Violation("failsafe", f"{spec.id} would leave without a notice and without the lease")
            )
        elif spec.id not in known:
            found.append(Violation("failsafe", f"{spec.id} would enter without the lease"))
    for balancer in fleet.evidence.routing:
        healthy = {t.id for t in balancer.targets if t.state is TargetState.HEALTHY}
        if healthy and healthy <= out and balancer.name in plan.write:
            found.append(Violation("last-target", f"the last healthy target would leave {balancer.name}"))
    return found
