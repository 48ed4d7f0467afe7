"""From the [pool.NAME.cloud] table to the adapters of the local cloud."""

from __future__ import annotations

from collections.abc import Callable

from cloud.local.connection import LocalCloud
from cloud.local.instances import LocalInstances
from cloud.local.notices import LocalEventFeed, LocalMetadata
from cloud.local.offerings import LocalOfferings
from cloud.ports import Clock
from orchestrator.config.load import Config
from orchestrator.wiring.clouds import CloudPorts


def connect_local(config: Config, clock: Clock, _owned: Callable[[str], bool]) -> CloudPorts:
    """The adapters of the configured pool. Its cloud knows no other's machines."""
    cloud = LocalCloud(config.pool.cloud.socket, timeout=config.daemon.call_timeout)
    instances = LocalInstances(cloud)
    metadata = LocalMetadata(clock, cloud=cloud, interval=min(1.0, config.daemon.probe_interval))
    return CloudPorts(
        instances=instances,
        offerings=LocalOfferings(cloud),
        notices=(LocalEventFeed(cloud, clock, pool=config.pool_name), metadata),
        metadata=metadata,
        starts=instances,
    )
