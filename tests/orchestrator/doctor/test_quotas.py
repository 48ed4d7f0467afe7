"""Quotas of an account, read once for all pools that they hold for."""

from __future__ import annotations

from typing import Any

import pytest

from cloud.errors import CloudError
from orchestrator.config.load import Config, build_config, load_config
from orchestrator.doctor.quotas import granted
from policies.model import Market


def two_pools(account: Any) -> Config:
    """The account's pool, and another of it with a larger type."""
    made = load_config(account.config())
    table = made.pool.cloud.aws
    subnets = dict(table.regions["us-east-1"].subnets)
    pools = {
        name: {
            "replicas": 1,
            "engine": {"allow_simulated": True, "served_name": name},
            "limits": {"spend_per_hour": "unlimited"},
            "cloud": {
                "kind": "aws",
                "aws": {
                    "instance_types": [kind],
                    "endpoint": table.endpoint,
                    "regions": {"us-east-1": {"subnets": subnets, "launch_template": "t"}},
                },
            },
        }
        for name, kind in (("a", "p5.4xlarge"), ("b", "p5.48xlarge"))
    }  # fmt: skip
    return build_config({"pool": pools})


async def test_each_quota_is_read_once_with_every_type_that_counts(account: Any) -> None:
    account.shim.order("set", quotas={"L-417A185B": 32, "L-C4BD4855": 208})
    found = {quota.code: quota for quota in await granted(two_pools(account))}
    assert {code: (quota.market, quota.vcpus) for code, quota in found.items()} == {
        "L-417A185B": (Market.ON_DEMAND, 32.0),
        "L-C4BD4855": (Market.SPOT, 208.0),
    }
    assert found["L-417A185B"].each == {"p5.4xlarge": 16.0, "p5.48xlarge": 192.0}
    assert found["L-417A185B"].region == "us-east-1"


async def test_a_quota_that_may_not_be_read_is_an_error(account: Any) -> None:
    account.shim.order("set", denied=["servicequotas:GetServiceQuota"])
    with pytest.raises(CloudError):
        await granted(load_config(account.config()))
