"""The tries of one request at the targets of a pool: placed, sent, and sent again where a target fails it."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.gateway.admission import Admission, Refused
from orchestrator.gateway.attempt import AttemptFailed, Attempts
from orchestrator.gateway.dialects.stored import Stored
from orchestrator.gateway.endings import Answer, Endings, Unserved
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.failure import Blame, Failure
from orchestrator.gateway.health import KNOWN_WITHIN
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import LaneMetrics
from orchestrator.gateway.request import BEGUN, Exchange, Stage
from orchestrator.gateway.retry_policy import RetryPolicy
from orchestrator.gateway.stream import ResponsesJudge
from orchestrator.gateway.targets import TargetTable
from policies.routing import Trouble

log = structlog.get_logger("gateway")

_TIMEOUTS = frozenset(
    {Failure.FIRST_TOKEN_TIMEOUT, Failure.DEADLINE, Failure.STALLED, Failure.LOST}
)  # fmt: skip
_TROUBLES = {Blame.BUSY: Trouble.SATURATED, Blame.DOUBT: Trouble.FAILED}


class Tries:
    """Tries for all requests of a pool; holds nothing of one."""

    def __init__(
        self,
        *,
        table: TargetTable,
        admission: Admission,
        attempts: Attempts,
        policy: RetryPolicy,
        endings: Endings,
        metrics: LaneMetrics,
        clock: Clock,
    ) -> None:
        self._table = table
        self._admission = admission
        self._attempts = attempts
        self._policy = policy
        self._endings = endings
        self._metrics = metrics
        self._clock = clock
        self._stored = Stored()

    def keeps(self, stored: str) -> bool:
        """Whether a node of this pool is known to have made the stored thing of this id."""
        return self._stored.node_of(stored) is not None

    async def run(self, job: Job) -> web.StreamResponse:
        """Place the request and try, until there is an answer or nothing is left to try.

        Raises Turned, Unserved, ClientGone.
        """
        self._policy.arrived()
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
                self._table.give(entry, job.wish)
            if not again:
                return await self._give_up(job, entry, error, answer)

    async def cut(self, job: Job, failure: Failure, detail: str) -> web.StreamResponse:
        """End a stream of which the client has a part."""
        self._metrics.stream_cut(failure)
        if job.exchange.stage is Stage.CONTINUING:
            self._metrics.continuation_failed(job.kind)
        return await self._endings.cut(job, failure, detail)

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
        self._policy.succeeded(job)
        if isinstance(job.response, web.Response) and isinstance(job.response.body, bytes):
            self._stored.learn(entry.spec.id, job.asked, job.response.body)
        elif isinstance(job.judge, ResponsesJudge) and job.judge.response_id:
            self._stored.note(entry.spec.id, job.judge.response_id)
        if job.response is not None and not job.response.prepared:
            self._metrics.first_byte(job.began(self._clock.now()))

    def _goes_on(self, job: Job, entry: Entry, error: AttemptFailed, sent_at: float) -> bool:
        """Whether another target gets the request, or the rest of its stream; counts and logs either way."""
        exchange, failure, answer = job.exchange, error.failure, error.answer
        if failure is Failure.NO_ADAPTER and job.use is not None:
            job.use.lacking += 1
        self._policy.blame(exchange, entry, failure, None if answer is None else answer.retry_after)
        if exchange.stage is Stage.SENT:
            self._metrics.wasted("output", job.told_tokens() or 0)
        again = self._policy.goes_on(
            job, entry, failure, answered=answer is not None, sent_at=sent_at, now=self._clock.now()
        )
        if exchange.stage is Stage.CONTINUING:
            exchange.leaves, exchange.patience = frozenset(), None  # its rest can come from nowhere else
        if exchange.stage in BEGUN and not again and (why := job.obstacle()):
            self._metrics.continuation_refused(why)
        self._metrics.attempt_failed(failure, retried=again)
        log.info(
            "attempt.failed",
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
            return await self.cut(job, failure, f"no node can go on with it: {refused}")
        if answer is not None:
            turned = self._endings.said(job, answer)
            raise Unserved(_trouble(failure), f"answered {answer.status}", turned, said=True) from None
        code, what = "queue_full" if refused.full else "no_target", f"no node can take the request: {refused}"
        turned = self._endings.turned(job, 503, code, what)
        raise Unserved(refused.trouble, f"cannot take it: {refused}", turned) from None

    async def _give_up(
        self, job: Job, entry: Entry, error: AttemptFailed, answer: Answer | None
    ) -> web.StreamResponse:
        """After the last attempt: what a target said if this one said something, else ours.

        Raises Unserved where it may run elsewhere, else Turned.
        """
        exchange, failure = job.exchange, error.failure
        if exchange.stage in BEGUN:
            return await self.cut(job, failure, str(error))
        may_have_run = not job.asked.repeatable and not failure.refused
        if error.answer is not None and answer is not None:
            turned = self._endings.said(job, answer)
            if may_have_run:
                raise turned from None
            raise Unserved(_trouble(failure), f"answered {answer.status}", turned, said=True) from None
        what = f"attempt {exchange.retries + 1}, the last one, failed with {failure}: {error}"
        if may_have_run:
            what = f"{what}; it may have run, so it was not sent again"
        timed_out = failure in _TIMEOUTS
        code, status = ("upstream_timeout", 504) if timed_out else ("upstream_failed", 502)
        turned = self._endings.turned(job, status, code, what, node=entry.spec.id)
        if may_have_run or failure is Failure.DEADLINE:
            raise turned from None
        raise Unserved(_trouble(failure), f"failed: {error}", turned) from None


def _trouble(failure: Failure) -> Trouble:
    """What the last failure says of the pool: its targets failed the request, or are busy, unless it may be
    the request's own fault.
    """
    return _TROUBLES.get(failure.blames, Trouble.DOWN)
