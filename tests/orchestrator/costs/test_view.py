"""The cost report as a document: it follows its type, says what is missing, and rounds nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cost_books import API, DAY0, baseline, books, machine, pool, provider_day, used
from pydantic import TypeAdapter

from orchestrator.costs.view import view_of
from orchestrator.schemas.generate import _described
from orchestrator.views.cost import CostLineView, CostView
from policies.cost_rows import Books, RouteSettings
from policies.spend import Price, Rates

FREE = Price(Rates.of(input="0"))
OUT = [provider_day(route="out", usd=0.0)]
FOLLOWS: TypeAdapter[Any] = TypeAdapter(_described(CostView, {}))


def full(**changes: Any) -> Books:
    values: dict[str, Any] = {
        "machines": [machine(DAY0 + n) for n in range(24)],
        "baseline": [baseline(DAY0 + n) for n in range(24)],
        "usage": [used(DAY0 + n, fresh=500_000, cached=100_000, output=100_000) for n in range(24)],
        "providers": [provider_day(usd=1.25), provider_day(route="out", usd=2.0)],
        "routes": (
            RouteSettings(name="assistant", pools=("chat",), providers=(API,)),
            RouteSettings(name="out", providers=(API,)),
        ),
        "pools": (pool(people=0.4),),
    }
    return books(**(values | changes))


@pytest.mark.parametrize(
    "by", [(), ("pool",), ("day", "zone", "market"), ("model", "adapter", "key", "route")]
)
@pytest.mark.parametrize(
    "found",
    [
        full(),
        books(),
        full(machines=[machine(unpriced=9.0)], prices={}),
        full(prices={API: FREE}, providers=OUT),
        full(usage=[], unread=True),
    ],
    ids=["full", "empty", "bare", "free", "unread"],
)
def test_the_document_follows_its_type_and_is_json(found: Books, by: Any) -> None:
    view = view_of(found, by)
    FOLLOWS.validate_python(view, strict=True)
    assert json.loads(json.dumps(view, allow_nan=False)) == view


def test_the_figures_of_a_day() -> None:
    view = view_of(full(), ("pool",))
    total = view["total"]
    assert (view["since"], view["until"]) == (DAY0 * 3600.0, (DAY0 + 24) * 3600.0)
    assert [row["group"] for row in view["rows"]] == [{"pool": "chat"}, {"pool": "provider/claude"}]
    assert (total["machines_usd"], total["providers_usd"], total["spent_usd"]) == (72.0, 3.25, 75.25)
    assert total["people_usd"] == pytest.approx(28.8)
    assert (total["on_demand_usd"], total["saved_usd"], total["saved_share"]) == (192.0, 120.0, 0.625)
    assert total["usd_per_hour"] == pytest.approx(75.25 / 24)
    assert (total["tokens_in"], total["tokens_out"]) == (24 * 600_000 + 2000, 24 * 100_000 + 200)
    chat = view["pools"][0]
    assert (chat["compare"], chat["people"], chat["tokens_per_second"]) == (API, 0.4, 500.0)
    assert (chat["rate_source"], chat["usd_per_unit_hour"], chat["cheaper"]) == ("configured", 3.0, "api")
    assert chat["line"]["utilisation"] == pytest.approx(700_000 / 1_800_000)
    assert chat["line"]["api_usd"] == pytest.approx(24 * (0.5 * 3 + 0.1 * 0.3 + 0.1 * 15))
    assert chat["line"]["usd_per_mtok_people"] == pytest.approx(72 * 1.4 / 16.8)
    assert [(route["route"], route["offer"]) for route in view["routes"]] == [("out", "chat")]


def test_the_forecast_counts_machines_and_providers() -> None:
    forecast = view_of(full(), ())["forecast"]
    assert forecast["month"] == "2024-10"
    assert forecast["so_far_usd"] == pytest.approx(75.25)
    assert forecast["expected_usd"] == pytest.approx(75.25 * 28)  # 27 days are left after the 4th
    assert (forecast["low_usd"], forecast["hours"]) == (None, 24)


def test_a_providers_day_that_is_not_over_sets_its_pace_by_the_hours_that_are() -> None:
    found = books(now=(DAY0 + 12) * 3600.0, providers=[provider_day(usd=6.5)])
    forecast = view_of(found, ())["forecast"]
    assert forecast["so_far_usd"] == pytest.approx(6.5)
    assert forecast["expected_usd"] == pytest.approx(6.5 + 0.5 * (27 * 24 + 12))


def test_a_providers_money_makes_no_hours_before_counting_began() -> None:
    found = books(
        now=(DAY0 + 12) * 3600.0,
        machines=[machine(DAY0 + 10), machine(DAY0 + 11)],
        providers=[provider_day()],
    )
    assert view_of(found, ())["forecast"]["hours"] == 2


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            books(),
            "nothing was counted yet: machines are, while the daemon runs; tokens, while requests come",
        ),
        (full(since=DAY0 - 24), "counting began within the hour from 2024-10-04T00:00:00Z on"),
        (full(machines=[machine(unpriced=5400.0)]), "1.5 node-hours had no known price"),
        (full(machines=[]), "16,800,000 tokens were served in hours of which no machine was counted"),
        (full(providers=[provider_day(unpriced=2)]), "2 requests to providers had no known price"),
        (full(usage=[used(estimated=1)]), "the tokens of 1 of 21 requests are estimated"),
        (
            full(pools=(pool(rate=None),)),
            "chat: utilisation is relative to the best hour, 194 tokens/s a unit",
        ),
        (full(pools=(pool(rate=100.0),)), "chat: it served 194% of what tokens_per_second says a unit can"),
    ],
    ids=[
        "nothing",
        "later",
        "no price",
        "no machine",
        "no price outside",
        "estimated",
        "measured",
        "too low",
    ],
)
def test_what_is_missing_or_assumed_is_noted(found: Books, said: str) -> None:
    assert any(note.startswith(said) for note in view_of(found, ())["notes"])


def test_nothing_is_noted_where_nothing_is_missing() -> None:
    assert view_of(full(), ())["notes"] == []


def test_utilisation_does_not_compare_between_pools() -> None:
    found = full(
        machines=[machine(), machine(pool="embed")], usage=[used(), used(backend="pool/embed")],
        pools=(pool(), pool(name="embed")),
    )  # fmt: skip
    view = view_of(found, ("day", "zone"))
    for line in (*(row for row in view["rows"] if row["group"]["zone"]), view["total"]):
        assert (line["utilisation"], line["break_even_utilisation"]) == (None, None)
        assert line["usd_per_mtok"] is not None
    assert all(one["line"]["utilisation"] for one in view["pools"])


def test_use_that_could_not_be_read_is_null_and_money_is_told() -> None:
    view = view_of(full(usage=[], unread=True, providers=OUT), ("pool",))
    by_pool = {row["group"]["pool"]: row for row in view["rows"]}
    chat, provider = by_pool["chat"], by_pool["provider/claude"]
    assert (chat["spent_usd"], chat["tokens_in"], chat["requests"], chat["utilisation"]) == (
        view["pools"][0]["line"]["spent_usd"], None, None, None
    )  # fmt: skip
    assert (view["total"]["tokens_out"], view["pools"][0]["line"]["tokens_in"]) == (None, None)
    assert provider["tokens_in"] == 1000, "the spend file tells of providers"


def test_every_field_of_a_line_is_told() -> None:
    assert view_of(full(), ())["total"].keys() == CostLineView.__annotations__.keys()
