"""A gateway whose targets file is damaged or another's: it keeps the last good set, and says so."""

from __future__ import annotations

import random

import pytest
import structlog
from hand_clock import HandClock

from cloud.balancers import targets_file as files
from cloud.balancers.gateway import GatewayBalancer
from cloud.balancers.targets import TargetSet, encode
from cloud.clock import SystemClock
from cloud.durable import write_atomic
from orchestrator.gateway.adapters import Adapters
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.source import TargetSource
from orchestrator.gateway.targets import TargetTable


@pytest.fixture
async def daemon(tmp_path):
    """The daemon's view of a gateway that reads this directory's file."""
    balancer = GatewayBalancer(
        socket=tmp_path / "gw.sock", targets_file=tmp_path / "targets.json", pool="chat", clock=SystemClock()
    )
    yield balancer
    await balancer.close()


async def written(daemon, gateways, *nodes):
    """The set of these nodes was acknowledged and is on the disk; the gateway that had it has ended."""
    running = await gateways(pool="chat")
    await daemon.apply([node.spec() for node in nodes], 7)
    await daemon.flush()
    await running.stop()


def flipped(path, node):
    """One digit of the node's address is another one, as after a bad sector: it still reads well."""
    host, _, port = node.spec().address.rpartition(":")
    other = f"{host}:{int(port) ^ 1}"
    path.write_bytes(path.read_bytes().replace(node.spec().address.encode(), other.encode()))


