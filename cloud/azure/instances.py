"""The `Instances` port on Azure, over all regions of a pool."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final
from weakref import WeakValueDictionary

from cloud.azure.clients import COMPUTE_VERSION, AzureAccount, AzureClients, Lane
from cloud.azure.consoles import Consoles
from cloud.azure.ended import Ended
from cloud.azure.errors import code_of, was_sent
from cloud.azure.looks import Looks
from cloud.azure.machines import instance_of, is_name, launch_body, name_of, status_of
from cloud.azure.places import PROVIDER, AzureRegion
from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    NotFound,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.logger import structlog
from cloud.ports import Clock, LaunchRequest
from cloud.threads import WorkerThreads
from cloud.tombstones import Entry, Stage, Tombstones
from policies.model import Instance, InstanceState

log = structlog.get_logger("azure")

LAG: Final = 60.0
"""Seconds within which a launch whose answer was lost shows itself. Later it is taken to be none."""

_REFUSALS: Final = (InsufficientCapacity, QuotaExceeded, Throttled, Misconfigured, Denied)
_EXISTS: Final = ("PreconditionFailed", "PropertyChangeNotAllowed")
"""Codes by which Azure says that a machine of this name is there already."""

CustomData = Callable[[LaunchRequest, str], bytes]
"""What a machine is given for its first boot, by its launch and its name. Raises ValueError."""


class AzureInstances:
    """Virtual machines that carry our pool tag. See `cloud.ports.Instances` for the contract.

    A machine is named after its token, so Azure itself keeps a token from having two machines at a time. It
    forgets what it deleted, so the ledger remembers which tokens had one. A launch is asked for once: while
    it is not known what became of it, Azure is only asked for the name.

    Launches, stops, starts and ends are begun and not waited for. A launch that Azure took and could not meet
    is listed as ended for lack of capacity, and what is left of it is deleted.
    """

    def __init__(
        self,
        regions: Sequence[tuple[AzureClients, AzureRegion]],
        *,
        clock: Clock,
        ledger: Tombstones,
        custom_data: CustomData,
    ) -> None:
        self._clients = {place.region: clients for clients, place in regions}
        self._places = {place.region: place for _, place in regions}
        self.regions = tuple(self._places)
        self._shares = [clients.share() for clients, _ in regions]
        self._clock, self._ledger, self._custom_data = clock, ledger, custom_data
        self._looks = {place.region: Looks(clients, place, clock=clock) for clients, place in regions}
        self._ended = Ended(clock)
        self._consoles = Consoles()
        self._files = WorkerThreads("azure-files", 2)
        self._launching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._clearing: dict[str, asyncio.Task[None]] = {}

    async def launch(self, request: LaunchRequest) -> Instance:
        """Launch one machine. See the port for what is raised and when."""
        place = self._places.get(request.placement.region)
        if place is None or request.placement.provider != PROVIDER:
            raise Misconfigured(
                f"{request.placement}: this pool has no region {request.placement.region} on Azure"
            )
        lock = self._launching.get(request.token)
        if lock is None:
            lock = self._launching[request.token] = asyncio.Lock()
        async with lock:
            return await self._launch(request, place)

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        """All machines in a region tagged with the pool; whatever cannot be read fails the whole list."""
        place = self._places[region]
        entries = {entry.name: entry for entry in await self._filed(lambda: self._ledger.entries(pool))}
        machines = tuple(map(self._ended.seen, await self._looks[region].machines(pool, entries)))
        for machine in machines:
            known = entries.get(machine.id)
            if known is not None and known.stage in (Stage.ASKED, Stage.REFUSED):
                await self._note(known.token, Stage.MADE)
            if machine.state is InstanceState.TERMINATED:
                self._clear_away(machine.id, place)
        listed = {machine.id for machine in machines}
        here = [entry for entry in entries.values() if entry.placement.region == region]
        for entry in here:
            if entry.stage is Stage.MADE and entry.name not in listed:
                await self._look_after(entry, place)
        self._ended.forget(pool, region, keep=listed | entries.keys())
        return (*machines, *self._ended.shown(pool, region, listed))

    async def terminate(self, node: str) -> None:
        """Begin the end of a machine, with its disk and its interface."""
        if not is_name(node):
            return
        with contextlib.suppress(NotFound):
            place = await self._find(node)
            self._ended.asked(node)
            await self._delete(node, place)

    async def stop(self, node: str) -> None:
        """Begin to deallocate a machine: it keeps its disk and is not billed for its hardware."""
        await self._turn(node, "begin_deallocate")

    async def start(self, node: str) -> None:
        """Begin to start a stopped machine."""
        await self._turn(node, "begin_start")

    async def console(self, node: str) -> str:
        """What the machine has written, as its boot diagnostics keep it; of one that is gone, what was read
        of it last."""
        if not is_name(node):
            raise NotFound(f"{node} is no machine of ours")
        try:
            place = await self._find(node)
            return await self._consoles.read(node, self._clients[place.region], place.resource_group)
        except NotFound:
            kept = self._consoles.kept(node)
            if kept is None and await self._filed(lambda: self._ledger.named(node)) is None:
                raise
            return kept or ""

    async def close(self) -> None:
        """Give up this adapter's share of the lanes. Touches no machine. Idempotent."""
        for task in self._clearing.values():
            task.cancel()
        await asyncio.gather(*self._clearing.values(), return_exceptions=True)
        for share in self._shares:
            await share.close()

    # -- launches ----------------------------------------------------------------------------------

    async def _launch(self, request: LaunchRequest, place: AzureRegion) -> Instance:
        name = name_of(request.token)
        before = await self._filed(lambda: self._ledger.find(request.token))
        found = await self._described(name, place)  # also where the ledger was lost
        if found is not None:
            return await self._made(request, found, place)
        if before is not None and before.stage is not Stage.REFUSED:
            return await self._gone(before)
        # In a thread: the programs that a machine gets are made small, which takes a second at first.
        body = await self._filed(lambda: self._body(request, name, place))
        entry = await self._filed(lambda: self._ledger.ask(request, name))
        try:
            machine = await self._clients[place.region].call(
                Lane.LAUNCH, "virtual_machines.create", lambda account: _create(account, place, name, body)
            )
        except CloudError as error:
            if code_of(error) in _EXISTS:
                there = await self._described(name, place)
                if there is not None:
                    return await self._made(request, there, place)
            if isinstance(error, _REFUSALS) or not was_sent(error):
                await self._note(entry.token, Stage.REFUSED)
            if isinstance(error, NotFound):  # what the machine should join or be made of
                await self._note(entry.token, Stage.REFUSED)
                raise Misconfigured(str(error)) from error
            raise
        return await self._made(request, machine, place)

    def _body(self, request: LaunchRequest, name: str, place: AzureRegion) -> dict[str, Any]:
        try:
            return launch_body(request, place, self._custom_data(request, name))
        except ValueError as error:
            raise Misconfigured(f"{request.placement}: {error}") from error

    async def _made(self, request: LaunchRequest, machine: dict[str, Any], place: AzureRegion) -> Instance:
        """The machine of a token, which the ledger remembers from now on. One that the ledger had lost gets
        a line too, so that its end is remembered."""
        await self._filed(lambda: self._ledger.ask(request, str(machine["name"])))
        await self._note(request.token, Stage.MADE)
        view = machine.get("properties", {}).get("instanceView") or {}
        status = status_of(view.get("statuses") or ())
        instance = instance_of(machine, status, "", place, self._clock.now())
        if instance.token != request.token:
            raise Misconfigured(f"{instance.id} is there, and is not the machine of token {request.token}")
        self._ended.seen(instance)
        return instance

    async def _gone(self, entry: Entry) -> Instance:
        """What a token that was asked for is, once Azure knows no machine of its name.

        One whose answer was lost may show itself still; a name that stays unknown had none or has none any
        more, and in both cases the token is used up.
        """
        age = self._clock.now() - entry.at
        if entry.stage is Stage.ASKED and abs(age) < LAG:
            raise Uncertain(
                f"{entry.name} was asked for {age:.0f} s ago, no answer came, and Azure does not show it yet"
            )
        await self._note(entry.token, Stage.ENDED)
        return self._ended.of(entry)

    async def _described(self, name: str, place: AzureRegion) -> dict[str, Any] | None:
        """One machine with its instance view; None where Azure knows none of that name."""
        try:
            return await self._clients[place.region].call(
                Lane.LAUNCH,
                "virtual_machines.get",
                lambda account: _get(account, place, name),
            )
        except NotFound as error:
            if code_of(error) == "ResourceGroupNotFound":
                raise
            return None

    # -- ends --------------------------------------------------------------------------------------

    async def _look_after(self, entry: Entry, place: AzureRegion) -> None:
        """A machine that the ledger knows is not listed: has it ended?"""
        if await self._described(entry.name, place) is None:
            await self._note(entry.token, Stage.ENDED)
            self._ended.missed(entry)

    def _clear_away(self, node: str, place: AzureRegion) -> None:
        """Delete what is left of a launch that Azure took and could not meet, unless that is under way."""
        if node not in self._clearing:
            task = asyncio.ensure_future(self._cleared(node, place))
            self._clearing[node] = task
            task.add_done_callback(lambda _: self._clearing.pop(node, None))

    async def _cleared(self, node: str, place: AzureRegion) -> None:
        try:
            await self._delete(node, place)
        except CloudError as error:  # the next list shows it, and asks again
            log.warning("azure.clearing_failed", node=node, error=str(error))

    async def _delete(self, node: str, place: AzureRegion) -> None:
        def work(account: AzureAccount) -> None:
            account.compute().virtual_machines.begin_delete(
                place.resource_group, node, force_deletion=True, polling=False, api_version=COMPUTE_VERSION
            )

        await self._clients[place.region].call(Lane.END, "virtual_machines.delete", work)

    # -- what is there -----------------------------------------------------------------------------

    async def _turn(self, node: str, operation: str) -> None:
        """Begin to stop or to start a machine. Raises NotFound for one that is gone or going."""
        if not is_name(node):
            raise NotFound(f"{node} is no machine of ours")
        place = await self._find(node)

        def work(account: AzureAccount) -> None:
            begin = getattr(account.compute().virtual_machines, operation)
            begin(place.resource_group, node, polling=False, api_version=COMPUTE_VERSION)

        name = f"virtual_machines.{operation.removeprefix('begin_')}"
        await self._clients[place.region].call(Lane.LAUNCH, name, work)

    async def _find(self, node: str) -> AzureRegion:
        """The region of a machine: as it was listed, as the ledger knows it, or by asking all at once.

        Raises NotFound when no region knows it, and what the others met when one cannot be asked.
        """
        region = next((name for name, look in self._looks.items() if look.knows(node)), "")
        if not region and len(self.regions) == 1:
            region = self.regions[0]
        if not region:
            entry = await self._filed(lambda: self._ledger.named(node))
            region = "" if entry is None else entry.placement.region
        if region in self._places:
            return self._places[region]
        places = list(self._places.values())
        found = await asyncio.gather(*(self._described(node, p) for p in places), return_exceptions=True)
        for place, machine in zip(places, found, strict=True):
            if isinstance(machine, dict) and str(machine.get("location", "")).lower() == place.region:
                return place
        failed = [error for error in found if isinstance(error, BaseException)]
        raise failed[0] if failed else NotFound(f"{node}: no region has it")

    async def _filed(self, work: Callable[[], Any]) -> Any:
        """What the ledger answers, or a file is made of. Raises Denied where the ledger cannot be used."""
        return await self._files.run(work)

    async def _note(self, token: str, stage: Stage) -> None:
        await self._filed(lambda: self._ledger.note(token, stage))


def _create(account: AzureAccount, place: AzureRegion, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask for a machine, if there is none of that name; the machine as Azure begins to make it."""
    from azure.core import MatchConditions

    poller = account.compute().virtual_machines.begin_create_or_update(
        place.resource_group,
        name,
        body,
        match_condition=MatchConditions.IfMissing,
        polling=False,
        api_version=COMPUTE_VERSION,
    )
    machine: dict[str, Any] = poller.result().as_dict()
    return machine


def _get(account: AzureAccount, place: AzureRegion, name: str) -> dict[str, Any]:
    found = account.compute().virtual_machines.get(
        place.resource_group, name, expand="instanceView", api_version=COMPUTE_VERSION
    )
    machine: dict[str, Any] = found.as_dict()
    return machine
