"""What a turn hands to its parts: the recorder, the observer, the hands, the journal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from loop_rig import Play, Rig, place, rig

from orchestrator.loop.loop import _adapters_move, engines, records
from orchestrator.metrics.metrics import REGISTRY
from policies.actions import (
    Action,
    Alarm,
    Attach,
    Cause,
    Drain,
    Launch,
    LoadAdapter,
    Plan,
    Start,
    Stop,
    Terminate,
    Undrain,
    UnloadAdapter,
)
from policies.adapter_events import AdapterAsked
from policies.events import DrainEnded, DrainStarted, Event, IntentOpened, NoticeSeen
from policies.held import Adapter, AdapterRules
from policies.memory import Memory
from policies.model import (
    EVERYWHERE,
    Ending,
    InstanceState,
    Market,
    NoticeKind,
    Observed,
    Pool,
    StandbyKind,
    Target,
    TargetPhase,
    TargetState,
)
from policies.records import AdapterCall, AdapterRecord, NodeRecord
from policies.value import replace

pytestmark = pytest.mark.usefixtures("quiet")

SPOT = place(Market.SPOT)


# -- the recorder -------------------------------------------------------------------------------------------


class Notes:
    """A recorder that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def decided(self, pool: Pool, world: Any, memory: Any, plan: Plan, *, behind: int) -> None:
        self.told.append(f"decided {behind}")

    def raised(self, pool: Pool, world: Any, memory: Any, error: Exception, *, behind: int) -> None:
        self.told.append(f"raised {error} {behind}")

    def begin(self) -> None:
        self.told.append("begin")

    def events_lost(self) -> None:
        self.told.append("lost")


def test_another_wanted_state_begins_a_recording_once_and_is_in_force_from_then_on(play: Play) -> None:
    notes = Notes()

    async def work(r: Rig) -> None:
        await r.turns(2)
        assert notes.told == ["decided 0"] * 2
        r.loop.reconfigure(replace(r.pool, replicas=3), tick=9.0)
        assert r.loop.pool.replicas == 4, "the turn that runs goes by the old one"
        await r.turns(2)
        assert (r.loop.pool.replicas, r.loop._tick) == (3, 9.0)
        assert notes.told == ["decided 0"] * 2 + ["begin"] + ["decided 0"] * 2

    rig(play, work, recorder=notes)


def test_a_plan_is_not_recorded_while_nobody_can_say_what_is_on_disk(play: Play) -> None:
    notes = Notes()

    async def work(r: Rig) -> None:
        await r.turns(2)
        written, slow = r.journal.append, asyncio.Event()

        async def append(pool: str, events: Any) -> None:
            await slow.wait()
            await written(pool, events)

        r.journal.append = append  # type: ignore[method-assign]
        notes.told.clear()
        r.notice("s1")
        await r.turns()
        assert r.loop.last.plan.write
        assert notes.told == []
        slow.set()
        await r.turns(3)
        assert notes.told.count("decided 0") == 3

    rig(play, work, recorder=notes)


