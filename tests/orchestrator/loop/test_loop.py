"""One turn of the daemon: facts reach the disk before deeds, and a failing journal stops only spending."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import structlog
from loop_rig import START, Eyes, Play, Rig, rig

from orchestrator.loop import writing
from orchestrator.metrics.metrics import REGISTRY
from policies.actions import ActionKind, Alarm, Drain, Launch, Terminate
from policies.budget import Shares
from policies.decide import decide
from policies.events import (
    DrainHeld,
    DrainStarted,
    Event,
    IntentClosed,
    IntentOpened,
    Outcome,
    PartBack,
    PartLost,
    StateChanged,
    TargetsApplied,
)
from policies.gpu_errors import Remedy
from policies.gpu_readings import GpuState
from policies.grant import Ask, SharedBudget
from policies.memory import replay
from policies.model import (
    DrainRules,
    EngineReading,
    InstanceState,
    NoticeKind,
    PartKind,
    Pool,
    TargetPhase,
    World,
)
from policies.records import Condemned

pytestmark = pytest.mark.usefixtures("quiet")


def test_a_settled_pool_is_left_alone_and_nothing_is_written(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        assert {t.id for t in r.hands.writes[-1]} == {"s1", "s2", "o1", "o2"}
        written, writes = len(r.journal.written), len(r.hands.writes)
        await r.turns(20)
        assert len(r.journal.written) == written
        assert len(r.hands.writes) == writes
        assert r.hands.performed == []
        assert not r.eyes.hurried
        assert r.loop.turns == 23
        assert r.loop.last is r.snapshots[-1]

    rig(play, work)


def test_a_pool_goes_by_its_share_of_the_budget_from_the_turn_on_in_which_it_changes(play: Play) -> None:
    shares = Shares(SharedBudget(spend_per_hour=20.0), ["p", "other"])

    async def work(r: Rig) -> None:
        await r.turns()
        grant = r.loop.last.world.grant
        assert grant is not None
        assert grant.why == "the budget is shared once other was looked at"
        shares.turn(Ask(pool="other", replicas=0))
        await r.turns(2)
        assert r.loop.last.world.grant.why == ""
        assert r.hands.performed == []
        shares.budget = SharedBudget(spend_per_hour=6.0)  # two nodes of 3 USD/h
        await r.turns()
        assert r.loop.last.world.grant.replicas == 2
        drains = [a for a in r.loop.last.plan.actions if isinstance(a, Drain)]
        assert len(drains) == 1
        assert shares.last("p").spend(0.0) == 8.0
        assert decide(r.loop.pool, r.loop.last.world, r.loop.last.memory).notes == r.loop.last.plan.notes

    rig(play, work, shares=shares)


def test_the_engines_of_what_may_run_are_followed_also_where_lists_lack_it(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        everybody = {m.id: m.address for m in r.eyes.machines.values()}
        assert r.eyes.followed == everybody
        lost = r.eyes.machines.pop("s1")
        stopped = r.eyes.machines["o1"]
        r.eyes.machines["o1"] = replace(stopped, state=InstanceState.TERMINATED)
        await r.turns(2)
        assert r.eyes.followed == {n: a for n, a in everybody.items() if n != "o1"}
        assert r.eyes.followed[lost.id] == lost.address
        r.eyes.machines["o2"] = replace(r.eyes.machines["o2"], address=lost.address)
        await r.turns(1)
        assert r.eyes.followed == {"s2": everybody["s2"], "o2": lost.address}  # it is another one's now

    rig(play, work)


def test_a_stopped_node_that_a_balancer_finds_healthy_is_looked_at_again_and_again(play: Play) -> None:
    """Else it would be forgotten that it does not answer, and it would be in and out of the set."""

    async def work(r: Rig) -> None:
        await r.turns(3)
        r.eyes.machines["o1"] = replace(r.eyes.machines["o1"], state=InstanceState.STOPPED)
        r.hands.eyes = Eyes(r.clock)  # the balancer goes on with what it shows
        plain = r.eyes.world

        def world(**how: Any) -> World:
            found = plain(**how)
            failed = EngineReading(node="o1", at=found.now, ready=False, ok=False, failing_since=START)
            looked = {"o1": failed} if "o1" in r.eyes.followed else {}
            return replace(found, engines={**found.engines, **looked})

        r.eyes.world = world  # type: ignore[method-assign]
        await r.turns(2)
        for _ in range(4):
            await r.turns()
            assert "o1" in r.eyes.followed
            assert "o1" not in {t.id for t in r.hands.writes[-1]}

    rig(play, work)


def test_a_notice_is_journalled_then_detached_then_replaced_in_one_turn(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        r.journal.order.clear()
        r.notice("s1")
        plan = (await r.loop.turn()).plan
        assert r.journal.order == ["journal", "targets", "journal", "launch"]
        assert [a.node for a in plan.actions if isinstance(a, Drain)] == ["s1"]
        assert r.hands.held["s1"] is TargetPhase.DRAINING
        assert next(a.replaces for a in r.hands.performed if isinstance(a, Launch)) == "s1"
        opened = [e.token for e in r.journal.written if isinstance(e, IntentOpened)]
        assert opened == [a.token for a in r.hands.performed]  # write ahead
        assert r.eyes.hurried

    rig(play, work)


def test_a_broken_gpu_drains_its_node_in_the_turn_that_sees_it_and_is_told_truly(play: Play) -> None:
    """Also the last of those that may go within an hour: it does not wait, so no alarm says so."""

    async def work(r: Rig) -> None:
        await r.turns(3)
        now = r.eyes.clock.now()
        before = Condemned(at=now - 60.0, node="gone", reason="", fault=True)
        r.loop.memory = replace(r.loop.memory, condemned=(before, before))
        fault = GpuState(node="s2", at=now, remedy=Remedy.RESET, fault="Xid 48")
        r.eyes.gpus["s2"] = fault
        plan = (await r.loop.turn()).plan
        assert [a.node for a in plan.actions if isinstance(a, Drain)] == ["s2"]
        assert [a for a in plan.actions if isinstance(a, Alarm)] == []
        r.eyes.gpus["o1"] = replace(fault, node="o1")
        plan = (await r.loop.turn()).plan
        assert "an hour" in {a.about for a in plan.actions if isinstance(a, Alarm)}
        assert [a.node for a in plan.actions if isinstance(a, Drain)] == []

    rig(play, work)


def test_the_journal_gives_back_the_memory_and_the_plan(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        r.notice("s1")
        for _ in range(5):
            snapshot = await r.loop.turn()
            again = replay([*r.first, *r.journal.written])
            assert again == r.loop.memory
            assert decide(r.pool, snapshot.world, again) == decide(r.pool, snapshot.world, r.loop.memory)
            await r.clock.sleep(1.0)

    rig(play, work)


def test_a_notice_heard_before_is_not_journalled_again(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        for _ in range(5):
            r.notice("s1")
            r.notice("stranger")
        await r.turns(2)
        for _ in range(5):
            r.notice("s1", 120.0 - (r.clock.now() - r.loop.memory.nodes["s1"].notices[0].seen_at))
        await r.turns(2)
        assert r.kinds().count("NoticeSeen") == 2
        r.notice("s1", 30.0)  # another deadline is news
        r.notice("s1", source="metadata")  # and so is another source
        await r.turns(1)
        assert r.kinds().count("NoticeSeen") == 4

    rig(play, work)


def test_a_stop_of_a_node_that_is_not_spot_is_no_news_and_of_one_that_is_it_drains_it(play: Play) -> None:
    """So it comes with every standby that we stop."""

    async def work(r: Rig) -> None:
        await r.turns(3)
        r.notice("o1", 0.0, kind=NoticeKind.STOP)
        r.notice("s1", 0.0, kind=NoticeKind.STOP)
        await r.turns(2)
        assert r.kinds().count("NoticeSeen") == 1
        assert r.loop.memory.nodes["o1"].notices == ()
        assert r.loop.memory.nodes["o1"].drain is None
        assert r.loop.memory.nodes["s1"].drain is not None

    rig(play, work)


def test_a_node_that_two_sources_doom_is_measured_once(play: Play) -> None:
    def measured() -> float:
        name, labels = "orchestrator_notice_to_detached_seconds_count", {"pool": "p"}
        return REGISTRY.get_sample_value(name, labels) or 0.0

    async def work(r: Rig) -> None:
        await r.turns(3)
        before = measured()
        r.notice("s1", kind=NoticeKind.REBALANCE, id="risk", deadline=None)
        await r.turns(5)
        r.notice("s1")
        await r.turns(2)
        assert measured() == before + 1
        r.notice("s1", source="metadata")
        r.notice("s1", 30.0)
        await r.turns(1)
        del r.eyes.machines["s1"]
        r.inbox.put(TargetsApplied(at=r.clock.now(), balancer="gw", generation=9, changes=(("s1", None),)))
        await r.turns(2)
        assert measured() == before + 1

    rig(play, work)


def test_it_is_settled_only_while_all_that_it_remembers_is_on_disk(play: Play) -> None:
    async def work(r: Rig) -> None:
        during: list[bool] = []
        append = r.journal.append

        async def watched(pool: str, events: Sequence[Event]) -> None:
            during.append(r.loop.settled)
            await append(pool, events)

        r.journal.append = watched  # type: ignore[method-assign]
        await r.turns(3)
        assert during
        assert not any(during)
        assert r.loop.settled
        r.journal.fails = True
        r.notice("s1")
        await r.turns(3)
        assert not r.loop.settled
        r.journal.fails = False
        await r.turns(1)
        assert r.loop.settled

    rig(play, work)


# -- a journal that fails ------------------------------------------------------------------------------


def test_with_a_failing_journal_a_doomed_node_is_still_taken_out_and_nothing_is_bought_or_ended(
    play: Play,
) -> None:
    def shown(name: str) -> float:
        return REGISTRY.get_sample_value(f"orchestrator_{name}") or 0.0

    async def work(r: Rig) -> None:
        await r.turns(3)
        failures = shown("journal_failures_total")
        r.journal.fails = True
        ticket = r.notice("s1", 20.0)
        await r.turns(1)
        assert r.hands.held == {
            "s1": TargetPhase.DRAINING,
            "s2": TargetPhase.ACTIVE,
            "o1": TargetPhase.ACTIVE,
            "o2": TargetPhase.ACTIVE,
        }
        await r.turns(40)  # its drain is done and its deadline passes
        assert r.hands.performed == []
        assert r.loop.memory.intents == {}
        assert shown("journal_ok") == 0
        assert shown("journal_failures_total") > failures
        assert r.loop.unwritten > 0
        waiting = asyncio.ensure_future(r.inbox.written(ticket))
        await r.clock.sleep(0.1)
        assert not waiting.done()  # whoever told of it must not forget it
        r.journal.fails = False
        await r.turns(2)
        assert waiting.done()
        assert (shown("journal_ok"), r.loop.unwritten) == (1, 0)
        assert {type(a) for a in r.hands.performed} == {Launch, Terminate}
        assert replay([*r.first, *r.journal.written]) == r.loop.memory  # it has caught up

    rig(play, work, Pool(name="p", replicas=4, drain=DrainRules(budget=5.0)))


def test_a_journal_that_fails_between_facts_and_intents_leaves_no_intent(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        r.notice("s1")
        r.journal.fails_after = 1  # the notice is written, the launch is not
        await r.turns(1)
        assert r.hands.performed == []
        assert r.loop.memory.intents == {}
        assert r.loop.memory.serial == 0
        assert r.loop.memory.nodes["s1"].drain is not None
        r.journal.fails, r.journal.fails_after = False, None
        await r.turns(2)
        opened = [e for e in r.journal.written if isinstance(e, IntentOpened)]
        assert [e.token for e in opened] == [a.token for a in r.hands.performed]
        assert r.hands.performed
        assert any(isinstance(e, DrainStarted) for e in r.journal.written)
        assert replay([*r.first, *r.journal.written]) == r.loop.memory

    rig(play, work)


def test_what_waits_for_the_journal_is_bounded(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "UNWRITTEN_MOST", 50)

    async def work(r: Rig) -> None:
        r.journal.fails = True
        for i in range(70):
            r.notice(f"x{i}")
        await r.turns(2)
        assert r.loop.unwritten == 50
        r.journal.fails = False
        await r.turns(1)
        assert r.loop.unwritten == 0

    rig(play, work)


# -- the lease -----------------------------------------------------------------------------------------


def test_without_the_lease_nothing_is_done(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        writes = len(r.hands.writes)
        r.lease.holds = False
        r.notice("s1")
        await r.turns(3)
        assert r.hands.performed == []
        assert len(r.hands.writes) == writes
        assert r.hands.leading[-3:] == [False] * 3

    rig(play, work)


def test_beyond_the_lease_a_noticed_node_is_let_go_and_nothing_else_is_done(play: Play) -> None:
    """The database is away: nothing can be written down, nothing is bought or ended, no set is written."""

    async def work(r: Rig) -> None:
        await r.turns(3)
        r.notice("s1")
        r.journal.fails = True
        r.lease.holds, r.lease.silent = False, 40.0
        writes = len(r.hands.writes)
        await r.turns(3)
        assert r.hands.let_go[0] == (("gw",), ("s1",))
        assert r.hands.performed == []
        assert len(r.hands.writes) == writes
        assert r.loop.last.world.failsafe_since == pytest.approx(r.clock.now() - 41.0)
        r.journal.fails = False
        r.lease.holds, r.lease.silent = True, None
        await r.turns(2)
        assert r.hands.held["s1"] is TargetPhase.DRAINING
        assert {type(a) for a in r.hands.performed} == {Launch}
        assert replay([*r.first, *r.journal.written]) == r.loop.memory

    rig(play, work)


def test_a_lease_lost_during_the_turn_stops_its_calls(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        r.notice("s1")
        r.lease.lost_after = 1
        await r.turns(1)
        assert r.hands.performed == []

    rig(play, work)


# -- waking, alarms, late drains -----------------------------------------------------------------------


def test_it_turns_at_every_tick_and_at_once_for_a_notice(play: Play) -> None:
    async def work(r: Rig) -> None:
        running = asyncio.ensure_future(r.loop.run())
        await r.clock.sleep(10.3)
        assert 10 <= r.loop.turns <= 14
        r.notice("s1")
        before = r.clock.now()
        while "s1" not in r.hands.held or r.hands.held["s1"] is TargetPhase.ACTIVE:
            await r.clock.sleep(0.001)
        assert r.clock.now() - before < 0.01
        running.cancel()

    rig(play, work)


def test_an_alarm_is_journalled_once_and_again_after_it_ended(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        healthy = r.eyes.world

        def silent(**settings: Any) -> World:
            world = healthy(**settings)
            engines = {i: replace(e, ok=False, failing_since=START) for i, e in world.engines.items()}
            return replace(world, engines=engines)

        for _ in range(2):
            r.eyes.world = silent  # type: ignore[method-assign]
            await r.turns(5)
            r.eyes.world = healthy  # type: ignore[method-assign]
            await r.turns(2)
        assert r.kinds().count("AlarmRaised") == 2

    rig(play, work)


class Away:
    """A world whose balancer the test takes away and gives back."""

    def __init__(self, r: Rig) -> None:
        self._plain = r.eyes.world
        self.since: float | None = None
        r.eyes.world = self  # type: ignore[assignment,method-assign]

    def __call__(self, **settings: Any) -> World:
        world = self._plain(**settings)
        if self.since is None:
            return world
        view = replace(world.balancers["gw"], at=self.since, error="dead", failing_since=self.since)
        return replace(world, balancers={"gw": view})


@contextmanager
def logged() -> Iterator[list[Any]]:
    """The log lines of the body, although these tests are quiet."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    with structlog.testing.capture_logs() as lines:
        yield lines


