"""One attempt at one target: sends the request, holds the answer back until it is good, passes it on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import structlog
from aiohttp import hdrs, web
from multidict import CIMultiDict

from orchestrator.gateway import failure as failures
from orchestrator.gateway import upstream
from orchestrator.gateway.asked import Asked
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.metrics import GatewayMetrics, Outcome
from orchestrator.gateway.replies import NODE, REQUEST_ID
from orchestrator.gateway.request import Exchange, Stage
from orchestrator.gateway.stream import StreamJudge
from orchestrator.gateway.targets import Entry

log = structlog.get_logger("orchestrator.gateway")

_OK = 200
_FIRST_ERROR, _FIRST_SERVER_ERROR = 400, 500
_EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of a target that has not been sent."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


class AttemptFailed(Exception):
    """An attempt ended before the client got a byte. `answer` is what the target said, if anything."""

    def __init__(self, failure: Failure, detail: str, answer: Answer | None = None) -> None:
        super().__init__(detail)
        self.failure = failure
        self.answer = answer


class ClientGone(Exception):
    """The client closed its connection while its answer was being written."""


class Job:
    """A request as the attempts need it: what is sent to a target, and how far the answer got.

    `response` is set once there is something for the client; `cut` is what broke it after that.
    """

    __slots__ = ("asked", "cut", "edge", "exchange", "headers", "outcome", "request", "response")

    def __init__(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        *,
        headers: CIMultiDict[str],
        asked: Asked,
    ) -> None:
        self.request = request
        self.exchange = exchange
        self.headers = headers
        self.asked = asked
        self.edge = asked.dialect.edge(asked)
        self.response: web.StreamResponse | None = None
        self.cut: Failure | None = None
        self.outcome = Outcome.CANCELLED

    def answer_headers(self, headers: CIMultiDict[str], entry: Entry) -> CIMultiDict[str]:
        """The target's headers with the two that say which request and which node this is."""
        headers[REQUEST_ID] = self.exchange.id
        headers[NODE] = entry.spec.id
        return headers


