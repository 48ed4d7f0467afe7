"""The plan of a configuration: what is needed, which limit is reached when, what else could serve it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.config.load import Config, build_config
from orchestrator.costs.capacity import Asked, Quota, plan
from orchestrator.views.capacity import LimitView, PoolCapacityView
from policies.cost_rows import PoolSettings, RouteSettings
from policies.demand import DAY, WEEK, of_week
from policies.model import Market
from tests.support.cost_books import DAY0, baseline, books, machine, used

NOW = DAY0 + 30 * DAY
RATE = 1000.0
EMBED = {"embed": {"replicas": 3, "engine": {"served_name": "bge"}}}


def office(hour: int) -> float:
    """Tokens a second: 2,500 from 8 to 18 o'clock of Monday to Friday, else 500."""
    day, of_day = divmod(of_week(hour), DAY)
    return 2500.0 if day < 5 and 8 <= of_day < 18 else 500.0


def past(
    pool: str = "chat", hours: int = 4 * WEEK, weekly: float = 1.0, kind: str = "g6e.xlarge", units: int = 1
) -> dict[str, list[Any]]:
    """Rows of a pool of that many hours: $1 a unit-hour in the mix, $2 on demand."""
    span = range(NOW - hours, NOW)
    return {
        "usage": [
            used(
                hour=hour, backend=f"pool/{pool}", output=0,
                fresh=int(3600 * office(hour) * weekly ** ((hour - NOW) / WEEK)),
            )
            for hour in span
        ],
        "machines": [
            machine(hour=hour, pool=pool, usd=1.0 * units, instance_type=kind, unit_seconds=3600.0 * units)
            for hour in span
        ],
        "baseline": [baseline(hour=hour, pool=pool, usd=2.0) for hour in span],
    }  # fmt: skip


def read(*pasts: dict[str, list[Any]], rate: float | None = RATE, **changes: Any) -> Any:
    rows = {key: [row for one in pasts for row in one[key]] for key in ("usage", "machines", "baseline")}
    pools = [PoolSettings(name=name, model="m", rate=rate) for name in ("chat", "embed")]
    more = {"since": NOW - 4 * WEEK, "until": NOW + 1, "now": NOW * 3600.0 + 1200.0, "pools": pools}
    return books(**(rows | more | changes))


def config(chat: dict[str, Any] | None = None, **tables: Any) -> Config:
    pools = {"chat": {"replicas": 4} | (chat or {}), **tables.pop("pool", {})}
    return build_config({"pool": pools, **tables})


def aws(**changes: Any) -> dict[str, Any]:
    regions = changes.pop("regions", ("us-east-1",))
    table = {
        "instance_types": ["g6e.xlarge", "g6.xlarge"],
        "regions": {
            name: {"subnets": {f"{name}a": "subnet-1"}, "launch_template": "node",
                   "on_demand_prices": {"g6e.xlarge": 1.9, "g6.xlarge": 0.8}}
            for name in regions
        },
    }  # fmt: skip
    return {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "engine": {"kind": "vllm", "args": ["--max-model-len", "8192"]},
        "cloud": {"kind": "aws", "aws": table | changes},
        "limits": {"spend_per_hour": 8.0},
    }


def only(view: Any) -> PoolCapacityView:
    (pool,) = view["pools"]
    found: PoolCapacityView = pool
    return found


def limits(view: Any) -> dict[str, LimitView]:
    return {f"{each['limit']} {each['why'].partition(':')[0]}".strip(): each for each in view["limits"]}


# -- a pool ----------------------------------------------------------------------------------------------


def test_a_week_of_units_with_a_schedule_and_an_outlook() -> None:
    pool = only(plan(config(), read(past()), Asked(headroom=0.3)))
    assert pool["why_not"] == ""
    assert [hour["hour_of_week"] for hour in pool["week"]] == list(range(WEEK))
    assert {hour["units"] for hour in pool["week"]} == {1, 4}  # 500 and 2,500 at 700 a unit
    assert [(s["days"], s["begin"], s["end"], s["units"]) for s in pool["schedule"]] == [
        ("Mon-Fri", 0, 8, 1), ("Mon-Fri", 8, 18, 4), ("Mon-Fri", 18, 24, 1), ("Sat-Sun", 0, 24, 1)
    ]  # fmt: skip
    assert pool["schedule_unit_hours"] == 5 * (14 + 40) + 2 * 24
    assert [row["weeks"] for row in pool["outlook"]] == [0, 4, 12, 26, 52]
    assert {(row["units"], row["usd_per_hour"]) for row in pool["outlook"]} == {(4, 4.0)}
    assert (pool["usd_per_unit_hour"], pool["on_demand_usd_per_unit_hour"]) == (1.0, 2.0)
    assert (pool["tokens_per_second"], pool["rate_source"]) == (RATE, "configured")
    assert pool["growth"] is not None
    assert (pool["growth"]["weekly_share"], pool["growth"]["source"]) == (0.0, "measured")


