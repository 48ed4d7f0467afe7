"""The stand-in for AWS as a process, what a user has there before the first launch, and engines on machines.

For tests, benches and the demo: everything that plays a pool on EC2 without AWS starts here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
from aiohttp import web

from cloud.clock import SystemClock
from cloud.engines import keep_alive
from cloud.engines.simulated_server.api import Api, ApiSettings
from cloud.engines.simulated_server.core import Core, CoreSettings
from cloud.engines.simulated_server.metrics import Metrics
from cloud.ports import EngineSpec
from orchestrator.demo.processes import die_with_parent

REGION = "us-east-1"
ZONES = (f"{REGION}a", f"{REGION}b")
MODEL = "simulated"
TOKENS_PER_SECOND = 50.0

STRICT: dict[str, Any] = {"run_bucket": [5, 2.0], "tag_authorisation": True}
"""Settings under which the stand-in refuses what EC2 refuses: launches above its rate, and changes by tag."""

_SHIM = Path(__file__).parent / "aws_shim"
_LIVING = ("pending", "running")
_FOLLOW = 0.2  # s between two looks at the machines by what runs their engines


def credentials(key: str = "testing") -> dict[str, str]:
    """The environment in which boto3 finds credentials for the stand-in and none of this machine's."""
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


class AwsShim:
    """A running stand-in for AWS. `url` is the endpoint of every service."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._clients: dict[tuple[str, str], Any] = {}

    def order(self, name: str, **values: Any) -> dict[str, Any]:
        """Give an order; tests/support/aws_shim/orders.py lists them."""
        request = urllib.request.Request(f"{self.url}/_shim/{name}", json.dumps(values).encode())  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                found: dict[str, Any] = json.loads(answer.read())
                return found
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{name} {values}: {error.read().decode()}") from None

    def client(self, service: str, region: str = REGION) -> Any:
        """A client of boto3 for what the stand-in's user does; threads may share it."""
        if (service, region) not in self._clients:
            keys = {"aws_access_key_id": "user", "aws_secret_access_key": "user"}
            made = boto3.client(service, region_name=region, endpoint_url=self.url, **keys)
            self._clients[service, region] = made
        return self._clients[service, region]

    def machines(self, pool: str) -> list[dict[str, Any]]:
        """Every machine of a pool that EC2 still describes, by tag."""
        return [m for m in self.order("machines")["machines"] if m["pool"] == pool]

    def living(self, pool: str) -> dict[str, str]:
        """Machines of a pool that are not ending: id to market."""
        return {m["id"]: m["market"] for m in self.machines(pool) if m["state"] in _LIVING}


