"""From a configuration to the settings of the gateway: pools, routes, providers, and what stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud.providers.prices import OwnPrice, OwnRates, OwnTier
from orchestrator.config.load import Config, build_config, load_config
from orchestrator.gateway.config import GatewayConfig
from orchestrator.wiring.gateway import gateway_config
from policies.routing import Affinity, Backend, Kind, Route, Task, When

EXAMPLES = Path(__file__).parents[3] / "examples"
API = {"kind": "openai", "url": "http://127.0.0.1:9/v1/"}


def built(directory: Path, **tables: Any) -> Config:
    return build_config(tables, base=directory)


def made(directory: Path, *, to: Any, **route: Any) -> Route:
    """The only route of a file with the pools chat and embed and the provider api."""
    config = built(
        directory,
        pool={"chat": {"replicas": 2, "model": "m/chat", "engine": {"args": ["--lora-modules", "sql=/l"]}},
              "embed": {"replicas": 2, "model": "m/bge", "engine": {"served_name": "bge"}}},
        provider={"api": API},
        route=[{"models": ["a", "b"], "to": to, **route}],
    )  # fmt: skip
    (found,) = gateway_config(config).routes
    return found


def test_one_pool_without_routes_is_not_asked_for_names(tmp_path: Path) -> None:
    config = built(tmp_path, pool={"p": {"replicas": 2, "gateway": {"queue_limit": 3, "listen": "[::1]:1"}}})
    gateway = gateway_config(config)
    assert not gateway.routed
    assert (gateway.host, gateway.port) == ("::1", 1)
    (gate,) = gateway.pools
    assert (gate.name, gate.queue_limit, gate.targets_file) == ("p", 3, tmp_path / "state/targets.json")


def test_each_pool_has_what_its_table_says(tmp_path: Path) -> None:
    config = built(
        tmp_path,
        gateway={"max_in_flight": 8, "retry_after": "3s", "default_route": "n"},
        pool={"a": {"replicas": 2, "model": "m", "engine": {"args": ["--lora-modules", "sql=/l", "law=/k"]}},
              "b": {"replicas": 2, "model": "n", "gateway": {"max_in_flight": 4}}},
    )  # fmt: skip
    gateway = gateway_config(config)
    assert gateway.routed
    assert (gateway.retry_after, gateway.default_route) == (3, "n")
    assert [(g.name, g.served, g.adapters, g.max_in_flight) for g in gateway.pools] == [
        ("a", "m", ("sql", "law"), 8),
        ("b", "n", (), 4),
    ]
    assert [gate.targets_file.name for gate in gateway.pools] == ["targets.json", "targets-b.json"]


def test_the_key_of_a_pool_is_read_and_that_of_a_provider_is_left_to_the_gateway(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-planted\n")
    key.chmod(0o600)
    config = built(
        tmp_path,
        gateway={"api_key_file": "key"},
        pool={"a": {"replicas": 2, "model": "m"}, "b": {"replicas": 2, "model": "n"}},
        provider={"api": {**API, "api_key_file": "key"}},
        route=[{"models": ["x"], "to": [{"provider": "api", "model": "y"}]}],
    )
    gateway = gateway_config(config)
    assert [gate.api_key for gate in gateway.pools] == ["sk-planted", "sk-planted"]
    assert gateway.providers["api"].api_key_file == key
    assert "planted" not in repr(gateway)
    key.unlink()
    with pytest.raises(OSError, match="key"):
        gateway_config(config)


def test_the_task_of_a_pools_engine_is_that_of_its_own_names(tmp_path: Path) -> None:
    vectors = {"replicas": 2, "model": "n", "engine": {"task": "embed"}}
    texts = {
        "replicas": 2,
        "model": "o",
        "engine": {"kind": "vllm", "args": ["--gpu-memory-utilization", "0.2"]},
    }
    both = {"replicas": 2, "model": "p", "engine": {**texts["engine"], "task": "embed"}}
    config = built(tmp_path, pool={"a": {"replicas": 2, "model": "m"}, "b": vectors, "c": texts, "d": both})
    assert [gate.tasks for gate in gateway_config(config).pools] == [
        frozenset(Task),  # the simulated engine writes, and does everything
        {Task.EMBED},
        {Task.CHAT},
        {Task.EMBED, Task.RERANK},  # vLLM ranks by the likeness of vectors
    ]


def test_a_route_says_all_that_the_file_says(tmp_path: Path) -> None:
    found = made(
        tmp_path,
        to=[{"pool": "chat"}, {"pool": "chat", "model": "sql", "when": ["always"]},
            {"provider": "api", "model": "x", "waited": "2s"}],
        priority=3, most_tokens=100, affinity="session", session_header="x-user",
    )  # fmt: skip
    assert found == Route(
        models=("a", "b"),
        backends=(
            Backend(kind=Kind.POOL, name="chat"),
            Backend(kind=Kind.POOL, name="chat", model="sql", when=frozenset({When.ALWAYS})),
            Backend(kind=Kind.PROVIDER, name="api", model="x", waited=2.0),
        ),
        priority=3,
        most_tokens=100,
        affinity=Affinity.SESSION,
        session_header="x-user",
    )


def test_only_waiting_may_be_what_a_backend_is_there_for(tmp_path: Path) -> None:
    backend = made(tmp_path, to=[{"pool": "chat"}, {"pool": "embed", "when": [], "waited": "2s"}]).backends[1]
    assert (backend.when, backend.waited) == (frozenset(), 2.0)


def test_weights(tmp_path: Path) -> None:
    found = made(tmp_path, to=[{"pool": "chat", "weight": 9}, {"pool": "embed", "weight": 1}])
    assert [backend.weight for backend in found.backends] == [9, 1]


def test_data_that_stays_and_vectors(tmp_path: Path) -> None:
    assert made(tmp_path, to=[{"pool": "chat"}], data="stays").stays
    found = made(tmp_path, to=[{"pool": "embed"}, {"provider": "api", "model": "bge"}], task="embed")
    assert found.task is Task.EMBED
    assert [backend.model for backend in found.backends] == ["bge", "bge"]


def test_a_provider_with_its_prices(tmp_path: Path) -> None:
    tier = {"above": 200_000, "input": "6", "output": "22.50"}
    price = {"input": "3", "cached": 0.3, "output": 15, "most_output": 64_000, "tier": [tier]}
    config = built(
        tmp_path,
        provider={"api": {**API, "usd_per_day": "0.05", "retries": 5, "price": {"x": price}}},
        route=[{"models": ["a"], "usd_per_day": "0.01", "to": [{"provider": "api", "model": "x"}]}],
    )
    gateway = gateway_config(config)
    spec = gateway.providers["api"]
    assert gateway.pools == ()
    assert (spec.name, spec.kind, spec.url, spec.retries) == ("api", "openai", "http://127.0.0.1:9/v1", 5)
    assert spec.usd_per_day_pico == 50_000_000_000
    assert gateway.routes[0].usd_per_day_pico == 10_000_000_000
    assert spec.prices["x"] == OwnPrice(
        OwnRates("3", "15", "0.3"), (OwnTier(200_000, OwnRates("6", "22.50")),), most_output=64_000
    )


def test_the_address_of_a_maker_need_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1")
    tables = {
        "kind": "anthropic",
        "usd_per_day": "unlimited",
        "api_key_file": "key",
        "price": {"m": {"input": 1}},
    }
    config = built(
        tmp_path, provider={"c": tables}, route=[{"models": ["a"], "to": [{"provider": "c", "model": "m"}]}]
    )
    spec = gateway_config(config).providers["c"]
    assert (spec.url, spec.usd_per_day_pico) == ("https://api.anthropic.com", None)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_example_makes_a_gateway(example: Path) -> None:
    config = load_config(example)
    gateway = gateway_config(config)
    assert isinstance(gateway, GatewayConfig)
    assert {route.name for route in gateway.routes} == {route.name for route in config.routes}
