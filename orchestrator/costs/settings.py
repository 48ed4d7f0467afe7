"""What the configuration says of costs: pools, routes, prices of the APIs that both are held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cloud.providers.prices import price_of
from orchestrator.config.checks.costs import stated_offerings
from orchestrator.config.load import Config
from orchestrator.config.tables.provider import ProviderConfig
from policies import bill
from policies.cost_rows import PoolSettings, RouteSettings
from policies.spend import Price


@dataclass(frozen=True, slots=True)
class CostSettings:
    """The part of `policies.cost_rows.Books` that does not change with time."""

    pools: tuple[PoolSettings, ...]
    people: float
    routes: tuple[RouteSettings, ...]
    prices: dict[str, Price]

    def of(self, pool: str) -> CostSettings:
        """The same of one pool: routes that no pool serves are nobody's."""
        return replace(self, pools=tuple(each for each in self.pools if each.name == pool), routes=())

    def doing(self, task: str) -> CostSettings:
        """The same of the pools and routes that `generate`, or that `embed`."""
        return replace(
            self,
            pools=tuple(each for each in self.pools if each.task == task),
            routes=tuple(each for each in self.routes if each.task == task),
        )

    @property
    def apis(self) -> list[str]:
        """The APIs that its pools are held against, then those of its routes, each once."""
        named = [pool.compare for pool in self.pools if pool.compare]
        return list(dict.fromkeys([*named, *(api for route in self.routes for api in route.providers)]))


def settings_of(config: Config, *, now: float) -> CostSettings:
    """The settings, with prices as they are at an instant (seconds since the epoch)."""
    pools = tuple(_pool(config, name) for name in config.pools)
    named = {pool.compare for pool in pools if pool.compare}
    named |= {api for route in config.routes for api in _providers(config, route.name)}
    found = {name: api_price(config.providers, name, now=now) for name in sorted(named)}
    return CostSettings(
        pools=pools,
        people=config.cost.people,
        routes=tuple(
            RouteSettings(
                name=route.name,
                task=_task(route.task),
                pools=tuple(dict.fromkeys(backend.pool for backend in route.to if backend.pool)),
                providers=tuple(_providers(config, route.name)),
            )
            for route in config.routes
        ),
        prices={name: price for name, price in found.items() if price is not None},
    )


def api_price(providers: Mapping[str, ProviderConfig], name: str, *, now: float) -> Price | None:
    """What `provider/model` asks: by the provider's table, else by the price list under that name. None where
    is not known."""
    provider, _, model = name.partition("/")
    if provider in providers:
        return providers[provider].price_of(model, at=now)
    return price_of(None, url="", model=model, at=now, listed_as=provider)


def _pool(config: Config, name: str) -> PoolSettings:
    pool = config.pools[name]
    cost = pool.cost
    return PoolSettings(
        name=name,
        model=pool.served_name,
        task=_task(pool.engine.task),
        people=config.cost.people if cost.people is None else cost.people,
        rate=cost.tokens_per_second,
        compare=cost.compare or _first_provider(config, name),
        price=bill.prices_of(pool.as_pool(name), stated_offerings(pool)).on_demand,
    )


def _first_provider(config: Config, pool: str) -> str:
    """The first provider of a route with the pool; empty where none has one."""
    routes = (route for route in config.routes if any(backend.pool == pool for backend in route.to))
    return next((api for route in routes for api in _providers(config, route.name)), "")


def _providers(config: Config, route: str) -> Iterator[str]:
    """The models of providers that a route leads to, each once, as `provider/model`."""
    (found,) = (each for each in config.routes if each.name == route)
    yield from dict.fromkeys(f"{b.provider}/{b.model}" for b in found.to if b.provider)


def _task(task: str) -> str:
    """Routes say `chat` for what engines call `generate`."""
    return "generate" if task == "chat" else task
