"""From no resources to a running pool: what bootstrap makes, what its user-data installs, the daemon on it.

Every instance runs the files that its own user-data holds: the engine at its private address, and the agent
with a key that the daemon gave it. A stand-in for AWS and one for the metadata service stand behind it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shlex
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from node_bench import SECRET, Machine, make_certificate, running_imds

from cloud.cloud_init.user_data import unpacked

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]

REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/boot-node"
POOL = "pool.test"
AWS = f"{POOL}.cloud.aws"
IMAGE = "ami-0d15c500000000000"
DISKS = [
    {"device": "/dev/sda1", "size": 20},
    {"device": "/dev/sdf", "size": 200, "delete_on_termination": False},
]


class Nodes:
    """Makes every running instance a node, by what its user-data says, until it ends."""

    def __init__(self, shim: Any, imds: Any, directory: Path) -> None:
        where: dict[str, Any] = {"region_name": REGION, "endpoint_url": shim.url}
        self.ec2: Any = boto3.client("ec2", **where)
        self.sts: Any = boto3.client("sts", **where)
        self.shim, self._imds, self._directory = shim, imds, directory
        self.machines: dict[str, Machine] = {}
        self._processes: dict[str, list[asyncio.subprocess.Process]] = {}

    def described(self) -> list[dict[str, Any]]:
        asked = [{"Name": "tag:orchestrator:pool", "Values": ["test"]}]
        pages = self.ec2.get_paginator("describe_instances").paginate(Filters=asked)
        return [m for page in pages for r in page["Reservations"] for m in r["Instances"]]

    async def keep(self) -> None:
        while True:
            for machine in await asyncio.to_thread(self.described):
                node, runs = machine["InstanceId"], machine["State"]["Name"] == "running"
                if runs and node not in self._processes:
                    self._processes[node] = []
                    await self._boot(machine)
                elif not runs:
                    self._kill(self._processes.get(node, []))
            await asyncio.sleep(0.1)

    async def _boot(self, described: dict[str, Any]) -> None:
        """What cloud-init and systemd do."""
        node = described["InstanceId"]
        machine = self.machines[node] = await asyncio.to_thread(self._install, described)
        environment = {
            **os.environ,
            "PYTHONPATH": str(machine.directory / "opt/orchestrator"),
            "AWS_ENDPOINT_URL": self.shim.url,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": machine.url,
        }
        for unit, key in (("engine", "ExecStart"), ("agent", "ExecStartPre"), ("agent", "ExecStart")):
            while True:
                process = await asyncio.create_subprocess_exec(
                    *self._command(machine.directory, unit, key),
                    env=environment,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )
                self._processes[node].append(process)
                if key == "ExecStart" or await process.wait() == 0:
                    break
                await asyncio.sleep(0.2)  # systemd starts it again until the daemon knows the node

    def _install(self, described: dict[str, Any]) -> Machine:
        node = described["InstanceId"]
        machine = Machine(self._imds, self._directory, id=node, market="spot", zone=f"{REGION}a")
        machine.order("put", path="meta-data/local-ipv4", text=described["PrivateIpAddress"])
        credentials = self.sts.assume_role(RoleArn=ROLE, RoleSessionName=node)["Credentials"]
        machine.give_role("boot-node", credentials)
        held = self.ec2.describe_instance_attribute(InstanceId=node, Attribute="userData")
        config = yaml.safe_load(unpacked(base64.b64decode(held["UserData"]["Value"])))
        for file in config["write_files"]:
            path = machine.directory / file["path"].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file["content"])
        for name in ("agent", "engine"):
            (machine.directory / f"run/orchestrator-{name}").mkdir(parents=True)
        return machine

    def _command(self, root: Path, unit: str, key: str) -> list[str]:
        text = (root / f"etc/systemd/system/orchestrator-{unit}.service").read_text()
        (line,) = [line for line in text.splitlines() if line.startswith(f"{key}=/usr/bin/python3")]
        python = getattr(sys, "_base_executable", sys.executable)
        words = shlex.split(line.partition("=")[2])[1:]
        return [python, *(f"{root}{w}" if w.startswith(("/opt/", "/run/")) else w for w in words)]

    def _kill(self, processes: list[asyncio.subprocess.Process]) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def end(self) -> None:
        for processes in self._processes.values():
            self._kill(processes)
            for process in processes:
                await process.wait()


def network(url: str) -> dict[str, str]:
    """What a user has before: subnets, and the role's instance profile."""
    where: dict[str, Any] = {"region_name": REGION, "endpoint_url": url}
    ec2: Any = boto3.client("ec2", **where)
    vpc = ec2.create_vpc(CidrBlock="127.79.0.0/16")["Vpc"]["VpcId"]
    made = {}
    for number, zone in enumerate((f"{REGION}a", f"{REGION}b")):
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"127.79.{number}.0/24", AvailabilityZone=zone)
        made[zone] = subnet["Subnet"]["SubnetId"]
    iam: Any = boto3.client("iam", **where)
    iam.create_instance_profile(InstanceProfileName="boot-node")
    return made


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def tables(shim: Any, directory: Path) -> dict[str, dict[str, object]]:
    """A file that names nothing that bootstrap makes but the launch template's name."""
    certificate, private = make_certificate(directory)
    secret = directory / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    engine_port, agents_port = free_ports(2)
    return {
        POOL: {"replicas": 3},
        f"{POOL}.engine": {"allow_simulated": True},
        f"{POOL}.limits": {"spend_per_hour": "unlimited"},
        f"{POOL}.cloud": {"kind": "aws", "state_dir": None, "socket": None},
        f"{POOL}.agents": {
            "listen": f"127.0.0.1:{agents_port}",
            "secret_file": str(secret),
            "tls_cert_file": str(certificate),
            "tls_key_file": str(private),
        },
        AWS: {
            "endpoint": shim.url,
            "instance_types": ["p5.4xlarge"],
            "engine_port": engine_port,
            "poll_spot_requests": "500ms",
            "node_role": ROLE,
        },
        f"{AWS}.tags": {"team": "ml"},
        f"{AWS}.disk": {"size": 50},
        f"{AWS}.regions.{REGION}": {
            "launch_template": "boot-node",
            "image": IMAGE,
            "allow_from": ["10.0.0.0/28"],
        },
        f"{AWS}.regions.{REGION}.subnets": dict(network(shim.url)),
    }


