"""Prices: where they come from, and what is kept when they do not come."""

import asyncio
import datetime
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.aws import offerings as module
from cloud.aws.instances import AwsInstances
from cloud.aws.offerings import AwsOfferings
from cloud.aws.prices import on_demand_prices, spot_prices
from cloud.errors import CloudError
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Market


class SetClock:
    """A clock that is set."""

    def __init__(self):
        self.time = 1_800_000_000.0

    def now(self):
        return self.time

    def steady(self):
        return self.time

    async def sleep(self, seconds):
        self.time += seconds


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def offerings(aws_shim, aws_clients, aws_place, clock):
    return AwsOfferings([(aws_clients, aws_place)], clock=clock)


SPOT, ON_DEMAND = "us-east-1 spot", "us-east-1 on-demand"


def prices(sold):
    return {(o.placement.zone[-1], o.placement.instance_type): o.price for o in sold.offerings}


def everywhere(**by_type):
    """The same price in both zones; `big` and `small` are the two types."""
    names = {"small": "p5.4xlarge", "big": "g6e.12xlarge"}
    return {(zone, names[kind]): price for zone in "ab" for kind, price in by_type.items()}


def test_each_region_and_market_is_a_part_and_names_what_may_be_bought(offerings, aws_place):
    parts = offerings.parts()
    assert list(parts) == [SPOT, ON_DEMAND]
    for market, sold in zip(Market, parts.values(), strict=True):
        assert {(o.placement.zone, o.placement.instance_type) for o in sold} == {
            (zone, kind) for zone in aws_place.subnets for kind in aws_place.instance_types
        }
        assert {(o.placement.market, o.price) for o in sold} == {(market, None)}


@pytest.mark.slow
async def test_each_zone_and_type_has_its_price(offerings, aws_shim):
    aws_shim.order(
        "set",
        spot_prices={"p5.4xlarge": 2.5, "p5.4xlarge:us-east-1b": 2.0, "g6e.12xlarge:us-east-1a": None},
        on_demand_prices={"p5.4xlarge": 6.88, "g6e.12xlarge": 10.49},
    )
    spot = await offerings.list(SPOT)
    assert prices(spot) == {("a", "p5.4xlarge"): 2.5, ("b", "p5.4xlarge"): 2.0, ("b", "g6e.12xlarge"): 1.0}
    assert spot.problem == ""
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(small=6.88, big=10.49)


@pytest.mark.slow
async def test_every_page_of_spot_prices_is_read(offerings, monkeypatch):
    monkeypatch.setattr(module, "_PAGE", 1)
    assert len(prices(await offerings.list(SPOT))) == 4


@pytest.mark.slow
async def test_half_of_the_pages_is_no_answer(offerings, aws_shim, monkeypatch):
    monkeypatch.setattr(module, "_PAGE", 1)
    aws_shim.order("fault", action="DescribeSpotPriceHistory", kind="drop", after=2)
    with pytest.raises(CloudError):
        await offerings.list(SPOT)
    assert len(prices(await offerings.list(SPOT))) == 4


@pytest.mark.slow
async def test_spot_is_sold_whatever_the_price_list_does(offerings, aws_shim):
    aws_shim.order("set", pricing=False)
    with pytest.raises(CloudError, match="allow pricing:GetProducts or write on_demand_prices"):
        await offerings.list(ON_DEMAND)
    assert prices(await offerings.list(SPOT)) == everywhere(small=1.0, big=1.0)


@pytest.mark.slow
async def test_on_demand_is_sold_whatever_spot_prices_do(offerings, aws_shim):
    aws_shim.order("set", denied=["ec2:DescribeSpotPriceHistory"])
    with pytest.raises(CloudError, match="UnauthorizedOperation"):
        await offerings.list(SPOT)
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(small=3.0, big=3.0)


