"""The invariants of DESIGN section 5, counted on the truth of a toy cloud: machines, not fleets."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.actions import Alarm, Cause, Drain, Launch, Start, Stop, Terminate, Undrain
from policies.model import (
    Confidence,
    InstanceState,
    Market,
    NoticeKind,
    TargetPhase,
    TargetState,
)
from policies.records import Memory
from tests.support.scene import noticed
from tests.support.toy_cloud import Check, Machine, ToyCloud, Turn
from tests.support.toy_pools import ENDED


def taken(memory: Memory, node: str, *, sure: bool) -> bool:
    """A notice that can apply says that the node goes; `sure`: the cloud itself says so."""
    record = memory.nodes[node]
    spot = record.placement.market is Market.SPOT
    return any(
        not n.cancelled
        and n.kind is not NoticeKind.REBALANCE
        and (spot or n.kind not in (NoticeKind.INTERRUPTION, NoticeKind.STOP))
        and (not sure or n.confidence is Confidence.CONFIRMED)
        for n in record.notices
    )


def ending(memory: Memory, node: str) -> bool:
    """We asked the cloud to end it."""
    return f"{node}:terminate" in memory.intents


def check_bounds(toy: ToyCloud, turn: Turn) -> None:
    """Never more units than wanted + standby + surge (but for the rest of the last node), never more than the
    spend cap, one machine a token."""
    plan, memory = turn.plan, turn.memory
    added = [a for a in plan.actions if isinstance(a, Launch) and a.token not in memory.intents]
    starting = {a.node for a in plan.actions if isinstance(a, Start)}
    cap = turn.pool.limits.spend_per_hour
    if added:
        leaving = {a.node for a in plan.actions if isinstance(a, Drain | Terminate)}
        back = {a.node for a in plan.actions if isinstance(a, Undrain)}
        gone = {i.id for i in turn.world.instances if i.state in ENDED}
        staying = [
            i
            for i, r in memory.nodes.items()
            if i in back
            or not (r.drain or i in leaving or i in gone or ending(memory, i) or taken(memory, i, sure=False))
        ]
        unseen = [i for i in memory.intents.values() if i.kind == "launch"]
        units = turn.pool.units_of
        fresh = [units(a.placement) for a in added]
        living = sum(units(memory.nodes[i].placement) for i in staying)
        living += sum(units(i.placement) for i in unseen) + sum(fresh)
        assert living - max(fresh) < turn.pool.most_units, plan.actions
        tokens = [a.token for a in added]
        assert len(set(tokens)) == len(tokens)
        assert not set(tokens) & set(toy.by_token), "a token was used for a second intent"
    if cap is not None and (added or starting):
        spend = sum(m.instance.price or 0.0 for m in toy.machines.values() if m.alive and bills(m, starting))
        unmet = [i for i in memory.intents.values() if i.kind == "launch" and i.token not in toy.by_token]
        assert spend + sum(i.price or 0.0 for i in unmet) + sum(a.price or 0.0 for a in added) <= cap + 1e-6
    machines = [m.instance.token for m in toy.machines.values()]
    assert len(set(machines)) == len(machines), "two machines for one token"


def bills(machine: Machine, starting: set[str]) -> bool:
    return machine.instance.state is not InstanceState.STOPPED or machine.instance.id in starting


def check_no_self_harm(toy: ToyCloud, turn: Turn) -> None:
    """What we choose to do leaves wanted ready nodes and the floor, and ends nothing that works."""
    plan, memory = turn.plan, turn.memory
    leaves = [a for a in plan.actions if isinstance(a, Drain | Terminate)]
    chosen = {a.node for a in leaves if a.cause.voluntary}
    going = {a.node for a in leaves} | {a.node for a in plan.actions if isinstance(a, Stop)}
    back = {a.node for a in plan.actions if isinstance(a, Undrain)}

    def stays(node: str) -> bool:
        record = memory.nodes.get(node)
        if record is None or record.operator is not None or record.standby is not None:
            return False
        draining = record.drain is not None and node not in back
        return not (draining or ending(memory, node) or taken(memory, node, sure=True))

    working = {i for i, r in turn.world.engines.items() if r.ready and r.ok and stays(i)}
    if chosen & working:
        assert toy.units(working - going) >= turn.pool.replicas, (plan.actions, sorted(working))
        on_demand = {i for i in working if not toy.machines[i].spot}
        if chosen & on_demand:
            assert toy.units(on_demand - going) >= turn.pool.on_demand_floor
    for action in leaves:
        ended = isinstance(action, Terminate) and action.node in working
        assert not ended, f"{action.node} works and would be ended: {action}"
    workers = {i for i in toy.answering() if i in memory.nodes and memory.nodes[i].standby is None}
    fresh = [a for a in leaves if isinstance(a, Drain) and a.cause.by_choice and a.node in workers]
    draining = [
        i
        for i, r in memory.nodes.items()
        if r.drain is not None
        and r.drain.cause.by_choice
        and i in workers
        and i not in back
        and not ending(memory, i)
        and not taken(memory, i, sure=False)
    ]
    disturbed = [*draining, *(a.node for a in fresh)]
    if fresh and len(disturbed) > 1:
        assert toy.units(disturbed) <= turn.pool.disruption_budget, (draining, fresh)


def check_forgery(toy: ToyCloud, turn: Turn) -> None:
    """Reports that the cloud does not confirm drain no more working units than the disruption budget."""
    memory = turn.memory
    drains = {a.node for a in turn.plan.actions if isinstance(a, Drain) and a.cause is Cause.NOTICE}
    drains |= {i for i, r in memory.nodes.items() if r.drain is not None and r.drain.cause is Cause.NOTICE}
    drains -= {a.node for a in turn.plan.actions if isinstance(a, Undrain)}
    reported = {
        i
        for i in drains
        if taken(memory, i, sure=False)
        and not taken(memory, i, sure=True)
        and not ending(memory, i)
        and (i in turn.world.engines and turn.world.engines[i].ok)
    }
    fresh = {a.node for a in turn.plan.actions if isinstance(a, Drain)} & reported
    if fresh and len(reported) > 1:
        assert toy.units(reported) <= turn.pool.disruption_budget, reported


def check_targets(toy: ToyCloud, turn: Turn) -> None:
    """Targets: never a dead node, never a draining one while others serve, never nobody by choice."""
    listed = {i.id: i.state for i in turn.world.instances}
    draining = {r.id for r in turn.memory.nodes.values() if r.drain is not None}
    draining |= {a.node for a in turn.plan.actions if isinstance(a, Drain)}
    draining -= {a.node for a in turn.plan.actions if isinstance(a, Undrain)}
    active = {t.id for t in turn.plan.targets if t.phase is TargetPhase.ACTIVE}
    for spec in turn.plan.targets:
        if turn.world.regions[""].at is not None:
            assert listed.get(spec.id) not in ENDED, f"{spec.id} has ended and is a target"
    if active - draining and turn.world.failsafe_since is None:
        assert not active & draining, "a draining node would get new requests"
    answering = {i for i in toy.active() if i in toy.answering() and listed.get(i) not in ENDED}
    ended = {i for i in turn.memory.nodes if ending(turn.memory, i)}
    if turn.plan.write and answering - ended and turn.pool.replicas:
        assert active, "the last target that can answer would be taken out"


def check_sound(_toy: ToyCloud, turn: Turn) -> None:
    """The production check agrees, and nothing raised."""
    broken = [a for a in turn.plan.actions if isinstance(a, Alarm) and a.name == "InvariantViolated"]
    assert not broken, broken


def check_authority(_toy: ToyCloud, turn: Turn) -> None:
    """Nothing that costs money or ends a node without lease, journal, or a look at the whole cloud."""
    calls = [a for a in turn.plan.actions if isinstance(a, Launch | Start | Stop | Terminate)]
    if calls:
        assert turn.world.leading
        assert turn.world.durable
        assert turn.world.regions[""].at is not None
        assert turn.memory.pause is None
    if not (turn.world.leading or turn.world.failsafe_since is not None):
        assert not turn.plan.write


def check_failsafe(toy: ToyCloud, turn: Turn) -> None:
    """Beyond the lease no target enters, and none leaves without a notice that is believed."""
    if turn.world.failsafe_since is None:
        return
    leaving = noticed(turn.pool, turn.world, turn.memory)
    healthy = {t.id for t in turn.world.balancers["gw"].value if t.state is TargetState.HEALTHY}
    out = {t.id for t in turn.plan.targets if t.phase is TargetPhase.DRAINING}
    assert out <= leaving.keys(), "a target would leave without a notice"
    assert {t.id for t in turn.plan.targets} <= {*toy.targets, *turn.memory.targets.get("gw", {})}
    assert not turn.plan.write or not healthy or healthy - out, "the last healthy target would leave"


CHECKS: tuple[Check, ...] = (
    check_bounds,
    check_no_self_harm,
    check_forgery,
    check_targets,
    check_sound,
    check_authority,
    check_failsafe,
)


@dataclass
class CheckedCloud(ToyCloud):
    """A toy cloud that checks every invariant after every turn."""

    checks: list[Check] = field(default_factory=lambda: list(CHECKS))
