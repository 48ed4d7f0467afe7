"""What every adapter of `Offerings` keeps. See `cloud.ports.Offerings`."""

import pytest

from policies.model import Market

pytestmark = pytest.mark.slow


async def test_every_offering_has_a_place_and_a_price(cloud_world):
    offerings = await cloud_world.sold()
    assert len({offering.placement for offering in offerings}) == len(offerings)
    for offering in offerings:
        assert offering.price > 0
        assert offering.placement.provider
        assert offering.placement.region
        assert offering.placement.zone
        assert offering.placement.instance_type
    assert {offering.placement.market for offering in offerings} == set(Market)


async def test_what_can_be_bought_is_known_without_a_price_and_without_asking(cloud_world):
    """Or nothing is known before a reading. What is known beforehand is what a reading shows."""
    parts = cloud_world.offerings.parts()
    assert parts == cloud_world.offerings.parts()
    for part, beforehand in parts.items():
        assert all(offering.price is None for offering in beforehand)
        sold = {offering.placement for offering in (await cloud_world.offerings.list(part)).offerings}
        assert not beforehand or sold <= {offering.placement for offering in beforehand}


async def test_spot_costs_less_than_on_demand_beside_it(cloud_world):
    prices = {offering.placement: offering.price for offering in await cloud_world.sold()}
    pairs = [
        (price, prices[other])
        for place, price in prices.items()
        for other in prices
        if place.market is Market.SPOT
        and other.market is Market.ON_DEMAND
        and (place.zone, place.instance_type) == (other.zone, other.instance_type)
    ]
    assert pairs
    assert all(spot < on_demand for spot, on_demand in pairs)


async def test_an_instance_has_the_price_of_its_offering_or_none_of_its_own(cloud_world):
    request = await cloud_world.request("t-1", Market.SPOT)
    launched = await cloud_world.instances.launch(request)
    prices = {offering.placement: offering.price for offering in await cloud_world.sold()}
    assert launched.price is None or launched.price == pytest.approx(prices[launched.placement])


async def test_closing_twice_is_fine(cloud_world):
    await cloud_world.offerings.close()
    await cloud_world.offerings.close()
    assert await cloud_world.listed("pool") == ()
