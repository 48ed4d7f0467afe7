"""Pools at one instant, made at random, with witnesses that know different things."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from policies.actions import ActionKind, Cause
from policies.model import (
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Placement,
    Pool,
    StandbyKind,
    Target,
    TargetPhase,
    TargetState,
    World,
)
from policies.records import DrainRecord, Intent, Memory, NodeRecord, OperatorRequest, intent_key

NOW, AWAKE = 10_000.0, 9_950.0
AGES = (0.0, 0.5, 1.0, 4.0, 5.0, 10.0, 20.0, 40.0, 60.0, 70.0, 130.0, 200.0, 500.0, 1200.0)
ages = st.sampled_from(AGES)
maybe_age = st.none() | ages


@st.composite
def nodes(draw: Any, number: int) -> tuple[NodeRecord, Instance | None, EngineReading | None, Intent | None]:
    name = f"n{number}"
    market = draw(st.sampled_from(list(Market)))
    placement = Placement("toy", draw(st.sampled_from(["r", "q"])), "a", "gpu", market)
    began = NOW - draw(ages)
    ready = draw(maybe_age)
    cause = draw(st.none() | st.sampled_from(list(Cause)))
    record = NodeRecord(
        id=name,
        token=draw(st.sampled_from([f"p/7/{number}", f"p/6/{number}", "odd"])),
        placement=placement,
        launched_at=began,
        started_at=began,
        price=1.0,
        address=draw(st.sampled_from(["", f"{name}:1"])),
        standby=draw(st.sampled_from([None, None, None, StandbyKind.STOPPED])),
        ready_at=None if ready is None else NOW - ready,
        notices=tuple(
            Notice(
                id=f"x{i}",
                kind=draw(st.sampled_from(list(NoticeKind))),
                node=name,
                deadline=NOW + draw(ages),
                source="s",
                confidence=draw(st.sampled_from(list(Confidence))),
                seen_at=NOW - draw(ages),
                cancelled=draw(st.booleans()),
            )
            for i in range(draw(st.integers(0, 2)))
        ),
        drain=None
        if cause is None
        else DrainRecord(since=NOW - draw(ages), deadline=NOW + draw(ages), cause=cause, reason="r"),
        idle_since=draw(st.none() | st.just(NOW - draw(ages))),
        operator=draw(st.none() | st.just(OperatorRequest(since=NOW - draw(ages), budget=10.0, reason="o"))),
        detached_at=draw(st.none() | st.just(NOW - draw(ages))),
    )
    state = draw(st.none() | st.sampled_from(list(InstanceState)))
    instance = (
        None
        if state is None
        else Instance(
            id=name,
            pool="p",
            token=record.token,
            placement=placement,
            state=state,
            address=draw(st.sampled_from(["", f"{name}:1"])),
            launched_at=began,
            price=1.0,
            standby=record.standby,
        )
    )
    reading = None
    if draw(st.booleans()):
        at = NOW - draw(ages)
        failing = draw(maybe_age)
        reading = EngineReading(
            node=name,
            at=at,
            ready=draw(st.booleans()),
            ok=failing is None,
            failing_since=None if failing is None else at - failing,
            running=draw(st.integers(0, 2)),
            failure="" if failing is None else "refused",
        )
    intent = None
    if draw(st.sampled_from([False, False, True])):
        token = intent_key(name, ActionKind.TERMINATE)
        accepted = draw(st.none() | st.just(NOW - 1.0))
        intent = Intent(token=token, kind=ActionKind.TERMINATE, node=name, at=NOW - 5.0, accepted_at=accepted)
    return record, instance, reading, intent


@st.composite
def instants(draw: Any) -> tuple[Pool, World, Memory]:
    """A pool at one instant, with witnesses that know different things."""
    count = draw(st.integers(1, 5))
    found = [draw(nodes(n)) for n in range(count)]
    names = [f"n{n}" for n in range(count)]
    balancers, targets, applied, writing = {}, {}, {}, {}
    for name in draw(st.sampled_from([(), ("gw",), ("gw", "alb")])):
        shown = tuple(
            Target(
                id=n,
                address=f"{n}:9",
                state=draw(st.sampled_from(list(TargetState))),
                in_flight=draw(st.none() | st.integers(0, 2)),
                failing_since=draw(st.none() | st.just(NOW - draw(ages))),
            )
            for n in names
            if draw(st.booleans())
        )
        at = draw(maybe_age)
        balancers[name] = Observed(
            value=shown, at=None if at is None else NOW - at, error=draw(st.sampled_from(["", "503"]))
        )
        targets[name] = {n: draw(st.sampled_from(list(TargetPhase))) for n in names if draw(st.booleans())}
        if draw(st.booleans()):
            applied[name] = NOW - draw(ages)
        writing[name] = tuple(n for n in names if draw(st.sampled_from([False, False, True])))
    world = World(
        now=NOW,
        regions={
            r: Observed(
                value=tuple(i for _, i, _, _ in found if i is not None and i.placement.region == r),
                at=NOW - draw(ages),
            )
            for r in "rq"
        },
        engines={r.node: r for _, _, r, _ in found if r is not None},
        balancers=balancers,
        writing=writing,
        epoch=7,
        awake_since=draw(st.sampled_from([AWAKE, 0.0])),
    )
    memory = Memory(
        nodes={r.id: r for r, _, _, _ in found},
        targets=targets,
        applied_at=applied,
        intents={i.token: i for _, _, _, i in found if i is not None},
        replicas=count,
        whole_at=draw(st.none() | st.just(9_000.0)),
    )
    return Pool(name="p", replicas=count), world, memory