class Attempts:
    """Makes attempts. Holds no state of a request; `stopping` tells whether clients should reconnect."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        session: aiohttp.ClientSession,
        metrics: GatewayMetrics,
        elapsed: Callable[[Exchange], float],
        stopping: Callable[[], bool],
    ) -> None:
        self._config = config
        self._session = session
        self._metrics = metrics
        self._elapsed = elapsed
        self._stopping = stopping

    async def run(self, job: Job, entry: Entry) -> web.StreamResponse:
        """Try one target.

        Returns the answer: a whole one that is still to be sent, or a stream that was sent, whole or, when
        `job.cut` says so, in part. Raises AttemptFailed while the client has nothing, ClientGone.
        """
        request, config = job.request, self._config
        limit = config.first_token_timeout if job.asked.stream else config.answer_timeout
        call = self._session.request(
            request.method,
            upstream.target_url(entry.spec.address, job.asked.inner_path),
            headers=job.headers,
            data=job.asked.body() or None,
            allow_redirects=False,
        )
        try:
            async with asyncio.timeout(limit) as timer, call as answer:
                if answer.status == _OK and answer.content_type == _EVENT_STREAM:
                    return await self._stream(job, entry, answer, timer)
                return await self._plain(job, entry, answer, timer)
        except (aiohttp.ClientError, OSError) as error:
            failure = upstream.failure_of(error)
            if failure is None:
                failure = Failure.FIRST_TOKEN_TIMEOUT if job.asked.stream else Failure.ANSWER_TIMEOUT
                raise AttemptFailed(failure, f"nothing usable came within {limit:g} s") from None
            raise AttemptFailed(failure, _said(error)) from None

    async def _plain(
        self, job: Job, entry: Entry, answer: aiohttp.ClientResponse, timer: asyncio.Timeout
    ) -> web.StreamResponse:
        """Read the whole answer before any of it is sent, so that a node that dies on the way costs nothing.

        An answer of unknown length that is not JSON or text, such as audio, passes through as it comes.
        """
        kind = answer.content_type
        held = (
            answer.status >= _FIRST_ERROR
            or (answer.content_length or self._config.answer_limit + 1) <= self._config.answer_limit
            or kind == "application/json"
            or kind.startswith("text/")
        )
        limit = self._config.answer_limit if held else 0
        parts: list[bytes] = []
        size = 0
        async for part in answer.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > limit:
                return await self._pass_through(job, entry, answer, timer, b"".join(parts))
        body = b"".join(parts)
        headers = job.answer_headers(upstream.returned(answer.headers), entry)
        failure = failures.of_status(answer.status, body, draining=entry.draining)
        if failure is None and answer.status == _OK:
            failure = job.asked.dialect.whole(job.asked, body)
        if answer.status >= _FIRST_ERROR and job.request.method != hdrs.METH_HEAD:
            headers[hdrs.CONTENT_TYPE] = "application/json"
            body = job.edge.failed(answer.status, body, job.exchange.id)
        if failure is not None:
            raise AttemptFailed(failure, f"{answer.status}", Answer(answer.status, headers, body))
        if answer.status == _OK:
            body = job.edge.answer(body)
        if job.request.method == hdrs.METH_HEAD and hdrs.CONTENT_LENGTH in answer.headers:
            headers[hdrs.CONTENT_LENGTH] = answer.headers[hdrs.CONTENT_LENGTH]
        job.response = web.Response(status=answer.status, headers=headers, body=body)
        job.outcome = _outcome(answer.status)
        return job.response

    async def _stream(
        self, job: Job, entry: Entry, answer: aiohttp.ClientResponse, timer: asyncio.Timeout
    ) -> web.StreamResponse:
        """Hold the stream until it has begun, then pass it on event by event and judge its end."""
        judge = job.asked.dialect.judge(job.asked)
        head, ended = b"", False
        while not judge.begun and judge.failure() is None and not ended:
            data = await answer.content.readany()
            ended = not data
            head += judge.feed(data) if data else judge.end()
            self._check_tail(judge)
        if (failure := judge.failure()) is not None:
            raise AttemptFailed(failure, judge.detail)
        await _disarm(timer)
        out = await self._begin(job, entry, answer, job.edge.feed(head))
        upstream.set_idle_timeout(answer, self._config.idle_timeout)
        while not ended:
            try:
                data = await answer.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                if not judge.whole:
                    judge.fail(upstream.failure_of(error) or Failure.DISCONNECTED, _said(error))
                break
            ended = not data
            block = judge.feed(data) if data else judge.end()
            if block and (block := job.edge.feed(block)):
                await _write(out, block)
            self._check_tail(judge)
            if judge.failure() is not None:
                break
        self._metrics.stream_ended(judge.chunks)
        if (failure := judge.failure()) is not None:
            self._count_cut(job, entry, failure, judge.detail)
            last = job.edge.interrupted(
                request_id=job.exchange.id, failure=failure, detail=judge.detail, tokens=judge.tokens()
            )
        else:
            job.outcome = Outcome.OK
            last = job.edge.feed(judge.closing()) + job.edge.closing()
        if last:
            await _write(out, last)
        return out

    async def _pass_through(
        self, job: Job, entry: Entry, answer: aiohttp.ClientResponse, timer: asyncio.Timeout, head: bytes
    ) -> web.StreamResponse:
        """Pass on bytes of a kind this gateway does not judge. A break shows as a broken connection."""
        await _disarm(timer)
        out = await self._begin(job, entry, answer, head)
        upstream.set_idle_timeout(answer, self._config.idle_timeout)
        while True:
            try:
                data = await answer.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                failure = upstream.failure_of(error) or Failure.DISCONNECTED
                self._count_cut(job, entry, failure, _said(error))
                if job.request.transport is not None:
                    job.request.transport.abort()
                return out
            if not data:
                job.outcome = _outcome(answer.status)
                return out
            await _write(out, data)

    async def _begin(
        self, job: Job, entry: Entry, answer: aiohttp.ClientResponse, head: bytes
    ) -> web.StreamResponse:
        """Send the first bytes to the client. From here the request cannot be retried."""
        out = web.StreamResponse(
            status=answer.status, headers=job.answer_headers(upstream.returned(answer.headers), entry)
        )
        if answer.content_type != _EVENT_STREAM and answer.content_length is not None:
            out.content_length = answer.content_length
        if self._stopping():
            out.force_close()
        job.exchange.move(Stage.STREAMING)
        job.response = out
        self._metrics.first_byte(self._elapsed(job.exchange))
        try:
            await out.prepare(job.request)
        except ConnectionError:
            raise ClientGone from None
        if head:
            await _write(out, head)
        return out

    def _count_cut(self, job: Job, entry: Entry, failure: Failure, detail: str) -> None:
        job.outcome, job.cut = Outcome.CUT, failure
        self._metrics.stream_cut(failure)
        log.warning(
            "stream_cut", request_id=job.exchange.id, node=entry.spec.id, reason=failure.value, detail=detail
        )

    def _check_tail(self, judge: StreamJudge) -> None:
        """An event without an end is not an event stream."""
        if judge.size_of_tail() > self._config.answer_limit:
            judge.fail(Failure.BAD_RESPONSE, "an event of the stream has no end")


async def _disarm(timer: asyncio.Timeout) -> None:
    """Switch the timer off for good; if it has fired in this very instant, let it strike here.

    Otherwise it would strike at a later wait, when the client already has bytes.
    """
    if timer.expired():
        await asyncio.get_running_loop().create_future()
    timer.reschedule(None)


async def _write(out: web.StreamResponse, data: bytes) -> None:
    """Write to the client, waiting while it is slow. Raises ClientGone."""
    try:
        await out.write(data)
    except ConnectionError:
        raise ClientGone from None


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _outcome(status: int) -> Outcome:
    if status < _FIRST_ERROR:
        return Outcome.OK
    return Outcome.CLIENT_ERROR if status < _FIRST_SERVER_ERROR else Outcome.UPSTREAM_ERROR
