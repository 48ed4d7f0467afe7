"""Machines of a local cloud: boot, engine, stop, end, and what is left of them."""

import os
import signal
import sys
from dataclasses import replace

import pytest

from cloud.errors import CloudError, InsufficientCapacity, Misconfigured, NotFound
from cloud.local.engine_process import bound_log
from cloud.local.processes import belonging
from policies.model import InstanceState, Market

pytestmark = pytest.mark.slow

# Ready when it has said so; SIGTERM does not end it.
STUBBORN = (
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
    "while True: time.sleep(60)",
)
# Leaves a helper in a session of its own.
WITH_HELPER = (
    sys.executable,
    "-S",
    "-c",
    "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    "print('up', flush=True); time.sleep(600)",
)


def output(bench, node):
    path = bench.server.machines.log_path(node)
    return path.read_text() if path.exists() else ""


async def test_a_machine_boots_after_its_delay(run_bench):
    async with run_bench(boot_delay=60.0, speed=2.0) as bench:
        node = (await bench.launch()).id
        await bench.clock.advance(29.9)
        assert (await bench.get(node)).state is InstanceState.PENDING
        assert (await bench.get(node)).address == ""
        await bench.clock.advance(0.2)
        running = await bench.get(node)
        assert running.state is InstanceState.RUNNING
        assert running.address.startswith("127.")
        assert running.address.endswith(f":{bench.config.engine_port}")


async def test_boot_jitter_stays_within_its_share_and_follows_the_seed(run_bench):
    async with run_bench(boot_delay=100.0, boot_jitter=0.2) as bench:
        for _ in range(4):
            await bench.launch()
        machines = bench.server._table.machines()
        delays = [machine.boots_at - machine.launched_at for machine in machines]
        assert all(80.0 <= delay <= 120.0 for delay in delays)
        assert len(set(delays)) == 4
        for machine in machines:
            bench.server.machines.terminate(machine.id)


async def test_every_machine_has_an_address_of_its_own(bench):
    addresses = [(await bench.up()).address for _ in range(3)]
    assert len(set(addresses)) == 3
    networks = {address.rsplit(".", 1)[0] for address in addresses}
    assert len(networks) == 1


async def test_the_command_gets_host_port_and_environment(bench):
    script = "import os, sys; print(sys.argv[1:], os.environ['EXTRA'], flush=True)"
    argv = (sys.executable, "-S", "-c", script, "--at={host}:{port}", '{"keep": {"me": 1}}')
    node = await bench.up(argv=argv, env={"EXTRA": "yes"})
    await bench.until(lambda: output(bench, node.id).endswith("\n"))
    assert output(bench, node.id) == f"""['--at={node.address}', '{{"keep": {{"me": 1}}}}'] yes\n"""


async def test_an_engine_that_exits_leaves_the_machine_up(bench):
    node = await bench.up(argv=(sys.executable, "-S", "-c", "print('bye'); raise SystemExit(3)"))
    await bench.until(lambda: bench.server._table.get(node.id).engine_exit is not None)
    assert bench.server._table.get(node.id).engine_exit == 3
    assert (await bench.get(node.id)).state is InstanceState.RUNNING
    assert (await bench.statistics())["groups"] == {}


async def test_an_engine_that_cannot_be_started_leaves_the_machine_up(bench):
    node = await bench.up(argv=("/nowhere/engine",))
    assert (await bench.get(node.id)).state is InstanceState.RUNNING
    assert "cannot be started" in output(bench, node.id)


async def test_terminate_is_gentle_within_the_grace(bench):
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: (print('asked', flush=True), sys.exit(0)))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(60)"
    )
    node = await bench.up(argv=(sys.executable, "-S", "-c", script), stop_signal="SIGUSR1")
    await bench.until(lambda: "up" in output(bench, node.id))
    await bench.instances.terminate(node.id)
    await bench.until(lambda: bench.server._table.get(node.id).state is InstanceState.TERMINATED)
    assert "asked" in output(bench, node.id)


async def test_terminate_kills_after_the_grace(bench):
    node = await bench.up(argv=STUBBORN, stop_grace=7.0)
    await bench.until(lambda: "up" in output(bench, node.id))
    await bench.instances.terminate(node.id)
    await bench.clock.advance(6.9)
    assert (await bench.get(node.id)).state is InstanceState.SHUTTING_DOWN
    await bench.clock.advance(0.2)
    assert (await bench.get(node.id)).state is InstanceState.TERMINATED
    await bench.until(lambda: not belonging((bench.server._identity.cloud,)))


