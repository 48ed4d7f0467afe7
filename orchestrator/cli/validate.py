"""`orchestrator validate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, PlainOutput
from orchestrator.config_listeners import takes_requests
from orchestrator.setup_views import PoolMeaningView, ValidateView
from orchestrator.words import money, percent, plural
from policies import bill, explain

if TYPE_CHECKING:
    from orchestrator.config import Config, PoolConfig, Problem
    from policies.model import Offering


def validate(
    file: Annotated[Path, Parameter(help="The TOML file.")],
    /,
    *,
    market: Annotated[
        Path | None, Parameter(help="The JSON file that `local-cloud` is given, for its prices and ports.")
    ] = None,
    output: PlainOutput = "table",
) -> int:
    """Check a configuration file and say what it means, or everything that is wrong with it.

    For example:
      orchestrator validate pool.toml
      orchestrator validate pool.toml -o json | jq '.problems'
    """
    from orchestrator.config import ConfigError, load_config

    try:
        config = load_config(file)
        offerings = _sold(config, market)
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
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"OK {file}")
    for name in config.pools:
        for sentence in meaning(config, name, offerings)["sentences"]:
            print(f"  {sentence}")
    print(f"Next: orchestrator run --config {file}")
    return shared.OK


def _sold(config: Config, market: Path | None) -> Sequence[Offering]:
    """What is sold at which price, as far as it is known here.

    Raises ConfigError for what cannot work beside this local cloud.
    """
    from orchestrator.config import ConfigError
    from orchestrator.config_costs import cost_errors, local_offerings, stated_offerings
    from orchestrator.config_listeners import local_errors

    name, pool = config.pool_name, config.pool
    if pool.cloud.kind != "local":
        return stated_offerings(pool)

    from cloud.local.config import LocalCloudConfig, SetupError, load_config

    try:
        cloud = LocalCloudConfig(state_dir=pool.cloud.state_dir) if market is None else load_config(market)
    except SetupError as error:
        raise CommandError(str(error), prefix="") from error
    offerings = local_offerings(cloud)
    found = [
        *cost_errors(("pool", name), pool, offerings),
        *local_errors(config.daemon, name, pool, (cloud.engine_port, cloud.metadata_port)),
    ]
    if found:
        raise ConfigError([config.problem(path, text) for path, text in found])
    return offerings


def meaning(config: Config, name: str, offerings: Sequence[Offering]) -> PoolMeaningView:
    """What one pool of a configuration comes to, in numbers and in words, at the prices of what is sold."""
    settings, pool = config.pools[name], config.pools[name].as_pool(name)
    limit = bill.most(pool, bill.prices_of(pool, offerings))
    wanted = f"{pool.replicas} {pool.noun(pool.replicas)}"
    sentences = [
        f"{name}: {wanted} of {settings.model_name} ({settings.engine.kind} engine): "
        f"{pool.spot_wanted} on spot and an on-demand floor of {pool.on_demand_floor} "
        f"({percent(pool.spot_wanted / pool.replicas)} spot).",
        f"Without spot, on-demand nodes cover until {wanted} are ready again; "
        f"at most {pool.most_units} live at once"
        + (", and the rest of one more node" if pool.weighted else "")
        + (f", for at most {money(limit)} an hour." if limit is not None else ", without a spend cap."),
        f"A doomed node leaves the load balancer at once, unless fewer than {pool.min_serving} would serve; "
        f"its requests get {pool.drain.budget:g} s to finish.",
    ]
    if pool.weighted:
        sentences.append(f"Capacity is counted in units: {explain.units_sentence(pool)}.")
    standby = pool.standby
    if standby.hot or standby.stopped:
        sentences.append(f"Standby: {standby.hot} hot and {standby.stopped} stopped, ready to take over.")
    front = settings.gateway.listen if takes_requests(settings) else _balancer(settings)
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
        "units": dict(pool.units) if pool.weighted else {},
        "sentences": sentences,
    }


def _balancer(settings: PoolConfig) -> str:
    return f"the load balancer of target group {settings.cloud.aws.target_group}"


def _view(
    file: Path, config: Config | None, problems: Iterable[Problem], offerings: Sequence[Offering] = ()
) -> ValidateView:
    return {
        "schema": "validate/1",
        "file": str(file),
        "ok": config is not None,
        "pools": [] if config is None else [meaning(config, name, offerings) for name in config.pools],
        "problems": [problem.view() for problem in problems],
        "warnings": [] if config is None else [warning.view() for warning in config.warnings],
    }