def test_events_that_will_never_be_on_disk_end_the_recording_once(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    monkeypatch.setattr("orchestrator.loop.writing.UNWRITTEN_MOST", 1)

    async def work(r: Rig) -> None:
        await r.turns(2)
        r.journal.fails = True
        for node in ("s1", "s2"):
            r.notice(node)
        await r.turns(1)
        assert notes.told.count("lost") == 1
        r.journal.fails = False
        await r.turns()
        notes.told.clear()
        await r.turns(3)
        assert notes.told == ["decided 0"] * 3

    rig(play, work, recorder=notes)


# -- the observer -------------------------------------------------------------------------------------------


def test_there_is_a_hurry_while_something_is_on_its_way_and_only_then(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        assert (r.eyes.hurried, r.eyes.draining, r.eyes.routes) == (False, frozenset(), False)
        r.eyes.add("n1", Market.SPOT)
        ready = r.eyes.machines["n1"]
        r.eyes.machines["n1"] = replace(ready, state=InstanceState.PENDING)
        await r.turns()
        assert r.eyes.hurried
        r.eyes.machines["n1"] = ready
        await r.turns(2)
        assert "n1" in r.loop.last.memory.nodes
        r.notice("s1", kind=NoticeKind.REBALANCE, deadline=None)
        r.notice("s2")
        await r.turns(2)
        assert r.eyes.hurried
        assert ("s1" in r.eyes.draining, "s2" in r.eyes.draining) == (False, True)

    rig(play, work)


def test_machines_that_a_fault_ended_before_they_were_ready_are_asked_for_their_last_words(
    play: Play,
) -> None:
    """Of three that end in one turn: one never started, one served before, one was taken back."""

    async def work(r: Rig) -> None:
        await r.turns(2)
        for name in ("n1", "n2", "n3"):
            r.eyes.add(name, Market.SPOT)
            r.eyes.machines[name] = replace(r.eyes.machines[name], state=InstanceState.PENDING)
        await r.turns(2)
        for name, ending in (
            ("n1", Ending.FAULT),
            ("n2", Ending.FAULT),
            ("n3", Ending.RECLAIM),
            ("s1", Ending.FAULT),
        ):
            r.eyes.machines[name] = replace(
                r.eyes.machines[name],
                state=InstanceState.TERMINATED,
                ended_at=r.clock.now(),
                ending=ending,
                ending_why="Client.InternalError" if name == "n2" else "",
            )
        await r.turns(2)
        assert r.hands.unready == [
            ("n1", SPOT, "a fault ended it before it was ready"),
            ("n2", SPOT, "Client.InternalError"),
        ]

    rig(play, work)


@pytest.mark.parametrize(
    ("stopped", "standby", "vouched", "followed"),
    [
        (False, None, False, True),
        (True, None, False, False),
        (True, None, True, True),
        (True, StandbyKind.STOPPED, True, False),
    ],
)
def test_the_engine_of_a_stopped_node_is_looked_at_only_where_a_balancer_finds_it_well(
    play: Play, stopped: bool, standby: StandbyKind | None, vouched: bool, followed: bool
) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        last = r.loop.last
        record = replace(last.memory.nodes["o1"], standby=standby)
        machine = replace(
            r.eyes.machines["o1"],
            state=InstanceState.STOPPED if stopped else InstanceState.RUNNING,
            standby=standby,
        )
        machines = tuple({**r.eyes.machines, "o1": machine}.values())
        health = TargetState.HEALTHY if vouched else TargetState.UNHEALTHY
        shown = tuple(Target(id=n, address=f"{n}:1", state=health) for n in ("o1", "s1"))
        now = r.clock.now()
        world = replace(
            last.world,
            now=now,
            regions={EVERYWHERE: Observed(value=machines, at=now)},
            balancers={"gw": Observed(value=shown, at=now)},
            engines={},
        )
        memory = replace(last.memory, nodes={**last.memory.nodes, "o1": record})
        fleet = type(last.fleet).of(r.pool, world, memory)
        assert ("o1" in engines(fleet, world)) is followed
        assert "s2" in engines(fleet, world)

    rig(play, work)


SQL = Adapter(name="sql", source="/srv/sql")


def node(*adapters: AdapterRecord) -> NodeRecord:
    return NodeRecord(id="a", token="t", placement=SPOT, launched_at=0.0, price=1.0, adapters=adapters)


def call(failure: str = "") -> AdapterCall:
    return AdapterCall(load=True, asked_at=1.0, failure=failure)


LOAD = LoadAdapter(node="a", address="a:1", served_as="x", source="y", reason="wanted")


@pytest.mark.parametrize(
    ("rules", "actions", "adapters", "move"),
    [
        (AdapterRules(), (), (), False),
        (AdapterRules(wanted=(SQL,), slots=1), (), (), False),  # all of them fit
        (AdapterRules(wanted=(SQL, replace(SQL, name="b")), slots=1), (), (), True),
        (AdapterRules(wanted=(SQL, replace(SQL, name="b")), slots=1, runtime=False), (), (), False),
        (AdapterRules(), (LOAD,), (), True),
        (AdapterRules(), (Alarm(name="n", reason="r"),), (), False),
        (AdapterRules(), (), (AdapterRecord(adapter="x", call=call()),), True),
        (AdapterRules(), (), (AdapterRecord(adapter="x", call=call("no")),), False),
        (AdapterRules(), (), (AdapterRecord(adapter="x"),), False),
        (AdapterRules(), (), (AdapterRecord(adapter="x", held=True),), True),
        (AdapterRules(wanted=(SQL,)), (), (AdapterRecord(adapter=SQL.served_as, held=True),), False),
        (AdapterRules(wanted=(SQL,)), (), (AdapterRecord(adapter=SQL.served_as, call=call()),), True),
    ],
)
def test_routes_are_looked_at_quickly_while_an_adapter_moves_or_may_be_waited_for(
    rules: AdapterRules, actions: tuple[Action, ...], adapters: tuple[AdapterRecord, ...], move: bool
) -> None:
    pool = Pool(name="p", replicas=1, adapters=rules)
    memory = Memory(nodes={"b": replace(node(), id="b"), "a": node(*adapters)})
    assert _adapters_move(pool, memory, Plan(actions=actions)) is move


# -- the journal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "event"),
    [
        (Attach(node="a", reason="r"), None),
        (Alarm(name="n", reason="r"), None),
        (
            Drain(node="a", deadline=9.0, cause=Cause.NOTICE, reason="r"),
            DrainStarted(at=5.0, node="a", deadline=9.0, cause=Cause.NOTICE, reason="r"),
        ),
        (Undrain(node="a", reason="r"), DrainEnded(at=5.0, node="a", reason="r")),
        (
            Launch(
                token="t",
                placement=SPOT,
                price=2.0,
                cause=Cause.SHORT,
                reason="r",
                standby=StandbyKind.HOT,
                replaces="b",
            ),
            {"token": "t", "node": "", "placement": SPOT, "price": 2.0, "cause": Cause.SHORT, "replaces": "b"}
            | {"standby": StandbyKind.HOT},
        ),
        (
            Start(token="t", node="a", reason="r", replaces="b"),
            {"token": "t", "node": "a", "replaces": "b", "cause": None},
        ),
        (Stop(token="t", node="a", reason="r"), {"token": "t", "node": "a", "replaces": "", "cause": None}),
        (
            Terminate(token="t", node="a", cause=Cause.EXCESS, reason="r"),
            {"token": "t", "node": "a", "replaces": "", "cause": Cause.EXCESS},
        ),
        (LOAD, AdapterAsked(at=5.0, node="a", adapter="x", load=True, reason="wanted")),
        (
            UnloadAdapter(node="a", address="a:1", served_as="x", reason="r"),
            AdapterAsked(at=5.0, node="a", adapter="x", load=False, reason="r"),
        ),
    ],
    ids=lambda given: type(given).__name__,
)
def test_the_journal_says_all_of_a_deed_before_it_is_done(
    action: Action, event: Event | dict[str, Any] | None
) -> None:
    if isinstance(event, dict):
        event = IntentOpened(at=5.0, kind=action.kind, reason="r", **event)
    other = Undrain(node="z", reason="other")
    found = records(5.0, [action, other])
    assert found == [*([] if event is None else [event]), DrainEnded(at=5.0, node="z", reason="other")]


def test_a_notice_that_is_no_news_hides_no_other_of_its_turn(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(2)
        deadline = r.clock.now() + 120.0
        r.notice("s1", deadline=deadline)
        await r.turns()
        before = len(r.journal.written)
        r.notice("o1", kind=NoticeKind.STOP)  # means nothing for a node that is not spot
        r.notice("s1", deadline=deadline)  # heard before
        r.notice("s2")
        r.notice("unknown")
        await r.turns()
        heard = [e.notice.node for e in r.journal.written[before:] if isinstance(e, NoticeSeen)]
        assert heard == ["s2", "unknown"]

    rig(play, work)


def test_a_turn_is_measured_in_its_parts(play: Play) -> None:
    async def work(r: Rig) -> None:
        def count(name: str, **labels: str) -> float:
            return REGISTRY.get_sample_value(f"orchestrator_{name}", {"pool": "p", **labels}) or 0.0

        names = ("observe", "journal", "decide", "act")
        before = {part: count("turn_seconds_count", part=part) for part in names}
        turns = count("turns_total")
        await r.turns(3)
        after = {part: count("turn_seconds_count", part=part) for part in names}
        assert {part: after[part] - before[part] for part in names} == dict.fromkeys(names, 3.0)
        assert count("turns_total") - turns == 3.0
        assert count("last_turn_timestamp_seconds") == r.loop.last.at

    rig(play, work)


def test_a_node_that_serves_on_leaves_at_its_last_instant_though_no_tick_falls_on_it(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        r.loop.reconfigure(r.loop.pool, tick=60.0)
        running = asyncio.ensure_future(r.loop.run())
        for node in ("s1", "s2"):
            r.notice(node)
        at_work = []
        for seconds in (84.9, 0.2):  # of 120 s, 35 are for requests
            await r.clock.sleep(seconds)
            at_work.append([n for n in ("s1", "s2") if r.hands.held.get(n) is TargetPhase.ACTIVE])
        assert [len(nodes) for nodes in at_work] == [1, 0]
        running.cancel()

    rig(play, work)