def test_the_present_hour_is_not_in_the_history() -> None:
    """It is not over: its tokens would look like a lull, and its growth like an end."""
    rows = past()
    rows["usage"].append(used(hour=NOW, fresh=10**12))
    assert only(plan(config(), read(rows), Asked()))["outlook"][0]["units"] == 4


def test_growth_and_a_week_to_come() -> None:
    view = plan(config(), read(past(weekly=1.1)), Asked(ahead=8 * WEEK))
    assert view["week_from"] == (NOW + 8 * WEEK) * 3600.0
    pool = only(view)
    peak = max(hour["tokens_per_second"] for hour in pool["week"])
    assert 2500 * 1.1**8 <= peak <= 2500 * 1.1**9
    assert pool["growth"] is not None
    assert pool["growth"]["weekly_share"] == pytest.approx(0.1, abs=1e-3)
    assert "carried on for a year" in " ".join(pool["notes"])


def test_growth_that_is_given_is_said_to_be() -> None:
    pool = only(plan(config(), read(past(weekly=1.1)), Asked(weekly=1.0)))
    assert pool["growth"] is not None
    assert (pool["growth"]["weekly_share"], pool["growth"]["source"]) == (0.0, "given")
    assert {row["units"] for row in pool["outlook"]} == {4}
    assert "growth is as it was given" in pool["notes"]


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0, "no hour that is over knows of a request"),
        (2 * DAY, "there are 2.0 days of history, and the pattern of a week needs 7"),
    ],
)
def test_a_history_that_is_too_short_says_what_it_takes(hours: int, words: str) -> None:
    view = plan(config(), read(past(hours=hours)), Asked())
    pool = only(view)
    assert pool["why_not"].startswith(words)
    assert (pool["week"], pool["outlook"], pool["growth"], view["limits"]) == ([], [], None, [])
    if hours:
        assert pool["why_not"].endswith("ask again from 2024-11-08T00:20:00Z on")


def test_ten_days_have_a_week_and_no_growth() -> None:
    pool = only(plan(config(), read(past(hours=10 * DAY, weekly=1.5)), Asked()))
    assert pool["growth"] is not None
    assert (pool["growth"]["weekly_share"], pool["growth"]["source"]) == (0.0, "unknown")
    assert "growth needs 14 days and there are 10.0" in " ".join(pool["notes"])


def test_three_weeks_have_growth_that_is_doubted() -> None:
    pool = only(plan(config(), read(past(hours=3 * WEEK)), Asked()))
    assert "of 21.0 days: one slow week looks like a trend" in " ".join(pool["notes"])


def test_a_rate_that_was_measured_is_doubted() -> None:
    pool = only(plan(config(), read(past(), rate=None), Asked(headroom=0.0)))
    assert (pool["rate_source"], pool["tokens_per_second"]) == ("measured", pytest.approx(2500.0, rel=1e-3))
    assert "if none was full, it does more and fewer are needed" in " ".join(pool["notes"])


def test_without_any_rate_there_is_no_plan() -> None:
    pool = only(plan(config(), read(past(), rate=None, machines=[]), Asked()))
    assert "write cost.tokens_per_second into the pool, or give --rate" in pool["why_not"]
    assert pool["history"] is not None
    given = only(plan(config(), read(past(), rate=None, machines=[]), Asked(rate=500.0, headroom=0.0)))
    assert (given["outlook"][0]["units"], given["rate_source"]) == (5, "given")
    assert given["outlook"][0]["usd_per_hour"] is None


def test_what_providers_answered_and_hours_without_requests_are_told() -> None:
    rows = past()
    rows["usage"] = [row for row in rows["usage"] if not NOW - 90 <= row.hour < NOW - 20]
    rows["usage"].append(used(hour=NOW - 5, backend="provider/claude", fresh=400_000_000, output=0))
    routes = [RouteSettings(name="assistant", pools=("chat",), providers=("claude/m",))]
    pool = only(plan(config(), read(rows, routes=routes), Asked()))
    notes = " ".join(pool["notes"])
    assert "in 70 of 672 hours nobody asked, or no gateway ran" in notes
    assert "providers answered 15% of the tokens of its routes" in notes
    assert pool["growth"] is not None
    assert pool["growth"]["weekly_share"] == 0.0


