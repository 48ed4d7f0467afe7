"""From the [pool.NAME.cloud.gcp] tables to the adapters of Google Cloud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cloud.cloud_init.user_data import NodeSetup
from cloud.gcp.client import GcpClient
from cloud.gcp.identity import MachineIdentity
from cloud.gcp.instances import GcpInstances
from cloud.gcp.maintenance import simulate_maintenance
from cloud.gcp.notices import OperationNotices
from cloud.gcp.offerings import GcpOfferings
from cloud.gcp.places import GcpMachines, GcpRegion
from cloud.gcp.tokens import GoogleTokens, NoTokens, Tokens
from cloud.ports import Clock, EngineCommand, Offerings
from cloud.tombstones import Tombstones
from orchestrator.config.checks.engine import gpus_of
from orchestrator.config.load import Config
from orchestrator.config.tables.gcp import GcpTable
from orchestrator.wiring.clouds import CloudPorts
from policies.model import Instance

_LAUNCH = 0.7
"""Share of the time of a call on a machine that a launch waits for its place."""

_SHARE = 0.8
"""Share of the time of a whole look that the price list gets."""


def connect_gcp(config: Config, clock: Clock, owned: Callable[[str], bool]) -> CloudPorts:
    """The adapters of the configured pool. Makes no call yet."""
    table, places = config.pool.cloud.gcp, places_of(config.pool.cloud.gcp)
    tokens = tokens_of(table)
    instances = GcpInstances(
        client_of(config, tokens),
        places,
        machines_of(config),
        ledger=Tombstones(ledger_of(config), clock),
        clock=clock,
        patience=_LAUNCH * config.daemon.call_timeout,
    )
    notices = OperationNotices(
        client_of(config, tokens),
        [zone for place in places for zone in place.zones],
        clock,
        owned=owned,
        interval=table.poll_operations,
    )
    return CloudPorts(
        instances=instances,
        offerings=_offerings(config, clock, tokens, _SHARE * config.daemon.call_timeout),
        notices=(notices,),
        others=(_Held(tokens),),
    )


def prices_of_gcp(config: Config, clock: Clock, patience: float) -> Offerings:
    """What Google sells in the configured places, with so many seconds for its catalogue."""
    return _offerings(config, clock, tokens_of(config.pool.cloud.gcp), patience)


def identify_on_gcp(config: Config) -> MachineIdentity:
    """Who judges the tokens of nodes."""
    table = config.pool.cloud.gcp
    return MachineIdentity(project=table.project, account=table.service_account)


async def preempt_on_gcp(config: Config, clock: Clock, machine: Instance) -> None:
    """Have Google simulate a maintenance of the host, which takes a spot machine. Raises CloudError."""
    tokens = tokens_of(config.pool.cloud.gcp)
    client = client_of(config, tokens)
    try:
        await simulate_maintenance(client, machine, clock)
    finally:
        await client.close()
        tokens.close()


def client_of(config: Config, tokens: Tokens) -> GcpClient:
    """Calls of the pool's project. One gives up before the daemon gives it up."""
    table = config.pool.cloud.gcp
    timeout = max(1.0, _SHARE * config.daemon.call_timeout)
    return GcpClient(table.project, tokens, endpoint=table.endpoint, timeout=timeout)


def tokens_of(table: GcpTable) -> Tokens:
    """As whom calls are made: a stand-in asks for nobody."""
    return NoTokens() if table.endpoint else GoogleTokens(table.credentials_file)


def places_of(table: GcpTable) -> list[GcpRegion]:
    """The regions of the tables, as the adapters take them."""
    return [
        GcpRegion(
            region=name,
            zones=region.zones,
            subnetwork=region.subnetwork,
            on_demand_prices=region.on_demand_prices,
            spot_prices=region.spot_prices,
        )
        for name, region in table.regions.items()
    ]


def machines_of(config: Config) -> GcpMachines:
    """What the pool's machines are made of. Raises OSError for certificates that cannot be read."""
    table = config.pool.cloud.gcp
    return GcpMachines(
        instance_types=table.instance_types,
        engine_port=table.engine_port,
        image=table.image,
        template=table.instance_template,
        disk_gib=table.disk_gib,
        disk_type=table.disk_type,
        service_account=table.service_account,
        network_tags=table.network_tags,
        external_address=table.external_address,
        labels=table.labels,
        setup=_setup(config) if table.start_engine else None,
    )


def ledger_of(config: Config) -> Path:
    """The file that remembers the pool's launches."""
    return config.daemon.state_dir / "gcp" / f"{config.pool_name}.ledger"


def _setup(config: Config) -> NodeSetup:
    """What makes a machine a node of the pool; the engine's command is that of each launch."""
    pool, agents = config.pool, config.pool.agents
    trusted = agents.trusted_file
    reports = agents.node_url if pool.cloud.gcp.service_account or pool.cloud.gcp.instance_template else ""
    return NodeSetup(
        pool=config.pool_name,
        cloud="gcp",
        command=EngineCommand(argv=()),
        port=pool.cloud.gcp.engine_port,
        gpus=gpus_of(pool),
        gpus_on={kind: gpus_of(pool.on(kind)) for kind in pool.engine.on},
        vllm=pool.engine.kind == "vllm",
        local_disk=False,
        report_url=reports,
        trusted=trusted.read_text("utf-8") if reports and trusted is not None else "",
    )


def _offerings(config: Config, clock: Clock, tokens: Tokens, patience: float) -> GcpOfferings:
    table = config.pool.cloud.gcp
    return GcpOfferings(
        client_of(config, tokens), places_of(table), table.instance_types, clock=clock, patience=patience
    )


class _Held:
    """Ends the thread that fetches tokens."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def close(self) -> None:
        """End it."""
        self._tokens.close()
