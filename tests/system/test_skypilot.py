"""Real SkyPilot on the stand-in for AWS: the port's operations, refusals, what it makes, and an engine."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shlex
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from aws_stage import ZONES, EnginesHere, credentials, free_port, kept
from node_bench import Machine, running_imds
from sky_daemon import SkyDaemon
from sky_stage import (
    FORBIDDEN,
    POOL,
    REGION,
    ROOT,
    Sky,
    account,
    furnish,
    needs_skypilot,
    real_settings,
    region,
    request,
)
from ssh_machine import may_mount, relay, running_sshd

from cloud.clock import SystemClock
from cloud.cloud_init.user_data import NodeSetup, unpacked, user_data
from cloud.engines.simulated import SimulatedEngine
from cloud.errors import CloudError
from cloud.ports import EngineCommand, EngineSpec
from cloud.skypilot.clouds import CLOUDS
from cloud.skypilot.start import start_script
from policies.model import Ending, InstanceState, Market

pytestmark = [pytest.mark.skypilot, pytest.mark.slow, pytest.mark.timeout(600), needs_skypilot]


def engine_command() -> EngineCommand:
    """What starts an engine on a machine."""
    spec = EngineSpec(model="simulated", served_name="simulated", executable=sys.executable)
    return SimulatedEngine(SystemClock(), model_name="simulated", task="generate").command(spec)


@pytest.fixture(scope="module")
def group(aws_shim_process: Any) -> str:
    """The account's security group."""
    return account(aws_shim_process)


@pytest.fixture
async def sky(aws_shim: Any, group: str, tmp_path: Path) -> AsyncIterator[Sky]:
    """The adapters with a helper that runs SkyPilot, and machines whose user-data starts an engine."""
    port = free_port()
    data = user_data(NodeSetup(pool=POOL, command=engine_command(), port=port, local_disk=False))
    places = [region(network=group, zones=ZONES, image="ami-12345678", user_data=data, engine_port=port)]
    home = tmp_path / "home"
    furnish(home, aws_shim, ZONES)
    settings = real_settings(home, aws_shim, places, credentials())
    sky = Sky(settings, places, SystemClock(), tmp_path / "launches")
    yield sky
    await sky.close()


async def until(sky: Sky, node: str, state: InstanceState) -> Any:
    async with asyncio.timeout(120):
        while True:
            for instance in await sky.instances.list(POOL, REGION):
                if instance.id == node and instance.state is state:
                    return instance
            await asyncio.sleep(0.1)


async def test_one_machine_from_its_launch_to_its_end(sky: Sky, aws_shim: Any) -> None:
    prices = {
        (o.placement.zone, o.placement.market): o.price
        for part in sky.offerings.parts()
        for o in (await sky.offerings.list(part)).offerings
    }
    assert prices == {(zone, m): 0.3 if m is Market.SPOT else 0.8048 for zone in ZONES for m in Market}

    before = aws_shim.order("calls")
    launching = asyncio.ensure_future(sky.instances.launch(request("t/1", Market.ON_DEMAND, ZONES[0])))
    await asyncio.sleep(0.05)
    for _ in range(3):  # looks at what is being launched make the same configuration of SkyPilot at once
        await sky.instances.list(POOL, REGION)
    node = await launching
    again = await asyncio.gather(
        *(sky.instances.launch(request("t/1", Market.ON_DEMAND, ZONES[0])) for _ in range(3))
    )
    assert {i.id for i in again} == {node.id}
    running = await until(sky, node.id, InstanceState.RUNNING)
    assert (running.token, running.build, running.placement.zone) == ("t/1", "b", ZONES[0])
    (machine,) = aws_shim.machines(POOL)
    assert (machine["id"], machine["token"], machine["zone"]) == (node.id, "t/1", ZONES[0])
    described = aws_shim.client("ec2").describe_instances(InstanceIds=[node.id])
    assert "IamInstanceProfile" not in described["Reservations"][0]["Instances"][0]

    await sky.instances.stop(node.id)
    await until(sky, node.id, InstanceState.STOPPED)
    await sky.instances.start(node.id)
    await until(sky, node.id, InstanceState.RUNNING)
    await sky.instances.terminate(node.id)
    ended = await until(sky, node.id, InstanceState.TERMINATED)
    assert ended.ending is Ending.REQUEST
    aws_shim.order("set", remember=0.0)
    replayed = await sky.instances.launch(request("t/1", Market.ON_DEMAND, ZONES[0]))
    assert (replayed.id, replayed.state) == (node.id, InstanceState.TERMINATED)

    spot = await sky.instances.launch(request("t/2", Market.SPOT, ZONES[1]))
    await until(sky, spot.id, InstanceState.RUNNING)
    aws_shim.order("reclaim", node=spot.id, notice_s=0.0)
    assert (await until(sky, spot.id, InstanceState.TERMINATED)).ending is Ending.RECLAIM
    calls = aws_shim.order("calls")
    assert calls["RunInstances"] - before.get("RunInstances", 0) == 2
    assert [name for name in FORBIDDEN if calls.get(name, 0) > before.get(name, 0)] == []


