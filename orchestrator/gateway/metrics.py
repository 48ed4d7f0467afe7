"""Every metric of the gateway, in one place. Each gateway has its own registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from orchestrator.gateway.failure import Failure
from orchestrator.gateway.targets import TargetTable
from orchestrator.gateway.times import Times
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
_FAILED = frozenset({Outcome.UPSTREAM_ERROR, Outcome.FAILED, Outcome.REFUSED, Outcome.CUT})


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
        self._by_second[second] = answered + (outcome in _SERVED), failed + (outcome in _FAILED)

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


class GatewayMetrics:
    """The counters that the proxy moves, and the gauges that are read off the table when asked for."""

    def __init__(self, table: TargetTable, *, queued: Callable[[], int], now: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.file_generation = 0
        self.file_refused = False
        self.started_at = self.daemon_heard = now()
        self.active = 0
        self.recent = Recent()
        self._now = now
        counter, histogram = self._counter, self._histogram
        requests = counter("requests", "Client requests by how they ended", "outcome")
        self._requests = {outcome: requests.labels(outcome.value) for outcome in Outcome}
        self._retries = counter("retries", "Attempts made again, by what the one before met", "reason")
        self._cut = counter("streams_cut", "Streams that broke after the client had a part", "reason")
        self._failures = counter("attempt_failures", "Attempts that failed, retried or not", "reason")
        self._continuations = counter(
            "continuations", "Broken streams that went on elsewhere, by class and result", "kind", "result"
        )
        self._obstacles = counter(
            "continuations_refused", "Broken streams that could not go on elsewhere, by cause", "why"
        )
        self._moved = counter("moved", "Requests that left a target before it answered them", "reason")
        self._chunks = counter("stream_chunks", "Chunks of completion streams passed on")
        self._checks = counter("health_checks", "Health checks of targets", "result")
        self._opened = counter("breaker_opened", "Times a target's circuit breaker opened")
        self._ended = counter(
            "connections_ended", "Connections ended for newer ones, or refused, at their limit"
        )
        self._unread = counter(
            "connections_unread", "Connections ended since their client did not read an answer in time"
        )
        self._sets = counter("target_sets", "Target sets offered, by way and result", "via", "result")
        self._seconds = histogram("request_seconds", "From a request's arrival to the end of its answer")
        self._first = histogram("first_byte_seconds", "From a request's arrival to its first byte")
        self._seam = histogram("continuation_seam_seconds", "From a stream's break to its next piece")
        self._queue = histogram("queue_seconds", "Time requests waited for a target")
        self.registry.register(_Gauges(self, table, queued, now))
        ProcessCollector(registry=self.registry)

    def request_ended(self, outcome: Outcome, seconds: float) -> None:
        """A client's request is over."""
        self._requests[outcome].inc()
        self.recent.add(outcome, self._now())
        self._seconds.observe(seconds)

    def first_byte(self, seconds: float) -> None:
        """The first byte of an answer goes to the client."""
        self._first.observe(seconds)

    def left_queue(self, seconds: float) -> None:
        """A request got its target."""
        self._queue.observe(seconds)

    def attempt_failed(self, failure: Failure, *, retried: bool) -> None:
        """An attempt failed, and the request was sent again or not."""
        self._failures.labels(failure.value).inc()
        if failure in _MOVES:
            self._moved.labels(failure.value).inc()
        if retried:
            self._retries.labels(failure.value).inc()

    def continued(self, kind: str, seam: float) -> None:
        """A broken stream goes on at another target; its client waited `seam` seconds."""
        self._continuations.labels(kind, "continued").inc()
        self._seam.observe(seam)

    def continuation_failed(self, kind: str) -> None:
        """A stream that could be continued was cut all the same."""
        self._continuations.labels(kind, "failed").inc()

    def continuation_refused(self, why: str) -> None:
        """A broken stream is of a kind, or in a state, in which it cannot be continued."""
        self._obstacles.labels(why).inc()

    def stream_cut(self, failure: Failure) -> None:
        """A stream broke after the client had a part of it."""
        self._cut.labels(failure.value).inc()

    def stream_ended(self, chunks: int) -> None:
        """A stream is over, whole or cut."""
        self._chunks.inc(chunks)

    def health_checked(self, passed: bool) -> None:
        """A health check ended."""
        self._checks.labels("passed" if passed else "failed").inc()

    def breaker_opened(self) -> None:
        """A target's circuit breaker opened."""
        self._opened.inc()

    def connection_ended(self) -> None:
        """Clients hold as many connections as they may, and one was ended or refused."""
        self._ended.inc()

    def answer_unread(self) -> None:
        """A connection was ended, since its client did not read what it was sent."""
        self._unread.inc()

    def target_set(self, via: str, result: str) -> None:
        """A target set came by `via` (push, file, copy) and was accepted, or why not."""
        self._sets.labels(via, result).inc()

    def totals(self) -> dict[str, int]:
        """The counts that `/v1/state` shows."""
        by_outcome = {outcome.value: int(_total(child)) for outcome, child in self._requests.items()}
        return {
            **{f"requests_{name}": count for name, count in by_outcome.items()},
            "requests": sum(by_outcome.values()),
            "retries": int(_total(self._retries)),
            "streams_cut": int(_total(self._cut)),
            "streams_continued": int(_total(self._continuations, result="continued")),
        }

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"orchestrator_gateway_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Times:
        return Times(f"orchestrator_gateway_{name}", text, _SECONDS, self.registry)


class _Gauges:
    """Reads the gauges off the live objects at scrape time, so that no series outlives its target."""

    def __init__(
        self, metrics: GatewayMetrics, table: TargetTable, queued: Callable[[], int], now: Callable[[], float]
    ) -> None:
        self._metrics = metrics
        self._table = table
        self._queued = queued
        self._now = now

    def collect(self) -> Iterable[Metric]:
        """The families of one scrape."""
        now, table, metrics = self._now(), self._table, self._metrics
        states = dict.fromkeys(TargetState, 0)
        in_flight = _gauge("target_in_flight", "Requests in flight by target", "target")
        for entry in table:
            states[entry.state(now)[0]] += 1
            in_flight.add_metric([entry.spec.id], entry.in_flight)
        targets = _gauge("targets", "Targets by state, also those that left but still answer", "state")
        for state, count in states.items():
            targets.add_metric([state.value], count)
        active = sum(1 for e in table if e.present and e.spec.phase is TargetPhase.ACTIVE)
        accepted = metrics.started_at if table.accepted_at is None else table.accepted_at
        yield targets
        yield in_flight
        yield _plain("targets_active", "Targets that the daemon wants active", active)
        yield _plain("queue_depth", "Requests waiting for a target", self._queued())
        yield _plain("requests_active", "Requests being served or waiting", metrics.active)
        yield _plain("targets_generation", "Generation of the accepted target set", table.generation)
        yield _plain("targets_file_generation", "Generation in the targets file", metrics.file_generation)
        yield _plain("targets_file_refused", "1 while the targets file is not taken", metrics.file_refused)
        yield _plain("targets_age_seconds", "Time since a target set was accepted", now - accepted)
        yield _plain(
            "daemon_silence_seconds",
            "Time since the control socket was last used",
            now - metrics.daemon_heard,
        )


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
