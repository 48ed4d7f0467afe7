"""`orchestrator validate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, PlainOutput
from orchestrator.views.setup import PoolMeaningView, ProviderMeaningView, RouteMeaningView, ValidateView
from orchestrator.words import money, percent, plural
from policies import bill, explain

if TYPE_CHECKING:
    from cloud.local.config import LocalCloudConfig
    from orchestrator.config.errors import Found
    from orchestrator.config.load import Config, Problem
    from orchestrator.config.tables.pool import PoolConfig
    from policies.bill import Prices
    from policies.model import Offering, Pool

    Sold = dict[str, Sequence[Offering]]
    """What is sold to each pool, by its name."""


_CAP = ".limits.spend_per_hour"


def validate(
    file: Annotated[Path, Parameter(help="The TOML file.")],
    /,
    *,
    market: Annotated[
        Path | None, Parameter(help="The JSON file that `local-cloud` is given, for its prices and ports.")
    ] = None,
    prices: Annotated[
        bool,
        Parameter(
            negative="",
            help="Ask AWS what the pool's machines cost, with the daemon's credentials: the price list and "
            "the spot prices. Prices of the file win.",
        ),
    ] = False,
    output: PlainOutput = "table",
) -> int:
    """Check a configuration file and say what it means, or everything that is wrong with it.

    For example:
      orchestrator validate pool.toml
      orchestrator validate pool.toml --prices
      orchestrator validate pool.toml -o json | jq '.problems'
    """
    from orchestrator.config.load import ConfigError

    try:
        config = _load(file, prices)
        offerings = _listed(config) if prices else _sold(config, market)
    except ConfigError as error:
        if output == "json":
            shared.print_json(_view(file, None, error.problems))
        else:
            print(error, file=sys.stderr)
            print(f"{plural(len(error.problems), 'error')} in {file}", file=sys.stderr)
        return shared.ERROR
    if output == "json":
        shared.print_json(_view(file, config, (), offerings))
        return shared.OK
    for warning in _warnings(config):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"OK {file}")
    for name in config.pools:
        for sentence in meaning(config, name, offerings[name])["sentences"]:
            print(f"  {sentence}")
    if bounds := _budget(config):
        print(f"  {bounds}")
    routes, providers = _routed(config)
    for meant in (*routes, *providers):
        print(f"  {meant['sentence']}")
    if not config.pools:
        print(f"  Clients send requests to {_front(config)}.")
    for said in config.advice():
        print(f"advice: {said}")
    print(f"Next: orchestrator {'run' if config.pools else 'gateway'} --config {file}")
    return shared.OK


def _load(file: Path, prices: bool) -> Config:
    """A configuration in which, where prices are asked for, the spend cap alone may be missing still.

    Raises ConfigError.
    """
    from orchestrator.config.load import ConfigError, load_config

    try:
        return load_config(file)
    except ConfigError as error:
        if not prices or not all(problem.key.endswith(_CAP) for problem in error.problems):
            raise
        return load_config(file, "client")


def _listed(config: Config) -> Sold:
    """What AWS lists. Raises ConfigError for a cap that is missing or too low at these prices."""
    import asyncio

    from orchestrator.config.checks.costs import cost_errors, missing_cap
    from orchestrator.config.load import ConfigError

    billed = [name for name, pool in config.pools.items() if pool.cloud.bills]
    if not billed:
        raise CommandError("nobody bills for the machines of a local cloud; leave --prices out")

    from cloud.clock import SystemClock
    from orchestrator.logs import configure_logging
    from orchestrator.wiring.price_list import listed

    configure_logging("auto", "warning")
    sold = _sold(config, None)
    faults = []
    for name in billed:
        found = asyncio.run(listed(config.only(name), SystemClock()))
        if found.missing:
            raise CommandError(f"the prices cannot be read: {found.missing}")
        if found.no_spot:
            print(f"warning: spot counts as on-demand: {found.no_spot}", file=sys.stderr)
        at, pool = ("pool", name), config.pools[name]
        faults += [*missing_cap(at, pool, found.offerings), *cost_errors(at, pool, found.offerings)]
        sold[name] = found.offerings
    if faults:
        raise ConfigError([config.problem(path, text) for path, text in faults])
    return sold


def _sold(config: Config, market: Path | None) -> Sold:
    """What is sold to each pool at which price, as far as it is known here.

    Raises ConfigError for what cannot work beside this local cloud.
    """
    from orchestrator.config.checks.costs import cost_errors, local_offerings, stated_offerings
    from orchestrator.config.checks.listeners import local_errors
    from orchestrator.config.load import ConfigError

    sold: Sold = {name: stated_offerings(pool) for name, pool in config.pools.items()}
    found: list[Found] = []
    for cloud, pools in _local_clouds(config, market):
        offerings = local_offerings(cloud)
        sold |= dict.fromkeys(pools, offerings)
        for name in pools:
            found += cost_errors(("pool", name), config.pools[name], offerings)
        ports = (cloud.engine_port, cloud.metadata_port)
        found += local_errors(config.daemon, config.gateway, config.pools, ports)
    if found:
        raise ConfigError([config.problem(path, text) for path, text in found])
    return sold


def _local_clouds(config: Config, market: Path | None) -> Iterator[tuple[LocalCloudConfig, list[str]]]:
    """The local clouds, each with the names of its pools."""
    places: dict[Path, list[str]] = {}
    for name, pool in config.pools.items():
        if "local" in pool.cloud.kinds:
            places.setdefault(pool.cloud.state_dir, []).append(name)
    if not places:
        return

    from cloud.local.config import LocalCloudConfig, SetupError, load_config

    for state_dir, pools in places.items():
        try:
            yield LocalCloudConfig(state_dir=state_dir) if market is None else load_config(market), pools
        except SetupError as error:
            raise CommandError(str(error), prefix="") from error


def meaning(config: Config, name: str, offerings: Sequence[Offering]) -> PoolMeaningView:
    """What one pool of a configuration comes to, in numbers and in words, at the prices of what is sold."""
    from orchestrator.config.checks.listeners import takes_requests

    settings, pool = config.pools[name], config.pools[name].as_pool(name)
    prices = bill.prices_of(pool, offerings)
    limit, usual = bill.most(pool, prices), bill.usual(pool, prices)
    sentences = [*_sizes(name, settings, pool, prices), *_clouds(settings)]
    if pool.weighted:
        sentences.append(f"Capacity is counted in units: {explain.units_sentence(pool)}.")
        if settings.cloud.target_group:
            sentences.append(
                "The load balancer knows no units: its target group needs the algorithm "
                "least_outstanding_requests, by which faster nodes get more (`orchestrator doctor` looks)."
            )
    standby = pool.standby
    if standby.hot or standby.stopped:
        sentences.append(f"Standby: {standby.hot} hot and {standby.stopped} stopped, ready to take over.")
    front = _balancers(config, settings)
    front = _front(config) if takes_requests(settings) and not settings.balancer else front
    sentences.append(f"Clients send requests to {front}; the daemon is controlled on {config.daemon.socket}.")
    return {
        "name": name,
        "model": settings.model_name,
        "engine": settings.engine.kind,
        "replicas": pool.replicas,
        "spot_wanted": pool.spot_wanted,
        "on_demand_floor": pool.on_demand_floor,
        "most_nodes": pool.most_units,
        "most_usd_per_hour": limit,
        "usual_usd_per_hour": usual,
        "proposed_cap_usd_per_hour": bill.proposed_cap(pool, prices),
        "units": dict(pool.units) if pool.weighted else {},
        "sentences": sentences,
    }


def _front(config: Config) -> str:
    """The gateway's address; under HTTPS with the names for which its certificate is."""
    from orchestrator.config.checks.certificates import certificate_of

    gateway = config.gateway
    if gateway.tls_cert_file is None:
        return str(gateway.listen)
    found = certificate_of(gateway)
    for_names = f" (its certificate is for {', '.join(found.names)})" if found and found.names else ""
    return f"https://{gateway.listen}{for_names}"