def test_a_spike_is_told_with_what_is_needed_without_it() -> None:
    rows = past()
    rows["usage"].append(used(hour=NOW - 40, fresh=3600 * 50_000, output=0))
    pool = only(plan(config(), read(rows), Asked()))
    assert pool["spike"] is not None
    assert pool["spike"]["at"] == (NOW - 40) * 3600.0
    assert (pool["outlook"][0]["units"], pool["spike"]["without_units"]) == (75, 4)


def test_nodes_of_several_units_and_hot_standbys() -> None:
    chat = {"units": {"big": 8}, "standby": {"hot": 8}, "limits": {"spend_per_hour": 20.0}}
    rows = past(kind="big", units=8)
    view = plan(config(chat), read(rows), Asked())
    pool = only(view)
    assert pool["units_per_node"] == 8
    assert (pool["outlook"][0]["units"], pool["outlook"][0]["nodes"]) == (4, 2)
    assert pool["outlook"][0]["usd_per_hour"] == 16.0
    assert limits(view)["pool.chat.limits.spend_per_hour as the mix was paid"]["needs"] == 16.0
    assert limits(view)["pool.chat.limits.spend_per_hour when spot is gone"]["needs"] == 32.0


def test_a_floor_is_kept_whatever_is_asked() -> None:
    pool = only(plan(config({"on_demand_floor": 3}), read(past()), Asked()))
    assert {hour["units"] for hour in pool["week"]} == {3, 4}


# -- limits ----------------------------------------------------------------------------------------------


def test_each_limit_has_its_date_and_the_first_comes_first() -> None:
    made = config({"limits": {"spend_per_hour": 12.0}}, budget={"nodes": 5, "spend_per_hour": 30.0})
    view = plan(made, read(past(weekly=1.1)), Asked())
    dates = [each["binds_at"] for each in view["limits"]]
    assert dates == sorted(dates, key=lambda at: (at is None, at or 0))
    found = limits(view)
    assert set(found) == {
        "pool.chat.replicas",
        "pool.chat.limits.spend_per_hour as the mix was paid",
        "pool.chat.limits.spend_per_hour when spot is gone",
        "budget.nodes",
        "budget.spend_per_hour as the mix was paid",
        "budget.spend_per_hour when spot is gone",
    }
    replicas, nodes = found["pool.chat.replicas"], found["budget.nodes"]
    assert (replicas["allows"], replicas["needs"], replicas["counted"]) == (4, 4.0, "units")
    assert replicas["binds_at"] is not None
    assert nodes["binds_at"] is not None
    assert NOW * 3600.0 < replicas["binds_at"] < nodes["binds_at"]
    spot_gone = found["pool.chat.limits.spend_per_hour when spot is gone"]
    assert (spot_gone["allows"], spot_gone["needs"]) == (12.0, 8.0)
    mix = found["pool.chat.limits.spend_per_hour as the mix was paid"]
    assert spot_gone["binds_at"] is not None
    assert mix["binds_at"] is not None
    assert spot_gone["binds_at"] < mix["binds_at"]


def test_the_date_of_replicas_is_that_of_the_hour_itself() -> None:
    """Every hour of a year is held against the file, one by one."""
    view = plan(config(), read(past(weekly=1.07)), Asked(headroom=0.0))
    bound = limits(view)["pool.chat.replicas"]["binds_at"]
    expected = next(
        hour
        for hour in range(NOW, NOW + 52 * WEEK)
        if office(hour) * 1.07 ** ((hour - NOW) / WEEK) > 4 * RATE
    )
    assert bound == expected * 3600.0


def test_what_does_not_grow_reaches_nothing() -> None:
    found = limits(plan(config(), read(past()), Asked()))
    assert found["pool.chat.replicas"]["binds_at"] is None


def test_a_limit_that_is_too_little_now_says_in_how_many_hours() -> None:
    found = limits(plan(config({"replicas": 2}), read(past()), Asked()))["pool.chat.replicas"]
    assert found["hours_above"] == 50
    assert found["binds_at"] is not None
    assert found["binds_at"] < (NOW + WEEK) * 3600.0


