"""A node that is tried: every step is told, and whatever happens what was launched is ended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace

import pytest
from hand_clock import HandClock

from cloud.engines.openai_probe import Step as EngineStep
from cloud.engines.wire import LookFailed
from cloud.errors import CloudError, Denied, InsufficientCapacity, Throttled, Uncertain
from cloud.ports import EngineCommand
from orchestrator.doctor import reach
from orchestrator.doctor.findings import State
from orchestrator.doctor.trial import Trial
from orchestrator.doctor.try_node import allowed
from orchestrator.wiring.clouds import WIRING
from policies.evidence import ours
from policies.memory import Memory
from policies.model import Ending, Instance, InstanceState, Limits, Market, Offering, Placement, Pool

BOOT = 900.0
STEPS = ["accepted", "running", "address", "port open", "healthy", "model listed", "first token", "ended"]


def placement(zone="a", market=Market.ON_DEMAND):
    return Placement(
        provider="aws", region="us-east-1", zone=f"us-east-1{zone}", instance_type="g6e.xlarge", market=market
    )


class Cloud:
    """One region that launches machines. `faults` maps a call to what it raises, one a call; a machine runs
    after so many looks."""

    regions = ("us-east-1",)

    def __init__(self, clock, address):
        self.clock, self.address = clock, address
        self.faults = {"launch": [], "list": [], "terminate": [], "console": []}
        self.calls = {"launch": 0, "list": 0, "terminate": 0, "console": 0}
        self.machines: dict[str, Instance] = {}
        self.pending = 2
        self.dies = ""
        self.text = "line 1\nline 2\n"
        self.interrupt = lambda call, number: None

    async def _called(self, call):
        self.calls[call] += 1
        self.interrupt(call, self.calls[call])
        await asyncio.sleep(0)
        if self.faults[call]:
            fault = self.faults[call].pop(0)
            if fault is not None:
                raise fault

    async def launch(self, request):
        made = self.machines.get(request.token)
        if made is None and not isinstance(next(iter(self.faults["launch"]), None), Denied | Throttled):
            self._made(request)
        await self._called("launch")
        return self.machines[request.token]

    def _made(self, request):
        if isinstance(next(iter(self.faults["launch"]), None), InsufficientCapacity):
            return
        self.machines[request.token] = Instance(
            id=f"i-{len(self.machines)}",
            pool=request.pool,
            token=request.token,
            placement=request.placement,
            state=InstanceState.PENDING,
            address=self.address,
            launched_at=self.clock.now(),
            price=None,
        )

    async def list(self, pool, region):
        await self._called("list")
        if self.calls["list"] >= self.pending:
            state = InstanceState.TERMINATED if self.dies else InstanceState.RUNNING
            for token, one in self.machines.items():
                if one.state is InstanceState.PENDING:
                    ending = Ending.FAULT if self.dies else Ending.UNKNOWN
                    self.machines[token] = replace(one, state=state, ending=ending, ending_why=self.dies)
        return tuple(self.machines.values())

    async def terminate(self, node):
        await self._called("terminate")
        for token, one in self.machines.items():
            if one.id == node:
                self.machines[token] = replace(one, state=InstanceState.SHUTTING_DOWN)

    async def console(self, node):
        await self._called("console")
        return self.text

    @property
    def living(self):
        ended = (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)
        return [one.id for one in self.machines.values() if one.state not in ended]


class Engine:
    """An engine that lacks some steps, each so many times."""

    def __init__(self):
        self.lacks = {}

    async def came_to(self, step, address):
        if self.lacks.get(step, 0) > 0:
            self.lacks[step] -= 1
            raise LookFailed(f"no {step}")


class Stand:
    """A trial with everything that it talks to."""

    def __init__(self, address, offerings=None):
        self.clock = HandClock()
        self.cloud, self.engine = Cloud(self.clock, address), Engine()
        self.said: list[str] = []
        self.trial = Trial(
            instances=self.cloud,
            engine=self.engine,
            clock=self.clock,
            pool="llama",
            command=EngineCommand(argv=()),
            offerings=offerings or [Offering(placement=placement(), price=3.6)],
            token="try-node/0123",
            within=BOOT,
            said=self.said.append,
            by_hand=WIRING["aws"].by_hand,
        )

    async def run(self):
        return [(p.finding.subject, p.finding.state) for p in await self.trial.run()]

    @property
    def texts(self):
        return {p.finding.subject: p.finding for p in self.trial.node.steps}


@pytest.fixture
async def listening():
    """An address where something listens."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.fixture
