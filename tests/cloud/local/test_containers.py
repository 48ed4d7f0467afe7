"""Engines in real containers: they start, serve, drain when stopped, and what is killed leaves nothing."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from containers import IMAGE, RUNTIME, VOLUMES, ask, freeze, listed, minders

from cloud.clock import SystemClock
from cloud.local.connection import LocalCloud
from cloud.local.instances import LocalInstances
from cloud.local.processes import belonging
from cloud.ports import Container, EngineCommand, LaunchRequest
from policies.model import InstanceState, Market, Placement

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.debian("podman", package="podman"),
    pytest.mark.timeout(300),
]

PATIENCE = 60.0
SECRET = "not-for-the-process-list"
AT = Placement(provider="local", region="r", zone="a", instance_type="local.gpu", market=Market.SPOT)
COMMAND = EngineCommand(
    argv=(
        *("python3", "-m", "cloud.engines.simulated_server", "--model", "m", "--host", "{host}"),
        *("--port", "{port}", "--load-time", "0", "--tokens-per-second", "50", "--shutdown-timeout", "30"),
    ),
    env={"SECRET": SECRET},
    stop_grace=40.0,
    container=Container(image=IMAGE, volumes=VOLUMES),
)


@pytest.fixture(scope="module", params=["podman", "docker"], autouse=True)
def _runtime(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"real_{request.param}")


async def until(condition) -> None:
    """Wait until what is asked answers with something true."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - a container has no event
            await asyncio.sleep(0.05)


def started_it(cloud: str) -> int:
    """The process of the runtime that started the only container of the cloud."""
    (found,) = starters(cloud)
    return found


def docker() -> bool:
    return os.environ[RUNTIME] == "docker"


def starters(cloud: str) -> list[int]:
    """Processes of the runtime that start or prepare containers of the cloud."""
    name = f"{os.environ[RUNTIME]}\n"
    found = []
    for pid in belonging((cloud,)):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if Path(f"/proc/{pid}/comm").read_text() == name and words[1:2] == [b"run"]:
                found.append(pid)
    return found


def left_over(name: str) -> None:
    """A container of that name that runs."""
    volumes = [word for volume in VOLUMES for word in ("--volume", volume)]
    ask("run", "--detach", "--name", name, "--log-driver=none", *volumes, IMAGE, "sleep", "600")


def shown_words() -> str:
    """The words of every process of this machine."""
    return subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout


class Client:
    """A cloud that runs as a process, and its nodes."""

    def __init__(self, config):
        self.config = config
        self.connection = LocalCloud(config.socket_path)
        self.instances = LocalInstances(self.connection)

    async def __aenter__(self):
        self.cloud = (await self.connection.wait_ready(SystemClock(), timeout=PATIENCE)).cloud
        self.http = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_):
        await self.http.close()
        await self.instances.close()

    async def launch(self, command=COMMAND, market=Market.SPOT, serial=1):
        at = replace(AT, market=market)
        command = replace(command, container=replace(command.container, runtime=os.environ[RUNTIME]))
        request = LaunchRequest(token=f"t-{serial}", pool="pool", placement=at, command=command)
        return (await self.instances.launch(request)).id

    async def get(self, node):
        return next(one for one in await self.instances.list("pool", "") if one.id == node)

    async def until_state(self, node, state):
        async def reached():
            return (await self.get(node)).state is state

        await until(reached)

    async def serves(self, node):
        """Wait until the engine answers; its address."""

        async def answers():
            try:
                async with self.http.get(f"http://{(await self.get(node)).address}/health") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await until(answers)
        return (await self.get(node)).address

    async def gone(self):
        """Wait until no container and no process of any node is left."""

        async def nothing():
            left = belonging((self.cloud,)) or minders(f"orchestrator-{self.cloud}-")
            return not left and not await asyncio.to_thread(listed)

        await until(nothing)


async def test_it_serves_and_drains_and_nothing_is_left(start_process):
    _, config = start_process()
    async with Client(config) as client:
        node = await client.launch()
        address = await client.serves(node)
        (name,) = listed()
        assert name == f"orchestrator-{client.cloud}-{node}"
        assert ask("exec", name, "/usr/bin/printenv", "SECRET") == SECRET
        assert SECRET not in shown_words()
        body = {"model": "m", "prompt": "x", "max_tokens": 100, "stream": True, "ignore_eos": True}
        async with client.http.post(f"http://{address}/v1/completions", json=body) as stream:
            await stream.content.readline()
            await client.instances.terminate(node)
            rest = (await stream.read()).decode()
        chunks = [json.loads(line[6:]) for line in rest.splitlines() if line.startswith("data: {")]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert rest.rstrip().endswith("[DONE]")
        await client.until_state(node, InstanceState.TERMINATED)
        assert listed() == []


