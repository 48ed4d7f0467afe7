"""The daemon as a process: signals, what the service manager hears, and the exit code."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from cloud.logger import structlog
from orchestrator.config.load import Config
from orchestrator.daemon.daemon import Daemon
from orchestrator.supervision import Supervisor

log = structlog.get_logger("daemon")


async def run_daemon(config: Config) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises StartError."""
    supervisor = Supervisor()
    daemon = Daemon(config, supervisor=supervisor)
    stopping = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stopping.set)
    reloads: set[asyncio.Task[Any]] = set()

    def reload() -> None:
        task = asyncio.create_task(daemon.reloader.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    await daemon.start()
    running.add_signal_handler(signal.SIGHUP, reload)
    stopped = asyncio.create_task(stopping.wait())
    failed = asyncio.create_task(daemon.wait())
    await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if failed.done():
        log.error("daemon.failed", reason=failed.result())
        code = 1
    for task in (stopped, failed):
        task.cancel()
    supervisor.stops("stopping; nodes and targets stay as they are")
    await daemon.stop()
    log.info("daemon.stopped", nodes="untouched")
    return code