REFUSALS = {
    "InsufficientInstanceCapacity": (500, "no-capacity"),
    "MaxSpotInstanceCountExceeded": (400, "quota"),
    "RequestLimitExceeded": (503, "throttled"),
    "InvalidParameterValue": (400, "misconfigured"),
}


async def test_a_refusal_is_one_call_and_burns_no_token(sky: Sky, aws_shim: Any) -> None:
    for number, (code, (status, word)) in enumerate(REFUSALS.items()):
        aws_shim.order("fault", action="RunInstances", kind="error", code=code, status=status)
        with pytest.raises(CloudError) as refused:
            await sky.instances.launch(request("t/1", Market.SPOT, ZONES[0]))
        assert (code, refused.value.word) == (code, word)
        assert (aws_shim.order("calls")["RunInstances"], aws_shim.machines(POOL)) == (number + 1, [])
    launched = await sky.instances.launch(request("t/1", Market.SPOT, ZONES[0]))
    assert [m["id"] for m in aws_shim.machines(POOL)] == [launched.id]


async def test_a_lost_answer_is_uncertain_and_the_token_resolves_it(sky: Sky, aws_shim: Any) -> None:
    aws_shim.order("fault", action="RunInstances", kind="lose")
    with pytest.raises(CloudError) as lost:
        await sky.instances.launch(request("t/1", Market.SPOT, ZONES[0]))
    assert lost.value.word == "uncertain"
    launched = await sky.instances.launch(request("t/1", Market.SPOT, ZONES[0]))
    assert [m["id"] for m in aws_shim.machines(POOL)] == [launched.id]


