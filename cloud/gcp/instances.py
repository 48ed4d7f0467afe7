"""The `Instances` port on Compute Engine, over all regions of a pool."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from cloud.errors import CloudError, Denied, Misconfigured, NotFound, Uncertain
from cloud.gcp.client import Body, GcpClient
from cloud.gcp.errors import EXISTS, codes_of, of_operation
from cloud.gcp.machines import body_of, ending_of, gone, instance_of, name_of, request_id
from cloud.gcp.places import POOL_LABEL, PROVIDER, GcpMachines, GcpRegion
from cloud.ports import Clock, LaunchRequest, console_end
from cloud.threads import WorkerThreads
from cloud.tombstones import Entry, Stage, Tombstones
from policies.model import Ending, Instance, InstanceState, Market

_RECENT: Final = 600.0  # s for which a machine that is gone is listed
_POLL: Final = 0.5  # s between two looks at a launch or a start
_LAST_WORDS: Final = 3.0  # s for a look at the console before a machine is ended
_CONSOLES: Final = 64  # of machines that were ended here, which Google forgets
_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_UNSURE: Final = ("", "PROVISIONING")  # statuses of a machine that may still find no room
_UP: Final = ("STAGING", "RUNNING")

_T = TypeVar("_T")


class GcpInstances:
    """Machines of Compute Engine that carry our pool label. See `cloud.ports.Instances` for the contract.

    A machine's name is made of its token, so Google makes one of it while it exists; afterwards the ledger
    remembers, and Google's own record of operations (14 days) where the ledger was lost. Every request
    carries a requestId, with which the same call is done once. Capacity is refused by the operation, some
    seconds after the request was accepted: a launch waits for that or for the first sign that the machine
    has its place, for at most `patience` seconds, and is Uncertain then.

    Zones are asked one by one; a zone that does not answer fails the list of its region, and no other.
    """

    def __init__(
        self,
        client: GcpClient,
        regions: Sequence[GcpRegion],
        machines: GcpMachines,
        *,
        ledger: Tombstones,
        clock: Clock,
        patience: float = 8.0,
    ) -> None:
        self._client, self._made = client, machines
        self._places = {place.region: place for place in regions}
        self._region_of_zone = {zone: place for place in regions for zone in place.zones}
        self.regions = tuple(self._places)
        self._ledger, self._clock, self._patience = ledger, clock, patience
        self._threads = WorkerThreads("gcp-ledger", 1)
        self._turns: dict[str, asyncio.Lock] = {}
        self._zones: dict[str, str] = {}  # of machines that were seen
        self._ended: dict[str, tuple[Ending, str, float | None]] = {}
        self._ending: set[str] = set()  # whose end was asked for here
        self._consoles: dict[str, str] = {}

    async def launch(self, request: LaunchRequest) -> Instance:
        """Launch one machine. See the port for what is raised and when."""
        place = self._places.get(request.placement.region)
        if place is None or request.placement.provider != PROVIDER:
            region = request.placement.region
            raise Misconfigured(f"{request.placement}: this pool has no region {region} on Google Cloud")
        if request.placement.zone not in place.zones:
            raise Misconfigured(f"{request.placement}: the pool may not use {request.placement.zone}")
        async with self._turn_of(request.token):
            return await self._launch(request, place)

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        """All machines in a region labelled with the pool, and those that ended lately by the ledger."""
        place = self._places[region]
        parts = await asyncio.gather(*(self._listed(pool, zone) for zone in place.zones))
        found = {instance.id: instance for part in parts for instance in part}
        entries = await self._in_thread(partial(self._ledger.entries, pool))
        here = [entry for entry in entries if entry.placement.zone in place.zones]
        self._forget(here, found, place)
        ended = await asyncio.gather(*(self._missing(entry, found) for entry in here))
        return (*found.values(), *(instance for instance in ended if instance is not None))

    async def terminate(self, node: str) -> None:
        """Delete a machine. What it wrote on its console is kept here: Google forgets it with the machine."""
        with contextlib.suppress(NotFound):
            zone = await self._zone_of(node)
            with contextlib.suppress(CloudError, TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self._written(zone, node)
            await self._client.change("DELETE", f"zones/{zone}/instances/{node}")
            self._ending.add(node)

    async def stop(self, node: str) -> None:
        """Stop a machine. One on spot would be taken by that: Misconfigured."""
        zone = await self._zone_of(node)
        machine = await self._needed(zone, node)
        if self._instance(zone, machine).placement.market is Market.SPOT:
            raise Misconfigured(f"{node} is a spot machine, which cannot be started again once it stops")
        await self._client.change("POST", f"zones/{zone}/instances/{node}/stop")

    async def start(self, node: str) -> None:
        """Start a stopped machine; a refusal for capacity shows in the operation, which is waited for."""
        zone = await self._zone_of(node)
        await self._needed(zone, node)
        operation = await self._client.change("POST", f"zones/{zone}/instances/{node}/start")
        operation, _ = await self._settled(zone, node, operation)
        failure = of_operation(operation, f"start of {node}")
        if failure is not None:
            raise failure

    async def console(self, node: str) -> str:
        """The serial port; of a machine that was ended here, what it had written by then."""
        if node in self._consoles and node in self._ending:
            return self._consoles[node]
        try:
            return await self._written(await self._zone_of(node), node)
        except NotFound:
            if node in self._consoles:
                return self._consoles[node]
            raise

    async def close(self) -> None:
        """Release connections; they are made again when something is asked. Idempotent."""
        await self._client.close()

    # -- launches ----------------------------------------------------------------------------------

    async def _launch(self, request: LaunchRequest, place: GcpRegion) -> Instance:
        known = await self._in_thread(partial(self._ledger.find, request.token))
        entry = await self._in_thread(partial(self._ledger.ask, request, name_of(request)))
        if entry.stage is Stage.ENDED:
            return await self._gone(entry)
        if known is not None and known.stage is not Stage.REFUSED:  # the call before was not answered
            machine = await self._get(entry)
            if machine is not None and machine.get("status") not in _UNSURE:
                return await self._launched(entry, machine)
            if machine is None and entry.stage is Stage.MADE:
                return await self._gone(entry)
        if known is None or known.stage is Stage.ASKED:
            before = await self._made_before(entry)
            if before is not None:
                return before
        return await self._insert(request, entry, place)

    async def _insert(self, request: LaunchRequest, entry: Entry, place: GcpRegion) -> Instance:
        zone = entry.placement.zone
        template = {"sourceInstanceTemplate": self._made.template} if self._made.template else {}
        body = body_of(request, entry.name, place, self._made)
        path = f"zones/{zone}/instances"
        try:
            operation = await self._client.change("POST", path, body, requestId=request_id(entry), **template)
        except CloudError as error:
            if codes_of(error) & EXISTS:
                return await self._launched(entry, await self._needed(zone, entry.name))
            if codes_of(error) and not isinstance(error, Uncertain):
                await self._note(entry, Stage.REFUSED)
            raise _as_launch(error) from error
        return await self._outcome(entry, operation)

    async def _outcome(self, entry: Entry, operation: Body) -> Instance:
        """What an insertion comes to, once that can be said. Raises Uncertain where it cannot in time."""
        operation, machine = await self._settled(entry.placement.zone, entry.name, operation)
        failure = of_operation(operation, str(entry.placement))
        if failure is not None:
            await self._note(entry, Stage.REFUSED)
            raise failure
        if machine is not None and machine.get("status") not in _UNSURE:
            return await self._launched(entry, machine)
        if machine is None and operation.get("status") == "DONE":
            return await self._gone(entry)
        raise Uncertain(f"{entry.placement}: Google has not said within time whether there is room")

    async def _made_before(self, entry: Entry) -> Instance | None:
        """The machine that a token has launched by Google's record of operations; None where none did."""
        made = [
            operation
            for operation in await self._operations(entry)
            if operation.get("operationType") == "insert" and of_operation(operation, "") is None
        ]
        if not made:
            return None
        return await self._outcome(entry, max(made, key=lambda each: str(each.get("insertTime"))))

    async def _settled(self, zone: str, node: str, operation: Body) -> tuple[Body, Body | None]:
        """An operation that has ended, or the machine once it has its place; both as they are in the end."""
        until = self._clock.steady() + self._patience
        path = f"zones/{zone}/operations/{operation['name']}"
        while True:
            try:
                if operation.get("status") != "DONE":
                    operation = await self._client.read(path)
                machine = None
                if of_operation(operation, "") is None:
                    machine = await self._client.read(f"zones/{zone}/instances/{node}")
            except NotFound:
                machine = None
            except Denied:
                raise
            except CloudError as error:  # what was asked for goes on, whoever can see it
                raise Uncertain(str(error)) from error
            up = machine is not None and machine.get("status") in _UP
            if up or operation.get("status") == "DONE" or self._clock.steady() >= until:
                return operation, machine
            await self._clock.sleep(_POLL)

    async def _launched(self, entry: Entry, machine: Body) -> Instance:
        await self._note(entry, Stage.MADE, str(machine.get("id") or ""))
        return self._instance(entry.placement.zone, machine)

    async def _gone(self, entry: Entry) -> Instance:
        """The machine of a token that is no more; nothing is launched for it again."""
        entry = await self._note(entry, Stage.ENDED)
        if entry.name not in self._ended:
            self._ended[entry.name] = ending_of(await self._operations(entry))
        ending, why, at = self._ended[entry.name]
        return gone(entry, ending, why, at)

    # -- looks -------------------------------------------------------------------------------------

    async def _listed(self, pool: str, zone: str) -> Sequence[Instance]:
        labelled = f'labels.{POOL_LABEL}="{pool}"'
        machines = self._client.pages(f"zones/{zone}/instances", filter=labelled)
        return [self._instance(zone, machine) async for machine in machines]

    async def _missing(self, entry: Entry, found: dict[str, Instance]) -> Instance | None:
        """What became of a machine that was launched and is not listed; None for nothing to say."""
        if entry.name in found:
            if entry.stage is Stage.ASKED and found[entry.name].state is InstanceState.RUNNING:
                await self._note(entry, Stage.MADE)
            return None
        if entry.stage is Stage.ENDED:
            return await self._gone(entry) if self._clock.now() - entry.at < _RECENT else None
        if entry.stage is not Stage.MADE or await self._get(entry) is not None:  # a list may lag
            return None
        return await self._gone(entry)

    def _forget(self, entries: Sequence[Entry], found: dict[str, Instance], place: GcpRegion) -> None:
        """Keep what is there or went lately: a pool that replaces nodes for months must not grow."""
        now = self._clock.now()
        keep = {*found, *(e.name for e in entries if e.stage is not Stage.ENDED or now - e.at < _RECENT)}
        old = [node for node, zone in self._zones.items() if zone in place.zones and node not in keep]
        for node in old:
            del self._zones[node]
            self._ending.discard(node)
            self._ended.pop(node, None)

    def _instance(self, zone: str, machine: Body) -> Instance:
        instance = instance_of(machine, self._region_of_zone[zone], self._made.engine_port)
        self._zones[instance.id] = zone
        return instance

    async def _get(self, entry: Entry) -> Body | None:
        try:
            return await self._needed(entry.placement.zone, entry.name)
        except NotFound:
            return None

    async def _needed(self, zone: str, node: str) -> Body:
        return await self._client.read(f"zones/{zone}/instances/{node}")

    async def _operations(self, entry: Entry) -> Sequence[Body]:
        """What was done to the machine of that name; Google keeps it for 14 days."""
        wanted = f'targetLink eq ".*/instances/{entry.name}"'
        path = f"zones/{entry.placement.zone}/operations"
        return [operation async for operation in self._client.pages(path, filter=wanted)]

    async def _written(self, zone: str, node: str) -> str:
        answer = await self._client.read(f"zones/{zone}/instances/{node}/serialPort", port="1")
        text = console_end(str(answer.get("contents") or ""))
        self._consoles.pop(node, None)
        self._consoles[node] = text
        while len(self._consoles) > _CONSOLES:
            del self._consoles[next(iter(self._consoles))]
        return text

    async def _zone_of(self, node: str) -> str:
        """The zone of a machine. Raises NotFound where no zone of the pool has it."""
        if node in self._zones:
            return self._zones[node]
        entry = await self._in_thread(partial(self._ledger.named, node))
        if entry is not None:
            return entry.placement.zone
        if _NAME.fullmatch(node):
            answer = await self._client.read("aggregated/instances", filter=f'name="{node}"')
            for scope, part in (answer.get("items") or {}).items():
                zone = str(scope).rpartition("/")[2]
                if part.get("instances") and zone in self._region_of_zone:
                    return zone
        raise NotFound(f"{node}: no zone of this pool has it")

    # -- the ledger --------------------------------------------------------------------------------

    async def _note(self, entry: Entry, stage: Stage, machine: str = "") -> Entry:
        return await self._in_thread(partial(self._ledger.note, entry.token, stage, machine))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await self._threads.run(work)

    @contextlib.asynccontextmanager
    async def _turn_of(self, token: str) -> AsyncIterator[None]:
        """One launch of a token at a time."""
        lock = self._turns.setdefault(token, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._turns.get(token) is lock:
                del self._turns[token]


def _as_launch(error: CloudError) -> CloudError:
    """What a refused launch names and is not there is a matter of the configuration."""
    return Misconfigured(str(error)) if isinstance(error, NotFound) else error
