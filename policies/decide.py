"""The decision of one turn: run the policies in order of urgency and return a plan.

What it decides: everything, by asking the policies one after another; each sees what the ones before it
decided in this turn.
Why: one pure function of what is wanted, seen and remembered can be tested, replayed and explained.
Never: the same pool, world and memory give two different plans, whatever the order of their mappings; a plan
that breaks an invariant keeps its launches, ends nodes, or lets go of what then does not drain. Costs grow
linearly with the number of nodes.

Example: a notice for one of ten nodes gives one plan: drain it, launch its replacement, write the target set.
"""

from __future__ import annotations

from collections.abc import Iterable

from policies import (
    adaptive,
    bars,
    budget,
    capacity,
    failsafe,
    gpu_health,
    health,
    invariants,
    outdated,
    rebalance,
    return_to_spot,
    standby,
    swap,
    target_set,
)
from policies.actions import Action, Alarm, Detach, Drain, Plan
from policies.evidence import ours
from policies.fleet import Fleet
from policies.model import Pool, World
from policies.plan_builder import Turn
from policies.records import Memory


def decide(pool: Pool, world: World, memory: Memory) -> Plan:
    """What should be done now, and why.

    Never raises for any world: a plan that would break an invariant is returned without its destructive
    actions and with an alarm for each violation.
    """
    fleet = Fleet.of(pool, world, memory)
    return decide_for(fleet, world, memory)


def decide_for(fleet: Fleet, world: World, memory: Memory) -> Plan:
    """`decide` for a fleet that was joined already."""
    turn = Turn(budget.in_effect(fleet.pool, world.grant), world, memory, fleet)
    swap.drain_noticed(turn)
    swap.put_back(turn)
    capacity.repeat_unanswered(turn)
    health.replace_sick(turn)
    health.give_up_boots(turn)
    gpu_health.tell(turn)
    swap.drain_asked(turn)
    rebalance.drain_replaced(turn)
    _hold_the_mix(turn)
    if fleet.pool.replicas:
        turn.actions.extend(bars.alarms(turn.pool, turn.memory))
    turn.actions.extend(budget.alarms(world.grant))
    if world.grant is not None and world.grant.why:
        turn.note(world.grant.why)
    rebalance.launch_successors(turn)
    swap.end_drained(turn)
    _name_strangers(turn)
    standby.refill(turn)
    standby.surplus(turn)
    _hold_adapters(turn)
    if world.failsafe_since is not None:
        wanted = failsafe.targets(turn)
        write = failsafe.to_write(turn, wanted)
    else:
        wanted = target_set.targets(turn)
        target_set.explain_changes(turn, wanted)
        write = target_set.to_write(turn, wanted)
    plan = Plan(
        actions=tuple(turn.actions),
        targets=wanted,
        write=write,
        deferred=tuple(turn.deferred),
        notes=turn.notes_with(wanted),
    )
    return _checked(turn, plan)


def _hold_the_mix(turn: Turn) -> None:
    """Launch what is missing and give back what is not needed."""
    rules = turn.pool.adaptive if turn.pool.replicas else None
    price = None if rules is None else adaptive.on_demand_price(turn)
    if rules is not None and price is not None:
        adaptive.steer(turn, rules, price)
        return
    if rules is not None:
        turn.note("no on-demand price is known: the pool holds its split, and not the adaptive mix")
    capacity.replenish(turn)
    return_to_spot.give_back(turn)


def _hold_adapters(turn: Turn) -> None:
    """Have nodes load and let go of adapters, unless nothing may be done now."""
    outdated.tell(turn)
    for node, adapters in turn.adapters.lacking():
        turn.note(f"{node} serves without {adapters}")
    if turn.adapters.unroutable:
        turn.note("the gateway is of a version that cannot route adapters; upgrade it")
    if turn.world.able and not turn.memory.paused(turn.now):
        turn.actions.extend(turn.adapters.calls())


def _name_strangers(turn: Turn) -> None:
    """Say which machines carry the pool's tag and are not its nodes."""
    found = [
        i.id
        for i in turn.world.instances
        if i.id not in turn.fleet.by_id and not ours(turn.pool, turn.memory, i).holds
    ]
    if found:
        turn.note(f"not ours, though tagged as this pool's, and left alone: {', '.join(sorted(found))}")


def _checked(turn: Turn, plan: Plan) -> Plan:
    violations = invariants.check(turn.pool, turn.world, turn.fleet, turn.memory, plan)
    if not violations:
        return plan
    alarms = tuple(Alarm(name="InvariantViolated", reason=str(v)) for v in violations)
    kept = invariants.without_destruction(plan)
    stays = _drains(plan.actions) - _drains(kept)
    targets = target_set.with_active(turn, plan.targets, stays)
    return Plan(
        actions=(*alarms, *(a for a in kept if not (isinstance(a, Detach) and a.node in stays))),
        targets=targets,
        write=target_set.to_write(turn, targets),
        deferred=plan.deferred,
        notes=turn.notes_with(targets),
    )


def _drains(actions: Iterable[Action]) -> set[str]:
    return {a.node for a in actions if isinstance(a, Drain)}
