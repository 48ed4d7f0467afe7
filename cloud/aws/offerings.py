"""The `Offerings` port on AWS: spot prices from EC2, on-demand prices from the price list."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.places import PROVIDER, AwsRegion, Reservation
from cloud.aws.prices import on_demand_prices, spot_prices
from cloud.errors import CloudError
from cloud.ports import Clock, Sold
from policies.model import Market, Offering, Placement

PRICE_LIST_REGION = "us-east-1"  # one of the few regions that answer for the price list

_PAGE = 1000  # entries of spot price history a page
_PRODUCTS_PAGE = 100  # the most that GetProducts gives
_PRODUCT = "Linux/UNIX"
_REFRESH = 12 * 3600.0  # s; the price list changes a few times a year
_WITHOUT = "allow pricing:GetProducts or write on_demand_prices into the region's table"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The prices of one market in one region."""

    clients: AwsClients
    place: AwsRegion
    market: Market
    reserved: bool = False


class AwsOfferings:
    """What EC2 sells in the zones and of the types that a pool may use.

    Each region has two parts, since each fails alone, and a third one where capacity is reserved: whether
    that is active and has room, at the configured price. Spot is where EC2 states the prices that are in
    force, and on-demand is in every zone, at the configured price, else at the price list's. That one is
    asked for each type by itself and rarely; a type whose price cannot be read has an offering without one,
    and is asked for again at the next look. `available` only says that it is sold; whether there is
    capacity shows when launching. `patience`: seconds that one type of the price list gets to answer, less
    than the caller gives the whole look, so that a type that hangs hides no other's price.
    """

    def __init__(
        self, regions: Sequence[tuple[AwsClients, AwsRegion]], *, clock: Clock, patience: float = 8.0
    ) -> None:
        self._parts = {
            f"{place.region} {market}": _Part(clients=clients, place=place, market=market)
            for clients, place in regions
            for market in Market
        }
        self._parts |= {
            f"{place.region} reserved": _Part(
                clients=clients, place=place, market=Market.ON_DEMAND, reserved=True
            )
            for clients, place in regions
            if place.reservations
        }
        self._shares = [clients.share() for clients, _ in regions]
        self._clock, self._patience = clock, patience
        self._listed: dict[tuple[str, str], tuple[float, float]] = {}  # region, type -> price, read at

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        """Every zone and type of each region and market, without prices, and every reservation."""
        return {
            name: tuple(_held(part.place, held) for held in part.place.reservations)
            if part.reserved
            else tuple(
                Offering(placement=_placement(part.place, zone, kind, part.market), price=None)
                for zone in sorted(part.place.subnets)
                for kind in part.place.instance_types
            )
            for name, part in self._parts.items()
        }

    async def list(self, part: str) -> Sold:
        """One region's prices of one market. Raises CloudError when none of them can be read."""
        found = self._parts[part]
        if found.reserved:
            return await _reserved(found.clients, found.place)
        look = self._spot if found.market is Market.SPOT else self._on_demand
        return await look(found.clients, found.place)

    async def close(self) -> None:
        """Give up this adapter's share of the clients. Idempotent."""
        for share in self._shares:
            await share.close()

    # -- spot --------------------------------------------------------------------------------------

    async def _spot(self, clients: AwsClients, place: AwsRegion) -> Sold:
        """The spot prices in force in one region. A type that no entry names in a zone is not sold there."""
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        found: dict[tuple[str, str], float | None] = {}
        async for page in clients.pages(
            Lane.SPOT_PRICES,
            "ec2",
            "describe_spot_price_history",
            InstanceTypes=list(place.instance_types),
            ProductDescriptions=[_PRODUCT],
            Filters=[{"Name": "availability-zone", "Values": sorted(place.subnets)}],
            StartTime=now,  # a start in the present gives each price that is in force
            MaxResults=_PAGE,
        ):
            for key, price in spot_prices(page).items():
                if found.get(key) is None:  # newest first over the pages
                    found[key] = price
        offerings = tuple(
            Offering(placement=_placement(place, zone, name, Market.SPOT), price=price)
            for (zone, name), price in sorted(found.items(), key=lambda entry: entry[0])
            if zone in place.subnets and name in place.instance_types
        )
        if not offerings:
            raise CloudError(f"EC2 states no spot price in {place.region} for {_types(place.instance_types)}")
        unread = [str(o.placement) for o in offerings if o.price is None]
        return Sold(offerings=offerings, problem=f"no number: {', '.join(unread)}" if unread else "")

    # -- on-demand ---------------------------------------------------------------------------------

    async def _on_demand(self, clients: AwsClients, place: AwsRegion) -> Sold:
        """The on-demand prices of one region, those that are due read anew."""
        now = self._clock.now()
        asked = [name for name in place.instance_types if name not in place.on_demand_prices]
        due = [name for name in asked if not self._fresh(place, name, now)]
        failures = await asyncio.gather(*(self._read(clients, place, name) for name in due))
        failed = {name: why for name, why in zip(due, failures, strict=True) if why}
        prices = dict(place.on_demand_prices)
        prices |= {name: self._listed[place.region, name][0] for name in asked if name not in failed}
        problem = ""
        if failed:
            reason = next(iter(failed.values()))
            problem = f"no on-demand price of {_types(failed)} in {place.region}: {reason}; {_WITHOUT}"
        if failed and not prices:
            raise CloudError(problem)
        return Sold(
            offerings=tuple(
                Offering(placement=_placement(place, zone, name, Market.ON_DEMAND), price=prices.get(name))
                for zone in sorted(place.subnets)
                for name in place.instance_types
            ),
            problem=problem,
        )

    def _fresh(self, place: AwsRegion, name: str, now: float) -> bool:
        known = self._listed.get((place.region, name))
        return known is not None and abs(now - known[1]) < _REFRESH

    async def _read(self, clients: AwsClients, place: AwsRegion, name: str) -> str:
        """Ask for one type: the whole list of a region is tens of thousands of products.

        Returns what failed, in words; empty when the price was read.
        """
        try:
            async with asyncio.timeout(self._patience):
                price = await _listed_price(clients, place, name)
        except TimeoutError:
            return f"no answer within {self._patience:.0f} s"
        except CloudError as error:
            return str(error)
        if price is None:
            return "the price list has none"
        self._listed[place.region, name] = (price, self._clock.now())
        return ""


