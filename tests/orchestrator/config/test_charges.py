"""What pools charge keys, as a configuration is checked and handed to the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.config.tables.file import Role
from orchestrator.wiring.gateway import gateway_config
from policies.spend import Rates

KEY = '[key.{name}]\nsha256 = "{digit}{digit}"\n{more}\n'
TEXT = """[gateway]
keys_file = "keys.toml"
[pool.chat]
replicas = 2
model = "m/chat"
"""
CHARGE = """[pool.chat.charge]
input = "0.20"
output = 0.60
"""


def load(directory: Path, text: str, role: Role = "any") -> Config:
    (directory / "pool.toml").write_text(text)
    return load_config(directory / "pool.toml", role)


def keys(directory: Path, *more: str) -> None:
    path = directory / "keys.toml"
    path.write_text(
        "".join(KEY.format(name=f"team-{n}", digit=f"{n}" * 32, more=m) for n, m in enumerate(more))
    )
    path.chmod(0o600)


def charges(config: Config) -> list[str]:
    return [str(each).partition(": ")[2] for each in config.warnings if "charge" in str(each)]


def test_a_charge_is_handed_to_the_gateway(short_dir: Path) -> None:
    keys(short_dir, 'usd_per_day = "5"')
    config = load(short_dir, TEXT + CHARGE)
    assert charges(config) == []
    assert gateway_config(config).pools[0].charge == Rates.of(input="0.20", output="0.60")
    assert gateway_config(load(short_dir, TEXT)).pools[0].charge is None
    prompts = load(short_dir, TEXT + CHARGE.replace("output", "# output"))
    assert gateway_config(prompts).pools[0].charge == Rates.of(input="0.20", output="0")
    cached = load(short_dir, TEXT + CHARGE + "cached = 0")
    assert gateway_config(cached).pools[0].charge == Rates.of(input="0.20", output="0.60", cached="0")


def test_a_charge_without_its_first_price_is_an_error(short_dir: Path) -> None:
    keys(short_dir, "")
    with pytest.raises(ConfigError, match=r"pool\.chat\.charge\.input: is missing"):
        load(short_dir, TEXT + CHARGE.replace("input", "cached"))


def test_dollars_a_day_that_a_pool_uses_none_of_are_told(short_dir: Path) -> None:
    keys(short_dir, "", "in_flight = 2")
    assert charges(load(short_dir, TEXT)) == []
    keys(short_dir, "", 'usd_per_day = "5"', 'usd_per_day = "5"', 'usd_per_day = "5"\nrevoked = true')
    [text] = charges(load(short_dir, TEXT))
    assert text.startswith(
        "pool.chat.charge: key team-1 and 1 more may spend so many dollars a day, and what chat"
    )
    assert charges(load(short_dir, TEXT, "daemon")) == []
    assert charges(load(short_dir, TEXT + CHARGE.replace("0.20", "0").replace("0.60", "0"))) == []


def test_a_charge_that_nobody_has_a_key_for_is_told(short_dir: Path) -> None:
    [text] = charges(load(short_dir, (TEXT + CHARGE).replace("keys_file", "# ")))
    assert text.startswith("pool.chat.charge: charges nobody: there is no gateway.keys_file")


def test_a_charge_that_could_not_be_booked_is_an_error(short_dir: Path) -> None:
    keys(short_dir, "")
    text = TEXT.replace("[gateway]\n", '[gateway]\nspend_file = "kept/spend.db"\n')
    assert load(short_dir, text, "gateway").warnings == ()
    with pytest.raises(ConfigError, match=r"gateway\.spend_file: .*kept cannot be written by this user"):
        load(short_dir, text + CHARGE, "gateway")
    (short_dir / "kept").mkdir()
    assert load(short_dir, text + CHARGE, "gateway").warnings == ()
