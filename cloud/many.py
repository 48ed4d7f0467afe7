"""The machines and the prices of several providers, as those of one pool.

Every region belongs to one provider, so what is done in a region concerns its provider alone: one that is
dark, slow, or refuses our credentials holds up no other. What is done to a machine goes to the provider that
launched or listed it. Which provider gets a node is decided elsewhere, by the regions of placements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from cloud.errors import CloudError, Misconfigured, NotFound
from cloud.ports import Instances, LaunchRequest, Offerings, Sold
from policies.model import Instance, Offering

_UNLISTED: Final = 1024
"""Machines that were launched and that no list has shown, of which the provider is remembered."""

_T = TypeVar("_T")


class ManyInstances:
    """Machines of several providers. See `cloud.ports.Instances` for the contract.

    A machine that was neither launched here nor listed, as after a start, is asked for at every provider at
    once. Its end is certain when every one of them says so.
    """

    def __init__(self, providers: Mapping[str, Instances]) -> None:
        """`providers`: by name, none of which has a region of another."""
        self._providers = dict(providers)
        self._of_region = {region: name for name, one in providers.items() for region in one.regions}
        self.regions = tuple(self._of_region)
        self._listed: dict[str, frozenset[str]] = {}  # machines, by region
        self._launched: dict[str, str] = {}

    async def launch(self, request: LaunchRequest) -> Instance:
        """Launch one machine, at the provider of the placement's region."""
        region = request.placement.region
        if region not in self._of_region:
            raise Misconfigured(f"{request.placement}: no cloud of this pool has a region {region}")
        launched = await self._providers[self._of_region[region]].launch(request)
        if launched.id:
            self._launched[launched.id] = self._of_region[region]
            while len(self._launched) > _UNLISTED:
                del self._launched[next(iter(self._launched))]
        return launched

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        """All machines in a region tagged with the pool, and those that ended within minutes."""
        found = await self._providers[self._of_region[region]].list(pool, region)
        self._listed[region] = frozenset(machine.id for machine in found)
        for node in self._listed[region]:
            self._launched.pop(node, None)
        return found

    async def terminate(self, node: str) -> None:
        """Ask for the end of a machine."""
        name = self.provider_of(node)
        if name:
            await self._providers[name].terminate(node)
            return
        ended = (one.terminate(node) for one in self._providers.values())
        for failed in await asyncio.gather(*ended, return_exceptions=True):
            if failed is not None and not isinstance(failed, NotFound):
                raise failed

    async def stop(self, node: str) -> None:
        """Stop a machine so that `start` brings it back sooner than a launch."""
        await self._where_it_is(node, lambda provider: provider.stop(node))

    async def start(self, node: str) -> None:
        """Start a stopped machine."""
        await self._where_it_is(node, lambda provider: provider.start(node))

    async def console(self, node: str) -> str:
        """The end of what a machine wrote on its console."""
        return await self._where_it_is(node, lambda provider: provider.console(node))

    async def close(self) -> None:
        """Release the connections of every provider."""
        await _close(self._providers.values())

    def provider_of(self, node: str) -> str:
        """Whose machine it is, by name; empty where neither a launch nor a list has told."""
        for region, nodes in self._listed.items():
            if node in nodes:
                return self._of_region[region]
        return self._launched.get(node, "")

    async def _where_it_is(self, node: str, call: Callable[[Instances], Awaitable[_T]]) -> _T:
        """The answer of the machine's provider; where that is not known, of the first that has it.

        Raises NotFound where every provider says so, else what one met that might have it.
        """
        name = self.provider_of(node)
        if name:
            return await call(self._providers[name])
        failed: list[CloudError] = []
        asked = [asyncio.ensure_future(call(one)) for one in self._providers.values()]
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    return await answer
                except CloudError as error:
                    failed.append(error)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise next((error for error in failed if not isinstance(error, NotFound)), failed[0])


class ManyOfferings:
    """What several providers sell: the parts of each, under its name. See `cloud.ports.Offerings`."""

    def __init__(self, providers: Mapping[str, Offerings]) -> None:
        self._providers = dict(providers)
        self._parts: dict[str, tuple[Offerings, str]] = {}
        self._beforehand: dict[str, tuple[Offering, ...]] = {}
        for name, provider in providers.items():
            for part, sold in provider.parts().items():
                self._parts[f"{name} {part}"] = provider, part
                self._beforehand[f"{name} {part}"] = sold

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        """The parts of every provider, by its name and theirs."""
        return dict(self._beforehand)

    async def list(self, part: str) -> Sold:
        """Everything that is sold in one part of one provider."""
        provider, name = self._parts[part]
        return await provider.list(name)

    async def close(self) -> None:
        """Release the connections of every provider."""
        await _close(self._providers.values())


class AbsentInstances:
    """A provider whose adapters could not be made: its regions are there, and every call says why."""

    def __init__(self, regions: Sequence[str], why: str) -> None:
        self.regions = tuple(regions)
        self._why = why

    async def launch(self, request: LaunchRequest) -> Instance:
        """Raises Misconfigured."""
        raise Misconfigured(f"{request.placement}: {self._why}")

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:  # noqa: ARG002 - of the port
        """Raises Misconfigured: what is there is not known."""
        raise Misconfigured(self._why)

    async def terminate(self, node: str) -> None:
        """Raises Misconfigured: the machine may be there."""
        raise Misconfigured(f"{node}: {self._why}")

    async def stop(self, node: str) -> None:
        """Raises Misconfigured."""
        raise Misconfigured(f"{node}: {self._why}")

    async def start(self, node: str) -> None:
        """Raises Misconfigured."""
        raise Misconfigured(f"{node}: {self._why}")

    async def console(self, node: str) -> str:
        """Raises Misconfigured."""
        raise Misconfigured(f"{node}: {self._why}")

    async def close(self) -> None:
        """There is nothing to release."""


class AbsentOfferings:
    """The prices of such a provider: nothing is known to be sold, and every look says why."""

    def __init__(self, why: str) -> None:
        self._why = why

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        """One part, of which nothing is known."""
        return {"prices": ()}

    async def list(self, part: str) -> Sold:
        """Raises Misconfigured."""
        raise Misconfigured(f"{part}: {self._why}")

    async def close(self) -> None:
        """There is nothing to release."""


async def _close(providers: Iterable[Instances | Offerings]) -> None:
    """Close all of them, also where one fails at it."""
    for failed in await asyncio.gather(*(one.close() for one in providers), return_exceptions=True):
        if failed is not None:
            raise failed
