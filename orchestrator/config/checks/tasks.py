"""Whether the backends of a route do what it is for, and answer alike where that matters.

A pool does what its engines are started for. The model of a pool is called by `engine.served_name`, that of a
provider by `model` in the route: two backends serve the same model where these names are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from cloud.engines.dialect import DIALECTS
from cloud.providers.kinds import KINDS, wire_of
from orchestrator.config.errors import Found, Key
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.tables.route import BackendConfig, RouteConfig
from orchestrator.units import shown

_OF_ENGINES: Final[Mapping[str, str]] = MappingProxyType(
    {"chat": "generate", "embed": "embed", "rerank": "rerank"}
)
"""What an engine has to be started for, by the task of a route."""
_OF_ROUTES: Final = MappingProxyType({engine: route for route, engine in _OF_ENGINES.items()})
_PATHS: Final[Mapping[str, str]] = MappingProxyType({"embed": "/v1/embeddings", "rerank": "/v1/rerank"})
_DOES: Final[Mapping[str, str]] = MappingProxyType({"embed": "embeds", "rerank": "ranks"})
_COMPARED: Final[Mapping[str, str]] = MappingProxyType({"embed": "vectors", "rerank": "scores"})


def task_errors(parsed: ConfigFile) -> Iterator[Found]:
    """Backends that could not answer, or whose answers could not stand beside those of the first."""
    for number, route in enumerate(parsed.route):
        for place, backend in enumerate(route.to):
            at = ("route", number, "to", place)
            if pool := parsed.pool.get(backend.pool):
                yield from _pool_errors(at, route, backend.pool, pool)
            if backend.provider in parsed.provider and route.task in _PATHS:
                yield from _provider_errors(at, route, backend.provider, parsed)
        if route.to and route.task in _COMPARED:
            yield from _model_errors(number, route, parsed)


def _pool_errors(at: Key, route: RouteConfig, name: str, pool: PoolConfig) -> Iterator[Found]:
    does = pool.engine.task
    if _OF_ENGINES[route.task] in DIALECTS[pool.engine.kind].capabilities.does(does):
        return
    yield (
        (*at, "pool"),
        f'pool {name} is started with engine.task = "{does}", and this route has task = "{route.task}"; '
        f'write task = "{_OF_ROUTES[does]}" for the route, or leave the pool out',
    )


def _provider_errors(at: Key, route: RouteConfig, name: str, parsed: ConfigFile) -> Iterator[Found]:
    path, kind = _PATHS[route.task], parsed.provider[name].kind
    if wire_of(kind, "http://localhost").speaks(path):
        return
    able = [kind for kind in KINDS if wire_of(kind, "http://localhost").speaks(path)]
    kinds = f"one of kind {' or '.join(able)} does" if able else "no provider does"
    yield (
        (*at, "provider"),
        f"{name} is of kind {kind}, and none of these {_DOES[route.task]}; leave it out: {kinds}",
    )


def _model_errors(number: int, route: RouteConfig, parsed: ConfigFile) -> Iterator[Found]:
    """Vectors of two models cannot be compared, nor scores: a fallback to another would answer nonsense."""
    first = _model(route.to[0], parsed)
    for place, backend in enumerate(route.to[1:], 1):
        other = _model(backend, parsed)
        if first and other and first != other:
            yield (
                ("route", number, "to", place),
                f"serves {shown(other)}, and the route {_DOES[route.task]} with {shown(first)}: "
                f"{_COMPARED[route.task]} of two models cannot be compared; leave it out, or where it is the "
                "same model write one name for both (engine.served_name of a pool)",
            )


def _model(backend: BackendConfig, parsed: ConfigFile) -> str:
    """The name of a backend's model; empty where it is not known."""
    pool = parsed.pool.get(backend.pool)
    return backend.model or (pool.served_name if pool is not None else "")
