"""`orchestrator plan-capacity`: from the files of gateways and daemon, whether they run or not."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from policies.demand import DAY, WEEK, of_week
from policies.model import Market, Placement
from tests.orchestrator.cli.test_cli import check_schema
from tests.support.counted import count, people
from tests.support.sample_answers import FakeApi, Run

TOML = """\
[daemon]
state_dir = "state"
[budget]
nodes = 6
[pool.chat]
replicas = 4
limits.spend_per_hour = "6.00"
cost.tokens_per_second = 1000
"""


NOW = 1_796_038_200.0
"""2026-11-30 11:30 UTC, a Monday."""


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda self: NOW)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A pool that was never asked anything."""
    made = tmp_path / "pool.toml"
    made.write_text(TOML, encoding="utf-8")
    (tmp_path / "state").mkdir()
    return made


async def counted(file: Path, hours: int = 4 * WEEK, weekly: float = 1.05) -> None:
    """The last so many hours: 2,000 tokens a second from 8 to 18 o'clock of working days, else 400."""

    def rate(hour: int) -> float:
        day, of_day = divmod(of_week(hour), DAY)
        busy = day < 5 and 8 <= of_day < 18
        return (2000 if busy else 400) * weekly ** ((hour - NOW // 3600.0) / WEEK)

    await count(file.parent / "state", NOW, rate, hours=hours)


def planned(run: Run, file: Path, *more: str, refused: bool = False) -> Any:
    code, out, err = run("plan-capacity", "--config", str(file), "-o", "json", *more)
    assert (code, err) == (1 if refused else 0, ""), err
    check_schema("capacity-plan", out)
    return json.loads(out)


async def test_a_plan_from_what_was_counted(file: Path, run: Run) -> None:
    await counted(file)
    view = planned(run, file)
    (pool,) = view["pools"]
    assert pool["why_not"] == ""
    assert pool["growth"]["weekly_share"] == pytest.approx(0.05, abs=1e-3)
    assert {hour["units"] for hour in pool["week"]} == {1, 3}
    assert pool["usd_per_unit_hour"] == pytest.approx(1.0)
    assert view["limits"][0]["limit"] == "pool.chat.limits.spend_per_hour"
    assert {each["limit"] for each in view["limits"]} == {
        "pool.chat.replicas", "budget.nodes", "pool.chat.limits.spend_per_hour"
    }  # fmt: skip


async def test_the_table_says_what_binds_first(file: Path, run: Run) -> None:
    await counted(file)
    code, out, err = run("plan-capacity", "--config", str(file))
    assert (code, err) == (0, "")
    assert out.startswith(
        "chat: 3 units at the highest hour of the week from now, Mon 10:00, for 2,099 tokens/s;"
    )
    assert "  growth   +5.0% a week; 42 comparisons" in out
    assert "  a unit   1,000 tokens/s, as the file says; planned up to 70% of it\n" in out
    assert re.search(r"\nHOUR +Mon +Tue +Wed +Thu +Fri +Sat +Sun\n", out)
    assert "\nAs a schedule: Mon-Fri 00-08 1, 08-18 " in out
    limits = out[out.index("LIMIT ") :].splitlines()
    assert limits[1].startswith("pool.chat.limits.spend_per_hour")
    assert "when spot is gone: $2.00 a unit-hour" in limits[1]


async def test_the_hours_of_the_week_as_csv(file: Path, run: Run) -> None:
    await counted(file)
    code, out, err = run("plan-capacity", "--config", str(file), "-o", "csv")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == WEEK
    assert [(row["day"], row["hour"]) for row in rows[:2]] == [("Mon", "0"), ("Mon", "1")]
    assert {row["units"] for row in rows} >= {"1", "3"}
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)


async def test_what_is_given_takes_the_place_of_what_is_known(file: Path, run: Run) -> None:
    await counted(file)
    view = planned(run, file, "--rate", "501", "--headroom", "50%", "--growth", "0%", "--ahead", "28d")
    (pool,) = view["pools"]
    assert (pool["rate_source"], pool["growth"]["source"]) == ("given", "given")
    assert {hour["units"] for hour in pool["week"]} == {2, 8}
    assert view["week_from"] == pytest.approx(view["at"] + 28 * 86_400, abs=3600)


@pytest.mark.parametrize("growth", ["900%", "-99.9%"])
async def test_the_ends_of_what_may_be_given_are_counted(file: Path, run: Run, growth: str) -> None:
    await counted(file)
    view = planned(run, file, "--growth", growth, "--ahead", "364d", "--headroom", "99%", "--rate", "0.001")
    (pool,) = view["pools"]
    assert all(hour["units"] >= 1 for hour in pool["week"])
    assert view["limits"][0]["binds_at"] is not None


async def test_less_history_is_looked_at(file: Path, run: Run) -> None:
    await counted(file)
    (pool,) = planned(run, file, "--since", "10d")["pools"]
    assert pool["growth"]["source"] == "unknown"
    (pool,) = planned(run, file, "--since", "2d", refused=True)["pools"]
    assert "days of history, and the pattern of a week needs 7" in pool["why_not"]


@pytest.mark.parametrize("output", ["table", "csv"])
async def test_a_new_pool_is_told_when_to_ask_again(file: Path, run: Run, output: str) -> None:
    await counted(file, hours=2 * DAY)
    code, out, err = run("plan-capacity", "--config", str(file), "-o", output)
    assert code == 1
    assert "chat: no plan: there are 2.0 days of history" in (out if output == "table" else err)


def test_nothing_was_counted_yet(file: Path, run: Run) -> None:
    view = planned(run, file, refused=True)
    assert "no hour that is over knows of a request" in view["pools"][0]["why_not"]
    assert any("there is no journal yet" in note for note in view["notes"])
    assert not (file.parent / "state" / "usage.db").exists(), "a look makes nothing"


def test_a_usage_file_that_is_none_is_told(file: Path, run: Run) -> None:
    (file.parent / "state" / "usage.db").write_bytes(b"rubbish" * 1000)
    assert any("who used what is not known" in note for note in planned(run, file, refused=True)["notes"])


async def test_without_a_configuration_that_of_the_daemon_is_taken(
    file: Path, run: Run, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    await counted(file)
    api.status["daemon"]["config"]["file"] = str(file)
    monkeypatch.setenv("ORCHESTRATOR_SOCKET", str(api.socket))
    code, out, _ = run("plan-capacity", "-o", "json")
    assert code == 0
    assert json.loads(out)["pools"][0]["pool"] == "chat"


def test_without_a_daemon_and_a_configuration_it_says_what_to_give(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_SOCKET", str(tmp_path / "none.sock"))
    code, _, err = run("plan-capacity")
    assert code == 3
    assert "none.sock" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--headroom", "100%"), "leaves nothing to plan with"),
        (("--headroom", "-5%"), "leaves nothing to plan with"),
        (("--growth", "-100%"), "is no growth of a week"),
        (("--growth", "2000%"), "is no growth of a week"),
        (("--growth", "lots"), "is not a share"),
        (("--ahead", "400d"), "the forecast ends after a year"),
        (("--ahead", "soon"), "is not a duration"),
        (("--rate", "0"), "--rate"),
        (("--price", "p5.4xlarge"), "is not TYPE=USD"),
        (("--price", "p5.4xlarge=-1"), "is not TYPE=USD"),
        (("--pool", "chatt"), "there is no pool 'chatt'"),
    ],
)
def test_wrong_flags_are_wrong_usage(file: Path, run: Run, flags: tuple[str, str], words: str) -> None:
    code, out, err = run("plan-capacity", "--config", str(file), *flags)
    assert (code, out) == (2, "")
    assert words in err


def test_a_file_of_providers_alone_has_nothing_to_plan(file: Path, run: Run) -> None:
    file.write_text(
        '[provider.box]\nkind = "openai"\nurl = "http://127.0.0.1:9"\n[provider.box.price.m]\ninput = "0"\n'
        '[[route]]\nmodels = ["a"]\nto = [{ provider = "box", model = "m" }]\n',
        encoding="utf-8",
    )
    code, _, err = run("plan-capacity", "--config", str(file))
    assert code == 1
    assert "there is no pool in the file" in err


def test_quotas_of_a_pool_that_aws_does_not_run_are_none(file: Path, run: Run) -> None:
    view = planned(run, file, "--quotas", refused=True)
    assert not [each for each in view["limits"] if each["limit"].startswith("quota")]


# -- the page that explains it ---------------------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "plan-capacity.md"


async def test_the_page_shows_what_the_command_prints(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml, printed = re.findall(r"(?s)```(?:toml|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"))[:2]
    (tmp_path / "pool.toml").write_text(toml, encoding="utf-8")
    (tmp_path / "state").mkdir()
    spot, on_demand = (
        Placement("aws", "us-east-1", "us-east-1a", "g6e.xlarge", market)
        for market in (Market.SPOT, Market.ON_DEMAND)
    )
    nodes = [(spot, 0.74)] * 4 + [(on_demand, 1.861)] * 2
    await count(tmp_path / "state", NOW, people(NOW, seed=3), nodes=nodes, on_demand=1.861)
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run("plan-capacity", "--config", str(tmp_path / "pool.toml"), "--price", "p5.4xlarge=6.88")
    assert code == 0
    assert out == printed, "put this into the page"
