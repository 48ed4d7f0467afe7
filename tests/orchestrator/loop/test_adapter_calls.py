"""The actuator asks engines for adapters, and says how each call went."""

from __future__ import annotations

from typing import Any

import pytest
from adapter_engine import HoldingEngine
from played_ports import COMMAND, Machines, Play

from cloud.errors import Misconfigured, NotFound, Uncertain
from cloud.ports import Clock
from orchestrator.loop.actuator import ADAPTER_WITHIN, Actuator
from orchestrator.loop.loop import _adapters_move
from policies.actions import LoadAdapter, Plan, UnloadAdapter
from policies.adapter_events import AdapterAnswered
from policies.events import Event
from policies.held import Adapter, AdapterRules
from policies.memory import Memory
from policies.model import Market, Placement, Pool
from policies.records import AdapterCall, AdapterRecord, NodeRecord
from policies.value import replace

SQL = "sql@f9c12638"
LOAD = LoadAdapter(node="i-1", address="h:1", served_as=SQL, source="/lora/sql", reason="it waits")
UNLOAD = UnloadAdapter(node="i-1", address="h:1", served_as=SQL, reason="nobody asks")


def answers(
    play: Play, *actions: Any, error: Exception | None = None, hangs: bool = False, leads: bool = True
) -> tuple[list[AdapterAnswered], HoldingEngine]:
    async def work(clock: Clock) -> tuple[list[Event], HoldingEngine]:
        engine, heard = HoldingEngine(clock), list[Event]()
        engine.error, engine.hangs = error, hangs
        hands = Actuator(
            pool="p",
            clock=clock,
            instances=Machines(clock),
            balancers=(),
            engine=engine,
            command=COMMAND,
            call_timeout=10.0,
            emit=heard.append,
            leading=lambda: leads,
            failsafe=lambda: False,
            sees=lambda _: True,
        )
        for action in actions:
            hands.perform([action], place_of=lambda _: None)
            hands.perform([action], place_of=lambda _: None)  # while it runs it is not made twice
            await clock.sleep(ADAPTER_WITHIN + 1.0)
        await hands.stop()
        return heard, engine

    result: tuple[list[AdapterAnswered], HoldingEngine] = play(work)
    return result


def test_a_gateway_is_looked_at_often_while_calls_are_under_way_and_not_between_tries_of_one_that_fails() -> (
    None
):
    rules = AdapterRules(wanted=(Adapter(name="sql", source="/lora/sql"),))
    pool = Pool(name="p", replicas=1, adapters=rules)
    place = Placement("sim", "r", "a", "gpu", Market.SPOT)
    node = NodeRecord(id="i-1", token="t", placement=place, launched_at=0.0, price=None)
    for failure, often in (("", True), ("no such file", False)):
        call = AdapterCall(load=True, asked_at=0.0, attempts=5, failure=failure)
        held = replace(node, adapters=(AdapterRecord(adapter=SQL, call=call),))
        assert _adapters_move(pool, Memory(nodes={"i-1": held}), Plan()) is often


def test_an_engine_loads_and_unloads_what_it_is_asked_to(play: Play) -> None:
    heard, engine = answers(play, LOAD, UNLOAD)
    assert [(e.node, e.adapter, e.load, e.failure) for e in heard] == [
        ("i-1", SQL, True, ""),
        ("i-1", SQL, False, ""),
    ]
    assert engine.calls == [("load", "h:1", SQL), ("unload", "h:1", SQL)]


@pytest.mark.parametrize(
    ("error", "certain"),
    [
        (NotFound("no adapter found"), True),
        (Misconfigured("rank 64"), True),
        (Uncertain("connection lost"), False),
        (ValueError("a bug of the engine's adapter"), False),
    ],
)
def test_a_call_that_fails_says_why_and_whether_it_surely_did_nothing(
    play: Play, error: Exception, certain: bool
) -> None:
    (answer,), _ = answers(play, LOAD, error=error)
    assert str(error) in answer.failure
    assert answer.certain is certain


def test_a_call_that_hangs_is_given_up(play: Play) -> None:
    (answer,), _ = answers(play, LOAD, hangs=True)
    assert (answer.failure, answer.certain) == (f"no answer within {ADAPTER_WITHIN:.0f} s", False)


def test_without_the_lease_no_engine_is_asked(play: Play) -> None:
    (answer,), engine = answers(play, LOAD, leads=False)
    assert "lease" in answer.failure
    assert engine.calls == []
