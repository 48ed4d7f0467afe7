"""A plan of capacity in words: what is needed, what binds first, and what is not known."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from orchestrator.config.load import build_config
from orchestrator.costs.capacity import Asked, plan
from orchestrator.render.capacity import capacity_plan
from orchestrator.render.parts import Look
from tests.orchestrator.costs.test_capacity import aws, past, read


@pytest.fixture(scope="module")
def made() -> Any:
    """A plan with everything in it, that grows by 5 % a week."""
    config = build_config({"pool": {"chat": {"replicas": 6, **aws()}}, "budget": {"nodes": 8}})
    return plan(config, read(past(weekly=1.05)), Asked(prices={"p5.4xlarge": 6.88}))


@pytest.fixture
def view(made: Any) -> Any:
    return copy.deepcopy(made)


def shown(view: Any, width: int = 120, *, wide: bool = False) -> str:
    return capacity_plan(view, Look(width=width, wide=wide))


def words(text: str) -> str:
    """Lines that are broken for their width, as one."""
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 120])
def test_everything_keeps_to_the_width_and_loses_nothing(view: Any, width: int) -> None:
    text = shown(view, width)
    assert max(map(len, text.splitlines())) <= width
    for number in ("8 nodes", "4 units", "$8.00/h", "$7.60", "11", "2,601"):
        assert number in text


def test_the_week_has_a_row_for_hours_that_are_alike(view: Any) -> None:
    text = shown(view)
    assert "Units by hour of the week (UTC), in the week from 2024-11-03\n" in text
    assert "HOUR   Mon  Tue  Wed  Thu  Fri  Sat  Sun\n00-08    1    1    1    1    1    1    1\n" in text
    assert "\n08-18    4    4    4    4    4    1    1\n18-24    1 " in text


def test_wide_adds_the_tokens_of_each_hour(view: Any) -> None:
    assert "(2,5" in shown(view, 200, wide=True)


def test_limits_are_told_with_their_dates_and_the_range_of_them(view: Any) -> None:
    text = shown(view)
    row = next(line for line in text.splitlines() if line.startswith("pool.chat.replicas"))
    assert "6 units    4 units  2025-0" in row
    limit = next(each for each in view["limits"] if each["limit"] == "budget.nodes")
    limit |= {"earliest_at": 1_735_689_600.0, "latest_at": None}
    row = next(line for line in shown(view, 140).splitlines() if line.startswith("budget.nodes"))
    assert "2025-01-01 and after a year" in row


def test_a_limit_that_is_too_little_now(view: Any) -> None:
    view["limits"][0] |= {"hours_above": 1}
    assert "now, 1 hour a week" in shown(view)
    view["limits"][0] |= {"hours_above": 0, "binds_at": None}
    assert "not within a year" in shown(view)


def test_prices_that_are_not_known_are_no_zero(view: Any) -> None:
    lines = shown(view).splitlines()
    known = next(line for line in lines if line.startswith("p5.4xlarge"))
    unknown = next(line for line in lines if line.startswith("g5.xlarge"))
    assert known.split()[-3:] == ["$6.88", "$6.88", "estimate"]
    assert unknown.split()[-3:] == ["-", "-", "estimate"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("measured", "+5.0% a week; 42 comparisons of days that are weeks apart, eight of ten between"),
        ("given", "+5.0% a week, as given"),
        ("unknown", "+5.0% a week, for want of a measured one"),
    ],
)
def test_where_growth_is_from(view: Any, source: str, said: str) -> None:
    view["pools"][0]["growth"]["source"] = source
    assert said in words(shown(view))


def test_a_spike_is_told_with_what_is_left_without_it(view: Any) -> None:
    view["pools"][0]["spike"] = {
        "at": 1_735_689_600.0, "tokens_per_second": 9000.0, "without_tokens_per_second": 2500.0,
        "without_units": 4,
    }  # fmt: skip
    assert "spike 2025-01-01 00:00Z alone makes the peak, 9,000 tokens/s; without it 2,500, 4 units" in words(
        shown(view)
    )


def test_a_pool_without_a_plan_is_one_line_and_the_others_go_on(view: Any) -> None:
    view["pools"].insert(0, view["pools"][0] | {"pool": "new", "why_not": "there are 2.0 days of history"})
    text = shown(view)
    assert text.startswith("new: no plan: there are 2.0 days of history\n\nchat: 4 units")
    view["pools"], view["limits"] = view["pools"][:1], []
    assert shown(view) == "new: no plan: there are 2.0 days of history\n"


def test_what_is_missing_comes_last(view: Any) -> None:
    view["notes"] = ["who used what is not known"]
    assert shown(view).endswith("! who used what is not known\n")
