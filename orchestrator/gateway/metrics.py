"""Every metric of the gateway, in one place. Each gateway has its own registry.

Where it serves several pools, what belongs to one has the label `pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from orchestrator.gateway.accounts.usage_metrics import UsageMetrics
from orchestrator.gateway.adapters import Adapters
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.targets import TargetTable
from orchestrator.gateway.times import Series, Times
from policies.model import TargetPhase, TargetState

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Outcome(StrEnum):
    """How a client's request ended."""

    OK = "ok"  # a whole answer, 1xx to 3xx
    CLIENT_ERROR = "client_error"  # a target's 4xx, passed on
    BAD_REQUEST = "bad_request"  # refused by the gateway before any target: too large, not admitted
    UPSTREAM_ERROR = "upstream_error"  # a target's 5xx, passed on: no retry was left or would help
    FAILED = "failed"  # no answer from any attempt
    REFUSED = "refused"  # queue full, or its deadline passed
    CUT = "cut"  # the client got a part of a stream and then an error event
    CANCELLED = "cancelled"  # the client left


_MOVES = frozenset({Failure.LOST, Failure.STALLED, Failure.MOVED, Failure.FIRST_TOKEN_TIMEOUT})
_SERVED = frozenset({Outcome.OK, Outcome.CLIENT_ERROR})
FAILED = frozenset({Outcome.UPSTREAM_ERROR, Outcome.FAILED, Outcome.REFUSED, Outcome.CUT})


class Recent:
    """How the requests of the last `SECONDS` ended. A bad request or a client that left says nothing here."""

    SECONDS = 10

    def __init__(self) -> None:
        self._by_second: dict[int, Counts] = {}

    def add(self, outcome: Outcome, now: float) -> None:
        """One more request has ended."""
        second = int(now)
        self._forget(second)
        answered, failed = self._by_second.get(second, (0, 0))
        self._by_second[second] = answered + (outcome in _SERVED), failed + (outcome in FAILED)

    def counts(self, now: float) -> dict[str, int]:
        """As `/v1/state` shows them."""
        self._forget(int(now))
        answered, failed = (sum(counts) for counts in zip((0, 0), *self._by_second.values(), strict=True))
        return {"seconds": self.SECONDS, "answered": answered, "failed": failed}

    def _forget(self, second: int) -> None:
        for old in [s for s in self._by_second if not second - self.SECONDS < s <= second]:
            del self._by_second[old]


