"""The request path: takes a request in, has the router answer it, and counts how it ended."""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp import hdrs, web

from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.gateway.accounts.forms import unmistakable
from orchestrator.gateway.accounts.gate import Gate, Visit
from orchestrator.gateway.accounts.keyfile import ClientKeys
from orchestrator.gateway.asked import Unfit, ask
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.dialects import ErrorShape
from orchestrator.gateway.dialects.other import OTHER
from orchestrator.gateway.dialects.table import row_of
from orchestrator.gateway.endings import BUSY, ClientGone, Endings, Turned, shape_for
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.ids import RequestIds
from orchestrator.gateway.intake import Intake, Pace, Refusal
from orchestrator.gateway.job import Job
from orchestrator.gateway.listing import asks_for_models, shape_of
from orchestrator.gateway.metering import Metering
from orchestrator.gateway.metrics import GatewayMetrics, Outcome
from orchestrator.gateway.preflight import allowed, is_preflight
from orchestrator.gateway.replies import error_response
from orchestrator.gateway.request import BEGUN, Exchange, Stage
from orchestrator.gateway.router import Router

log = structlog.get_logger("gateway")

_ANSWERED = frozenset({Outcome.OK, Outcome.CLIENT_ERROR})
_UNAUTHORIZED = 401
_METHODS = "GET, POST, DELETE"  # of the APIs that are served
_NOT_IMPLEMENTED = 501  # what follows an upgrade is not HTTP


class Proxy:
    """Serves the proxied paths: one `handle` call per request. Make it inside the running event loop."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        router: Router,
        keys: ClientKeys,
        gate: Gate,
        endings: Endings,
        metrics: GatewayMetrics,
        metering: Metering,
        ids: RequestIds,
        clock: Clock,
    ) -> None:
        self._router = router
        self._keys = keys
        self._gate = gate
        self._endings = endings
        self._metrics = metrics
        self._metering = metering
        self._ids = ids
        self._clock = clock
        self._unnamed = config.unnamed
        self._allow_paths = tuple(dict.fromkeys(path for gate in config.pools for path in gate.allow_paths))
        self._intake = Intake(
            limit=config.body_limit,
            total=config.bodies_limit,
            pace=Pace(config.body_timeout, config.body_rate),
        )
        self._running: set[asyncio.Task[object]] = set()
        self._ending = False
        self.stopping = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Raises CancelledError when the client leaves."""
        exchange = Exchange(self._ids.of(request.headers), self._clock.now())
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._running.add(task)
        self._metrics.active += 1
        job: Job | None = None
        visit: Visit | None = None
        outcome = Outcome.CANCELLED
        try:
            job = await self._read(request, exchange)
            if job.client is not None:
                visit = await self._gate.enter(job, job.client)
            response = await self._router.serve(job)
            outcome = job.outcome
        except Turned as turned:
            response, outcome = turned.response, turned.outcome
        except ClientGone:
            response = job.response if job is not None and job.response is not None else web.Response()
        except asyncio.CancelledError:
            if not self._ending:
                raise
            response, outcome = await self._end_now(exchange, job)
        except Exception:
            outcome = Outcome.FAILED
            log.exception("request.crashed", request_id=exchange.id)
            if job is not None and job.response is not None and job.response.prepared:
                raise  # breaks the connection: the client must not take what it has for an answer
            message = "the gateway failed on this request; its log has the reason"
            response = error_response(
                500, "gateway_error", message, request_id=exchange.id, shape=shape_for(job)
            )
        finally:
            self._running.discard(task)
            self._intake.release(exchange.held)
            self._metrics.active -= 1
            if job is not None:
                self._metering.ended(job, outcome)
                if visit is not None:
                    self._gate.leave(job, visit, outcome)
            pool = "" if job is None else job.pool
            self._metrics.request_ended(outcome, self._clock.now() - exchange.started, pool)
            if not exchange.over:
                exchange.move(Stage.DONE if outcome in _ANSWERED else Stage.FAILED)
        if self.stopping and not response.prepared:
            response.force_close()
        return response

    async def wait_idle(self) -> None:
        """Wait until no request is being served or waiting."""
        while self._running:
            await asyncio.wait(self._running)

    async def end_now(self) -> None:
        """Break off every request: streams get their error event, the others a 503."""
        self._ending = True
        for task in self._running:
            task.cancel()
        await self.wait_idle()

    async def _read(self, request: web.BaseRequest, exchange: Exchange) -> Job:
        """Take in the whole request, which is what makes it repeatable. Raises Turned, ClientGone.

        Whose it is comes first: nobody without a key makes the gateway hold a body, or learns what it serves.
        The question of a browser alone is answered without one.
        """
        shape: ErrorShape = self._shape(request)
        try:
            if self._keys.asked_for and is_preflight(request):
                row_of(request.method, request.raw_path.partition("?")[0], self._allow_paths)
                raise Turned(allowed(request, _METHODS, exchange.id), Outcome.OK)
            client = self._keys.identify(request.headers)
            if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
                raise Unfit(_NOT_IMPLEMENTED, "not_implemented", "this gateway does not proxy web sockets")
            if model := asks_for_models(request):
                self._keys.permit(client, model)
            if (listing := self._router.listing(request, client, exchange.id)) is not None:
                raise listing
            row_of(request.method, request.raw_path.partition("?")[0], self._allow_paths)
            body = await self._intake.read(request)
            exchange.held = len(body)
            kind = request.headers.get(hdrs.CONTENT_TYPE, "")
            asked = ask(request.method, request.raw_path, kind, body, self._allow_paths)
            if client is not None and not client.asks_all:
                model = (asked.model or self._unnamed) if unmistakable(kind, body) else ""
                self._keys.permit(client, model)
        except (Unfit, Refusal) as refused:
            raise self._refused(refused, exchange, shape) from None
        except ConnectionError:
            raise ClientGone from None
        exchange.read_at = self._clock.now()
        return Job(request, exchange, asked, client)

    def _shape(self, request: web.BaseRequest) -> ErrorShape:
        """The shape of errors for a request whose head alone is here."""
        try:
            row = row_of(request.method, request.raw_path.partition("?")[0], self._allow_paths)
        except Unfit:
            return shape_of(request)
        return shape_of(request) if row is OTHER else row.error

    def _refused(self, refused: Unfit | Refusal, exchange: Exchange, shape: ErrorShape) -> Turned:
        """The answer to what no target is asked for."""
        busy = refused.status in BUSY
        response = error_response(
            refused.status,
            refused.code,
            refused.message,
            request_id=exchange.id,
            retry_after=self._endings.retry_after if busy else None,
            shape=shape,
            param=refused.param if isinstance(refused, Unfit) else "",
        )
        if refused.status == _UNAUTHORIZED:
            response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
        if isinstance(refused, Refusal) or refused.status == _NOT_IMPLEMENTED:
            response.force_close()
        return Turned(response, Outcome.REFUSED if busy else Outcome.BAD_REQUEST)

    async def _end_now(self, exchange: Exchange, job: Job | None) -> tuple[web.StreamResponse, Outcome]:
        """The gateway must stop at once: say so to the client instead of just going away."""
        if job is not None and exchange.stage in BEGUN:
            out = await self._router.cut(job, Failure.GATEWAY_STOPPING, "this gateway is being stopped")
            return out, Outcome.CUT
        message = "this gateway is stopping; ask another"
        response = error_response(
            503,
            "gateway_stopping",
            message,
            request_id=exchange.id,
            retry_after=self._endings.retry_after,
            shape=shape_for(job),
        )
        return response, Outcome.REFUSED
