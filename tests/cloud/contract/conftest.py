"""Clouds for the contract suites of `Instances`, `Offerings` and `Notices`.

Another provider joins by a class with the attributes and methods of `LocalWorld`, named in `cloud_world`.
"""

import asyncio
import json
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest

# Also used by the tests of the node agent.
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from azure_pool import Adapters
from azure_pool import place as azure_place
from azure_stage import SIZE, AzureStandIn
from engine_bench import http, kind, server, shared, victim
from node_bench import Machine, Served, running_imds
from played_sky import PlayedCloud
from sky_stage import Sky, played_settings, region

from cloud.aws.clients import AwsClients
from cloud.aws.instances import AwsInstances
from cloud.aws.notice_calls import NoticeCalls
from cloud.aws.notice_queue import QueueNotices
from cloud.aws.offerings import AwsOfferings
from cloud.aws.places import AwsRegion
from cloud.aws.spot_requests import SpotRequestNotices
from cloud.clock import SystemClock
from cloud.gcp.client import GcpClient
from cloud.gcp.instances import GcpInstances
from cloud.gcp.notices import OperationNotices
from cloud.gcp.offerings import GcpOfferings
from cloud.gcp.places import GcpMachines, GcpRegion
from cloud.gcp.tokens import NoTokens
from cloud.local.config import Channels, ConstantSource, InstanceType, LocalCloudConfig, ZoneConfig
from cloud.local.connection import LocalCloud
from cloud.local.instances import LocalInstances
from cloud.local.notices import LocalEventFeed, LocalMetadata
from cloud.local.offerings import LocalOfferings
from cloud.local.server import run_local_cloud
from cloud.many import ManyInstances, ManyOfferings
from cloud.ports import EngineCommand, LaunchRequest
from cloud.tombstones import Tombstones
from policies.model import Confidence, Instance, Market, Offering
from tests.support.gcp_stand_in import GcpStandIn

__all__ = ("http", "kind", "server", "shared", "victim")  # fixtures of the engine suites

PATIENCE = 30.0  # s until a condition counts as never coming true


@dataclass(frozen=True, kw_only=True)
class ToldBy:
    """A source of notices: how far it may be believed, whether it also recommends, whether it queues."""

    source: Any
    confidence: Confidence
    recommends: bool = True
    queues: bool = False


