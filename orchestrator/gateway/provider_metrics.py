"""The metrics of the providers, in the gateway's registry."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from orchestrator.gateway.failure import Failure
from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.spend_file import Totals
from policies.spend import PICO, Usage

_PREFIX = "orchestrator_gateway_provider_"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderState:
    """What is read off a provider at scrape time.

    `cap` in picodollars a day, None for none; `trouble` says why nothing can be sent there now, in words that
    follow its name, and is empty when it can.
    """

    in_flight: int
    limit: int
    closed: bool
    cap: int | None
    trouble: str


class ProviderMetrics:
    """The counters that the backends move, and the gauges that are read when asked for.

    `states` gives each provider's state, `caps` the routes' caps in picodollars a day, `today` the sums that
    were read last, `trouble` why the spend file cannot be written. `over_cap` counts the requests
    that were not sent because of a cap, by provider and route.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        states: Callable[[], Mapping[str, ProviderState]],
        caps: Mapping[str, int],
        today: Callable[[], Totals],
        trouble: Callable[[], str],
    ) -> None:
        self._states = states
        self._caps = caps
        self._today = today
        self._trouble = trouble

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=registry)

        whose = ("provider", "route", "model")
        self._requests = counter(
            "requests", "Requests that a provider got, by how they ended", *whose, "outcome"
        )
        self._failures = counter("failures", "Attempts at a provider that failed", "provider", "reason")
        self._tokens = counter("tokens", "Tokens that providers counted, by kind", *whose, "kind")
        self._dollars = counter("dollars", "US dollars booked by this process", *whose)
        self._estimated = counter(
            "estimated", "Requests booked at the most they may cost, as no usage was reported", *whose
        )
        self._unpriced = counter("unpriced", "Requests whose price is not known, booked without one", *whose)
        self._over = counter(
            "over_bound", "Requests whose reported usage is more than their request allows", "provider"
        )
        self._capped = counter("cap_reached", "Requests not sent because of a cap", "provider", "route")
        self.over_cap: Counts[tuple[str, str]] = Counts()
        self._seconds = Histogram(
            _PREFIX + "seconds", "From sending to the end of the answer", ["provider"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            _PREFIX + "first_byte_seconds", "From sending to the first byte for the client", ["provider"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        registry.register(self)

    def ended(self, provider: str, route: str, model: str, outcome: Outcome, seconds: float) -> None:
        """A request that was sent is over."""
        self._requests.labels(provider, route, model, outcome.value).inc()
        self._seconds.labels(provider).observe(seconds)

    def first_byte(self, provider: str, seconds: float) -> None:
        """The client gets the first byte."""
        self._first.labels(provider).observe(seconds)

    def failed(self, provider: str, failure: Failure) -> None:
        """An attempt failed."""
        self._failures.labels(provider, failure.value).inc()

    def cap_reached(self, provider: str, route: str) -> None:
        """A request was not sent because of a cap."""
        self._capped.labels(provider, route).inc()
        self.over_cap[provider, route] += 1

    def over_bound(self, provider: str) -> None:
        """A usage is more than its request allows."""
        self._over.labels(provider).inc()

    def booked(self, provider: str, route: str, model: str, amount: int | None, usage: Usage | None) -> None:
        """A request was booked. `amount`: picodollars, None where unknown; `usage`: None where unknown."""
        whose = provider, route, model
        if amount is None:
            self._unpriced.labels(*whose).inc()
        else:
            self._dollars.labels(*whose).inc(amount / PICO)
        if usage is None:
            self._estimated.labels(*whose).inc()
            return
        for kind, count in (
            ("fresh", usage.fresh),
            ("cached", usage.cached),
            ("cache_write", usage.cache_write + usage.cache_write_1h),
            ("output", usage.output),
        ):
            self._tokens.labels(*whose, kind).inc(count)

    def collect(self) -> Iterable[Metric]:
        """The gauges of one scrape."""
        today = self._today()
        in_flight = _gauge("in_flight", "Requests that a provider holds", "provider")
        limit = _gauge("in_flight_limit", "Requests that a provider may hold", "provider")
        closed = _gauge("closed", "1 while a provider that failed is left alone", "provider")
        spent = _gauge("spent_today_dollars", "US dollars booked this UTC day by all gateways", "provider")
        held = _gauge("held_dollars", "US dollars held for requests that are not settled", "provider")
        cap = _gauge("cap_dollars", "The cap on a UTC day", "provider")
        for name, state in self._states().items():
            in_flight.add_metric([name], state.in_flight)
            limit.add_metric([name], state.limit)
            closed.add_metric([name], state.closed)
            spent.add_metric([name], today.amount(provider=name) / PICO)
            held.add_metric([name], today.held(provider=name) / PICO)
            if state.cap is not None:
                cap.add_metric([name], state.cap / PICO)
        route_spent = _gauge("route_spent_today_dollars", "The same by route that has a cap", "route")
        route_held = _gauge("route_held_dollars", "The same by route that has a cap", "route")
        route_cap = _gauge("route_cap_dollars", "The route's cap on a UTC day", "route")
        for name, most in self._caps.items():
            route_spent.add_metric([name], today.amount(route=name) / PICO)
            route_held.add_metric([name], today.held(route=name) / PICO)
            route_cap.add_metric([name], most / PICO)
        yield from (in_flight, limit, closed, spent, held, cap, route_spent, route_held, route_cap)
        trouble = GaugeMetricFamily(
            _PREFIX + "spend_file_failing", "1 while the spend file cannot be written"
        )
        trouble.add_metric([], bool(self._trouble()))
        yield trouble


def _gauge(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, labels=[label])
