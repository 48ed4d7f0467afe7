"""The metrics of what was used: as many series as there are names worth telling apart, and no more."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.gateway.accounts.usage_metrics import MOST_KEYS, MOST_MODELS, UsageMetrics
from policies.spend import Usage

USAGE = Usage(fresh=1, cached=2, cache_write=3, output=5, cache_write_1h=4)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"orchestrator_gateway_{name}", labels)


@pytest.mark.parametrize(("label", "pool"), [((), {}), (("pool",), {"pool": "chat"})])
def test_tokens_are_told_by_kind(label: tuple[str, ...], pool: dict[str, str]) -> None:
    registry = CollectorRegistry()
    metrics = UsageMetrics(registry, label)
    for estimated in (False, True):
        metrics.used("chat", "pool/chat", "team-a", "m", USAGE, estimated=estimated)
    whose = {**pool, "backend": "pool/chat", "key": "team-a", "model": "m"}
    found = [
        value(registry, "tokens_total", **whose, kind=k) for k in ("fresh", "cached", "cache_write", "output")
    ]
    assert found == [2, 4, 14, 10]
    assert value(registry, "estimated_requests_total", **whose) == 1


def test_keys_and_models_beyond_the_first_are_others() -> None:
    registry = CollectorRegistry()
    metrics = UsageMetrics(registry, ())
    for n in range(MOST_KEYS + 50):
        metrics.used("", "pool", f"key-{n}", "m", USAGE, estimated=False)
    for n in range(MOST_MODELS + 50):
        metrics.used("", "pool", "key-0", f"model-{n}", USAGE, estimated=False)
        metrics.streamed("", f"model-{n}", 0.1, 0.01)
    others = value(registry, "tokens_total", backend="pool", key="other", model="m", kind="output")
    assert others == 50 * USAGE.output
    lines = generate_latest(registry).decode().splitlines()
    assert sum(line.startswith("orchestrator_gateway_tokens_total{") for line in lines) <= 4 * (
        MOST_KEYS + MOST_MODELS + 2
    )
    firsts = [line for line in lines if line.startswith("orchestrator_gateway_first_token_seconds_count{")]
    assert len(firsts) <= MOST_MODELS + 1
    # one name is taken by "m"
    assert value(registry, "first_token_seconds_count", model="other") == 51


def test_times_are_told_by_model() -> None:
    registry = CollectorRegistry()
    metrics = UsageMetrics(registry, ("pool",))
    metrics.streamed("chat", "m", 0.3, 0.02)
    metrics.streamed("chat", "m", 0.3, None)  # of a single token
    whose = {"pool": "chat", "model": "m"}
    assert value(registry, "first_token_seconds_count", **whose) == 2
    assert value(registry, "inter_token_seconds_count", **whose) == 1
    assert value(registry, "inter_token_seconds_bucket", **whose, le="0.02") == 1
    assert value(registry, "inter_token_seconds_bucket", **whose, le="0.015") == 0


def test_what_was_in_vain_is_told_apart() -> None:
    registry = CollectorRegistry()
    metrics = UsageMetrics(registry, ())
    metrics.wasted("", "output", 0)
    assert value(registry, "tokens_wasted_total", kind="output") is None
    metrics.wasted("", "output", 7)
    metrics.wasted("", "prompt", 3)
    assert value(registry, "tokens_wasted_total", kind="output") == 7
    assert value(registry, "tokens_wasted_total", kind="prompt") == 3
