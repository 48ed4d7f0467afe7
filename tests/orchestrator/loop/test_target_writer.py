"""The newest target set is written, and a failed write is tried again, with the lease and beyond it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from adapter_engine import HoldingEngine
from played_ports import COMMAND, Balancer, Machines, Play, targets

from cloud.errors import Throttled, Uncertain
from cloud.ports import Clock
from orchestrator.loop.actuator import Actuator, TargetWriter
from policies.events import TargetsApplied
from policies.model import TargetPhase, TargetSpec

pytestmark = pytest.mark.usefixtures("quiet")


class Writing:
    """A writer that runs, its balancer, and what it reported."""

    def __init__(self, clock: Clock, **settings: Any) -> None:
        self.clock = clock
        self.balancer = Balancer(clock, **settings)
        self.heard: list[TargetsApplied] = []
        self.leading, self.failsafe = True, False
        self.writer = TargetWriter(
            self.balancer,
            pool="p",
            clock=clock,
            emit=self.heard.append,
            call_timeout=2.0,
            leading=lambda: self.leading,
            failsafe=lambda: self.failsafe,
        )
        self.task = asyncio.ensure_future(self.writer.run())

    def sets(self) -> list[tuple[str, ...]]:
        return [ids for _, ids, _ in self.balancer.written]


def test_the_newest_set_wins(play: Play) -> None:
    async def work(clock: Clock) -> list[tuple[str, ...]]:
        writing = Writing(clock)
        writing.writer.want(targets("a"), 1)
        writing.writer.want(targets("a", "b"), 1)
        await clock.sleep(0.005)
        writing.writer.want(targets("b"), 1)
        writing.writer.want(targets("b", "c"), 1)
        await clock.sleep(1.0)
        return writing.sets()

    assert play(work) == [("a", "b"), ("b", "c")]


def test_acknowledgements_name_the_changes(play: Play) -> None:
    async def work(clock: Clock) -> list[TargetsApplied]:
        writing = Writing(clock)
        for wanted in (targets("a", "b"), targets("b", draining=["a"]), targets("b"), targets("b")):
            writing.writer.want(wanted, 1)
            await clock.sleep(0.1)
        return writing.heard

    heard = play(work)
    active, draining = TargetPhase.ACTIVE, TargetPhase.DRAINING
    assert [set(e.changes) for e in heard] == [
        {("a", active), ("b", active)},
        {("a", draining)},
        {("a", None)},
        set(),
    ]
    assert all(e.balancer == "gw" for e in heard)


def test_generations_rise_over_writes_and_epochs(play: Play) -> None:
    async def work(clock: Clock) -> list[int]:
        writing = Writing(clock)
        for epoch, ids in ((1, "a"), (1, "b"), (7, "c"), (8, "d")):
            writing.writer.want(targets(ids), epoch)
            await clock.sleep(0.1)
        return [generation for _, _, generation in writing.balancer.written]

    found = play(work)
    assert found == sorted(set(found))
    assert found[2] > 7 << 20
    assert found[3] > 8 << 20


def test_a_failed_write_is_tried_again_until_it_is_acknowledged(play: Play) -> None:
    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, fails=[Uncertain("gone"), Uncertain("gone"), Uncertain("gone")])
        writing.writer.want(targets("a"), 1)
        await clock.sleep(0.05)
        assert writing.writer.error == "gone"
        assert not writing.heard  # what was not acknowledged is not reported
        await clock.sleep(5.0)
        return writing

    writing = play(work)
    assert writing.sets() == [("a",)]
    assert len(writing.heard) == 1
    assert writing.writer.error == ""


def test_what_was_written_and_not_acknowledged_is_known(play: Play) -> None:
    """Any of it may have landed, until a newer set is acknowledged."""

    async def work(clock: Clock) -> None:
        writing = Writing(clock, fails=[Uncertain("gone"), Uncertain("gone")])
        assert writing.writer.unsettled == frozenset()
        writing.writer.want(targets("a", draining=["d"]), 1)
        await clock.sleep(0.005)
        assert writing.writer.unsettled == {"a"}  # on its way
        await clock.sleep(0.05)
        writing.writer.want(targets("b"), 1)
        await clock.sleep(0.0)
        assert writing.writer.unsettled == {"a"}  # asked for, and not tried yet
        await clock.sleep(0.01)
        assert writing.writer.unsettled == {"a", "b"}
        await clock.sleep(5.0)
        assert writing.writer.unsettled == frozenset()
        assert writing.sets() == [("b",)]

    play(work)


def test_a_write_that_hangs_is_given_up_and_tried_again(play: Play) -> None:
    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, hangs=1)
        writing.writer.want(targets("a"), 1)
        await clock.sleep(2.05)
        assert writing.writer.error == "no acknowledgement within 2 s"
        await clock.sleep(5.0)
        return writing

    assert play(work).sets() == [("a",)]


def test_another_set_does_not_wait_for_the_failure_of_an_older_one(play: Play) -> None:
    """A notice arrives while a write is being backed off: its detachment is tried at once."""

    async def work(clock: Clock) -> float:
        writing = Writing(clock, fails=[Uncertain("gone")] * 8)
        writing.writer.want(targets("a", "b"), 1)
        while writing.balancer.fails:
            await clock.sleep(0.5)
        writing.balancer.fails = [Uncertain("gone")]
        while writing.balancer.fails:
            await clock.sleep(0.01)
        began = clock.now()
        await clock.sleep(0.1)
        writing.writer.revise(targets("b", draining=["a"]), 1)
        while not writing.balancer.written:
            await clock.sleep(0.01)
        assert writing.sets() == [("b", "a")]
        return clock.now() - began

    assert play(work) < 1.0  # virtual seconds; the wait had grown to five


def test_the_same_set_wanted_again_keeps_the_growing_wait(play: Play) -> None:
    async def work(clock: Clock) -> int:
        writing = Writing(clock, fails=[Uncertain("gone")] * 1000)
        for _ in range(600):
            writing.writer.want(targets("a"), 1)
            await clock.sleep(0.1)
        return 1000 - len(writing.balancer.fails)

    assert play(work) < 25


def test_the_wait_doubles_up_to_five_seconds_and_begins_anew_after_a_success(play: Play) -> None:
    async def work(clock: Clock) -> None:
        writing = Writing(clock, fails=[Uncertain("gone")] * 8, takes=0.0)
        began = clock.now()

        async def tries(count: int) -> list[float]:
            at = []
            for left in range(len(writing.balancer.fails) - 1, len(writing.balancer.fails) - 1 - count, -1):
                while len(writing.balancer.fails) > left:
                    await clock.sleep(0.01)
                at.append(clock.now() - began)
            return [round(later - earlier, 1) for earlier, later in itertools.pairwise(at)]

        writing.writer.want(targets("a"), 1)
        assert await tries(8) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
        await clock.sleep(6.0)
        assert writing.sets() == [("a",)]
        writing.balancer.fails = [Uncertain("gone")] * 3
        writing.writer.want(targets("b"), 1)
        assert await tries(3) == [0.1, 0.2]

    play(work)


def test_what_was_read_as_the_lease_ran_out_lifts_nothing_above_another_daemon(play: Play) -> None:
    """The look began with the lease and ended without it: the higher generation is another daemon's."""

    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, generation=(2 << 20) + 1, sees=1.0)
        writing.writer.want(targets("a"), 1)
        await clock.sleep(0.5)  # refused, and being read
        assert writing.balancer.looks == 1
        writing.leading, writing.failsafe = False, True
        writing.writer.take_out(out("a"), 1)
        await clock.sleep(60.0)
        writing.task.cancel()
        return writing

    writing = play(work)
    assert (writing.sets(), writing.balancer.let_go) == ([], [])
    assert writing.writer.generation < 2 << 20