async def test_its_user_data_starts_an_engine(sky: Sky, aws_shim: Any, tmp_path: Path) -> None:
    """What cloud-init and systemd would do with what SkyPilot gave the machine, done here."""
    node = await sky.instances.launch(request("t/1", Market.SPOT, ZONES[0]))
    await until(sky, node.id, InstanceState.RUNNING)
    ec2 = aws_shim.client("ec2")
    held = ec2.describe_instance_attribute(InstanceId=node.id, Attribute="userData")
    config = yaml.safe_load(unpacked(base64.b64decode(held["UserData"]["Value"])))
    with running_imds() as imds:
        machine = Machine(imds, tmp_path, id=node.id, market="spot", zone=ZONES[0])
        machine.order("put", path="meta-data/local-ipv4", text="127.0.0.1")
        for file in config["write_files"]:
            path = machine.directory / file["path"].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file["content"])
        (machine.directory / "run/orchestrator-engine").mkdir(parents=True)
        unit = (machine.directory / "etc/systemd/system/orchestrator-engine.service").read_text()
        (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=/usr/bin/python3")]
        words = shlex.split(line.partition("=")[2])[1:]
        paths = [
            f"{machine.directory}{word}" if word.startswith(("/opt/", "/run/")) else word for word in words
        ]
        port = json.loads((machine.directory / "opt/orchestrator/engine.json").read_text())["port"]
        process = await asyncio.create_subprocess_exec(
            getattr(sys, "_base_executable", sys.executable),
            *paths,
            env={
                **os.environ,
                "PYTHONPATH": f"{machine.directory}/opt/orchestrator:{ROOT}",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": machine.url,
            },
        )
        try:
            await asyncio.to_thread(until_it_answers, port)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@pytest.mark.debian("/usr/sbin/sshd", package="openssh-server")
async def test_an_engine_starts_over_ssh(
    aws_shim: Any, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: Any
) -> None:
    """SkyPilot's SSH as on clouds that take no user-data, to a real sshd that stands for the machine."""
    if not may_mount():
        lacking("a machine for SSH needs root and the right to mount")
    row = replace(CLOUDS["aws"], starts_by="ssh")
    monkeypatch.setattr("cloud.skypilot.places.CLOUDS", {**CLOUDS, "aws": row})
    port, door = free_port(), free_port()
    command = replace(engine_command(), env={"PYTHONPATH": str(ROOT)})
    script = start_script(POOL, command, port)
    places = [region(network=group, zones=ZONES, image="ami-12345678", script=script, engine_port=port)]
    home = tmp_path / "home"
    furnish(home, aws_shim, ZONES)
    settings = real_settings(home, aws_shim, places, credentials(), relay(tmp_path, door))
    sky = Sky(settings, places, SystemClock(), tmp_path / "launches")
    try:
        node = await sky.instances.launch(request("t/1", Market.SPOT, ZONES[0]))
        await until(sky, node.id, InstanceState.RUNNING)
        await asyncio.gather(*sky.instances.orders)  # in vain: nobody answers yet
        held = aws_shim.client("ec2").describe_instance_attribute(InstanceId=node.id, Attribute="userData")
        key = re.search(r"ssh-\S+ \S+", base64.b64decode(held["UserData"]["Value"]).decode())
        assert key is not None
        with running_sshd(tmp_path, door, "ubuntu", key[0]) as opt:
            pids = set()
            for _ in range(2):
                await sky.instances.list(POOL, REGION)
                await asyncio.gather(*sky.instances.orders)
                await asyncio.to_thread(until_it_answers, port)
                pids.add((opt / "orchestrator" / "pid").read_text())
            assert len(pids) == 1
            assert sorted(file.name for file in (opt / "orchestrator").iterdir()) == [
                "engine.log",
                "engine.sh",
                "pid",
            ]
    finally:
        await sky.close()


async def test_a_whole_daemon_is_small_and_imports_no_sky(aws_shim: Any, group: str, tmp_path: Path) -> None:
    home, port = tmp_path / "home", free_port()
    furnish(home, aws_shim, ZONES)
    daemon = SkyDaemon(tmp_path, aws_shim.url, home, group, port, nodes=2)
    async with kept(EnginesHere(aws_shim, port)):
        try:
            daemon.start()
            await asyncio.to_thread(daemon.until_ready)
            assert len({m["token"] for m in aws_shim.machines(POOL)}) == len(aws_shim.machines(POOL)) == 2
            findings = (await asyncio.to_thread(daemon.doctor))["findings"]
            assert {row["state"] for row in findings} == {"ok"}, findings
            assert any("[account=" in row["text"] for row in findings)  # as the stand-in's STS says
            assert daemon.most_memory() < 150e6
            packages = daemon.stop()
        finally:
            daemon.close()
    assert "orchestrator" in packages
    assert not packages & {"sky", "pandas", "numpy", "boto3", "botocore"}


def until_it_answers(port: int) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < end, "no engine answers"
            time.sleep(0.2)