def stand(listening):
    return Stand(listening)


async def test_a_node_that_boots_passes_every_step_and_is_ended(stand):
    assert await stand.run() == [(step, State.OK) for step in STEPS]
    assert (stand.cloud.living, stand.cloud.calls["launch"], stand.cloud.calls["terminate"]) == ([], 1, 1)
    assert "it lived" in stand.texts["ended"].text
    assert stand.said[0].startswith("launching")
    assert any("first token" in text for text in stand.said)


async def test_no_daemon_takes_the_node_for_its_own(stand):
    await stand.run()
    (machine,) = stand.cloud.machines.values()
    assert machine.pool == "llama"
    for name in ("llama", "try-node"):
        assert not ours(Pool(name=name, replicas=1), Memory(), machine).holds


async def test_what_it_cost_is_told(stand):
    stand.cloud.pending = 1000 / 2
    stand.trial._within = 5000.0
    await stand.run()
    assert "about $1.00" in stand.texts["ended"].text  # 1000 s at $3.60 an hour


async def test_the_next_offering_is_taken_where_one_is_not_to_be_had(listening):
    offerings = [Offering(placement=placement(zone), price=1.0) for zone in "ab"]
    stand = Stand(listening, offerings)
    stand.cloud.faults["launch"] = [InsufficientCapacity("none in a")]
    found = await stand.run()
    assert found[0][1] is State.WARN
    assert found[1:] == [(step, State.OK) for step in STEPS]
    assert not stand.cloud.living


@pytest.mark.parametrize("error", [InsufficientCapacity("none"), Denied("no")])
async def test_a_refused_launch_fails_and_leaves_nothing_to_end(stand, error):
    stand.cloud.faults["launch"] = [error]
    found = await stand.run()
    assert found[-1] == ("accepted", State.FAIL)
    assert stand.cloud.calls["terminate"] == 0
    assert not stand.cloud.machines


async def test_an_unknown_outcome_is_asked_for_until_it_is_known(stand):
    stand.cloud.faults["launch"] = [Uncertain("lost"), Throttled("too many"), Uncertain("lost")]
    assert await stand.run() == [(step, State.OK) for step in STEPS]
    assert len(stand.cloud.machines) == 1


async def test_an_outcome_that_stays_unknown_is_for_people_to_end(stand):
    stand.cloud.faults["launch"] = [Uncertain("lost")] * 1000
    assert await stand.run() == [("accepted", State.FAIL), ("ended", State.FAIL)]
    advice = stand.texts["ended"].advice
    assert "terminate-instances --region us-east-1" in advice
    assert "Name=client-token,Values=try-node/0123-0" in advice


@pytest.mark.parametrize("then", [Denied("expired"), Throttled("too many")])
async def test_who_is_refused_after_a_lost_answer_does_not_know_that_nothing_runs(stand, then):
    stand.cloud.faults["launch"] = [Uncertain("lost"), *[then] * 1000]
    assert await stand.run() == [("accepted", State.FAIL), ("ended", State.FAIL)]
    assert "Name=client-token" in stand.texts["ended"].advice
    assert stand.cloud.living  # which is why somebody must look


async def test_a_machine_that_dies_while_pending_says_why_and_what_it_wrote(stand):
    stand.cloud.dies = "Client.InternalError: Client error on launch"
    found = await stand.run()
    assert found == [
        ("accepted", State.OK),
        ("running", State.FAIL),
        ("console", State.SKIPPED),
        ("ended", State.OK),
    ]
    assert "Client.InternalError" in stand.texts["running"].text
    assert stand.texts["console"].text == "line 1\nline 2"


@pytest.mark.parametrize("fault", [None, CloudError("no console")])
async def test_a_boot_has_its_time_and_no_more(stand, fault):
    stand.cloud.pending = 10_000
    stand.cloud.faults["console"] = [fault]
    found = await stand.run()
    assert [state for step, state in found if step == "running"] == [State.FAIL]
    assert "15m after the launch" in stand.texts["running"].text
    assert not stand.cloud.living
    assert stand.clock.now() - 1000.0 < BOOT + 10.0


