"""A user's pool on markets: which rows there are, what they run, and that processes change nothing."""

import signal

import pytest

from cloud.local.synthetic import SyntheticParameters, synthesise
from orchestrator.backtest import markets, report, study
from orchestrator.backtest.machines import Timings
from orchestrator.backtest.progress import showing
from orchestrator.backtest.scenario import cut
from orchestrator.config.load import build_config

BASELINES = [
    "all on-demand",
    "spot round robin",
    "spot even spread",
    "static 70/30",
    "static 70/30 rebalancing",
    "SpotHedge N=1",
    "SpotHedge N=1 hearing notices",
]


@pytest.fixture
def config():
    def build(**pool):
        return build_config({"pool": {"p": {"replicas": 6} | pool}})

    return build


@pytest.fixture(scope="module")
def scenario():
    return cut(synthesise(SyntheticParameters(days=1.0), 2), replicas=6)


def rows(config, *names, starts=None, baselines=True, solver=True, whole_daemon=False):
    return study.rows_of(
        config,
        starts=starts or {},
        names=names,
        baselines=baselines,
        solver=solver,
        whole_daemon=whole_daemon,
    )


def names(found):
    return [row.name for row in found]


# -- rows ------------------------------------------------------------------------------------------


def test_every_row_without_the_one_that_is_the_pool_itself(config):
    assert names(rows(config())) == ["pool", "adaptive", *BASELINES, "omniscient bound"]
    assert names(rows(config(mix="adaptive"))) == ["pool", "70/30", *BASELINES, "omniscient bound"]
    both = ["pool", "70/30", "adaptive", *BASELINES, "omniscient bound"]
    assert names(rows(config(spot_share=0.5))) == both
    assert names(rows(config(), solver=False)) == ["pool", "adaptive", *BASELINES]
    assert names(rows(config(spot_share=0.5), baselines=False)) == ["pool"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["pool"], ["pool"]),
        (["POOL", "all"], ["pool", "all on-demand"]),
        (["static 70/30"], ["static 70/30"]),
        (["static"], ["static 70/30", "static 70/30 rebalancing"]),
        (["omni", "70/30"], ["70/30", "omniscient bound"]),
    ],
)
def test_rows_by_name_or_its_beginning(config, asked, found):
    assert names(rows(config(), *asked)) == found


@pytest.mark.parametrize("asked", ["best", ""])
def test_an_unknown_row_is_answered_with_the_known_ones(config, asked):
    with pytest.raises(study.UnknownPolicy, match="there are pool, 70/30, adaptive, all on-demand"):
        rows(config(), "pool", asked)


def test_a_variant_changes_the_mix_and_nothing_else(config):
    own = config(spot_share=0.5, limits={"surge": 3}, standby={"hot": 2})
    (fixed,) = rows(own, "70/30")
    (adaptive,) = rows(own, "adaptive")
    assert (fixed.pool.spot_share, fixed.pool.adaptive) == (0.7, None)
    assert adaptive.pool.adaptive is not None
    assert adaptive.pool.spot_share == 1.0
    assert {r.pool.limits.surge for r in (fixed, adaptive)} == {3}
    assert {r.pool.standby.hot for r in (fixed, adaptive)} == {2}
    assert adaptive.pool.standby.stopped == 6  # starts within the notice: chosen, as it was not written


def test_start_times_of_the_command_line_are_what_happens_and_what_is_expected(config):
    starts = {"spot": 600.0, "on_demand": 600.0, "notice": 30.0}
    (row,) = rows(config(mix="adaptive"), "pool", starts=starts)
    rules = row.pool.adaptive
    assert (rules.spot_start, rules.on_demand_start, rules.notice) == (600.0, 600.0, 30.0)
    assert row.pool.standby.stopped == 0  # 75 s do not fit into 30 s
    timings = study.timings_of(config(starts={"standby": 40.0}), starts=starts)
    assert timings == Timings(
        spot_start=600.0, on_demand_start=600.0, standby_start=40.0, notice=30.0, storage=study.STORAGE
    )


# -- runs ------------------------------------------------------------------------------------------


def jobs(config, scenario, *asked):
    return [
        study.Job(row=row, scenario=scenario, timings=study.timings_of(config, starts={}), seed=1)
        for row in rows(config, *asked)
    ]


def test_one_process_or_two_give_the_same_in_the_same_order(config, scenario):
    work = jobs(config(), scenario, "pool", "spot r", "spot e", "all")
    heard = []
    here = study.run_all(work, workers=1, progress=lambda shares, done: heard.append((sum(shares), done)))
    there = study.run_all(work, workers=2)
    assert names(r.row for r in here) == ["pool", "all on-demand", "spot round robin", "spot even spread"]
    assert here == there
    assert heard == sorted(heard)
    assert heard[-1] == (4.0, 4)


