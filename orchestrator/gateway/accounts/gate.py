"""The gate of clients: a request of a key with limits passes where they allow it, and is told when else.

What a request used is booked when it is over, and the tokens of a stream also while it runs. One that was
refused or failed by the gateway or its backends gives its place back; one of which its client left, or that
was cut, counts for what it is known to have used.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric

from cloud.ports import Clock
from orchestrator.gateway.accounts.limit_book import LimitBook, LimitReached, Place
from orchestrator.gateway.accounts.refusals import Refusals
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.request import Stage
from policies.keys import ClientKey

_UNSERVED = frozenset({Outcome.REFUSED, Outcome.FAILED, Outcome.UPSTREAM_ERROR})
_BEGUN = frozenset({Outcome.OK, Outcome.CUT, Outcome.CANCELLED})
_PREFIX = "orchestrator_gateway_"


@dataclass(frozen=True, slots=True)
class Visit:
    """A request that was let in: the name of its key in metrics, and its place, None without limits."""

    name: str
    place: Place | None


class Gate:
    """Lets the requests of clients in. Make it inside the running event loop."""

    def __init__(
        self, book: LimitBook, refusals: Refusals, *, registry: CollectorRegistry, clock: Clock
    ) -> None:
        self._book = book
        self._refusals = refusals
        self._clock = clock
        self._open: Counts[str] = Counts()
        registry.register(self)

    async def enter(self, job: Job, client: ClientKey) -> Visit:
        """Let a request of a client in, to be followed by `leave`. Raises Turned."""
        place, limits = None, client.limits
        if limits.requests_per_minute or limits.tokens_per_minute or limits.in_flight:
            asked, tokens = job.asked, 0
            if job.counts:
                tokens = self._book.history(client.name).estimate(
                    len(asked.raw), most=asked.max_tokens, choices=asked.texts
                )
            try:
                place = await self._book.ask(client.name, limits, tokens, job.tokens_so_far)
            except LimitReached as reached:
                raise self._refusals.turned(job, reached.refused) from None
        name = self._refusals.names.of(client.name)
        self._open[name] += 1
        return Visit(name, place)

    def leave(self, job: Job, visit: Visit, outcome: Outcome) -> None:
        """A request that was let in is over, and its meter complete."""
        self._open[visit.name] -= 1
        usage, answered = job.meter.usage, outcome is Outcome.OK
        if job.charged is not None:
            job.charged.settle(usage, answered=answered)
        if visit.place is not None:
            self._book.done(visit.place, _tokens(job, visit.place, outcome))
            if answered and usage is not None:
                self._book.history(visit.place.key).learn(
                    len(job.came.raw),
                    prompt=usage.prompt,
                    output=usage.output,
                    choices=job.came.texts,
                    seconds=self._clock.now() - job.exchange.started,
                )

    def describe(self) -> str:
        """Why limits are kept by what this process sends alone; empty where they are shared."""
        return self._book.trouble

    def collect(self) -> Iterable[Metric]:
        """The families of one scrape."""
        in_flight = GaugeMetricFamily(
            f"{_PREFIX}key_in_flight", "Requests of a key that this process has under way", labels=["key"]
        )
        for key, count in self._open.items():
            in_flight.add_metric([key], count)
        alone = GaugeMetricFamily(
            f"{_PREFIX}key_limits_alone",
            "1 while each process keeps limits by what it sends alone, as the usage file cannot be written",
            value=bool(self._book.trouble),
        )
        yield from (in_flight, alone)


def _tokens(job: Job, place: Place, outcome: Outcome) -> int | None:
    """The tokens that a request used, None where it gives its place back."""
    if outcome in _UNSERVED:
        return None
    if (usage := job.meter.usage) is not None:
        return usage.prompt + usage.output
    if outcome in _BEGUN and job.exchange.stage is not Stage.QUEUED:
        return place.booked.tokens
    return 0  # no backend worked on it