def test_a_balancer_with_a_higher_generation_is_caught_up_with(play: Play) -> None:
    async def work(clock: Clock) -> Writing:
        writing = Writing(clock)
        writing.balancer.generation = 50 << 20
        writing.writer.want(targets("a"), 1)
        await clock.sleep(5.0)
        return writing

    writing = play(work)
    assert writing.sets() == [("a",)]
    assert writing.balancer.generation == (50 << 20) + 1


@pytest.mark.parametrize(
    ("blind", "deaf"),
    [(Throttled("slow down"), False), (Uncertain("no answer"), False), (TimeoutError(), False), (None, True)],
)
def test_a_balancer_that_can_be_neither_written_nor_read_is_written_once_it_can(
    play: Play, blind: BaseException | None, deaf: bool
) -> None:
    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, fails=[Uncertain("gone")] * 3, blind=blind, deaf=deaf)
        writing.writer.want(targets("a"), 1)
        await clock.sleep(20.0)
        assert not writing.task.done()
        assert writing.balancer.looks == 3, "one after each write that failed"
        writing.writer.want(targets("b"), 1)
        await clock.sleep(20.0)
        writing.task.cancel()
        return writing

    writing = play(work)
    assert writing.sets() == [("a",), ("b",)]
    assert writing.balancer.generation == (1 << 20) + 5, "each try has a generation of its own"
    assert writing.writer.error == ""


