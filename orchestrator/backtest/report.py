"""What came out of a study, as the JSON of `views.py`, with sentences that say it in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby

from orchestrator.backtest.machines import Timings
from orchestrator.backtest.scenario import Scenario
from orchestrator.backtest.study import POOL, STORAGE, WHOLE, Result
from orchestrator.backtest.timeline import Shortfall
from orchestrator.views.simulate import (
    MarketView,
    MeanView,
    ResultView,
    ShortfallView,
)
from orchestrator.words import age, money, percent, plural
from policies.model import Pool

_WORST = 10
_DAY = 86400.0

_NOT_PLAYED = (
    "Engines are always healthy, balancers answer at once and what is seen of the cloud is never old: "
    "health, patience and the daemon's polling have no effect.",
    "No requests are played: engine, gateway and the drain budget have no effect; a node under notice is "
    "busy until it goes, any other drains at once.",
    "Launches are refused at once and for free, starts take equally long, on-demand is always to be had, and "
    "prices do not react to the pool.",
)


# -- views -----------------------------------------------------------------------------------------


def market_view(scenario: Scenario, results: Sequence[Result], start_time: str | None) -> MarketView:
    """All results of one market, the pool first and the best baseline next."""
    best = best_baseline(results)
    ranked = [r for r in results if r.row.kind == "config"]
    ranked += [r for r in results if r is best]
    ranked += [r for r in results if r not in ranked]
    return {
        "name": scenario.name,
        "days": scenario.seconds / _DAY,
        "measured_hours": results[0].hours,
        "zones": [tape.zone for tape in scenario.tapes],
        "on_demand_price": scenario.on_demand_price,
        "best_baseline": None if best is None else best.row.name,
        "results": [_result_view(result, start_time) for result in ranked],
        "summary": _summary(scenario, ranked, best, start_time),
    }


def best_baseline(results: Sequence[Result]) -> Result | None:
    """The cheapest baseline that has at least as much ready as the pool; None without pool or baselines."""
    mine = first_of(results)
    peers = [r for r in results if r.row.kind == "baseline" and r is not mine]
    good = [r for r in peers if mine is None or r.availability >= mine.availability - 1e-12]
    return min(good, key=lambda r: (r.dollars, -r.availability), default=None)


def first_of(results: Sequence[Result]) -> Result | None:
    """The result that the sentences are about: the user's pool, else the first that has a score."""
    scored = [r for r in results if r.score is not None]
    return next((r for r in scored if r.row.kind == "config"), scored[0] if scored else None)


def mean_views(markets: Sequence[MarketView]) -> list[MeanView]:
    """Every policy over all markets; nothing for a single one."""
    if len(markets) < 2:
        return []
    rows = [(market["name"], result) for market in markets for result in market["results"]]
    order: dict[str, int] = {}
    for _, result in rows:
        order.setdefault(result["policy"], len(order))
    rows.sort(key=lambda pair: order[pair[1]["policy"]])
    return [_mean(name, list(found)) for name, found in groupby(rows, key=lambda pair: pair[1]["policy"])]


def notes_of(
    pool: Pool,
    scenarios: Sequence[Scenario],
    timings: Timings,
    *,
    solver: bool,
    whole_daemon: bool = False,
    weighted: bool = False,
) -> list[str]:
    """What these runs do not show, and settings that do something else here than where the pool runs."""
    notes = list(_NOT_PLAYED)
    if whole_daemon:
        notes.append(
            f"The row {WHOLE!r} does poll, probe, drain and keep a journal, under a steady load of requests; "
            f"its engines are healthy too."
        )
    if weighted:
        notes.append(
            "A market here sells one type of machine: every node serves one unit, whatever `units` says."
        )
    if pool.standby.stopped:
        notes.append(
            f"A stopped standby costs {percent(STORAGE)} of its running price (its disk): an assumption."
        )
    slowest = max(timings.spot_start, timings.on_demand_start)
    if pool.health.boot_timeout <= slowest:
        notes.append(
            f"health.boot_timeout ({pool.health.boot_timeout:g} s) is not longer than a start "
            f"({slowest:g} s): the pool gives up every node before it is ready."
        )
    cap = pool.limits.spend_per_hour
    for scenario in scenarios:
        price = scenario.on_demand_price * pool.replicas
        if cap is not None and cap < price:
            notes.append(
                f"limits.spend_per_hour ({money(cap)}) is less than "
                f"{plural(pool.replicas, 'on-demand node')} cost in {scenario.name} ({money(price)}): "
                f"there the cap keeps the pool short of nodes."
            )
    if not solver:
        notes.append(
            "No row of the omniscient bound: it needs the solver of the extra `simulate` "
            "(pip install 'spot-orchestrator[simulate]')."
        )
    return notes


def _result_view(result: Result, start_time: str | None) -> ResultView:
    score = result.score
    worst = sorted(result.shortfalls, key=lambda s: (-s.node_hours, s.begin))[:_WORST]
    return {
        "policy": result.row.name,
        "kind": result.row.kind,
        "driver": result.row.driver,
        "cost_ratio": result.cost_ratio,
        "capacity_availability": None if score is None else score.capacity_availability,
        "time_availability": None if score is None else score.time_availability,
        "serving_availability": result.serving_availability,
        "mean_spot_share": result.mean_spot_share,
        "preemptions": None if score is None else score.preemptions,
        "spot_launches": None if score is None else score.spot_launches,
        "on_demand_launches": None if score is None else score.on_demand_launches,
        "worst_shortfall_s": None if score is None else score.worst_shortfall_s,
        "shortfall_node_hours": None if score is None else score.shortfall_node_hours,
        "shortfalls": None if score is None else len(result.shortfalls),
        "worst_shortfalls": [_shortfall_view(found, start_time) for found in worst],
        "cost_usd": result.dollars,
        "cost_usd_per_hour": result.dollars / result.hours,
        "on_demand_usd": result.on_demand_dollars,
        "saved_usd": result.on_demand_dollars - result.dollars,
        "broken_invariants": list(result.broken),
        "steps_simulated": None if score is None else score.steps_simulated,
        "trace_hash": None if score is None else score.trace_hash,
    }


