"""A boot that failed is told of once, with what its machine wrote, and never keeps the machine alive."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from loop_rig import Rig, rig
from played_ports import Machines, Play, hands_of

from cloud.errors import CloudError, Denied, NotFound, Throttled, Uncertain
from cloud.ports import Clock, LaunchRequest
from orchestrator.journal.codec import decode_event, encode
from orchestrator.loop.actuator import CALLS_AT_ONCE
from orchestrator.loop.last_words import PATIENCE
from policies.actions import Cause, Launch, Terminate
from policies.boot_memory import BOOTS_KEPT, CONSOLE_BYTES, CONSOLE_LINES
from policies.event_text import sentence
from policies.events import BootFailed, DaemonStarted, Event, IntentClosed, Outcome
from policies.memory import Memory, reduce
from policies.model import Ending, Instance, InstanceState, Market, Placement

pytestmark = pytest.mark.usefixtures("quiet")

PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)
WHY = "not ready 900 s after its start: connection refused"


def end(node: str = "i-1", cause: Cause = Cause.BOOT) -> Terminate:
    return Terminate(token=f"{node}:terminate", node=node, cause=cause, reason=WHY)


class Consoles(Machines):
    """Machines whose console fails or hangs apart from their end."""

    def __init__(self, clock: Clock, **given: Any) -> None:
        self.console_fails: BaseException | None = given.pop("console_fails", None)
        self.console_hangs: bool = given.pop("console_hangs", False)
        super().__init__(clock, **given)

    async def console(self, node: str) -> str:
        self.calls.append(("console", node))
        await self.clock.sleep(1e6 if self.console_hangs else 0.5)
        if self.console_fails is not None:
            raise self.console_fails
        return self.wrote


def played(play: Play, *ends: Terminate, **given: Any) -> tuple[list[Event], Machines, float]:
    """What is told, what was called, and when the last call of all came back."""

    async def work(clock: Clock) -> tuple[list[Event], Machines, float]:
        machines, heard, began = Consoles(clock, **given), list[Event](), clock.now()
        hands = hands_of(clock, machines, heard)
        hands.perform(ends or [end()], place_of=lambda _: PLACE)
        await clock.sleep(600.0)
        await hands.stop()
        return heard, machines, max((e.at for e in heard), default=began) - began

    found: tuple[list[Event], Machines, float] = play(work)
    return found


def test_a_boot_that_is_given_up_is_told_with_what_the_machine_wrote(play: Play) -> None:
    heard, machines, _ = played(play, wrote="loading\nCUDA out of memory\n")
    assert machines.calls == [("console", "i-1"), ("terminate", "i-1")], "first its words, then its end"
    told, closed = heard
    assert isinstance(told, BootFailed)
    assert (told.node, told.placement, told.why) == ("i-1", PLACE, WHY)
    assert told.console == "loading\nCUDA out of memory"
    assert isinstance(closed, IntentClosed)
    assert closed.outcome is Outcome.DONE


@pytest.mark.parametrize("cause", [c for c in Cause if c is not Cause.BOOT])
def test_no_other_end_asks_for_a_console(play: Play, cause: Cause) -> None:
    heard, machines, _ = played(play, end(cause=cause))
    assert [name for name, _ in machines.calls] == ["terminate"]
    assert [type(e) for e in heard] == [IntentClosed]


@pytest.mark.parametrize(
    "fails",
    [
        Denied("ec2:GetConsoleOutput is not allowed"),
        Throttled("slow down"),
        NotFound("no instance"),
        CloudError("no answer"),
        Uncertain("no answer"),
        TimeoutError(),
        ValueError("a bug of the adapter"),
    ],
)
def test_a_console_that_cannot_be_read_keeps_no_machine(play: Play, fails: BaseException) -> None:
    heard, machines, _ = played(play, console_fails=fails)
    assert ("terminate", "i-1") in machines.calls
    assert [(e.why, e.console) for e in heard if isinstance(e, BootFailed)] == [(WHY, "")]


def test_a_console_that_hangs_delays_the_end_by_its_patience_and_no_more(play: Play) -> None:
    heard, machines, took = played(play, console_hangs=True)
    assert ("terminate", "i-1") in machines.calls
    assert took <= PATIENCE + 1.0
    assert [e.console for e in heard if isinstance(e, BootFailed)] == [""]


def test_many_consoles_that_hang_take_no_turn_from_other_calls(play: Play) -> None:
    """They are asked before a call has its place: all of them at once, and other ends go on beside them."""
    boots = [end(f"i-{number}") for number in range(4 * CALLS_AT_ONCE)]
    heard, _, took = played(play, *boots, end("i-sick", Cause.SICK), console_hangs=True)
    assert took <= PATIENCE + 4 * 0.5 + 1.0
    first = next(e for e in heard if isinstance(e, IntentClosed))
    assert first.token == "i-sick:terminate"


def test_an_end_that_is_asked_for_again_asks_for_no_console_again(play: Play) -> None:
    async def work(clock: Clock) -> tuple[list[Event], Machines]:
        machines, heard = Consoles(clock, fails=CloudError("busy")), list[Event]()
        hands = hands_of(clock, machines, heard)
        for _ in range(6):
            hands.perform([end()], place_of=lambda _: PLACE)
            await clock.sleep(60.0)
        hands.ended_unready("i-1", PLACE, "ended by a fault")
        await clock.sleep(60.0)
        return heard, machines

    heard, machines = play(work)
    assert [name for name, _ in machines.calls].count("console") == 1
    assert sum(isinstance(e, BootFailed) for e in heard) == 1


def test_a_machine_that_ended_unready_is_told_of_too(play: Play) -> None:
    async def work(clock: Clock) -> tuple[list[Event], Machines]:
        machines, heard = Consoles(clock, wrote="panic"), list[Event]()
        hands = hands_of(clock, machines, heard)
        for _ in range(3):
            hands.ended_unready("i-1", PLACE, "Client.InternalError: Client error on launch")
        await clock.sleep(60.0)
        return heard, machines

    heard, machines = play(work)
    assert machines.calls == [("console", "i-1")]
    (told,) = heard
    assert isinstance(told, BootFailed)
    assert (told.why, told.console) == ("Client.InternalError: Client error on launch", "panic")


def test_a_daemon_that_stops_while_it_listens_stops(play: Play) -> None:
    async def work(clock: Clock) -> float:
        machines, heard = Consoles(clock, console_hangs=True), list[Event]()
        hands, began = hands_of(clock, machines, heard), clock.now()
        hands.perform([end()], place_of=lambda _: PLACE)
        hands.ended_unready("i-2", PLACE, "fault")
        await asyncio.sleep(0)
        await hands.stop()
        assert not heard
        return clock.now() - began

    assert play(work) == 0.0


@pytest.mark.parametrize(
    "wrote",
    [
        "x" * 1_000_000,
        "line\n" * 200_000,
        "\r\n" * 500_000,
        "\x1b[2J\x1b[1;1H\x1b]0;owned\x07\x1b]8;;http://evil\x1b\\click\x1b[31m\n" * 20_000,
        "\ud800\udfff\x00\u202e\x85\u2028\x9b31m{{ $labels }}<script>[bold]\n" * 20_000,
    ],
    ids=["one-line", "lines", "newlines", "escapes", "no-text"],
)
def test_what_a_machine_wrote_is_bounded_and_harmless_whatever_the_adapter_gives(
    play: Play, wrote: str
) -> None:
    heard, _, _ = played(play, wrote=wrote)
    told = next(e for e in heard if isinstance(e, BootFailed))
    lines = told.console.split("\n")
    assert len(told.console.encode()) <= CONSOLE_BYTES
    assert len(lines) <= CONSOLE_LINES + 1  # one says that something was cut off
    assert all(line.isprintable() for line in lines)
    assert decode_event("BootFailed", encode(told)) == told
    assert sentence(told).isprintable()
    assert len(sentence(told)) < 1000


# -- what is remembered ---------------------------------------------------------------------------


def failed(node: str, at: float, console: str = "") -> BootFailed:
    return BootFailed(at=at, node=node, placement=PLACE, why="fault", console=console)


def test_the_newest_failed_boots_are_remembered_each_once() -> None:
    memory = reduce(Memory(), *(failed(f"i-{number}", number) for number in range(3 * BOOTS_KEPT)))
    assert [b.node for b in memory.failed_boots] == [f"i-{n}" for n in range(2 * BOOTS_KEPT, 3 * BOOTS_KEPT)]
    again = reduce(memory, failed("i-20", 99.0, "words"), failed("i-20", 100.0))
    assert [b.node for b in again.failed_boots].count("i-20") == 1
    assert again.failed_boots[-1].console == "words", "a second look that shows nothing takes nothing away"


def test_a_clock_that_was_set_back_leaves_no_boot_in_the_future() -> None:
    memory = reduce(Memory(), failed("i-1", 500.0), DaemonStarted(at=100.0, epoch=2))
    assert [b.at for b in memory.failed_boots] == [100.0]


# -- whom the loop and a launch tell of ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "leading", "told"),
    [
        (Ending.FAULT, True, True),
        (Ending.FAULT, False, False),
        (Ending.RECLAIM, True, False),
        (Ending.CAPACITY, True, False),
        (Ending.REQUEST, True, False),
    ],
)
def test_a_machine_that_a_fault_ended_before_it_was_ready_is_heard_once(
    play: Play, ending: Ending, leading: bool, told: bool
) -> None:
    async def work(r: Rig) -> None:
        await r.turns(2)
        r.eyes.add("new", Market.SPOT)
        booting = replace(r.eyes.machines["new"], state=InstanceState.PENDING, launched_at=r.clock.now())
        r.eyes.machines["new"] = booting
        await r.turns(2)
        r.lease.holds = leading
        r.eyes.machines["new"] = replace(
            booting, state=InstanceState.TERMINATED, ending=ending, ending_why="Client.InternalError: key"
        )
        await r.turns(3)
        expected = [("new", booting.placement, "Client.InternalError: key")] if told else []
        assert r.hands.unready == expected

    rig(play, work)


@pytest.mark.parametrize("ending", list(Ending))
def test_a_launch_that_a_fault_ended_at_once_is_heard(play: Play, ending: Ending) -> None:
    class Ends(Consoles):
        async def launch(self, request: LaunchRequest) -> Instance:
            launched = await super().launch(request)
            return replace(
                launched, state=InstanceState.TERMINATED, ending=ending, ending_why="Client.X: why"
            )

    async def work(clock: Clock) -> list[Event]:
        heard: list[Event] = []
        hands = hands_of(clock, Ends(clock), heard)
        launch = Launch(token="p/1/1", placement=PLACE, price=1.0, cause=Cause.SHORT, reason="missing")
        hands.perform([launch], place_of=lambda _: PLACE)
        await clock.sleep(60.0)
        return heard

    told = [e.why for e in play(work) if isinstance(e, BootFailed)]
    assert told == (["Client.X: why"] if ending is Ending.FAULT else [])
