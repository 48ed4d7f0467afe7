"""A server with one provider behind it and nothing else, and the sums that it booked."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from cloud.clock import SystemClock
from cloud.providers.prices import OwnPrice, OwnRates
from orchestrator.gateway.accounts.refusals import Refusals
from orchestrator.gateway.asked import ask
from orchestrator.gateway.config import ProviderSpec
from orchestrator.gateway.endings import ClientGone, Endings, Turned, Unserved
from orchestrator.gateway.job import Job
from orchestrator.gateway.provider import ProviderBackend
from orchestrator.gateway.provider_metrics import ProviderMetrics
from orchestrator.gateway.request import Exchange
from orchestrator.gateway.spend_book import SpendBook
from orchestrator.gateway.spend_file import Line, Totals
from policies.routing import Backend, Candidate, Kind, Route
from policies.spend import Price, Usage, cost
from tests.support.llama_servers import LlamaServer
from tests.support.paid_provider import PaidProvider

MODEL = "claude-x"
OWN = OwnPrice(
    OwnRates(input="3", output="15", cached="0.30", cache_write="3.75"), most_output=1_000, context=200_000
)
PRICE = Price(OWN.rates.rates(), most_output=1_000, context=200_000)


class QuickClock(SystemClock):
    """Real time that jumps ahead where the product sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def now(self) -> float:
        return super().now() + sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(max(0.0, seconds))
        await super().sleep(0)


class Stand:
    """The server. `unserved` is what the router would have heard, by request."""

    def __init__(
        self, spec: ProviderSpec, path: Path, environment: Mapping[str, str], route_cap: int | None
    ) -> None:
        self.clock = QuickClock()
        self.book = SpendBook(path, self.clock)
        self.registry = CollectorRegistry()
        self.metrics = ProviderMetrics(
            self.registry,
            states=lambda: {spec.name: self.backend.state()},
            caps={} if route_cap is None else {"assistant": route_cap},
            today=lambda: self.book.today,
            trouble=lambda: self.book.trouble,
        )
        self.backend = ProviderBackend(
            spec,
            book=self.book,
            metrics=self.metrics,
            endings=Endings(2),
            refusals=Refusals(self.registry, self.clock),
            clock=self.clock,
            rng=random.Random(1),
            stopping=lambda: False,
            answer_limit=2**20,
            environment=environment,
        )
        self.route = Route(
            models=("assistant",),
            backends=(Backend(kind=Kind.PROVIDER, name=spec.name, model=MODEL),),
            usd_per_day_pico=route_cap,
        )
        self.patience: float | None = None
        self.unserved: list[Unserved] = []
        self.jobs: list[Job] = []
        self.url = ""

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        now = self.clock.now()
        exchange = Exchange(f"req-{len(self.jobs)}", now)
        kind = request.headers.get("Content-Type", "")
        asked = ask(request.method, request.raw_path, kind, body)
        job = Job(request, exchange, asked)
        job.route, job.backend = self.route, f"{self.backend.spec.name}/{MODEL}"
        job.aim(MODEL)
        self.jobs.append(job)
        candidate = Candidate(self.route.backends[0], 0, self.patience)
        try:
            return await self.backend.serve(job, candidate)
        except Unserved as unserved:
            self.unserved.append(unserved)
            return unserved.turned.response
        except Turned as turned:
            return turned.response
        except ClientGone:
            return job.response or web.Response()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Stand]:
        runner = web.ServerRunner(web.Server(self._handle, handler_cancellation=True))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()
            await self.backend.close()
            await self.book.close()

    async def totals(self) -> Totals:
        """What is booked and held, after everything that was asked for is written."""
        await self.book.settled()
        return await self.book.totals()

    async def line(self) -> Line:
        """The only one."""
        [line] = (await self.totals()).lines
        return line

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"orchestrator_gateway_provider_{name}"
            and labels.items() <= sample.labels.items()
        )


@contextlib.asynccontextmanager
async def stand(
    provider: PaidProvider | LlamaServer,
    directory: Path,
    *,
    kind: str = "anthropic",
    environment: Mapping[str, str] | None = None,
    route_cap: int | None = None,
    **settings: Any,
) -> AsyncIterator[Stand]:
    """A server in front of this provider."""
    key = directory / "api.key"
    if not key.exists():
        key.write_text("sk-secret-1\n")
    defaults: dict[str, Any] = {
        "name": "api",
        "kind": kind,
        "url": f"http://127.0.0.1:{provider.port}",
        "api_key_file": key,
        "prices": {MODEL: OWN},
        "usd_per_day_pico": 10**12,
    }
    spec = ProviderSpec(**(defaults | settings))
    async with Stand(spec, directory / "spend.db", environment or {}, route_cap).running() as one:
        yield one


def due(usages: list[Usage]) -> int:
    """Picodollars of what was billed."""
    return sum(cost(PRICE, usage) for usage in usages)


def client() -> aiohttp.ClientSession:
    """One that waits."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
