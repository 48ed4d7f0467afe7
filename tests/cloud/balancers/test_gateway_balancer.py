"""The gateway adapter against a scripted gateway: order of push and file, what is pushed, what is raised."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest
from aiohttp import web

from cloud.balancers.gateway import GatewayBalancer, inline
from cloud.balancers.routes import read_routes
from cloud.balancers.targets import TargetSet, encode, parse
from cloud.balancers.targets_file import read
from cloud.clock import SystemClock
from cloud.durable import write_atomic
from cloud.errors import Denied, Uncertain
from orchestrator.loop.observer import Pace
from policies.held import AdapterCount, Held
from policies.model import TargetPhase, TargetSpec, TargetState
from policies.service import ShownCertificate
from policies.value import replace

A = TargetSpec(id="a", address="127.0.0.1:8001")
B = TargetSpec(id="b", address="127.0.0.1:8002")


class Scripted:
    """Answers the control calls as it is told and remembers the pushes."""

    def __init__(self, path):
        self.path = path
        self.incarnation = "one"
        self.pushed = []
        self.status = 200
        self.answer = None
        self.state = {}
        self.state_status = 200
        self.asked_of = []
        self.hold = None
        self.connections = set()

    async def start(self):
        app = web.Application()
        app.router.add_put("/v1/targets", self._put)
        app.router.add_get("/v1/state", self._get)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.UnixSite(self.runner, str(self.path)).start()

    async def stop(self):
        await self.runner.cleanup()
        self.path.unlink(missing_ok=True)

    async def _put(self, request):
        self.connections.add(request.transport)
        self.pushed.append(parse(await request.read()))
        if self.hold is not None:
            await self.hold.wait()
        if self.answer is not None:
            return web.Response(body=self.answer)
        code = "wrong_pool" if self.state_status == 404 else "stale_generation"
        body = {"incarnation": self.incarnation, "error": {"code": code, "message": "because"}}
        return web.json_response(body, status=self.status)

    async def _get(self, request):
        self.asked_of.append(request.query.get("pool"))
        if self.state_status != 200:
            error = {"code": "no_pool", "message": "this gateway serves embed, not 'chat'"}
            return web.json_response({"error": error}, status=self.state_status)
        generation = self.pushed[-1].generation if self.pushed else 0
        body = {
            "incarnation": self.incarnation,
            "generation": generation,
            "file_generation": generation,
            "targets": [],
        }
        return web.json_response(body | self.state)


@pytest.fixture
async def gateway(tmp_path):
    gateway = Scripted(tmp_path / "gw.sock")
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
async def make(tmp_path):
    made = []

    def build(**settings):
        defaults = {
            "socket": tmp_path / "gw.sock",
            "targets_file": tmp_path / "targets.json",
            "pool": "chat",
            "clock": SystemClock(),
            "timeout": 20.0,
        }
        made.append(GatewayBalancer(**(defaults | settings)))
        return made[-1]

    yield build
    for one in made:
        await one.close()


@pytest.mark.parametrize("asks", [GatewayBalancer, read_routes])
def test_a_question_to_the_gateway_ends_before_the_next_one_is_due(asks):
    """What hangs is found hanging by one look, not by every other one."""
    assert 0 < inspect.signature(asks).parameters["timeout"].default <= Pace().targets


async def test_a_set_is_pushed_then_written(gateway, make, tmp_path):
    balancer = make()
    await balancer.apply([B, A], 4)
    await balancer.flush()
    (pushed,) = gateway.pushed
    assert (pushed.generation, pushed.pool, pushed.targets) == (4, "chat", (A, B))
    assert read(tmp_path / "targets.json") == pushed


async def test_the_acknowledgement_does_not_wait_for_the_file(gateway, make, tmp_path):
    gate = asyncio.Event()

    async def slow(work):
        await gate.wait()
        work()

    balancer = make(run_blocking=slow)
    await balancer.apply([A], 1)
    await balancer.apply([A, B], 2)
    await balancer.apply([B], 3)
    assert not (tmp_path / "targets.json").exists()
    gate.set()
    await balancer.flush()
    assert read(tmp_path / "targets.json").generation == 3


async def counted(work):
    """Run it here, and count."""
    counted.times += 1
    work()


async def test_the_file_is_written_again_once_the_gateway_missed_its_set_there_twice(gateway, make, tmp_path):
    counted.times = 0
    balancer = make(run_blocking=counted)

    async def look(**state):
        gateway.state = state
        await balancer.observe()
        await balancer.flush()
        return counted.times

    await balancer.apply([A], 4)
    await balancer.flush()
    assert [await look(file_generation=4), await look(file_generation=4), await look(file_generation=4)] == [
        1
    ] * 3
    (tmp_path / "targets.json").unlink()
    assert [await look(file_generation=0), await look(file_generation=4), await look(file_generation=0)] == [
        1
    ] * 3
    assert await look(file_generation=0) == 2  # the second time in a row
    assert read(tmp_path / "targets.json").generation == 4
    assert [await look(file_generation=0, generation=3), await look(file_generation=0, generation=3)] == [
        2,
        2,
    ]


async def test_closing_waits_for_the_file(gateway, make, tmp_path):
    gate = asyncio.Event()

    async def slow(work):
        await gate.wait()
        work()

    balancer = make(run_blocking=slow)
    await balancer.apply([A], 1)
    closing = asyncio.ensure_future(balancer.close())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not closing.done()
    gate.set()
    await closing
    assert read(tmp_path / "targets.json").generation == 1


async def test_a_target_that_only_finishes_is_no_part_of_the_set_that_is_drained(gateway, make):
    """The gateway lists what has left its set and still answers with no phase."""
    left = {"id": "z", "address": "127.0.0.1:8009", "state": "draining", "in_flight": 1, "reason": ""}
    left |= {"phase": None, "weight": 0, "drain_deadline": None}
    held = left | {"id": "a", "address": "127.0.0.1:8001", "phase": "active", "weight": 100}
    gateway.state = {"targets": [held, left]}
    await make().detach([replace(A, phase=TargetPhase.DRAINING, drain_deadline=9.0)], 5)
    (pushed,) = gateway.pushed
    assert pushed.targets == (replace(A, phase=TargetPhase.DRAINING, drain_deadline=9.0),)


BUILT = TargetSpec(id="a", address="127.0.0.1:8001", build="8f3a")
READS_BOTH = {"reads": ["targets/1", "targets/2", "targets/9"]}
SQL = Held(name="sql", served_as="sql@1f", revision="1f")


async def test_a_gateway_is_written_what_it_reads(gateway, make, tmp_path):
    """The file too: a gateway that starts from it may be of the same version."""
    gateway.state = READS_BOTH
    balancer = make()
    await balancer.observe()
    await balancer.apply([BUILT], 4)
    await balancer.flush()
    assert (gateway.pushed[0].schema, gateway.pushed[0].targets) == ("targets/2", (BUILT,))
    assert read(tmp_path / "targets.json") == gateway.pushed[0]


@pytest.mark.parametrize("state", [{}, {"reads": ["targets/1"]}, {"reads": []}], ids=str)
async def test_a_gateway_of_the_version_before_gets_no_builds(gateway, make, tmp_path, state):
    gateway.state = state
    balancer = make()
    await balancer.observe()
    await balancer.apply([BUILT], 4)
    await balancer.apply([BUILT], 4)
    await balancer.flush()
    (pushed,) = gateway.pushed
    assert (pushed.schema, pushed.targets) == ("targets/1", (A,))
    assert read(tmp_path / "targets.json") == pushed


async def test_a_gateway_that_was_upgraded_gets_the_builds_and_one_that_went_back_gets_none(gateway, make):
    balancer = make()
    for state in ({}, READS_BOTH, {}):
        gateway.state = state
        await balancer.observe()
        await balancer.apply([BUILT], 4)
    assert [document.targets[0].build for document in gateway.pushed] == ["", "8f3a", ""]


READS_ALL = {"reads": ["targets/1", "targets/2", "targets/3"]}


async def test_adapters_are_written_to_a_gateway_that_can_route_them_and_to_no_older_one(gateway, make):
    holds = replace(BUILT, adapters=(SQL,))
    balancer = make()
    for state in (READS_BOTH, READS_ALL, READS_BOTH):
        gateway.state = state
        await balancer.observe()
        await balancer.apply([holds], 4)
    assert [document.targets[0].adapters for document in gateway.pushed] == [(), (SQL,), ()]


async def test_another_set_of_adapters_is_another_set(gateway, make):
    gateway.state = READS_ALL
    balancer = make()
    await balancer.observe()
    await balancer.apply([BUILT], 4)
    await balancer.apply([replace(BUILT, adapters=(SQL,))], 5)
    assert [len(document.targets[0].adapters) for document in gateway.pushed] == [0, 1]


async def test_what_a_gateway_holds_and_counts_of_adapters_is_read(gateway, make):
    row = {"name": "sql", "served_as": "sql@1f", "number": None, "revision": "1f"}
    target = {"id": "a", "address": "h:1", "state": "healthy", "in_flight": 3, "reason": ""}
    counts = {
        "sql": {"asked": 7, "tokens": 90, "cold": False},
        "law": {"asked": 1, "tokens": 0, "cold": True},
    }
    leaving = [row | {"revision": "0e", "in_flight": 1}]
    target |= {"adapters": [row | {"in_flight": 2}], "adapters_leaving": leaving}
    gateway.state = {"targets": [target], "adapters": counts}
    view = await make().observe()
    assert view.targets[0].adapters_leaving == (replace(SQL, revision="0e"),)
    assert (view.targets[0].adapters, view.targets[0].adapter_in_flight) == ((SQL,), (2,))
    assert view.adapters == {
        "sql": AdapterCount(asked=7, tokens=90),
        "law": AdapterCount(asked=1, tokens=0, cold=True),
    }


async def test_a_gateway_that_drains_by_hand_keeps_the_adapters_of_its_targets(gateway, make):
    row = {"name": "sql", "served_as": "sql@1f", "number": None, "revision": "1f"}
    target = {"id": "a", "address": "127.0.0.1:8001", "state": "healthy", "in_flight": 0, "reason": ""}
    target |= {"phase": "active", "weight": 100, "drain_deadline": None, "build": "8f3a", "adapters": [row]}
    gateway.state = READS_ALL | {"targets": [target]}
    balancer = make()
    await balancer.observe()
    await balancer.detach([replace(BUILT, phase=TargetPhase.DRAINING, drain_deadline=9.0)], 5)
    (pushed,) = gateway.pushed
    assert pushed.targets[0].phase is TargetPhase.DRAINING
    assert pushed.targets[0].adapters == (SQL,)


@pytest.mark.parametrize(("row", "build"), [({}, None), ({"build": ""}, ""), ({"build": "8f3a"}, "8f3a")])
async def test_the_builds_that_a_gateway_holds_are_read(gateway, make, row, build):
    target = {"id": "a", "address": "h:1", "state": "healthy", "in_flight": 0, "reason": ""}
    gateway.state = {"targets": [target | row]}
    view = await make().observe()
    assert view.targets[0].build == build


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, (None, "")),
        ({"continuation": None}, (None, "")),
        ({"continuation": {"way": "derender", "why": "", "identity": "m 0.32"}}, ("derender", "")),
        ({"continuation": {"way": "none", "why": "no ids", "identity": ""}}, ("none", "no ids")),
    ],
    ids=str,
)
async def test_who_can_finish_what_a_target_began_is_read(gateway, make, row, said):
    target = {"id": "a", "address": "h:1", "state": "healthy", "in_flight": 0, "reason": ""}
    gateway.state = {"targets": [target | row]}
    (found,) = (await make().observe()).targets
    assert (found.continues, found.continues_why) == said


async def test_a_target_that_is_taken_out_keeps_its_build(gateway, make):
    target = {
        "id": "a",
        "address": "127.0.0.1:8001",
        "phase": "active",
        "weight": 100,
        "drain_deadline": None,
    }
    gateway.state = READS_BOTH | {
        "targets": [target | {"state": "healthy", "in_flight": 0, "reason": "", "build": "8f3a"}]
    }
    balancer = make()
    await balancer.observe()
    await balancer.detach([replace(BUILT, build="", phase=TargetPhase.DRAINING, drain_deadline=9.0)], 5)
    (pushed,) = gateway.pushed
    assert pushed.targets == (replace(BUILT, phase=TargetPhase.DRAINING, drain_deadline=9.0),)


async def test_an_equal_set_costs_nothing(gateway, make):
    balancer = make()
    await balancer.apply([A, B], 1)
    await balancer.apply([B, A], 1)
    await balancer.apply([A, B], 2)
    assert len(gateway.pushed) == 1
    await balancer.apply([A], 2)
    assert len(gateway.pushed) == 2


async def test_one_connection_serves_all_calls(gateway, make):
    balancer = make()
    for generation in range(1, 6):
        await balancer.apply([A] if generation % 2 else [B], generation)
    assert len(gateway.pushed) == 5
    assert len(gateway.connections) == 1


async def test_a_restarted_gateway_gets_an_equal_set_again(gateway, make):
    balancer = make()
    await balancer.apply([A], 1)
    assert (await balancer.observe()).incarnation == "one"
    await balancer.apply([A], 1)
    gateway.incarnation = "two"
    assert (await balancer.observe()).incarnation == "two"
    await balancer.apply([A], 1)
    assert len(gateway.pushed) == 2


async def test_a_set_that_another_daemon_replaced_is_pushed_again(gateway, make):
    balancer = make()
    await balancer.apply([A], 1)
    gateway.state = {"generation": 2}
    await balancer.observe()
    await balancer.apply([A], 3)
    assert len(gateway.pushed) == 2


async def test_a_lost_connection_is_opened_again(gateway, make):
    balancer = make()
    await balancer.apply([A], 1)
    await gateway.stop()
    await gateway.start()
    await balancer.apply([B], 2)
    assert gateway.pushed[-1].targets == (B,)


async def test_the_view_is_read(gateway, make):
    row = {"id": "a", "address": "x:1", "state": "draining", "in_flight": 3, "reason": "why"}
    gateway.state = {"generation": 9, "targets": [row | {"weight": 100, "something": "new"}]}
    view = await make().observe()
    assert (view.generation, view.incarnation) == (9, "one")
    (target,) = view.targets
    assert (target.id, target.state, target.in_flight, target.reason) == ("a", TargetState.DRAINING, 3, "why")


@pytest.mark.parametrize("state", [{"targets": [{"id": "a"}]}, {"targets": None}, {"generation": "x"}])
async def test_a_state_that_cannot_be_read_is_uncertain(gateway, make, state):
    gateway.state = state
    with pytest.raises(Uncertain, match="cannot read"):
        await make().observe()


async def test_a_refused_generation_is_denied_and_not_written(gateway, make, tmp_path):
    gateway.status = 409
    balancer = make()
    with pytest.raises(Denied, match="generation 3: because"):
        await balancer.apply([A], 3)
    await balancer.flush()
    assert not (tmp_path / "targets.json").exists()


async def test_an_older_generation_is_denied_without_a_call(gateway, make):
    balancer = make()
    await balancer.apply([A], 5)
    with pytest.raises(Denied, match="older than 5"):
        await balancer.apply([A], 4)
    with pytest.raises(Denied, match="older than 5"):
        await balancer.apply([B], 4)
    assert len(gateway.pushed) == 1


async def test_a_set_that_cannot_be_written_down_is_denied(gateway, make):
    with pytest.raises(Denied, match="expected host:port"):
        await make().apply([TargetSpec(id="a", address="")], 1)
    with pytest.raises(Denied, match="listed twice"):
        await make().apply([A, A], 1)
    assert not gateway.pushed


async def test_without_a_gateway_the_file_is_written_and_the_outcome_uncertain(make, tmp_path):
    balancer = make()
    with pytest.raises(Uncertain, match="cannot be reached"):
        await balancer.apply([A], 2)
    assert read(tmp_path / "targets.json").targets == (A,)
    with pytest.raises(Uncertain):
        await balancer.apply([A], 2)
    with pytest.raises(Uncertain, match=r"^the gateway at \S+ cannot be reached: no such file or directory$"):
        await balancer.observe()


async def test_a_gateway_that_comes_back_gets_the_set(make, tmp_path):
    balancer = make()
    with pytest.raises(Uncertain):
        await balancer.apply([A], 2)
    gateway = Scripted(tmp_path / "gw.sock")
    await gateway.start()
    try:
        await balancer.apply([A], 2)
        assert len(gateway.pushed) == 1
    finally:
        await gateway.stop()


async def test_a_hung_gateway_is_uncertain(gateway, make, tmp_path):
    gateway.hold = asyncio.Event()
    balancer = make(timeout=0.05)
    with pytest.raises(Uncertain, match=r"did not answer within 0\.05 s"):
        await balancer.apply([A], 1)
    assert (tmp_path / "targets.json").exists()
    gateway.hold.set()


@pytest.mark.parametrize(("answer", "says"), [(b"<html>", "no JSON"), (b"[]", "a list, not an object")])
async def test_an_answer_that_is_no_gateways_is_uncertain(gateway, make, answer, says):
    gateway.answer = answer
    with pytest.raises(Uncertain, match=says):
        await make().apply([A], 1)


async def test_a_newer_file_of_another_daemon_is_never_overwritten(make, tmp_path):
    newer = encode(TargetSet(generation=9, pool="chat", written_at=1.0, targets=(B,)))
    write_atomic(tmp_path / "targets.json", newer)
    with pytest.raises(Denied, match="another daemon leads"):
        await make().apply([A], 8)
    assert (tmp_path / "targets.json").read_bytes() == newer


async def test_a_file_that_cannot_be_written_is_told_and_tried_again(gateway, make, tmp_path):
    told = []
    directory = tmp_path / "later"
    balancer = make(targets_file=directory / "targets.json", on_file_error=told.append)
    await balancer.apply([A], 1)
    await balancer.flush()
    assert len(told) == 1
    assert "generation 1" in told[0]
    directory.mkdir()
    await balancer.apply([A], 1)
    await balancer.flush()
    assert read(directory / "targets.json").generation == 1
    assert len(gateway.pushed) == 1


async def test_with_neither_gateway_nor_file_both_are_named(make, tmp_path):
    with pytest.raises(Uncertain, match=r"cannot be reached.*cannot be written either"):
        await make(targets_file=tmp_path / "no" / "targets.json").apply([A], 1)


async def test_inline_work_needs_no_thread(gateway, make, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a thread was started")

    monkeypatch.setattr(threading.Thread, "start", forbidden)
    balancer = make(run_blocking=inline)
    await balancer.apply(
        [TargetSpec(id="a", address="h:1", phase=TargetPhase.DRAINING, drain_deadline=5.0)], 1
    )
    await balancer.flush()
    assert read(tmp_path / "targets.json").targets[0].drain_deadline == 5.0


async def test_how_the_gateway_serves_is_read(gateway, make):
    balancer = make()
    gateway.state = {
        "only_pool": "chat",
        "refuses": "hung up on",
        "active": 9,
        "queued": 2,
        "recent": {"seconds": 10, "answered": 40, "failed": 3},
        "tls": {"expires": 90.0, "names": ["llm.example"], "fault": "half of it"},
    }
    view = await balancer.observe()
    assert (view.refuses, view.answered, view.failed, view.held) == ("hung up on", 40, 3, 7)
    assert view.certificate == ShownCertificate(expires=90.0, fault="half of it")
    assert balancer.capabilities.in_path
    gateway.state = {}  # an older one does not say
    view = await balancer.observe()
    assert (view.refuses, view.answered, view.failed, view.held) == ("", 0, 0, 0)
    assert view.certificate is None


async def test_a_gateway_of_another_pool_is_not_ours(gateway, make):
    gateway.state = {"only_pool": "other"}
    with pytest.raises(Denied, match="serves pool 'other' only, not 'chat'"):
        await make().observe()


async def test_each_pool_asks_for_its_own_state(gateway, make):
    await make().observe()
    assert gateway.asked_of == ["chat"]


async def test_a_gateway_that_does_not_serve_the_pool_says_whom_it_serves(gateway, make):
    gateway.state_status, gateway.status = 404, 409
    balancer = make()
    with pytest.raises(Denied, match="404 this gateway serves embed, not 'chat'"):
        await balancer.observe()
    with pytest.raises(Denied, match="because"):
        await balancer.apply([A], 1)


async def test_a_pool_that_is_removed_may_be_gone_from_the_gateway_already(gateway, make):
    """A gateway that was started with the new file holds nothing of it: what is left has to end still."""
    gateway.state_status, gateway.status = 404, 409
    balancer = make()
    balancer.leave()
    assert (await balancer.observe()).targets == ()
    await balancer.apply([A], 5)
    await balancer.detach([A], 6)
    await balancer.apply([], 7)
    assert (await balancer.observe()).generation == 7


async def test_the_file_is_written_in_a_thread_of_the_balancers_own(gateway, make, tmp_path, monkeypatch):
    """Threads that all pools share may be held by the hung disk of another."""
    wrote = []
    monkeypatch.setattr(
        "cloud.balancers.gateway.files.write", lambda *_: wrote.append(threading.current_thread().name)
    )
    one, two = make(), make(pool="embed", targets_file=tmp_path / "embed.json")
    for balancer in (one, two):
        await balancer.apply([A], 1)
        await balancer.flush()
    assert wrote == ["targets-chat-1", "targets-embed-1"]