def test_a_run_that_fails_says_which(config, scenario, monkeypatch):
    monkeypatch.setattr("orchestrator.backtest.replay._ROUNDS", 1)
    with pytest.raises(study.Failed, match=r"synthetic-2: pool: still acting at"):
        study.run_all(jobs(config(), scenario, "pool"), workers=1)


def test_without_solver_the_bound_says_what_to_install(config, scenario, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highspy", None)
    with pytest.raises(study.Failed, match=r"spot-orchestrator\[simulate\]"):
        study.run_all(jobs(config(), scenario, "omniscient"), workers=1)


def test_the_bound_prints_nothing(config, scenario, capfd):
    pytest.importorskip("highspy", reason="needs the extra `simulate`")
    (least,) = study.run_all(jobs(config(), scenario, "omniscient"), workers=1)
    assert (least.score, least.availability) == (None, 1.0)
    assert 0 < least.cost_ratio < 1
    assert capfd.readouterr() == ("", "")


# -- results as views ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(scenario):
    config = build_config({"pool": {"p": {"replicas": 6}}})
    return study.run_all(jobs(config, scenario), workers=1)


def test_the_pool_is_first_and_the_best_baseline_next(scenario, results):
    view = report.market_view(scenario, results, None)
    pool, best, *others = view["results"]
    assert (pool["policy"], pool["kind"]) == ("pool", "config")
    assert best["policy"] == view["best_baseline"]
    assert best["capacity_availability"] >= pool["capacity_availability"]
    better = [
        r
        for r in others
        if r["kind"] == "baseline" and r["capacity_availability"] >= pool["capacity_availability"]
    ]
    assert all(r["cost_usd"] >= best["cost_usd"] for r in better)


def test_money_and_shortfalls_add_up(scenario, results):
    view = report.market_view(scenario, results, "2023-02-15T00:00:00+00:00")
    assert view["measured_hours"] == 22.0
    for result in view["results"]:
        assert result["on_demand_usd"] == pytest.approx(6 * 22.0 * scenario.on_demand_price)
        assert result["cost_usd"] == pytest.approx(result["cost_ratio"] * result["on_demand_usd"])
        assert result["cost_usd"] + result["saved_usd"] == pytest.approx(result["on_demand_usd"])
        assert result["cost_usd_per_hour"] == pytest.approx(result["cost_usd"] / 22.0)
        worst = result["worst_shortfalls"]
        assert len(worst) == min(10, result["shortfalls"] or 0)
        assert [w["node_hours"] for w in worst] == sorted((w["node_hours"] for w in worst), reverse=True)
        assert all(w["at"].startswith("2023-02-1") and w["why"] for w in worst)


def test_the_summary_says_what_it_cost_and_what_went_wrong(scenario, results):
    view = report.market_view(scenario, results, None)
    pool = view["results"][0]
    text = " ".join(view["summary"])
    assert f"The pool would have cost ${pool['cost_usd']:,.2f} in 22h" in text
    assert f"{pool['preemptions']} spot nodes were taken away" in text
    assert f"short {pool['shortfalls']} times" in text
    assert f"The worst: {pool['worst_shortfalls'][0]['at']}" in text
    assert pool["worst_shortfalls"][0]["why"] in text
    assert f"is {view['best_baseline']}:" in text
    assert "With perfect foresight, never being short would have cost" in text


def test_means_over_markets(scenario, results):
    one = report.market_view(scenario, results, None)
    assert report.mean_views([one]) == []
    two = one | {
        "name": "other",
        "results": [r | {"capacity_availability": 0.5} for r in one["results"][:-1]],
    }
    means = {mean["policy"]: mean for mean in report.mean_views([one, two])}
    assert list(means) == [r["policy"] for r in one["results"]]
    pool = one["results"][0]
    mean = means["pool"]
    assert mean["capacity_availability"] == pytest.approx((pool["capacity_availability"] + 0.5) / 2)
    assert (mean["lowest_capacity_availability"], mean["lowest_market"]) == (0.5, "other")
    assert mean["cost_usd"] == pytest.approx(2 * pool["cost_usd"])
    assert mean["preemptions"] == 2 * pool["preemptions"]
    assert means["omniscient bound"]["lowest_market"] is None


def test_notes_name_what_acts_differently_here(config, scenario):
    timings = study.timings_of(config(), starts={"spot": 1000.0})
    settings = config(limits={"spend_per_hour": 5.0}, standby={"stopped": 1})
    notes = " ".join(report.notes_of(settings.wanted, [scenario], timings, solver=False))
    assert "health.boot_timeout (900 s) is not longer than a start (1000 s)" in notes
    assert (
        "limits.spend_per_hour ($5.00) is less than 6 on-demand nodes cost in synthetic-2 ($18.36)" in notes
    )
    assert "A stopped standby costs 1% of its running price" in notes
    assert "spot-orchestrator[simulate]" in notes
    plain = report.notes_of(config().wanted, [scenario], study.timings_of(config(), starts={}), solver=True)
    assert len(plain) == 3
    whole = report.notes_of(
        config().wanted,
        [scenario],
        study.timings_of(config(), starts={}),
        solver=True,
        whole_daemon=True,
    )
    assert "The row 'pool, whole daemon' does poll, probe, drain" in " ".join(whole)


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100.000%"), (0.9999999, "99.999+%"), (0.99884, "99.884%"), (0.5, "50.000%")]
)
def test_an_availability_is_never_rounded_up_to_all(share, text):
    assert report.ready_text(share) == text