def _sizes(name: str, settings: PoolConfig, pool: Pool, prices: bill.Prices) -> list[str]:
    """How many nodes a pool has, at what cost, and how they go."""
    if not pool.replicas:
        return [f"{name}: none is wanted: nothing is launched, and what is there drains and ends."]
    wanted = f"{pool.replicas} {pool.noun(pool.replicas)}"
    limit, usual = bill.most(pool, prices), bill.usual(pool, prices)
    return [
        f"{name}: {wanted} of {settings.model_name} ({settings.engine.kind} engine): "
        f"{pool.spot_wanted} on spot and an on-demand floor of {pool.on_demand_floor} "
        f"({percent(pool.spot_wanted / pool.replicas)} spot).",
        f"Without spot, on-demand nodes cover until {wanted} {'is' if pool.replicas == 1 else 'are'} ready "
        f"again; at most {pool.most_units} live at once"
        + (", and the rest of one more node" if pool.weighted else "")
        + (f", for at most {money(limit)} an hour." if limit is not None else ", without a spend cap."),
        *([] if usual is None else [_cost(pool, prices, usual)]),
        f"A noticed node leaves the load balancer at once, unless fewer than {pool.min_serving} would serve; "
        f"its requests get {pool.drain.budget:g} s to finish.",
    ]


