"""Whether the routes of a file lead where they say: names, backends, conditions, and that none is left empty.

A name that clients ask for leads to one place: to the route that lists it, else to the pool that serves it
under that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cloud.engines.flags import adapters
from orchestrator.config.checks.listeners import Pools, takes_requests
from orchestrator.config.errors import Found, Key, meant
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.tables.route import BackendConfig, RouteConfig
from orchestrator.units import shown

_LONGEST_NAME: Final = 256  # characters: names stand in labels of metrics, in lists and in the journal


def route_errors(parsed: ConfigFile) -> Iterator[Found]:
    """Everything for which requests would go wrong or nowhere."""
    taken: dict[str, int] = {}
    for number, route in enumerate(parsed.route):
        at = ("route", number)
        for place, name in enumerate(route.models):
            yield from _name_errors((*at, "models", place), name, number, taken, parsed)
        if not route.models:
            yield (*at, "models"), 'is empty, so nobody could ask for it; write models = ["assistant"]'
        if not route.to:
            yield (*at, "to"), 'is empty, so nobody would answer; write to = [{ pool = "NAME" }]'
        yield from _weight_errors(at, route)
        for place, backend in enumerate(route.to):
            yield from _backend_errors((*at, "to", place), route, backend, parsed, first=place == 0)
    yield from _default_errors(parsed)
    yield from _unserved(parsed)
    yield from _same_name(parsed)


def route_warnings(parsed: ConfigFile) -> Iterator[Found]:
    """What may surprise."""
    for number, route in enumerate(parsed.route):
        at = ("route", number)
        if not any(_always_there(backend, parsed) for backend in route.to):
            yield (
                (*at, "to"),
                f"{shown(route.name)} has no backend that is always there: its pools are all on spot, and "
                "without spot nobody answers; give one of them an on-demand floor, or add a provider",
            )
        if route.usd_per_day is not None and not any(b.provider for b in route.to):
            yield (*at, "usd_per_day"), "bounds what providers cost, and this route has none; leave it out"
        usual = RouteConfig.model_fields["session_header"].default
        if route.session_header != usual and route.affinity != "session":
            yield (
                (*at, "session_header"),
                'is not read unless affinity = "session"; write that, or leave it out',
            )
    yield from _served_by_nobody(parsed)


def served_names(pool: PoolConfig) -> tuple[str, ...]:
    """All names that the pool's nodes answer to: its model's, then those of its adapters."""
    return (pool.served_name, *adapters(pool.engine.args), *pool.adapters)


def implicit_names(pools: Pools, routes: Sequence[RouteConfig]) -> dict[str, list[str]]:
    """The names that lead to a pool though no route lists them, each with the pools that serve it."""
    listed = {name for route in routes for name in route.models}
    found: dict[str, list[str]] = {}
    for name, pool in pools.items():
        for served in served_names(pool) if takes_requests(pool) else ():
            if served not in listed:
                found.setdefault(served, []).append(name)
    return found


def by_name(pools: Pools, routes: Sequence[RouteConfig]) -> bool:
    """Whether the gateway looks at the names of models at all. In front of one pool alone it does not."""
    return bool(routes) or len(pools) != 1


def _name_errors(
    at: Key, name: str, number: int, taken: dict[str, int], parsed: ConfigFile
) -> Iterator[Found]:
    if not name or name != name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
        yield (
            at,
            f"{shown(name)} cannot be a model's name; write 1 to {_LONGEST_NAME} printable characters "
            "without blanks around them",
        )
    if name in taken:
        where = "this route" if taken[name] == number else f"route[{taken[name]}]"
        yield at, f"{shown(name)} is a name of {where} already; a name leads to one place, so leave one out"
    taken.setdefault(name, number)
    for pool_name, pool in parsed.pool.items():
        if name not in served_names(pool) or not takes_requests(pool):
            continue
        there = [backend for backend in parsed.route[number].to if backend.pool == pool_name]
        leads = f"write another name, or add {_leading_to(name, pool_name, pool)}"
        if not there:
            yield (
                at,
                f"{shown(name)} is what pool {pool_name} serves, and this route does not go there; {leads}",
            )
        elif name not in {backend.model or pool.served_name for backend in there}:
            yield (
                at,
                f"{shown(name)} is an adapter of pool {pool_name}, and this route leads to another model of "
                f"it; {leads}",
            )


def _leading_to(name: str, pool_name: str, pool: PoolConfig) -> str:
    """What leads to a name that a pool serves, as a route has it."""
    model = "" if name == pool.served_name else f', model = "{name}"'
    return f'{{ pool = "{pool_name}"{model} }}'


def _weight_errors(at: Key, route: RouteConfig) -> Iterator[Found]:
    weighted = [place for place, backend in enumerate(route.to) if backend.weight is not None]
    if len(weighted) == 1:
        yield (
            (*at, "to", weighted[0], "weight"),
            "is the only weight of the route, and a share needs another to be held against; give one to "
            "every backend that gets a share, or leave it out",
        )
    elif weighted != list(range(len(weighted))):
        stray = next(place for expected, place in enumerate(weighted) if place != expected)
        yield (
            (*at, "to", stray, "weight"),
            "stands behind a backend without one; write those that split the requests first, then the "
            "fallbacks",
        )


def _backend_errors(
    at: Key, route: RouteConfig, backend: BackendConfig, parsed: ConfigFile, *, first: bool
) -> Iterator[Found]:
    if bool(backend.pool) == bool(backend.provider):
        both = "names a pool and a provider" if backend.pool else "names neither a pool nor a provider"
        yield at, f'{both}; write {{ pool = "NAME" }} or {{ provider = "NAME", model = "MODEL" }}'
        return
    unconditional = first or backend.weight is not None
    for key in ("when", "waited"):
        if unconditional and key in backend.model_fields_set:
            why = "the first backend gets every request" if first else "a weight is a share of every request"
            yield (*at, key), f"{why}, whatever the conditions; leave {key} out"
    if backend.waited == 0:
        yield (*at, "waited"), 'is 0: every request has waited for so long; write when = ["always"], or "2s"'
    if "when" in backend.model_fields_set and not backend.when and backend.waited is None:
        yield (*at, "when"), 'is empty, so nothing would ever come here; write ["down"], or leave it out'
    yield from (
        _pool_errors(at, backend, parsed) if backend.pool else _provider_errors(at, route, backend, parsed)
    )


def _pool_errors(at: Key, backend: BackendConfig, parsed: ConfigFile) -> Iterator[Found]:
    pool = parsed.pool.get(backend.pool)
    if pool is None:
        yield (*at, "pool"), f"there is no pool {shown(backend.pool)}{meant(backend.pool, parsed.pool)}"
        return
    if not takes_requests(pool):
        yield (
            (*at, "pool"),
            f"pool {backend.pool} is served by a target group of AWS, so its nodes are not the gateway's; "
            "leave cloud.aws.target_group out, or the route",
        )
    known = served_names(pool)
    if backend.model and backend.model not in known and not _says_more(pool):
        yield (
            (*at, "model"),
            f"{shown(backend.model)} is no adapter of pool {backend.pool}, which serves "
            f"{', '.join(known)}{meant(backend.model, known)}; an adapter that every node is to have stands "
            'in its engine.args, as "--lora-modules", "NAME=PATH"',
        )


def _provider_errors(
    at: Key, route: RouteConfig, backend: BackendConfig, parsed: ConfigFile
) -> Iterator[Found]:
    if backend.provider not in parsed.provider:
        known = parsed.provider
        text = f"there is no provider {shown(backend.provider)}{meant(backend.provider, known)}"
        yield (*at, "provider"), f"{text}; write a table [provider.{backend.provider}]" if not known else text
    if not backend.model:
        yield (
            (*at, "model"),
            f"is missing; write the name under which {backend.provider} knows the model, such as model = "
            '"claude-sonnet-5"',
        )
    if route.data == "stays":
        yield (
            at,
            f'the data of {shown(route.name)} stays (data = "stays"), and {backend.provider} is outside; '
            'leave it out, or write data = "may-leave"',
        )


def _says_more(pool: PoolConfig) -> bool:
    """Whether nodes may know adapters that the file does not list: those whose flags stand in a
    template or image of the user's own."""
    return not pool.cloud.here and not pool.engine.args