@pytest.mark.slow
async def test_the_price_list_is_asked_again_when_it_is_due_and_at_once_after_a_failure(
    offerings, aws_shim, clock
):
    aws_shim.order("set", on_demand_prices={"p5.4xlarge": 6.0})
    first = everywhere(small=6.0, big=3.0)
    for _ in range(3):
        assert prices(await offerings.list(ON_DEMAND)) == first
    assert aws_shim.order("calls")["GetProducts"] == 2  # once for each type
    aws_shim.order("set", pricing=False)
    clock.time += 13 * 3600
    with pytest.raises(CloudError, match="AccessDenied"):
        await offerings.list(ON_DEMAND)
    aws_shim.order("set", pricing=True, on_demand_prices={"p5.4xlarge": 5.0})
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(small=5.0, big=3.0)
    clock.time -= 30 * 3600  # a clock that is set back does not make a price last for a day more
    aws_shim.order("set", on_demand_prices={"p5.4xlarge": 4.0})
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(small=4.0, big=3.0)


@pytest.mark.slow
@pytest.mark.parametrize("price", [None, 0.0, -1.0])
async def test_a_type_without_a_price_in_the_list_hides_no_other(offerings, aws_shim, price):
    aws_shim.order("set", on_demand_prices={"p5.4xlarge": 6.0, "g6e.12xlarge": price})
    sold = await offerings.list(ON_DEMAND)
    assert prices(sold) == everywhere(small=6.0, big=None)
    assert "g6e.12xlarge in us-east-1" in sold.problem
    aws_shim.order("set", on_demand_prices={"p5.4xlarge": 6.0, "g6e.12xlarge": 9.0})
    sold = await offerings.list(ON_DEMAND)
    assert (prices(sold), sold.problem) == (everywhere(small=6.0, big=9.0), "")


@pytest.mark.slow
async def test_a_type_that_hangs_hides_no_other(aws_shim, aws_clients, aws_place, clock):
    offerings = AwsOfferings([(aws_clients, aws_place)], clock=clock, patience=0.5)
    aws_shim.order("fault", action="GetProducts", kind="hold")
    sold = await offerings.list(ON_DEMAND)
    aws_shim.order("release")
    assert sorted(map(str, prices(sold).values())) == ["3.0", "3.0", "None", "None"]
    assert "no answer within" in sold.problem
    assert prices(await offerings.list(ON_DEMAND)) == everywhere(small=3.0, big=3.0)
    await offerings.close()


@pytest.mark.slow
async def test_a_price_list_that_hangs_holds_up_no_list_of_machines(aws_shim, aws_clients, aws_place, clock):
    """Eight types in one region: each holds a thread for as long as it hangs."""
    place = replace(aws_place, instance_types=tuple(f"g6e.{n}xlarge" for n in range(8)))
    offerings = AwsOfferings([(aws_clients, place)], clock=clock, patience=30.0)
    instances = AwsInstances([(aws_clients, place)], clock=clock)
    aws_shim.order("fault", action="GetProducts", kind="hold", times=8)
    look = asyncio.create_task(offerings.list(ON_DEMAND))
    async with asyncio.timeout(20.0):
        while aws_shim.order("calls").get("GetProducts", 0) < 4:  # noqa: ASYNC110 - another process counts
            await asyncio.sleep(0.01)
        assert await instances.list("pool", "us-east-1") == ()
        assert (await offerings.list(SPOT)).offerings
        assert not look.done()
    aws_shim.order("release")
    await look
    await offerings.close()


@pytest.mark.slow
async def test_prices_of_ones_own_win_and_need_no_price_list(aws_shim, aws_clients, aws_place, clock):
    aws_shim.order("set", pricing=False)
    place = replace(aws_place, on_demand_prices={"p5.4xlarge": 4.2, "g6e.12xlarge": 7.0})
    sold = await AwsOfferings([(aws_clients, place)], clock=clock).list(ON_DEMAND)
    assert (prices(sold), sold.problem) == (everywhere(small=4.2, big=7.0), "")
    assert "GetProducts" not in aws_shim.order("calls")
    place = replace(aws_place, on_demand_prices={"p5.4xlarge": 4.2})
    sold = await AwsOfferings([(aws_clients, place)], clock=clock).list(ON_DEMAND)
    assert prices(sold) == everywhere(small=4.2, big=None)


@pytest.mark.slow
async def test_no_spot_price_at_all_is_a_failure_and_not_an_empty_market(offerings, aws_shim):
    aws_shim.order("set", spot_prices={"p5.4xlarge": None, "g6e.12xlarge": None})
    with pytest.raises(CloudError, match="no spot price"):
        await offerings.list(SPOT)