Counts = tuple[int, int]
"""Requests that were answered, and that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteNow:
    """A route that is written. `stand_ins`: by provider that may stand in, whether it gets requests now."""

    name: str
    servable: bool
    stand_ins: Mapping[str, bool]


class GatewayMetrics:
    """What is counted of the process, and of each of its lanes.

    `pools` names those of several; without it there is one, and its series have no label for it. `routed`
    counts what became of the requests of each route at each backend, `routes` tells how those are now.
    """

    def __init__(self, now: Callable[[], float], pools: Sequence[str] = (), *, routed: bool = False) -> None:
        self.registry = CollectorRegistry()
        self.started_at = self.daemon_heard = now()
        self.active = 0
        self.now = now
        self.lanes: list[LaneMetrics] = []
        self.routed: dict[tuple[str, str, str], int] | None = {} if routed else None
        self.routes: Callable[[], Iterable[RouteNow]] = lambda: ()
        self.label = ("pool",) if pools else ()
        counter, histogram = self._counter, self._histogram
        requests = counter("requests", "Client requests by how they ended", *self.label, "outcome")
        self._requests = {
            pool: {each: requests.labels(*([pool] if self.label else []), each.value) for each in Outcome}
            for pool in ("", *pools)
        }
        self._recent: dict[str, Recent] = {"": Recent()}
        self._ended = counter(
            "connections_ended", "Connections ended for newer ones, or refused, at their limit"
        )
        self._unread = counter(
            "connections_unread", "Connections ended since their client did not read an answer in time"
        )
        self._handshakes = counter("tls_handshakes", "TLS handshakes by how they ended", "result")
        self._taken = counter("tls_certificates_taken", "Certificates taken up, the first one too")
        self.certificate_expires: float | None = None  # without TLS
        self.certificate_refused = False
        self._seconds = histogram("request_seconds", "From a request's arrival to the end of its answer").of()
        self._first = histogram("first_byte_seconds", "From a request's arrival to its first byte").of()
        self.usage = UsageMetrics(self.registry, self.label)
        self.families = _Families(self._counter, histogram, self.label)
        self.registry.register(_Gauges(self))
        ProcessCollector(registry=self.registry)

    def lane(
        self, pool: str, table: TargetTable, queued: Callable[[], int], adapters: Adapters
    ) -> LaneMetrics:
        """The metrics of a pool, its targets, its queue and its adapters."""
        made = LaneMetrics(self, pool if self.label else "", table, queued, adapters, self._recent_of(pool))
        self.lanes.append(made)
        return made

    def request_ended(self, outcome: Outcome, seconds: float, pool: str = "") -> None:
        """A client's request is over; `pool` had it last, empty for none."""
        self._requests[pool if self.label else ""][outcome].inc()
        self._recent_of(pool).add(outcome, self.now())
        self._seconds.observe(seconds)

    def stray_set(self, result: str) -> None:
        """A target set was pushed that is of no lane: it cannot be read, or is of a pool that is not here."""
        labels = [""] * len(self.label)
        self.families.sets.labels(*labels, "push", result).inc()

    def went(self, route: str, backend: str, result: str) -> None:
        """A request of a route was answered at a backend, or why not."""
        if self.routed is not None:
            key = route, backend, result
            self.routed[key] = self.routed.get(key, 0) + 1

    def first_byte(self, seconds: float) -> None:
        """The first byte of an answer goes to the client."""
        self._first.observe(seconds)

    def connection_ended(self) -> None:
        """Clients hold as many connections as they may, and one was ended or refused."""
        self._ended.inc()

    def answer_unread(self) -> None:
        """A connection was ended, since its client did not read what it was sent."""
        self._unread.inc()

    def handshake_ended(self, how: str) -> None:
        """A client's TLS handshake is over."""
        self._handshakes.labels(how).inc()

    def certificate_taken(self, expires: float) -> None:
        """Clients are shown another certificate from now on."""
        self._taken.inc()
        self.certificate_expires, self.certificate_refused = expires, False

    def requests(self, pool: str) -> dict[str, int]:
        """Requests that a pool had last, by outcome; all of them where pools have no label."""
        return {outcome.value: int(_total(child)) for outcome, child in self._requests[pool].items()}

    def _recent_of(self, pool: str) -> Recent:
        """How the last requests of a pool ended; all of them where there is no route that leads elsewhere."""
        return self._recent.setdefault(pool if self.routed is not None else "", Recent())

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"orchestrator_gateway_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Times:
        return Times(f"orchestrator_gateway_{name}", text, _SECONDS, self.registry, labels)


class _Families:
    """The counters that each pool has a share of."""

    def __init__(
        self, counter: Callable[..., Counter], histogram: Callable[..., Times], label: tuple[str, ...]
    ) -> None:
        def own(name: str, text: str, *labels: str) -> Counter:
            return counter(name, text, *label, *labels)

        self.retries = own("retries", "Attempts made again, by what the one before met", "reason")
        self.cut = own("streams_cut", "Streams that broke after the client had a part", "reason")
        self.failures = own("attempt_failures", "Attempts that failed, retried or not", "reason")
        self.continuations = own(
            "continuations", "Broken streams that went on elsewhere, by class and result", "kind", "result"
        )
        self.obstacles = own(
            "continuations_refused", "Broken streams that could not go on elsewhere, by cause", "why"
        )
        self.moved = own("moved", "Requests that left a target before it answered them", "reason")
        self.chunks = own("stream_chunks", "Chunks of completion streams passed on")
        self.checks = own("health_checks", "Health checks of targets", "result")
        self.opened = own("breaker_opened", "Times a target's circuit breaker opened")
        self.sets = own("target_sets", "Target sets offered, by way and result", "via", "result")
        seam, queue = "From a stream's break to its next piece", "Time requests waited for a target"
        self.seam = histogram("continuation_seam_seconds", seam, *label)
        self.queue = histogram("queue_seconds", queue, *label)


