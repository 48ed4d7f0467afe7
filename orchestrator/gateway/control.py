"""The control socket: how the daemon tells the gateway its targets and asks what it holds.

    PUT /v1/targets   a document of `cloud.balancers.targets`; 200 with what it changed, 400 for a bad one,
                      409 for a lower generation or another pool
    POST /v1/replace  start another process on the same sockets and leave them to it; 200 with its number,
                      409 with its reason when it cannot serve
    GET /v1/state     a `gateway-state/1` document
    GET /metrics      Prometheus text
    GET /healthz      the process lives

A unix socket of mode 0600: who may open it may move the traffic.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from cloud.balancers.targets import MAX_BYTES, SCHEMAS, TargetsError
from orchestrator.gateway.config import GatewayError
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.monitoring import metrics_answer
from orchestrator.gateway.replies import error_response
from orchestrator.gateway.source import TargetSource
from orchestrator.gateway.targets import Entry, StaleGeneration, TargetTable, WrongPool

STATE_SCHEMA = "gateway-state/1"


class Control:
    """The handlers of the control socket.

    `incarnation` is new with every start of the process, `listen` is the address that clients use,
    `locked_out` says why they do not get in there.
    """

    def __init__(
        self,
        *,
        incarnation: str,
        listen: str,
        table: TargetTable,
        source: TargetSource,
        metrics: GatewayMetrics,
        queued: Callable[[], int],
        locked_out: Callable[[], str],
        now: Callable[[], float],
        replace: Callable[[], Awaitable[int]],
    ) -> None:
        self._replace = replace
        self._incarnation = incarnation
        self._listen = listen
        self._table = table
        self._source = source
        self._metrics = metrics
        self._queued = queued
        self._locked_out = locked_out
        self._now = now

    def app(self) -> web.Application:
        """The application to serve on the socket."""
        app = web.Application(client_max_size=MAX_BYTES)
        app.router.add_put("/v1/targets", self._put_targets)
        app.router.add_post("/v1/replace", self._post_replace)
        app.router.add_get("/v1/state", self._get_state)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._get_healthz)
        return app

    def state(self) -> dict[str, Any]:
        """What the gateway holds: the body of GET /v1/state."""
        now, accepted = self._now(), self._table.accepted
        return {
            "schema": STATE_SCHEMA,
            "reads": SCHEMAS,
            "incarnation": self._incarnation,
            "listen": self._listen,
            "generation": self._table.generation,
            "pool": None if accepted is None else accepted.pool,
            "written_at": None if accepted is None else accepted.written_at,
            "accepted_at": self._table.accepted_at,
            "file_generation": self._metrics.file_generation,
            "file_fault": self._source.fault,
            "now": now,
            "queued": self._queued(),
            "active": self._metrics.active,
            "totals": self._metrics.totals(),
            "recent": self._metrics.recent.counts(now),
            "refuses": self._locked_out(),
            "only_pool": self._table.only_pool,
            "targets": [self._target(entry, now) for entry in self._table],
        }

    def _target(self, entry: Entry, now: float) -> dict[str, Any]:
        state, reason = entry.state(now)
        return {
            "id": entry.spec.id,
            "address": entry.spec.address,
            "phase": entry.spec.phase.value if entry.present else None,
            "state": state.value,
            "reason": reason,
            "in_flight": entry.in_flight,
            "weight": entry.spec.weight,
            "drain_deadline": entry.spec.drain_deadline,
            "build": entry.spec.build,
            "breaker": entry.breaker.state(now).value,
            "continuation": _continuation(entry),
        }

    async def _put_targets(self, request: web.Request) -> web.Response:
        self._metrics.daemon_heard = self._now()
        try:
            change = self._source.push(await request.read())
        except TargetsError as error:
            return error_response(400, "bad_targets", str(error))
        except StaleGeneration as error:
            return error_response(409, "stale_generation", str(error))
        except WrongPool as error:
            return error_response(409, "wrong_pool", str(error))
        return _json(
            {
                "incarnation": self._incarnation,
                "generation": self._table.generation,
                "added": change.added,
                "drained": change.drained,
                "removed": change.removed,
            }
        )

    async def _post_replace(self, _: web.Request) -> web.Response:
        try:
            return _json({"pid": await self._replace()})
        except GatewayError as error:
            return web.json_response({"error": str(error)}, status=409)

    async def _get_state(self, _: web.Request) -> web.Response:
        self._metrics.daemon_heard = self._now()
        return _json(self.state())

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return metrics_answer(self._metrics)

    async def _get_healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")


def _continuation(entry: Entry) -> dict[str, Any] | None:
    """What it can do for streams that broke elsewhere; null until it was asked."""
    can = entry.capability
    return None if can is None else {"way": can.way.value, "why": can.why, "identity": can.identity}


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(body), headers={"Content-Type": "application/json"})
