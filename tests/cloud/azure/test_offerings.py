"""What is Azure's own about what is sold."""

from __future__ import annotations

from typing import Any

import pytest
from azure_pool import place
from azure_stage import SIZE

from cloud.azure.prices import read_prices
from cloud.azure.skus import Size, read_skus
from cloud.errors import CloudError
from policies.model import Market

OTHER = "Standard_NC40ads_H100_v5"


def row(**values: Any) -> dict[str, Any]:
    usual = {
        "armSkuName": SIZE,
        "skuName": "NC24ads A100 v4",
        "productName": "Virtual Machines NCads A100 v4 Series",
        "unitOfMeasure": "1 Hour",
        "currencyCode": "USD",
        "retailPrice": 3.673,
    }
    return {**usual, **values}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row()], {(SIZE, Market.ON_DEMAND): 3.673}),
        ([row(skuName="NC24ads A100 v4 Spot", retailPrice=1.4)], {(SIZE, Market.SPOT): 1.4}),
        ([row(skuName="NC24ads A100 v4 Low Priority")], {}),
        ([row(productName="Virtual Machines NCads A100 v4 Series Windows")], {}),
        ([row(unitOfMeasure="1/Month")], {}),
        ([row(currencyCode="EUR")], {}),
        ([row(armSkuName="")], {}),
        ([row(retailPrice=3.0), row()], {(SIZE, Market.ON_DEMAND): 3.0}),
        *[
            ([row(retailPrice=odd)], {(SIZE, Market.ON_DEMAND): None})
            for odd in (0, -1, None, "3", True, 1e9)
        ],
        ([row(retailPrice=None), row()], {(SIZE, Market.ON_DEMAND): 3.673}),
    ],
)
def test_rows_of_the_price_list(rows: list[dict[str, Any]], expected: dict[Any, Any]) -> None:
    assert read_prices(rows) == expected


def sku(*restrictions: dict[str, Any], **capabilities: str) -> dict[str, Any]:
    return {
        "resourceType": "virtualMachines",
        "name": SIZE,
        "locationInfo": [{"location": "eastus", "zones": ["3", "1"]}],
        "capabilities": [{"name": name, "value": value} for name, value in capabilities.items()],
        "restrictions": restrictions,
    }


IN_ZONE = {"type": "Zone", "values": ["eastus"], "restrictionInfo": {"locations": ["eastus"], "zones": ["1"]}}
ELSEWHERE = {"type": "Zone", "values": ["west"], "restrictionInfo": {"locations": ["west"], "zones": ["1"]}}
WHOLE = {"type": "Location", "values": ["eastus"], "restrictionInfo": {"locations": ["eastus"]}}


@pytest.mark.parametrize(
    ("found", "zones", "anywhere"),
    [
        (sku(), {"1", "3"}, True),
        (sku(IN_ZONE), {"3"}, True),
        (sku(ELSEWHERE), {"1", "3"}, True),
        (sku(WHOLE), set(), False),
    ],
)
def test_restrictions_of_a_subscription(found: dict[str, Any], zones: set[str], anywhere: bool) -> None:
    (size,) = read_skus([found], "eastus").values()
    assert (size.zones, size.anywhere, size.spot) == (zones, anywhere, False)


def test_a_size_of_another_region_is_not_sold_here_and_disks_are_no_machines() -> None:
    assert read_skus([sku(), {"resourceType": "disks", "name": "x"}], "westus3") == {}
    assert read_skus([sku(GPUs="1", LowPriorityCapable="True")], "eastus")[SIZE] == Size(
        zones=frozenset({"1", "3"}), anywhere=True, spot=True, gpus=1
    )


@pytest.mark.slow
class TestOnTheStandIn:
    async def test_what_the_subscription_may_not_use_is_not_sold(self, stand: Any) -> None:
        await stand.order("set", restrictions={SIZE: ["1"]}, no_spot=[OTHER])
        offerings = stand.adapters(place(instance_types=(SIZE, OTHER))).offerings
        spot = (await offerings.list("eastus spot")).offerings
        on_demand = (await offerings.list("eastus on-demand")).offerings
        assert [(o.placement.zone, o.placement.instance_type) for o in spot] == [("eastus-2", SIZE)]
        assert [(o.placement.zone, o.placement.instance_type) for o in on_demand] == [
            ("eastus-1", OTHER),
            ("eastus-2", SIZE),
            ("eastus-2", OTHER),
        ]

    async def test_a_pool_without_zones_buys_in_the_region(self, stand: Any) -> None:
        sold = await stand.adapters(place(zones=())).offerings.list("eastus spot")
        assert [o.placement.zone for o in sold.offerings] == ["eastus"]

    async def test_restrictions_that_cannot_be_read_hide_no_price(self, stand: Any) -> None:
        await stand.order("fault", action="skus", code="InternalServerError", status=500)
        offerings = stand.adapters().offerings
        sold = await offerings.list("eastus spot")
        assert len(sold.offerings) == 2
        assert "may use" in sold.problem
        assert (await offerings.list("eastus spot")).problem == ""

    async def test_a_price_list_that_is_down_leaves_the_configured_prices(self, stand: Any) -> None:
        await stand.order("fault", action="prices", code="x", status=503, times=2)
        offerings = stand.adapters(
            place(instance_types=(SIZE, OTHER), on_demand_prices={SIZE: 3.0})
        ).offerings
        sold = await offerings.list("eastus on-demand")
        prices = {o.placement.instance_type: o.price for o in sold.offerings}
        assert prices == {SIZE: 3.0, OTHER: None}
        assert "503" in sold.problem
        with pytest.raises(CloudError, match="503"):
            await offerings.list("eastus spot")

    async def test_prices_of_several_pages_are_read(self, stand: Any) -> None:
        await stand.order("set", page=2)
        sold = await stand.adapters(place(instance_types=(SIZE, OTHER))).offerings.list("eastus on-demand")
        assert {o.placement.instance_type: o.price for o in sold.offerings} == {SIZE: 3.673, OTHER: 6.98}

    async def test_a_configured_price_needs_no_list(self, stand: Any) -> None:
        offerings = stand.adapters(place(on_demand_prices={SIZE: 2.5})).offerings
        assert {o.price for o in (await offerings.list("eastus on-demand")).offerings} == {2.5}
        assert "prices" not in (await stand.order("calls"))["calls"]
