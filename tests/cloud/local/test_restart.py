"""A cloud that stops or is killed leaves no engine behind, and comes back as the same cloud."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.clock import SystemClock
from cloud.errors import CloudError
from cloud.local.config import SetupError
from cloud.local.connection import LocalCloud
from cloud.local.instances import LocalInstances
from cloud.local.processes import belonging
from cloud.local.server import run_local_cloud
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import InstanceState, Market, Placement

pytestmark = pytest.mark.slow

PATIENCE = 30.0
HELPERS = (
    sys.executable,
    "-S",
    "-c",
    "import subprocess, time\n"
    "subprocess.Popen(['sleep', '600'])\n"
    "subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
    "time.sleep(600)",
)


def request(token: str, argv=("sleep", "600"), market=Market.ON_DEMAND) -> LaunchRequest:
    placement = Placement(provider="local", region="r", zone="a", instance_type="local.gpu", market=market)
    command = EngineCommand(argv=tuple(argv), stop_grace=1.0)
    return LaunchRequest(token=token, pool="pool", placement=placement, command=command)


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (a process has no event)
            await asyncio.sleep(0.01)


class Client:
    """The adapters of a cloud that runs as a process."""

    def __init__(self, config):
        self.connection = LocalCloud(config.socket_path)
        self.instances = LocalInstances(self.connection)

    async def __aenter__(self):
        self.cloud = (await self.connection.wait_ready(SystemClock(), timeout=PATIENCE)).cloud
        return self

    async def __aexit__(self, *_):
        await self.instances.close()

    async def until_state(self, node, state):
        async with asyncio.timeout(PATIENCE):
            while True:
                for instance in await self.instances.list("pool", ""):
                    if instance.id == node and instance.state is state:
                        return instance
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "guard killed too"])
async def test_a_killed_cloud_leaves_nothing_and_comes_back_with_its_tokens(start_process, guarded):
    process, config = start_process()
    async with Client(config) as client:
        running = await client.instances.launch(request("t-1", HELPERS))
        await client.until_state(running.id, InstanceState.RUNNING)
        stopped = await client.instances.launch(request("t-2"))
        await client.until_state(stopped.id, InstanceState.RUNNING)
        await client.instances.stop(stopped.id)
        await client.until_state(stopped.id, InstanceState.STOPPED)
        mark = client.cloud
        await until(lambda: len(belonging((mark,))) == 3)
        if not guarded:
            for pid in children(process.pid, named=mark):
                os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if guarded:
        await until(lambda: not belonging((mark,)))

    _, config = start_process()
    async with Client(config) as client:
        assert client.cloud == mark
        await until(lambda: not belonging((mark,)))
        states = {i.id: i.state for i in await client.instances.list("pool", "")}
        assert states == {running.id: InstanceState.TERMINATED, stopped.id: InstanceState.STOPPED}
        assert (await client.instances.launch(request("t-1", HELPERS))).id == running.id
        assert len(await client.instances.list("pool", "")) == 2
        await client.instances.start(stopped.id)
        await client.until_state(stopped.id, InstanceState.RUNNING)


async def test_a_launch_that_was_acknowledged_boots_after_a_kill(start_process):
    process, config = start_process(boot_delay=3600.0 * 600, speed=600.0)
    async with Client(config) as client:
        pending = await client.instances.launch(request("t-1"))
        assert pending.state is InstanceState.PENDING
    process.kill()
    process.wait()
    _, config = start_process()
    async with Client(config) as client:
        assert [i.id for i in await client.instances.list("pool", "")] == [pending.id]
        assert (await client.instances.launch(request("t-1"))).state is InstanceState.PENDING


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stopped_cloud_has_ended_everything(start_process, number):
    process, config = start_process()
    async with Client(config) as client:
        node = await client.instances.launch(request("t-1", HELPERS))
        await client.until_state(node.id, InstanceState.RUNNING)
        await until(lambda: len(belonging((client.cloud,))) == 3)
        process.send_signal(number)
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
        assert belonging((client.cloud,)) == set()
        assert not config.socket_path.exists()


async def test_notices_survive_a_kill_until_acknowledged(start_process):
    process, config = start_process(boot_delay=0.0)
    async with Client(config) as client:
        node = await client.instances.launch(request("t-1", market=Market.SPOT))
        await client.until_state(node.id, InstanceState.RUNNING)
        await client.connection.admin("recommend", f'{{"node": "{node.id}"}}'.encode())
        before = await client.connection.read("/v1/notices")
    process.kill()
    process.wait()
    _, config = start_process()
    async with Client(config) as client:
        assert await client.connection.read("/v1/notices") == before
        await client.connection.write("/v1/notices/1/acknowledge")
        assert b'"events":[]' in await client.connection.read("/v1/notices")


async def test_a_state_directory_has_one_cloud(cloud_config):
    async with run_local_cloud(cloud_config, SystemClock()):
        with pytest.raises(SetupError, match=rf"in use by a local cloud \(process {os.getpid()}\)"):
            async with run_local_cloud(cloud_config, SystemClock()):
                pass
    async with run_local_cloud(cloud_config, SystemClock()):
        pass


async def test_a_socket_has_one_cloud(cloud_config, short_path):
    socket = short_path / "cloud.sock"
    async with run_local_cloud(replace(cloud_config, socket=socket), SystemClock()):
        other = replace(cloud_config, socket=socket, state_dir=short_path / "other")
        with pytest.raises(SetupError, match="another process serves it"):
            async with run_local_cloud(other, SystemClock()):
                pass
        connection = LocalCloud(socket)
        assert (await connection.describe()).zones == {"a": "r", "b": "r"}
        await connection.close()


async def test_a_damaged_table_is_one_clear_error(cloud_config):
    cloud_config.state_dir.mkdir(parents=True)
    (cloud_config.state_dir / "cloud.db").write_bytes(b"this is no table" * 100)
    with pytest.raises(SetupError, match=r"cloud\.db: not a readable table"):
        async with run_local_cloud(cloud_config, SystemClock()):
            pass


async def test_an_unreadable_record_is_one_clear_error(cloud_config):
    async with run_local_cloud(cloud_config, SystemClock()):
        pass
    with sqlite3.connect(cloud_config.state_dir / "cloud.db") as database:
        database.execute("insert into machines values ('i-1', 1, '{}')")
    database.close()
    with pytest.raises(SetupError, match="remove the file"):
        async with run_local_cloud(cloud_config, SystemClock()):
            pass


async def test_a_state_directory_that_cannot_be(cloud_config, short_path):
    (short_path / "file").write_text("")
    with pytest.raises(SetupError, match="state_dir"):
        async with run_local_cloud(replace(cloud_config, state_dir=short_path / "file"), SystemClock()):
            pass


def test_the_command_says_what_is_wrong(tmp_path):
    (tmp_path / "cloud.json").write_text('{"state_dir": "x", "speed": -1}')
    run = subprocess.run(
        [sys.executable, "-m", "cloud.local", "--config", str(tmp_path / "cloud.json")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert "cloud.json: speed:" in run.stderr


async def test_waiting_for_a_cloud_that_never_comes(short_path):
    connection = LocalCloud(short_path / "cloud.sock")
    with pytest.raises(CloudError, match="is it running"):
        await connection.wait_ready(SystemClock(), timeout=0.2)
    await connection.close()


def children(parent: int, named: str) -> list[int]:
    """The children of a process that have a word on their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            words = Path(f"/proc/{name}/cmdline").read_bytes()
            if int(fields[1]) == parent and named.encode() in words:
                found.append(int(name))
    return found