def part_news(r: Rig) -> list[PartLost | PartBack]:
    return [e for e in r.journal.written if isinstance(e, PartLost | PartBack)]


def test_a_balancer_that_is_lost_and_comes_back_is_journalled_and_logged(play: Play) -> None:
    async def work(r: Rig) -> None:
        away = Away(r)
        await r.turns(3)
        with logged() as lines:
            away.since = r.clock.now()
            await r.turns(40)
            away.since = None
            await r.turns(20)
        lost, back = part_news(r)
        assert isinstance(lost, PartLost)
        assert isinstance(back, PartBack)
        assert (lost.kind, lost.part, lost.error) == (PartKind.BALANCER, "gw", "dead")
        assert lost.at - lost.since < 5.0
        assert back.after == pytest.approx(40.0, abs=1.0)
        assert [(line["log_level"], line["event"]) for line in lines if "part." in line["event"]] == [
            ("warning", "part.lost"),
            ("info", "part.recovered"),
        ]
        states = [e for e in r.journal.written if isinstance(e, StateChanged)]
        assert [(e.before, e.state) for e in states] == [
            ("", "starting"),
            ("starting", "ok"),
            ("ok", "degraded"),  # no balancer of this rig says that it is in the path of requests
            ("degraded", "ok"),
        ]
        assert [(line["log_level"], line["state"]) for line in lines if line["event"] == "state.changed"] == [
            ("warning", "degraded"),
            ("info", "ok"),
        ]

    rig(play, work)