async def test_nobody_listens_and_the_advice_says_that_the_network_is_fine():
    stand = Stand("127.0.0.1:1")
    found = await stand.run()
    assert ("port open", State.FAIL) in found
    assert "refused" in stand.texts["port open"].text
    assert "its engine does not run" in stand.texts["port open"].advice
    assert not stand.cloud.living


async def test_an_engine_that_loads_is_waited_for(stand):
    stand.engine.lacks = {EngineStep.HEALTHY: 100}
    assert await stand.run() == [(step, State.OK) for step in STEPS]


async def test_a_healthy_engine_without_the_model_is_not_paid_for_until_the_boot_is_over(stand):
    stand.engine.lacks = {EngineStep.MODEL: 10_000}
    found = await stand.run()
    assert ("model listed", State.FAIL) in found
    assert "served_name" in stand.texts["model listed"].advice
    assert stand.clock.now() - 1000.0 < 120.0


async def test_a_machine_that_ends_while_its_engine_loads_is_not_waited_for(stand):
    stand.engine.lacks = {EngineStep.HEALTHY: 10_000}

    def end(call, number):
        if call == "list" and number == 20:
            stand.cloud.machines = {
                token: replace(
                    one, state=InstanceState.TERMINATED, ending_why="Server.SpotInstanceTermination"
                )
                for token, one in stand.cloud.machines.items()
            }

    stand.cloud.interrupt = end
    found = await stand.run()
    assert ("healthy", State.FAIL) in found
    assert "Server.SpotInstanceTermination" in stand.texts["healthy"].text
    assert stand.clock.now() - 1000.0 < 120.0


async def test_a_list_that_fails_or_lags_ends_nothing_early(stand):
    stand.cloud.faults["list"] = [CloudError("no list")] * 5
    assert await stand.run() == [(step, State.OK) for step in STEPS]


async def test_an_end_is_asked_for_until_it_is_accepted(stand):
    stand.cloud.faults["terminate"] = [CloudError("no"), Throttled("no"), Uncertain("lost")]
    assert (await stand.run())[-1] == ("ended", State.OK)
    assert not stand.cloud.living


async def test_an_end_that_is_refused_for_ever_tells_how_to_end_it_by_hand(stand):
    stand.cloud.faults["terminate"] = [Denied("no")] * 1000
    assert (await stand.run())[-1] == ("ended", State.FAIL)
    assert stand.texts["ended"].advice == "aws ec2 terminate-instances --region us-east-1 --instance-ids i-0"


async def test_a_bug_of_ours_ends_the_node_too(stand):
    stand.cloud.faults["list"] = [RuntimeError("a bug")]
    with pytest.raises(RuntimeError, match="a bug"):
        await stand.run()
    assert not stand.cloud.living


async def test_a_terminal_that_goes_away_keeps_no_node_alive(stand):
    def said(text):
        raise BrokenPipeError

    stand.trial.node.said = said
    assert await stand.run() == [(step, State.OK) for step in STEPS]
    assert not stand.cloud.living


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("call", "number"), [("launch", 1), ("list", 1), ("list", 9), ("terminate", 1), ("console", 1)]
)
async def test_whenever_it_is_interrupted_the_node_is_ended(stand, call, number, times):
    stand.engine.lacks = {EngineStep.HEALTHY: 10_000 if call == "console" else 10}
    running = asyncio.create_task(stand.trial.run())

    def cancel(name, count):
        if (name, count) == (call, number):
            asyncio.get_running_loop().call_soon(running.cancel)
            for _ in range(times - 1):
                asyncio.get_running_loop().call_later(0.0, running.cancel)

    stand.cloud.interrupt = cancel
    await running
    assert not stand.cloud.living
    assert stand.cloud.calls["terminate"] == 1
    assert stand.texts["ended"].state is State.OK
    assert ("interrupted" in stand.texts) == (call != "terminate")


async def test_an_interruption_of_an_unknown_launch_ends_what_it_made(stand):
    stand.cloud.faults["launch"] = [Uncertain("lost"), Uncertain("lost")]
    running = asyncio.create_task(stand.trial.run())
    stand.cloud.interrupt = lambda call, n: running.cancel() if (call, n) == ("launch", 1) else None
    await running
    assert len(stand.cloud.machines) == 1
    assert not stand.cloud.living


