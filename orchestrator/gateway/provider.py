"""API providers as backends: which requests go there, what holds them back, and what follows a failure.

A provider that fails is left alone for a while, then tried with one request. A call is made again where the
provider did not take it (it was not reached; 429, 5xx, 529), after the time it asks for, within the patience
of the request. One that it may have worked on is not: it may be billed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from aiohttp import hdrs, web
from multidict import CIMultiDict

from cloud.logger import structlog
from cloud.ports import Clock
from cloud.providers.kinds import wire_of
from cloud.providers.prices import price_of
from cloud.providers.wire import Blame, Call, Untranslatable
from orchestrator.gateway.accounts.refusals import Refusals
from orchestrator.gateway.blame import Breaker, BreakerState
from orchestrator.gateway.config import ProviderSpec
from orchestrator.gateway.endings import Answer, ClientGone, Endings, Unserved
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.provider_call import CallFailed, Calls
from orchestrator.gateway.provider_key import KeyFile, NoKey
from orchestrator.gateway.provider_metrics import ProviderMetrics, ProviderState
from orchestrator.gateway.provider_money import Account, NotAffordable, Purse
from orchestrator.gateway.request import Stage
from orchestrator.gateway.spend_book import SpendBook
from orchestrator.gateway.spend_file import CapReached
from policies.keys import ClientKey
from policies.routing import BackendView, Candidate, Route, Trouble
from policies.spend import Price
from policies.spend_bound import Bound, bound

log = structlog.get_logger("gateway")

_CHAT = "/v1/chat/completions"
_PATIENCE = 10.0
"""Seconds that a request waits for a place, or for as long as a busy provider asks, where its route does not
say."""
_FAILURES, _QUIET, _LONGEST = 3, 1.0, 60.0
"""After so many failures in a row a provider is left alone for so many seconds, doubled up to a limit."""
_ACCOUNT_QUIET = 30.0
"""Seconds between two tries while the key, the account or a model's name is refused."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
"""Seconds before a call is made again where the provider names none, doubled each time."""
_NOT_FOUND = frozenset({404, 405})
_TIMEOUTS = frozenset({Failure.FIRST_TOKEN_TIMEOUT, Failure.DEADLINE, Failure.STALLED})


class _NoPlace(Exception):
    """All places were taken for as long as the request could wait."""


