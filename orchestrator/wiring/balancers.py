"""From the [[pool.NAME.balancer]] tables to their adapters."""

from __future__ import annotations

from functools import partial

from cloud.balancers.envoy import EnvoyCluster
from cloud.balancers.gateway import GatewayBalancer
from cloud.balancers.haproxy import CHECK, HaproxyBackend
from cloud.logger import structlog
from cloud.ports import Clock, LoadBalancer
from orchestrator.config.load import Config
from orchestrator.config.tables.balancer import BalancerTable

log = structlog.get_logger("wiring")


def balancers(config: Config, clock: Clock, gateway: GatewayBalancer) -> tuple[LoadBalancer, ...]:
    """The balancers that the pool's table names; `gateway` is that of this host. Opens nothing yet."""
    return tuple(_balancer(config.pool_name, table, clock, gateway) for table in config.pool.balancer)


def _balancer(pool: str, table: BalancerTable, clock: Clock, gateway: GatewayBalancer) -> LoadBalancer:
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
        )
    gateway.name = table.title
    return gateway


def _file_failed(balancer: str, text: str) -> None:
    log.error("balancer.file_failed", balancer=balancer, error=text)