class LaneMetrics:
    """The counters that one pool's lane moves. `pool` is empty where it has no label."""

    def __init__(
        self,
        process: GatewayMetrics,
        pool: str,
        table: TargetTable,
        queued: Callable[[], int],
        adapters: Adapters,
        recent: Recent,
    ) -> None:
        self._process = process
        self._recent = recent
        self._families = families = process.families
        self.pool = pool
        self.labels = (pool,) if process.label else ()
        self.table = table
        self.queued = queued
        self.adapters = adapters
        self.file_generation = 0
        self.file_refused = False
        self._chunks = self._of(families.chunks)
        self._opened = self._of(families.opened)
        self._passed = self._of(families.checks, "passed")
        self._failed = self._of(families.checks, "failed")
        self._seam: Series = families.seam.of(*self.labels)
        self._queue: Series = families.queue.of(*self.labels)

    def first_byte(self, seconds: float) -> None:
        """The first byte of an answer goes to the client."""
        self._process.first_byte(seconds)

    def left_queue(self, seconds: float) -> None:
        """A request got its target."""
        self._queue.observe(seconds)

    def attempt_failed(self, failure: Failure, *, retried: bool) -> None:
        """An attempt failed, and the request was sent again or not."""
        self._of(self._families.failures, failure.value).inc()
        if failure in _MOVES:
            self._of(self._families.moved, failure.value).inc()
        if retried:
            self._of(self._families.retries, failure.value).inc()

    def continued(self, kind: str, seam: float) -> None:
        """A broken stream goes on at another target; its client waited `seam` seconds."""
        self._of(self._families.continuations, kind, "continued").inc()
        self._seam.observe(seam)

    def continuation_failed(self, kind: str) -> None:
        """A stream that could be continued was cut all the same."""
        self._of(self._families.continuations, kind, "failed").inc()

    def continuation_refused(self, why: str) -> None:
        """A broken stream is of a kind, or in a state, in which it cannot be continued."""
        self._of(self._families.obstacles, why).inc()

    def stream_cut(self, failure: Failure) -> None:
        """A stream broke after the client had a part of it."""
        self._of(self._families.cut, failure.value).inc()

    def stream_ended(self, chunks: int) -> None:
        """A stream is over, whole or cut."""
        self._chunks.inc(chunks)

    def wasted(self, kind: str, count: int) -> None:
        """Tokens that no client got: `output` that was generated in vain, `prompt` that was read again."""
        self._process.usage.wasted(self.pool, kind, count)

    def health_checked(self, passed: bool) -> None:
        """A health check ended."""
        (self._passed if passed else self._failed).inc()

    def breaker_opened(self) -> None:
        """A target's circuit breaker opened."""
        self._opened.inc()

    def target_set(self, via: str, result: str) -> None:
        """A target set came by `via` (push, file, copy) and was accepted, or why not."""
        self._of(self._families.sets, via, result).inc()

    def totals(self) -> dict[str, int]:
        """The counts that `/v1/state` shows."""
        by_outcome, families = self._process.requests(self.pool), self._families
        own = dict(zip(self._process.label, self.labels, strict=True))
        return {
            **{f"requests_{name}": count for name, count in by_outcome.items()},
            "requests": sum(by_outcome.values()),
            "retries": int(_total(families.retries, **own)),
            "streams_cut": int(_total(families.cut, **own)),
            "streams_continued": int(_total(families.continuations, result="continued", **own)),
        }

    def recent(self) -> dict[str, int]:
        """How the last of its requests ended."""
        return self._recent.counts(self._process.now())

    def _of(self, family: Counter, *values: str) -> Counter:
        """Its own series of a family."""
        values = (*self.labels, *values)
        return family.labels(*values) if values else family


