"""From the [pool.NAME.cloud.skypilot] tables to the adapters. Imported only for `cloud.kind = "skypilot"`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cloud.cloud_init.user_data import NodeSetup, user_data
from cloud.ports import Clock, Offerings
from cloud.skypilot.clouds import CLOUDS
from cloud.skypilot.instances import SkyInstances
from cloud.skypilot.offerings import SkyOfferings
from cloud.skypilot.places import SkyRegion, sky_config
from cloud.skypilot.process import HelperApart, HelperSettings, HelperShare, shared
from cloud.skypilot.start import start_script
from cloud.tombstones import Tombstones
from orchestrator.config.checks.engine import gpus_of
from orchestrator.config.load import Config
from orchestrator.metrics.helper import helper_changed
from orchestrator.wiring.clouds import CloudPorts
from orchestrator.wiring.ports import engine_command, engine_of

_REAL: Final = {"AWS_EC2_METADATA_DISABLED": "true"}
"""Beside a stand-in for AWS, the helper must not look for credentials elsewhere."""


def connect_skypilot(config: Config, clock: Clock, _owned: Callable[[str], bool]) -> CloudPorts:
    """The adapters of the configured pool. The helper starts at the first call.

    SkyPilot tells of no notice. Raises ValueError for what no node can be given.
    """
    places = regions_of(config, clock)
    ledger = Tombstones(config.pool.cloud.skypilot.ledger, clock)
    return CloudPorts(
        instances=SkyInstances(helper_of(config, clock, places), places, ledger=ledger, clock=clock),
        offerings=SkyOfferings(helper_of(config, clock, places), places, clock=clock),
        notices=(),
    )


def prices_of_skypilot(config: Config, clock: Clock, _patience: float) -> Offerings:
    """What SkyPilot's catalogue has of the configured places. A daemon may run meanwhile."""
    places = regions_of(config, clock)
    return SkyOfferings(HelperApart(settings_of(config, places), clock), places, clock=clock)


def helper_of(config: Config, clock: Clock, places: list[SkyRegion]) -> HelperShare:
    """A share in the pool's helper."""
    name = config.pool.cloud.skypilot.home.name
    return shared(settings_of(config, places), clock, helper_changed(name))


def settings_of(config: Config, places: list[SkyRegion]) -> HelperSettings:
    """How the pool's helper is started."""
    table = config.pool.cloud.skypilot
    own = {"AWS_ENDPOINT_URL": table.endpoint, **_REAL} if table.endpoint else {}
    regions = {place.region: place for place in places}
    return HelperSettings(
        python=table.python,
        home=table.home,
        regions=tuple(regions),
        user_id=table.user_of(config.pool_name),
        config=sky_config(table.cloud, regions),
        credentials=table.credentials,
        environment=own,
        most_memory=table.most_memory,
    )


def regions_of(config: Config, clock: Clock) -> list[SkyRegion]:
    """The regions of the tables, as the adapters take them."""
    pool, table = config.pool, config.pool.cloud.skypilot
    command = engine_command(engine_of(pool, clock), pool)
    by_data = CLOUDS[table.cloud].starts_by == "user-data"
    setup = NodeSetup(
        pool=config.pool_name,
        command=command,
        port=table.engine_port,
        gpus=gpus_of(pool),
        gpus_on={kind: gpus_of(pool.on(kind)) for kind in pool.engine.on},
        vllm=pool.engine.kind == "vllm",
    )
    return [
        SkyRegion(
            cloud=table.cloud,
            region=name,
            zones=table.zones_of(name),
            instance_types=table.instance_types,
            network=region.network,
            image=region.image,
            profile=table.instance_profile,
            disk=table.disk,
            internal=table.private,
            public=table.public_ip,
            engine_port=table.engine_port,
            user_data=user_data(setup) if by_data else b"",
            script="" if by_data else start_script(config.pool_name, command, table.engine_port),
            tags=table.tags,
        )
        for name, region in table.regions.items()
    ]
