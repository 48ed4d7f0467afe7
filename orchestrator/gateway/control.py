"""The control socket: how the daemon tells the gateway its targets and asks what it holds.

    PUT /v1/targets   a document of `cloud.balancers.targets`; 200 with what it changed, 400 for a bad one,
                      409 for a lower generation or another pool
    POST /v1/replace  start another process on the same sockets and leave them to it; 200 with its number,
                      409 with its reason when it cannot serve
    GET /v1/state     a `gateway-state/1` document of the pool in ?pool=NAME, which may be left out for the
                      only one
    GET /v1/routes    a `gateway-routes/1` document: where requests go now and why
    GET /metrics      Prometheus text
    GET /healthz      the process lives

A unix socket of mode 0600: who may open it may move the traffic. For daemons on other hosts the first and the
third are served at `control_listen` too, under TLS and with a token (`orchestrator.gateway.remote_control`).
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

import orjson
from aiohttp import web

from cloud.balancers.targets import MAX_BYTES, SCHEMAS, TargetsError, TargetSet, parse
from orchestrator.gateway.accounts.keyfile import ClientKeys
from orchestrator.gateway.config import GatewayError
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.lane import Lane
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.monitoring import metrics_answer
from orchestrator.gateway.replies import error_response
from orchestrator.gateway.targets import StaleGeneration, WrongPool
from policies.held import Held

STATE_SCHEMA = "gateway-state/1"

Keep = Callable[[TargetSet], Awaitable[None]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control:
    """The handlers of the control socket.

    `incarnation` is new with every start of the process, `listen` is the address that clients use,
    `locked_out` says why they do not get in there, `keys` tells them by their keys, `limits_alone` says why
    the limits of those are not shared with other processes, `tls` describes the certificate that clients are
    shown, None for plain HTTP. `routes` makes the body of GET /v1/routes.
    """

    def __init__(
        self,
        *,
        incarnation: str,
        listen: str,
        lanes: Mapping[str, Lane],
        metrics: GatewayMetrics,
        locked_out: Callable[[], str],
        tls: Callable[[], dict[str, Any] | None],
        keys: ClientKeys,
        limits_alone: Callable[[], str],
        routes: Callable[[], dict[str, Any]],
        now: Callable[[], float],
        replace: Callable[[], Awaitable[int]],
    ) -> None:
        self._replace = replace
        self._incarnation = incarnation
        self._listen = listen
        self._lanes = lanes
        self._metrics = metrics
        self._locked_out = locked_out
        self._tls = tls
        self._keys = keys
        self._limits_alone = limits_alone
        self._routes = routes
        self._now = now

    def app(self) -> web.Application:
        """The application to serve on the socket."""
        app = web.Application(client_max_size=MAX_BYTES)
        app.router.add_put("/v1/targets", self._put_targets)
        app.router.add_post("/v1/replace", self._post_replace)
        app.router.add_get("/v1/state", self._get_state)
        app.router.add_get("/v1/routes", self._get_routes)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._get_healthz)
        return app

    def remote_app(self, token: str, keep: Keep) -> web.Application:
        """What daemons on other hosts may ask for: target sets and states, with a token.

        `keep` writes down a set that was taken: its daemon cannot reach the files of this host.
        """

        @web.middleware
        async def known(request: web.Request, handler: Handler) -> web.StreamResponse:
            shown = request.headers.get("Authorization", "")
            if not hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
                return error_response(401, "unknown_daemon", "this is not the token of control_token_file")
            return await handler(request)

        async def put(request: web.Request) -> web.Response:
            return await self._put_targets(request, keep)

        app = web.Application(client_max_size=MAX_BYTES, middlewares=[known])
        app.router.add_put("/v1/targets", put)
        app.router.add_get("/v1/state", self._get_state)
        return app

    def state(self, lane: Lane) -> dict[str, Any]:
        """What the gateway holds of one pool: the body of GET /v1/state."""
        now, table = self._now(), lane.table
        accepted = table.accepted
        return {
            "schema": STATE_SCHEMA,
            "reads": SCHEMAS,
            "incarnation": self._incarnation,
            "listen": self._listen,
            "generation": table.generation,
            "pool": None if accepted is None else accepted.pool,
            "written_at": None if accepted is None else accepted.written_at,
            "accepted_at": table.accepted_at,
            "file_generation": lane.metrics.file_generation,
            "file_fault": lane.source.fault,
            "now": now,
            "queued": len(lane.admission),
            "active": self._metrics.active,
            "totals": lane.metrics.totals(),
            "recent": lane.metrics.recent(),
            "refuses": self._locked_out(),
            "tls": self._tls(),
            "usage": self._usage(),
            "keys": self._keys.describe(),
            "limits_alone": self._limits_alone(),
            "only_pool": table.only_pool,
            "adapters": lane.adapters.describe(),
            "targets": [self._target(entry, now) for entry in table],
        }

    def _usage(self) -> dict[str, Any]:
        """How what was used gets into the usage file: rows that wait, and why they do."""
        book = self._metrics.usage.book
        return {"waiting": 0 if book is None else book.waiting, "fault": "" if book is None else book.trouble}

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
            "adapters": [_held(entry, held) for held in entry.spec.adapters],
            "adapters_leaving": [
                _held(entry, held) for held in entry.lent if held not in entry.spec.adapters
            ],
            "breaker": entry.breaker.state(now).value,
            "continuation": _continuation(entry),
        }

    async def _put_targets(self, request: web.Request, keep: Keep | None = None) -> web.Response:
        """Take a set over, and have it written down where its daemon cannot."""
        self._metrics.daemon_heard = self._now()
        try:
            document = parse(await request.read())
            lane = self._lane_of(document.pool)
            change = lane.source.push(document)
        except TargetsError as error:
            self._metrics.stray_set("invalid")
            return error_response(400, "bad_targets", str(error))
        except StaleGeneration as error:
            return error_response(409, "stale_generation", str(error))
        except WrongPool as error:
            return error_response(409, "wrong_pool", str(error))
        if keep is not None:
            await keep(document)
        return _json(
            {
                "incarnation": self._incarnation,
                "generation": lane.table.generation,
                "added": change.added,
                "drained": change.drained,
                "removed": change.removed,
            }
        )

    def _lane_of(self, pool: str) -> Lane:
        """The lane of a pool; the only one decides by itself what it takes. Raises WrongPool."""
        if len(self._lanes) == 1:
            return next(iter(self._lanes.values()))
        if pool not in self._lanes:
            self._metrics.stray_set("wrong_pool")
            raise WrongPool(f"this gateway serves {self._pools()}, and the set is of {pool!r}")
        return self._lanes[pool]

    def _pools(self) -> str:
        return f"the pools {', '.join(self._lanes)}" if self._lanes else "no pool"

    async def _post_replace(self, _: web.Request) -> web.Response:
        try:
            return _json({"pid": await self._replace()})
        except GatewayError as error:
            return web.json_response({"error": str(error)}, status=409)

    async def _get_state(self, request: web.Request) -> web.Response:
        self._metrics.daemon_heard = self._now()
        pool = request.query.get("pool")
        if pool is None and len(self._lanes) != 1:
            message = f"this gateway serves {self._pools()}; ask with ?pool=NAME"
            return error_response(400, "pool_missing", message)
        try:
            lane = self._lane_of(pool) if pool is not None else next(iter(self._lanes.values()))
        except WrongPool:
            return error_response(404, "no_pool", f"this gateway serves {self._pools()}, not {pool!r}")
        return _json(self.state(lane))

    async def _get_routes(self, _: web.Request) -> web.Response:
        return _json(self._routes())

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return metrics_answer(self._metrics)

    async def _get_healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")


def _held(entry: Entry, held: Held) -> dict[str, Any]:
    """An adapter of a target, and the requests that use it there."""
    return {**asdict(held), "in_flight": entry.lent.get(held, 0)}


def _continuation(entry: Entry) -> dict[str, Any] | None:
    """What it can do for streams that broke elsewhere; null until it was asked."""
    can = entry.capability
    return None if can is None else {"way": can.way.value, "why": can.why, "identity": can.identity}


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(body), headers={"Content-Type": "application/json"})
