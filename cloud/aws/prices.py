"""What machines cost on EC2: the last good price of every offering, and how AWS writes prices down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from policies.model import Placement

_DEAREST = 100_000.0  # USD/h; whatever is above is not a price, infinity and NaN included


class PriceBook:
    """The newest known price per placement, USD per node-hour; shared by the adapters of one pool."""

    def __init__(self) -> None:
        self._prices: dict[Placement, float] = {}

    def of(self, placement: Placement) -> float:
        """The last good price; 0 as long as none is known."""
        return self._prices.get(placement, 0.0)

    def update(self, prices: Mapping[Placement, float]) -> None:
        """Take over newer prices; what is not named keeps its last one."""
        self._prices.update(prices)


def spot_prices(page: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """A page of DescribeSpotPriceHistory: (zone, type) to USD/h, the newest of each.

    Entries that cannot be read are left out: one odd line must not cost the prices of all others.
    """
    found: dict[tuple[str, str], tuple[Any, float]] = {}
    for entry in page.get("SpotPriceHistory", ()):
        price = _money(entry.get("SpotPrice"))
        place = (entry.get("AvailabilityZone", ""), entry.get("InstanceType", ""))
        if price is None or not all(place):
            continue
        if place not in found or entry["Timestamp"] > found[place][0]:
            found[place] = (entry["Timestamp"], price)
    return {place: price for place, (_, price) in found.items()}


def on_demand_prices(products: Iterable[str]) -> dict[str, float]:
    """Products of Pricing GetProducts, each a JSON text: instance type to USD/h.

    The format is that of the price list: product.attributes, and under terms.OnDemand one offer with one
    dimension in "Hrs". A product that cannot be read is left out.
    """
    found: dict[str, float] = {}
    for text in products:
        try:
            product = json.loads(text)
            name = product["product"]["attributes"]["instanceType"]
            terms = product["terms"]["OnDemand"].values()
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for price in _hourly(terms):
            found[name] = price
    return found


def _hourly(terms: Iterable[Any]) -> Iterable[float]:
    for term in terms:
        try:
            dimensions = list(term["priceDimensions"].values())
        except (KeyError, TypeError, AttributeError):
            continue
        for dimension in dimensions:
            if not isinstance(dimension, dict) or dimension.get("unit") != "Hrs":
                continue
            per_unit = dimension.get("pricePerUnit")
            price = _money(per_unit.get("USD")) if isinstance(per_unit, dict) else None
            if price is not None:
                yield price


def _money(text: object) -> float | None:
    """A price as AWS writes it, a decimal text; None for anything that is not a positive number."""
    try:
        price = float(str(text))
    except ValueError:
        return None
    return price if 0.0 < price < _DEAREST else None
