"""One attempt at one target: sends the request, holds the answer back until it is good, passes it on.

Or, for a stream that broke elsewhere, lets the target go on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import cast

import aiohttp
from aiohttp import hdrs, web

from cloud.ports import Clock
from cloud.providers.usage import of_openai
from cloud.sse import DONE_EVENT, only_comments
from orchestrator.gateway import failure as failures
from orchestrator.gateway import numbers, upstream
from orchestrator.gateway.continuation import Broken, Capability, Continuation
from orchestrator.gateway.endings import Answer, ClientGone
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.headers import returned
from orchestrator.gateway.job import Job
from orchestrator.gateway.kept import KeptConnections, was_kept
from orchestrator.gateway.metrics import LaneMetrics, Outcome
from orchestrator.gateway.request import Stage
from orchestrator.gateway.stream import StreamJudge
from orchestrator.gateway.targets import TargetTable
from orchestrator.gateway.watch import Leash, Watch

_SUCCESS = range(200, 300)
_FIRST_ERROR, _FIRST_SERVER_ERROR = 400, 500
_EVENT_STREAM = "text/event-stream"
_AT_FAULT = frozenset({400, 422})


class AttemptFailed(Exception):
    """An attempt failed: the client has nothing of its answer, or a part (`exchange.stage` tells).

    `answer` is what the target said, if anything.
    """

    def __init__(self, failure: Failure, detail: str, answer: Answer | None = None) -> None:
        super().__init__(detail)
        self.failure = failure
        self.answer = answer


class Attempts:
    """Makes attempts. Holds no state of a request; `stopping` tells whether clients should reconnect."""

    def __init__(
        self,
        *,
        answer_limit: int,
        session: aiohttp.ClientSession,
        table: TargetTable,
        metrics: LaneMetrics,
        watch: Watch,
        clock: Clock,
        stopping: Callable[[], bool],
    ) -> None:
        self._answer_limit = answer_limit
        self._session = session
        self._connections = cast("KeptConnections", session.connector)
        self._table = table
        self._metrics = metrics
        self._watch = watch
        self._clock = clock
        self._stopping = stopping

    async def run(self, job: Job, entry: Entry) -> web.StreamResponse:
        """Try one target. Returns its answer: a whole one that is still to be sent, or a stream that was.

        Raises AttemptFailed, ClientGone.
        """
        try:
            return await self._send(job, entry, job.body_for(entry))
        except AttemptFailed as failed:
            if not (job.asks_usage and entry.takes_usage is None and _refused(failed.answer)):
                raise
        # what it refuses may be the question for the usage, which is ours
        return await self._send(job, entry, job.body_for(entry, spares_usage=True), spared=True)

    async def _send(self, job: Job, entry: Entry, body: bytes, *, spared: bool = False) -> web.StreamResponse:
        """`spared`: the same was refused with the question for the usage in it."""
        with self._failures_named(job, leash := self._leash(job, entry)), leash, self._meaning(job, entry):
            async with self._session.request(
                job.request.method,
                upstream.target_url(entry.spec.address, job.asked.inner_path),
                headers=job.headers,
                data=body or None,
                allow_redirects=False,
            ) as answer:
                leash.moved()
                if not _streams(job, answer):
                    return await self._plain(job, leash, answer)
                if spared or job.asks_usage:
                    entry.takes_usage = not spared
                await self._stream(job, leash, answer)
        return await self._close(job, b"" if job.judge is None else job.judge.closing())

    async def resume(self, job: Job, entry: Entry) -> web.StreamResponse:
        """Let another target bring the rest of a stream that broke. Raises AttemptFailed, ClientGone."""
        out, transcript, capability = job.response, job.transcript, entry.capability or Capability()
        if out is None or transcript is None:
            raise AssertionError(f"request {job.exchange.id}: nothing to go on from")
        job.judge, transcript.asks = None, job.may_ask_usage(entry)
        transcript.aim(job.addressed())
        self._metrics.wasted("prompt", len(transcript.prompt or ()) + transcript.tokens)  # is read again
        with self._failures_named(job, leash := self._leash(job, entry)), leash, self._meaning(job, entry):
            rest = Continuation(
                session=self._session,
                address=entry.spec.address,
                headers=job.headers,
                capability=capability,
                transcript=transcript,
                moved=leash.moved,
                held=job.wish.held,
            )
            async with contextlib.aclosing(rest.blocks()) as blocks:
                async for block in blocks:
                    seam = b""
                    if job.exchange.stage is Stage.CONTINUING:
                        self._begun(job, leash)
                        self._metrics.continued(job.kind, self._clock.now() - job.broke_at)
                        seam = job.seam()
                    await _pass(leash, out, seam + job.edge.feed(block))
        return await self._close(job, transcript.closing() + DONE_EVENT)

    async def _close(self, job: Job, closing: bytes) -> web.StreamResponse:
        """The client has all of its stream but for `closing`, which says so in the inner dialect."""
        if job.response is None:
            raise AssertionError(f"request {job.exchange.id}: nothing was begun")
        job.outcome = Outcome.OK
        if last := job.edge.feed(closing) + job.edge.closing():
            await _write(job.response, last)
        return job.response

    @contextlib.contextmanager
    def _failures_named(self, job: Job, leash: Leash) -> Iterator[None]:
        """Turn what goes wrong on the way into AttemptFailed, unless the client has its whole answer."""
        try:
            yield
        except (AttemptFailed, Broken, aiohttp.ClientError, OSError) as error:
            if not job.whole:
                raise self._named(error, leash) from None

    def _named(self, error: Exception, leash: Leash) -> AttemptFailed:
        if isinstance(error, AttemptFailed):
            return error
        if isinstance(error, Broken):
            return AttemptFailed(error.failure, error.detail)
        failure = upstream.failure_of(error) or leash.failure or Failure.DISCONNECTED
        if failure is Failure.DISCONNECTED and was_kept() and not leash.heard:
            failure = Failure.STALE
            self._connections.renew(leash.entry.spec.address)
        return AttemptFailed(
            failure, _WORDS[failure] if failure is leash.failure else upstream.words_of(error)
        )

    def _meaning(self, job: Job, entry: Entry) -> contextlib.AbstractContextManager[None]:
        url = upstream.target_url(entry.spec.address, numbers.PATH)
        return numbers.meaning(job.wish.held, self._session, url, job.headers)

    def _leash(self, job: Job, entry: Entry) -> Leash:
        return self._watch.hold(job, entry, streams=job.asked.stream, deadline=job.exchange.deadline)

    async def _plain(self, job: Job, leash: Leash, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """Read the whole answer before any of it is sent, so that a node that dies on the way costs nothing.

        An answer of unknown length that is not JSON or text, such as audio, passes through as it comes.
        """
        kind, most, entry = answer.content_type, self._answer_limit, leash.entry
        held = (
            answer.status >= _FIRST_ERROR
            or (answer.content_length or most + 1) <= most
            or kind == "application/json"
            or kind.startswith("text/")
        )
        limit = most if held else 0
        parts: list[bytes] = []
        size = 0
        async for part in answer.content.iter_any():
            leash.moved()
            parts.append(part)
            size += len(part)
            if size > limit:
                return await self._pass_through(job, leash, answer, b"".join(parts))
        body = b"".join(parts)
        headers = returned(answer.headers)
        status, body = failures.told(answer.status, body)
        failure = failures.of_status(status, body, draining=entry.draining, held=job.wish.held)
        succeeded = status in _SUCCESS
        if succeeded and job.request.method == hdrs.METH_POST:
            failure, told = job.asked.dialect.whole(job.asked, body)
            job.meter.usage = of_openai(told) if failure is None else None
        if failure is not None:
            said = f"it answered {answer.status}"
            if failure is Failure.NO_ADAPTER:
                raise AttemptFailed(failure, said)
            if status >= _FIRST_ERROR:
                raise AttemptFailed(failure, said, Answer(status, headers, job.known_name(body)))
            raise AttemptFailed(failure, f"{said}, which is no answer to this")
        leash.began()
        self._table.good(entry)
        if job.request.method == hdrs.METH_HEAD and hdrs.CONTENT_LENGTH in answer.headers:
            headers[hdrs.CONTENT_LENGTH] = answer.headers[hdrs.CONTENT_LENGTH]
        body = job.edge.answer(body) if succeeded else body
        job.response = web.Response(status=status, headers=job.answer_headers(headers, entry), body=body)
        job.outcome = Outcome.OK
        return job.response

    async def _stream(self, job: Job, leash: Leash, answer: aiohttp.ClientResponse) -> None:
        """Hold the stream until it has begun, then pass it on event by event and judge its end.

        Returns when it is whole.
        """
        judge = job.new_judge()
        head, ended = b"", False
        while not (judge.begun or judge.failure() is not None or ended):
            data = await answer.content.readany()
            leash.moved(progress=not only_comments(data))
            ended = not data
            head += judge.feed(data) if data else judge.end()
            self._check_tail(judge)
        if (failure := judge.failure()) is not None:
            raise AttemptFailed(failure, judge.detail)
        out = await self._begin(job, leash, answer, job.edge.feed(head))
        try:
            while not (judge.failure() is not None or ended):
                if judge.whole:
                    data = await _last_words(answer)
                else:
                    data = await answer.content.readany()
                    leash.moved(progress=not only_comments(data))
                ended = not data
                block = judge.feed(data) if data else judge.end()
                if block:
                    await _pass(leash, out, job.edge.feed(block))
                self._check_tail(judge)
        finally:
            self._metrics.stream_ended(judge.chunks)
        if (failure := judge.failure()) is not None:
            raise AttemptFailed(failure, judge.detail)

    async def _pass_through(
        self, job: Job, leash: Leash, answer: aiohttp.ClientResponse, head: bytes
    ) -> web.StreamResponse:
        """Pass on bytes of a kind this gateway does not judge. A break shows as a broken connection."""
        out = await self._begin(job, leash, answer, head)
        while data := await answer.content.readany():
            leash.moved()
            await _pass(leash, out, data)
        job.outcome = _outcome(answer.status)
        return out

    async def _begin(
        self, job: Job, leash: Leash, answer: aiohttp.ClientResponse, head: bytes
    ) -> web.StreamResponse:
        """Send the first bytes to the client. From here the request cannot be sent again."""
        headers = job.answer_headers(returned(answer.headers), leash.entry)
        out = web.StreamResponse(status=answer.status, headers=headers)
        if answer.content_type != _EVENT_STREAM and answer.content_length is not None:
            out.content_length = answer.content_length
        if self._stopping():
            out.force_close()
        self._begun(job, leash)
        job.response = out
        self._metrics.first_byte(job.began(self._clock.now()))
        try:
            await out.prepare(job.request)
        except ConnectionError:
            raise ClientGone from None
        if head:
            await _pass(leash, out, head)
        return out

    def _begun(self, job: Job, leash: Leash) -> None:
        """The target brings something for the client."""
        leash.began()
        job.exchange.move(Stage.STREAMING)
        self._table.good(leash.entry)

    def _check_tail(self, judge: StreamJudge) -> None:
        """An event without an end is not an event stream."""
        if judge.size_of_tail() > self._answer_limit:
            judge.fail(Failure.BAD_RESPONSE, "an event of the stream has no end")


def _refused(answer: Answer | None) -> bool:
    """Whether a target finds fault with what the request says."""
    return answer is not None and answer.status in _AT_FAULT


def _streams(job: Job, answer: aiohttp.ClientResponse) -> bool:
    """Whether a stream comes. Raises AttemptFailed where the other was asked for."""
    streams = answer.status in _SUCCESS and answer.content_type == _EVENT_STREAM
    if answer.status in _SUCCESS and job.asked.dialect.json and streams is not job.asked.stream:
        came = "a stream" if streams else "no stream"
        raise AttemptFailed(Failure.BAD_RESPONSE, f"{came} came: {answer.content_type}")
    return streams


async def _last_words(answer: aiohttp.ClientResponse) -> bytes:
    """What comes after an answer that is whole: usage, `[DONE]`. Nothing is lost when it does not come."""
    async with asyncio.timeout(_LAST_WORDS):
        return await answer.content.readany()


async def _pass(leash: Leash, out: web.StreamResponse, data: bytes) -> None:
    """Write to the client. While it is slow, its target is not read, whose silence then says nothing."""
    leash.clock.at_client = True
    await _write(out, data)
    leash.clock.at_client = False


async def _write(out: web.StreamResponse, data: bytes) -> None:
    """Write to the client, waiting while it is slow. Raises ClientGone."""
    try:
        await out.write(data)
    except ConnectionError:
        raise ClientGone from None


def _outcome(status: int) -> Outcome:
    if status < _FIRST_ERROR:
        return Outcome.OK
    return Outcome.CLIENT_ERROR if status < _FIRST_SERVER_ERROR else Outcome.UPSTREAM_ERROR


_LAST_WORDS = 2.0  # s from one piece of what comes after a whole answer to the next
_WORDS = {
    Failure.LOST: "the target is silent and fails its checks",
    Failure.STALLED: "the target brings nothing more of this answer",
    Failure.DEADLINE: "the request took longer than any may",
    Failure.FIRST_TOKEN_TIMEOUT: "the target brings nothing",
    Failure.MOVED: "the target is about to go away",
}
