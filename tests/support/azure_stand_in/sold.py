"""What is sold: resource SKUs, and the public list of retail prices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SIZES = {
    "Standard_NC24ads_A100_v4": (3.673, 1.469, 24, 1),
    "Standard_NC48ads_A100_v4": (7.346, 2.938, 48, 2),
    "Standard_NC40ads_H100_v5": (6.98, 2.79, 40, 1),
}
"""Sizes: USD/h on demand and as spot, vCPUs, GPUs."""


def skus(region: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for size, (_, _, cpus, gpus) in SIZES.items():
        forbidden = settings["restrictions"].get(size, [])
        restrictions = []
        if "*" in forbidden:
            restrictions.append(
                {
                    "type": "Location",
                    "values": [region],
                    "restrictionInfo": {"locations": [region]},
                    "reasonCode": "NotAvailableForSubscription",
                }
            )
        elif forbidden:
            restrictions.append(
                {
                    "type": "Zone",
                    "values": [region],
                    "restrictionInfo": {"locations": [region], "zones": list(forbidden)},
                    "reasonCode": "NotAvailableForSubscription",
                }
            )
        found.append(
            {
                "resourceType": "virtualMachines",
                "name": size,
                "tier": "Standard",
                "size": size.removeprefix("Standard_"),
                "locations": [region],
                "locationInfo": [{"location": region, "zones": ["2", "1", "3"], "zoneDetails": []}],
                "capabilities": [
                    {"name": "vCPUs", "value": str(cpus)},
                    {"name": "GPUs", "value": str(gpus)},
                    {"name": "LowPriorityCapable", "value": str(size not in settings.get("no_spot", []))},
                ],
                "restrictions": restrictions,
            }
        )
    found.append({"resourceType": "disks", "name": "Premium_LRS", "locations": [region], "restrictions": []})
    return found


def prices(wanted: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    named = set(re.findall(r"armSkuName eq '([^']+)'", wanted))
    regions = re.findall(r"armRegionName eq '([^']+)'", wanted)
    items = []
    for region in regions:
        for size, (on_demand, spot, _, _) in SIZES.items():
            if size not in named:
                continue
            on_demand, spot = settings["prices"].get(size, (on_demand, spot))
            short = size.removeprefix("Standard_").replace("_", " ")
            series = f"Virtual Machines {short.split(' ')[0]} Series"
            rows = [
                (short, series, on_demand),
                (f"{short} Spot", series, spot),
                (f"{short} Low Priority", series, spot * 1.1),
                (short, f"{series} Windows", on_demand + 1.1),
                (f"{short} Spot", f"{series} Windows", spot + 1.1),
            ]
            for name, product, price in rows:
                items.append(
                    {
                        "currencyCode": "USD",
                        "retailPrice": price,
                        "unitPrice": price,
                        "armRegionName": region,
                        "meterName": name.removesuffix(" Spot"),
                        "productName": product,
                        "skuName": name,
                        "serviceName": "Virtual Machines",
                        "unitOfMeasure": "1 Hour",
                        "type": "Consumption",
                        "armSkuName": size,
                    }
                )
    return items
