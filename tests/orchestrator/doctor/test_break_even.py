"""Whether a pool is worth its money: by the files of gateway and daemon, on both sides of the break-even."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.clock import SystemClock
from orchestrator.doctor.assembly import examine
from orchestrator.doctor.findings import Finding, State
from tests.support.counted import count

TOML = """\
[daemon]
state_dir = "state"
listen = "off"
[pool.chat]
replicas = 4
cost.tokens_per_second = 1000
cost.people = "0%"
cost.compare = "api/m"
{more}
[provider.api]
kind = "openai"
url = "http://127.0.0.1:9"
[provider.api.price.m]
input = "2"
output = "2"
cached = "2"
"""
# Four units at $1 an hour against $2 a million tokens: 2 million an hour, or 556 a second of 4,000, is even.
EVEN = 2e6 / 3600.0


async def found(directory: Path, rate: float, *, hours: int = 200, more: str = "") -> Finding:
    (directory / "state").mkdir()
    (directory / "pool.toml").write_text(TOML.format(more=more), encoding="utf-8")
    if hours:
        await count(directory / "state", SystemClock().now(), lambda _: rate, hours=hours)
    return await looked(directory)


async def looked(directory: Path) -> Finding:
    results = await examine(directory / "pool.toml", ("pool",), SystemClock(), lambda _done, _waiting: None)
    (result,) = [one for one in results if one.check.name == "break-even"]
    (finding,) = result.findings
    return finding


async def test_below_the_break_even_it_warns_with_both_numbers(tmp_path: Path) -> None:
    finding = await found(tmp_path, EVEN * 0.9)
    assert finding.state is State.WARN
    assert "The API (api/m) would be cheaper below 14% utilisation" in finding.text
    assert "it was 12%" in finding.text or "it was 13%" in finding.text
    assert 'accepted = ["utilisation"] in [pool.chat]' in finding.advice


async def test_above_it_all_is_well(tmp_path: Path) -> None:
    finding = await found(tmp_path, EVEN * 1.1)
    assert finding.state is State.OK
    assert "The pool is cheaper above 14% utilisation" in finding.text


async def test_what_is_accepted_is_no_doubt(tmp_path: Path) -> None:
    finding = await found(tmp_path, EVEN * 0.5, more='accepted = ["utilisation"]')
    assert finding.state is State.OK
    assert "would be cheaper" in finding.text


async def test_a_few_hours_are_no_verdict(tmp_path: Path) -> None:
    finding = await found(tmp_path, EVEN * 0.5, hours=20)
    assert finding.state is State.SKIPPED
    assert "a day of history is needed" in finding.text


async def test_before_the_first_start_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "pool.toml").write_text(TOML.format(more=""), encoding="utf-8")
    results = await examine(tmp_path / "pool.toml", ("pool",), SystemClock(), lambda _done, _waiting: None)
    (result,) = [one for one in results if one.check.name == "break-even"]
    assert {finding.state for finding in result.findings} == {State.SKIPPED}
    assert not list((tmp_path / "state").iterdir()), "a look makes nothing"


async def test_without_an_api_to_compare_with_there_is_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "pool.toml").write_text(
        '[daemon]\nstate_dir = "state"\nlisten = "off"\n[pool.chat]\nreplicas = 4\n', encoding="utf-8"
    )
    await count(tmp_path / "state", SystemClock().now(), lambda _: 100.0, hours=60)
    finding = await looked(tmp_path)
    assert finding.state is State.SKIPPED
    assert "There is no API to hold it against" in finding.text


async def test_a_journal_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    await found(tmp_path, EVEN)
    (tmp_path / "state" / "journal.db").write_bytes(b"rubbish" * 1000)
    finding = await looked(tmp_path)
    assert finding.state is State.SKIPPED
    assert "journal.db" in finding.text


@pytest.mark.parametrize("pools", [1, 2])
async def test_each_pool_is_judged_by_its_own_account(tmp_path: Path, pools: int) -> None:
    more = (
        "" if pools == 1 else "[pool.other]\nreplicas = 1\nengine.served_name = 'b'\ncost.compare = 'api/m'"
    )
    (tmp_path / "state").mkdir()
    (tmp_path / "pool.toml").write_text(TOML.format(more=more), encoding="utf-8")
    await count(tmp_path / "state", SystemClock().now(), lambda _: EVEN / 2, hours=60)
    results = await examine(tmp_path / "pool.toml", ("pool",), SystemClock(), lambda _done, _waiting: None)
    states = {
        one.check.name: {finding.state for finding in one.findings}
        for one in results
        if one.check.name.startswith("break-even")
    }
    expected = {"break-even": {State.WARN}}
    if pools == 2:
        expected = {"break-even-chat": {State.WARN}, "break-even-other": {State.SKIPPED}}
    assert states == expected
