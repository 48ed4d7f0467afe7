"""What machines cost: spot price history and the price list, neither of which moto has."""

import json
import time

from moto.core.responses import ActionResult
from moto.ec2.models import EC2Backend
from moto.ec2.responses.spot_instances import SpotInstances

_SPOT, _ON_DEMAND = 1.0, 3.0  # USD/h where nothing else is set
_PAGE = 100


def patch_market(shim):
    """Change moto's spot prices in this process."""

    def describe_spot_price_history(self):
        self.error_on_dryrun()
        filters = self._filters_from_querystring()
        types = self._get_param("InstanceTypes", [])
        zones = filters.get("availability-zone") or [
            zone.name for zone in EC2Backend.describe_availability_zones(self.ec2_backend)
        ]
        prices = shim.settings["spot_prices"]
        rows = []
        for name in types:
            for zone in zones:
                price = prices.get(f"{name}:{zone}", prices.get(name, _SPOT))
                if price is not None:
                    rows.append(
                        {
                            "InstanceType": name,
                            "ProductDescription": "Linux/UNIX",
                            "SpotPrice": f"{price:.6f}",
                            "AvailabilityZone": zone,
                            "Timestamp": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
                        }
                    )
        start = int(self._get_param("NextToken") or 0)
        size = int(self._get_param("MaxResults", 1000))
        more = str(start + size) if len(rows) > start + size else ""
        return ActionResult({"SpotPriceHistory": rows[start : start + size], "NextToken": more})

    SpotInstances.describe_spot_price_history = describe_spot_price_history


def products(shim, body):
    """The answer of Pricing GetProducts: JSON in JSON, as AWS writes it."""
    wanted = {entry["Field"]: entry["Value"] for entry in body.get("Filters", [])}
    name = wanted.get("instanceType")
    price = shim.settings["on_demand_prices"].get(name, _ON_DEMAND)
    listed = []
    if name is not None and price is not None:
        product = {
            "product": {
                "productFamily": "Compute Instance",
                "attributes": {"instanceType": name, "regionCode": wanted.get("regionCode", "")},
                "sku": "SKU",
            },
            "serviceCode": "AmazonEC2",
            "terms": {
                "OnDemand": {
                    "SKU.TERM": {
                        "priceDimensions": {
                            "SKU.TERM.RATE": {"unit": "Hrs", "pricePerUnit": {"USD": f"{price:.10f}"}}
                        },
                        "sku": "SKU",
                    }
                }
            },
        }
        listed.append(json.dumps(product))
    return {"FormatVersion": "aws_v1", "PriceList": listed[:_PAGE]}
