"""The `Offerings` port on Google Cloud: what is sold in which zone, at the billing catalogue's prices."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from cloud.errors import CloudError, NotFound
from cloud.gcp.client import GcpClient
from cloud.gcp.places import PROVIDER, GcpRegion
from cloud.gcp.prices import SERVICE, MachineType, Skus, machine_type
from cloud.ports import Clock, Sold
from policies.model import Market, Offering, Placement

_REFRESH: Final = 12 * 3600.0  # s; Google changes prices of spot once a day at most
_AGAIN: Final = 300.0  # s until a catalogue that could not be read is asked for again
_PAGE: Final = "1000"
_WITHOUT: Final = (
    "enable the Cloud Billing API (cloudbilling.googleapis.com), or write prices into the region"
)


class GcpOfferings:
    """What Google sells in the zones and of the types that a pool may use.

    Each region has two parts, spot and on-demand, which fail alone. Which types a zone has is asked of each
    zone; a type that it does not know is not sold there. The catalogue is one list for all regions and is
    read twice a day, in the background of a look: until it is there, and where it lacks a part of a machine,
    offerings have no price, and the problem is said. `available` says that it is sold; whether there is
    capacity shows when launching. `patience`: seconds that a look waits for the catalogue.
    """

    def __init__(
        self,
        client: GcpClient,
        regions: Sequence[GcpRegion],
        instance_types: Sequence[str],
        *,
        clock: Clock,
        patience: float = 8.0,
    ) -> None:
        self._client, self._clock, self._patience = client, clock, patience
        self._kinds = tuple(instance_types)
        self._parts = {f"{place.region} {market}": (place, market) for place in regions for market in Market}
        self._types: dict[tuple[str, str], tuple[MachineType | None, float]] = {}
        self._skus: Skus | None = None
        self._skus_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._failure = ""

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        """Every zone and type of each region and market, without prices."""
        return {
            name: tuple(
                Offering(placement=_placement(place, zone, kind, market), price=None)
                for zone in place.zones
                for kind in self._kinds
            )
            for name, (place, market) in self._parts.items()
        }

    async def list(self, part: str) -> Sold:
        """One region's prices of one market. Raises CloudError where the zones cannot be asked."""
        place, market = self._parts[part]
        own = place.spot_prices if market is Market.SPOT else place.on_demand_prices
        wanted = [(zone, kind) for zone in place.zones for kind in self._kinds]
        found = await asyncio.gather(*(self._type(zone, kind) for zone, kind in wanted))
        sold = [(zone, kind) for (zone, _), kind in zip(wanted, found, strict=True) if kind is not None]
        if any(kind.name not in own for _, kind in sold):
            await self._catalogue()
        offerings, lacking = [], dict[str, str]()
        for zone, kind in sold:
            price, part_of = own.get(kind.name), ""
            if price is None and self._skus is not None:
                price, part_of = self._skus.price(kind, market, place.region)
            if price is None:
                lacking[kind.name] = part_of
            place_of = _placement(place, zone, kind.name, market)
            offerings.append(Offering(placement=place_of, price=price))
        return Sold(offerings=tuple(offerings), problem=self._problem(place, market, lacking))

    async def close(self) -> None:
        """Release connections. Idempotent."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
        await self._client.close()

    def _problem(self, place: GcpRegion, market: Market, lacking: Mapping[str, str]) -> str:
        if not lacking:
            return ""
        kinds, parts = ", ".join(sorted(lacking)), ", ".join(sorted({*lacking.values()} - {""}))
        why = f"the catalogue has no {parts} there" if parts else self._failure or "it is being read"
        keys = "spot_prices" if market is Market.SPOT else "on_demand_prices"
        return f"no {market} price of {kinds} in {place.region}: {why}; {_WITHOUT} ({keys})"

    async def _type(self, zone: str, kind: str) -> MachineType | None:
        """A machine type as the zone has it; None where it has none. Raises CloudError."""
        known = self._types.get((zone, kind))
        now = self._clock.steady()
        if known is not None and now - known[1] < _REFRESH:
            return known[0]
        try:
            found = machine_type(await self._client.read(f"zones/{zone}/machineTypes/{kind}"))
        except NotFound:
            found = None
        self._types[zone, kind] = (found, now)
        return found

    async def _catalogue(self) -> None:
        """Have the catalogue read when it is due, and wait for it a while; its failure is kept in words."""
        now = self._clock.steady()
        due = _REFRESH if not self._failure else _AGAIN
        if self._reading is None and now - self._skus_at >= due:
            self._reading = asyncio.create_task(self._read(), name="gcp-catalogue")
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=self._patience)

    async def _read(self) -> None:
        skus = Skus()
        try:
            async for page in self._client.billing(f"{SERVICE}/skus", pageSize=_PAGE, currencyCode="USD"):
                skus.add(page.get("skus") or ())
        except CloudError as error:
            self._failure = str(error)
        else:
            self._skus, self._failure = skus, ""
        finally:
            self._skus_at, self._reading = self._clock.steady(), None


def _placement(place: GcpRegion, zone: str, name: str, market: Market) -> Placement:
    return Placement(provider=PROVIDER, region=place.region, zone=zone, instance_type=name, market=market)
