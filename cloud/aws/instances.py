"""The `Instances` port on EC2, over all regions of a pool."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cloud.aws.clients import Answer, AwsClients, Lane
from cloud.aws.errors import code_of
from cloud.aws.machines import instance_of, is_machine, launch_parameters
from cloud.aws.pacing import LIMITS, Pace
from cloud.aws.places import POOL_TAG, PROVIDER, AwsRegion
from cloud.errors import CloudError, Denied, Misconfigured, NotFound, Throttled, Uncertain
from cloud.ports import Clock, LaunchRequest, console_end
from policies.model import Instance, InstanceState

PAGE = 1000  # machines a page, the most that EC2 gives

_FILTER_VALUES = 200  # the most values that a filter takes
_YOUNG = 120.0  # s after a launch during which NotFound means that EC2's descriptions lag
_NO_LATEST = ("UnsupportedOperation", "IncorrectInstanceState", "InvalidParameterCombination")
"""Codes by which EC2 says that it cannot ask this machine itself, as of types that are not built on Nitro."""
_WRONG_STATE = ("IncorrectInstanceState", "IncorrectState")
"""Codes by which EC2 says that a machine is there, and not as it has to be for what is asked."""
_GONE = (InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN)


class AwsInstances:
    """EC2 instances that carry our pool tag. See `cloud.ports.Instances` for the contract.

    One intent is one RunInstances call with the token as its ClientToken, for one market, type, subnet and
    launch-template version, so an answer says exactly what was refused and the same call again is the same
    launch. Tags travel in that call: there is no moment in which a machine of ours carries none. Each region
    is asked by itself; a machine whose region is not known here, as after a restart, is looked for in all at
    once.

    Changes keep to EC2's rates, see `cloud.aws.pacing`: one waits for its turn for at most `patience`
    seconds, and is Throttled at once, without a call, when its turn is farther off. Ends of machines wait
    for no launch: neither for its turn nor for its thread.
    """

    def __init__(
        self,
        regions: Sequence[tuple[AwsClients, AwsRegion]],
        *,
        clock: Clock,
        patience: float = 5.0,
    ) -> None:
        self._clients = {place.region: clients for clients, place in regions}
        self._places = {place.region: place for _, place in regions}
        self.regions = tuple(self._places)
        self._shares = [clients.share() for clients, _ in regions]
        self._clock, self._patience = clock, patience
        self._paces = {
            (name, operation): Pace(limit) for name in self.regions for operation, limit in LIMITS.items()
        }
        self._region_of: dict[str, str] = {}
        self._launched_at: dict[str, float] = {}

    async def launch(self, request: LaunchRequest) -> Instance:
        """Launch one machine. See the port for what is raised and when."""
        place = self._places.get(request.placement.region)
        if place is None or request.placement.provider != PROVIDER:
            raise Misconfigured(
                f"{request.placement}: this pool has no region {request.placement.region} on AWS"
            )
        subnet = place.subnets.get(request.placement.zone)
        if subnet is None:
            raise Misconfigured(f"{request.placement}: no subnet is configured for {request.placement.zone}")
        parameters = launch_parameters(request, place, subnet)
        try:
            answer = await self._call(place.region, "run_instances", **parameters)
        except CloudError as error:
            if not code_of(error).startswith("Idempotent"):
                raise
            return await self._launched_before(request, place, error)
        machine = answer["Instances"][0]
        self._remember(machine, place)
        return instance_of(machine, place)

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        """All machines in a region tagged with the pool; any page that fails fails the whole list."""
        tagged = [{"Name": f"tag:{POOL_TAG}", "Values": [pool]}]
        machines = tuple(await self._described(self._places[region], tagged))
        self._forget_old(region, machines)
        return machines

    async def terminate(self, node: str) -> None:
        """Ask for the end of a machine; a young one that EC2 does not show yet is Uncertain, not gone."""
        with contextlib.suppress(NotFound):
            await self._change(node, "terminate_instances")

    async def stop(self, node: str) -> None:
        """Stop a machine. A one-time spot instance cannot be stopped: Misconfigured."""
        settled = (InstanceState.STOPPED, InstanceState.STOPPING)
        await self._turn(node, "stop_instances", settled)

    async def start(self, node: str) -> None:
        """Start a stopped machine."""
        settled = (InstanceState.RUNNING, InstanceState.PENDING)
        await self._turn(node, "start_instances", settled)

    async def console(self, node: str) -> str:
        """What the machine wrote until now, where its type tells that, or what EC2 has kept of it.

        EC2 keeps the last 64 KB, as of a while after the boot and of the end, for an hour; an end before the
        machine ran, as for a key that may not be used, leaves nothing.
        """
        region = await self._find(node)
        for latest in (True, False):
            try:
                answer = await self._clients[region].call(
                    Lane.CONSOLE, "ec2", "get_console_output", lost=CloudError, InstanceId=node, Latest=latest
                )
            except CloudError as error:
                if not latest or code_of(error) not in _NO_LATEST:
                    raise
                continue
            if written := console_end(str(answer.get("Output", ""))):  # boto3 has decoded it
                return written
        return ""

    async def owners(self, pool: str, targets: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        """Which of these targets (instance id or private address, port) are machines of the pool.

        For target groups, which know nothing of tags. Machines that ended own no address any more. Raises
        CloudError.
        """
        tagged: Mapping[str, Any] = {"Name": f"tag:{POOL_TAG}", "Values": [pool]}
        names = sorted({name for name, _ in targets})
        found: dict[str, str] = {}
        for field in ("instance-id", "private-ip-address"):
            asked = [name for name in names if name.startswith("i-") == (field == "instance-id")]
            for at in range(0, len(asked), _FILTER_VALUES):
                filters = [tagged, {"Name": field, "Values": asked[at : at + _FILTER_VALUES]}]
                parts = await asyncio.gather(*(self._described(p, filters) for p in self._places.values()))
                for instance in (instance for part in parts for instance in part):
                    found[instance.id] = instance.id
                    if instance.state not in _GONE:
                        found[instance.address.rpartition(":")[0]] = instance.id
        return {(name, port): found[name] for name, port in targets if name in found}

    async def close(self) -> None:
        """Give up this adapter's share of the clients. Touches no machine. Idempotent."""
        for share in self._shares:
            await share.close()

    async def _launched_before(
        self, request: LaunchRequest, place: AwsRegion, refusal: CloudError
    ) -> Instance:
        """The instance of a token that EC2 will not take again: it ended, or the launch was another one.

        A token means one launch, whatever has been configured since, so nothing is launched here.
        """
        mine = [{"Name": "client-token", "Values": [request.token]}]
        found = await self._described(place, mine)
        for instance in found:
            if instance.pool in ("", request.pool):
                return replace(instance, pool=request.pool, token=request.token)
        if code_of(refusal) == "IdempotentInstanceTerminated":
            # It ended so long ago that EC2 no longer describes it.
            return Instance(
                id="",
                pool=request.pool,
                token=request.token,
                placement=request.placement,
                state=InstanceState.TERMINATED,
                launched_at=self._clock.now(),
                price=None,
                standby=request.standby,
            )
        raise Uncertain(
            f"token {request.token} was used for another launch that EC2 does not show yet: {refusal}"
        )

    async def _turn(self, node: str, operation: str, settled: tuple[InstanceState, ...]) -> None:
        """Stop or start; a machine that is already there, or on its way, is success."""
        try:
            await self._change(node, operation)
        except CloudError as error:
            if code_of(error) not in _WRONG_STATE:
                raise
            state = await self._state(node)
            if state is None or state in _GONE:
                raise NotFound(f"{node} has ended") from None
            if state not in settled:
                raise CloudError(f"{node} is {state}, so {operation} must wait") from None

    async def _state(self, node: str) -> InstanceState | None:
        """What EC2 says of one machine; None when it knows none of that id."""
        filters = [{"Name": "instance-id", "Values": [node]}]
        for instance in await self._described(self._places[await self._find(node)], filters):
            return instance.state
        return None

    async def _change(self, node: str, operation: str) -> None:
        """Ask in the region of the machine.

        Where the daemon may change by tag only, which is what its policy says, EC2 refuses a machine that is
        no more, or not yet, like one that is not ours: it looks for rights before it looks for the machine.
        So a refusal is followed by a look, but for one that speaks of the machine's state.

        Raises NotFound for a machine that is gone, Uncertain for a young one that EC2 does not show yet,
        Denied for one that is there.
        """
        try:
            await self._call(await self._find(node), operation, InstanceIds=[node])
        except NotFound as missing:
            raise self._missing(node) from missing
        except Denied as denied:
            if code_of(denied) in _WRONG_STATE:
                raise
            try:
                state = await self._state(node)
            except NotFound:
                state = None
            except CloudError:
                raise denied from denied.__cause__
            if state is None:
                raise self._missing(node) from denied
            if state in _GONE:
                raise NotFound(f"{node} has ended") from denied
            raise

    def _missing(self, node: str) -> CloudError:
        """What it means that EC2 does not know a machine."""
        if self._is_young(node):
            return Uncertain(f"{node} was launched a moment ago and EC2 does not show it yet")
        return NotFound(f"{node} is gone")

    async def _find(self, node: str) -> str:
        """The region of a machine. One that no list showed yet is looked for, in all regions at once.

        Raises NotFound when no region knows it, and what the others met when one cannot be asked.
        """
        if node in self._region_of or len(self._places) == 1:
            return self._region_of.get(node, self.regions[0])
        filters, failed = [{"Name": "instance-id", "Values": [node]}], list[CloudError]()
        looks = [asyncio.ensure_future(self._described(p, filters)) for p in self._places.values()]
        try:
            for look in asyncio.as_completed(looks):
                try:
                    await look
                except CloudError as error:
                    failed.append(error)
                if node in self._region_of:  # whatever another region answers, or does not
                    return self._region_of[node]
        finally:
            for task in looks:
                task.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
        raise failed[0] if failed else NotFound(f"{node}: no region has it")

    async def _described(self, place: AwsRegion, filters: Sequence[Mapping[str, Any]]) -> Sequence[Instance]:
        found = []
        clients = self._clients[place.region]
        async for page in clients.pages(
            Lane.LIST, "ec2", "describe_instances", Filters=filters, MaxResults=PAGE
        ):
            for reservation in page["Reservations"]:
                for machine in reservation["Instances"]:
                    if is_machine(machine):
                        self._remember(machine, place)
                        found.append(instance_of(machine, place))
        return found

    async def _call(self, region: str, operation: str, **parameters: Any) -> Answer:
        """A change, when it is its turn."""
        pace = self._paces[region, operation]
        wait = pace.turn(self._clock.steady(), patience=self._patience)
        if wait is None:
            raise Throttled(
                f"{operation} in {region}: as many wait as EC2 takes in {self._patience:g} s; not asked"
            )
        if wait > 0.0:
            try:
                await self._clock.sleep(wait)
            except asyncio.CancelledError:
                pace.give_back()
                raise
        lane = Lane.END if operation == "terminate_instances" else Lane.LAUNCH
        try:
            return await self._clients[region].call(lane, "ec2", operation, **parameters)
        except Throttled:
            pace.refused(self._clock.steady())
            raise

    def _remember(self, machine: Answer, place: AwsRegion) -> None:
        node = str(machine["InstanceId"])
        self._region_of[node] = place.region
        self._launched_at[node] = machine["LaunchTime"].timestamp()

    def _forget_old(self, region: str, listed: Sequence[Instance]) -> None:
        """Keep what is listed or young: a pool that replaces nodes for months must not grow."""
        keep = {instance.id for instance in listed}
        here = [node for node, place in self._region_of.items() if place == region]
        for node in [n for n in here if n not in keep and not self._is_young(n)]:
            del self._region_of[node]
            del self._launched_at[node]

    def _is_young(self, node: str) -> bool:
        at = self._launched_at.get(node)
        return at is not None and self._clock.now() - at < _YOUNG