def test_a_budget_counts_what_all_pools_take() -> None:
    made = config(pool=EMBED, budget={"nodes": 7, "spend_per_hour": 100.0})
    both = limits(plan(made, read(past(), past("embed")), Asked()))
    assert both["budget.nodes"]["needs"] == 8.0
    assert both["budget.nodes"]["hours_above"] == 50
    assert both["budget.spend_per_hour as the mix was paid"]["needs"] == 8.0
    new = plan(made, read(past(), past("embed", hours=DAY)), Asked())
    assert limits(new)["budget.nodes"]["needs"] == 4.0 + 3.0  # a pool without a plan takes what it asks for
    assert limits(new)["budget.spend_per_hour when spot is gone"]["needs"] == 8.0 + 6.0


def test_one_pool_alone_is_told_with_the_limits_that_hold_for_it() -> None:
    made = config(pool=EMBED, budget={"nodes": 7})
    view = plan(made, read(past(), past("embed")), Asked(), pool="embed")
    assert only(view)["pool"] == "embed"
    assert set(limits(view)) == {"pool.embed.replicas", "budget.nodes"}


def test_dollars_are_not_judged_without_a_price() -> None:
    made = config({"limits": {"spend_per_hour": 1.0}}, budget={"spend_per_hour": 1.0})
    view = plan(made, read(past(), machines=[], baseline=[]), Asked())
    assert set(limits(view)) == {"pool.chat.replicas"}
    assert view["notes"] == ["limits in dollars leave chat out: what a unit of it costs is not known"]
    assert plan(config(), read(past(), machines=[], baseline=[]), Asked())["notes"] == []


def test_a_pool_without_a_plan_and_without_a_price_is_left_out_of_the_dollars_of_others() -> None:
    made = config(pool=EMBED, budget={"spend_per_hour": 100.0})
    view = plan(made, read(past()), Asked())
    assert limits(view)["budget.spend_per_hour as the mix was paid"]["needs"] == 4.0
    assert view["notes"] == ["limits in dollars leave embed out: what a unit of it costs is not known"]


def test_a_price_that_the_file_states_holds_where_nothing_was_paid_yet() -> None:
    pools = [PoolSettings(name="chat", model="m", rate=RATE, price=3.0)]
    made = config({"limits": {"spend_per_hour": 10.0}})
    view = plan(made, read(past(), machines=[], baseline=[], pools=pools), Asked())
    assert limits(view)["pool.chat.limits.spend_per_hour when spot is gone"]["needs"] == 12.0
    assert only(view)["on_demand_usd_per_unit_hour"] == 3.0


QUOTAS = (
    Quota(code="L-1", region="us-east-1", market=Market.ON_DEMAND, vcpus=15.0, each={"g6e.xlarge": 4.0}),
    Quota(code="L-2", region="us-east-1", market=Market.SPOT, vcpus=100.0, each={"g6e.xlarge": 4.0}),
    Quota(code="L-3", region="us-east-1", market=Market.SPOT, vcpus=1.0, each={"p5.4xlarge": 16.0}),
)


def test_a_quota_counts_vcpus() -> None:
    found = limits(plan(config(aws()), read(past()), Asked(), QUOTAS))
    on_demand = found["quota L-1 (us-east-1) on demand, when spot is gone"]
    assert (on_demand["counted"], on_demand["needs"], on_demand["hours_above"]) == ("vcpus", 16.0, 50)
    spot = found["quota L-2 (us-east-1) on spot, the share of the mix"]
    assert spot["needs"] == pytest.approx(16.0 * 0.7)
    assert not [name for name in found if "L-3" in name]


def test_a_quota_of_one_of_several_regions_is_not_judged() -> None:
    made = config(aws(regions=("us-east-1", "us-west-2")))
    assert not [name for name in limits(plan(made, read(past()), Asked(), QUOTAS)) if "quota" in name]


def test_the_quotas_of_a_pools_regions_count_together() -> None:
    made = config(aws(regions=("us-east-1", "us-west-2")))
    west = replace(QUOTAS[0], region="us-west-2", vcpus=3.0)
    found = limits(plan(made, read(past()), Asked(), (*QUOTAS, west)))
    (name,) = (name for name in found if "quota" in name)
    assert name == ("quota L-1 (us-east-1 + us-west-2) on demand, when spot is gone; of its regions together")
    assert (found[name]["allows"], found[name]["needs"]) == (18.0, 16.0)


