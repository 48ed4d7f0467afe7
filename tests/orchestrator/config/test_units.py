"""Serving units by instance type, in the configuration: what they come to and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.backtest.study import pool_of
from orchestrator.cli.validate import meaning
from orchestrator.config.load import Config, ConfigError, load_config

POOL = "[pool.a]\nreplicas = 20\n"
BIG = '"p5.48xlarge" = 8\nsmall = 2\n'


def load(directory: Path, text: str) -> Config:
    file = directory / "pool.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def test_units_are_counted_by_type(tmp_path: Path) -> None:
    pool = load(tmp_path, f"{POOL}[pool.a.units]\n{BIG}").wanted
    assert pool.units == {"p5.48xlarge": 8, "small": 2}
    assert (pool.replicas, pool.spot_wanted, pool.on_demand_floor) == (20, 14, 6)


def test_room_is_made_for_two_of_the_largest_nodes_unless_written(tmp_path: Path) -> None:
    pool = load(tmp_path, f"{POOL}[pool.a.units]\n{BIG}").wanted
    assert (pool.limits.surge, pool.back_to_spot.at_once) == (16, 16)
    written = f"{POOL}limits.surge = 9\nback_to_spot.at_once = 3\n[pool.a.units]\n{BIG}"
    pool = load(tmp_path, written).wanted
    assert (pool.limits.surge, pool.back_to_spot.at_once) == (9, 3)
    plain = load(tmp_path, POOL).wanted
    assert (plain.limits.surge, plain.back_to_spot.at_once) == (2, 2)


def test_a_surge_that_rounding_may_use_up_is_doubtful(tmp_path: Path) -> None:
    found = load(tmp_path, f"{POOL}limits.surge = 7\n[pool.a.units]\n{BIG}").warnings
    assert [problem.key for problem in found] == ["pool.a.limits.surge"]
    assert "one may serve 8 units" in found[0].text
    assert "write 16 or leave it out" in found[0].text
    assert load(tmp_path, f"{POOL}limits.surge = 8\n[pool.a.units]\n{BIG}").warnings == ()


AWS = (
    '[pool.a.limits]\nspend_per_hour = "unlimited"\n'
    "[pool.a.engine]\nallow_simulated = true\n"
    '[pool.a.cloud]\nkind = "aws"\n[pool.a.cloud.aws]\ninstance_types = ["p5.4xlarge"]\n'
    "[pool.a.cloud.aws.regions.us-east-1]\n"
    'subnets = {us-east-1a = "subnet-1"}\nlaunch_template = "node"\n'
    'notice_queue = "https://sqs.us-east-1.amazonaws.com/123456789012/notices"\n'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{POOL}units.big = 0\n", "pool.toml:3: pool.a.units.big: 0 is too small; write at least 1"),
        (f"{POOL}units.big = 501\n", "pool.toml:3: pool.a.units.big: 501 is too large; write at most 500"),
        (f"{POOL}units.big = 1.5\n", "pool.toml:3: pool.a.units.big: 1.5 is not a whole number"),
        (f'{POOL}units.big = "8"\n', 'pool.toml:3: pool.a.units.big: "8" is not a whole number'),
        (f"{POOL}units = 8\n", "pool.toml:3: pool.a.units: 8 is not a table; write names and numbers"),
        (
            f"{POOL}units.p5.48xlarge = 8\n",
            'pool.toml:3: pool.a.units: a name with a dot needs quotes; write "p5.48xlarge" = 8',
        ),
        (
            f'{POOL}mix = "adaptive"\nunits.big = 8\n',
            "pool.toml:4: pool.a.units: the adaptive mix counts nodes that serve one unit each; leave units",
        ),
        (
            f"{POOL}units.p5e = 8\n{AWS}",
            'pool.toml:3: pool.a.units.p5e: "p5e" is not one of cloud.aws.instance_types',
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    found = [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]
    assert len(found) == 1, found
    assert found[0].startswith(expected)


def test_types_of_aws_may_have_units(tmp_path: Path) -> None:
    assert load(tmp_path, f'{POOL}units."p5.4xlarge" = 2\n{AWS}').wanted.units == {"p5.4xlarge": 2}


def test_the_adaptive_mix_takes_units_that_are_all_one(tmp_path: Path) -> None:
    assert load(tmp_path, f'{POOL}mix = "adaptive"\nunits.gpu = 1\n').wanted.adaptive is not None


def sentences(config: Config) -> list[str]:
    return [str(sentence) for sentence in meaning(config, "a", ())["sentences"]]


def test_validate_says_units_where_they_differ_from_nodes(tmp_path: Path) -> None:
    said: Any = sentences(load(tmp_path, f"{POOL}[pool.a.units]\nbig = 8\n"))
    assert said[0].startswith("a: 20 units of simulated")
    assert "until 20 units are ready again; at most 36 live at once, and the rest of one more node" in said[1]
    assert "Capacity is counted in units: a node of big 8, of any other type 1." in said
    assert sentences(load(tmp_path, POOL))[0].startswith("a: 20 nodes of simulated")


def test_a_simulated_market_sells_nodes_of_one_unit(tmp_path: Path) -> None:
    config = load(tmp_path, f"{POOL}units.big = 8\n")
    for mix in (None, "70/30", "adaptive"):
        pool = pool_of(config, mix=mix)  # type: ignore[arg-type]
        assert (pool.weighted, pool.replicas) == (False, 20)
