"""Clouds for the contract suites of `Instances`, `Offerings` and `Notices`.

Another provider joins by a class with the attributes and methods of `LocalWorld`, with a row in `WORLDS`.
"""

import asyncio
import json
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

# Also used by the tests of the node agent.
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from contract_clouds import LONG_NOTICE, AwsWorld, AzureWorld, GcpWorld, ManyWorld, SkyWorld
from contract_sim import SimCloudWorld
from contract_world import NodeAgents, ToldBy, World
from engine_bench import http, kind, server, shared, victim
from node_bench import running_imds

from cloud.clock import SystemClock
from cloud.local.config import Channels, ConstantSource, InstanceType, LocalCloudConfig, ZoneConfig
from cloud.local.connection import LocalCloud
from cloud.local.instances import LocalInstances
from cloud.local.notices import LocalEventFeed, LocalMetadata
from cloud.local.offerings import LocalOfferings
from cloud.local.server import run_local_cloud
from policies.model import Confidence, Instance
from tests.support.gcp_stand_in import GcpStandIn

__all__ = ("http", "kind", "server", "shared", "victim")  # fixtures of the engine suites


class LocalWorld(World):
    """A local cloud and its adapters."""

    def __init__(self, directory: Path) -> None:
        self.clock = SystemClock()
        self.config = LocalCloudConfig(
            state_dir=directory,
            speed=600.0,
            engine_port=_free_port(),
            metadata_port=_free_port(),
            channels=Channels(state_changes=False),
            market=ConstantSource(zones=(ZoneConfig(zone="a", capacity=4), ZoneConfig(zone="b", capacity=4))),
            instance_types=(InstanceType(), InstanceType(name="local.large", price_factor=3.6)),
        )
        self.connection = LocalCloud(self.config.socket_path)
        self.instances = LocalInstances(self.connection)
        self.offerings = LocalOfferings(self.connection)
        self.feed = LocalEventFeed(self.connection, self.clock, pool="pool")
        self.metadata = LocalMetadata(self.clock, cloud=self.connection, interval=0.02)
        self.sources = (
            ToldBy(source=self.feed, confidence=Confidence.CONFIRMED, queues=True),
            ToldBy(source=self.metadata, confidence=Confidence.REPORTED),
        )
        self._stack = AsyncExitStack()

    def watch(self, instance: Instance) -> None:
        self.metadata.watch([instance])

    async def open(self) -> None:
        await self._stack.enter_async_context(run_local_cloud(self.config, self.clock))

    async def close(self) -> None:
        for adapter in (self.instances, self.offerings, self.feed, self.metadata):
            await adapter.close()
        await self._stack.aclose()

    async def launch_writing(self, text: str) -> Instance:
        written = self.config.state_dir / "to-write"
        written.write_text(text, newline="")
        request = await self.request("t-1")
        argv = ("sh", "-c", f"cat {written}; exec sleep 600")
        return await self.instances.launch(replace(request, command=replace(request.command, argv=argv)))

    async def refuse_launches(self, times: int) -> None:
        """The next launches meet no capacity."""
        await self._order("refuse", times=times)

    async def lose_answer(self, call: str) -> None:
        """The next call of that kind takes effect, but no answer comes."""
        await self._order("lose-response", call=call, times=1)

    async def fail_list(self) -> None:
        """The next list fails half-way."""
        await self._order("fail-list", times=1)

    async def throttle(self, calls: int) -> None:
        """The next calls are throttled."""
        await self._order("throttle", calls=calls)

    async def reclaim(self, node: str, notice_s: float) -> None:
        """The provider takes a spot node back, with notice in the provider's seconds."""
        await self._order("reclaim", node=node, notice_s=notice_s)

    async def take(self, node: str) -> None:
        """The provider takes a spot node back at once."""
        await self.reclaim(node, 0.0)

    async def recommend(self, node: str) -> None:
        """The provider recommends rebalancing."""
        await self._order("recommend", node=node)

    async def _order(self, order: str, **values: object) -> None:
        await self.connection.admin(order, json.dumps(values).encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _local_world(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[LocalWorld]:
    # Not tmp_path: a unix socket's path must be short.
    short = Path(tempfile.mkdtemp(prefix="cloud-"))
    world = LocalWorld(short)
    try:
        await world.open()
        yield world
    finally:
        await world.close()
        shutil.rmtree(short, ignore_errors=True)


@asynccontextmanager
async def _aws_world(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[AwsWorld]:
    shim = request.getfixturevalue("aws_shim")
    world = AwsWorld(shim, request.getfixturevalue("aws_clients"), request.getfixturevalue("aws_place"))
    yield world
    await world.close()


@asynccontextmanager
async def _azure_world(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[AzureWorld]:
    stand_in = request.getfixturevalue("azure_process")
    await asyncio.to_thread(stand_in.order, "reset")
    world = AzureWorld(stand_in, directory)
    yield world
    await world.close()


@asynccontextmanager
async def _gcp_world(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[GcpWorld]:
    stand_in = GcpStandIn()
    await stand_in.open()
    world = GcpWorld(stand_in, directory)
    yield world
    await world.close()
    await stand_in.close()


@asynccontextmanager
async def _sky_world(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[SkyWorld]:
    world = SkyWorld(directory)
    yield world
    await world.close()


@asynccontextmanager
async def _many_world(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[ManyWorld]:
    stand_in = GcpStandIn(zones=("europe-west4-a",))
    await stand_in.open()
    second = GcpWorld(stand_in, directory / "second", region="europe-west4")
    async with _gcp_world(request, directory) as first:
        world = ManyWorld(first, second)
        await world.open()
        yield world
        await world.close()
    await second.close()
    await stand_in.close()


@asynccontextmanager
async def _sim_world(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[SimCloudWorld]:
    world = SimCloudWorld()
    world.open()
    yield world
    await world.close()


Opened = Callable[[pytest.FixtureRequest, Path], AbstractAsyncContextManager[Any]]

WORLDS: Mapping[str, Opened] = {
    "local": _local_world,
    "aws": _aws_world,
    "azure": _azure_world,
    "gcp": _gcp_world,
    "skypilot": _sky_world,
    "many": _many_world,
    "sim": _sim_world,
}
NO_SOURCES = ("skypilot", "many")
"""Their notices are those of the clouds behind them."""


@pytest.fixture
def cloud_worlds() -> tuple[str, ...]:
    """The names of all clouds."""
    return tuple(WORLDS)


@pytest.fixture(params=WORLDS)
async def cloud_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A running provider with everything that the contracts of machines and offerings need."""
    async with WORLDS[request.param](request, tmp_path) as world:
        yield world


@pytest.fixture(scope="session")
def imds() -> Iterator[Any]:
    """A stand-in for the metadata service, in a process of its own."""
    with running_imds() as imds:
        yield imds


ON_NODES: Mapping[str, Mapping[str, Any]] = {"aws": {}, "azure": {}, "gcp": {"notice": int(LONG_NOTICE)}}
"""Clouds whose nodes have an agent that reads their metadata, and what these say besides."""


@pytest.fixture(params=[name for name in WORLDS if name not in NO_SOURCES])
async def notice_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A running provider with its sources of notices."""
    async with WORLDS[request.param](request, tmp_path) as world:
        if request.param not in ON_NODES:
            yield world
            return
        said = ON_NODES[request.param]
        agents = NodeAgents(request.getfixturevalue("imds"), tmp_path, world.clock, request.param, **said)
        await agents.open()
        if request.param == "aws":
            world.hear(agents, request.getfixturevalue("aws_queue")())
        else:
            world.hear(agents)
        yield world
        await agents.close()


@pytest.fixture(scope="session")
def aws_queue(aws_shim_process: Any) -> Callable[[], str]:
    """Makes what a user has for notices, a queue and the rule that fills it; gives the queue's URL."""
    where = {"region_name": "us-east-1", "endpoint_url": aws_shim_process.url}
    sqs: Any = boto3.client("sqs", **where)
    events: Any = boto3.client("events", **where)

    def make() -> str:
        url = str(sqs.create_queue(QueueName="notices")["QueueUrl"])
        named = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        events.put_rule(Name="notices", EventPattern='{"source": ["aws.ec2"]}')
        events.put_targets(Rule="notices", Targets=[{"Id": "queue", "Arn": named["Attributes"]["QueueArn"]}])
        return url

    return make
