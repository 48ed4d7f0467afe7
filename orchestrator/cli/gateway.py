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

    from orchestrator.gateway.app import serve
    from orchestrator.gateway.config import GatewayError
    from orchestrator.logs import configure_logging

    configure_logging(settings.daemon.log_format, settings.daemon.log_level)
    try:
        # as the daemon does, so that either may be started first
        settings.daemon.state_dir.mkdir(exist_ok=True)
        serve(settings.pool.gateway.as_gateway(settings.pool_name))
    except (GatewayError, OSError) as error:
        raise CommandError(f"the gateway cannot run: {error}") from error
    return shared.OK
