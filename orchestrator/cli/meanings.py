"""What the routes and providers of a configuration come to: which name goes where, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from orchestrator.config.checks.providers import models_used
from orchestrator.config.checks.routes import by_name, implicit_names
from orchestrator.views.setup import BackendMeaningView, ProviderMeaningView, RouteMeaningView
from policies.routing import Backend, Kind, Route, Trouble
from policies.spend import PICO, dollars

if TYPE_CHECKING:
    from orchestrator.config.load import Config
    from orchestrator.config.tables.provider import ProviderConfig
    from policies.spend import Price

_MTOK: Final = 10**6
_TROUBLES: Final = ((Trouble.DOWN, "down"), (Trouble.SATURATED, "saturated"), (Trouble.FAILED, "failing"))


def route_meanings(config: Config) -> list[RouteMeaningView]:
    """Every name that clients may ask for, with its backends; empty where names are not looked at."""
    if not by_name(config.pools, config.routes):
        return []

    from orchestrator.wiring.gateway import routes_of

    return [
        *(_route(route, written=True) for route in routes_of(config)),
        *(_route(route, written=False) for route in implicit_routes(config)),
    ]


def provider_meanings(config: Config) -> list[ProviderMeaningView]:
    """Every provider with the models that are asked there, and what those cost now."""
    from cloud.clock import SystemClock

    used, now = models_used(config.routes), SystemClock().now()
    return [_provider(name, p, used.get(name, {}), now) for name, p in config.providers.items()]


def implicit_routes(config: Config) -> Iterator[Route]:
    """The routes of names that pools serve and no route lists."""
    from orchestrator.wiring.gateway import task_of

    for name, pools in implicit_names(config.pools, config.routes).items():
        pool = config.pools[pools[0]]
        own = pool.served_name
        backend = Backend(kind=Kind.POOL, name=pools[0], model="" if name == own else name)
        yield Route(models=(name,), backends=(backend,), stays=True, task=task_of(pool))


def _route(route: Route, *, written: bool) -> RouteMeaningView:
    weights = sum(backend.weight or 0 for backend in route.backends)
    to: list[BackendMeaningView] = [
        {"backend": str(backend), "when": _when(backend, weights, first=number == 0)}
        for number, backend in enumerate(route.backends)
    ]
    name, *aliases = route.models
    cap = route.usd_per_day_pico
    parts = [f"{each['backend']} {each['when']}".strip() for each in to]
    if cap is not None:
        parts.append(f"at most {dollars(cap)} a day at providers")
    if written and route.stays:
        parts.append("its data stays here")
    return {
        "models": list(route.models),
        "to": to,
        "written": written,
        "stays": route.stays,
        "task": route.task.value,
        "usd_per_day": None if cap is None else cap / PICO,
        "sentence": name + (f" (also {', '.join(aliases)})" if aliases else "") + f": {'; '.join(parts)}.",
    }


def _when(backend: Backend, weights: int, *, first: bool) -> str:
    """When a backend is asked, in words that follow its name; empty for always."""
    if backend.weight is not None:
        return f"for {backend.weight} of {weights}"
    if first:
        return ""
    troubles = [word for trouble, word in _TROUBLES if backend.steps_in(trouble)]
    said = [f"when that is {' or '.join(troubles)}"] if troubles else []
    if backend.waited is not None:
        said.append(f"after {backend.waited:g} s of waiting")
    return ", or ".join(said)


def _provider(name: str, provider: ProviderConfig, models: Iterable[str], now: float) -> ProviderMeaningView:
    prices = {model: provider.price_of(model, at=now) for model in models}
    sources = {model: provider.price_source(model, at=now) for model in models}
    cap = provider.usd_per_day
    most = "without a cap" if cap is None else f"at most ${cap} a day"
    said = [f"{name}: {provider.address} ({provider.kind}), {most}"]
    said += [f"{model} {_price(prices[model])} ({sources[model] or 'no price'})" for model in prices]
    return {
        "name": name,
        "kind": provider.kind,
        "url": provider.address,
        "usd_per_day": None if cap is None else float(cap),
        "models": [
            {"model": model, "known": price is not None, "source": sources[model]}
            for model, price in prices.items()
        ],
        "sentence": "; ".join(said) + ".",
    }


def _price(price: Price | None) -> str:
    if price is None:
        return "has no known price"
    rates = price.rates
    return (
        f"costs {dollars(rates.input * _MTOK)} in and {dollars(rates.output * _MTOK)} out per million tokens"
    )
