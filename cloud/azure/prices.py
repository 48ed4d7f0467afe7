"""What machines cost on Azure, by its public list of retail prices. Pure.

Source: "Azure Retail Prices REST API overview". The list needs no account. Each size has a row for each
market and for each operating system that it is billed with; names of products and of SKUs tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from policies.model import Market

PRICES: Final = "https://prices.azure.com/api/retail/prices"
VERSION: Final = "2023-01-01-preview"

_DEAREST = 100_000.0  # USD/h; whatever is above is not a price, infinity and NaN included


def wanted(region: str, sizes: Iterable[str]) -> str:
    """The $filter of one region's prices of some sizes."""
    named = " or ".join(f"armSkuName eq '{size}'" for size in sizes)
    return (
        f"serviceName eq 'Virtual Machines' and armRegionName eq '{region}' "
        f"and priceType eq 'Consumption' and ({named})"
    )


def read_prices(items: Iterable[Mapping[str, Any]]) -> dict[tuple[str, Market], float | None]:
    """Rows of the list: (size, market) to USD/h on Linux. None where no row can be read: it is sold, and one
    odd row must not cost the prices of all others. Of several, the lowest: tiers are for large amounts."""
    found: dict[tuple[str, Market], float | None] = {}
    for item in items:
        size, sku = str(item.get("armSkuName") or ""), str(item.get("skuName") or "")
        product = str(item.get("productName") or "")
        if not size or "Low Priority" in sku or "Windows" in product or "Cloud Services" in product:
            continue
        if item.get("unitOfMeasure") != "1 Hour" or item.get("currencyCode") != "USD":
            continue
        key = (size, Market.SPOT if "Spot" in sku else Market.ON_DEMAND)
        price, known = _money(item.get("retailPrice")), found.setdefault(key, None)
        if price is not None and (known is None or price < known):
            found[key] = price
    return found


def _money(value: object) -> float | None:
    """A price as JSON has it; None for anything that is not a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0.0 < value < _DEAREST else None
