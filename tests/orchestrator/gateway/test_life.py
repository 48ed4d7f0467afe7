"""A gateway's own life: where its targets come from, what stops it, what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat

import aiohttp
import pytest

from cloud.clock import SystemClock
from cloud.durable import write_atomic
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.config import GatewayError, one_pool
from orchestrator.gateway.handover import Inheritance


async def test_the_file_is_read_at_start_and_again_when_it_changes(
    upstreams, gateways, ask, eventually, tmp_path
):
    one, two = await upstreams("one"), await upstreams("two")
    writer = await gateways()
    file = tmp_path / "other.json"
    write_atomic(file, writer.document([one.spec()], generation=5))
    running = await gateways(targets_file=file, socket=tmp_path / "other.sock")
    assert (await running.state())["generation"] == 5
    assert (await ask(running)).headers["X-Orchestrator-Node"] == "one"
    write_atomic(file, writer.document([two.spec()], generation=6))

    async def changed():
        state = await running.state()
        return state["generation"] == 6 and state["file_generation"] == 6

    await eventually(changed)
    assert (await ask(running)).headers["X-Orchestrator-Node"] == "two"


@pytest.mark.parametrize("bad", ["not json", '{"schema": "targets/2"}', "stale", "gone"])
async def test_a_bad_or_old_file_never_takes_targets_away(upstreams, gateways, ask, eventually, bad):
    node = await upstreams("node")
    running = await gateways()
    file = running.config.pools[0].targets_file
    write_atomic(file, running.document([node.spec()], generation=7))

    async def generation(wanted):
        return (await running.state())["generation"] == wanted

    await eventually(lambda: generation(7))
    if bad == "gone":
        file.unlink()
    else:
        write_atomic(file, running.document([], generation=6) if bad == "stale" else bad.encode())
        kind = "stale" if bad == "stale" else "invalid"
        line = f'orchestrator_gateway_target_sets_total{{result="{kind}",via="file"}} 1.0'
        await eventually(lambda: line in running.gateway.metrics.exposition().decode())
    assert (await ask(running)).status == 200
    write_atomic(file, running.document([node.spec()], generation=8))
    await eventually(lambda: generation(8))


async def test_a_lower_generation_is_refused_on_the_socket(upstreams, gateways, ask):
    node = await upstreams("node")
    running = await gateways(node)
    await running.push(node)
    status, body = await running.control("PUT", "/v1/targets", running.document([], generation=1))
    assert (status, body["error"]["code"]) == (409, "stale_generation")
    assert "generation 1 is lower than the accepted 2" in body["error"]["message"]
    assert (await ask(running)).status == 200


async def test_bad_documents_and_other_pools_are_refused_on_the_socket(gateways):
    running = await gateways(pool="chat")
    status, body = await running.control("PUT", "/v1/targets", b"{}")
    assert (status, body["error"]["code"]) == (400, "bad_targets")
    assert "missing generation" in body["error"]["message"]
    status, body = await running.control("PUT", "/v1/targets", running.document([]))
    assert (status, body["error"]["code"]) == (409, "wrong_pool")


async def test_the_control_socket_is_private_and_single(gateways, tmp_path):
    running = await gateways()
    assert stat.S_IMODE(running.config.socket.stat().st_mode) == 0o600
    with pytest.raises(GatewayError, match="another gateway serves it"):
        await gateways()
    await running.stop()
    assert not running.config.socket.exists()


async def test_a_socket_left_behind_is_taken_over_but_no_other_file(gateways, tmp_path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "gw.sock"))
    left.close()
    assert (await (await gateways()).state())["generation"] == 0
    (tmp_path / "file").write_text("precious")
    with pytest.raises(GatewayError, match="is not a socket"):
        await gateways(socket=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(GatewayError, match="is its directory there"):
        await gateways(socket=tmp_path / "no" / "gw.sock")


async def test_a_port_in_use_is_one_clear_error(gateways, tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with taken, pytest.raises(GatewayError, match=f"127.0.0.1:{port}: .*choose another port"):
        await gateways(port=port)
    with pytest.raises(GatewayError, match=r"give an address of this host"):
        await gateways(host="not a host")
    assert not (tmp_path / "gw.sock").exists()


async def test_a_dead_daemon_stops_nothing_and_dead_targets_leave_without_it(
    upstreams, gateways, ask, eventually
):
    nodes = [await upstreams(f"n{number}") for number in range(3)]
    running = await gateways(*nodes)
    await nodes[0].stop()

    async def left():
        rows = await running.targets()
        return rows["n0"]["state"] == "unhealthy"

    await eventually(left)
    for _ in range(12):
        assert (await ask(running)).status == 200
    assert (await running.state())["totals"]["retries"] == 0


class HeldLinger(SystemClock):
    """A clock on which the time of lingering passes when the test says so."""

    LINGER = 12345.0

    def __init__(self) -> None:
        super().__init__()
        self.over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if seconds == self.LINGER:
            await self.over.wait()
        else:
            await super().sleep(seconds)


async def test_stopping_finishes_streams_and_tells_clients_to_reconnect(
    upstreams, gateways, ask, behave, client, eventually
):
    node = await upstreams("node", behave.after_tokens(2, behave.then_finish_and_reset))
    other = await upstreams("other")
    clock = HeldLinger()
    running = await gateways(node, clock=clock)
    first = asyncio.Event()
    streaming = asyncio.create_task(ask(running, stream=True, on_first=first))
    await first.wait()
    await running.push(node.spec(weight=0), other)
    running.stopped = True
    stopping = asyncio.create_task(running.gateway.stop(linger=clock.LINGER, drain_timeout=20.0))
    await eventually(lambda: not running.config.socket.exists())
    reply = await ask(running)
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    async with client.get(running.url + "/readyz") as answer:
        assert answer.status == 503
    clock.over.set()

    async def closed():
        try:
            await ask(running)
        except aiohttp.ClientConnectionError:
            return True
        return False

    await eventually(closed)
    node.go_on.set()
    assert (await streaming).events[-1] == "[DONE]"
    assert await stopping is True


async def test_the_drain_timeout_breaks_off_what_is_left_and_says_so(
    upstreams, gateways, ask, behave, eventually
):
    node = await upstreams("node", behave.after_tokens(2, behave.silent))
    running = await gateways(node)
    first = asyncio.Event()
    streaming = asyncio.create_task(ask(running, stream=True, on_first=first))
    await first.wait()
    node.behaviour = behave.silent
    plain = asyncio.create_task(ask(running))
    await eventually(lambda: node.in_flight == 2)
    running.stopped = True
    assert await running.gateway.stop(linger=0.0, drain_timeout=0.01) is False
    cut = await streaming
    assert cut.said == "t0 t1 "
    assert cut.events[-1]["error"]["reason"] == "gateway_stopping"
    refused = await plain
    assert (refused.status, refused.error["code"]) == (503, "gateway_stopping")


class CallersAtTheEnd(SystemClock):
    """A clock on which clients connect and ask at the end of lingering, some turns of the loop before it."""

    LINGER = 12345.0

    def __init__(self, port: int, turns: int) -> None:
        super().__init__()
        self.turns = turns
        self.callers = [socket.socket() for _ in range(5)]
        self._port = port

    async def sleep(self, seconds: float) -> None:
        if seconds != self.LINGER:
            return await super().sleep(seconds)
        for caller in self.callers:
            caller.connect(("127.0.0.1", self._port))
            caller.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            caller.setblocking(False)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return None


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_is_answered_or_left_to_the_next_whenever_accepting_ends(tmp_path, turns):
    with socket.create_server(("127.0.0.1", 0)) as kept:
        kept.setblocking(False)
        port = kept.getsockname()[1]
        config = one_pool(targets_file=tmp_path / "t.json", socket=tmp_path / "gw.sock", port=port)
        clock = CallersAtTheEnd(port, turns)
        gateway = Gateway(config, clock, given=Inheritance(public=kept.dup()))
        await gateway.start()
        await gateway.stop(linger=clock.LINGER)
        left = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                kept.accept()[0].close()
                left += 1
        answered = [caller for caller in clock.callers if heard(caller).startswith(b"HTTP/1.1 200 OK")]
        assert len(answered) == len(clock.callers) - left
        for caller in clock.callers:
            caller.close()


def heard(caller: socket.socket) -> bytes:
    """What has come on a connection; nothing on one that was reset."""
    try:
        return caller.recv(1000)
    except (BlockingIOError, ConnectionError):
        return b""


async def test_two_gateways_live_in_one_process(gateways, tmp_path):
    one = await gateways()
    two = await gateways(socket=tmp_path / "two.sock")
    assert (await one.state())["incarnation"] != (await two.state())["incarnation"]


async def test_starting_fails_clean(tmp_path):
    config = one_pool(targets_file=tmp_path / "t.json", socket=tmp_path / "no" / "s.sock", port=0)
    gateway = Gateway(config, SystemClock())
    with pytest.raises(GatewayError):
        await gateway.start()
