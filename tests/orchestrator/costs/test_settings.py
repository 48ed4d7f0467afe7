"""What a configuration says of costs: whose API a pool is held against, at which price, with which people."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.load import Config, ConfigError, build_config
from orchestrator.config.tables.daemon import DaemonConfig
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.costs.settings import api_price, settings_of
from policies.spend import Rates

NOW = 1_796_000_000.0
API = {"usd_per_day": "5", "api_key_file": "{credentials}/key"}
CLAUDE = API | {"kind": "anthropic", "price": {"m": {"input": "3", "output": "15"}}}
OPENAI = API | {"kind": "openai"}
BOTH: dict[str, Any] = {
    "pool": {
        "chat": {"replicas": 2, "engine": {"served_name": "llama"}},
        "embed": {"replicas": 1, "engine": {"task": "embed", "served_name": "e"}},
    },
    "provider": {"claude": CLAUDE, "openai": OPENAI},
    "route": [
        {"models": ["inside"], "to": [{"pool": "chat"}], "data": "stays"},
        {"models": ["a", "b"], "to": [{"pool": "chat"}, {"provider": "claude", "model": "m"}]},
        {"models": ["vectors"], "task": "embed", "to": [{"pool": "embed"}]},
        {"models": ["out"], "to": [{"provider": "openai", "model": "gpt-4o"}]},
    ],
}


def changed(**cost: Any) -> dict[str, Any]:
    chat = BOTH["pool"]["chat"] | {"cost": cost}
    return BOTH | {"pool": BOTH["pool"] | {"chat": chat}}


def test_a_pool_is_held_against_the_first_provider_of_a_route_with_it() -> None:
    found = settings_of(build_config(BOTH), now=NOW)
    assert [(pool.name, pool.model, pool.task, pool.compare) for pool in found.pools] == [
        ("chat", "llama", "generate", "claude/m"),
        ("embed", "e", "embed", ""),
    ]


def test_routes_name_their_pools_and_providers() -> None:
    found = settings_of(build_config(BOTH), now=NOW).routes
    assert [(r.name, r.task, r.pools, r.providers) for r in found] == [
        ("inside", "generate", ("chat",), ()),
        ("a", "generate", ("chat",), ("claude/m",)),
        ("vectors", "embed", ("embed",), ()),
        ("out", "generate", (), ("openai/gpt-4o",)),
    ]


def test_prices_are_the_files_own_then_the_lists_and_unknown_ones_are_missing() -> None:
    prices = settings_of(build_config(BOTH), now=NOW).prices
    assert prices["claude/m"].rates == Rates.of(input="3", output="15")
    assert prices["openai/gpt-4o"].rates.input > 0
    stranger = settings_of(build_config(changed(compare="claude/nobody-knows-it")), now=NOW)
    assert stranger.pools[0].compare == "claude/nobody-knows-it"
    assert "claude/nobody-knows-it" not in stranger.prices


def test_an_api_without_a_provider_in_the_file_is_looked_up_in_the_list() -> None:
    config = build_config(changed(compare="anthropic/claude-sonnet-4-5"))
    assert api_price(config.providers, "anthropic/claude-sonnet-4-5", now=NOW) is not None
    assert api_price(config.providers, "nobody/claude-sonnet-4-5", now=NOW) is None
    assert "anthropic/claude-sonnet-4-5" in settings_of(config, now=NOW).prices


def test_people_are_those_of_all_pools_unless_one_says_otherwise() -> None:
    assert [pool.people for pool in settings_of(build_config(BOTH), now=NOW).pools] == [0.4, 0.4]
    own = settings_of(build_config(changed(people="0%") | {"cost": {"people": "30%"}}), now=NOW)
    assert [pool.people for pool in own.pools] == [0.0, 0.3]
    assert own.people == 0.3  # of pools that are configured no more


def test_a_rate_is_known_only_where_it_is_written() -> None:
    found = settings_of(build_config(changed(tokens_per_second=1500)), now=NOW).pools
    assert [pool.rate for pool in found] == [1500, None]


@pytest.mark.parametrize(
    "cost",
    [{"compare": "claude"}, {"compare": "/m"}, {"tokens_per_second": 0}, {"people": "-1%"}, {"usd": 1}],
    ids=lambda cost: str(cost),
)
def test_what_is_no_setting_is_refused(cost: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(changed(**cost))
    assert [problem.key for problem in caught.value.problems] == [f"pool.chat.cost.{next(iter(cost))}"]


def test_a_unit_has_the_price_that_the_file_states() -> None:
    aws = {
        "kind": "aws",
        "aws": {
            "instance_types": ["g6.xlarge", "g6.12xlarge"],
            "regions": {"eu-central-1": {"on_demand_prices": {"g6.xlarge": 1.0, "g6.12xlarge": 5.6}}},
        },
    }
    chat = {"replicas": 4, "units": {"g6.12xlarge": 8}, "cloud": aws}
    config = Config(daemon=DaemonConfig(), pools={"chat": PoolConfig.model_validate(chat)})
    assert settings_of(config, now=NOW).pools[0].price == pytest.approx(0.7)
    assert settings_of(build_config(BOTH), now=NOW).pools[0].price is None
