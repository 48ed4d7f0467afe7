"""What a traffic costs at an API and on machines, before anything runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from orchestrator.costs.estimate import AS_USED, Asked, as_used, of_export, of_pace, used_models, view_of
from orchestrator.costs.exports import read_export
from orchestrator.schemas.generate import _described
from orchestrator.views.cost import CostEstimateView
from policies.estimate import Machine
from policies.spend import Price, Rates, Tier
from policies.unit_cost import HOURS_OF_MONTH

SAMPLES = Path(__file__).parents[3] / "examples" / "usage"
FOLLOWS: TypeAdapter[Any] = TypeAdapter(_described(CostEstimateView, {}))
SONNET = Price(Rates.of(input="3", output="15", cached="0.30", cache_write="3.75", cache_write_1h="6"))
HAIKU = Price(Rates.of(input="1", output="5", cached="0.10", cache_write="1.25"))
PRICES: dict[str, Price | None] = {
    "anthropic/claude-sonnet-4-5": SONNET, "anthropic/claude-haiku-4-5": HAIKU,
}  # fmt: skip

TIERED = Price(Rates.of(input="3"), (Tier(200_000, Rates.of(input="6")),))


def sample(name: str) -> Any:
    return read_export((SAMPLES / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "a_day"),
    [
        ("50M/day", 50e6),
        ("50 M tokens a day", 50e6),
        ("1.5G per month", 1.5e9 * 24 / HOURS_OF_MONTH),
        ("1.5B/month", 1.5e9 * 24 / HOURS_OF_MONTH),
        ("350M / week", 50e6),
        ("2083k/hour", 2083e3 * 24),
        ("7 tokens/day", 7),
    ],
)
def test_a_pace_in_words(text: str, a_day: float) -> None:
    asked = of_pace(text, ratio=3.0, cached=0.2)
    assert asked.traffic.tokens == pytest.approx(a_day / 24 * HOURS_OF_MONTH)
    assert asked.output == pytest.approx(asked.traffic.tokens / 4)
    assert asked.cached == pytest.approx(asked.prompt * 0.2)


@pytest.mark.parametrize("text", ["50M", "fifty a day", "50M/year", "-1M/day", "export.csv", "50m/day", ""])
def test_what_is_no_pace(text: str) -> None:
    with pytest.raises(ValueError, match="is no file, and no pace"):
        of_pace(text, ratio=3.0, cached=0.0)


@pytest.mark.parametrize("text", ["0/day", "0.0/hour", "9999999999G/hour"])
def test_a_pace_of_nothing_or_beyond_reason_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no traffic that anybody has"):
        of_pace(text, ratio=3.0, cached=0.0)


def test_embeddings_are_prompts_alone() -> None:
    asked = of_pace("10M/day", ratio=math.inf, cached=0.0)
    assert (asked.output, asked.fresh) == (0.0, asked.traffic.tokens)


def test_an_export_goes_on_at_its_pace() -> None:
    asked = of_export(sample("anthropic.csv"))
    assert asked.traffic.tokens == pytest.approx(148_602_997 / 168 * HOURS_OF_MONTH)
    assert asked.peak == pytest.approx(1.12 * 7 / 5.98, rel=1e-6)  # its third day


def test_an_export_by_the_hour_shows_its_peak() -> None:
    export = sample("openai.json")
    busiest = max(row.tokens for row in export.used)
    assert of_export(export).peak == pytest.approx(busiest * 24 / sum(row.tokens for row in export.used))


def test_an_exports_own_models_cost_what_each_asks() -> None:
    export = sample("anthropic.csv")
    usd = sum(
        row.fresh * (3 if "sonnet" in row.model else 1)
        + row.cached * (0.3 if "sonnet" in row.model else 0.1)
        + row.written * 3.75
        + row.output * (15 if "sonnet" in row.model else 5)
        for row in export.used
    ) / 1e6  # fmt: skip
    assert as_used(export, PRICES) == pytest.approx(usd / 168 * HOURS_OF_MONTH)
    assert used_models(export) == sorted(PRICES)
    idle = replace(export.used[0], model="idle", fresh=0, cached=0, written=0, written_1h=0, output=0)
    assert used_models(replace(export, used=(*export.used, idle))) == sorted(PRICES)


def test_one_model_without_a_price_makes_the_bill_unknown() -> None:
    assert as_used(sample("anthropic.csv"), PRICES | {"anthropic/claude-haiku-4-5": None}) is None


def test_what_was_written_for_an_hour_has_its_own_price() -> None:
    export = sample("anthropic.json")
    asked = of_export(export)
    assert asked.written_1h > 0
    assert as_used(export, PRICES) == pytest.approx(asked.usd(SONNET))


def test_an_api_that_costs_nothing_leaves_no_infinite_figure() -> None:
    view = estimate(prices={"claude/m": Price(Rates.of(input="0"))})
    json.dumps(view, allow_nan=False)
    assert view["machines"][0]["cheaper"] == "api"


def estimate(**changes: Any) -> CostEstimateView:
    values: dict[str, Any] = {
        "source": "50M/day", "asked": of_pace("50M/day", ratio=3.0, cached=0.0), "export": None,
        "apis": ["claude/m"], "prices": {"claude/m": Price(Rates.of(input="3", output="15"))},
        "machines": [Machine(name="h100", price=3.0, rate=500.0, people=0.4)],
    }  # fmt: skip
    view = view_of(**(values | changes))
    FOLLOWS.validate_python(view, strict=True)
    return view


def test_a_pace_at_an_api_and_on_machines() -> None:
    view = estimate()
    assert view["tokens_per_month"] == pytest.approx(50e6 * HOURS_OF_MONTH / 24)
    assert view["apis"] == [
        {"api": "claude/m", "usd_per_month": pytest.approx(9125.0), "usd_per_mtok": pytest.approx(6.0)}
    ]
    (machine,) = view["machines"]
    assert (machine["units"], machine["cheaper"]) == (2, "pool")
    assert machine["usd_per_month"] == pytest.approx(2 * 4.2 * 730)
    assert machine["pays_from_tokens_per_month"] == pytest.approx(4.2 * 730 / 6 * 1e6)
    assert "would pay from 511M tokens a month (39% of one unit); this pace is 1.52G" in machine["advice"]


@pytest.mark.parametrize(("pace", "cheaper"), [("16M/day", "api"), ("18M/day", "pool")])
def test_the_verdict_turns_with_the_traffic(pace: str, cheaper: str) -> None:
    """One unit with people costs $3,066 a month: what the API asks for 16.8 M tokens a day."""
    view = estimate(asked=of_pace(pace, ratio=3.0, cached=0.0))
    assert view["machines"][0]["cheaper"] == cheaper


def test_without_a_rate_it_is_told_how_fast_a_unit_must_be() -> None:
    (machine,) = estimate(machines=[Machine(name="a", price=3.0, people=0.4)])["machines"]
    # $9,125 pay for two units with people: each must take half of 579 tokens/s.
    assert machine["needs_tokens_per_second"] == pytest.approx(50e6 / 86400 / 2)
    assert machine["cheaper"] == "unknown"
    assert "would pay if one takes 289 tokens/s or more" in machine["advice"]
    (dear,) = estimate(machines=[Machine(name="a", price=9.0, people=0.4)])["machines"]
    assert (dear["cheaper"], dear["needs_tokens_per_second"]) == ("api", None)
    assert "would not pay, however fast it is" in dear["advice"]


def test_what_is_not_known_is_null_and_noted() -> None:
    view = estimate(prices={}, machines=[Machine(name="h100", price=3.0, rate=500.0), Machine(name="x")])
    assert view["apis"][0]["usd_per_month"] is None
    known, unpriced = view["machines"]
    assert (known["cheaper"], known["units"], known["usd_per_month"]) == ("unknown", 2, 2 * 3.0 * 730)
    assert (unpriced["cheaper"], unpriced["usd_per_month"]) == ("unknown", None)
    unknown, price = view["notes"]
    assert unknown == "what claude/m asks is not known"
    assert price.startswith("a pool's price is what its file states for all of its regions and types")


def test_an_export_is_held_against_what_it_costs_now() -> None:
    export = sample("anthropic.csv")
    view = estimate(
        source="anthropic.csv", asked=of_export(export), export=export, apis=["claude/m"],
        prices=PRICES | {"claude/m": SONNET},
    )  # fmt: skip
    assert [api["api"] for api in view["apis"]] == [AS_USED, "claude/m"]
    assert view["days"] == 7.0
    machine = view["machines"][0]
    assert machine["break_even_utilisation"] == pytest.approx(
        4.2 / (500 * 3600 / 1e6 * (view["apis"][0]["usd_per_mtok"] or 0))
    )
    assert view["notes"] == [
        "3% of the tokens were batches, which cost less than what is counted here",
        "the export is by the day, which hides the busiest hour: give --peak if it is busier than the "
        "busiest day",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"apis": []}, "no API is named"),
        ({"machines": []}, "no machine is named"),
        ({"prices": {"claude/m": TIERED}}, "prompts cost"),
    ],
)  # fmt: skip
def test_what_is_assumed_is_noted(changes: dict[str, Any], said: str) -> None:
    assert any(said in note for note in estimate(**changes)["notes"])


def test_an_export_without_models_and_with_more_pages_says_so() -> None:
    text = (
        '{"data": [{"start_time": 0, "end_time": 3600, "results": [{"input_tokens": 9, "model": null}]}], '
        '"has_more": true}'
    )
    export = read_export(text)
    view = estimate(asked=of_export(export), export=export, apis=[], prices={})
    assert view["notes"] == [
        "the export names no models",
        "the export says that more pages follow: it is a part of what was used",
    ]


def test_every_kind_of_token_has_its_rate() -> None:
    asked = Asked(fresh=1e6, cached=1e6, written=1e6, written_1h=1e6, output=1e6)
    assert asked.usd(SONNET) == pytest.approx(3 + 0.30 + 3.75 + 6 + 15)