async def bootstrap(stack: Any, *words: str) -> tuple[int, dict[str, Any]]:
    """Run the command on the stack's configuration."""
    command = ("aws", "bootstrap", str(stack.config), "--security-group", *words, "-o", "json")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator", *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=stack.full_environment,
    )
    out, _ = await child.communicate()
    found: dict[str, Any] = json.loads(out)
    return child.returncode or 0, found


def whole(pool: Any) -> bool:
    nodes = [node for node in pool["nodes"] if node["phase"] != "gone"]
    ready = [node for node in nodes if node["phase"] == "ready" and node["target"] == "healthy"]
    return len(nodes) == len(ready) == 3 and sum(node["market"] == "spot" for node in ready) == 2


def sizes(nodes: Nodes) -> list[int]:
    """Of all volumes, those of nodes that are gone included."""
    return sorted(volume["Size"] for volume in nodes.ec2.describe_volumes()["Volumes"])


async def no_more(nodes: Nodes) -> bool:
    return await asyncio.to_thread(sizes, nodes) == [50] * 3 + [200] * 3


async def test_from_no_resources_to_a_pool_that_hears_every_source(
    aws_shim: Any, new_stack: Any, tmp_path: Path
) -> None:
    directory = tmp_path / "nodes"
    directory.mkdir()
    with running_imds() as imds:
        nodes = Nodes(aws_shim, imds, directory)
        aws_shim.order("set", images={IMAGE: {"volumes": DISKS}})
        keeping = asyncio.create_task(nodes.keep())
        try:
            async with new_stack(tables(aws_shim, tmp_path), parts=("gateway",)) as stack:
                code, plan = await bootstrap(stack, "--plan")
                assert (code, plan["pending"]) == (0, True)
                code, made = await bootstrap(stack, "--apply", "--yes")
                assert (code, made["pending"], made["error"]) == (0, False, "")
                (settings,) = made["settings"]
                del settings["region"]
                stack.configure({f"{AWS}.regions.{REGION}": settings})
                code, again = await bootstrap(stack, "--apply", "--yes")
                assert {part["verb"] for part in again["parts"]} == {"keep"}
                assert again["settings"] == [{"region": REGION, **settings}]

                await stack.start("daemon")
                pool = await stack.until_pool("the pool is as wanted", whole)
                group = (
                    made["settings"]
                    and nodes.ec2.describe_security_groups(
                        Filters=[{"Name": "group-name", "Values": ["orchestrator-test"]}]
                    )["SecurityGroups"][0]["GroupId"]
                )
                for machine in nodes.described():
                    assert [g["GroupId"] for g in machine["SecurityGroups"]] == [group]
                    assert {"Key": "team", "Value": "ml"} in machine["Tags"]
                assert sizes(nodes) == [50] * 3 + [200] * 3
                noticed = next(node["id"] for node in pool["nodes"] if node["market"] == "spot")

                async def heard() -> Any:
                    return (await asyncio.to_thread(stack.client.node, noticed))["agent"]

                await stack.until("its agent is heard", heard)
                metrics = await stack.get(stack.monitoring_port, "/metrics")
                assert 'pool_node_key_requests{outcome="given",pool="test"}' in metrics

                async def told_by() -> set[str]:
                    events = await stack.events()
                    seen = [e["data"]["notice"] for e in events if e["kind"] == "NoticeSeen"]
                    return {notice["source"] for notice in seen if notice["node"] == noticed}

                async with stack.traffic() as traffic:
                    nodes.machines[noticed].order("interrupt", after=120)
                    await stack.until("the node itself has told", told_by)
                    aws_shim.order("reclaim", node=noticed)
                    await stack.until_pool(
                        "the noticed node is replaced",
                        lambda pool: whole(pool) and noticed not in {n["id"] for n in pool["nodes"]},
                    )
                    await traffic.answers(20)
                await stack.until("no volume outlives the noticed node", partial(no_more, nodes))
                assert traffic.report.failed == 0, traffic.report
                assert await told_by() == {"aws-queue", "aws-spot-requests", "node-agent"}
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
            await nodes.end()
