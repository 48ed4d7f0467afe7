"""How often AWS is asked for prices, and what one type or zone that fails leaves of the others."""

from __future__ import annotations

import asyncio
import datetime
import json
from typing import Any

import pytest
from hand_clock import HandClock
from played_aws import PlayedClients, refusal

from cloud.aws.clients import Lane
from cloud.aws.offerings import AwsOfferings
from cloud.aws.places import AwsRegion
from cloud.errors import CloudError

SPOT, ON_DEMAND = "us-east-1 spot", "us-east-1 on-demand"
HOUR = 3600.0


def place(**more: Any) -> AwsRegion:
    fields: dict[str, Any] = {
        "region": "us-east-1",
        "subnets": {"us-east-1b": "s-b", "us-east-1a": "s-a"},
        "instance_types": ("big", "small"),
        "template": "lt-1",
        "template_version": "1",
    }
    return AwsRegion(**{**fields, **more})


def product(name: str, usd: float) -> str:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": str(usd)}}
    terms = {"OnDemand": {"A": {"priceDimensions": {"B": dimension}}}}
    return json.dumps({"product": {"attributes": {"instanceType": name}}, "terms": terms})


class Listed:
    """A price list; a type without a price, or with an exception for one."""

    def __init__(self, **prices: Any) -> None:
        self.prices = prices

    def __call__(self, *, Filters: list[dict[str, str]], **_: Any) -> Any:  # noqa: N803 - as boto3 has it
        name = next(f["Value"] for f in Filters if f["Field"] == "instanceType")
        price = self.prices.get(name)
        if isinstance(price, Exception):
            return price
        return [{"PriceList": []}, {"PriceList": [] if price is None else [product(name, price)]}]


def prices(sold: Any) -> dict[tuple[str, str], float | None]:
    return {(o.placement.zone[-1], o.placement.instance_type): o.price for o in sold.offerings}


def everywhere(**by_type: float | None) -> dict[tuple[str, str], float | None]:
    return {(zone, name): price for zone in "ab" for name, price in by_type.items()}


async def test_the_price_list_is_asked_once_for_each_type_in_twelve_hours() -> None:
    clock, listed = HandClock(), Listed(big=9.0, small=2.0)
    clients = PlayedClients(get_products=listed)
    offerings = AwsOfferings([(clients, place())], clock=clock)  # type: ignore[list-item]
    for _ in range(20):
        assert prices(await offerings.list(ON_DEMAND)) == everywhere(big=9.0, small=2.0)
        clock.at += HOUR / 2
    assert clients.count("get_products") == 2
    listed.prices["small"] = 3.0
    clock.at += 3 * HOUR
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(big=9.0, small=3.0)
    assert clients.count("get_products") == 4
    assert {lane for lane, _, _ in clients.asked} == {Lane.PRICE_LIST}
    assert {asked["region"] for _, _, asked in clients.asked} == {"us-east-1"}


async def test_a_type_that_failed_is_asked_again_at_the_next_look_and_the_others_are_not() -> None:
    clock, listed = HandClock(), Listed(big=CloudError("busy"), small=2.0)
    clients = PlayedClients(get_products=listed)
    offerings = AwsOfferings([(clients, place())], clock=clock)  # type: ignore[list-item]
    sold = await offerings.list(ON_DEMAND)
    assert prices(sold) == everywhere(big=None, small=2.0)
    assert sold.problem.startswith("no on-demand price of big in us-east-1: busy; allow pricing:GetProducts")
    listed.prices["big"] = None
    sold = await offerings.list(ON_DEMAND)
    assert (prices(sold), "the price list has none" in sold.problem) == (
        everywhere(big=None, small=2.0),
        True,
    )
    listed.prices["big"] = 9.0
    sold = await offerings.list(ON_DEMAND)
    assert (prices(sold), sold.problem) == (everywhere(big=9.0, small=2.0), "")
    await offerings.list(ON_DEMAND)
    assert clients.count("get_products") == 4, "two, then big alone, twice"


async def test_a_price_that_was_read_is_not_sold_once_it_is_due_and_cannot_be_read() -> None:
    clock, listed = HandClock(), Listed(big=9.0, small=2.0)
    clients = PlayedClients(get_products=listed)
    offerings = AwsOfferings([(clients, place())], clock=clock)  # type: ignore[list-item]
    await offerings.list(ON_DEMAND)
    listed.prices["big"] = CloudError("busy")
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(big=9.0, small=2.0)
    clock.at += 12 * HOUR
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(big=None, small=2.0)
    listed.prices = {"big": CloudError("busy"), "small": CloudError("busy")}
    clock.at += 12 * HOUR
    with pytest.raises(CloudError, match="no on-demand price of big, small in us-east-1: busy"):
        await offerings.list(ON_DEMAND)


