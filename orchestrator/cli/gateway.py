"""`orchestrator gateway`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from orchestrator.api.client import ClientError, ControlClient, Unreachable
from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError

if TYPE_CHECKING:
    from orchestrator.config.load import Config

_REPLACE_WITHIN: Final = 90.0  # s; a new process has a minute to serve


def gateway(
    *,
    config: Annotated[Path, Parameter(name=["--config", "-c"], help="The daemon's configuration file.")],
    replace: Annotated[
        bool,
        Parameter(
            negative="",
            help="Have the running gateway hand its sockets to a new process and finish what it has.",
        ),
    ] = False,
) -> int:
    """Run the gateway: the address that clients talk to, in its own process.

    It keeps serving the last target set while the daemon is down.

    For example:
      orchestrator gateway --config pool.toml
      orchestrator gateway --config pool.toml --replace     (new settings or a new version, no request lost)
    """
    if replace:
        return _replace(shared.read_config(config, role="client"))

    from cloud.startup import importing

    with importing():
        from orchestrator.gateway.app import serve
        from orchestrator.gateway.config import GatewayError
        from orchestrator.gateway.handover import inheritance
        from orchestrator.logs import configure_logging
        from orchestrator.wiring.gateway import gateway_config

    try:
        with inheritance() as given:
            settings = shared.read_config(config, role="gateway")
            configure_logging(settings.daemon.log_format, settings.daemon.log_level)
            made, state_dir = gateway_config(settings), settings.daemon.state_dir
            files = (
                made.socket,
                made.spend_file,
                made.usage_file,
                *(gate.targets_file for gate in made.pools),
            )
            if any(file is not None and file.parent == state_dir for file in files):
                # as the daemon does, so that either may be started first
                state_dir.mkdir(exist_ok=True)
            serve(made, given)
    except (GatewayError, OSError) as error:
        raise CommandError(f"the gateway cannot run: {error}") from error
    return shared.OK


def _replace(settings: Config) -> int:
    """Ask the running gateway for its heir."""
    client = ControlClient(settings.gateway.socket, timeout=_REPLACE_WITHIN)
    try:
        answer = client.post("/v1/replace")
    except Unreachable as error:
        why = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
        raise CommandError(
            f"no gateway answers on {client.socket_path} ({(why or 'unknown').lower()}); "
            "start one with `orchestrator gateway`",
            error.exit_code,
        ) from error
    except ClientError as error:
        raise CommandError(f"the new gateway cannot serve, the old one serves on: {error}") from error
    print(f"Process {answer['pid']} serves now; the one before it ends with its last request.")
    return shared.OK
