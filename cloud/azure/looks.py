"""Reads the machines of one region: what they are made of, what they do, and their addresses.

Three lists, however many machines there are: Azure keeps these apart. The machines of the resource group;
their power, which only a list of the whole subscription tells of many at once; and the interfaces, for the
addresses of machines that are new. A machine that the second list lacks is asked for by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cloud.azure.clients import COMPUTE_VERSION, NETWORK_VERSION, AzureAccount, AzureClients, Lane
from cloud.azure.machines import (
    Status,
    addresses_of,
    instance_of,
    interfaces_of,
    is_in,
    settles,
    status_of,
)
from cloud.azure.places import AzureRegion
from cloud.errors import CloudError, Denied, NotFound, Throttled
from cloud.ports import Clock
from cloud.tombstones import Entry
from policies.model import Instance


class Looks:
    """The lists of one region."""

    def __init__(self, clients: AzureClients, place: AzureRegion, *, clock: Clock) -> None:
        self._clients, self._place, self._clock = clients, place, clock
        self._names: frozenset[str] = frozenset()
        self._addresses: dict[str, str] = {}  # by interface

    def knows(self, node: str) -> bool:
        """Whether the last list had it."""
        return node in self._names

    async def machines(self, pool: str, entries: Mapping[str, Entry]) -> tuple[Instance, ...]:
        """All machines of a pool; `entries` by name tell since when they are asked for. Raises CloudError."""
        listed = await self._clients.call(Lane.LIST, "virtual_machines.list", self._listed, lost=CloudError)
        mine = [machine for machine in listed if is_in(machine, self._place, pool)]
        statuses = await self._statuses([str(machine["name"]) for machine in mine if settles(machine)])
        addresses = await self._addressed(mine, statuses)
        self._names = frozenset(str(machine["name"]) for machine in listed)
        found, now = [], self._clock.now()
        for machine in mine:
            name = str(machine["name"])
            status = statuses.get(name)
            if status is None and settles(machine):
                continue  # it went while we looked
            entry = entries.get(name)
            found.append(
                instance_of(
                    machine,
                    status or Status(),
                    addresses.get(name, ""),
                    self._place,
                    now if entry is None else entry.first,
                )
            )
        return tuple(found)

    def _listed(self, account: AzureAccount) -> list[dict[str, Any]]:
        pages = account.compute().virtual_machines.list(
            self._place.resource_group, api_version=COMPUTE_VERSION
        )
        return [machine.as_dict() for machine in pages]

    # -- power -------------------------------------------------------------------------------------

    async def _statuses(self, names: Sequence[str]) -> dict[str, Status]:
        """What each of these does; those that are gone are missing."""
        if not names:
            return {}
        try:
            found = await self._clients.call(
                Lane.LIST, "virtual_machines.statuses", self._all_statuses, lost=CloudError
            )
        except (Throttled, Denied):
            raise
        except CloudError:  # the subscription cannot be listed, as when another region of it is dark
            found = {}
        lacking = [name for name in names if name not in found]
        one_by_one = await asyncio.gather(*(self._status(name) for name in lacking))
        asked = {name: status for name, status in zip(lacking, one_by_one, strict=True) if status is not None}
        return {name: found[name] for name in names if name in found} | asked

    def _all_statuses(self, account: AzureAccount) -> dict[str, Status]:
        group = f"/resourcegroups/{self._place.resource_group}/".lower()
        pages = account.compute().virtual_machines.list_all(status_only="true", api_version=COMPUTE_VERSION)
        found = {}
        for machine in (entry.as_dict() for entry in pages):
            view = machine.get("properties", {}).get("instanceView") or {}
            if group in str(machine.get("id", "")).lower() and view.get("statuses"):
                found[str(machine.get("name", ""))] = status_of(view["statuses"])
        return found

    async def _status(self, name: str) -> Status | None:
        def work(account: AzureAccount) -> Status:
            view = account.compute().virtual_machines.instance_view(
                self._place.resource_group, name, api_version=COMPUTE_VERSION
            )
            return status_of(view.as_dict().get("statuses") or ())

        try:
            return await self._clients.call(
                Lane.LIST, "virtual_machines.instance_view", work, lost=CloudError
            )
        except NotFound:
            return None

    # -- addresses ---------------------------------------------------------------------------------

    async def _addressed(
        self, machines: Iterable[Mapping[str, Any]], statuses: Mapping[str, Status]
    ) -> dict[str, str]:
        """The private address of each machine. Those that run keep theirs, so they are read once."""
        interfaces = {str(machine["name"]): interfaces_of(machine) for machine in machines}
        running = {name for name, status in statuses.items() if status.power == "running"}
        every = {interface for found in interfaces.values() for interface in found}
        moved = {i for name, found in interfaces.items() if name not in running for i in found}
        self._addresses = {i: a for i, a in self._addresses.items() if i in every and i not in moved}
        if any(i not in self._addresses for name in running for i in interfaces.get(name, ())):
            path = (
                f"/subscriptions/{self._clients.account.subscription}/resourceGroups/"
                f"{self._place.resource_group}/providers/Microsoft.Network/networkInterfaces"
            )
            told = await self._clients.call(
                Lane.LIST,
                "network_interfaces.list",
                lambda account: account.get(path, NETWORK_VERSION),
                lost=CloudError,
            )
            self._addresses |= addresses_of(told)
        return {
            name: address
            for name, found in interfaces.items()
            if (address := next((self._addresses[i] for i in found if i in self._addresses), ""))
        }