def _shortfall_view(found: Shortfall, start_time: str | None) -> ShortfallView:
    return {
        "begin_s": found.begin,
        "at": when(found.begin, start_time),
        "seconds": found.seconds,
        "most_missing": found.most_missing,
        "node_hours": found.node_hours,
        "why": found.why,
    }


def _mean(name: str, rows: Sequence[tuple[str, ResultView]]) -> MeanView:
    results = [result for _, result in rows]
    ready = [r["capacity_availability"] for r in results if r["capacity_availability"] is not None]
    whole = [r["time_availability"] for r in results if r["time_availability"] is not None]
    lost = [r["preemptions"] for r in results if r["preemptions"] is not None]
    longest = [r["worst_shortfall_s"] for r in results if r["worst_shortfall_s"] is not None]
    short = [r["shortfall_node_hours"] for r in results if r["shortfall_node_hours"] is not None]
    lowest = min(ready, default=None)
    return {
        "policy": name,
        "cost_ratio": statistics.fmean(r["cost_ratio"] for r in results),
        "capacity_availability": statistics.fmean(ready) if ready else None,
        "lowest_capacity_availability": lowest,
        "lowest_market": next((m for m, r in rows if ready and r["capacity_availability"] == lowest), None),
        "time_availability": statistics.fmean(whole) if whole else None,
        "mean_spot_share": statistics.fmean(r["mean_spot_share"] for r in results),
        "preemptions": sum(lost) if lost else None,
        "worst_shortfall_s": max(longest, default=None),
        "shortfall_node_hours": sum(short) if short else None,
        "cost_usd": sum(r["cost_usd"] for r in results),
        "on_demand_usd": sum(r["on_demand_usd"] for r in results),
    }


# -- sentences -------------------------------------------------------------------------------------


def when(seconds: float, start_time: str | None) -> str:
    """An instant of a scenario: a date if it is known when it began, else its day and time of day."""
    if start_time:
        return (datetime.fromisoformat(start_time) + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M")
    minutes = int(seconds // 60)
    return f"day {minutes // 1440 + 1} {minutes // 60 % 24:02}:{minutes % 60:02}"


def _summary(
    scenario: Scenario, results: Sequence[Result], best: Result | None, start_time: str | None
) -> list[str]:
    mine = first_of(results)
    if mine is None or mine.score is None:
        return []
    name = "The pool" if mine.row.name == POOL else mine.row.name
    saved = mine.on_demand_dollars - mine.dollars
    saving = f"{money(saved)} saved" if saved >= 0 else f"{money(-saved)} more"
    said = [
        f"{name} would have cost {money(mine.dollars)} in {age(mine.hours * 3600)} "
        f"({money(mine.dollars / mine.hours)}/h), {percent(mine.cost_ratio)} of all on-demand "
        f"({money(mine.on_demand_dollars)}): {saving}.",
        _went_wrong(scenario, mine),
    ]
    if mine.shortfalls:
        worst = max(mine.shortfalls, key=lambda s: (s.node_hours, -s.begin))
        said.append(
            f"The worst: {when(worst.begin, start_time)}, {age(worst.seconds)} with up to "
            f"{worst.most_missing} of {plural(scenario.replicas, 'node')} missing: {worst.why}."
        )
    if best is not None and best is not mine:
        said.append(
            f"The cheapest baseline that has as much ready is {best.row.name}: {money(best.dollars)} "
            f"({ready_text(best.availability)} ready)."
        )
    for other in results:
        if other.row.kind == "config-variant" and mine.row.kind == "config" and _better(other, mine):
            said.append(
                f'The same pool with mix = "{other.row.name}" would have cost {money(other.dollars)} '
                f"({percent(other.cost_ratio)} of all on-demand, {ready_text(other.availability)} ready)."
            )
    for result in results:
        if result.broken:
            said.append(f"{result.row.name} broke invariants, which is a bug: {'; '.join(result.broken)}")
    least = next((r for r in results if r.score is None), None)
    if least is not None:
        said.append(f"With perfect foresight, never being short would have cost {money(least.dollars)}.")
    return said


def _better(other: Result, mine: Result) -> bool:
    return other.availability >= mine.availability and other.dollars < mine.dollars


def _went_wrong(scenario: Scenario, mine: Result) -> str:
    score = mine.score
    if score is None:
        return ""
    lost = (
        f"{plural(score.preemptions, 'spot node')} {'was' if score.preemptions == 1 else 'were'} taken away"
    )
    if not mine.shortfalls:
        return f"{lost}; {plural(scenario.replicas, 'node')} were ready all the time."
    often = "once" if len(mine.shortfalls) == 1 else f"{len(mine.shortfalls)} times"
    return (
        f"{lost}; {ready_text(score.capacity_availability)} of the wanted capacity was ready: short {often}, "
        f"for {score.shortfall_node_hours:.1f} node-hours together."
    )


def ready_text(share: float) -> str:
    """An availability: never rounded up to 100 %."""
    text = f"{100 * share:.3f}"
    return "99.999+%" if share < 1 and text == "100.000" else f"{text}%"
