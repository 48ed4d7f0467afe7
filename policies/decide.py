"""The decision of one turn: run the policies in order of urgency and return a plan.

`decide` is a pure function: the same pool, world and memory give the same plan, byte for byte, which is what
the journal replay and the simulator rest on. Costs grow linearly with the number of nodes.
"""

from __future__ import annotations

from policies import balance, capacity, health, invariants, return_to_spot, standby, swap
from policies.actions import Alarm, Plan
from policies.fleet import Fleet
from policies.memory import Memory
from policies.model import Pool, World
from policies.turn import Turn


def decide(pool: Pool, world: World, memory: Memory) -> Plan:
    """What should be done now, and why.

    Never raises for any world: a plan that would break an invariant is returned without its destructive
    actions and with an alarm for each violation.
    """
    fleet = Fleet.of(pool, world, memory)
    return decide_for(fleet, world, memory)


def decide_for(fleet: Fleet, world: World, memory: Memory) -> Plan:
    """`decide` for a fleet that was joined already."""
    turn = Turn(fleet.pool, world, memory, fleet)
    swap.drain_doomed(turn)
    swap.end_drained(turn)
    capacity.repeat_unanswered(turn)
    health.replace_sick(turn)
    health.give_up_boots(turn)
    swap.drain_asked(turn)
    mix = capacity.replenish(turn)
    return_to_spot.give_back(turn, mix)
    standby.refill(turn)
    standby.surplus(turn)
    wanted = balance.targets(turn)
    balance.explain_changes(turn, wanted)
    plan = Plan(
        actions=tuple(turn.actions),
        targets=wanted,
        write=balance.to_write(turn, wanted) if world.leading else (),
        deferred=tuple(turn.deferred),
        notes=tuple(turn.notes),
    )
    return _checked(fleet, world, plan)


def _checked(fleet: Fleet, world: World, plan: Plan) -> Plan:
    violations = invariants.check(fleet.pool, world, fleet, plan)
    if not violations:
        return plan
    alarms = tuple(Alarm(name="InvariantViolated", reason=str(v)) for v in violations)
    return Plan(
        actions=(*alarms, *invariants.without_destruction(plan)),
        targets=plan.targets,
        write=plan.write,
        deferred=plan.deferred,
        notes=plan.notes,
    )
