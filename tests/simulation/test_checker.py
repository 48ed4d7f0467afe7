"""What the checker demands, and what it leaves to a daemon that cannot know better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scenarios import config, place, sales
from watched import Watched, watch

from cloud.ports import EngineCommand, LaunchRequest
from cloud.sim.books import Books, Drain
from cloud.sim.effects import Effects
from cloud.sim.engine import SimEngine
from cloud.sim.faults import Fault
from cloud.sim.limits import Limits, Together
from cloud.sim.trace import Trace
from cloud.sim.world import Machine
from orchestrator.journal.store import Superseded
from orchestrator.simulation.recorded_store import RecordedStore
from orchestrator.simulation.simulate import Simulation
from orchestrator.simulation.virtual_time import VirtualClock, VirtualTimeLoop, virtual_time
from policies.actions import ActionKind, Cause
from policies.events import (
    DaemonStarted,
    DrainStarted,
    Event,
    GoneCause,
    IntentClosed,
    IntentOpened,
    NodeGone,
    OperatorDrained,
    Outcome,
)
from policies.grant import SharedBudget
from policies.model import (
    AdaptiveRules,
    HealthRules,
    Market,
    Pool,
    StandbyKind,
)
from policies.model import Limits as PoolLimits


def test_a_node_that_no_list_has_shown_running_does_not_answer_as_far_as_anybody_knows(
    tmp_path: Path, sound
) -> None:
    async def script(sim: Simulation) -> None:
        sim.checker.faults_on = True
        sim.boot()
        await sim.clock.sleep(7.0)
        sim.world.faults.stale_lists = True
        await sim.clock.sleep(75.0)
        node = sim.live(Market.ON_DEMAND)[0]
        assert node.able(sim.clock.now() - 10.0)
        end = sim.world.faults.begin(("launch",), Fault.QUOTA)
        await sim.operate(lambda now: OperatorDrained(at=now, node=node.id, budget=20.0, reason="test"))
        await sim.clock.sleep(5.0)
        assert not node.live
        sim.world.faults.stale_lists = False
        end()
        await sim.settle()

    sound(Simulation(config(tmp_path), sales=sales(), seed=1).run(script))


@pytest.mark.parametrize(("ago", "harm"), [(None, False), (16.0, False), (12.0, True)])
def test_a_node_that_no_list_shows_may_be_given_up_where_no_look_was_answered(
    ago: float | None, harm: bool
) -> None:
    """Some looks met an engine that was silent, others got lost; it comes back to life just now."""

    async def script(watched: Watched) -> None:
        lost, engine, begin = watched.machines[0], SimEngine(watched.world), watched.clock.now()
        lost.listed_at = begin
        if ago is not None:
            watched.world.later(20.0 - ago, lambda: watched.world.revive(lost.id))
            watched.world.later(20.2 - ago, lambda: watched.world.silence(lost.id))
        watched.world.silence(lost.id)
        for second in range(20):
            watched.world.faults.lost_probes = second % 2
            await engine.probe(lost.id, lost.address, None)
            await watched.clock.sleep(begin + second + 1 - watched.clock.now())
        watched.world.revive(lost.id)
        watched.checker.hear([NodeGone(at=0.0, node=lost.id, cause=GoneCause.LOST)], written=True)
        await watched.instances.launch(
            LaunchRequest(
                token="p/1/9", pool="p", placement=lost.placement, command=EngineCommand(argv=("x",))
            )
        )

    assert ("bounded" in watch(script, replicas=1).broken) is harm


def test_an_operator_who_waits_has_waited_also_where_a_damaged_journal_is_read_all_the_same() -> None:
    async def script(watched: Watched) -> None:
        first, second, third = watched.machines
        asked = OperatorDrained(at=watched.clock.now(), node=first.id, budget=20.0, reason="test")
        await watched.write(watched.machines)
        watched.checker.hear([asked], written=True)
        watched.checker.forget()
        await watched.clock.sleep(2 * HealthRules().boot_timeout)
        await watched.write([second, third], draining=[first])

    assert watch(script).broken == []


@pytest.mark.parametrize(("times", "harm"), [(0.5, True), (1.5, False)])
def test_an_operator_who_has_waited_for_a_boot_gets_the_end_below_the_floor_too(
    times: float, harm: bool
) -> None:
    async def script(watched: Watched) -> None:
        node = watched.machines[0].id
        asked = OperatorDrained(at=watched.clock.now(), node=node, budget=20.0, reason="test")
        watched.checker.hear([asked], written=True)
        await watched.clock.sleep(times * HealthRules().boot_timeout)
        await watched.instances.terminate(node)

    assert ("floor" in watch(script, Market.ON_DEMAND).broken) is harm


@pytest.mark.parametrize(("times", "leaves"), [(5, True), (6, False), (7, True)])
@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.DENIED, Outcome.MISCONFIGURED])
@pytest.mark.parametrize("before", [(), (Outcome.THROTTLED,)])
def test_an_end_that_failed_six_times_is_given_up_until_it_is_asked_for_anew(
    before: tuple[Outcome, ...], outcome: Outcome, times: int, leaves: bool
) -> None:
    books, kind = Books(), ActionKind.TERMINATE
    opened = IntentOpened(at=0.0, token="a:terminate", kind=kind, node="a")
    for number, answer in enumerate([*before, *(times * [outcome])]):
        closed = IntentClosed(at=1.0, token="a:terminate", outcome=answer, node="a")
        for event in (opened, closed):
            books.take(event, float(number), ahead=0.0, excuses=lambda _: False, disturbs=lambda _: False)
    assert ("a" in books.leaving) is leaves


@pytest.mark.parametrize("asked", [True, False])
def test_an_end_that_was_asked_for_is_asked_for_again_where_a_damaged_journal_is_read_all_the_same(
    asked: bool,
) -> None:
    async def script(watched: Watched) -> None:
        node = watched.machines[0].id
        kind = ActionKind.TERMINATE
        opened = IntentOpened(at=watched.clock.now(), token=f"{node}:{kind}", kind=kind, node=node)
        if asked:
            watched.checker.hear([opened], written=True)
        watched.checker.forget()
        await watched.clock.sleep(20.0)
        await watched.instances.terminate(node)

    assert ("floor" in watch(script, Market.ON_DEMAND).broken) is not asked


@pytest.mark.parametrize("known", [False, True])
def test_the_end_of_a_node_cannot_be_called_back_when_another_one_is_taken_away(known: bool) -> None:
    async def script(watched: Watched) -> None:
        now, kind = watched.clock.now(), ActionKind.TERMINATE
        _, told, spare = (m.id for m in watched.machines)
        drains = DrainStarted(at=now, node=told, deadline=now, cause=Cause.NOTICE, reason="")
        ends = IntentOpened(at=now, token=f"{spare}:{kind}", kind=kind, node=spare)
        for event in (drains, ends) if known else (ends, drains):
            watched.checker.hear([event], written=True)
        await watched.instances.terminate(spare)

    assert ("floor" in watch(script, Market.ON_DEMAND, replicas=2).broken) is known


@pytest.mark.parametrize(
    ("read", "generation", "harm"), [(False, 2, False), (True, 2, True), (False, 1, True)]
)
def test_what_an_earlier_daemon_made_a_target_is_known_once_somebody_has_read_the_set(
    read: bool, generation: int, harm: bool
) -> None:
    """Its set landed after the next daemon had looked, and the answer went to nobody."""

    async def script(watched: Watched) -> None:
        first, second, third = watched.machines
        await watched.write([first, second])
        await watched.balancer.observe()
        await watched.write([first, second, third])
        if read:
            await watched.balancer.observe()
        await watched.write([first, second], generation=generation)

    assert ("no-self-harm" in watch(script).broken) is harm


@pytest.mark.parametrize(("ago", "harm"), [(3.0, False), (30.0, True)])
@pytest.mark.parametrize("how", ["terminate", "stop"])
def test_what_went_away_just_now_still_counts_for_the_floor(how: str, ago: float, harm: bool) -> None:
    """No daemon can know of it yet."""

    async def script(watched: Watched) -> None:
        first, second, _ = watched.machines
        getattr(watched.world, how)(first.id)
        await watched.clock.sleep(ago)
        await watched.instances.terminate(second.id)

    assert ("floor" in watch(script, Market.ON_DEMAND, replicas=2).broken) is harm


@pytest.mark.parametrize(("ago", "harm"), [(3.0, False), (30.0, True)])
@pytest.mark.parametrize("how", ["terminate", "stop", "silence"])
def test_what_went_away_just_now_still_stays_for_who_is_let_go(how: str, ago: float, harm: bool) -> None:
    async def script(watched: Watched) -> None:
        first, second, third = watched.machines
        await watched.write(watched.machines)
        getattr(watched.world, how)(first.id)
        await watched.clock.sleep(ago)
        await watched.write([first, second], draining=[third])

    assert ("no-self-harm" in watch(script, replicas=2).broken) is harm


@pytest.mark.parametrize(
    ("ago", "read", "harm"), [(3.0, True, False), (30.0, True, True), (30.0, False, False)]
)
def test_a_standby_at_work_still_counts_when_a_balancer_lost_it_just_now(
    ago: float, read: bool, harm: bool
) -> None:
    """Also where nobody could read the balancer since."""

    async def script(watched: Watched) -> None:
        watched.machines[0].standby = StandbyKind.STOPPED
        await watched.write(watched.machines)
        await watched.clock.sleep(10.0)
        watched.table.restart()
        await watched.clock.sleep(ago)
        if read:
            await watched.balancer.observe()
        await watched.instances.terminate(watched.machines[1].id)

    assert ("floor" in watch(script, Market.ON_DEMAND, replicas=2).broken) is harm


@pytest.mark.parametrize("started", [True, False])
def test_a_warm_standby_that_was_put_to_work_counts_wherever_it_gets_requests(started: bool) -> None:
    async def script(watched: Watched) -> None:
        watched.machines[0].standby = StandbyKind.STOPPED
        if started:
            await watched.instances.start(watched.machines[0].id)
        await watched.instances.terminate(watched.machines[1].id)

    assert ("floor" in watch(script, Market.ON_DEMAND, replicas=2).broken) is not started


@pytest.mark.parametrize(("ago", "harm"), [(3.0, False), (30.0, True)])
def test_a_standby_counts_that_a_balancer_acknowledged_just_now_and_forgot(ago: float, harm: bool) -> None:
    async def script(watched: Watched) -> None:
        standby, second, third = watched.machines
        standby.standby = StandbyKind.STOPPED
        await watched.write([second, third])
        watched.world.faults.forgetful = True
        await watched.write([standby, second, third])
        await watched.clock.sleep(ago)
        await watched.write([standby, third], draining=[second])

    assert ("floor" in watch(script, Market.ON_DEMAND, replicas=2).broken) is harm


async def test_what_a_daemon_cannot_write_that_another_took_over_from_is_on_no_books(tmp_path: Path) -> None:
    """It ends, and does nothing of it. What the disk keeps out is acted on all the same."""
    heard: list[tuple[list[Event], bool]] = []
    first, second = (RecordedStore.open(tmp_path / "journal.db", now=1.0, inline=True) for _ in range(2))
    for store in (first, second):
        clock = VirtualClock(VirtualTimeLoop(1))
        store.effects = Effects(clock, Trace(clock))
        store.hear = lambda _pool, events, written, _: heard.append(([*events], written))
        await store.next_epoch(5.0)
    started, drained = (
        DaemonStarted(at=1.0, epoch=5),
        DrainStarted(at=2.0, node="i-1", deadline=3.0, cause=Cause.SICK, reason="silent"),
    )
    await second.append("p", [started])
    with pytest.raises(Superseded):
        await first.append("p", [drained])
    assert heard == [([started], True)]
    for store in (first, second):
        store.close()


@pytest.mark.parametrize(("ago", "disturbs"), [(1.0, False), (20.0, True)])
def test_a_drain_disturbs_no_node_that_came_back_to_life_just_now(ago: float, disturbs: bool) -> None:
    async def play() -> bool:
        watched = Watched(loop)
        await watched.clock.sleep(100.0)
        await watched.write(watched.machines)
        node = watched.machines[0].id
        watched.world.silence(node)
        await watched.clock.sleep(20.0)
        watched.world.revive(node)
        await watched.clock.sleep(ago)
        now = watched.clock.now()
        drain = DrainStarted(at=now, node=node, deadline=now + 20.0, cause=Cause.OPERATOR, reason="test")
        watched.checker.hear([drain], written=True)
        return watched.checker.books.draining[node].disturbs

    with virtual_time(1) as loop:
        assert loop.run_until_complete(play()) is disturbs


def test_a_daemon_that_starts_beside_another_knows_nothing_of_what_that_could_not_write() -> None:
    async def play() -> tuple[list[str], list[str]]:
        watched = Watched(loop)
        now, node = watched.clock.now(), watched.machines[0].id
        drain = DrainStarted(at=now, node=node, deadline=now + 20.0, cause=Cause.NOTICE, reason="test")
        watched.checker.hear([drain], written=False)
        before = [*watched.checker.books.draining]
        watched.checker.hear([DaemonStarted(at=now, epoch=2)], written=True)
        return before, [*watched.checker.books.draining]

    with virtual_time(1) as loop:
        before, after = loop.run_until_complete(play())
    assert (len(before), after) == (1, [])


@pytest.mark.parametrize(
    ("market", "share", "machines", "settled"),
    [
        (Market.SPOT, 1.0, 2, False),
        (Market.SPOT, 1.0, 3, True),
        (Market.SPOT, 1.0, 6, True),
        (Market.SPOT, 1.0, 7, False),
        (Market.SPOT, 0.7, 3, False),  # one on demand is the floor
        (Market.ON_DEMAND, 1.0, 3, True),
        (Market.ON_DEMAND, 1.0, 4, False),
    ],
)
def test_the_adaptive_mix_has_what_is_wanted_and_as_much_spot_again_at_most(
    market: Market, share: float, machines: int, settled: bool
) -> None:
    async def script(watched: Watched) -> None:
        await watched.write(watched.machines)
        said = watched.checker.unsettled(watched.clock.now())
        assert not said if settled else said.endswith("on-demand live, wanted 3")

    watch(script, market, machines=machines, adaptive=AdaptiveRules(), spot_share=share)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("hidden", "said"), [(0, ["spend", "budget", "budget"]), (1, [])])
def test_what_a_machine_costs_that_nobody_could_know_of_is_in_no_account(
    hidden: int, said: list[str], again: bool
) -> None:
    """Three machines at a dollar each, and one more, at a cap of three and a half, and so for all pools.

    `again`: it is asked for once more when all is known, which launches nothing.
    """
    broken: list[str] = []

    async def script(watched: Watched) -> None:
        unknown = {m.id for m in watched.machines[:hidden]}
        limits = Limits(
            watched.world,
            Pool(name="p", replicas=3, limits=PoolLimits(spend_per_hour=3.5)),
            books=Books,
            checked=lambda _: None,
            report=lambda name, *_: broken.append(name),
            known=lambda: 3,
            hidden=unknown.copy,
            together=Together(SharedBudget(spend_per_hour=3.5, nodes=3)),
        )
        spot, token = place(Market.SPOT, "a"), "p/1/9"
        opened = IntentOpened(at=0.0, token=token, kind=ActionKind.LAUNCH, node="", placement=spot)
        limits.hear([opened])
        unknown.clear()  # what is known since was decided without
        launch = LaunchRequest(token=token, pool="p", placement=spot, command=EngineCommand(argv=("x",)))
        await watched.instances.launch(launch)
        if again:
            limits.hear([opened])
            await watched.instances.launch(launch)

    watch(script)
    assert broken == said


@pytest.mark.parametrize(
    ("books", "noticed", "said"),
    [
        (lambda _: Books(), False, ["budget"]),
        (lambda n: Books(draining={n: Drain(deadline=200.0, cause=Cause.SICK)}), False, []),
        (lambda n: Books(told={n: {("sim-queue", "n")}}), False, []),
        (lambda _: Books(), True, []),
    ],
)
def test_a_budget_of_nodes_does_not_count_what_is_on_its_way_out(
    books: Callable[[str], Books], noticed: bool, said: list[str]
) -> None:
    """Four nodes and one more; one of them may be on its way out, and the budget holds four."""
    broken: list[str] = []

    async def script(watched: Watched) -> None:
        leaving = watched.machines[0]
        leaving.reclaim_at = watched.clock.now() + 120.0 if noticed else None
        together = Together(SharedBudget(nodes=4))
        for name in "pq":
            Limits(
                watched.world,
                Pool(name=name, replicas=3),
                books=lambda: books(leaving.id),
                checked=lambda _: None,
                report=lambda name, *_: broken.append(name),
                known=lambda: 3,
                hidden=frozenset,
                together=together,
            )
        spot, command = place(Market.SPOT, "a"), EngineCommand(argv=("x",))
        watched.world.add(LaunchRequest(token="q/1/1", pool="q", placement=spot, command=command))
        await watched.instances.launch(
            LaunchRequest(token="p/1/9", pool="p", placement=spot, command=command)
        )

    watch(script)
    assert {*broken} == {*said}


@pytest.mark.parametrize(
    ("cause", "told", "said"),
    [
        (Cause.NOTICE, False, []),
        (Cause.OPERATOR, False, ["disruption"]),
        (Cause.OPERATOR, True, []),  # an old journal lacks that it was taken back
    ],
)
def test_a_notice_that_was_taken_back_makes_no_decision_of_an_earlier_drain(
    cause: Cause, told: bool, said: list[str]
) -> None:
    broken: list[str] = []

    async def script(watched: Watched) -> None:
        first, second, third = watched.machines
        draining = {}
        notices = {m.id: {("sim-queue", "n")} for m in (first, second) if told}
        limits = Limits(
            watched.world,
            Pool(name="p", replicas=3),
            books=lambda: Books(draining=draining, told=notices),
            checked=lambda _: None,
            report=lambda name, *_: broken.append(name),
            known=lambda: 3,
            hidden=frozenset,
            together=Together(SharedBudget()),
        )

        def drain(machine: Machine, cause: Cause) -> None:
            draining[machine.id] = Drain(deadline=200.0, cause=cause, disturbs=cause.by_choice)
            limits.hear([DrainStarted(at=0.0, node=machine.id, deadline=200.0, cause=cause, reason="test")])

        drain(first, Cause.OPERATOR)
        first.reclaim_at = watched.clock.now() + 120.0
        drain(second, Cause.OPERATOR)  # the cloud takes the first one anyway
        first.reclaim_at = None
        drain(third, cause)

    watch(script)
    assert broken == said