async def test_prices_of_ones_own_ask_nobody_and_stand_beside_those_of_the_list() -> None:
    listed = Listed(big=9.0, small=2.0)
    clients = PlayedClients(get_products=listed)
    own = place(on_demand_prices={"small": 1.5})
    offerings = AwsOfferings([(clients, own)], clock=HandClock())  # type: ignore[list-item]
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(big=9.0, small=1.5)
    assert clients.count("get_products") == 1
    listed.prices["big"] = CloudError("busy")
    offerings = AwsOfferings([(clients, own)], clock=HandClock())  # type: ignore[list-item]
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(big=None, small=1.5)


async def test_a_type_that_hangs_is_given_up_alone() -> None:
    class Hanging(PlayedClients):
        async def pages(self, *args: Any, **parameters: Any) -> Any:
            if any(f["Value"] == "big" for f in parameters["Filters"]):
                await asyncio.get_running_loop().create_future()
            async for page in super().pages(*args, **parameters):
                yield page

    clients = Hanging(get_products=Listed(small=2.0))
    offerings = AwsOfferings([(clients, place())], clock=HandClock(), patience=0.01)  # type: ignore[list-item]
    sold = await offerings.list(ON_DEMAND)
    assert prices(sold) == everywhere(big=None, small=2.0)
    assert "big in us-east-1: no answer within 0 s" in sold.problem


NEW, OLD = (datetime.datetime(2026, 1, day, tzinfo=datetime.UTC) for day in (2, 1))


def entry(price: str, zone: str = "a", name: str = "small", at: datetime.datetime = NEW) -> dict[str, Any]:
    zone = f"us-east-1{zone}"
    return {"SpotPrice": price, "Timestamp": at, "AvailabilityZone": zone, "InstanceType": name}


async def spot(*pages: Any) -> Any:
    clients = PlayedClients(describe_spot_price_history=list(pages))
    offerings = AwsOfferings([(clients, place())], clock=HandClock())  # type: ignore[list-item]
    try:
        return await offerings.list(SPOT)
    finally:
        assert clients.count("describe_spot_price_history") == 1, "one listing, whatever its pages"
        (lane, _, asked) = clients.asked[0]
        assert lane is Lane.SPOT_PRICES
        assert asked["InstanceTypes"] == ["big", "small"]
        assert asked["Filters"] == [{"Name": "availability-zone", "Values": ["us-east-1a", "us-east-1b"]}]
        assert asked["StartTime"].timestamp() == 1000.0


async def test_the_newest_price_over_all_pages_counts_and_strangers_do_not() -> None:
    sold = await spot(
        {
            "SpotPriceHistory": [
                entry("3.0"),
                entry("8.0", "b", "big"),
                entry("1.0", "c"),
                entry("1.0", name="odd"),
            ]
        },
        {"SpotPriceHistory": [entry("9.0", at=OLD), entry("2.5", "b")]},
    )
    assert prices(sold) == {("a", "small"): 3.0, ("b", "big"): 8.0, ("b", "small"): 2.5}
    assert sold.problem == ""


async def test_a_price_that_is_no_number_is_looked_for_in_the_next_page_and_else_told() -> None:
    sold = await spot(
        {"SpotPriceHistory": [entry("x"), entry("nan", "b")]},
        {"SpotPriceHistory": [entry("4.0", at=OLD)]},
    )
    assert prices(sold) == {("a", "small"): 4.0, ("b", "small"): None}
    assert sold.problem.startswith("no number: ")
    assert "us-east-1b" in sold.problem
    assert "us-east-1a" not in sold.problem


async def test_no_spot_price_is_a_failure_and_so_is_half_of_the_pages() -> None:
    with pytest.raises(CloudError, match="EC2 states no spot price in us-east-1 for big, small"):
        await spot({"SpotPriceHistory": [entry("1.0", name="odd")]})
    with pytest.raises(CloudError, match="gone"):
        await spot({"SpotPriceHistory": [entry("1.0")]}, CloudError("gone"))


async def test_regions_are_apart_and_their_shares_are_given_up() -> None:
    west = place(region="us-west-2", subnets={"us-west-2a": "s"}, instance_types=("big",))
    one = PlayedClients(get_products=Listed(big=9.0, small=2.0))
    two = PlayedClients(get_products=refusal("AccessDeniedException"))
    pairs: Any = [(one, place()), (two, west)]
    offerings = AwsOfferings(pairs, clock=HandClock())
    assert list(offerings.parts()) == [SPOT, ON_DEMAND, "us-west-2 spot", "us-west-2 on-demand"]
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(big=9.0, small=2.0)
    with pytest.raises(CloudError):
        await offerings.list("us-west-2 on-demand")
    two.says["get_products"] = Listed(big=11.0)
    assert prices(await offerings.list("us-west-2 on-demand")) == {("a", "big"): 11.0}
    assert (one.count("get_products"), two.count("get_products")) == (2, 2)
    assert (one.shares, two.shares) == (1, 1)
    await offerings.close()
    assert (one.shares, two.shares) == (0, 0)
