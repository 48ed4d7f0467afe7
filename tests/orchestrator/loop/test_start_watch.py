"""Starts are measured once, when they are over; what a node says may come late, hang, fail or never come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from played_ports import Play

from cloud.errors import CloudError
from cloud.ports import Clock
from orchestrator.journal.codec import decode_event, decode_memory, encode, encode_memory
from orchestrator.loop.start_watch import PATIENCE, StartWatch
from policies.actions import ActionKind
from policies.event_text import sentence
from policies.events import (
    Event,
    GoneCause,
    IntentOpened,
    NodeGone,
    NodeReady,
    NodeSeen,
    NodeStopped,
    TargetsApplied,
)
from policies.memory import Memory, reduce
from policies.model import Market, Placement, StandbyKind, TargetPhase
from policies.records import StartMeasured
from policies.starts import NodeStart

pytestmark = pytest.mark.usefixtures("quiet")

PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)
SAID = NodeStart(stages=(("start", 30.0),), took={"load": 20.0}, serves=True)


class Nodes:
    """What nodes say: answers in their order, the last one again and again."""

    def __init__(self, clock: Clock, answers: Sequence[Any]) -> None:
        self.clock, self.answers, self.asked = clock, list(answers), list[float]()

    async def started(self, node: str) -> NodeStart | None:
        self.asked.append(self.clock.now())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "hangs":
            await self.clock.sleep(1e6)
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]


class Bench:
    """A watch, the memory that its loop has, and the events that it emits. Time 0 is the launch."""

    def __init__(self, clock: Clock, answers: Sequence[Any] | None) -> None:
        self.clock, self.began, self.found, self.memory = clock, clock.now(), list[StartMeasured](), Memory()
        shifted = [self._shifted(answer) for answer in answers or ()]
        self.nodes = Nodes(clock, shifted)
        says = self.nodes if answers is not None else None
        self.watch = StartWatch("p", clock, says=says, emit=self.found.append)  # type: ignore[arg-type]

    def _shifted(self, answer: Any) -> Any:
        if not isinstance(answer, NodeStart):
            return answer
        stages = tuple((stage, at + self.began) for stage, at in answer.stages)
        return NodeStart(stages=stages, took=answer.took, serves=answer.serves)

    def take(self, *events: Event) -> None:
        before, self.memory = self.memory, reduce(self.memory, *events)
        self.watch.events(events, before, self.memory)

    async def until(self, second: float) -> None:
        while self.clock.now() < self.began + second:
            self.watch.look()
            await self.clock.sleep(1.0)
        self.watch.look()
        await self.clock.sleep(0.01)

    def launch(self, node: str = "i-1") -> None:
        at = self.began
        self.take(
            IntentOpened(at=at, token=node, kind=ActionKind.LAUNCH, node="", placement=PLACE), seen(node, at)
        )

    async def ready(self, node: str = "i-1", *, at: float = 100.0, routed: float | None = 102.0) -> None:
        await self.until(at)
        self.take(NodeReady(at=self.began + at, node=node, address="h:1"))
        if routed is not None:
            await self.until(routed)
            self.take(active(self.began + routed, node))


def seen(node: str, launched: float, at: float | None = None) -> NodeSeen:
    return NodeSeen(
        at=launched + 1 if at is None else at,
        node=node,
        token=node,
        placement=PLACE,
        launched_at=launched,
        price=1.0,
        address="",
        standby=None,
    )


def active(at: float, node: str) -> TargetsApplied:
    return TargetsApplied(at=at, balancer="gw", generation=1, changes=((node, TargetPhase.ACTIVE),))


def played(play: Play, answers: Sequence[Any] | None, *, until: float = 300.0, **ready: Any) -> Bench:
    async def work(clock: Clock) -> Bench:
        bench = Bench(clock, answers)
        bench.launch()
        await bench.ready(**ready)
        await bench.until(until)
        return bench

    return play(work)


def test_a_start_is_told_once_with_its_parts(play: Play) -> None:
    (start,) = played(play, [SAID]).found
    assert start.parts == (("machine", 30.0), ("process", 50.0), ("load", 20.0), ("route", 2.0))
    assert (start.node, start.seconds, start.standby, start.placement) == ("i-1", 102.0, False, PLACE)
    assert "its start from the launch took 102.0 s: machine 30.0 s, process 50.0 s" in sentence(start)


def test_without_anybody_to_ask_the_whole_is_known(play: Play) -> None:
    (start,) = played(play, None).found
    assert start.parts == (("route", 2.0), ("other", 100.0))


def test_what_a_node_says_late_is_waited_for(play: Play) -> None:
    early = NodeStart(stages=(("start", 30.0),))
    bench = played(play, [None, early, CloudError("down"), "hangs", RuntimeError("a bug"), SAID])
    (start,) = bench.found
    assert ("load", 20.0) in start.parts
    assert start.at - bench.began < 100.0 + PATIENCE
    assert len(bench.nodes.asked) == 6


@pytest.mark.parametrize("answer", [None, CloudError("down"), "hangs", RuntimeError("a bug")])
def test_one_that_never_says_anything_is_told_without_it(play: Play, answer: Any) -> None:
    bench = played(play, [answer])
    (start,) = bench.found
    assert start.parts == (("route", 2.0), ("other", 100.0))
    assert bench.nodes.asked == sorted(bench.nodes.asked)
    assert len(bench.nodes.asked) < 20, "at its own pace, not at the loop's"


def test_one_that_no_balancer_takes_is_told_without_that_part(play: Play) -> None:
    (start,) = played(play, [SAID], routed=None).found
    assert start.parts == (("machine", 30.0), ("process", 50.0), ("load", 20.0))
    assert start.seconds == 100.0


def test_a_start_that_is_over_does_not_wait_for_an_older_one(play: Play) -> None:
    """The first is not routed yet; the second is told of by then, and a third is not ready at all."""

    async def work(clock: Clock) -> Bench:
        bench = Bench(clock, None)
        for node in ("i-1", "i-2", "i-3"):
            bench.launch(node)
        await bench.ready("i-1", at=100.0, routed=None)
        await bench.ready("i-2", at=101.0, routed=103.0)
        await bench.until(110.0)
        assert [start.node for start in bench.found] == ["i-2"]
        bench.take(active(clock.now(), "i-2"), active(clock.now(), "i-3"))
        await bench.until(100.0 + PATIENCE - 1.0)
        assert [start.node for start in bench.found] == ["i-2"]
        await bench.until(100.0 + PATIENCE + 1.0)
        return bench

    found = play(work).found
    assert [(start.node, start.seconds) for start in found] == [("i-2", 103.0), ("i-1", 100.0)]


def test_only_the_first_acknowledgement_of_active_ends_a_start(play: Play) -> None:
    async def work(clock: Clock) -> Bench:
        bench = Bench(clock, [SAID])
        bench.launch()
        await bench.ready(routed=None)
        draining = TargetsApplied(
            at=bench.began + 101.0, balancer="gw", generation=1, changes=(("i-1", TargetPhase.DRAINING),)
        )
        bench.take(draining, active(bench.began + 104.0, "i-1"), active(bench.began + 109.0, "i-1"))
        await bench.until(300.0)
        return bench

    (start,) = play(work).found
    assert start.seconds == 104.0
    assert start.parts[-1] == ("route", 4.0)


def test_a_node_that_goes_before_is_not_told_of(play: Play) -> None:
    async def work(clock: Clock) -> Bench:
        bench = Bench(clock, [SAID])
        for node, end in (("i-1", NodeGone), ("i-2", NodeStopped)):
            bench.launch(node)
            await bench.ready(node, routed=None)
            more = {"cause": GoneCause.RECLAIMED} if end is NodeGone else {}
            bench.take(end(at=clock.now(), node=node, **more))
        await bench.until(300.0)
        return bench

    assert play(work).found == []


def test_one_that_was_adopted_is_not_measured(play: Play) -> None:
    async def work(clock: Clock) -> Bench:
        bench = Bench(clock, [SAID])
        bench.take(seen("i-1", bench.began - 500.0, bench.began))
        await bench.ready()
        await bench.until(300.0)
        return bench

    assert play(work).found == []


def test_one_that_was_launched_before_this_daemon_is_not_measured(play: Play) -> None:
    """Nobody looked while there was no daemon: its engine may have been ready for an hour."""

    async def work(clock: Clock) -> Bench:
        bench = Bench(clock, [SAID])
        bench.launch()
        await bench.until(50.0)
        bench.watch = StartWatch("p", clock, says=bench.nodes, emit=bench.found.append)  # type: ignore[arg-type]
        await bench.ready(at=3600.0, routed=3601.0)
        await bench.until(3700.0)
        return bench

    assert play(work).found == []


def test_the_start_of_a_stopped_standby_counts_from_its_start(play: Play) -> None:
    async def work(clock: Clock) -> Bench:
        bench = Bench(clock, None)
        bench.launch()
        await bench.ready(routed=None, at=50.0)
        bench.take(NodeStopped(at=clock.now(), node="i-1"))
        await bench.until(200.0)
        token = "i-1:start"
        bench.take(
            IntentOpened(
                at=clock.now(), token=token, kind=ActionKind.START, node="i-1", standby=StandbyKind.STOPPED
            )
        )
        await bench.ready(at=230.0, routed=231.0)
        await bench.until(400.0)
        return bench

    (start,) = play(work).found
    assert start.standby
    assert 25.0 < start.seconds < 35.0


def test_it_survives_the_journal_and_an_old_snapshot_lacks_nothing(play: Play) -> None:
    (start,) = played(play, [SAID]).found
    assert decode_event("StartMeasured", encode(start)) == start
    memory = reduce(Memory(), start)
    assert decode_memory(encode_memory(memory)).starts == (start,)
    older = encode_memory(memory).replace(b'"starts"', b'"unknown"')
    assert decode_memory(older).starts == ()
