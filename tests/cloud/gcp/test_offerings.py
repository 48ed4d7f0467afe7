"""Prices of Google: the sum of a machine's parts, or unknown, never a part of the sum."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cloud.errors import CloudError
from cloud.gcp.client import GcpClient
from cloud.gcp.notices import OperationNotices
from cloud.gcp.offerings import GcpOfferings
from cloud.gcp.places import GcpRegion
from cloud.gcp.prices import MachineType, Skus
from cloud.gcp.tokens import NoTokens
from policies.model import Market
from tests.cloud.gcp.test_launches import Quick
from tests.support.gcp_stand_in import GcpStandIn

IOWA = GcpRegion(region="us-central1", zones=("us-central1-a", "us-central1-b"), subnetwork="")
L4 = MachineType(name="g2-standard-4", vcpus=4, memory=16.0, gpus={"nvidia-l4": 1}, disks=0)


def sku(text: str, usd: float, usage: str = "OnDemand", region: str = "us-central1") -> dict:
    rate = {"unitPrice": {"units": str(int(usd)), "nanos": round((usd % 1) * 1e9)}}
    return {
        "description": text,
        "category": {"usageType": usage},
        "serviceRegions": [region],
        "pricingInfo": [{"pricingExpression": {"tieredRates": [{"unitPrice": {}}, rate]}}],
    }


PARTS = [
    sku("G2 Instance Core running in Iowa", 0.025),
    sku("G2 Instance Ram running in Iowa", 0.003),
    sku("Nvidia L4 GPU running in Iowa", 0.56),
]


def test_a_machine_costs_the_sum_of_its_parts() -> None:
    skus = Skus()
    skus.add(PARTS)
    assert skus.price(L4, Market.ON_DEMAND, "us-central1") == (pytest.approx(0.1 + 0.048 + 0.56), "")
    assert skus.price(L4, Market.ON_DEMAND, "europe-west4") == (None, "G2 Instance Core")
    assert skus.price(L4, Market.SPOT, "us-central1") == (None, "G2 Instance Core")


@pytest.mark.parametrize("missing", range(3))
def test_without_one_part_the_price_is_unknown(missing: int) -> None:
    skus = Skus()
    skus.add(part for number, part in enumerate(PARTS) if number != missing)
    price, part = skus.price(L4, Market.ON_DEMAND, "us-central1")
    assert price is None
    assert part in PARTS[missing]["description"]


def test_other_ways_to_buy_a_part_do_not_count_and_the_dearer_of_two_does() -> None:
    skus = Skus()
    skus.add([*PARTS, sku("G2 Custom Instance Core running in Iowa", 9.0), sku("Nvidia L4 GPU", 0.6)])
    skus.add([sku("Commitment v1: Nvidia L4 GPU", 7.0, "Commit1Yr"), sku("Reserved Nvidia L4 GPU", 8.0)])
    price, _ = skus.price(L4, Market.ON_DEMAND, "us-central1")
    assert price == pytest.approx(0.1 + 0.048 + 0.6)


def test_bundled_disks_are_a_part() -> None:
    skus = Skus()
    skus.add(PARTS)
    disks = replace(L4, disks=2)
    assert skus.price(disks, Market.ON_DEMAND, "us-central1") == (None, "SSD backed Local Storage")
    skus.add([sku("SSD backed Local Storage", 0.08)])
    price, _ = skus.price(disks, Market.ON_DEMAND, "us-central1")
    assert price == pytest.approx(0.708 + 2 * 375 * 0.08 / 730)


@pytest.mark.parametrize(
    "broken", [{"description": None}, {"pricingInfo": []}, {"category": None}, {"pricingInfo": [{}]}]
)
def test_a_sku_that_says_no_price_is_none(broken: dict) -> None:
    skus = Skus()
    skus.add([*PARTS[:2], {**PARTS[2], **broken}])
    assert skus.price(L4, Market.ON_DEMAND, "us-central1")[0] is None


@pytest.fixture
async def google():
    stand_in = GcpStandIn(zones=("us-central1-a", "us-central1-b"))
    await stand_in.open()
    yield stand_in
    await stand_in.close()


@pytest.fixture
async def offerings(google):
    made = []

    def make(place: GcpRegion = IOWA, kinds: tuple[str, ...] = ("g2-standard-4",), clock=None):
        client = GcpClient("p", NoTokens(), endpoint=google.url)
        made.append(GcpOfferings(client, [place], kinds, clock=clock or Quick()))
        return made[-1]

    yield make
    for adapter in made:
        await adapter.close()


async def test_own_prices_win_and_the_catalogue_is_not_asked(google, offerings) -> None:
    place = replace(IOWA, on_demand_prices={"g2-standard-4": 0.5}, spot_prices={"g2-standard-4": 0.2})
    adapter = offerings(place)
    sold = [await adapter.list(part) for part in adapter.parts()]
    assert {o.price for each in sold for o in each.offerings} == {0.5, 0.2}
    assert not any("/skus" in call for call in google.calls)


async def test_a_type_that_a_zone_has_not_is_not_sold_there(offerings) -> None:
    sold = await offerings(kinds=("g2-standard-4", "a3-highgpu-8g")).list("us-central1 spot")
    assert {o.placement.instance_type for o in sold.offerings} == {"g2-standard-4"}
    assert not sold.problem


async def test_a_catalogue_that_fails_leaves_offerings_without_a_price_and_is_asked_again(
    google, offerings
) -> None:
    clock = Quick()
    adapter = offerings(clock=clock)
    google.fault("/skus$", status=403, reason="forbidden")
    sold = await adapter.list("us-central1 on-demand")
    assert {o.price for o in sold.offerings} == {None}
    assert "enable the Cloud Billing API" in sold.problem
    assert "forbidden" in sold.problem
    clock.passed += 301
    again = await adapter.list("us-central1 on-demand")
    assert not again.problem
    assert all(o.price and o.price > 0 for o in again.offerings)


async def test_a_zone_that_is_dark_fails_its_region(google, offerings) -> None:
    google.dark = {"us-central1-b"}
    with pytest.raises(CloudError):
        await offerings().list("us-central1 spot")


async def test_the_catalogue_is_read_once_for_all_parts(google, offerings) -> None:
    adapter = offerings()
    await asyncio.gather(*(adapter.list(part) for part in adapter.parts()))
    await asyncio.gather(*(adapter.list(part) for part in adapter.parts()))
    assert sum("/skus" in call for call in google.calls) == 3  # its pages


async def test_a_zone_that_is_dark_ages_the_source_and_silences_no_other(google) -> None:
    clock = Quick()
    source = OperationNotices(
        GcpClient("p", NoTokens(), endpoint=google.url),
        IOWA.zones,
        clock,
        owned=lambda node: node != "so-theirs",
        interval=0.01,
    )
    google.dark = {"us-central1-b"}
    for name in ("so-theirs", "so-ours"):
        google.machines["us-central1-a", name] = {"name": name, "status": "RUNNING"}
        google.preempt(name, notice=60.0)
    stream = source.stream()
    notice = await anext(stream)
    assert notice.node == "so-ours"
    assert source.age() == float("inf")
    google.dark = set()
    again = asyncio.create_task(anext(stream))
    while source.age() == float("inf"):  # noqa: ASYNC110 - a source tells nobody
        await asyncio.sleep(0.01)
    assert not again.done()  # each reader is told once
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)
    await source.close()
