"""`orchestrator local-cloud`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError

if TYPE_CHECKING:
    from orchestrator.config.load import Config


def local_cloud(
    *,
    config: Annotated[Path, Parameter(name=["--config", "-c"], help="The daemon's configuration file.")],
    market: Annotated[
        Path | None, Parameter(help="JSON file with the zones, prices and reclaims of the local cloud.")
    ] = None,
    speed: Annotated[float | None, Parameter(help="Seconds of the market that pass in one second.")] = None,
    seed: Annotated[int | None, Parameter(help="The same seed plays the same market.")] = None,
    pool: shared.WhichPool = None,
) -> int:
    """Run the local cloud of a file's pools: machines are processes on this computer.

    Pools that name one cloud.socket share it. Name a pool where the file has several local clouds.

    For example:
      orchestrator local-cloud --config pool.toml
      orchestrator local-cloud --config pool.toml --market market.json --speed 60
    """
    settings = _of_cloud(config, pool)

    from cloud.startup import importing

    with importing():
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


def _of_cloud(file: Path, pool: str | None) -> Config:
    """The configuration of one pool of the local cloud that is meant. Raises CommandError."""
    config = shared.read_config(file)
    local = [name for name, settings in config.pools.items() if "local" in settings.cloud.kinds]
    if pool is None and len({config.pools[name].cloud.socket for name in local}) == 1:
        return config.only(local[0])
    return shared.one_pool(config, pool, local)