def test_a_loss_that_the_journal_does_not_take_is_logged_and_written_later(play: Play) -> None:
    async def work(r: Rig) -> None:
        away = Away(r)
        await r.turns(3)
        r.journal.fails, away.since = True, r.clock.now()
        with logged() as lines:
            await r.turns(10)
        assert [line["event"] for line in lines].count("part.lost") == 1
        assert part_news(r) == []
        r.journal.fails = False
        await r.turns(1)
        (lost,) = part_news(r)
        assert lost.at < r.clock.now() - 5.0

    rig(play, work)


def test_a_doomed_node_that_serves_on_is_told_once(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        for node in ("s1", "s2"):
            r.notice(node)
        await r.turns(10)
        held = [e for e in r.journal.written if isinstance(e, DrainHeld)]
        assert len(held) == 1
        assert held[0].reason

    rig(play, work)


def test_outcomes_of_calls_are_remembered(play: Play) -> None:
    async def work(r: Rig) -> None:
        await r.turns(3)
        r.notice("s1")
        await r.turns(1)
        token = r.hands.performed[0].token
        assert r.loop.memory.intents[token].kind is ActionKind.LAUNCH
        r.inbox.put(IntentClosed(at=r.clock.now(), token=token, outcome=Outcome.REFUSED, detail="none"))
        await r.turns(1)
        assert token not in r.loop.memory.intents
        assert r.loop.memory.refusals

    rig(play, work)
