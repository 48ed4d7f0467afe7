"""`orchestrator local-cloud`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError


def local_cloud(
    *,
    config: Annotated[Path, Parameter(name=["--config", "-c"], help="The daemon's configuration file.")],
    market: Annotated[
        Path | None, Parameter(help="JSON file with the zones, prices and reclaims of the local cloud.")
    ] = None,
    speed: Annotated[float | None, Parameter(help="Seconds of the market that pass in one second.")] = None,
    seed: Annotated[int | None, Parameter(help="The same seed plays the same market.")] = None,
) -> int:
    """Run the local cloud of a pool: machines are processes on this computer.

    For example:
      orchestrator local-cloud --config pool.toml
      orchestrator local-cloud --config pool.toml --market market.json --speed 60
    """
    settings = shared.read_config(config)

    import asyncio

    from cloud.clock import SystemClock
    from cloud.local.config import LocalCloudConfig, SetupError, load_config
    from cloud.local.server import serve
    from orchestrator.logs import configure_logging

    configure_logging(settings.daemon.log_format, settings.daemon.log_level)
    place = settings.pool.cloud
    try:
        made = LocalCloudConfig(state_dir=place.state_dir) if market is None else load_config(market)
        made = replace(made, state_dir=place.state_dir, socket=place.socket)
        made = made if speed is None else replace(made, speed=speed)
        made = made if seed is None else replace(made, seed=seed)
        asyncio.run(serve(made, SystemClock()))
    except (SetupError, OSError) as error:
        raise CommandError(f"the local cloud cannot run: {error}") from error
    return shared.OK