class ProviderBackend:
    """One API outside, with its connections, key, places, health and money; serves any route and model.

    `models`: those that routes name. Make it inside the running event loop.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        *,
        book: SpendBook,
        metrics: ProviderMetrics,
        endings: Endings,
        refusals: Refusals,
        clock: Clock,
        rng: random.Random,
        stopping: Callable[[], bool],
        answer_limit: int,
        models: Iterable[str] = (),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.spec = spec
        self.in_flight = 0
        self._book = book
        self._metrics = metrics
        self._endings = endings
        self._refusals = refusals
        self._clock = clock
        self._rng = rng
        for model in models:  # loads the price list where it is needed: no request waits for that
            self._price(model)
        self._key = KeyFile(spec.api_key_file, environment)
        self._keys_seen = 0
        self._wire = wire_of(spec.kind, spec.url, api_version=spec.api_version, sampling=spec.sampling)
        self._breaker = Breaker(_FAILURES, _QUIET, _LONGEST)
        self._unknown: dict[
            str, float
        ] = {}  # until when a model that the provider does not know is not asked
        self._places = asyncio.Semaphore(spec.in_flight)
        self._calls = Calls(
            spec,
            clock=clock,
            endings=endings,
            stopping=stopping,
            answer_limit=answer_limit,
            hide=self._key.hide,
            begun=self._begun,
        )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._calls.close()

    def view(self, _: str = "", /) -> BackendView:
        """See Backend."""
        trouble = self._trouble()
        return BackendView(
            hopeful=not trouble,
            sound=not trouble and self._breaker.state(self._clock.now()) is BreakerState.CLOSED,
            saturated=self._places.locked(),
            why=trouble,
        )

    def state(self) -> ProviderState:
        """What metrics and the control socket show."""
        return ProviderState(
            in_flight=self.in_flight,
            limit=self.spec.in_flight,
            closed=self._breaker.state(self._clock.now()) is BreakerState.OPEN,
            cap=self.spec.usd_per_day_pico,
            trouble=self._trouble(),
        )

    async def serve(self, job: Job, candidate: Candidate) -> web.StreamResponse:
        """See Backend."""
        model = candidate.backend.model
        job.meter.aim("provider", self.spec.name, model)
        patience = _PATIENCE if candidate.patience is None else candidate.patience
        give_up = self._clock.now() + patience
        attempts, failed = 0, CallFailed(Failure.CONNECT, "it was not asked")
        while True:
            if attempts and self._trouble():
                raise self._given_up(job, failed, model)
            call, native = self._call(job, model)
            try:
                async with self._place(give_up - self._clock.now()):
                    return await self._attempt(job, call, model, native=native)
            except _NoPlace:
                raise self._unserved(job, Trouble.SATURATED, "has no place free") from None
            except CapReached as reached:
                raise self._refusals.unpaid(job, reached) from None
            except NotAffordable as error:
                raise self._unserved(job, Trouble.DOWN, f"may not be paid: {error}") from None
            except CallFailed as error:
                failed = error
            attempts += 1
            told = None if failed.fault is None else failed.fault.retry_after
            pause = self._pause(attempts) if told is None else told
            if (
                not failed.untaken
                or not _may_pass(failed)
                or attempts > self.spec.retries
                or self._clock.now() + pause > give_up
            ):
                unserved = self._given_up(job, failed, model)
                raise unserved if failed.untaken or job.repeatable else unserved.turned
            await self._clock.sleep(pause)

    async def _attempt(self, job: Job, call: Call, model: str, *, native: bool) -> web.StreamResponse:
        """One call, paid for."""
        route, began = job.route, self._clock.now()
        if route is None:
            raise AssertionError(f"request {job.exchange.id}: a provider is asked without a route")
        purse = self._purse(route, model, job.client)
        held = await purse.hold(_bound(call), self._price(model), seconds=self.spec.answer_timeout)
        outcome = Outcome.FAILED
        try:
            with purse.at_stake(held) as stake:
                self._breaker.begin(self._clock.now())
                job.exchange.move(Stage.SENT)
                try:
                    response = await self._calls.run(job, call, stake, native=native)
                finally:
                    job.meter.usage = stake.usage
            outcome = job.outcome
            if outcome is not Outcome.OK:  # its stream broke
                self._breaker.fail(self._clock.now())
            return response
        except CallFailed as failed:
            job.exchange.move(Stage.QUEUED)
            self._blamed(failed, model)
            log.info(
                "provider.failed",
                request_id=job.exchange.id,
                provider=self.spec.name,
                model=model,
                reason=failed.failure.value,
                detail=failed.why,
            )
            raise
        except (ClientGone, asyncio.CancelledError):
            outcome = Outcome.CANCELLED
            self._breaker.abandon()
            raise
        finally:
            seconds = self._clock.now() - began
            self._metrics.ended(self.spec.name, route.name, model, outcome, seconds)

    def _call(self, job: Job, model: str) -> tuple[Call, bool]:
        """The call for a request, and whether it is the client's own form. Raises Unserved."""
        if trouble := self._trouble():
            raise self._unserved(job, Trouble.DOWN, trouble)
        if self._unknown.get(model, 0.0) > self._clock.now():
            raise self._unserved(job, Trouble.DOWN, f"does not know {model}")
        asked, wire, own = job.asked, self._wire, self.spec.prices.get(model)
        limit = 0 if own is None else own.most_output
        native = wire.speaks(asked.path)
        try:
            key = self._key.read()
            if job.request.method != hdrs.METH_POST:
                raise Untranslatable("path", f"{job.request.method} {asked.path} is not asked of a provider")
            if native:
                return wire.native(
                    asked.raw,
                    model=model,
                    key=key,
                    stream=asked.stream,
                    path=asked.path,
                    headers=job.request.headers,
                ), True
            if asked.unfit is not None:
                param = asked.unfit.param
                raise Untranslatable(param, asked.unfit.message.removeprefix(f"{param}: "))
            if asked.inner is None or asked.inner_path != _CHAT:
                raise Untranslatable("path", f"{asked.path} is not asked of a provider of this kind")
            return wire.request(
                asked.inner,
                model=model,
                key=key,
                stream=asked.stream,
                most_output=limit,
                created=int(self._clock.now()),
            ), False
        except Untranslatable as error:
            raise self._cannot(job, error) from None

    @contextlib.asynccontextmanager
    async def _place(self, seconds: float) -> AsyncIterator[None]:
        """One of the places for requests in flight. Raises _NoPlace when none is free in time."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._places.acquire()
        except TimeoutError:
            raise _NoPlace from None
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._places.release()

    def _trouble(self) -> str:
        """Why nothing can be sent now, in words that follow its name; empty when it can."""
        try:
            self._key.read()
        except NoKey as error:
            return f"cannot be asked: {error}"
        if self._key.changes != self._keys_seen:  # what was said of the old one says nothing of it
            self._keys_seen = self._key.changes
            self._breaker.good()
        return "" if self._breaker.allows(self._clock.now()) else "failed and is left alone for a while"

    def _price(self, model: str) -> Price | None:
        spec = self.spec
        own = spec.prices.get(model)
        return price_of(own, url=spec.url, model=model, at=self._clock.now(), listed_as=spec.listed_as)

    def _purse(self, route: Route, model: str, client: ClientKey | None) -> Purse:
        account = Account(
            provider=self.spec.name,
            model=model,
            route=route.name,
            provider_cap=self.spec.usd_per_day_pico,
            route_cap=route.usd_per_day_pico,
            key="" if client is None else client.name,
            key_cap=None if client is None else client.limits.usd_per_day,
        )
        return Purse(account, book=self._book, metrics=self._metrics, clock=self._clock)

    def _pause(self, attempts: int) -> float:
        """Seconds before the next attempt, spread so that not all come back at once."""
        return min(_FIRST_PAUSE * 2.0 ** (attempts - 1), _LONGEST_PAUSE) * self._rng.uniform(0.5, 1.0)

    def _begun(self, seconds: float) -> None:
        """An answer has begun, so many seconds after its request was sent."""
        self._metrics.first_byte(self.spec.name, seconds)
        self._breaker.good()

    def _blamed(self, failed: CallFailed, model: str) -> None:
        """What a failed call says of the provider."""
        now, fault = self._clock.now(), failed.fault
        self._metrics.failed(self.spec.name, failed.failure)
        if fault is None:
            if failed.failure is not Failure.DEADLINE:
                self._breaker.fail(now)
        elif fault.blame is Blame.REQUEST:
            self._breaker.good()
        elif fault.blame is Blame.ACCOUNT and fault.status in _NOT_FOUND:
            self._unknown[model] = now + _ACCOUNT_QUIET
            self._breaker.good()
        elif fault.blame is Blame.ACCOUNT:
            self._breaker.fail(now, _ACCOUNT_QUIET)
        else:
            told = fault.retry_after
            self._breaker.fail(now, told if told is not None and told >= _QUIET else None)

    def _unserved(self, job: Job, trouble: Trouble, why: str) -> Unserved:
        text = f"provider {self.spec.name} {why}"
        return Unserved(trouble, why, self._endings.turned(job, 503, "provider_unavailable", text))

    def _cannot(self, job: Job, error: Untranslatable) -> Unserved:
        """The provider has no words for this request."""
        why = f"cannot be asked this: {error}"
        text = f"provider {self.spec.name} {why}"
        turned = self._endings.turned(job, 400, "not_translatable", text, param=error.param)
        return Unserved(Trouble.FAILED, why, turned)

    def _given_up(self, job: Job, failed: CallFailed, model: str) -> Unserved:
        """After the last attempt: what the provider said if that is the client's to know, else ours."""
        fault, why = failed.fault, failed.why
        if fault is not None and fault.blame in (Blame.REQUEST, Blame.BUSY):
            headers = CIMultiDict({hdrs.CONTENT_TYPE: "application/json"})
            if fault.retry_after is not None:
                headers[hdrs.RETRY_AFTER] = str(int(fault.retry_after) + 1)
            answer = Answer(fault.status, headers, self._key.hide(fault.body.decode()).encode())
            trouble = Trouble.FAILED if fault.blame is Blame.REQUEST else Trouble.SATURATED
            return Unserved(trouble, why, self._endings.said(job, answer), said=True)
        late = failed.failure in _TIMEOUTS
        text = f"provider {self.spec.name}: {why}"
        if fault is not None and fault.blame is Blame.ACCOUNT:
            what = f"does not know {model}" if fault.status in _NOT_FOUND else "refuses the gateway's account"
            text = f"provider {self.spec.name} {what} ({fault.status})"
        turned = self._endings.turned(
            job, 504 if late else 502, "provider_timeout" if late else "provider_failed", text
        )
        return Unserved(Trouble.DOWN, why, turned)


def _bound(call: Call) -> Bound:
    """What it may use at most; counting tokens is free."""
    return Bound(0, 0) if call.path.endswith("/count_tokens") else bound(call.fields)


def _may_pass(failed: CallFailed) -> bool:
    """Whether the same call may succeed a moment later."""
    return failed.fault is None or failed.fault.blame in (Blame.BUSY, Blame.FAILED)