class _Gauges:
    """Reads the gauges off the live objects at scrape time, so that no series outlives its target."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """The families of one scrape."""
        metrics, label = self._metrics, self._metrics.label
        now = metrics.now()
        targets = _gauge(
            "targets", "Targets by state, also those that left but still answer", *label, "state"
        )
        in_flight = _gauge("target_in_flight", "Requests in flight by target", *label, "target")
        active = _gauge("targets_active", "Targets that the daemon wants active", *label)
        depth = _gauge("queue_depth", "Requests waiting for a target", *label)
        generation = _gauge("targets_generation", "Generation of the accepted target set", *label)
        in_file = _gauge("targets_file_generation", "Generation in the targets file", *label)
        refused = _gauge("targets_file_refused", "1 while the targets file is not taken", *label)
        age = _gauge("targets_age_seconds", "Time since a target set was accepted", *label)
        for lane in metrics.lanes:
            own, table = list(lane.labels), lane.table
            states = dict.fromkeys(TargetState, 0)
            for entry in table:
                states[entry.state(now)[0]] += 1
                in_flight.add_metric([*own, entry.spec.id], entry.in_flight)
            for state, count in states.items():
                targets.add_metric([*own, state.value], count)
            active.add_metric(own, sum(1 for e in table if e.present and e.spec.phase is TargetPhase.ACTIVE))
            accepted = metrics.started_at if table.accepted_at is None else table.accepted_at
            depth.add_metric(own, lane.queued())
            generation.add_metric(own, table.generation)
            in_file.add_metric(own, lane.file_generation)
            refused.add_metric(own, lane.file_refused)
            age.add_metric(own, now - accepted)
        yield from (targets, in_flight, active, depth)
        yield _plain("requests_active", "Requests being served or waiting", metrics.active)
        yield from (generation, in_file, refused, age)
        yield _plain(
            "daemon_silence_seconds",
            "Time since the control socket was last used",
            now - metrics.daemon_heard,
        )
        yield from _of_adapters(metrics.lanes, label)
        if metrics.certificate_expires is not None:
            yield _plain(
                "tls_certificate_expires_seconds",
                "When the certificate that clients are shown expires, in seconds since the epoch",
                metrics.certificate_expires,
            )
            yield _plain(
                "tls_certificate_refused",
                "1 while the files hold a certificate and key that clients are not shown",
                metrics.certificate_refused,
            )
        if metrics.routed is not None:
            yield _routed(metrics.routed)
            servable = _gauge("route_servable", "1 while a backend of the route is known to answer", "route")
            stands_in = _gauge(
                "route_stands_in",
                "1 while a provider gets requests in the place of backends before it",
                *("route", "provider"),
            )
            for route in metrics.routes():
                servable.add_metric([route.name], route.servable)
                for provider, asked in route.stand_ins.items():
                    stands_in.add_metric([route.name, provider], asked)
            yield from (servable, stands_in)


def _of_adapters(lanes: Iterable[LaneMetrics], label: tuple[str, ...]) -> Iterable[Metric]:
    """The series of the adapters that are configured."""
    targets = _gauge("adapter_targets", "Targets that hold an adapter", *label, "adapter")
    cold = _gauge("adapter_cold", "1 while requests ask for an adapter on no target", *label, "adapter")
    asked = _count("adapter_requests", "Requests for an adapter", *label, "adapter")
    tokens = _count("adapter_tokens", "Tokens of their prompts and answers", *label, "adapter")
    missed = _count("adapter_cold_requests", "Those that found it on no target", *label, "adapter")
    lacking = _count("adapter_lacking", "Times a target did not know its adapter", *label, "adapter")
    for lane in lanes:
        for name, use in lane.adapters:
            own = [*lane.labels, name]
            targets.add_metric(own, lane.adapters.holders(name))
            cold.add_metric(own, lane.adapters.cold(name))
            asked.add_metric(own, use.asked)
            tokens.add_metric(own, use.tokens)
            missed.add_metric(own, use.cold)
            lacking.add_metric(own, use.lacking)
    return targets, cold, asked, tokens, missed, lacking


def _routed(counts: Mapping[tuple[str, str, str], int]) -> CounterMetricFamily:
    family = _count(
        "routed",
        "Requests of routes by backend, and how they ended there: answered, or the trouble that they met",
        *("route", "backend", "result"),
    )
    for key, count in counts.items():
        family.add_metric(key, count)
    return family


def _count(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"orchestrator_gateway_{name}", text, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"orchestrator_gateway_{name}", text, labels=labels)


def _plain(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"orchestrator_gateway_{name}", text, value=value)


def _total(counter: Counter, **labels: str) -> float:
    """The sum over a counter's series that have these labels."""
    return sum(
        sample.value
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
    )