async def test_a_container_outlives_no_kill_of_the_process_that_started_it(start_process):
    _, config = start_process()
    async with Client(config) as client:
        node = await client.launch()
        await client.serves(node)
        os.kill(started_it(client.cloud), signal.SIGKILL)
        await client.gone()
        assert (await client.get(node)).state is InstanceState.RUNNING  # as a machine whose engine crashed


@pytest.mark.parametrize("how", ["frozen", "paused", "killed", "vanished"])
async def test_what_happens_to_an_engine_happens_in_the_container(start_process, how):
    _, config = start_process()
    async with Client(config) as client:
        node = await client.launch(command=replace(COMMAND, stop_grace=1.0))
        address = await client.serves(node)
        if how in ("frozen", "paused"):
            if how == "frozen":
                await client.connection.admin("freeze", json.dumps({"node": node}).encode())
            else:
                freeze(f"orchestrator-{client.cloud}-{node}")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0), client.http.get(f"http://{address}/health"):
                    pass
            await client.instances.terminate(node)
            await client.until_state(node, InstanceState.TERMINATED)
        elif how == "killed":
            await client.connection.admin("kill-engine", json.dumps({"node": node}).encode())
        else:
            await client.connection.admin("reclaim", json.dumps({"node": node, "notice_s": 0}).encode())
        await client.gone()


async def test_nodes_that_end_while_they_start_leave_nothing(start_process):
    _, config = start_process()
    async with Client(config) as client:
        nodes = [await client.launch(replace(COMMAND, stop_grace=0.05), serial=n) for n in range(4)]
        for number, node in enumerate(nodes):
            await client.until_state(node, InstanceState.RUNNING)
            await asyncio.sleep(0.25 * number)
            await client.instances.terminate(node)
        for node in nodes:
            await client.until_state(node, InstanceState.TERMINATED)
        assert await asyncio.to_thread(listed) == []
        await client.gone()


async def test_one_that_is_killed_while_its_container_is_made_leaves_nothing(start_process):
    """Podman has then forgotten the container, which waits to be started for ever; docker makes it later."""
    _, config = start_process()
    async with Client(config) as client:
        for serial in range(8 if docker() else 4):
            node = await client.launch(serial=serial)
            name = f"orchestrator-{client.cloud}-{node}"
            async with asyncio.timeout(PATIENCE):
                while not (starters(client.cloud) if docker() else minders(name)):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            if docker():
                await asyncio.sleep(0.04 * serial)
            os.kill(started_it(client.cloud), signal.SIGKILL)
            await client.instances.terminate(node)
            await client.gone()
        if docker():
            await asyncio.sleep(2.0)
            assert listed() == []


async def test_a_killed_cloud_leaves_no_process_and_its_next_start_no_container(start_process):
    process, config = start_process()
    async with Client(config) as client:
        await client.serves(await client.launch())
        mark = client.cloud
        process.kill()
        process.wait()

        async def ended():
            return not belonging((mark,))

        await until(ended)
    # An earlier run may have failed to remove one of a node that nobody remembers.
    left_over(f"orchestrator-{mark}-i-forgotten")
    start_process()
    async with Client(config) as client:
        assert client.cloud == mark
        await client.gone()


async def test_a_node_starts_again_and_over_a_container_that_was_left(start_process):
    _, config = start_process()
    async with Client(config) as client:
        node = await client.launch(market=Market.ON_DEMAND)
        await client.serves(node)
        await client.instances.stop(node)
        await client.until_state(node, InstanceState.STOPPED)
        assert listed() == []
        name = f"orchestrator-{client.cloud}-{node}"
        left_over(name)
        await client.instances.start(node)
        await client.serves(node)
        assert listed() == [name]
        await client.instances.terminate(node)
        await client.until_state(node, InstanceState.TERMINATED)


async def test_an_image_that_cannot_be_had_is_told_in_words(start_process):
    _, config = start_process()
    async with Client(config) as client:
        container = replace(COMMAND.container, image="127.0.0.1:9/stage/engine:2")
        node = await client.launch(command=replace(COMMAND, container=container))

        async def told():
            return "image 127." in await client.instances.console(node)

        await until(told)
        said = await client.instances.console(node)
    assert "container: image: 127.0.0.1:9/stage/engine:2 is fetched" in said
    assert "container: failed: image 127.0.0.1:9/stage/engine:2: the registry does not answer (" in said
