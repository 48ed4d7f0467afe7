"""From the [pool.NAME.cloud.azure] tables to the adapters. Imported only for `cloud.kind = "azure"`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from cloud.azure.clients import AzureAccount, AzureClients
from cloud.azure.eviction import simulate_eviction
from cloud.azure.instances import AzureInstances
from cloud.azure.offerings import AzureOfferings
from cloud.azure.places import AzureRegion, Image
from cloud.azure.prices import PRICES
from cloud.cloud_init.user_data import NodeSetup, user_data
from cloud.node_agent import node_key
from cloud.ports import Clock, LaunchRequest, Offerings
from cloud.tombstones import Tombstones
from orchestrator.config.checks.engine import gpus_of, stored_weights
from orchestrator.config.load import Config
from orchestrator.wiring.clouds import CloudPorts
from orchestrator.wiring.ports import engine_command, engine_of
from policies.model import Instance
from policies.model_fit import GIB

_CONNECT = 2.0  # s
_SHARE = 0.8
"""Share of the time of a whole look that the price list gets."""


def connect_azure(config: Config, clock: Clock, _owned: Callable[[str], bool]) -> CloudPorts:
    """The adapters of the configured pool. Makes no call yet. Its notices come from the agents of nodes.

    Raises ValueError where the SDK is missing, OSError for certificates or a secret that cannot be read.
    """
    regions = regions_of(config, clock)
    return CloudPorts(
        instances=AzureInstances(
            regions,
            clock=clock,
            ledger=Tombstones(config.pool.cloud.azure.ledger, clock),
            custom_data=_first_boot(config, clock),
        ),
        offerings=_offerings(config, regions, clock, _SHARE * config.daemon.call_timeout),
        notices=(),
    )


def prices_of_azure(config: Config, clock: Clock, patience: float) -> Offerings:
    """What Azure sells in the configured places, with so many seconds for the price list."""
    return _offerings(config, regions_of(config, clock), clock, patience)


async def preempt_on_azure(config: Config, clock: Clock, machine: Instance) -> None:
    """Have Azure evict a spot machine, which it does within half an hour. Raises CloudError."""
    found = {place.region: (clients, place) for clients, place in regions_of(config, clock)}
    clients, place = found[machine.placement.region]
    await simulate_eviction(clients, place, machine.id)


def regions_of(config: Config, clock: Clock) -> list[tuple[AzureClients, AzureRegion]]:
    """The lanes of each region. A call gives up before the daemon gives it up, so that its thread is free
    again. Raises ValueError where the SDK is missing."""
    if not is_installed():
        raise ValueError(
            'cloud.kind = "azure" needs the SDK of Azure, which is not installed; install '
            "spot-orchestrator[azure]"
        )
    table = config.pool.cloud.azure
    read = max(1.0, config.daemon.call_timeout - _CONNECT)
    account = AzureAccount(
        table.subscription, endpoint=table.endpoint, connect_timeout=_CONNECT, read_timeout=read
    )
    return [(AzureClients(account, place.region, clock=clock), place) for place in places(config)]


def is_installed() -> bool:
    """Whether the SDK is there. Imports none of its clients."""
    try:
        return all(find_spec(name) is not None for name in ("azure.mgmt.compute", "azure.identity"))
    except ModuleNotFoundError:
        return False


def places(config: Config) -> list[AzureRegion]:
    """The regions of the tables, as the adapters take them."""
    table = config.pool.cloud.azure
    return [
        AzureRegion(
            region=name,
            resource_group=region.resource_group,
            subnet=region.subnet,
            security_group=region.security_group,
            zones=region.zones,
            instance_types=table.instance_types,
            image=Image(text=table.image),
            ssh_public_key=table.ssh_public_key,
            admin_user=table.admin_user,
            identity=table.identity,
            disk_gb=table.disk_gb,
            disk_type=table.disk_type,
            eviction=table.eviction,
            max_price=table.max_spot_price,
            engine_port=table.engine_port,
            on_demand_prices=region.on_demand_prices,
            tags=table.tags,
        )
        for name, region in table.regions.items()
    ]


def node_setup(config: Config, clock: Clock, node: str, secret: bytes) -> NodeSetup:
    """What makes the machine of that name a node of the pool. Raises OSError for certificates that cannot be
    read."""
    pool, azure, agents = config.pool, config.pool.cloud.azure, config.pool.agents
    aside, reports, trusted = bool(azure.weights), agents.node_url, agents.trusted_file
    return NodeSetup(
        cloud="azure",
        pool=config.pool_name,
        command=engine_command(engine_of(pool, clock), pool, model="{model}" if aside else ""),
        port=azure.engine_port,
        weights=azure.weights,
        gpus=gpus_of(pool),
        gpus_on={kind: gpus_of(pool.on(kind)) for kind in pool.engine.on},
        vllm=pool.engine.kind == "vllm",
        size=0.0 if aside or pool.model.startswith("/") else (stored_weights(pool) or 0.0) * GIB,
        local_disk=False,
        report_url=reports,
        trusted=trusted.read_text("utf-8") if reports and trusted is not None else "",
        key=node_key(secret, node).hex() if reports else "",
    )


def _first_boot(config: Config, clock: Clock) -> Callable[[LaunchRequest, str], bytes]:
    agents = config.pool.agents
    secret = agents.secret() if agents.listen is not None else b""

    def made(_request: LaunchRequest, node: str) -> bytes:
        try:
            return user_data(node_setup(config, clock, node, secret))
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}") from error

    return made


def _offerings(
    config: Config, regions: list[tuple[AzureClients, AzureRegion]], clock: Clock, patience: float
) -> AzureOfferings:
    endpoint = config.pool.cloud.azure.prices_endpoint or PRICES
    return AzureOfferings(regions, clock=clock, endpoint=endpoint, patience=patience)
