"""The `Offerings` port through SkyPilot's catalogue: prices that it publishes a few times a day, not live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloud.errors import CloudError, Uncertain
from cloud.ports import Clock, Sold
from cloud.skypilot.places import PROVIDER, SkyRegion
from cloud.skypilot.process import HelperShare
from policies.model import Market, Offering, Placement

_REFRESH = 3600.0  # s; the catalogue is fetched anew every 7 h
_OLDEST = 86_400.0  # s for which prices that were read serve when none can be read


class SkyOfferings:
    """What the catalogue has of the zones and types that a pool may use, by region and market."""

    def __init__(self, helper: HelperShare, regions: Sequence[SkyRegion], *, clock: Clock) -> None:
        self._helper, self._clock = helper, clock
        self._parts = {f"{place.region} {market}": (place, market) for place in regions for market in Market}
        self._read: dict[str, tuple[float, Sold]] = {}

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        """Every zone and type of each region and market, without prices."""
        return {
            name: tuple(
                Offering(placement=placement(place, zone, kind, market), price=None)
                for zone in place.zones
                for kind in place.instance_types
            )
            for name, (place, market) in self._parts.items()
        }

    async def list(self, part: str) -> Sold:
        """The prices of one region and market, at most an hour old as the catalogue has them."""
        known, now = self._read.get(part), self._clock.now()
        if known is not None and now - known[0] < _REFRESH:
            return known[1]
        try:
            sold = await self._ask(*self._parts[part])
        except CloudError as error:
            if known is not None and now - known[0] < _OLDEST:
                return known[1]
            if isinstance(error, Uncertain):  # nothing was to be changed
                raise CloudError(str(error)) from error
            raise
        self._read[part] = (now, sold)
        return sold

    async def close(self) -> None:
        """Give up the share in the helper. Idempotent."""
        await self._helper.close()

    async def _ask(self, place: SkyRegion, market: Market) -> Sold:
        found = await self._helper.ask(
            "prices",
            cloud=place.cloud,
            region=place.region,
            zones=list(place.zones),
            types=list(place.instance_types),
            spot=market is Market.SPOT,
        )
        offerings = tuple(
            Offering(placement=placement(place, zone, kind, market), price=price)
            for zone, kind, price in found
        )
        if not offerings:
            raise CloudError(
                f"SkyPilot's catalogue has no {market} price of {', '.join(place.instance_types)} in "
                f"{place.region} of {place.cloud}"
            )
        unread = [str(each.placement) for each in offerings if each.price is None]
        return Sold(offerings=offerings, problem=f"no price: {', '.join(unread)}" if unread else "")


def placement(place: SkyRegion, zone: str, kind: str, market: Market) -> Placement:
    """One place to launch in."""
    return Placement(provider=PROVIDER, region=place.region, zone=zone, instance_type=kind, market=market)