async def test_an_interruption_of_a_refused_launch_has_nothing_to_end(stand):
    stand.cloud.faults["launch"] = [InsufficientCapacity("none")]
    running = asyncio.create_task(stand.trial.run())
    stand.cloud.interrupt = lambda call, n: running.cancel() if (call, n) == ("launch", 1) else None
    steps = await running
    assert [p.finding.subject for p in steps] == ["interrupted"]


# -- the spend cap -------------------------------------------------------------------------------------------

SOLD = [
    Offering(placement=placement("a"), price=10.0),
    Offering(placement=placement("b"), price=8.0),
    Offering(placement=placement("c"), price=None),
    Offering(placement=placement("a", Market.SPOT), price=3.0),
]


def machine(state=InstanceState.RUNNING, zone="a"):
    return Instance(
        id="i-1",
        pool="llama",
        token="llama/1/1",
        placement=placement(zone),
        state=state,
        launched_at=0.0,
        price=None,
    )


@pytest.mark.parametrize(
    ("cap", "machines", "prices", "refusal"),
    [
        (None, None, [8.0, 10.0, None], ""),
        (30.0, [], [8.0, 10.0], ""),
        (9.0, [], [8.0], ""),
        (18.0, [machine()], [8.0], ""),
        (17.0, [machine()], [], "leaves 7.00"),
        (17.0, [machine(InstanceState.STOPPED)], [8.0, 10.0], ""),
        (30.0, None, [], "cannot be listed"),
    ],
)
def test_the_spend_cap_holds_for_a_try_too(cap, machines, prices, refusal):
    pool = Pool(name="llama", replicas=1, limits=Limits(spend_per_hour=cap))
    found = allowed(pool, Market.ON_DEMAND, SOLD, machines)
    assert [offering.price for offering in found.offerings] == prices
    assert refusal in found.refusal
    assert bool(found.refusal) == (not prices)


def test_a_market_in_which_nothing_is_sold():
    found = allowed(Pool(name="llama", replicas=1), Market.SPOT, SOLD[:3], [])
    assert "names nothing that is sold as spot" in found.refusal


# -- how far a node is reached -------------------------------------------------------------------------------

NODE = replace(machine(), address="10.0.0.5:8000", launched_at=1000.0)


@pytest.mark.parametrize(
    ("step", "why", "lived", "state", "advice"),
    [
        (None, None, 10.0, State.OK, ""),
        (reach.Step.PORT, reach.Why.SILENT, 10.0, State.FAIL, "authorize-security-group-ingress"),
        (reach.Step.PORT, reach.Why.REFUSED, 10.0, State.WARN, "run it again"),
        (reach.Step.PORT, reach.Why.REFUSED, BOOT, State.FAIL, "its engine does not run"),
        (reach.Step.HEALTHY, reach.Why.ANSWER, BOOT, State.FAIL, "orchestrator node i-1"),
        (reach.Step.MODEL, reach.Why.ANSWER, BOOT, State.FAIL, "served_name"),
    ],
)
def test_which_step_of_a_running_node_failed(step, why, lived, state, advice):
    trouble = reach.Trouble(step=step, why=why, text="why") if step is not None else None
    found = reach.node(NODE, trouble, now=1000.0 + lived, boot_timeout=BOOT)
    assert (found.state, advice in found.advice) == (state, True), found
    assert "10.0.0.5:8000" in found.text


@pytest.fixture
def deaf():
    """An address where nothing is ever answered: nobody takes the connections that wait there."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_silence_is_told_from_a_refusal(deaf):
    found = await reach.reached(Engine(), reach.Step.PORT, deaf, patience=0.2)
    assert (found.step, found.why) == (reach.Step.PORT, reach.Why.SILENT)
    assert f"no answer at {deaf} within 0.2 s" in found.text


async def test_a_refused_connection_is_told_from_silence(listening):
    engine = Engine()
    assert await reach.first_trouble(engine, listening) is None
    refused = await reach.first_trouble(engine, "127.0.0.1:1")
    assert (refused.step, refused.why) == (reach.Step.PORT, reach.Why.REFUSED)
    engine.lacks = {EngineStep.SPEAKS: 1}
    spoke = await reach.first_trouble(engine, listening)
    assert (spoke.step, spoke.why) == (reach.Step.SPEAKS, reach.Why.ANSWER)