def _default_errors(parsed: ConfigFile) -> Iterator[Found]:
    wanted = parsed.gateway.default_route
    known = [name for route in parsed.route for name in route.models]
    known += [
        name for name in implicit_names(parsed.pool, parsed.route) if by_name(parsed.pool, parsed.route)
    ]
    if wanted and wanted not in known:
        lists = f"; write one of {', '.join(known)}" if known else "; without routes leave it out"
        yield ("gateway", "default_route"), f"no route is called {shown(wanted)}{meant(wanted, known)}{lists}"


def _same_name(parsed: ConfigFile) -> Iterator[Found]:
    for name, pools in (
        implicit_names(parsed.pool, parsed.route).items() if by_name(parsed.pool, parsed.route) else ()
    ):
        if len(pools) > 1:
            to = ", ".join(_leading_to(name, pool, parsed.pool[pool]) for pool in pools)
            own = any(name == parsed.pool[pool].served_name for pool in pools)
            otherwise = "engine.served_name for one" if own else "another name for one"
            yield (
                ("pool", pools[1]),
                f"pools {' and '.join(pools)} both serve {shown(name)}, so that name leads to neither; write "
                f'{otherwise}, or a [[route]] with models = ["{name}"] and to = [{to}]',
            )


def _unserved(parsed: ConfigFile) -> Iterator[Found]:
    """Routes that a pool of no nodes leaves with nothing."""
    empty = {name for name, pool in parsed.pool.items() if pool.replicas == 0}
    routed = {backend.pool for route in parsed.route for backend in route.to}
    for number, route in enumerate(parsed.route):
        if route.to and all(backend.pool in empty for backend in route.to):
            pools = dict.fromkeys(backend.pool for backend in route.to)
            yield (
                ("pool", next(iter(pools)), "replicas"),
                f"is 0, and route[{number}] {shown(route.name)} has no other backend; write at least 1, or "
                "give the route another pool or a provider",
            )
    for name in sorted(empty - routed):
        if takes_requests(parsed.pool[name]):
            yield (
                ("pool", name, "replicas"),
                "is 0, and no route leads to the pool, so that nothing else answers for it; write at least "
                f'1, or a [[route]] that names {{ pool = "{name}" }} and a provider',
            )


def _served_by_nobody(parsed: ConfigFile) -> Iterator[Found]:
    """Names of a pool of no nodes that no route lists."""
    for name, pools in implicit_names(parsed.pool, parsed.route).items():
        if all(parsed.pool[pool].replicas == 0 for pool in pools):
            yield (
                ("pool", pools[0], "replicas"),
                f"is 0, so requests for {shown(name)} itself are answered with 503; add that name to a route "
                "with another backend",
            )


def _always_there(backend: BackendConfig, parsed: ConfigFile) -> bool:
    pool = parsed.pool.get(backend.pool)
    return pool is None or pool.as_pool(backend.pool).on_demand_floor > 0
