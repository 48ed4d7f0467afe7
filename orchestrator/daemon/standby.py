"""The standby of a pair of control hosts: it waits for the lease, says who leads, and does nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from cloud.errors import Denied
from cloud.logger import structlog
from cloud.ports import Clock, LeaseHolder
from orchestrator.api.api import Refused, answer, errors_answered
from orchestrator.journal.database import StoreUnavailable
from orchestrator.lease.shared import SharedLease
from orchestrator.metrics import metrics
from orchestrator.supervision import Supervisor
from orchestrator.views import api as views

log = structlog.get_logger("daemon")

LOOKS: Final = 5
"""Looks at the lease within its length, and one a second at least."""

_METRICS: Final = ("orchestrator_leading", "orchestrator_journal_ok")


class Standby:
    """Waits for a lease that another daemon holds. `daemon` describes this process."""

    def __init__(
        self,
        lease: SharedLease,
        *,
        pools: Iterable[str],
        clock: Clock,
        seconds: float,
        supervisor: Supervisor,
        daemon: Callable[[], views.DaemonView],
    ) -> None:
        for pool in pools:
            metrics.LEADING.labels(pool).set(False)
        metrics.JOURNAL_OK.set(True)
        self._lease, self._clock, self._supervisor, self._daemon = lease, clock, supervisor, daemon
        self._pause = min(1.0, seconds / LOOKS, supervisor.pace or 1.0)
        self._trouble = ""

    @property
    def leader(self) -> str | None:
        """Who leads, as far as is known."""
        return self._lease.leader or None

    @property
    def sentence(self) -> str:
        """What this daemon does now."""
        if self._trouble:
            return f"standby that cannot take over now: {self._trouble}"
        leads = f"{self._lease.leader} leads" if self._lease.leader else "nobody leads yet"
        return f"standby: {leads}"

    async def wait(self) -> LeaseHolder:
        """Look at the lease again and again; returns once it is ours. A database that fails is waited for."""
        log.info("standby.started", leader=self._lease.leader)
        while True:
            self._supervisor.works(self._clock.now(), lambda: self.sentence)
            await self._clock.sleep(self._pause)
            before = self._trouble
            try:
                holder = await self._lease.acquire()
            except Denied:
                self._trouble = ""
            except StoreUnavailable as error:
                self._trouble = str(error)
            else:
                log.warning("standby.promoted", epoch=holder.epoch)
                return holder
            metrics.JOURNAL_OK.set(not self._trouble)
            if bool(self._trouble) != bool(before):
                log.warning("standby.changed", state=self.sentence)

    def control_app(self) -> web.Application:
        """What every socket serves meanwhile. It changes nothing."""
        app = web.Application(middlewares=[errors_answered])
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/sd", self._discovery)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_route("*", "/{any:.*}", self._elsewhere)
        return app

    reading_app = monitoring_app = control_app

    async def _status(self, _: web.Request) -> web.Response:
        return answer(
            views.StatusView(schema="status/1", at=self._clock.now(), daemon=self._daemon(), pools=[])
        )

    async def _discovery(self, _: web.Request) -> web.Response:
        """No engines: the leader names them. A refusal would have Prometheus keep what it heard last."""
        return answer([])

    async def _metrics(self, _: web.Request) -> web.Response:
        """That it does not lead, and whether it could: all other numbers are the leader's to tell."""
        shown = metrics.REGISTRY.restricted_registry(_METRICS)
        return web.Response(body=generate_latest(shown), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._trouble:
            raise Refused(503, self.sentence)
        return web.Response(text=f"{self.sentence}\n")

    async def _elsewhere(self, _: web.Request) -> web.Response:
        raise Refused(503, f"this daemon is a {self.sentence}; ask the one that leads, on its host")
