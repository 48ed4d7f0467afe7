"""The metrics of what was used, in the gateway's registry: sums in memory, made into series when scraped."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from orchestrator.gateway.accounts.usage_book import UsageBook
from orchestrator.gateway.times import Times
from policies.spend import Usage

MOST_KEYS, MOST_MODELS = 100, 200
OTHER = "other"
"""Stands for all keys, and all models, beyond the first so many."""

_PREFIX = "orchestrator_gateway_"
_KINDS = ("fresh", "cached", "cache_write", "output")
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0)

Whose = tuple[str, str, str, str]
"""Pool, backend, key, model."""


class Few:
    """The first so many names that come; the others are `OTHER`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        """The name, as long as there is room for it."""
        if name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name


class UsageMetrics:
    """`label` is `("pool",)` where pools are told apart, else empty. `book` is set once there is one."""

    def __init__(self, registry: CollectorRegistry, label: tuple[str, ...]) -> None:
        self.book: UsageBook | None = None
        self._label = label
        self._keys, self._models = Few(MOST_KEYS), Few(MOST_MODELS)
        self._sums: dict[Whose, list[int]] = {}
        self._wasted: dict[tuple[str, str], int] = {}
        first = "From a stream's arrival to its first token"
        gap = "Mean time of a stream from one token to the next"
        self._first = Times(f"{_PREFIX}first_token_seconds", first, _FIRST, registry, (*label, "model"))
        self._gap = Times(f"{_PREFIX}inter_token_seconds", gap, _GAPS, registry, (*label, "model"))
        registry.register(self)

    def used(self, pool: str, backend: str, key: str, model: str, usage: Usage, *, estimated: bool) -> None:
        """A request used so many tokens. `pool` is empty for a provider, `key` for nobody."""
        whose = (pool, backend, self._keys.of(key), self._models.of(model))
        sums = self._sums.get(whose)
        if sums is None:
            sums = self._sums[whose] = [0] * (len(_KINDS) + 1)
        sums[0] += usage.fresh
        sums[1] += usage.cached
        sums[2] += usage.cache_write + usage.cache_write_1h
        sums[3] += usage.output
        sums[4] += estimated

    def streamed(self, pool: str, model: str, first: float, gap: float | None) -> None:
        """A stream of a pool: seconds to its first token, and from one to the next, None for a single one."""
        labels = (*((pool,) if self._label else ()), self._models.of(model))
        self._first.of(*labels).observe(first)
        if gap is not None:
            self._gap.of(*labels).observe(gap)

    def wasted(self, pool: str, kind: str, count: int) -> None:
        """Tokens of a pool that no client got."""
        if count:
            self._wasted[pool, kind] = self._wasted.get((pool, kind), 0) + count

    def collect(self) -> Iterable[Metric]:
        """The series of one scrape."""
        whose = (*self._label, "backend", "key", "model")
        tokens = _counter("tokens", "Tokens of clients' requests, by kind", *whose, "kind")
        estimated = _counter(
            "estimated_requests", "Requests whose tokens were estimated: nothing reported them", *whose
        )
        for (pool, *rest), sums in self._sums.items():
            names = [*((pool,) if self._label else ()), *rest]
            for kind, count in zip(_KINDS, sums, strict=False):
                tokens.add_metric([*names, kind], count)
            estimated.add_metric(names, sums[-1])
        wasted = _counter(
            "tokens_wasted",
            "Tokens that no client got: generated in vain, or read again",
            *self._label,
            "kind",
        )
        for (pool, kind), count in self._wasted.items():
            wasted.add_metric([*((pool,) if self._label else ()), kind], count)
        yield from (tokens, estimated, wasted)
        book = self.book
        failing = "1 while what was used cannot be written to the usage file"
        yield _gauge("usage_file_failing", failing, book is not None and bool(book.trouble))
        waiting = "Rows of what was used that are not in the usage file yet"
        yield _gauge("usage_rows_waiting", waiting, 0 if book is None else book.waiting)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, labels=labels)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, value=value)
