"""What must hold of every plan. Checked in production: a plan that breaks one does nothing destructive.

What it decides: the list of violations of a plan (empty when it is sound).
Why: policies are many and change; these few sentences are the promise, so they are checked apart from the
code that should keep them, with their own counting.
Never: an invariant trusts a number that a policy computed.

Example: a plan that terminates an on-demand node while only the floor is left has the violation
"floor: 2 on-demand nodes would be left, the floor is 3".
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.actions import Action, Cause, Drain, Launch, Plan, Start, Stop, Terminate
from policies.fleet import Fleet
from policies.model import Phase, Pool, TargetPhase, World

Destructive = (Launch, Start, Stop, Terminate)
"""Action types that a plan with violations may not carry out; drains and target sets still are."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant, by name and in numbers."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def check(pool: Pool, world: World, fleet: Fleet, plan: Plan) -> tuple[Violation, ...]:
    """All violations of a plan. Linear in nodes plus actions."""
    found: list[Violation] = []
    found += _authority(world, plan)
    found += _self_harm(pool, fleet, plan)
    found += _bounds(pool, fleet, plan)
    found += _order(fleet, plan)
    found += _targets(fleet, plan)
    return tuple(found)


def without_destruction(plan: Plan) -> tuple[Action, ...]:
    """The actions of a plan that remain allowed when it has violations."""
    return tuple(a for a in plan.actions if not isinstance(a, Destructive))


def _authority(world: World, plan: Plan) -> list[Violation]:
    costly = [a for a in plan.actions if isinstance(a, Destructive)]
    if costly and not (world.leading and world.durable):
        return [Violation("authority", f"{len(costly)} calls planned without lease or journal")]
    if costly and world.instances.at is None:
        return [Violation("authority", f"{len(costly)} calls planned before the cloud was seen whole")]
    return []


def _self_harm(pool: Pool, fleet: Fleet, plan: Plan) -> list[Violation]:
    """Our own choice takes neither ready nodes below wanted nor on-demand nodes below the floor."""
    leaving = {a.node for a in plan.actions if isinstance(a, Drain | Terminate | Stop)}
    chosen = {a.node for a in plan.actions if isinstance(a, Drain | Terminate) and a.cause.voluntary}
    found = []
    ready_left = sum(n.ready and n.id not in leaving for n in fleet.nodes)
    if any(n.ready and n.id in chosen for n in fleet.nodes) and ready_left < pool.replicas:
        found.append(
            Violation("self-harm", f"{ready_left} ready nodes would be left, {pool.replicas} are wanted")
        )
    on_demand = sum(n.capacity and not n.spot and n.id not in leaving for n in fleet.nodes)
    given = any(n.capacity and not n.spot and n.id in chosen for n in fleet.nodes)
    if given and on_demand < pool.on_demand_floor:
        found.append(
            Violation(
                "floor", f"{on_demand} on-demand nodes would be left, the floor is {pool.on_demand_floor}"
            )
        )
    return found


def _bounds(pool: Pool, fleet: Fleet, plan: Plan) -> list[Violation]:
    open_tokens = {i.token for i in fleet.launching}
    added = [a for a in plan.actions if isinstance(a, Launch) and a.token not in open_tokens]
    if not added:
        return []
    found = []
    living = sum(not n.leaving and not n.lost for n in fleet.nodes) + len(fleet.launching) + len(added)
    if living > pool.most_nodes:
        found.append(Violation("surplus", f"{living} nodes would live, the most is {pool.most_nodes}"))
    cap = pool.limits.spend_per_hour
    if cap is not None:
        spend = sum(n.price for n in fleet.nodes if n.phase not in (Phase.GONE, Phase.STOPPED))
        spend += sum(i.price for i in fleet.launching) + sum(a.price for a in added)
        if spend > cap + 1e-9:
            found.append(Violation("spend", f"{spend:.2f} USD/h would be spent, the cap is {cap:.2f}"))
    if len({a.token for a in added}) != len(added):
        found.append(Violation("token", "two launches share a token"))
    return found


def _order(fleet: Fleet, plan: Plan) -> list[Violation]:
    """Detach before drain before terminate."""
    found = []
    for action in plan.actions:
        node = fleet.by_id.get(action.node) if isinstance(action, Terminate) else None
        if node is None or not isinstance(action, Terminate):
            continue
        works = node.phase is Phase.READY and node.healthy and node.standby is None
        if works and action.cause not in (Cause.DUPLICATE, Cause.BOOT):
            found.append(Violation("order", f"{node.id} would end while it works, without a drain"))
    return found


def _targets(fleet: Fleet, plan: Plan) -> list[Violation]:
    found = []
    draining = {a.node for a in plan.actions if isinstance(a, Drain)}
    active = [s.id for s in plan.targets if s.phase is TargetPhase.ACTIVE]
    for spec in plan.targets:
        node = fleet.by_id.get(spec.id)
        if node is None or node.phase is Phase.GONE:
            found.append(Violation("target", f"{spec.id} is gone and would be a target"))
    others = [i for i in active if i not in draining and fleet.by_id[i].drain is None] if not found else []
    wrong = [i for i in active if not found and i not in others]
    if wrong and others:
        found.append(Violation("target", f"{', '.join(wrong)} drains and would get new requests"))
    can_answer = any(n.serving and n.healthy and n.phase is not Phase.TERMINATING for n in fleet.nodes)
    if can_answer and not active:
        found.append(Violation("last-target", "the last node that can answer would leave the target set"))
    return found
