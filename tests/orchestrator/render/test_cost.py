"""The cost report as people see it, at fixed widths, and as CSV."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import pytest
from cost_books import API, DAY0, PRICE, baseline, books, machine, pool, provider_day, used

from orchestrator.costs import estimate
from orchestrator.costs.view import view_of
from orchestrator.render import cost, render
from orchestrator.render.parts import Look
from orchestrator.words import small_money
from policies.cost_rows import Books, RouteSettings
from policies.estimate import Machine

SNAPSHOTS = Path(__file__).parent / "snapshots"


def check(name: str, text: str) -> None:
    """The text is as it stands in its file; `UPDATE_SNAPSHOTS=1` writes that anew."""
    file = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def full(**changes: Any) -> Books:
    values: dict[str, Any] = {
        "machines": [machine(DAY0 + n, 1.5) for n in range(24)],
        "baseline": [baseline(DAY0 + n, 3.0) for n in range(24)],
        "usage": [used(DAY0 + n, fresh=200_000, cached=100_000, output=50_000) for n in range(24)],
        "providers": [provider_day(usd=1.25), provider_day(route="out", usd=2.0)],
        "routes": (
            RouteSettings(name="assistant", pools=("chat",), providers=(API,)),
            RouteSettings(name="out", providers=(API,)),
        ),
        "pools": (pool(people=0.4),),
    }
    return books(**(values | changes))


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_of_a_day(width: int) -> None:
    check(f"cost-{width}", cost.report(view_of(full(), ("pool",)), Look(width=width)))


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("wide", [False, True])
def test_no_line_is_wider_than_the_terminal(width: int, wide: bool) -> None:
    for by in (("pool",), ("day", "pool"), ("key", "model")):
        text = cost.report(view_of(full(), by), Look(width=max(width, 200) if wide else width, wide=wide))
        assert max(map(len, text.splitlines())) <= (max(width, 200) if wide else width)


@pytest.mark.parametrize("width", [60, 80])
def test_no_figure_is_cut_where_there_is_no_room(width: int) -> None:
    view = view_of(full(), ("pool", "key", "market"))
    table = cost.report(view, Look(width=width)).splitlines()[2:]
    lines = table[: table.index("")]
    roomy = cost.report(view, Look(width=99)).splitlines()[2:]
    whole = {word for line in roomy[: roomy.index("")] for word in line.split()}
    figures = {word for line in lines for word in line.split() if word[0] in "$%" or word[-1] in "%kMG"}
    assert figures <= whole
    assert {"SPENT", "$/MTOK"} <= set(lines[0].split())
    assert max(map(len, lines)) <= width


def test_wide_shows_every_part() -> None:
    text = cost.report(view_of(full(), ("market",)), Look(width=200, wide=True))
    assert "$/H  MACHINES  PROVIDERS  PEOPLE  ON-DEMAND  API WOULD  NODE-HOURS  REQUESTS  CACHED\n" in text
    assert "$1.50    $36.00      $0.00  $14.40     $72.00     $33.12        24.0        24    2.4M\n" in text


def test_what_is_not_known_is_a_question_mark_and_what_does_not_apply_a_dash() -> None:
    found = full(
        machines=[machine(usd=3.0), *(machine(DAY0 + n, 0.0, unpriced=9.0) for n in range(1, 24))], prices={}
    )
    lines = cost.report(view_of(found, ("pool",)), Look(width=120)).splitlines()
    assert lines[3].split() == ["chat", "$3.00", "+", "?", "-", "7.2M", "1.2M", "19%", "-", "-", "-", "-"]
    assert "* 0.1 node-hours had no known price: what depends on them is not known" in lines


def test_use_that_could_not_be_read_is_a_question_mark() -> None:
    for width in (80, 120):
        found = view_of(full(usage=[], unread=True, providers=[]), ("pool",))
        row = cost.report(found, Look(width=width)).splitlines()[3]
        assert row.split()[:4] == ["chat", "$36.00", "50%", "?"]
    assert "idle" not in cost.report(view_of(full(usage=[], unread=True), ("key",)), Look(width=120))


def test_groups_of_nobody_have_a_name() -> None:
    found = full(
        until=DAY0 + 48, machines=[machine(), machine(DAY0 + 24)], providers=[],
        usage=[used(key="", route="")],
    )  # fmt: skip
    lines = cost.report(view_of(found, ("key", "route", "adapter")), Look(width=120)).splitlines()
    assert lines[3].split()[:5] == ["(no", "key)", "(no", "route)", "(none)"]
    assert lines[4].split()[:3] == ["(idle)", "(idle)", "-"]


def test_nothing_counted_is_said_without_a_table() -> None:
    text = cost.report(view_of(books(), ("pool",)), Look(width=100))
    assert "POOL" not in text
    assert (
        "* nothing was counted yet: machines are, while the daemon runs; tokens, while requests come" in text
    )


def test_small_amounts_keep_their_digits() -> None:
    found = full(usage=[used(fresh=10**10, output=0)], providers=[])
    assert "  $0.0036   $0.005  " in cost.report(view_of(found, ("pool",)), Look(width=120))


def test_text_from_elsewhere_moves_no_cursor() -> None:
    found = full(usage=[used(key="a\x1b[2Jb")])
    text = cost.report(view_of(found, ("key",)), Look(width=100))
    assert "\x1b" not in text
    assert "a [2Jb" in text


def test_csv_has_a_header_and_a_line_for_each_row() -> None:
    found = full(usage=[used(key='a,"b')], prices={})
    view = view_of(found, ("pool", "key"))
    rows = list(csv.DictReader(io.StringIO(cost.as_csv(view))))
    assert [(row["pool"], row["key"]) for row in rows] == [("chat", 'a,"b'), ("provider/claude", "team")]
    assert [float(row["spent_usd"]) for row in rows] == [row["spent_usd"] for row in view["rows"]]
    assert [row["api_usd"] for row in rows] == ["", "0.0"]
    assert set(rows[0]) == {"pool", "key", *view["total"]} - {"group"}


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@cf/meta/llama", "\t=1"])
def test_no_name_in_a_csv_is_a_formula(name: str) -> None:
    found = books(machines=[machine()], usage=[used(model=name)])
    (row,) = csv.DictReader(io.StringIO(cost.as_csv(view_of(found, ("adapter",)))))
    assert row["adapter"] == f"'{name}"
    assert float(row["saved_usd"]) == -3.0, "figures are no names"


def test_csv_without_a_grouping_is_the_whole() -> None:
    (row,) = csv.DictReader(io.StringIO(cost.as_csv(view_of(full(), ()))))
    assert float(row["spent_usd"]) == 39.25


def test_a_traffic_before_anything_runs() -> None:
    view = estimate.view_of(
        source="50M/day", asked=estimate.of_pace("50M/day", ratio=3.0, cached=0.2), export=None,
        apis=["claude/sonnet", "nobody/knows"], prices={"claude/sonnet": PRICE},
        machines=[
            Machine(name="h100", price=3.0, rate=500.0, people=0.4), Machine(name="new", price=3.0),
            Machine(name="free"),
        ],
    )  # fmt: skip
    text = cost.estimate(view, Look(width=100))
    check("cost-usage-100", text)
    assert "* what nobody/knows asks is not known" in text


@pytest.mark.parametrize(
    ("day", "said"),
    [
        ({"usd_per_mtok_people": 0.5, "api_usd_per_mtok": 1.3}, "24h: $0.50 a million tokens, the API $1.30"),
        ({"usd_per_mtok_people": 0.5, "api_usd_per_mtok": 0.021}, "$0.50 a million tokens, the API $0.021"),
        ({"usd_per_mtok_people": 0.56, "api_usd_per_mtok": None}, "24h: $0.56 a million tokens"),
        ({"usd_per_mtok_people": None, "api_usd_per_mtok": 1.3}, "24h: the API $1.30"),
        ({"usd_per_mtok_people": None, "api_usd_per_mtok": None}, None),
        (None, None),
    ],
)  # fmt: skip
def test_the_status_tells_what_a_million_tokens_cost(
    small: dict[str, Any], day: dict[str, Any] | None, said: str | None
) -> None:
    if day is not None:
        small["pools"][0]["day"] = day
    text = " ".join(render.status(small, Look(width=120)).split())
    assert (said in text) if said else ("24h:" not in text)


@pytest.mark.parametrize(
    ("dollars", "text"), [(1.3, "$1.30"), (0.021, "$0.021"), (0.0, "$0.00"), (0.1, "$0.10")]
)
def test_small_money(dollars: float, text: str) -> None:
    assert small_money(dollars) == text