def test_pools_of_one_region_take_from_those_that_may_go_to_several() -> None:
    both = ("us-east-1", "us-west-2")
    embed = {"replicas": 3, **aws(regions=both[:1]), "model": "meta-llama/Llama-3.2-3B-Instruct"}
    made = config(aws(regions=both), pool={"embed": embed})
    west = replace(QUOTAS[0], region="us-west-2", vcpus=3.0)
    found = limits(plan(made, read(past(), past("embed")), Asked(), (QUOTAS[0], west)))
    needs = {name.partition(" on")[0]: each["needs"] for name, each in found.items() if "quota" in name}
    assert needs == {"quota L-1 (us-east-1)": 16.0, "quota L-1 (us-east-1 + us-west-2)": 32.0}


# -- other machines --------------------------------------------------------------------------------------


def test_other_gpus_are_estimated_by_bandwidth_with_the_prices_that_are_known() -> None:
    rows = only(plan(config(aws()), read(past()), Asked(prices={"p5.4xlarge": 6.88})))["alternatives"]
    found = {row["instance_type"]: row for row in rows}
    here = found["g6e.xlarge"]
    assert rows[0] == here
    assert (here["source"], here["nodes"], here["usd_per_node_hour"], here["usd_per_hour"]) == (
        "present",
        4,
        1.9,
        7.6,
    )
    smaller = found["g6.xlarge"]
    assert (smaller["source"], smaller["gpus"], smaller["nodes"]) == ("bandwidth", "1 x L4", 11)
    assert smaller["tokens_per_second"] == pytest.approx(RATE * 300 / 864)
    assert smaller["usd_per_hour"] == pytest.approx(11 * 0.8)
    larger = found["p5.4xlarge"]
    assert (larger["nodes"], larger["usd_per_hour"]) == (1, 6.88)
    assert not [name for name in found if name.startswith("p5e")], "eight H200 are no choice for one"


def test_the_cheapest_region_that_the_file_states_is_counted() -> None:
    made = aws(regions=("us-east-1", "us-west-2"))
    regions = made["cloud"]["aws"]["regions"]
    regions["us-east-1"]["on_demand_prices"]["g6.xlarge"] = 0.7
    regions["us-west-2"]["on_demand_prices"]["g6e.xlarge"] = 1.8
    rows = only(plan(config(made), read(past()), Asked()))["alternatives"]
    prices = {row["instance_type"]: row["usd_per_node_hour"] for row in rows}
    assert (prices["g6e.xlarge"], prices["g6.xlarge"]) == (1.8, 0.7)


def test_a_gpu_that_the_model_does_not_fit_is_not_told() -> None:
    args = ["--max-model-len", "8192", "--tensor-parallel-size", "4"]
    large = {"model": "meta-llama/Llama-3.1-70B-Instruct", "engine": {"kind": "vllm", "args": args}}
    made = config(aws(instance_types=["g6e.12xlarge"]) | large)
    rows = only(plan(made, read(past(kind="g6e.12xlarge")), Asked()))["alternatives"]
    kinds = {row["instance_type"] for row in rows}
    assert "g6e.12xlarge" in kinds
    assert not kinds & {"g6.xlarge", "g6e.xlarge", "p5.4xlarge", "g5.12xlarge"}


def test_units_of_the_file_hold_before_an_estimate() -> None:
    chat = {"units": {"large": 4, "small": 1}, "replicas": 8}
    rows = only(plan(config(chat), read(past(kind="large", units=4)), Asked()))["alternatives"]
    assert [(row["instance_type"], row["source"], row["nodes"]) for row in rows] == [
        ("large", "present", 1),
        ("small", "units", 4),
    ]


def test_a_type_without_units_is_one_unit_beside_one_that_has_them() -> None:
    chat = {"units": {"large": 4}, "replicas": 8}
    rows = only(plan(config(chat), read(past(kind="small"), past(kind="large", units=4)), Asked()))[
        "alternatives"
    ]
    assert {row["instance_type"]: (row["source"], row["nodes"]) for row in rows} == {
        "large": ("present", 2),
        "small": ("units", 8),
    }


@pytest.mark.parametrize(("units", "told"), [(10, True), (11, False)])
def test_a_machine_that_could_do_twice_the_peak_is_the_largest_that_is_told(units: int, told: bool) -> None:
    chat = {"units": {"small": 1, "large": units}, "replicas": 8}
    asked = Asked(headroom=0.5, weekly=1.0)
    rows = only(plan(config(chat), read(past(kind="small"), rate=1000.0), asked))["alternatives"]
    assert ("large" in {row["instance_type"] for row in rows}) is told  # the peak is 2,500 tokens/s


def test_where_nothing_is_known_of_machines_none_are_told() -> None:
    assert only(plan(config(), read(past(), machines=[]), Asked()))["alternatives"] == []
