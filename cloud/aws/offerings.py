"""The `Offerings` port on AWS: spot prices from EC2, on-demand prices from the price list."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.places import PROVIDER, AwsRegion
from cloud.aws.prices import PriceBook, on_demand_prices, spot_prices
from cloud.errors import CloudError
from cloud.ports import Clock
from policies.model import Market, Offering, Placement

PRICE_LIST_REGION = "us-east-1"  # one of the few regions that answer for the price list

_PAGE = 1000  # entries of spot price history a page
_PRODUCTS_PAGE = 100  # the most that GetProducts gives
_PRODUCT = "Linux/UNIX"
_REFRESH = 12 * 3600.0  # s; the price list changes a few times a year
_TRY_AGAIN = 300.0  # s after a failure


class AwsOfferings:
    """What EC2 sells in the zones and of the types that a pool may use.

    On-demand: every zone, at the configured price, else at the price list's. Spot: where EC2 states a price
    now. `available` only says that it is sold; whether there is capacity shows when launching.

    A failure of the price list keeps the last good prices; `price_list_error` says why. Reading spot prices
    must succeed, since spot moves: a failure there is raised, and the caller keeps its last reading.
    """

    def __init__(
        self,
        regions: Sequence[tuple[AwsClients, AwsRegion]],
        *,
        clock: Clock,
        prices: PriceBook | None = None,
    ) -> None:
        self._regions = tuple(regions)
        self._shares = [clients.share() for clients, _ in regions]
        self._clock = clock
        self._prices = prices if prices is not None else PriceBook()
        self._on_demand: dict[tuple[str, str], float] = {}
        self._ask_again_at = 0.0
        self.price_list_error = ""

    async def list(self) -> tuple[Offering, ...]:
        """Every offering with its price now.

        Raises CloudError when spot prices cannot be read, or when no on-demand price is known at all: the
        pool's floor could never be bought then.
        """
        spot, _ = await asyncio.gather(
            asyncio.gather(*(self._spot(clients, place) for clients, place in self._regions)),
            self._refresh_price_list(),
        )
        offerings = [offering for part in spot for offering in part]
        for _, place in self._regions:
            offerings += self._on_demand_in(place)
        if not any(offering.placement.market is Market.ON_DEMAND for offering in offerings):
            types = ", ".join(sorted({name for _, place in self._regions for name in place.instance_types}))
            why = self.price_list_error or "the price list has none"
            raise CloudError(
                f"no on-demand price is known for {types}: {why}; allow pricing:GetProducts "
                "or write the prices into the configuration"
            )
        self._prices.update({offering.placement: offering.price for offering in offerings})
        return tuple(offerings)

    async def close(self) -> None:
        """Give up this adapter's share of the clients. Idempotent."""
        for share in self._shares:
            await share.close()

    async def _spot(self, clients: AwsClients, place: AwsRegion) -> Sequence[Offering]:
        """The spot prices in force in one region."""
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        found: dict[tuple[str, str], float] = {}
        async for page in clients.pages(
            Lane.LIST,
            "ec2",
            "describe_spot_price_history",
            InstanceTypes=list(place.instance_types),
            ProductDescriptions=[_PRODUCT],
            Filters=[{"Name": "availability-zone", "Values": sorted(place.subnets)}],
            StartTime=now,  # a start in the present gives each price that is in force
            MaxResults=_PAGE,
        ):
            for key, price in spot_prices(page).items():
                found.setdefault(key, price)  # newest first over the pages
        return [
            Offering(placement=_placement(place, zone, name, Market.SPOT), price=price)
            for (zone, name), price in sorted(found.items())
            if zone in place.subnets and name in place.instance_types
        ]

    def _on_demand_in(self, place: AwsRegion) -> Sequence[Offering]:
        found = []
        for zone in sorted(place.subnets):
            for name in place.instance_types:
                price = place.on_demand_prices.get(name) or self._on_demand.get((place.region, name))
                if price:
                    placement = _placement(place, zone, name, Market.ON_DEMAND)
                    found.append(Offering(placement=placement, price=price))
        return found

    async def _refresh_price_list(self) -> None:
        """Read the price list when it is due; a failure keeps what is known and is tried again soon."""
        now = self._clock.now()
        if now < self._ask_again_at:
            return
        try:
            await asyncio.gather(*(self._price_list(clients, place) for clients, place in self._regions))
        except CloudError as error:
            self.price_list_error = str(error)
            self._ask_again_at = now + _TRY_AGAIN
        else:
            self.price_list_error = ""
            self._ask_again_at = now + _REFRESH

    async def _price_list(self, clients: AwsClients, place: AwsRegion) -> None:
        """One question a type: the whole list of a region is tens of thousands of products."""
        asked = [name for name in place.instance_types if name not in place.on_demand_prices]
        await asyncio.gather(*(self._listed_price(clients, place, name) for name in asked))

    async def _listed_price(self, clients: AwsClients, place: AwsRegion, name: str) -> None:
        async for page in clients.pages(
            Lane.LIST,
            "pricing",
            "get_products",
            region=PRICE_LIST_REGION,
            ServiceCode="AmazonEC2",
            Filters=[{"Type": "TERM_MATCH", "Field": f, "Value": v} for f, v in _filters(place, name)],
            MaxResults=_PRODUCTS_PAGE,
        ):
            for found, price in on_demand_prices(page.get("PriceList", ())).items():
                if found == name:
                    self._on_demand[(place.region, name)] = price


def _filters(place: AwsRegion, name: str) -> tuple[tuple[str, str], ...]:
    """What makes a product the plain Linux machine that RunInstances gives."""
    return (
        ("regionCode", place.region),
        ("instanceType", name),
        ("operatingSystem", "Linux"),
        ("tenancy", "Shared"),
        ("preInstalledSw", "NA"),
        ("capacitystatus", "Used"),
        ("marketoption", "OnDemand"),
    )


def _placement(place: AwsRegion, zone: str, name: str, market: Market) -> Placement:
    return Placement(provider=PROVIDER, region=place.region, zone=zone, instance_type=name, market=market)