def test_without_the_lease_nothing_is_tried_again(play: Play) -> None:
    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, fails=[Uncertain("gone")])
        writing.writer.want(targets("a"), 1)
        await clock.sleep(0.05)
        writing.writer.forget()
        await clock.sleep(60.0)
        return writing

    assert play(work).sets() == []


def test_a_set_that_is_asked_for_while_it_is_being_written_is_written_once(play: Play) -> None:
    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, takes=1.0)
        for _ in range(5):
            writing.writer.want(targets("a"), 1)
            await clock.sleep(0.1)
        await clock.sleep(5.0)
        return writing

    assert play(work).sets() == [("a",)]


def test_a_lost_state_is_written_again(play: Play) -> None:
    """The balancer was restarted: the loop asks for the same set once more."""

    async def work(clock: Clock) -> Writing:
        writing = Writing(clock)
        for _ in range(2):
            writing.writer.want(targets("a"), 1)
            await clock.sleep(1.0)
        return writing

    assert play(work).sets() == [("a",), ("a",)]


def test_balancers_are_written_beside_each_other(play: Play) -> None:
    """One that hangs holds up no other."""

    async def work(clock: Clock) -> list[tuple[str, ...]]:
        good, bad = Balancer(clock, name="good"), Balancer(clock, name="bad", hangs=99)
        hands = Actuator(
            pool="p",
            clock=clock,
            instances=Machines(clock),
            balancers=(good, bad),
            engine=HoldingEngine(clock),
            command=COMMAND,
            call_timeout=2.0,
            emit=lambda _: None,
            leading=lambda: True,
            failsafe=lambda: False,
            sees=lambda _: True,
        )
        running = [asyncio.ensure_future(w.run()) for w in hands.writers.values()]
        hands.write(["good", "bad"], targets("a"), 1, leading=True)
        await clock.sleep(0.1)
        hands.write(["good", "bad"], targets("b"), 1, leading=True)
        await clock.sleep(0.1)
        for task in running:
            task.cancel()
        return [ids for _, ids, _ in good.written]

    assert play(work) == [("a",), ("b",)]


# -- the lease is looked at once more ------------------------------------------------------------------


def test_a_set_is_not_written_any_more_once_the_lease_is_lost(play: Play) -> None:
    """Not even by a writer whose try failed because another daemon took over, and before any further turn."""

    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, generation=(2 << 20) + 1)
        writing.writer.want(targets("a"), 1)
        writing.leading = False
        await clock.sleep(60.0)
        writing.leading = True
        writing.writer.want(targets("b"), 3)
        await clock.sleep(60.0)
        writing.task.cancel()
        return writing

    assert play(work).sets() == [("b",)]


def test_a_set_that_a_newer_daemon_refused_is_not_forced_without_the_lease(play: Play) -> None:
    """With the lease it is: somebody gave the balancer a higher generation by hand."""

    async def work(clock: Clock, lost: bool) -> list[tuple[str, ...]]:
        writing = Writing(clock, generation=(2 << 20) + 1)
        writing.writer.want(targets("a"), 1)
        await clock.sleep(0.005)  # under way, to be refused
        writing.leading = not lost
        await clock.sleep(60.0)
        writing.task.cancel()
        return writing.sets()

    assert play(lambda clock: work(clock, lost=True)) == []
    assert play(lambda clock: work(clock, lost=False)) == [("a",)]