def _clouds(settings: PoolConfig) -> list[str]:
    """Where the machines of a pool on several clouds come from, and what is counted on of all of them."""
    cloud = settings.cloud
    if len(cloud.kinds) == 1:
        return []
    each = [
        f"{row.title} ({', '.join(table.prices())})"
        for row, table in zip(cloud.rows, cloud.tables, strict=True)
    ]
    notice = cloud.traits.notice
    counted = f"{notice:g} s of notice are counted on everywhere" if notice else "no notice is counted on"
    return [f"Machines come from {' and '.join(each)}; {counted}."]


def _cost(pool: Pool, prices: Prices, usual: float) -> str:
    """What the pool costs when all is well, and what a cap that is too low for it does."""
    said = f"When all is well it costs about {money(usual)} an hour"
    if prices.spot is None:
        said += ", with spot counted at the price of on-demand"
    cap, most = pool.limits.spend_per_hour, bill.ceiling(pool, prices)
    if cap is not None and bill.below_usual(pool, prices):
        return f"{said}, more than the cap of {money(cap)}: nodes will be missing."
    if cap is not None and most is not None and cap < most:
        said += f"; without the cap it could come to {money(most)}"
    return f"{said}."


def _budget(config: Config) -> str:
    """What all pools together may have, empty without a bound."""
    cap, nodes = config.budget.spend_per_hour, config.budget.nodes
    bounds = [f"{money(cap)} an hour"] if cap is not None else []
    bounds += [plural(nodes, "node")] if nodes is not None else []
    if not bounds:
        return ""
    order = sorted(config.pools, key=lambda name: -config.pools[name].priority)
    return f"All pools together have at most {' and '.join(bounds)}: floors first, then {', '.join(order)}."


def _balancers(config: Config, settings: PoolConfig) -> str:
    """What clients of the pool ask, other than the gateway of this host alone."""
    from cloud.balancers.kinds import KINDS

    group = settings.cloud.target_group
    found = [f"the load balancer of target group {group}"] if group else []
    for table in settings.balancer:
        title = _front(config) if table.kind == "gateway" else KINDS[table.kind].title
        found.append(f"{title} ({table.title})" if table.name else title)
    return " or ".join(found)


def _routed(config: Config) -> tuple[list[RouteMeaningView], list[ProviderMeaningView]]:
    """What the file's routes and providers come to."""
    from orchestrator.cli.meanings import provider_meanings, route_meanings

    return route_meanings(config), provider_meanings(config)


def _warnings(config: Config) -> list[Problem]:
    """Those of the file, and what bootstrap would refuse."""
    if not any("aws" in pool.cloud.kinds for pool in config.pools.values()):
        return list(config.warnings)
    from cloud.clock import SystemClock
    from orchestrator.cli.bootstrap import too_large

    return sorted((*config.warnings, *too_large(config, SystemClock())))


def _view(
    file: Path, config: Config | None, problems: Iterable[Problem], offerings: Sold | None = None
) -> ValidateView:
    routes, providers = ([], []) if config is None else _routed(config)
    return {
        "schema": "validate/1",
        "file": str(file),
        "ok": config is not None,
        "pools": [meaning(config, name, sold) for name, sold in (offerings or {}).items() if config],
        "routes": routes,
        "providers": providers,
        "problems": [problem.view() for problem in problems],
        "warnings": [] if config is None else [warning.view() for warning in _warnings(config)],
        "advice": [] if config is None else [said.view() for said in config.advice()],
    }
