"""The hands of the loop: every outcome of a call is reported once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from adapter_engine import HoldingEngine
from played_ports import COMMAND, Machines, Play, hands_of

from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    NotFound,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.ports import Clock, EngineCommand, LaunchRequest
from orchestrator.loop.actuator import CALLS_AT_ONCE, Actuator
from policies.actions import Action, Cause, Drain, Launch, Start, Stop, Terminate
from policies.events import Event, IntentClosed, Outcome
from policies.model import Ending, InstanceState, Market, Placement, StandbyKind

pytestmark = pytest.mark.usefixtures("quiet")

PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)


def place_of(node: str) -> Placement:
    """A node is named after its region."""
    return replace(PLACE, region=node.partition("/")[0])


def launch(intent: str = "p/1/1") -> Launch:
    return Launch(
        token=intent,
        placement=PLACE,
        price=1.0,
        cause=Cause.SHORT,
        reason="missing",
        standby=StandbyKind.STOPPED,
    )


def outcomes(play: Play, action: Action, **settings: Any) -> tuple[list[IntentClosed], Machines]:
    """What is reported after one action."""

    async def work(clock: Clock) -> tuple[list[IntentClosed], Machines]:
        machines, heard = Machines(clock, **settings), []
        hands = hands_of(clock, machines, heard)
        hands.perform([action], place_of=place_of)
        await clock.sleep(60.0)
        await hands.stop()
        return heard, machines

    result: tuple[list[IntentClosed], Machines] = play(work)
    return result


@pytest.mark.parametrize(
    ("fails", "outcome"),
    [
        (InsufficientCapacity("none"), Outcome.REFUSED),
        (QuotaExceeded("8 of 8"), Outcome.QUOTA),
        (Throttled("slow down"), Outcome.THROTTLED),
        (Denied("no"), Outcome.DENIED),
        (Misconfigured("no such image"), Outcome.MISCONFIGURED),
        (NotFound("what"), Outcome.FAILED),
        (CloudError("other"), Outcome.FAILED),
        (Uncertain("connection lost"), Outcome.UNCERTAIN),
        (TimeoutError(), Outcome.UNCERTAIN),
        (ValueError("a bug of the adapter"), Outcome.UNCERTAIN),
    ],
)
@pytest.mark.parametrize(
    "action",
    [
        launch(),
        Terminate(token="n:terminate", node="n", cause=Cause.NOTICE, reason="drained"),
        Start(token="n:start", node="n", reason="missing"),
        Stop(token="n:stop", node="n", reason="warm"),
    ],
    ids=lambda a: str(a.kind),
)
def test_every_error_has_its_outcome(play: Play, action: Any, fails: BaseException, outcome: Outcome) -> None:
    heard, _ = outcomes(play, action, fails=fails)
    assert [(e.token, e.outcome) for e in heard] == [(action.token, outcome)]
    assert heard[0].detail  # every failure says what happened


def test_a_call_that_hangs_is_uncertain_after_the_time_out(play: Play) -> None:
    heard, _ = outcomes(play, launch(), hangs=True)
    assert heard[0].outcome is Outcome.UNCERTAIN
    assert heard[0].detail == "no answer within 10 s"


@pytest.mark.parametrize("state", [InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN])
def test_a_launch_whose_machine_has_ended_already_died(play: Play, state: InstanceState) -> None:
    heard, _ = outcomes(play, launch(), state=state)
    assert heard[0].outcome is Outcome.DIED


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (Ending.FAULT, Outcome.DIED),
        (Ending.REQUEST, Outcome.DIED),
        (Ending.CAPACITY, Outcome.REFUSED),
        (Ending.RECLAIM, Outcome.REFUSED),
    ],
)
def test_why_it_ended_says_what_it_tells_of_the_placement(
    play: Play, ending: Ending, outcome: Outcome
) -> None:
    heard, _ = outcomes(play, launch(), state=InstanceState.TERMINATED, ending=ending)
    assert (heard[0].outcome, heard[0].detail) == (outcome, f"the words of {ending}")


def test_a_launch_says_everything_and_reports_its_instance(play: Play) -> None:
    heard, machines = outcomes(play, launch("p/1/9"))
    assert heard[0].outcome is Outcome.DONE
    assert heard[0].node == "i-p/1/9"
    assert machines.calls == [
        (
            "launch",
            LaunchRequest(
                token="p/1/9", pool="p", placement=PLACE, command=COMMAND, standby=StandbyKind.STOPPED
            ),
        )
    ]


def test_actions_without_a_call_call_nothing(play: Play) -> None:
    heard, machines = outcomes(play, Drain(node="n", deadline=9.0, cause=Cause.NOTICE, reason="notice"))
    assert heard == []
    assert machines.calls == []


def test_a_token_under_way_is_not_called_again_and_may_be_afterwards(play: Play) -> None:
    async def work(clock: Clock) -> list[tuple[str, Any]]:
        machines, heard = Machines(clock), []
        hands = hands_of(clock, machines, heard)
        hands.perform([launch(), launch()], place_of=place_of)
        await clock.sleep(0.1)
        hands.perform([launch()], place_of=place_of)
        await clock.sleep(1.0)
        assert len(machines.calls) == len(heard) == 1
        hands.perform([launch()], place_of=place_of)
        await clock.sleep(1.0)
        return machines.calls

    assert len(play(work)) == 2


def test_calls_run_a_few_at_a_time(play: Play) -> None:
    async def work(clock: Clock) -> Machines:
        machines, heard = Machines(clock), []
        hands = hands_of(clock, machines, heard)
        hands.perform([launch(f"p/1/{i}") for i in range(50)], place_of=place_of)
        await clock.sleep(10.0)
        assert len(heard) == 50
        return machines

    assert play(work).most_at_once == CALLS_AT_ONCE


def test_a_region_that_hangs_keeps_no_call_in_another_waiting(play: Play) -> None:
    """Sixty calls time out, a few at a time; a launch elsewhere is done at once."""

    async def work(clock: Clock) -> list[Event]:
        machines, heard = Machines(clock, hangs_in="west"), []
        hands = hands_of(clock, machines, heard)
        ends = [
            Terminate(token=f"west/{i}:terminate", node=f"west/{i}", cause=Cause.EXCESS, reason="")
            for i in range(60)
        ]
        hands.perform(ends, place_of=place_of)
        await clock.sleep(0.1)
        hands.perform([launch()], place_of=place_of)
        await clock.sleep(1.0)
        return [*heard]

    done = [e.token for e in play(work) if e.outcome is Outcome.DONE]
    assert done == [launch().token]


def test_launches_that_hang_keep_no_end_of_a_machine_waiting(play: Play) -> None:
    """As many launches as run at a time wait for their turn; a noticed node there is ended at once."""

    async def work(clock: Clock) -> list[Event]:
        machines, heard = Machines(clock, hangs_in="LaunchRequest"), []
        hands = hands_of(clock, machines, heard)
        hands.perform([launch(f"p/1/{number}") for number in range(60)], place_of=place_of)
        await clock.sleep(0.1)
        end = Terminate(token="r/1:terminate", node="r/1", cause=Cause.NOTICE, reason="")
        hands.perform([end], place_of=place_of)
        await clock.sleep(1.0)
        return [*heard]

    assert [(e.token, e.outcome) for e in play(work)] == [("r/1:terminate", Outcome.DONE)]


def test_stopping_cuts_off_what_runs_and_reports_nothing_of_it(play: Play) -> None:
    async def work(clock: Clock) -> list[Event]:
        machines, heard = Machines(clock, hangs=True), []
        hands = hands_of(clock, machines, heard)
        hands.perform([launch()], place_of=place_of)
        await clock.sleep(0.1)
        await hands.stop()
        assert machines.at_once == 0
        return heard

    assert play(work) == []


# -- lease and lists are looked at once more -----------------------------------------------------------


def test_a_call_that_waited_until_the_lease_was_lost_is_not_made(play: Play) -> None:
    """More calls than run at once: those that wait for a slot find that the lease is gone."""

    async def work(clock: Clock) -> tuple[list[IntentClosed], Machines]:
        machines, heard, held = Machines(clock), [], [True]
        hands = Actuator(
            pool="p",
            clock=clock,
            instances=machines,
            balancers=(),
            engine=HoldingEngine(clock),
            command=COMMAND,
            call_timeout=10.0,
            emit=heard.append,
            leading=lambda: held[0],
            failsafe=lambda: not held[0],
            sees=lambda _: True,
        )
        hands.perform([launch(f"p/1/{number}") for number in range(CALLS_AT_ONCE + 3)], place_of=place_of)
        await clock.sleep(0.1)
        held[0] = False
        await clock.sleep(60.0)
        await hands.stop()
        return heard, machines

    heard, machines = play(work)
    assert len(machines.calls) == CALLS_AT_ONCE
    late = [e for e in heard if e.outcome is not Outcome.DONE]
    assert [(e.outcome, e.detail) for e in late] == [
        (Outcome.FAILED, "the lease was lost before the call")
    ] * 3


@pytest.mark.parametrize(
    "action",
    [
        launch(),
        Start(token="t", node="r/a", reason=""),
        Stop(token="t", node="r/a", reason=""),
        Terminate(token="t", node="r/a", cause=Cause.SICK, reason=""),
    ],
    ids=lambda action: str(action.kind),
)
@pytest.mark.parametrize("seen", ["r", "elsewhere"])
def test_a_call_whose_region_nobody_could_list_meanwhile_is_not_made(
    play: Play, action: Action, seen: str
) -> None:
    """The process was frozen, or the call waited for its turn while its region fell silent."""

    async def work(clock: Clock) -> tuple[list[IntentClosed], Machines]:
        machines, heard = Machines(clock), []
        hands = hands_of(clock, machines, heard, sees={seen}.__contains__)
        hands.perform([action], place_of=place_of)
        await clock.sleep(60.0)
        await hands.stop()
        return heard, machines

    [closed], machines = play(work)
    assert len(machines.calls) == (seen == "r")
    if seen != "r":
        words = "the list of the region's machines grew old before the call"
        assert (closed.outcome, closed.detail) == (Outcome.FAILED, words)


def test_a_launch_starts_the_engine_as_its_instance_type_has_it(play: Play) -> None:
    large = EngineCommand(argv=("serve", "-tp", "8"), build="eight")

    async def work(clock: Clock) -> list[LaunchRequest]:
        machines, heard = Machines(clock), []
        hands = hands_of(clock, machines, heard)
        hands.command = replace(COMMAND, on={"p5.48xlarge": large})
        for number, kind in enumerate(("p5.4xlarge", "p5.48xlarge")):
            action = launch(f"p/1/{number}")
            placed = replace(action, placement=replace(action.placement, instance_type=kind))
            hands.perform([placed], place_of=place_of)
        await clock.sleep(60.0)
        await hands.stop()
        return [request for call, request in machines.calls if call == "launch"]

    requests = {request.placement.instance_type: request.command for request in play(work)}
    assert requests == {"p5.4xlarge": COMMAND, "p5.48xlarge": large}
