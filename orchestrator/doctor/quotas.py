"""The quotas of vCPUs that AWS grants the pools of a configuration, for a plan of capacity."""

from __future__ import annotations

from cloud.aws.catalogue import catalogue
from cloud.aws.doctor import launch
from orchestrator.config.load import Config
from orchestrator.costs.capacity import Quota
from orchestrator.doctor.aws_launch import quota_codes
from orchestrator.wiring.aws import clients_of


async def granted(config: Config) -> list[Quota]:
    """Each quota that a pool's types count against, once, however many pools do. Raises CloudError."""
    found: dict[tuple[str, str], Quota] = {}
    for name, pool in config.pools.items():
        if "aws" not in pool.cloud.kinds:
            continue
        for clients, place in clients_of(config.only(name)):
            for (market, code), kinds in quota_codes(place.instance_types).items():
                before = found.get((place.region, code))
                known = (catalogue().types[kind] for kind in kinds if kind in catalogue().types)
                each = {kind.name: float(kind.vcpus) for kind in known}
                found[place.region, code] = Quota(
                    code=code,
                    region=place.region,
                    market=market,
                    vcpus=before.vcpus if before else await launch.quota(clients, code),
                    each={**before.each, **each} if before else each,
                )
    return list(found.values())