def test_when_something_happened():
    assert report.when(90_060.0, None) == "day 2 01:01"
    assert report.when(90_060.0, "2023-02-15T22:08:16") == "2023-02-16 23:09"


# -- markets ---------------------------------------------------------------------------------------


def test_a_part_of_a_set_is_played():
    spotset = markets.synthetic(4, 3.0)
    part = markets.scenario_of(spotset, replicas=2, zones=["syn-2"], days=1.0, skip_days=0.5)
    assert part.seconds == 86400.0
    assert [tape.zone for tape in part.tapes] == ["syn-2a", "syn-2b", "syn-2c"]
    first = round(0.5 * 86400 / spotset.gap_seconds)
    assert part.tapes[0].capacity(0.0) == spotset.zones[3].data[first]
    assert part.tapes[0].capacity(86399.0) == spotset.zones[3].data[first + 287]
    assert markets.scenario_of(spotset, replicas=2, zones=[], days=90.0, skip_days=0.0).seconds == 3 * 86400.0


@pytest.mark.parametrize(("days", "skip"), [(0.05, 0.0), (None, 2.95), (None, 9.0)])
def test_too_little_to_measure_is_an_error(days, skip):
    with pytest.raises(markets.MarketError, match="the first 2 h are not measured, so play more"):
        markets.scenario_of(markets.synthetic(4, 3.0), replicas=2, zones=[], days=days, skip_days=skip)


def test_a_set_is_described():
    view = markets.description(markets.synthetic(4, 3.0))
    assert (view["name"], view["days"], view["gap_seconds"], len(view["zones"])) == (
        "synthetic-4",
        3.0,
        300.0,
        6,
    )
    for zone in view["zones"]:
        assert 0 <= zone["available_share"] <= 1
        assert zone["available_share"] <= zone["mean_nodes"] <= zone["most_nodes"] <= 16
        assert zone["lowest_spot_price"] <= zone["spot_price"] <= zone["highest_spot_price"]
        assert zone["spot_price"] < zone["on_demand_price"] == 3.06
    assert max(zone["available_share"] for zone in view["zones"]) > 0.5
    assert sum(zone["losses_per_day"] for zone in view["zones"]) > 1


# -- progress --------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("orchestrator.backtest.progress.SystemClock.now", lambda self: now[0])
    with showing(4, quiet=False) as progress:
        for at in (1.0, 9.0, 11.0, 12.0, 22.0):
            now[0] = at
            progress([at / 100] * 4, 1)
        now[0] = 50.0
        progress([1.0] * 4, 4)  # the results say the rest
    assert capsys.readouterr() == (
        "",
        "simulate: 1 of 4 runs done, 11% of the time played\n"
        "simulate: 1 of 4 runs done, 22% of the time played\n",
    )


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with showing(2, quiet=False) as progress:
        progress([1.0, 0.5], 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "of 2 runs" in captured.err


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_is_quiet(monkeypatch, capsys, terminal):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    with showing(2, quiet=True) as progress:
        progress([1.0, 1.0], 2)
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_while_processes_are_started_is_heard_afterwards() -> None:
    began = []

    def starts() -> None:
        with study._deaf():
            signal.raise_signal(signal.SIGINT)
            began.append("all")

    with pytest.raises(KeyboardInterrupt):
        starts()
    assert began == ["all"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
