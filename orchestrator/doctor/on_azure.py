"""The checks of a pool on Azure."""

from __future__ import annotations

from functools import partial

from cloud.azure.clients import COMPUTE_VERSION, AzureAccount, AzureClients, Lane
from cloud.azure.offerings import AzureOfferings
from cloud.azure.places import AzureRegion
from cloud.azure.prices import PRICES
from cloud.errors import CloudError
from cloud.ports import Clock
from cloud.tombstones import Tombstones
from orchestrator.config.load import Config
from orchestrator.doctor.findings import Check, Findings, fail, ok, warn
from orchestrator.wiring.azure import is_installed, regions_of
from orchestrator.words import plural
from policies.model import Market


class AzureDoctor:
    """What can be asked of Azure about one configuration. Close it when done."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._regions = regions_of(config, clock) if is_installed() else []
        table = config.pool.cloud.azure
        self._offerings = AzureOfferings(
            self._regions, clock=clock, endpoint=table.prices_endpoint or PRICES, patience=20.0
        )

    def checks(self) -> list[Check]:
        """Every check, one a region where regions differ."""
        found = [
            Check(group="azure", name="sdk", look=self._sdk),
            Check(group="azure", name="ledger", look=self._ledger),
        ]
        for clients, place in self._regions:
            suffix = f" {place.region}" if len(self._regions) > 1 else ""
            found += [
                Check(group="azure", name=f"machines{suffix}", look=partial(self._machines, clients, place)),
                Check(group="azure", name=f"sizes{suffix}", look=partial(self._sizes, place)),
            ]
        return found

    async def close(self) -> None:
        """End the threads of the lanes."""
        await self._offerings.close()

    async def _sdk(self) -> Findings:
        if is_installed():
            return [ok("the SDK of Azure is installed")]
        return [fail("the SDK of Azure is not installed", "install spot-orchestrator[azure]")]

    async def _ledger(self) -> Findings:
        ledger = Tombstones(self._config.pool.cloud.azure.ledger, self._clock)
        try:
            ledger.entries(self._config.pool_name)
        except CloudError as error:
            return [fail(str(error), "give the daemon's user a directory that it can write")]
        if ledger.damaged:
            return [
                warn(
                    f"{plural(ledger.damaged, 'line')} of the ledger of launches cannot be read",
                    "look at the disk; a token on such a line may launch again once its machine is gone",
                )
            ]
        return [ok("launches are remembered")]

    async def _machines(self, clients: AzureClients, place: AzureRegion) -> Findings:
        """Whether this identity may list what is there, which it is asked for most."""

        def work(account: AzureAccount) -> int:
            pages = account.compute().virtual_machines.list(place.resource_group, api_version=COMPUTE_VERSION)
            return sum(1 for _ in pages)

        try:
            count = await clients.call(Lane.LIST, "virtual_machines.list", work, lost=CloudError)
        except CloudError as error:
            advice = "docs/how-to/azure-from-zero.md lists the rights; `az login` shows who asks"
            return [fail(str(error), advice, place.region)]
        return [ok(f"{place.resource_group} holds {plural(count, 'machine')}", place.region)]

    async def _sizes(self, place: AzureRegion) -> Findings:
        """Which of the pool's sizes the subscription may launch there, and at which price."""
        found = []
        for market in Market:
            try:
                sold = await self._offerings.list(f"{place.region} {market}")
            except CloudError as error:
                found.append(fail(str(error), "try again; without a price nothing is launched", place.region))
                continue
            sizes = {offering.placement.instance_type for offering in sold.offerings}
            missing = [size for size in place.instance_types if size not in sizes]
            if sold.problem:
                found.append(warn(sold.problem, "try again, or write on_demand_prices", place.region))
            if missing:
                advice = "ask for the size and its quota in the portal, or name other zones, regions or sizes"
                text = f"the subscription cannot have {', '.join(missing)} {market}"
                found.append((warn if sizes else fail)(text, advice, place.region))
            elif not sold.problem:
                found.append(
                    ok(f"{', '.join(sorted(sizes))} {market} in {len(place.places())} zones", place.region)
                )
        return found