async def test_helpers_outside_the_process_group_go_with_the_machine(bench):
    node = await bench.up(argv=WITH_HELPER)
    await bench.until(lambda: "up" in output(bench, node.id))
    mark = f"{bench.server._identity.cloud}/{node.id}"
    assert len(belonging((mark,))) == 2
    await bench.instances.terminate(node.id)
    await bench.until(lambda: not belonging((mark,)))
    await bench.until(lambda: bench.server._table.get(node.id).state is InstanceState.TERMINATED)


async def test_helpers_that_outlive_their_leader_go_with_the_machine(bench):
    script = "import subprocess; subprocess.Popen(['sleep', '600']); print('up', flush=True)"
    node = await bench.up(argv=(sys.executable, "-S", "-c", script))
    await bench.until(lambda: bench.server._table.get(node.id).engine_exit is not None)
    mark = f"{bench.server._identity.cloud}/{node.id}"
    assert len(belonging((mark,))) == 1
    assert list((await bench.statistics())["groups"]) == [node.id]
    await bench.instances.terminate(node.id)
    await bench.until(lambda: not belonging((mark,)))


async def test_stopping_frees_capacity_and_money_and_starting_is_quicker(run_bench):
    async with run_bench(boot_delay=60.0, stopped_start_delay=5.0, on_demand_capacity=1) as bench:
        node = await bench.up(market=Market.ON_DEMAND)
        await bench.instances.stop(node.id)
        await bench.until(lambda: bench.server._table.get(node.id).state is InstanceState.STOPPED)
        assert (await bench.get(node.id)).address == node.address
        cost = (await bench.statistics())["cost_usd"]
        await bench.clock.advance(3600.0)
        assert (await bench.statistics())["cost_usd"] == pytest.approx(cost)
        await bench.instances.start(node.id)
        await bench.clock.advance(5.1)
        assert await bench.get(node.id) == node
        with pytest.raises(InsufficientCapacity):
            await bench.launch(market=Market.ON_DEMAND)


async def test_starting_needs_capacity(run_bench):
    async with run_bench(on_demand_capacity=1) as bench:
        node = await bench.up(market=Market.ON_DEMAND)
        await bench.instances.stop(node.id)
        await bench.until(lambda: bench.server._table.get(node.id).state is InstanceState.STOPPED)
        await bench.launch(market=Market.ON_DEMAND)
        with pytest.raises(InsufficientCapacity):
            await bench.instances.start(node.id)


async def test_starting_while_it_stops_does_nothing(bench):
    node = await bench.up(market=Market.ON_DEMAND, argv=STUBBORN, stop_grace=7.0)
    await bench.until(lambda: "up" in output(bench, node.id))
    await bench.instances.stop(node.id)
    with pytest.raises(CloudError, match="still stopping"):
        await bench.instances.start(node.id)
    await bench.clock.advance(8.0)
    assert (await bench.get(node.id)).state is InstanceState.STOPPED


async def test_a_spot_machine_cannot_be_stopped(bench):
    node = await bench.up()
    with pytest.raises(Misconfigured, match="spot"):
        await bench.instances.stop(node.id)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token": ""}, "token"),
        ({"token": "x" * 65}, "token"),
        ({"token": "café"}, "token"),
        ({"zone": "nowhere"}, "not sold here"),
        ({"argv": ()}, "empty"),
        ({"stop_signal": "SIGNOTHING"}, "SIGNOTHING"),
    ],
)
async def test_a_launch_that_makes_no_sense_is_refused(bench, changes, words):
    request = bench.request()
    if "zone" in changes:
        request = replace(request, placement=replace(request.placement, zone=changes["zone"]))
    elif "token" in changes:
        request = replace(request, token=changes["token"])
    else:
        request = replace(request, command=replace(request.command, **changes))
    with pytest.raises(Misconfigured, match=words):
        await bench.instances.launch(request)
    assert await bench.instances.list("pool", "") == ()


