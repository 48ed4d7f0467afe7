"""The request path: takes a request, finds it a target, and tries again while the client has nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import cast

import aiohttp
import structlog
from aiohttp import hdrs, web

from orchestrator.gateway.admission import Admission, Refused
from orchestrator.gateway.asked import Asked, Unfit, ask
from orchestrator.gateway.attempt import Answer, AttemptFailed, Attempts, ClientGone, Job
from orchestrator.gateway.breaker import RetryBudget
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.dialects.table import row_of
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.ids import RequestIds
from orchestrator.gateway.intake import Intake, Pace, Refusal
from orchestrator.gateway.metrics import GatewayMetrics, Outcome
from orchestrator.gateway.replies import NODE, error_response
from orchestrator.gateway.request import Exchange, Stage
from orchestrator.gateway.targets import Entry, TargetTable
from orchestrator.gateway.upstream import forwarded

log = structlog.get_logger("orchestrator.gateway")

_TIMEOUTS = frozenset({Failure.FIRST_TOKEN_TIMEOUT, Failure.ANSWER_TIMEOUT, Failure.IDLE_TIMEOUT})
_ANSWERED = frozenset({Outcome.OK, Outcome.CLIENT_ERROR})


class Turned(Exception):
    """The request ends here, without any target, with this answer."""

    def __init__(self, response: web.Response, outcome: Outcome) -> None:
        super().__init__(response.status)
        self.response = response
        self.outcome = outcome


class Proxy:
    """Serves the proxied paths: one `handle` call per request. Make it inside the running event loop."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        table: TargetTable,
        admission: Admission,
        metrics: GatewayMetrics,
        session: aiohttp.ClientSession,
        ids: RequestIds,
    ) -> None:
        self._config = config
        self._table = table
        self._admission = admission
        self._metrics = metrics
        self._ids = ids
        self._loop = asyncio.get_running_loop()
        self._intake = Intake(
            limit=config.body_limit,
            total=config.bodies_limit,
            pace=Pace(config.body_timeout, config.body_rate),
        )
        self._budget = RetryBudget(config.retry_budget, config.retry_reserve)
        self._attempts = Attempts(
            config=config,
            session=session,
            metrics=metrics,
            elapsed=self._elapsed,
            stopping=lambda: self.stopping,
        )
        self._running: set[asyncio.Task[object]] = set()
        self._ending = False
        self.stopping = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Raises CancelledError when the client leaves."""
        exchange = Exchange(self._ids.of(request.headers), self._loop.time())
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._running.add(task)
        self._metrics.active += 1
        job: Job | None = None
        outcome = Outcome.CANCELLED
        try:
            job = await self._read(request, exchange)
            response = await self._serve(job)
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
            log.exception("request_crashed", request_id=exchange.id)
            if job is not None and job.response is not None and job.response.prepared:
                raise  # breaks the connection: the client must not take what it has for an answer
            message = "the gateway failed on this request; its log has the reason"
            response = error_response(500, "gateway_error", message, request_id=exchange.id)
        finally:
            if not exchange.over:
                exchange.move(Stage.DONE if outcome in _ANSWERED else Stage.FAILED)
            self._running.discard(task)
            self._metrics.active -= 1
            self._metrics.request_ended(outcome, self._elapsed(exchange))
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
        """Take in the whole request, which is what makes it repeatable. Raises Turned."""
        try:
            row_of(request.method, request.raw_path.partition("?")[0], self._config.allow_paths)
        except Unfit as unfit:
            raise self._turn(exchange, unfit.status, unfit.code, unfit.message) from None
        if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            turned = self._turn(exchange, 501, "not_implemented", "this gateway does not proxy web sockets")
            turned.response.force_close()
            raise turned
        try:
            body = await self._intake.read(request)
        except Refusal as refusal:
            turned = self._turn(exchange, refusal.status, refusal.code, refusal.message)
            turned.response.force_close()
            raise turned from None
        except ConnectionError:
            raise ClientGone from None
        headers = forwarded(request.headers, exchange.id, self._config.api_key)
        return Job(request, exchange, headers=headers, asked=self._ask(request, exchange, body))

    def _ask(self, request: web.BaseRequest, exchange: Exchange, body: bytes) -> Asked:
        kind = request.headers.get(hdrs.CONTENT_TYPE, "")
        try:
            return ask(request.method, request.raw_path, kind, body, self._config.allow_paths)
        except Unfit as unfit:
            raise self._turn(exchange, unfit.status, unfit.code, unfit.message) from None

    async def _serve(self, job: Job) -> web.StreamResponse:
        """Place the request and try, until there is an answer or nothing is left to try. Raises Turned."""
        exchange = job.exchange
        self._budget.deposit()
        while True:
            entry = await self._place(exchange)
            exchange.move(Stage.SENT)
            failure: Failure | None = None
            try:
                response = await self._attempts.run(job, entry)
                failure = job.cut
                if not response.prepared:
                    self._metrics.first_byte(self._elapsed(exchange))
                return response
            except AttemptFailed as error:
                failure = error.failure
                exchange.tried[entry.spec.id] = entry.passes
                if not self._retries(exchange, entry, error):
                    raise self._give_up(exchange, entry, error) from None
            finally:
                self._table.give(entry, failure, answered=job.outcome in _ANSWERED)
            exchange.move(Stage.QUEUED)

    async def _place(self, exchange: Exchange) -> Entry:
        """Wait for a target. Raises Turned when the queue says no."""
        asked = self._loop.time()
        try:
            entry = await self._admission.acquire(exchange)
        except Refused as refused:
            code = "queue_full" if refused.full else "no_target"
            raise self._turn(exchange, 503, code, f"no node can take the request: {refused}") from None
        self._metrics.left_queue(self._loop.time() - asked)
        return entry

    def _retries(self, exchange: Exchange, entry: Entry, error: AttemptFailed) -> bool:
        """Whether another attempt follows; counts and logs either way."""
        retried = exchange.may_retry(error.failure, max_retries=self._config.max_retries, budget=self._budget)
        self._metrics.attempt_failed(error.failure, retried=retried)
        log.info(
            "attempt_failed",
            request_id=exchange.id,
            node=entry.spec.id,
            reason=error.failure.value,
            detail=str(error),
            retried=retried,
        )
        return retried

    def _give_up(self, exchange: Exchange, entry: Entry, error: AttemptFailed) -> Turned:
        """The answer after the last attempt: the target's own error if it gave one, else ours."""
        if error.answer is not None and error.answer.status >= 500:
            return Turned(self._pass_error(error.answer), Outcome.UPSTREAM_ERROR)
        timed_out = error.failure in _TIMEOUTS
        response = error_response(
            504 if timed_out else 502,
            "upstream_timeout" if timed_out else "upstream_failed",
            f"{exchange.retries + 1} attempts failed, the last one with {error.failure}: {error}",
            request_id=exchange.id,
            retry_after=self._config.retry_after,
        )
        response.headers[NODE] = entry.spec.id
        return Turned(response, Outcome.FAILED)

    def _pass_error(self, answer: Answer) -> web.Response:
        response = web.Response(status=answer.status, headers=answer.headers, body=answer.body)
        if answer.status == 503:
            response.headers.setdefault(hdrs.RETRY_AFTER, str(self._config.retry_after))
        return response

    def _turn(self, exchange: Exchange, status: int, code: str, message: str) -> Turned:
        busy = status == 503
        retry_after = self._config.retry_after if busy else None
        response = error_response(status, code, message, request_id=exchange.id, retry_after=retry_after)
        return Turned(response, Outcome.REFUSED if busy else Outcome.BAD_REQUEST)

    async def _end_now(self, exchange: Exchange, job: Job | None) -> tuple[web.StreamResponse, Outcome]:
        """The gateway is told to end at once: say so to the client instead of just going away."""
        stopping = Failure.GATEWAY_STOPPING
        if job is None or job.response is None or exchange.stage is not Stage.STREAMING:
            turned = self._turn(exchange, 503, "gateway_stopping", "this gateway is stopping; ask another")
            return turned.response, turned.outcome
        self._metrics.stream_cut(stopping)
        if job.response.content_type == "text/event-stream":
            detail = "this gateway was told to stop"
            event = job.edge.interrupted(request_id=exchange.id, failure=stopping, detail=detail, tokens=None)
            with contextlib.suppress(ConnectionError):
                await job.response.write(event)
        elif job.request.transport is not None:
            job.request.transport.abort()
        return job.response, Outcome.CUT

    def _elapsed(self, exchange: Exchange) -> float:
        return self._loop.time() - exchange.started