@pytest.mark.slow
async def test_a_spot_price_that_is_none_is_told_and_its_place_is_sold(offerings, aws_shim):
    aws_shim.order("set", spot_prices={"p5.4xlarge:us-east-1a": 0.0})
    sold = await offerings.list(SPOT)
    assert prices(sold) == everywhere(small=1.0, big=1.0) | {("a", "p5.4xlarge"): None}
    assert "p5.4xlarge in us-east-1a" in sold.problem


@pytest.mark.slow
async def test_machines_name_no_price(aws_shim, aws_clients, aws_place, clock):
    instances = AwsInstances([(aws_clients, aws_place)], clock=clock)
    place = AwsOfferings([(aws_clients, aws_place)], clock=clock).parts()[SPOT][0].placement
    command = EngineCommand(argv=("x",))
    launched = await instances.launch(LaunchRequest(token="t", pool="pool", placement=place, command=command))
    assert launched.price is None
    assert [i.price for i in await instances.list("pool", "us-east-1")] == [None]


# -- what AWS writes ------------------------------------------------------------------------------

NEW, OLD = (datetime.datetime(2026, 1, day, tzinfo=datetime.UTC) for day in (2, 1))


def entry(price, at=NEW, zone="a", name="t"):
    return {"SpotPrice": price, "Timestamp": at, "AvailabilityZone": zone, "InstanceType": name}


def test_the_newest_spot_price_counts():
    page = {"SpotPriceHistory": [entry("2.0", OLD), entry("3.0"), entry("1.0", OLD)]}
    assert spot_prices(page) == {("a", "t"): 3.0}


@pytest.mark.parametrize("price", ["", "nan", "inf", "-1", "0", "x", None, "1e300"])
def test_a_spot_price_that_is_no_number_is_none_and_hides_no_other(price):
    page = {"SpotPriceHistory": [entry(price), entry("2", zone="b")]}
    assert spot_prices(page) == {("a", "t"): None, ("b", "t"): 2.0}
    page = {"SpotPriceHistory": [entry(price), entry("2", OLD)]}
    assert spot_prices(page) == {("a", "t"): 2.0}


def test_an_entry_without_a_time_is_no_price():
    page = {"SpotPriceHistory": [entry("3", None), entry("2"), entry("4", None)]}
    assert spot_prices(page) == {("a", "t"): 2.0}


def product(terms):
    return json.dumps({"product": {"attributes": {"instanceType": "t"}}, "terms": {"OnDemand": terms}})


def test_a_product_is_read():
    terms = {"A": {"priceDimensions": {"B": {"unit": "Hrs", "pricePerUnit": {"USD": "6.8800000000"}}}}}
    assert on_demand_prices([product(terms)]) == {"t": 6.88}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"product": 1, "terms": 2}',
        product({}),
        product({"A": {}}),
        product({"A": 1}),
        product({"A": {"priceDimensions": {"B": {"unit": "Quantity", "pricePerUnit": {"USD": "1"}}}}}),
        product({"A": {"priceDimensions": {"B": {"unit": "Hrs", "pricePerUnit": {"CNY": "1"}}}}}),
        product({"A": {"priceDimensions": {"B": {"unit": "Hrs", "pricePerUnit": {"USD": "0.0000000000"}}}}}),
        product({"A": {"priceDimensions": {"B": {"unit": "Hrs", "pricePerUnit": "1"}}}}),
    ],
)
def test_a_product_that_cannot_be_read_is_left_out(text):
    assert on_demand_prices([text]) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_no_product_is_read_as_nonsense(value):
    assert on_demand_prices([json.dumps(value), product(value)]) == {}


def test_of_each_place_the_newest_price_that_can_be_read_counts() -> None:
    def entry(zone: str, price: str, at: int) -> dict[str, object]:
        return {"AvailabilityZone": zone, "InstanceType": "p5", "SpotPrice": price, "Timestamp": at}

    history = [
        {"SpotPrice": "9.0", "Timestamp": 9},  # of no place
        entry("a", "2.0", 5),
        entry("a", "3.0", 4),
        entry("a", "odd", 9),
        entry("b", "0", 1),
        entry("c", "4.0", 1),
        entry("c", "5.0", 2),
    ]
    found = spot_prices({"SpotPriceHistory": history})
    assert found == {("a", "p5"): 2.0, ("b", "p5"): None, ("c", "p5"): 5.0}
