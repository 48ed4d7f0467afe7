"""`orchestrator gateway`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError


def gateway(
    *,
    config: Annotated[Path, Parameter(name=["--config", "-c"], help="The daemon's configuration file.")],
) -> int:
    """Run the gateway: the address that clients talk to, in its own process.

    It keeps serving the last target set while the daemon is down.

    For example:
      orchestrator gateway --config pool.toml
    """
    settings = shared.read_config(config)

    import asyncio

    from cloud.clock import SystemClock
    from orchestrator.gateway.config import GatewayError
    from orchestrator.gateway.server import serve
    from orchestrator.logs import configure_logging

    configure_logging(settings.daemon.log_format, settings.daemon.log_level)
    try:
        asyncio.run(serve(settings.pool.gateway.as_gateway(settings.pool_name), SystemClock()))
    except (GatewayError, OSError) as error:
        raise CommandError(f"the gateway cannot run: {error}") from error
    return shared.OK
