"""From the [[pool.NAME.balancer]] tables to their adapters."""

from __future__ import annotations

import ssl
from functools import partial
from pathlib import Path

from cloud.balancers.envoy import EnvoyCluster
from cloud.balancers.gateway import GatewayBalancer
from cloud.balancers.haproxy import CHECK, HaproxyBackend
from cloud.balancers.ledger import Ledger
from cloud.balancers.nginx import NginxUpstream
from cloud.balancers.routers import RouterWorkers
from cloud.logger import structlog
from cloud.ports import Clock, LoadBalancer
from orchestrator.config.load import Config
from orchestrator.config.tables.balancer import BalancerTable

log = structlog.get_logger("wiring")


def balancers(config: Config, clock: Clock, gateway: GatewayBalancer) -> tuple[LoadBalancer, ...]:
    """The balancers that the pool's table names; `gateway` is that of this host. Opens nothing yet.

    Raises OSError for a file with a token that cannot be read.
    """
    return tuple(_balancer(config, table, clock, gateway) for table in config.pool.balancer)


def _balancer(config: Config, table: BalancerTable, clock: Clock, gateway: GatewayBalancer) -> LoadBalancer:
    pool = config.pool_name
    backend = table.backend or pool
    if table.kind == "haproxy" and table.socket is not None:
        return HaproxyBackend(
            socket=table.socket,
            backend=backend,
            clock=clock,
            name=table.title,
            servers_file=table.file,
            check=table.check or CHECK,
            wait=table.wait,
            on_file_error=partial(_file_failed, table.title),
        )
    if table.kind == "envoy" and table.file is not None:
        return EnvoyCluster(
            admin=table.url,
            file=table.file,
            cluster=backend,
            clock=clock,
            name=table.title,
            wait=table.wait,
            on_file_error=partial(_file_failed, table.title),
        )
    if table.kind == "nginx" and table.file is not None:
        return NginxUpstream(
            url=table.url,
            file=table.file,
            upstream=backend,
            reload=table.reload,
            ledger=_ledger(config, table, clock),
            clock=clock,
            name=table.title,
        )
    if table.kind in ("smg", "sglang-router", "vllm-router"):
        return RouterWorkers(
            kind=table.kind,
            url=table.url,
            ledger=_ledger(config, table, clock),
            clock=clock,
            name=table.title,
            token=table.token(),
            wait=table.wait,
        )
    if table.url:
        return GatewayBalancer(
            pool=pool,
            clock=clock,
            url=table.url,
            token=table.token(),
            tls=_trusting(table.ca_file),
            name=table.title,
        )
    gateway.name = table.title
    return gateway


def _trusting(ca_file: Path | None) -> ssl.SSLContext | None:
    """Whom to trust beside the system's authorities. Raises OSError."""
    if ca_file is None:
        return None
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


def _ledger(config: Config, table: BalancerTable, clock: Clock) -> Ledger:
    """Where the daemon keeps what a balancer was given."""
    pool = config.pool_name
    file = config.daemon.state_dir / "balancers" / f"{pool}-{table.title}.json"
    return Ledger(file, pool=pool, clock=clock)


def _file_failed(balancer: str, text: str) -> None:
    log.error("balancer.file_failed", balancer=balancer, error=text)
