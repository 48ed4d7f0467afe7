"""Says in the log when the daemon is not heard any more, and when it is again."""

from __future__ import annotations

from typing import Final

from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.gateway.metrics import GatewayMetrics

log = structlog.get_logger("gateway")

SILENT_AFTER: Final = 120.0
"""Seconds without a word on the control socket after which the daemon counts as silent: the alert's time."""


class DaemonSilence:
    """Whether the daemon is silent. `look` as often as you like: each silence is two lines."""

    def __init__(self, metrics: GatewayMetrics, clock: Clock) -> None:
        self._metrics, self._clock = metrics, clock
        self._since: float | None = None

    def look(self) -> None:
        """Log a silence once it is long, and its end."""
        now = self._clock.now()
        if now - self._metrics.daemon_heard <= SILENT_AFTER:
            if self._since is not None:
                log.info("daemon.contact_restored", after=round(now - self._since, 1))
            self._since = None
        elif self._since is None:
            self._since = self._metrics.daemon_heard
            log.warning(
                "daemon.contact_lost",
                seconds=round(now - self._since, 1),
                effect="the nodes that are known are served, and none that is new",
            )