# -- beyond the lease ----------------------------------------------------------------------------------


def out(*ids: str) -> tuple[TargetSpec, ...]:
    return targets(draining=ids)


def test_beyond_the_lease_targets_are_let_go_and_no_set_is_written(play: Play) -> None:
    async def work(clock: Clock) -> Writing:
        writing = Writing(clock)
        writing.writer.want(targets("a", "b"), 1)
        await clock.sleep(1.0)
        writing.leading, writing.failsafe = False, True
        writing.writer.want(targets("a", "b", "c"), 1)
        await clock.sleep(1.0)
        writing.writer.take_out(out("a"), 1)
        await clock.sleep(1.0)
        writing.task.cancel()
        return writing

    writing = play(work)
    assert writing.sets() == [("a", "b")]
    assert [(ids, generation) for _, ids, generation in writing.balancer.let_go] == [(("a",), (1 << 20) + 2)]
    assert writing.heard[-1].changes == (("a", TargetPhase.DRAINING),)


@pytest.mark.parametrize("late", [False, True], ids=["before", "while it waits for another try"])
def test_what_may_not_be_let_go_any_more_is_not(play: Play, late: bool) -> None:
    """The process was frozen, or another took over: it is asked right before the call."""

    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, fails=[Uncertain("no answer")] * late)
        writing.leading, writing.failsafe = False, late
        writing.writer.take_out(out("a"), 1)
        await clock.sleep(0.05)
        writing.failsafe = False
        await clock.sleep(60.0)
        writing.task.cancel()
        return writing

    assert play(work).balancer.let_go == []


def test_beyond_the_lease_a_newer_generation_is_another_daemons_and_is_never_overtaken(play: Play) -> None:
    """Not even by what was learnt of it a moment before the lease ran out."""

    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, generation=(2 << 20) + 1)
        writing.leading, writing.failsafe = False, True
        writing.writer.take_out(out("a"), 1)
        await clock.sleep(60.0)
        writing.task.cancel()
        return writing

    writing = play(work)
    assert writing.balancer.let_go == []
    assert "is older than" in writing.writer.error


def test_a_failed_try_to_let_go_is_made_again_with_the_newest_wish(play: Play) -> None:
    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, fails=[Uncertain("no answer")] * 5)
        writing.leading, writing.failsafe = False, True
        writing.writer.take_out(out("a"), 1)
        await clock.sleep(0.05)
        writing.writer.take_out(out("a", "b"), 1)
        await clock.sleep(60.0)
        writing.task.cancel()
        return writing

    assert [ids for _, ids, _ in play(work).balancer.let_go] == [("a", "b")]


def test_before_the_first_whole_set_nothing_is_said_to_be_held(play: Play) -> None:
    """The first acknowledgement of a daemon names the whole set."""

    async def work(clock: Clock) -> Writing:
        writing = Writing(clock)
        writing.leading, writing.failsafe = False, True
        writing.writer.take_out(out("a"), 1)
        await clock.sleep(1.0)
        writing.leading = True
        writing.writer.want(targets("b"), 1)
        await clock.sleep(1.0)
        writing.task.cancel()
        return writing

    writing = play(work)
    assert len(writing.balancer.let_go) == 1
    assert [e.changes for e in writing.heard] == [(("b", TargetPhase.ACTIVE),)]


def test_when_the_lease_is_back_the_whole_set_is_written_and_a_wish_to_let_go_is_none(play: Play) -> None:
    async def work(clock: Clock) -> Writing:
        writing = Writing(clock, fails=[Uncertain("no answer")] * 2)
        writing.leading, writing.failsafe = False, True
        writing.writer.take_out(out("a"), 1)
        await clock.sleep(0.05)
        writing.leading, writing.failsafe = True, False
        writing.writer.want(targets("b", draining=["a"]), 1)
        await clock.sleep(60.0)
        writing.task.cancel()
        return writing

    writing = play(work)
    assert (writing.sets(), writing.balancer.let_go) == ([("b", "a")], [])
