"""What must hold between the clouds of one pool. What holds for each alone is checked for each."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.errors import Found, Key
from orchestrator.config.tables.pool import PoolConfig


def many_errors(at: Key, pool: PoolConfig) -> Iterator[Found]:
    """What keeps a pool from running on several clouds. `at` is the path of the pool."""
    cloud, owner = pool.cloud, dict[str, str]()
    for kind, table in zip(cloud.kinds, cloud.tables, strict=True):
        for region in table.prices():
            first = owner.setdefault(region, kind)
            if first != kind:
                yield (
                    (*at, "cloud", kind, "regions", region),
                    f"is a region of cloud.{first} too, and a pool tells its regions apart by their names; "
                    "leave it out of one of the two",
                )
    if len(cloud.kinds) > 1 and "aws" in cloud.kinds and cloud.aws.target_group:
        yield (
            (*at, "cloud", "aws", "target_group"),
            "takes instances of EC2 alone, and nodes of other clouds would get no requests; leave it out, "
            "and let the gateway or a [[pool.NAME.balancer]] carry them",
        )
