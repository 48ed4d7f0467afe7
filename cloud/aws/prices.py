"""How AWS writes down what machines cost on EC2."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

_DEAREST = 100_000.0  # USD/h; whatever is above is not a price, infinity and NaN included


def spot_prices(page: Mapping[str, Any]) -> dict[tuple[str, str], float | None]:
    """A page of DescribeSpotPriceHistory: (zone, type) to USD/h, the newest of each that can be read.

    None where no entry can be: it is sold there, and one odd line must not cost the prices of all others.
    """
    found: dict[tuple[str, str], float | None] = {}
    read_of: dict[tuple[str, str], Any] = {}
    for entry in page.get("SpotPriceHistory", ()):
        price, at = _money(entry.get("SpotPrice")), entry.get("Timestamp")
        place = (entry.get("AvailabilityZone", ""), entry.get("InstanceType", ""))
        if not all(place):
            continue
        found.setdefault(place, None)
        if price is not None and at is not None and (place not in read_of or at > read_of[place]):
            found[place], read_of[place] = price, at
    return found


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
