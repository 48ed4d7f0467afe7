"""The clouds of the contract suites: the adapters of each, and the stand-in that they talk to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from azure_pool import Adapters
from azure_pool import place as azure_place
from azure_stage import SIZE, AzureStandIn
from contract_world import PATIENCE, TAKES, TAKES_OR_MAINTAINS, WARNS, NodeAgents, ToldBy, World
from played_sky import PlayedCloud
from sky_stage import Sky, played_settings, region

from cloud.aws.clients import AwsClients
from cloud.aws.instance_status import InstanceStatusNotices
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
from cloud.many import ManyInstances, ManyOfferings
from cloud.node_notices import GCE_HOST_SECONDS
from cloud.ports import EngineCommand, LaunchRequest
from cloud.tombstones import Tombstones
from policies.model import Confidence, Instance, NoticeKind
from tests.support.gcp_stand_in import GcpStandIn

LONG_NOTICE = 120.0  # s; what machines of Google ask for


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

    def hear(self, agents: NodeAgents, queue: str) -> None:
        """Make the sources of notices; events arrive in the queue of that URL."""
        calls, clock = self._calls, self.clock
        self.agents = agents
        self.sources = (
            ToldBy(
                source=QueueNotices(calls, clock, url=queue, wait=1),
                confidence=Confidence.CONFIRMED,
                queues=True,
            ),
            ToldBy(
                source=SpotRequestNotices(calls, clock, interval=0.05),
                confidence=Confidence.CONFIRMED,
                tells=TAKES,
            ),
            ToldBy(
                source=InstanceStatusNotices(calls, clock, interval=0.05),
                confidence=Confidence.CONFIRMED,
                tells=frozenset((NoticeKind.MAINTENANCE,)),
            ),
            ToldBy(source=agents.receiver, confidence=Confidence.REPORTED, tells=WARNS),
        )

    async def close(self) -> None:
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
        self.agents.order("interrupt", node, ends=ends)

    async def take(self, node: str) -> None:
        self._shim.order("reclaim", node=node, notice_s=0.0)

    async def recommend(self, node: str) -> None:
        self._shim.order("recommend", node=node)
        self.agents.order("recommend", node)

    async def maintain(self, node: str) -> float:
        at = self.clock.now() + 3600.0
        event = {"InstanceEventId": "instance-event-0d59937288b749b32", "Code": "instance-retirement"}
        self._shim.order("set", statuses={node: {"Events": [{**event, "NotBefore": 3600.0}]}})
        told = {"EventId": event["InstanceEventId"], "Code": event["Code"], "State": "active"}
        begins = datetime.fromtimestamp(at, UTC).strftime("%d %b %Y %H:%M:%S GMT")
        self.agents.order("maintain", node, events=[{**told, "NotBefore": begins}])
        return 3600.0

    def _fault(self, action: str, **values: Any) -> None:
        self._shim.order("fault", action=action, kind="error", **values)


class AzureWorld(World):
    """The Azure adapters and the stand-in for Azure that they talk to. Its notices come from nodes alone."""

    sources = ()
    speed = 300.0  # seconds of a notice that pass in one

    def __init__(self, stand_in: AzureStandIn, directory: Path) -> None:
        self.clock = SystemClock()
        self._stand_in = stand_in
        sizes = (SIZE, "Standard_NC40ads_H100_v5")
        self._adapters = Adapters(stand_in, self.clock, directory, azure_place(instance_types=sizes))
        self.instances, self.offerings = self._adapters.instances, self._adapters.offerings

    def hear(self, agents: NodeAgents) -> None:
        """Make the source of notices."""
        self.agents = agents
        told_by = ToldBy(source=agents.receiver, confidence=Confidence.REPORTED, tells=TAKES_OR_MAINTAINS)
        self.sources = (told_by,)

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

    async def reclaim(self, node: str, notice_s: float) -> None:
        after = notice_s / self.speed
        await asyncio.to_thread(self._stand_in.order, "preempt", node=node, seconds=after)
        self.agents.order("preempt", node, after=after)

    async def maintain(self, node: str) -> float:
        self.agents.order("schedule", node, events=[["Redeploy", 900.0, "E-1", "Scheduled"]])
        return 900.0

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
            self._client(), [place], made, ledger=ledger, clock=self.clock, patience=PATIENCE
        )
        self.offerings = GcpOfferings(self._client(), [place], kinds, clock=self.clock)
        source = OperationNotices(
            self._client(), place.zones, self.clock, owned=lambda _node: True, interval=0.05
        )
        self._operations = ToldBy(source=source, confidence=Confidence.CONFIRMED, tells=TAKES)
        self.sources = (self._operations,)

    def hear(self, agents: NodeAgents) -> None:
        """Make the source that is on the nodes."""
        self.agents = agents
        reported = ToldBy(
            source=agents.receiver,
            confidence=Confidence.REPORTED,
            tells=TAKES_OR_MAINTAINS,
            counts_on=LONG_NOTICE,
        )
        self.sources = (self._operations, reported)

    def _client(self) -> GcpClient:
        # The stand-in shares the loop with its client: on a busy machine both are late.
        patient = {"timeout": PATIENCE, "connect_timeout": PATIENCE}
        return GcpClient("p", NoTokens(), endpoint=self._stand_in.url, **patient)

    async def close(self) -> None:
        await self.instances.close()
        await self.offerings.close()
        await self._operations.source.close()

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
        self._stand_in.preempt(node, notice=LONG_NOTICE)
        self.agents.order("preempt", node)

    async def maintain(self, node: str) -> float:
        self.agents.order(
            "put", node, path="instance/maintenance-event", text="TERMINATE_ON_HOST_MAINTENANCE"
        )
        return GCE_HOST_SECONDS

    async def take(self, node: str) -> None:
        self._stand_in.preempt(node, notice=0.0)


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
