"""From a configuration to the settings of the gateway's process."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cloud.engines.dialect import DIALECTS
from cloud.engines.flags import adapters
from orchestrator.config.checks.listeners import takes_requests
from orchestrator.config.load import Config
from orchestrator.config.tables.gateway import POOL_KEYS, PROCESS_KEYS, GatewayTable
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.tables.provider import ProviderConfig
from orchestrator.config.tables.route import BackendConfig, RouteConfig
from orchestrator.gateway.config import GatewayConfig, PoolGate, ProviderSpec
from policies.routing import Affinity, Backend, Kind, Route, Task, When
from policies.spend import usd

_OTHERWISE: Final = frozenset({"listen", "retry_after", "api_key_file"})  # keys whose form is another there


def gateway_config(config: Config) -> GatewayConfig:
    """The settings of the one gateway in front of all pools.

    Raises GatewayError when a value makes no sense, OSError when the key that a pool's engines are shown
    cannot be read. The files of the providers' keys are read by the gateway itself, whenever they change.
    """
    table = config.gateway
    served = {name: pool for name, pool in config.pools.items() if takes_requests(pool)}
    return GatewayConfig(
        **_values(table, PROCESS_KEYS),
        host=table.listen.host,
        port=table.listen.port,
        retry_after=round(table.retry_after),
        default_route=table.default_route,
        spend_file=table.spend_file,
        usage_file=table.usage_file,
        keys_file=table.keys_file,
        pools=tuple(_gate(name, pool) for name, pool in (served or config.pools).items()),
        routes=routes_of(config),
        providers=MappingProxyType({name: _provider(name, p) for name, p in config.providers.items()}),
    )


def routes_of(config: Config) -> tuple[Route, ...]:
    """The routes that are written, as the policies take them."""
    return tuple(_route(route, config) for route in config.routes)


def task_of(pool: PoolConfig) -> Task:
    """What the models of a pool are for, as routes say it."""
    return _route_task(pool.engine.task)


def _route_task(task: str) -> Task:
    return Task.CHAT if task == "generate" else Task(task)


def _values(table: GatewayTable, keys: frozenset[str]) -> dict[str, Any]:
    return {key: getattr(table, key) for key in keys - _OTHERWISE}


def _gate(name: str, pool: PoolConfig) -> PoolGate:
    row, written = DIALECTS[pool.engine.kind], _values(pool.gateway, POOL_KEYS)
    able = row.capabilities
    if "health_path" not in pool.gateway.model_fields_set:
        written["health_path"] = row.health
    return PoolGate(
        **written,
        name=name,
        served=pool.served_name,
        adapters=adapters(pool.engine.args),
        loaded=tuple(pool.adapters),
        numbered=pool.numbers_adapters,
        tasks=frozenset(map(_route_task, able.does(pool.engine.task))),
        ranking=None if row.ranking.every else row.ranking,
        tells_ids=able.token_ids == "exact",  # noqa: S105 - ids of tokens of a text
        api_key=_text(pool.gateway.api_key_file),
        charge=pool.charge.rates(),
    )


def _text(file: Path | None) -> str | None:
    return None if file is None else file.read_text(encoding="utf-8").strip()


def _route(route: RouteConfig, config: Config) -> Route:
    return Route(
        models=route.models,
        backends=tuple(_backend(backend, route, config) for backend in route.to),
        stays=route.data == "stays",
        task=Task(route.task),
        priority=route.priority,
        most_tokens=route.most_tokens,
        affinity=Affinity(route.affinity),
        session_header=route.session_header,
        usd_per_day_pico=None if route.usd_per_day is None else usd(str(route.usd_per_day)),
    )


def _backend(backend: BackendConfig, route: RouteConfig, config: Config) -> Backend:
    model = backend.model
    if backend.pool and route.task != "chat":
        # vectors and scores compare by the model's name, so that of a pool is said too
        model = model or config.pools[backend.pool].served_name
    return Backend(
        kind=Kind.POOL if backend.pool else Kind.PROVIDER,
        name=backend.pool or backend.provider,
        model=model,
        when=frozenset(map(When, backend.when)) if "when" in backend.model_fields_set else None,
        waited=backend.waited,
        weight=backend.weight,
    )


def _provider(name: str, provider: ProviderConfig) -> ProviderSpec:
    return ProviderSpec(
        name=name,
        kind=provider.kind,
        url=provider.address,
        api_key_file=provider.api_key_file,
        api_version=provider.api_version,
        sampling=provider.sampling,
        usd_per_day_pico=None if provider.usd_per_day is None else usd(str(provider.usd_per_day)),
        in_flight=provider.in_flight,
        connect_timeout=provider.connect_timeout,
        first_token_timeout=provider.first_token_timeout,
        answer_timeout=provider.answer_timeout,
        retries=provider.retries,
        ca_file=provider.ca_file,
        allow_http=provider.allow_http,
        prices=MappingProxyType({model: price.own() for model, price in provider.price.items()}),
        listed_as=provider.listed_as,
    )
