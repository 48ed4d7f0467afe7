"""`orchestrator run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError


def run(
    *,
    config: Annotated[Path, Parameter(name=["--config", "-c"], help="The configuration, a TOML file.")],
    log_format: Annotated[
        Literal["auto", "console", "json"] | None, Parameter(help="Instead of daemon.log_format.")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, Parameter(help="Instead of daemon.log_level.")
    ] = None,
) -> int:
    """Run the daemon in the foreground. Stopping it touches no node.

    It keeps the replicas and standby that its journal remembers where those of the file are more than double
    or less than half, and says so in `status`: `orchestrator reload --force` takes up the file's.

    For example:
      orchestrator validate pool.toml
      orchestrator run --config pool.toml
      orchestrator run --config pool.toml --log-level debug
    """
    from orchestrator.packaging import check_names

    # before anything of `cloud` or `policies` is imported: a stranger of that name would fail in odd ways
    faults = check_names()
    if faults:
        raise CommandError(f"the daemon cannot run: {'; '.join(faults)}")
    settings = shared.read_config(config, role="daemon")

    from cloud.startup import importing

    with importing():
        import asyncio

        from cloud.errors import CloudError
        from orchestrator.api.listeners import StartError
        from orchestrator.daemon.service import run_daemon
        from orchestrator.logs import configure_logging
        from orchestrator.supervision import show_stack_on_abort

    show_stack_on_abort()
    configure_logging(log_format or settings.daemon.log_format, log_level or settings.daemon.log_level)
    try:
        return asyncio.run(run_daemon(settings))
    except (StartError, CloudError, OSError) as error:
        raise CommandError(f"the daemon cannot run: {error}") from error