async def _reserved(clients: AwsClients, place: AwsRegion) -> Sold:
    """The configured reservations, at their prices, each available while it is active and has room.

    Raises CloudError when EC2 does not tell. One that it does not know is not sold, and said so.
    """
    wanted = [held.id for held in place.reservations]
    room: dict[str, bool] = {}
    async for page in clients.pages(
        Lane.LIST,
        "ec2",
        "describe_capacity_reservations",
        Filters=[{"Name": "capacity-reservation-id", "Values": wanted}],
        MaxResults=_PAGE,
    ):
        for found in page.get("CapacityReservations", ()):
            active = found.get("State") == "active" and int(found.get("AvailableInstanceCount", 0)) > 0
            room[str(found.get("CapacityReservationId", ""))] = active
    missing = [name for name in wanted if name not in room]
    return Sold(
        offerings=tuple(_held(place, h, room[h.id]) for h in place.reservations if h.id in room),
        problem=f"no reservation {', '.join(missing)} in {place.region}" if missing else "",
    )


def _held(place: AwsRegion, held: Reservation, available: bool = True) -> Offering:
    placement = replace(
        _placement(place, held.zone, held.instance_type, Market.ON_DEMAND), reservation=held.id
    )
    return Offering(placement=placement, price=held.price, available=available)


async def _listed_price(clients: AwsClients, place: AwsRegion, name: str) -> float | None:
    """The price of one type by the whole answer; None when it has none. Raises CloudError."""
    price = None
    async for page in clients.pages(
        Lane.PRICE_LIST,
        "pricing",
        "get_products",
        region=PRICE_LIST_REGION,
        ServiceCode="AmazonEC2",
        Filters=[{"Type": "TERM_MATCH", "Field": f, "Value": v} for f, v in _filters(place, name)],
        MaxResults=_PRODUCTS_PAGE,
    ):
        price = on_demand_prices(page.get("PriceList", ())).get(name, price)
    return price


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


def _types(names: Sequence[str] | Mapping[str, str]) -> str:
    return ", ".join(sorted(names))


def _placement(place: AwsRegion, zone: str, name: str, market: Market) -> Placement:
    return Placement(provider=PROVIDER, region=place.region, zone=zone, instance_type=name, market=market)
