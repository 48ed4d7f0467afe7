"""The metrics of the simulated engine, under vLLM's names, labels and buckets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

_TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0,
)  # fmt: skip
_REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_REJECTIONS = ("max_num_queued_reqs", "max_num_queued_tokens")


class Tally(Collector):
    """A histogram that counts many equal values at once: a step of the engine gives hundreds of them."""

    def __init__(self, name: str, text: str, labels: dict[str, str], edges: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._edges = (*edges, float("inf"))
        self._counts = [0] * len(self._edges)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self._counts[bisect_left(self._edges, value)] += times
        self._sum += value * times

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The one series, for its registry."""
        family = HistogramMetricFamily(self._name, self._text, labels=list(self._labels))
        total, buckets = 0, []
        for edge, count in zip(self._edges, self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if edge == float("inf") else str(edge), float(total)))
        family.add_metric(list(self._labels.values()), buckets, self._sum)
        yield family


class Metrics:
    """Counters of one engine in a registry of their own.

    Like vLLM's: the gauges hold what the engine last published (a frozen engine keeps its old values), and a
    request whose client went away is counted nowhere, though its tokens are.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        labels = {"engine": "0", "model_name": model_name}
        names = tuple(labels)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, names, registry=self._registry).labels(**labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, names, registry=self._registry).labels(**labels)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Tally:
            tally = Tally(name, text, labels, buckets)
            self._registry.register(tally)
            return tally

        self.running = gauge("vllm:num_requests_running", "Number of requests in model execution batches.")
        self.waiting = gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.")
        self.kv_cache_usage = gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = counter("vllm:generation_tokens", "Number of generation tokens processed.")
        self.time_to_first_token = histogram(
            "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TTFT_BUCKETS
        )
        self.inter_token_latency = histogram(
            "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _TOKEN_BUCKETS
        )
        self.e2e_latency = histogram(
            "vllm:e2e_request_latency_seconds",
            "Histogram of e2e request latency in seconds.",
            _REQUEST_BUCKETS,
        )
        self.queue_time = histogram(
            "vllm:request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            _REQUEST_BUCKETS,
        )
        success = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            (*names, "finished_reason"),
            registry=self._registry,
        )
        self._success = {
            reason: success.labels(**labels, finished_reason=reason) for reason in _FINISH_REASONS
        }
        rejections = Counter(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            ("model_name", "reason"),
            registry=self._registry,
        )
        self._rejections = {
            reason: rejections.labels(model_name=model_name, reason=reason) for reason in _REJECTIONS
        }

    def finished(self, reason: str) -> None:
        """Count one request that came to an end of its own."""
        self._success[reason].inc()

    def rejected(self) -> None:
        """Count one request that the full queue turned away."""
        self._rejections["max_num_queued_reqs"].inc()

    def render(self) -> bytes:
        """The body of ``GET /metrics``."""
        return generate_latest(self._registry)