@contextlib.contextmanager
def running_shim() -> Iterator[AwsShim]:
    """The stand-in in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(_SHIM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **credentials()},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the stand-in for AWS did not start"
        yield AwsShim(json.loads(line)["url"])
    finally:
        process.kill()
        process.wait()


# -- what a user has before the first launch --------------------------------------------------------


def network(shim: AwsShim, block: str, template: str, region: str = REGION) -> dict[str, str]:
    """A network on the loopback, `block` such as "127.78", and a launch template; the subnets by zone."""
    ec2 = shim.client("ec2", region)
    vpc = ec2.create_vpc(CidrBlock=f"{block}.0.0/16")["Vpc"]["VpcId"]
    made = {}
    for number, zone in enumerate((f"{region}a", f"{region}b")):
        part = f"{block}.{16 * number}.0/20"
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=part, AvailabilityZone=zone)
        made[zone] = str(subnet["Subnet"]["SubnetId"])
    ec2.create_launch_template(LaunchTemplateName=template, LaunchTemplateData={"ImageId": "ami-12345678"})
    return made


def queue_of_events(shim: AwsShim, name: str, region: str = REGION) -> str:
    """A queue that EventBridge fills with the events of EC2; its URL."""
    sqs, events = shim.client("sqs", region), shim.client("events", region)
    queue = str(sqs.create_queue(QueueName=name)["QueueUrl"])
    named = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    events.put_rule(Name=name, EventPattern='{"source": ["aws.ec2"]}')
    events.put_targets(Rule=name, Targets=[{"Id": "q", "Arn": named["Attributes"]["QueueArn"]}])
    return queue


def target_group(shim: AwsShim, name: str, path: str = "/health") -> str:
    """A target group of HTTP that holds instances and is checked at that path; its ARN."""
    ec2, elb = shim.client("ec2"), shim.client("elbv2")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    made = elb.create_target_group(
        Name=name, Protocol="HTTP", Port=80, VpcId=vpc, TargetType="instance", HealthCheckPath=path
    )
    arn = str(made["TargetGroups"][0]["TargetGroupArn"])
    algorithm = {"Key": "load_balancing.algorithm.type", "Value": "least_outstanding_requests"}
    elb.modify_target_group_attributes(TargetGroupArn=arn, Attributes=[algorithm])
    return arn


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


# -- engines ----------------------------------------------------------------------------------------


def running_machines(shim: AwsShim) -> dict[str, dict[str, Any]]:
    """Every machine that runs."""
    return {m["id"]: m for m in shim.order("machines")["machines"] if m["state"] == "running"}


class EngineProcesses:
    """An engine in a process of its own at the address of every running machine, which dies with it.

    It is started with the variables that every engine gets from the daemon. `models`: what the engines of a
    pool serve, by the pool's name; else `MODEL`.
    """

    def __init__(
        self,
        shim: AwsShim,
        port: int,
        environment: Mapping[str, str] | None = None,
        *,
        models: Mapping[str, str] | None = None,
    ) -> None:
        self._shim, self._port, self._models = shim, port, models or {}
        self._environment = {
            **(os.environ if environment is None else environment),
            **keep_alive.environment(EngineSpec(model=MODEL, served_name=MODEL)),
        }
        self._engines: dict[str, asyncio.subprocess.Process] = {}

    async def keep(self) -> None:
        """Follow the machines for ever."""
        while True:
            running = await asyncio.to_thread(running_machines, self._shim)
            for node in running.keys() - self._engines.keys():
                self._engines[node] = await self._start(running[node])
            for node in self._engines.keys() - running.keys():  # one that is started again gets a new engine
                await self._kill(self._engines.pop(node))
            await asyncio.sleep(_FOLLOW)

    async def _start(self, machine: Mapping[str, Any]) -> asyncio.subprocess.Process:
        model = self._models.get(machine["pool"], MODEL)
        options = {
            "model": model,
            "served-model-name": model,
            "host": machine["address"],
            "port": str(self._port),
            "load-time": "0.1",
            "tokens-per-second": f"{TOKENS_PER_SECOND:g}",
            "max-num-seqs": "8",
            "shutdown-timeout": "5",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cloud.engines.simulated_server",
            *words,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._environment,
            preexec_fn=die_with_parent,
        )

    async def end(self) -> None:
        """Kill every engine."""
        for engine in self._engines.values():
            await self._kill(engine)

    async def _kill(self, engine: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            engine.kill()
        await engine.wait()


class EnginesHere:
    """The same within this process: cheaper to start, and as alive as their machines."""

    def __init__(self, shim: AwsShim, port: int) -> None:
        self._shim, self._port = shim, port
        self._running: dict[str, tuple[web.AppRunner, asyncio.Task[None]]] = {}

    async def keep(self) -> None:
        """Follow the machines of every pool for ever."""
        while True:
            running = await asyncio.to_thread(running_machines, self._shim)
            for node in self._running.keys() - running.keys():
                await self._stop(node)
            for node in running.keys() - self._running.keys():
                await self._start(node, running[node]["address"])
            await asyncio.sleep(_FOLLOW)

    async def _start(self, node: str, host: str) -> None:
        clock = SystemClock()
        settings = CoreSettings(
            tokens_per_second=TOKENS_PER_SECOND, time_to_first_token=0.0, max_num_seqs=8, max_model_len=4096
        )
        core = Core(clock, settings, Metrics(MODEL))
        api = Api(clock, core, ApiSettings(model=MODEL, served_name=MODEL))
        runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, host, self._port, reuse_address=True).start()
        self._running[node] = (runner, asyncio.create_task(core.run()))

    async def _stop(self, node: str) -> None:
        runner, work = self._running.pop(node)
        work.cancel()
        await runner.cleanup()

    async def end(self) -> None:
        """Stop every engine."""
        for node in list(self._running):
            await self._stop(node)


@contextlib.asynccontextmanager
async def kept(engines: EngineProcesses | EnginesHere) -> AsyncIterator[None]:
    """Engines follow the machines meanwhile, and are gone afterwards."""
    keeping = asyncio.create_task(engines.keep())
    try:
        yield
        if keeping.done():
            keeping.result()
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        await engines.end()
