"""The request path: takes a request, finds it a target, and tries again, or goes on, where one fails."""

from __future__ import annotations

import asyncio
import contextlib
from typing import cast

import aiohttp
import structlog
from aiohttp import hdrs, web

from cloud.ports import Clock
from orchestrator.gateway.admission import Admission, Refused
from orchestrator.gateway.asked import Unfit, ask
from orchestrator.gateway.attempt import AttemptFailed, Attempts
from orchestrator.gateway.blame import RetryBudget
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.course import Course
from orchestrator.gateway.dialects import ErrorShape
from orchestrator.gateway.dialects.errors import openai_error
from orchestrator.gateway.dialects.stored import Stored
from orchestrator.gateway.dialects.table import row_of
from orchestrator.gateway.endings import BUSY, Answer, ClientGone, Endings, Turned, shape_for
from orchestrator.gateway.failure import Blame, Failure
from orchestrator.gateway.headers import Forwarding
from orchestrator.gateway.health import KNOWN_WITHIN
from orchestrator.gateway.ids import RequestIds
from orchestrator.gateway.intake import Intake, Pace, Refusal
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import GatewayMetrics, Outcome
from orchestrator.gateway.replies import error_response
from orchestrator.gateway.request import Exchange, Stage
from orchestrator.gateway.stream import ResponsesJudge
from orchestrator.gateway.targets import Entry, TargetTable
from orchestrator.gateway.watch import Watch

log = structlog.get_logger("orchestrator.gateway")