async def test_one_token_means_one_placement(bench):
    request = bench.request("a")
    await bench.instances.launch(request)
    with pytest.raises(Misconfigured, match="new token"):
        await bench.instances.launch(replace(request, placement=replace(request.placement, zone="b")))


async def test_ended_instances_are_listed_for_a_while_and_their_tokens_stay(bench):
    request = bench.request()
    node = (await bench.instances.launch(request)).id
    await bench.instances.terminate(node)
    await bench.until(lambda: bench.server._table.get(node).state is InstanceState.TERMINATED)
    await bench.clock.advance(299.0)
    assert await bench.states() == {node: "terminated"}
    await bench.clock.advance(2.0)
    assert await bench.states() == {}
    assert (await bench.instances.launch(request)).id == node


async def test_killing_the_engine_leaves_the_machine_up(bench):
    node = await bench.up()
    await bench.order("kill-engine", node=node.id)
    await bench.until(lambda: bench.server._table.get(node.id).engine_exit is not None)
    assert bench.server._table.get(node.id).engine_exit == -signal.SIGKILL
    assert (await bench.get(node.id)).state is InstanceState.RUNNING
    with pytest.raises(NotFound, match="no engine"):
        await bench.order("kill-engine", node=node.id)


async def test_a_frozen_engine_stays_and_thaws(bench):
    node = await bench.up()
    group = (await bench.statistics())["groups"][node.id]

    def state() -> str:
        with open(f"/proc/{group}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]

    await bench.order("freeze", node=node.id)
    await bench.until(lambda: state() == "T")
    assert (await bench.get(node.id)).state is InstanceState.RUNNING
    await bench.order("thaw", node=node.id)
    await bench.until(lambda: state() != "T")


def test_output_is_bounded_while_the_engine_goes_on_writing(tmp_path):
    path, kept = tmp_path / "engine.log", tmp_path / "engine.log.1"
    with path.open("ab", buffering=0) as engine:
        engine.write(b"a" * 5000 + b"b" * 4096)
        bound_log(path, 4096)
        assert path.read_bytes() == b""
        assert kept.read_bytes() == b"b" * 4096
        engine.write(b"c" * 4096)
        bound_log(path, 4096)
        assert path.read_bytes() == b"c" * 4096
        engine.write(b"d")
        bound_log(path, 4096)
        assert kept.read_bytes() == b"c" * 4095 + b"d"
    bound_log(tmp_path / "nothing.log", 4096)


async def test_output_and_tokens_of_machines_that_ended_are_kept_within_bounds(run_bench, cloud_config):
    keeping = replace(cloud_config.keeping, ended_logs=1, ended_remembered=2)
    async with run_bench(keeping=keeping) as bench:
        requests = [bench.request() for _ in range(4)]
        nodes = []
        for request in requests:
            node = (await bench.instances.launch(request)).id
            nodes.append(node)
            await bench.clock.advance(bench.config.boot_delay + 0.1)
            await bench.instances.terminate(node)
            await bench.until(lambda node=node: bench.server._table.get(node).ended_at is not None)
        await bench.clock.advance(5.0)
        assert [machine.id for machine in bench.server._table.machines()] == nodes[2:]
        assert [bench.server.machines.log_path(node).exists() for node in nodes] == [False] * 3 + [True]
        assert (await bench.instances.launch(requests[3])).id == nodes[3]


async def test_a_machine_that_was_stopping_is_stopped_after_the_cloud_was_closed(run_bench):
    async with run_bench() as bench:
        node = await bench.up(market=Market.ON_DEMAND, argv=STUBBORN)
        await bench.until(lambda: "up" in output(bench, node.id))
        await bench.instances.stop(node.id)
        assert (await bench.get(node.id)).state is InstanceState.STOPPING
        cloud = bench.server._identity.cloud
    assert belonging((cloud,)) == set()
    async with run_bench() as bench:
        assert (await bench.get(node.id)).state is InstanceState.STOPPED


async def test_closing_the_cloud_ends_every_process(run_bench):
    async with run_bench() as bench:
        nodes = [await bench.up(argv=WITH_HELPER), await bench.up(argv=STUBBORN)]
        for node in nodes:
            await bench.until(lambda node=node: "up" in output(bench, node.id))
        cloud = bench.server._identity.cloud
        groups = list((await bench.statistics())["groups"].values())
    assert belonging((cloud,)) == set()
    for group in groups:
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)
