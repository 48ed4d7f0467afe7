"""`orchestrator validate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import PlainOutput
from orchestrator.views import PoolMeaningView, ValidateView
from orchestrator.words import money, percent, plural
from policies import explain

if TYPE_CHECKING:
    from orchestrator.config import Config, Problem


def validate(
    file: Annotated[Path, Parameter(help="The TOML file.")], /, *, output: PlainOutput = "table"
) -> int:
    """Check a configuration file and say what it means, or everything that is wrong with it.

    For example:
      orchestrator validate pool.toml
      orchestrator validate pool.toml -o json | jq '.problems'
    """
    from orchestrator.config import ConfigError, load_config

    try:
        config = load_config(file)
    except ConfigError as error:
        if output == "json":
            shared.print_json(_view(file, None, error.problems))
        else:
            print(error, file=sys.stderr)
            print(f"{plural(len(error.problems), 'error')} in {file}", file=sys.stderr)
        return shared.ERROR
    if output == "json":
        shared.print_json(_view(file, config, ()))
        return shared.OK
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"OK {file}")
    for name in config.pools:
        for sentence in meaning(config, name)["sentences"]:
            print(f"  {sentence}")
    print(f"Next: orchestrator run --config {file}")
    return shared.OK


def meaning(config: Config, name: str) -> PoolMeaningView:
    """What one pool of a configuration comes to, in numbers and in words."""
    settings, pool = config.pools[name], config.pools[name].as_pool(name)
    limit = pool.limits.spend_per_hour
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
    sentences.append(
        f"Clients send requests to {settings.gateway.listen}; "
        f"the daemon is controlled on {config.daemon.socket}."
    )
    return {
        "name": name,
        "model": settings.model_name,
        "engine": settings.engine.kind,
        "replicas": pool.replicas,
        "spot_wanted": pool.spot_wanted,
        "on_demand_floor": pool.on_demand_floor,
        "most_nodes": pool.most_units,
        "units": dict(pool.units) if pool.weighted else {},
        "sentences": sentences,
    }


def _view(file: Path, config: Config | None, problems: Iterable[Problem]) -> ValidateView:
    return {
        "schema": "validate/1",
        "file": str(file),
        "ok": config is not None,
        "pools": [] if config is None else [meaning(config, name) for name in config.pools],
        "problems": [problem.view() for problem in problems],
        "warnings": [] if config is None else [warning.view() for warning in config.warnings],
    }