_TIMEOUTS = frozenset(
    {Failure.FIRST_TOKEN_TIMEOUT, Failure.DEADLINE, Failure.STALLED, Failure.LOST}
)  # fmt: skip
_ANSWERED = frozenset({Outcome.OK, Outcome.CLIENT_ERROR})
_NOT_IMPLEMENTED = 501  # what follows an upgrade is not HTTP
_BEGUN = frozenset({Stage.STREAMING, Stage.CONTINUING})  # the client has a part of the answer


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
        watch: Watch,
        clock: Clock,
    ) -> None:
        self._config = config
        self._gate = gate = config.pools[0]
        self._table = table
        self._admission = admission
        self._metrics = metrics
        self._ids = ids
        self._forwarding = Forwarding(config.trusted_proxies, gate.api_key)
        self._endings = Endings(config.retry_after)
        self._stored = Stored()
        self._intake = Intake(
            limit=config.body_limit,
            total=config.bodies_limit,
            pace=Pace(config.body_timeout, config.body_rate),
        )
        self._clock = clock
        budget = RetryBudget(gate.retry_budget, gate.retry_reserve)
        self._course = Course(table, budget, gate.max_retries)
        self._attempts = Attempts(
            answer_limit=config.answer_limit,
            session=session,
            table=table,
            metrics=metrics,
            watch=watch,
            clock=clock,
            stopping=lambda: self.stopping,
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
            response = error_response(
                500, "gateway_error", message, request_id=exchange.id, shape=shape_for(job)
            )
        finally:
            self._running.discard(task)
            self._intake.release(exchange.held)
            self._metrics.active -= 1
            self._metrics.request_ended(outcome, self._elapsed(exchange))
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
        """Take in the whole request, which is what makes it repeatable. Raises Turned, ClientGone."""
        shape: ErrorShape = openai_error
        try:
            if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
                raise Unfit(_NOT_IMPLEMENTED, "not_implemented", "this gateway does not proxy web sockets")
            shape = row_of(request.method, request.raw_path.partition("?")[0], self._gate.allow_paths).error
            body = await self._intake.read(request)
            exchange.held = len(body)
            kind = request.headers.get(hdrs.CONTENT_TYPE, "")
            asked = ask(request.method, request.raw_path, kind, body, self._gate.allow_paths)
        except (Unfit, Refusal) as refused:
            raise self._refused(refused, exchange, shape) from None
        except ConnectionError:
            raise ClientGone from None
        longest = self._gate.stream_timeout if asked.stream else self._gate.answer_timeout
        exchange.deadline = self._clock.now() + longest
        headers = self._forwarding.to_node(request, exchange.id)
        return Job(request, exchange, asked=asked, headers=headers, continuation=self._gate.continuation)

    def _refused(self, refused: Unfit | Refusal, exchange: Exchange, shape: ErrorShape) -> Turned:
        """The answer to what no target is asked for."""
        busy = refused.status in BUSY
        response = error_response(
            refused.status,
            refused.code,
            refused.message,
            request_id=exchange.id,
            retry_after=self._config.retry_after if busy else None,
            shape=shape,
            param=refused.param if isinstance(refused, Unfit) else "",
        )
        if isinstance(refused, Refusal) or refused.status == _NOT_IMPLEMENTED:
            response.force_close()
        return Turned(response, Outcome.REFUSED if busy else Outcome.BAD_REQUEST)

    async def _serve(self, job: Job) -> web.StreamResponse:
        """Place the request and try, until there is an answer or nothing is left to try. Raises Turned."""
        self._course.arrived()
        self._find_home(job)
        failure, answer = Failure.DISCONNECTED, None
        while True:
            try:
                entry = await self._place(job.exchange)
            except Refused as refused:
                return await self._no_target(job, refused, failure, answer)
            sent_at = self._clock.now()
            try:
                response = await self._attempt(job, entry)
                self._succeeded(job, entry)
                return response
            except AttemptFailed as failed:
                error, failure = failed, failed.failure
                if answer is None or failure.blames is Blame.DOUBT:  # what may be its own fault says most
                    answer = failed.answer or answer
                again = self._goes_on(job, entry, error, sent_at)
            finally:
                self._table.give(entry)
            if not again:
                return await self._give_up(job, entry, error, answer)

    async def _attempt(self, job: Job, entry: Entry) -> web.StreamResponse:
        if job.exchange.stage is Stage.CONTINUING:
            return await self._attempts.resume(job, entry)
        await self._known(job, entry)
        job.exchange.move(Stage.SENT)
        return await self._attempts.run(job, entry)

    async def _place(self, exchange: Exchange) -> Entry:
        """Wait for a target. Raises Refused."""
        asked = self._clock.now()
        entry = await self._admission.acquire(exchange, asked)
        waited = self._clock.now() - asked
        exchange.waited += waited
        self._metrics.left_queue(waited)
        return entry

    async def _known(self, job: Job, entry: Entry) -> None:
        """Let a stream wait a moment for what a new target can do: unrecorded it cannot go on elsewhere."""
        if job.plan is not None and not entry.known.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KNOWN_WITHIN):
                    await entry.known.wait()

    def _find_home(self, job: Job) -> None:
        """Send a request for a stored thing where that is. Raises Turned where that node is gone."""
        stored = job.asked.stored
        node = None if stored is None else self._stored.node_of(stored)
        if node is None:
            return
        if not self._table.knows(node):
            raise self._endings.turned(
                job,
                404,
                "stored_on_lost_node",
                f"{stored} was kept on node {node}, which is gone; make it anew",
            )
        job.exchange.wish.home = node

    def _succeeded(self, job: Job, entry: Entry) -> None:
        self._course.succeeded(job)
        if isinstance(job.response, web.Response) and isinstance(job.response.body, bytes):
            self._stored.learn(entry.spec.id, job.asked, job.response.body)
        elif isinstance(job.judge, ResponsesJudge) and job.judge.response_id:
            self._stored.note(entry.spec.id, job.judge.response_id)
        if job.response is not None and not job.response.prepared:
            self._metrics.first_byte(self._elapsed(job.exchange))

    def _goes_on(self, job: Job, entry: Entry, error: AttemptFailed, sent_at: float) -> bool:
        """Whether another target gets the request, or the rest of its stream; counts and logs either way."""
        exchange, failure, answer = job.exchange, error.failure, error.answer
        self._course.blame(exchange, entry, failure, None if answer is None else answer.retry_after)
        again = self._course.goes_on(
            job, entry, failure, answered=answer is not None, sent_at=sent_at, now=self._clock.now()
        )
        if exchange.stage in _BEGUN and not again and (why := job.obstacle()):
            self._metrics.continuation_refused(why)
        self._metrics.attempt_failed(failure, retried=again)
        log.info(
            "attempt_failed",
            request_id=exchange.id,
            node=entry.spec.id,
            reason=failure.value,
            detail=str(error),
            stage=exchange.stage.value,
            retried=again,
        )
        return again

    async def _no_target(
        self, job: Job, refused: Refused, failure: Failure, answer: Answer | None
    ) -> web.StreamResponse:
        """Nobody takes the request, or the rest of its stream, after the last `failure`; `answer` is what a
        target said before, if any did.
        """
        if job.exchange.stage is Stage.CONTINUING:
            return await self._cut(job, failure, f"no node can go on with it: {refused}")
        if answer is not None:
            raise self._endings.said(job, answer) from None
        code = "queue_full" if refused.full else "no_target"
        raise self._endings.turned(job, 503, code, f"no node can take the request: {refused}") from None

    async def _give_up(
        self, job: Job, entry: Entry, error: AttemptFailed, answer: Answer | None
    ) -> web.StreamResponse:
        """After the last attempt: what a target said if this one said something, else ours. Raises Turned."""
        exchange, failure = job.exchange, error.failure
        if exchange.stage in _BEGUN:
            return await self._cut(job, failure, str(error))
        if error.answer is not None and answer is not None:
            raise self._endings.said(job, answer) from None
        timed_out = failure in _TIMEOUTS
        what = f"attempt {exchange.retries + 1}, the last one, failed with {failure}: {error}"
        if not job.asked.repeatable and not failure.refused:
            what = f"{what}; it may have run, so it was not sent again"
        code = "upstream_timeout" if timed_out else "upstream_failed"
        status = 504 if timed_out else 502
        raise self._endings.turned(job, status, code, what, node=entry.spec.id) from None

    async def _cut(self, job: Job, failure: Failure, detail: str) -> web.StreamResponse:
        """End a stream of which the client has a part."""
        self._metrics.stream_cut(failure)
        if job.exchange.stage is Stage.CONTINUING:
            self._metrics.continuation_failed(job.kind)
        return await self._endings.cut(job, failure, detail)

    async def _end_now(self, exchange: Exchange, job: Job | None) -> tuple[web.StreamResponse, Outcome]:
        """The gateway is told to end at once: say so to the client instead of just going away."""
        if job is not None and exchange.stage in _BEGUN:
            out = await self._cut(job, Failure.GATEWAY_STOPPING, "this gateway was told to stop")
            return out, Outcome.CUT
        message = "this gateway is stopping; ask another"
        response = error_response(
            503,
            "gateway_stopping",
            message,
            request_id=exchange.id,
            retry_after=self._config.retry_after,
            shape=shape_for(job),
        )
        return response, Outcome.REFUSED

    def _elapsed(self, exchange: Exchange) -> float:
        return self._clock.now() - exchange.started