DAMAGE = {
    "flipped": flipped,
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path, _: path.write_bytes(b""),
    "zeros": lambda path, _: path.write_bytes(b"\0" * path.stat().st_size),
    "removed": lambda path, _: path.unlink(),
    "link": lambda path, _: (path.rename(path.with_name("x")), path.symlink_to("x")),
    "other pool": lambda path, node: write_atomic(
        path, files.seal(TargetSet(generation=9, pool="other", written_at=1.0, targets=(node.spec(),)))
    ),
    "other schema": lambda path, _: path.write_bytes(path.read_bytes().replace(b"file/1", b"file/9")),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_gateway_that_starts_alone_with_a_damaged_file_serves_by_the_copy(
    upstreams, gateways, ask, eventually, tmp_path, daemon, damage
):
    node = await upstreams("node")
    await written(daemon, gateways, node)
    DAMAGE[damage](tmp_path / "targets.json", node)
    with structlog.testing.capture_logs() as lines:
        running = await gateways(pool="chat")
    state = await running.state()
    assert [row["address"] for row in state["targets"]] == [node.spec().address]
    assert (state["generation"], state["file_generation"]) == (7, 0)
    assert (await ask(running)).status == 200
    refused = [line for line in lines if line["event"] == "targets_file.refused"]
    if damage == "removed":
        assert not refused
    else:
        (line,) = refused
        assert line["error"] == state["file_fault"] != ""
    shown = running.gateway.metrics.exposition().decode()
    assert f"orchestrator_gateway_targets_file_refused {float(damage != 'removed')}" in shown


async def test_a_gateway_that_starts_alone_with_the_file_of_yesterday_serves_by_the_copy(
    upstreams, gateways, tmp_path, daemon
):
    """As after a backup was put back: the file is whole, and names nodes that are gone."""
    old, new = await upstreams("old"), await upstreams("new")
    await written(daemon, gateways, new)
    write_atomic(
        tmp_path / "targets.json",
        files.seal(TargetSet(generation=3, pool="chat", written_at=1.0, targets=(old.spec(),))),
    )
    state = await (await gateways(pool="chat")).state()
    assert [row["address"] for row in state["targets"]] == [new.spec().address]
    assert (state["generation"], state["file_generation"]) == (7, 0)
    assert state["file_fault"] == "generation 3 is lower than the accepted 7"


async def test_a_copy_that_was_not_written_yet_is_no_fault(upstreams, gateways, tmp_path, daemon):
    """The daemon was killed between its two writes."""
    node = await upstreams("node")
    await written(daemon, gateways, node)
    write_atomic(
        tmp_path / "targets.json",
        files.seal(TargetSet(generation=8, pool="chat", written_at=1.0, targets=(node.spec(),))),
    )
    with structlog.testing.capture_logs() as lines:
        state = await (await gateways(pool="chat")).state()
    assert (state["generation"], state["file_generation"], state["file_fault"]) == (8, 8, "")
    assert not [line for line in lines if line["event"] == "targets_file.refused"]


async def test_without_a_whole_copy_a_damaged_file_is_still_refused(upstreams, gateways, tmp_path, daemon):
    node = await upstreams("node")
    await written(daemon, gateways, node)
    flipped(tmp_path / "targets.json", node)
    flipped(tmp_path / "targets.json.copy", node)
    assert (await (await gateways(pool="chat")).state())["targets"] == []


async def test_a_running_gateway_keeps_its_set_and_the_daemon_writes_the_file_again(
    upstreams, gateways, ask, eventually, tmp_path, daemon
):
    node = await upstreams("node")
    running = await gateways(pool="chat")
    await daemon.apply([node.spec()], 7)
    await daemon.flush()
    path = tmp_path / "targets.json"

    async def holds(generation):
        return (await running.state())["file_generation"] == generation

    for damage in ("flipped", "other schema", "removed"):
        await eventually(lambda: holds(7))
        await daemon.flush()  # else its writer may put the file right before the gateway looks
        DAMAGE[damage](path, node)
        await eventually(lambda: holds(0))
        assert (await ask(running)).headers["X-Orchestrator-Node"] == "node"

        async def seen_and_written():
            await daemon.observe()
            return await holds(7)

        await eventually(seen_and_written)
    assert (await running.state())["file_fault"] == ""
    assert files.read(path).targets == (node.spec(),)


async def test_a_file_that_changes_all_the_time_is_logged_at_a_bounded_rate(gateways, eventually, tmp_path):
    running = await gateways()
    path = tmp_path / "targets.json"

    def refused():
        line = 'orchestrator_gateway_target_sets_total{result="invalid",via="file"} '
        shown = running.gateway.metrics.exposition().decode()
        return float(shown.partition(line)[2].partition("\n")[0] or 0)

    with structlog.testing.capture_logs() as lines:
        for number in range(5):
            path.write_bytes(b'{"schema": "%d"}' % number if number % 2 else b"[")
            await eventually(lambda wanted=number + 1: refused() == wanted)
    assert [line["event"] for line in lines] == ["targets_file.refused"]


async def test_a_file_of_the_version_before_still_counts(upstreams, gateways, ask, eventually, tmp_path):
    """The gateway is upgraded first: it starts from, and goes on with, files without a checksum."""
    one, two = await upstreams("one"), await upstreams("two")
    path = tmp_path / "targets.json"
    write_atomic(path, encode(TargetSet(generation=5, pool="chat", written_at=1.0, targets=(one.spec(),))))
    running = await gateways(pool="chat")
    assert (await ask(running)).headers["X-Orchestrator-Node"] == "one"
    write_atomic(path, encode(TargetSet(generation=6, pool="chat", written_at=1.0, targets=(two.spec(),))))

    async def taken():
        return (await running.state())["generation"] == 6

    await eventually(taken)
    assert (await ask(running)).headers["X-Orchestrator-Node"] == "two"


async def test_a_set_is_pushed_as_every_version_reads_it_until_the_gateway_says_more(
    upstreams, gateways, daemon
):
    """The daemon is upgraded first: an older gateway would refuse a checksum, and a key it does not know."""
    node = await upstreams("node")
    await gateways(pool="chat")
    pushed = []
    call = daemon._call

    async def spy(method, path, data=None):
        pushed.append(data)
        return await call(method, path, data)

    daemon._call = spy
    await daemon.apply([node.spec(build="8f3a")], 7)
    assert pushed[-1].startswith(b'{"schema":"targets/1","generation":7,')
    await daemon.observe()
    await daemon.apply([node.spec(build="8f3a")], 8)
    assert pushed[-1].startswith(b'{"schema":"targets/3","generation":8,')
    assert (await daemon.observe()).targets[0].build == "8f3a"


def test_a_file_that_follows_the_push_is_no_fault_unless_it_stays_behind(tmp_path):
    """Two pushes in quick succession: the first set reaches the file after the second one was accepted."""
    clock, file = HandClock(), tmp_path / "targets.json"
    gate = PoolGate(targets_file=file)
    table = TargetTable(now=clock.now, rng=random.Random(7), gate=gate)
    metrics = GatewayMetrics(clock.now).lane("", table, lambda: 0, Adapters((), table, clock.now))
    source = TargetSource(table=table, metrics=metrics, file=file, clock=clock, on_set=lambda: None)

    def document(generation):
        return TargetSet(generation=generation, pool="chat", written_at=1.0, targets=())

    with structlog.testing.capture_logs() as lines:
        source.push(document(8))
        write_atomic(file, files.seal(document(7)))
        source.look()
        clock.at += 0.2
        write_atomic(file, files.seal(document(8)))
        source.look()
    assert (source.fault, metrics.file_generation) == ("", 8)
    assert not [line for line in lines if line["event"] == "targets_file.refused"]
    source.push(document(9))
    write_atomic(file, files.seal(document(7)))
    for _ in range(30):
        clock.at += 0.2
        source.look()
    assert source.fault == "generation 7 is lower than the accepted 9"