class World:
    """What the suites need of a provider, whichever it is."""

    clock: SystemClock
    instances: Any
    offerings: Any
    sources: Sequence[ToldBy]
    chooses_notice = True  # whether `reclaim` decides how long the notice is
    keeps_consoles = True

    def watch(self, instance: Instance) -> None:
        """Tell the sources that ask each node whom to ask."""

    async def sold(self) -> list[Offering]:
        """Everything that the provider sells."""
        parts = [await self.offerings.list(part) for part in self.offerings.parts()]
        assert not any(part.problem for part in parts)
        return [offering for part in parts for offering in part.offerings]

    async def request(
        self, token: str, market: Market = Market.ON_DEMAND, pool: str = "pool"
    ) -> LaunchRequest:
        """A request that the provider can meet."""
        placement = next(o.placement for o in await self.sold() if o.placement.market is market)
        command = EngineCommand(argv=("sleep", "600"), stop_grace=5.0, build="b")
        return LaunchRequest(token=token, pool=pool, placement=placement, command=command)

    async def launch_writing(self, text: str) -> Instance:
        """A machine that writes this on its console and goes on."""
        raise NotImplementedError

    async def until_written(self, node: str, last: str = "") -> str:
        """Wait until a machine's console ends in these words, or with something."""
        async with asyncio.timeout(PATIENCE):
            while not (text := await self.instances.console(node)).endswith(last) or not text:
                await self.clock.sleep(0.01)
        return str(text)

    async def listed(self, pool: str) -> tuple[Instance, ...]:
        """All machines of a pool, region by region."""
        parts = [await self.instances.list(pool, region) for region in self.instances.regions]
        return tuple(instance for part in parts for instance in part)

    async def until_state(self, node: str, *states: str, pool: str = "pool"):
        """Wait until the provider lists a node in one of the states; gives the instance."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for instance in await self.listed(pool):
                    if instance.id == node and instance.state in states:
                        return instance
                await self.clock.sleep(0.01)


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
        await self._order("reclaim", node=node)

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


class AwsWorld(World):
    """The AWS adapters and the stand-in for AWS that they talk to."""

    chooses_notice = False

    def __init__(self, shim: Any, clients: AwsClients, place: AwsRegion) -> None:
        self.clock = SystemClock()
        self._shim = shim
        self.instances = AwsInstances([(clients, place)], clock=self.clock)
        self.offerings = AwsOfferings([(clients, place)], clock=self.clock)
        self._calls = NoticeCalls(clients)
        self.sources = ()
        self._directory: Path | None = None
        self._imds: Any = None
        self._served: Any = None
        self._machines: dict[str, Machine] = {}

    async def hear(self, queue: str, imds: Any, directory: Path) -> None:
        """Make the sources of notices; events arrive in the queue of that URL.

        A node that is watched gets metadata at the stand-in `imds`, and an agent that keeps its files in
        the directory.
        """
        calls, clock = self._calls, self.clock
        self._imds, self._directory, self._served = imds, directory, Served(clock)
        await self._served.open()
        self.sources = (
            ToldBy(
                source=QueueNotices(calls, clock, url=queue, wait=1),
                confidence=Confidence.CONFIRMED,
                queues=True,
            ),
            ToldBy(
                source=SpotRequestNotices(calls, clock, interval=0.05),
                confidence=Confidence.CONFIRMED,
                recommends=False,
            ),
            ToldBy(source=self._served.receiver, confidence=Confidence.REPORTED),
        )

    def watch(self, instance: Instance) -> None:
        if self._directory is not None:
            machine = Machine(self._imds, self._directory, id=instance.id)
            self._machines[instance.id] = machine
            machine.start("--url", self._served.url)

    async def close(self) -> None:
        for machine in self._machines.values():
            machine.close()
        if self._served is not None:
            await self._served.close()
        for told_by in self.sources:
            await told_by.source.close()
        await self._calls.close()
        await self.instances.close()
        await self.offerings.close()

    async def launch_writing(self, text: str) -> Instance:
        launched = await self.instances.launch(await self.request("t-1"))
        self._shim.order("set", console={launched.id: text})
        return launched

    async def refuse_launches(self, times: int) -> None:
        for action in ("RunInstances", "StartInstances"):
            self._fault(action, code="InsufficientInstanceCapacity", status=500, times=times)

    async def lose_answer(self, call: str) -> None:
        action = {"launch": "RunInstances", "terminate": "TerminateInstances"}[call]
        self._shim.order("fault", action=action, kind="lose")

    async def fail_list(self) -> None:
        self._fault("DescribeInstances", code="InternalError", status=500)

    async def throttle(self, calls: int) -> None:
        self._fault("*", code="RequestLimitExceeded", status=503, times=calls)

    async def reclaim(self, node: str, notice_s: float) -> None:
        ends = self.clock.now() + 120.0
        self._shim.order("reclaim", node=node, notice_s=notice_s)
        if node in self._machines:
            self._machines[node].order("interrupt", ends=ends)

    async def take(self, node: str) -> None:
        self._shim.order("reclaim", node=node, notice_s=0.0)

    async def recommend(self, node: str) -> None:
        self._shim.order("recommend", node=node)
        if node in self._machines:
            self._machines[node].order("recommend")

    def _fault(self, action: str, **values: Any) -> None:
        self._shim.order("fault", action=action, kind="error", **values)


class AzureWorld(World):
    """The Azure adapters and the stand-in for Azure that they talk to. Its notices come from nodes alone."""

    sources = ()

    def __init__(self, stand_in: AzureStandIn, directory: Path) -> None:
        self.clock = SystemClock()
        self._stand_in = stand_in
        sizes = (SIZE, "Standard_NC40ads_H100_v5")
        self._adapters = Adapters(stand_in, self.clock, directory, azure_place(instance_types=sizes))
        self.instances, self.offerings = self._adapters.instances, self._adapters.offerings

    async def close(self) -> None:
        await self._adapters.close()

    async def launch_writing(self, text: str) -> Instance:
        launched = await self.instances.launch(await self.request("t-1"))
        await asyncio.to_thread(self._stand_in.order, "console", node=launched.id, text=text)
        return launched

    async def refuse_launches(self, times: int) -> None:
        for action in ("create", "start"):
            await self._fault(action, code="SkuNotAvailable", status=409, times=times)

    async def lose_answer(self, call: str) -> None:
        action = {"launch": "create", "terminate": "delete"}[call]
        await self._fault(action, kind="lose")

    async def fail_list(self) -> None:
        await self._fault("list", code="InternalServerError", status=500)

    async def throttle(self, calls: int) -> None:
        await self._fault("*", code="OperationThrottled", status=429, times=calls, retry_after=1)

    async def take(self, node: str) -> None:
        await asyncio.to_thread(self._stand_in.order, "evict", node=node)

    async def _fault(self, action: str, **values: Any) -> None:
        await asyncio.to_thread(self._stand_in.order, "fault", action=action, **values)


class GcpWorld(World):
    """The adapters of Google Cloud and the stand-in that they talk to."""

    chooses_notice = False

    def __init__(self, stand_in: GcpStandIn, directory: Path, region: str = "us-central1") -> None:
        self.clock = SystemClock()
        self._stand_in = stand_in
        kinds = ("g2-standard-4", "g2-standard-24")
        place = GcpRegion(region=region, zones=stand_in.zones, subnetwork="nodes")
        if region != "us-central1":  # the stand-in's catalogue has no other
            place = replace(
                place, on_demand_prices=dict.fromkeys(kinds, 3.0), spot_prices=dict.fromkeys(kinds, 1.0)
            )
        made = GcpMachines(instance_types=kinds, engine_port=8000, image="projects/i/global/images/family/f")
        ledger = Tombstones(directory / "gcp.ledger", self.clock)
        self.instances = GcpInstances(
            self._client(), [place], made, ledger=ledger, clock=self.clock, patience=10.0
        )
        self.offerings = GcpOfferings(self._client(), [place], kinds, clock=self.clock)
        source = OperationNotices(
            self._client(), place.zones, self.clock, owned=lambda _node: True, interval=0.05
        )
        self.sources = (ToldBy(source=source, confidence=Confidence.CONFIRMED, recommends=False),)

    def _client(self) -> GcpClient:
        return GcpClient("p", NoTokens(), endpoint=self._stand_in.url)

    async def close(self) -> None:
        await self.instances.close()
        await self.offerings.close()
        await self.sources[0].source.close()

    async def launch_writing(self, text: str) -> Instance:
        launched = await self.instances.launch(await self.request("t-1"))
        self._stand_in.consoles[launched.id] = text
        return launched

    async def refuse_launches(self, times: int) -> None:
        self._stand_in.no_room = times

    async def lose_answer(self, call: str) -> None:
        match = {"launch": "^POST .*/instances$", "terminate": "^DELETE "}[call]
        # aiohttp sends what may be sent twice once more where a kept connection closed
        self._stand_in.fault(match, times=2 if call == "terminate" else 1)

    async def fail_list(self) -> None:
        self._stand_in.fault("^GET .*/instances$", status=500, reason="backendError")

    async def throttle(self, calls: int) -> None:
        self._stand_in.fault(
            "^POST .*/instances$|/serialPort$", times=calls, status=403, reason="rateLimitExceeded"
        )

    async def reclaim(self, node: str, notice_s: float) -> None:
        self._stand_in.preempt(node, notice=120.0)

    async def take(self, node: str) -> None:
        self._stand_in.preempt(node, notice=0.0)

    async def recommend(self, node: str) -> None:
        """Google recommends nothing."""


@pytest.fixture
async def gcp(tmp_path: Path) -> AsyncIterator[GcpWorld]:
    """The stand-in for Google Cloud with nothing in it, and the adapters."""
    stand_in = GcpStandIn()
    await stand_in.open()
    world = GcpWorld(stand_in, tmp_path)
    yield world
    await world.close()
    await stand_in.close()


class SkyWorld(World):
    """The adapters through SkyPilot, whose helper is played, on a cloud that it plays."""

    keeps_consoles = False

    def __init__(self, directory: Path) -> None:
        self.clock, home = SystemClock(), directory / "home"
        self._cloud = PlayedCloud(home)
        self._sky = Sky(
            played_settings(home),
            [region(instance_types=("g6.xlarge", "g5.xlarge"))],
            self.clock,
            directory / "launches",
        )
        self.instances, self.offerings, self.sources = self._sky.instances, self._sky.offerings, ()

    async def close(self) -> None:
        await self._sky.close()
        self._cloud.close()

    async def refuse_launches(self, times: int) -> None:
        for do in ("launch", "start"):
            self._cloud.fault(do, "refuse", "no-capacity", times)

    async def lose_answer(self, call: str) -> None:
        self._cloud.fault(call, "lose")

    async def fail_list(self) -> None:
        self._cloud.fault("look", "refuse", "error")

    async def throttle(self, calls: int) -> None:
        self._cloud.fault("*", "refuse", "throttled", calls)

    async def take(self, node: str) -> None:
        self._cloud.take(node)


class ManyWorld(World):
    """Two providers as one. What the suites do happens at the first; the second has its own machine."""

    sources = ()

    def __init__(self, first: GcpWorld, second: GcpWorld) -> None:
        self.clock, self._first, self._second = first.clock, first, second
        self.instances = ManyInstances({"first": first.instances, "second": second.instances})
        self.offerings = ManyOfferings({"first": first.offerings, "second": second.offerings})

    async def open(self) -> None:
        command = EngineCommand(argv=("sleep", "600"))
        sold = (await self._second.sold())[0]
        request = LaunchRequest(token="t-0", pool="others", placement=sold.placement, command=command)
        await self.instances.launch(request)

    async def close(self) -> None:
        await self.instances.close()
        await self.offerings.close()

    def __getattr__(self, name: str) -> Any:
        """What happens to a provider happens to the first."""
        return getattr(self._first, name)

    async def launch_writing(self, text: str) -> Instance:
        return await self._first.launch_writing(text)


@asynccontextmanager
async def _many_world(gcp: GcpWorld, tmp_path: Path) -> AsyncIterator[ManyWorld]:
    stand_in = GcpStandIn(zones=("europe-west4-a",))
    await stand_in.open()
    second = GcpWorld(stand_in, tmp_path / "second", region="europe-west4")
    world = ManyWorld(gcp, second)
    await world.open()
    yield world
    await world.close()
    await second.close()
    await stand_in.close()


@pytest.fixture(params=["local", "aws", "azure", "gcp", "skypilot", "many"])
async def cloud_world(request: pytest.FixtureRequest, tmp_path: Path, gcp: GcpWorld) -> AsyncIterator[World]:
    """A running provider with everything that the contracts of machines and offerings need."""
    if request.param == "gcp":
        yield gcp
        return
    if request.param == "many":
        async with _many_world(gcp, tmp_path) as many:
            yield many
        return
    if request.param == "azure":
        stand_in = request.getfixturevalue("azure_process")
        await asyncio.to_thread(stand_in.order, "reset")
        azure = AzureWorld(stand_in, tmp_path)
        yield azure
        await azure.close()
        return
    if request.param == "aws":
        aws = aws_world(request)
        yield aws
        await aws.close()
        return
    if request.param == "skypilot":
        sky = SkyWorld(tmp_path)
        yield sky
        await sky.close()
        return
    async with _local_world() as local:
        yield local


@pytest.fixture(scope="session")
def imds() -> Iterator[Any]:
    """A stand-in for the metadata service, in a process of its own."""
    with running_imds() as imds:
        yield imds


@pytest.fixture(params=["local", "aws", "gcp"])
async def notice_world(request: pytest.FixtureRequest, tmp_path: Path, gcp: GcpWorld) -> AsyncIterator[World]:
    """A running provider with its sources of notices."""
    if request.param == "gcp":
        yield gcp
        return
    if request.param == "aws":
        aws = aws_world(request)
        await aws.hear(request.getfixturevalue("aws_queue")(), request.getfixturevalue("imds"), tmp_path)
        yield aws
        await aws.close()
        return
    async with _local_world() as local:
        yield local


def aws_world(request: pytest.FixtureRequest) -> AwsWorld:
    """The stand-in for AWS with nothing in it, and the adapters."""
    shim = request.getfixturevalue("aws_shim")
    return AwsWorld(shim, request.getfixturevalue("aws_clients"), request.getfixturevalue("aws_place"))


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


@asynccontextmanager
async def _local_world() -> AsyncIterator[LocalWorld]:
    # Not tmp_path: a unix socket's path must be short.
    directory = Path(tempfile.mkdtemp(prefix="cloud-"))
    world = LocalWorld(directory)
    try:
        await world.open()
        yield world
    finally:
        await world.close()
        shutil.rmtree(directory, ignore_errors=True)
