"""One call to a provider: sends it, holds the answer back until it is good, passes it on to the client.

Nothing of the client's own head is sent but what the provider's form knows, and nothing of the provider's
head comes back. A redirection is never followed: it would take the key elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable

import aiohttp
import orjson
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from cloud.ports import Clock
from cloud.providers.wire import Call, Fault
from cloud.sse import event_data, split_events
from orchestrator.gateway import failure as failures
from orchestrator.gateway import upstream
from orchestrator.gateway.config import IDLE, ProviderSpec
from orchestrator.gateway.endings import ClientGone, Endings
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.provider_money import Stake
from orchestrator.gateway.replies import DROPPED
from orchestrator.gateway.request import Stage

_OK, _FIRST_ERROR, _FIRST_SERVER_ERROR = 200, 400, 500
_EVENT_STREAM, _JSON = "text/event-stream", "application/json"
_ERROR_LIMIT = 64 * 1024
"""Bytes of an error answer that are read, and of the first event of a stream that is looked at."""
_ERROR_WAIT = 5.0  # s for the body of an error answer
_LAST_WORDS = 2.0  # s from one piece of what comes after a whole answer to the next
_HEAD_LIMIT = 64 * 1024  # bytes of a line of an answer's head
_OURS_ONLY = frozenset({"User-Agent", "Content-Type", "Accept", "Accept-Encoding"})


class CallFailed(Exception):
    """The call failed, and the client has nothing of its answer.

    `fault` is what the provider answered, if it did. `untaken`: it did not take the request, so that the same
    may be sent again.
    """

    def __init__(
        self, failure: Failure, why: str, fault: Fault | None = None, *, untaken: bool = False
    ) -> None:
        super().__init__(why)
        self.failure = failure
        self.why = why
        self.fault = fault
        self.untaken = untaken


class _Bad(Exception):
    """What came is no answer."""

    def __init__(self, failure: Failure, why: str) -> None:
        super().__init__(why)
        self.failure = failure


class Calls:
    """Makes the calls to one provider. Make it inside the running event loop.

    `hide` takes the key out of what is shown; `begun` hears the seconds to the first byte for the client.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        *,
        clock: Clock,
        endings: Endings,
        stopping: Callable[[], bool],
        answer_limit: int,
        hide: Callable[[str], str],
        begun: Callable[[float], None],
    ) -> None:
        self._spec = spec
        self._origin = str(URL(spec.url).origin())
        self._session = _session(spec)
        self._clock = clock
        self._endings = endings
        self._stopping = stopping
        self._answer_limit = answer_limit
        self._hide = hide
        self._heard = begun

    async def close(self) -> None:
        """Let go of the connections."""
        await self._session.close()

    async def run(self, job: Job, call: Call, stake: Stake, *, native: bool) -> web.StreamResponse:
        """Send the request.

        Returns a whole answer that is still to be sent, or a stream that was: whole, or cut with an error
        event. `native`: the client speaks the provider's form.

        Raises CallFailed, ClientGone.
        """
        sending = _Sending(job, call, stake, native, self._clock.now())
        life, silence = asyncio.timeout(self._spec.answer_timeout), asyncio.timeout(None)
        try:
            async with life, silence:
                return await self._exchange(sending, silence)
        except (_Bad, aiohttp.ClientError, OSError, TimeoutError) as error:
            failure, why = self._named(error, life.expired(), silence.expired(), job.exchange.stage)
        if job.exchange.stage is Stage.STREAMING:
            return await self._endings.cut(job, failure, why)
        if failure is Failure.CONNECT:
            stake.refused()
        raise CallFailed(failure, why, untaken=failure is Failure.CONNECT)

    def _named(self, error: Exception, over: bool, silent: bool, stage: Stage) -> tuple[Failure, str]:
        if isinstance(error, _Bad):
            return error.failure, self._hide(str(error))
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return Failure.CONNECT, f"its certificate is not trusted: {error.certificate_error}"
        if (failure := upstream.failure_of(error)) is not None:
            return failure, self._hide(upstream.words_of(error))
        if over or not silent:
            return Failure.DEADLINE, "its answer took longer than any may"
        if stage is Stage.STREAMING:
            return Failure.STALLED, "its stream was silent for too long"
        return Failure.FIRST_TOKEN_TIMEOUT, "it brought nothing in time"

    async def _exchange(self, sending: _Sending, silence: asyncio.Timeout) -> web.StreamResponse:
        job, call = sending.job, sending.call
        if job.asked.stream:
            _listen(silence, self._spec.first_token_timeout)
        sending.stake.sent()
        async with self._session.post(
            URL(self._origin + call.path, encoded=True),
            headers=call.headers,
            data=call.body,
            allow_redirects=False,
        ) as answer:
            if answer.status != _OK:
                raise await self._refused(sending, answer)
            if answer.content_type != _EVENT_STREAM:
                return await self._plain(sending, answer)
            if not job.asked.stream:
                raise _Bad(Failure.BAD_RESPONSE, "a stream came where none was asked for")
            return await self._stream(sending, answer, silence)

    async def _refused(self, sending: _Sending, answer: aiohttp.ClientResponse) -> CallFailed:
        """What an answer of another status than 200 says.

        One in the form of an API's errors, and any below 500, was not billed. Any other may come from what
        stands between, while the provider is at work.
        """
        body, status = b"", answer.status
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError, _Bad):
            async with asyncio.timeout(_ERROR_WAIT):
                body = await _whole(answer, _ERROR_LIMIT)
        fault = sending.call.reader.fault(status, answer.headers, body, self._clock.now())
        if status < _FIRST_SERVER_ERROR or _own_error(body):
            sending.stake.refused()
        failure = failures.of_status(status, b"", draining=False) or Failure.BAD_RESPONSE
        if status < _FIRST_ERROR:
            return CallFailed(Failure.BAD_RESPONSE, f"it answered {status}, which is no answer to this")
        why = self._hide(f"it answered {status}: {fault.text}")
        return CallFailed(failure, why, fault, untaken=not sending.stake.owed)

    async def _plain(self, sending: _Sending, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        job, stake = sending.job, sending.stake
        body = await _whole(answer, self._answer_limit)
        found = sending.call.reader.answer(body)
        stake.usage = found.usage
        if job.asked.stream or found.error:
            if stake.usage is None and _own_error(body):
                stake.refused()
            why = found.error or f"no stream came: {answer.content_type}"
            raise CallFailed(Failure.BAD_RESPONSE, self._hide(why), untaken=not stake.owed)
        self._begun(sending)
        job.response = web.Response(
            headers=sending.headers(_JSON),
            body=job.renamed(found.body) if sending.native else job.edge.answer(found.body),
        )
        job.outcome = Outcome.OK
        return job.response

    async def _stream(
        self, sending: _Sending, answer: aiohttp.ClientResponse, silence: asyncio.Timeout
    ) -> web.StreamResponse:
        """Hold the stream until it has begun, then pass it on. What is silent, or brings nothing but marks of
        life, before it begins is given up.
        """
        job, stake, relay = sending.job, sending.stake, sending.call.reader.relay()
        head, first, ended = b"", b"", False
        while not (relay.begun or relay.error or ended):
            data = await answer.content.readany()
            ended = not data
            head += relay.feed(data) if data else relay.end()
            first += data if not head else b""
            if len(head) + len(first) > self._answer_limit:
                raise _Bad(Failure.BAD_RESPONSE, "its stream has no beginning")
        stake.usage = relay.usage
        if relay.error:
            if not head and _own_error_event(first):
                stake.refused()
            raise CallFailed(_broken(ended), self._hide(relay.error), untaken=not stake.owed)
        out = await self._begin(sending)
        await self._pass(sending, out, head, silence)
        while not (relay.error or ended):
            data = await (_last_words(answer) if relay.whole else answer.content.readany())
            ended = not data
            block = relay.feed(data) if data else relay.end()
            stake.usage = relay.usage
            await self._pass(sending, out, block, silence)
        if relay.error:
            raise _Bad(_broken(ended), relay.error)
        if not sending.native and (last := job.edge.closing()):
            await _write(out, last)
        job.outcome = Outcome.OK
        return out

    async def _begin(self, sending: _Sending) -> web.StreamResponse:
        job = sending.job
        out = web.StreamResponse(headers=sending.headers(_EVENT_STREAM))
        if self._stopping():
            out.force_close()
        job.exchange.move(Stage.STREAMING)
        job.response = out
        self._begun(sending)
        try:
            await out.prepare(job.request)
        except ConnectionError:
            raise ClientGone from None
        return out

    def _begun(self, sending: _Sending) -> None:
        now = self._clock.now()
        sending.job.began(now)
        self._heard(now - sending.sent_at)

    async def _pass(
        self, sending: _Sending, out: web.StreamResponse, block: bytes, silence: asyncio.Timeout
    ) -> None:
        """Write to the client. While it is slow the provider is not read, so its silence says nothing."""
        job = sending.job
        job.meter.pieces += block.count(b"data: ")
        data = job.renamed(block) if sending.native else job.edge.feed(block)
        if data:
            silence.reschedule(None)
            await _write(out, data)
        _listen(silence, self._spec.first_token_timeout)


class _Sending:
    """One call on its way."""

    __slots__ = ("call", "job", "native", "sent_at", "stake")

    def __init__(self, job: Job, call: Call, stake: Stake, native: bool, sent_at: float) -> None:
        self.job = job
        self.call = call
        self.stake = stake
        self.native = native
        self.sent_at = sent_at

    def headers(self, kind: str) -> CIMultiDict[str]:
        """Of the answer to the client."""
        told = CIMultiDict({"Content-Type": kind})
        self.job.sign(told)
        if self.call.dropped:
            told[DROPPED] = ", ".join(self.call.dropped)
        return told


def _session(spec: ProviderSpec) -> aiohttp.ClientSession:
    """Connections to one provider; the system's certificates are trusted, and its own.

    Those that cost a handshake of TLS are kept for a moment. Others are not: who is asked without it is an
    engine, and llama.cpp closes connections after streams without a word, so that the next request on one may
    be lost, and may not be sent twice, since it is not known whether it was billed.
    """
    kept = URL(spec.url).scheme == "https"
    trust = ssl.create_default_context()
    if spec.ca_file is not None:
        trust.load_verify_locations(spec.ca_file)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            force_close=not kept,
            keepalive_timeout=IDLE if kept else None,
            ssl=trust,
            socket_factory=upstream.make_socket,
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=spec.connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity", "Accept": "*/*", "User-Agent": "spot-orchestrator"},
        skip_auto_headers=_OURS_ONLY,
        max_line_size=_HEAD_LIMIT,
        max_field_size=_HEAD_LIMIT,
    )


def _listen(silence: asyncio.Timeout, seconds: float) -> None:
    silence.reschedule(asyncio.get_running_loop().time() + seconds)


async def _whole(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body. Raises _Bad when it is longer than the limit."""
    parts, size = [], 0
    async for part in answer.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _Bad(Failure.BAD_RESPONSE, f"its answer is longer than {limit} bytes")
    return b"".join(parts)


async def _last_words(answer: aiohttp.ClientResponse) -> bytes:
    """What comes after an answer that is whole: its usage. Where it does not come, that was all."""
    try:
        async with asyncio.timeout(_LAST_WORDS):
            return await answer.content.readany()
    except (TimeoutError, aiohttp.ClientError, OSError):
        return b""


async def _write(out: web.StreamResponse, data: bytes) -> None:
    """Write to the client, waiting while it is slow. Raises ClientGone."""
    try:
        await out.write(data)
    except ConnectionError:
        raise ClientGone from None


def _broken(ended: bool) -> Failure:
    """How a stream broke off: with its connection, or by what came in it."""
    return Failure.INCOMPLETE if ended else Failure.BAD_RESPONSE


def _own_error(body: bytes) -> bool:
    """Whether this is an API's error, and nothing else beside it."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict) and bool(found.get("error")) and not found.keys() & _WORK


_WORK = {"choices", "content", "usage", "output", "data"}
"""Fields of answers that a provider worked on."""


def _own_error_event(first: bytes) -> bool:
    """Whether a stream begins with an error event."""
    return any(_own_error(data) for event in split_events(first)[:1] if (data := event_data(event)))
