"""Prices: where they come from, and what is kept when they do not come."""

import datetime
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.aws import offerings as module
from cloud.aws.instances import AwsInstances
from cloud.aws.offerings import AwsOfferings
from cloud.aws.prices import PriceBook, on_demand_prices, spot_prices
from cloud.errors import CloudError
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Market


class SetClock:
    """A clock that is set."""

    def __init__(self):
        self.time = 1_800_000_000.0

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self.time += seconds


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def offerings(aws_shim, aws_clients, aws_place, clock):
    return AwsOfferings([(aws_clients, aws_place)], clock=clock)


def prices(found, market):
    return {
        (o.placement.zone[-1], o.placement.instance_type): o.price
        for o in found
        if o.placement.market is market
    }


@pytest.mark.slow
async def test_each_zone_and_type_has_its_price(offerings, aws_shim):
    aws_shim.order(
        "set",
        spot_prices={"p5.4xlarge": 2.5, "p5.4xlarge:us-east-1b": 2.0, "g6e.12xlarge:us-east-1a": None},
        on_demand_prices={"p5.4xlarge": 6.88, "g6e.12xlarge": 10.49},
    )
    found = await offerings.list()
    assert prices(found, Market.SPOT) == {
        ("a", "p5.4xlarge"): 2.5,
        ("b", "p5.4xlarge"): 2.0,
        ("b", "g6e.12xlarge"): 1.0,
    }
    assert prices(found, Market.ON_DEMAND) == {
        (zone, name): price
        for zone in "ab"
        for name, price in (("p5.4xlarge", 6.88), ("g6e.12xlarge", 10.49))
    }


@pytest.mark.slow
async def test_every_page_of_spot_prices_is_read(offerings, monkeypatch):
    monkeypatch.setattr(module, "_PAGE", 1)
    assert len(prices(await offerings.list(), Market.SPOT)) == 4


@pytest.mark.slow
async def test_the_last_good_price_list_is_kept_and_asked_for_again(offerings, aws_shim, clock):
    aws_shim.order("set", on_demand_prices={"p5.4xlarge": 6.0})
    first = prices(await offerings.list(), Market.ON_DEMAND)
    aws_shim.order("set", pricing=False)
    clock.time += 13 * 3600
    assert prices(await offerings.list(), Market.ON_DEMAND) == first
    assert "AccessDenied" in offerings.price_list_error
    assert "IAM policy" in offerings.price_list_error
    aws_shim.order("set", pricing=True, on_demand_prices={"p5.4xlarge": 5.0})
    assert prices(await offerings.list(), Market.ON_DEMAND) == first  # not asked again at once
    clock.time += 600
    assert prices(await offerings.list(), Market.ON_DEMAND)[("a", "p5.4xlarge")] == 5.0
    assert offerings.price_list_error == ""


@pytest.mark.slow
async def test_the_price_list_is_not_asked_every_time(offerings, aws_shim):
    for _ in range(3):
        await offerings.list()
    assert aws_shim.order("calls")["GetProducts"] == 2  # once for each type


@pytest.mark.slow
async def test_no_on_demand_price_at_all_says_what_to_do(offerings, aws_shim):
    aws_shim.order("set", pricing=False)
    with pytest.raises(CloudError, match="allow pricing:GetProducts or write the prices"):
        await offerings.list()


@pytest.mark.slow
async def test_prices_of_ones_own_win_and_need_no_price_list(aws_shim, aws_clients, aws_place, clock):
    aws_shim.order("set", pricing=False)
    own = {"p5.4xlarge": 4.2, "g6e.12xlarge": 7.0}
    place = replace(aws_place, on_demand_prices=own)
    found = await AwsOfferings([(aws_clients, place)], clock=clock).list()
    assert prices(found, Market.ON_DEMAND)[("b", "p5.4xlarge")] == 4.2
    assert "GetProducts" not in aws_shim.order("calls")


@pytest.mark.slow
async def test_spot_prices_that_cannot_be_read_are_an_error(offerings, aws_shim):
    aws_shim.order("fault", action="DescribeSpotPriceHistory", kind="error", code="InternalError", status=500)
    with pytest.raises(CloudError):
        await offerings.list()
    assert await offerings.list()


@pytest.mark.slow
async def test_instances_carry_the_price_of_their_offering(aws_shim, aws_clients, aws_place, clock):
    book = PriceBook()
    offerings = AwsOfferings([(aws_clients, aws_place)], clock=clock, prices=book)
    instances = AwsInstances([(aws_clients, aws_place)], clock=clock, prices=book)
    aws_shim.order("set", spot_prices={"p5.4xlarge": 2.5})
    offering = next(o for o in await offerings.list() if o.price == 2.5)
    asked = LaunchRequest(
        token="t", pool="pool", placement=offering.placement, command=EngineCommand(argv=("x",))
    )
    assert (await instances.launch(asked)).price == 2.5
    aws_shim.order("set", spot_prices={"p5.4xlarge": 1.5})
    await offerings.list()
    (listed,) = await instances.list("pool")
    assert listed.price == 1.5


# -- what AWS writes ------------------------------------------------------------------------------

NEW, OLD = (datetime.datetime(2026, 1, day, tzinfo=datetime.UTC) for day in (2, 1))


def entry(price, at=NEW, zone="a", name="t"):
    return {"SpotPrice": price, "Timestamp": at, "AvailabilityZone": zone, "InstanceType": name}


def test_the_newest_spot_price_counts():
    page = {"SpotPriceHistory": [entry("2.0", OLD), entry("3.0"), entry("1.0", OLD)]}
    assert spot_prices(page) == {("a", "t"): 3.0}


@pytest.mark.parametrize("price", ["", "nan", "inf", "-1", "0", "x", None, "1e300"])
def test_a_spot_price_that_is_none_is_left_out(price):
    assert spot_prices({"SpotPriceHistory": [entry(price), entry("2", zone="b")]}) == {("b", "t"): 2.0}


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
