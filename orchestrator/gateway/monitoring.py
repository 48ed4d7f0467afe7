"""Where Prometheus finds the gateway's metrics: a listener apart from that of clients, who need none of them.

It is no part of serving, so its port may be taken: by the gateway before this one, which frees it once
this one serves, or by a stranger. It is opened as soon as it can be, and the log says why it is not.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from cloud.logger import structlog
from cloud.ports import Clock
from cloud.serving.hosts import Hosts
from cloud.serving.requests import Runner
from cloud.serving.sockets import listen_tcp, reason_of
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.replies import bad_request
from orchestrator.units import HostPort

log = structlog.get_logger("gateway")

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_EVERY: Final = 1.0  # s between two tries
_SAID_AFTER: Final = 5  # tries: a gateway that is replaced needs a moment


def metrics_answer(metrics: GatewayMetrics) -> web.Response:
    """The answer to GET /metrics."""
    return web.Response(body=metrics.exposition(), headers={"Content-Type": METRICS_TYPE})


class MetricsListener:
    """Serves GET /metrics at an address, from `run` to `close`."""

    def __init__(self, at: HostPort, metrics: GatewayMetrics, hosts: Hosts, clock: Clock) -> None:
        self._at, self._metrics, self._hosts, self._clock = at, metrics, hosts, clock
        self._runner: Runner | None = None

    async def run(self) -> None:
        """Open it, however often that takes."""
        tries = 0
        while self._runner is None:
            app = web.Application()
            app.router.add_get("/metrics", self._get)
            try:
                self._runner = await listen_tcp(
                    app, self._at.host, self._at.port, hosts=self._hosts, error_answer=bad_request
                )
            except OSError as error:
                tries += 1
                if tries == _SAID_AFTER:
                    log.error("metrics_listener.open_failed", listen=str(self._at), error=reason_of(error))
                await self._clock.sleep(_EVERY)
        log.info("metrics_listener.opened", listen=str(self._at))

    async def close(self) -> None:
        """Close it. Idempotent; `run` must not be under way."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _get(self, _: web.Request) -> web.Response:
        return metrics_answer(self._metrics)
