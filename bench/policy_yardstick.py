"""Yardstick of the policies: cost and availability on spot markets, beside the baselines and the bound.

    python bench/policy_yardstick.py ../shared/traces -o yardstick.json      recorded markets
    python bench/policy_yardstick.py                                        synthetic markets
    python bench/policy_yardstick.py ../shared/traces --part first          first half (in time) of each
    python bench/policy_yardstick.py ../shared/traces --cold 180 --only adaptive "70/30"
    python bench/policy_yardstick.py ../shared/traces --cold 180 --why      where what is missing comes from

The recorded scenarios are those of the reference table (docs/explanation/adaptive.md) as far as their sets
are in the directory; the others are left out and named. Cold starts: 180 s, 600 s, and 600 s for spot with an
on-demand backup that starts in 90 s. Notice 120 s. Without the extra `simulate` there is no bound.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.local.spotset import SpotSet, read_spotset
from cloud.local.synthetic import SyntheticParameters, synthesise
from orchestrator.backtest.baselines import standard
from orchestrator.backtest.machines import Timings
from orchestrator.backtest.omniscient import SolverMissing, bound
from orchestrator.backtest.replay import Decide, Policy, Replay
from orchestrator.backtest.scenario import Scenario, cut
from orchestrator.backtest.shortfall import ShortfallCauses
from policies.model import AdaptiveRules, Limits, Pool, StandbyRules

H100, V100, FOUR, OCTOBER = (
    "h100-gcp-2025-10",
    "v100-aws-2023-02",
    "v100-aws-2023-08-4n",
    "v100x1-aws-2022-10",
)


@dataclass(frozen=True, slots=True)
class Source:
    """A scenario: its set, the nodes wanted and the beginnings of the names of its zones."""

    name: str
    set: str
    replicas: int
    zones: tuple[str, ...] = ()


SOURCES = (
    Source("h-us8", H100, 8, ("us-",)),
    Source("h-usc1", H100, 8, ("us-central1",)),
    Source("h-use", H100, 8, ("us-east",)),
    Source("h-west", H100, 8, ("us-west1",)),
    Source("h-all13", H100, 16),
    Source("v-9z", V100, 8),
    Source("v-usw2", V100, 8, ("us-west-2",)),
    Source("v-use1", V100, 8, ("us-east-1",)),
    Source("v-use2", V100, 8, ("us-east-2",)),
    Source("v-4n", FOUR, 4),
    Source("v1-22", OCTOBER, 8),  # not in the reference table
    Source("v-16n", "v100-aws-2023-08-16n", 16),
    Source("v-pre4", "v100-aws-2023-04-pre", 8),
    Source("v8-22", "v100x8-aws-2022-10", 4),
    Source("a100g", "a100x8-gcp-2023", 4),
)

PARTS = {"first": (0.0, 0.5), "second": (0.5, 1.0), "whole": (0.0, 1.0)}

COLD = {"180": (180.0, 180.0), "600": (600.0, 600.0), "600/90": (600.0, 90.0)}
"""Seconds from launch to ready of spot and of on-demand."""

STORAGE = 200 * 0.08 / 730
"""USD/h that a stopped standby costs: 200 GB of EBS gp3 at 0.08 USD a GB-month."""

BOUND = "omniscient bound"


def _fixed(replicas: int, cold: str, **changes: Any) -> Pool:  # noqa: ARG001
    return Pool(name="yardstick", replicas=replicas, limits=Limits(surge=replicas), **changes)


def _adaptive(replicas: int, cold: str, availability: float = 0.999, standbys: int = 0) -> Pool:
    spot, on_demand = COLD[cold]
    rules = AdaptiveRules(availability=availability, spot_start=spot, on_demand_start=on_demand)
    return Pool(
        name="yardstick",
        replicas=replicas,
        spot_share=1.0,
        adaptive=rules,
        standby=StandbyRules(stopped=standbys),
        limits=Limits(surge=replicas),
    )


OURS: dict[str, Callable[[int, str], Pool]] = {
    "70/30": _fixed,
    "70/30, one stopped standby": lambda n, cold: _fixed(n, cold, standby=StandbyRules(stopped=1)),
    "70/30, a stopped standby per spot node": lambda n, cold: _fixed(
        n, cold, standby=StandbyRules(stopped=_fixed(n, cold).spot_wanted)
    ),
    "adaptive 99.9 %": _adaptive,
    "adaptive 99.9 %, standbys": lambda n, cold: _adaptive(n, cold, standbys=n),
}


def scenarios(directory: Path | None, part: str) -> tuple[list[Scenario], list[str]]:
    """The scenarios to be had, and the names of those whose set is missing."""
    begin, end = PARTS[part]
    if directory is None:
        return [_synthetic(seed, begin, end) for seed in range(8)], []
    found, missing, read = [], [], dict[str, SpotSet]()
    for source in SOURCES:
        if not (directory / source.set / "set.json").is_file():
            missing.append(source.name)
            continue
        if source.set not in read:
            read[source.set] = read_spotset(directory / source.set)
        found.append(
            cut(
                read[source.set],
                replicas=source.replicas,
                zones=source.zones,
                begin=begin,
                end=end,
                name=source.name,
            )
        )
    return found, missing


def _synthetic(seed: int, begin: float, end: float) -> Scenario:
    spotset = synthesise(SyntheticParameters(), seed)
    return cut(spotset, replicas=8, begin=begin, end=end, name=f"synthetic-{seed}")


def timings(cold: str, scenario: Scenario) -> Timings:
    """The start times of a column of the table, and what storage costs beside the scenario's machines."""
    spot, on_demand = COLD[cold]
    storage = STORAGE / scenario.on_demand_price
    return Timings(spot_start=spot, on_demand_start=on_demand, storage=storage)


def one(job: tuple[str, str, Scenario, int]) -> dict[str, Any]:
    """One cell: a policy, a cold start, a scenario, a seed."""
    name, cold, scenario, seed = job
    row: dict[str, Any] = {"policy": name, "cold_start": cold, "scenario": scenario.name}
    if name == BOUND:
        least = bound(scenario, timings(cold, scenario), availability=0.999)
        return {**row, "cost_ratio": least.cost_ratio, "capacity_availability": 0.999}
    ours = name in OURS
    pool = OURS[name](scenario.replicas, cold) if ours else _fixed(scenario.replicas, cold)
    policy: Policy = Decide(name) if ours else standard()[name]()
    times = timings(cold, scenario)
    causes = ShortfallCauses(
        wanted=scenario.replicas,
        spot_start=times.spot_start,
        on_demand_start=times.on_demand_start,
        notice=times.notice,
    )
    outcome = Replay(scenario, pool, policy, timings=times, seed=seed, recorder=causes).run()
    return {
        **row,
        **outcome.score.as_dict(),
        "serving_availability": outcome.serving_availability,
        "missing": causes.shares(),
    }


def show(rows: Sequence[dict[str, Any]], names: Sequence[str], colds: Sequence[str]) -> None:
    """The table: mean cost @ mean availability, and the worst scenario."""
    print(f"{'':40s}" + "".join(f"{'cold start ' + c + ' s':>34s}" for c in colds))
    for name in names:
        cells = []
        for cold in colds:
            mine = [r for r in rows if r["policy"] == name and r["cold_start"] == cold]
            if not mine:
                cells.append("-")
                continue
            cost = statistics.fmean(r["cost_ratio"] for r in mine)
            available = statistics.fmean(r["capacity_availability"] for r in mine)
            worst = min(mine, key=lambda r: r["capacity_availability"])
            low = worst["capacity_availability"]
            cells.append(f"{cost:.3f} @ {available:.5f} ({low:.4f} {worst['scenario']})")
        print(f"{name:40s}" + "".join(f"{cell:>34s}" for cell in cells))


def show_why(rows: Sequence[dict[str, Any]]) -> None:
    """Missing node-seconds by cause, in hundred-thousandths of the wanted ones, means over the scenarios."""
    mine: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in rows:
        if "missing" in row:
            mine.setdefault((row["policy"], row["cold_start"]), []).append(row["missing"])
    for (name, cold), accounts in mine.items():
        causes = sorted({cause for account in accounts for cause in account})
        means = {c: statistics.fmean(a.get(c, 0.0) for a in accounts) for c in causes}
        print(f"\n{name}, cold start {cold} s: {sum(means.values()) * 1e5:.1f}e-5 missing")
        for cause in sorted(means, key=lambda c: -means[c]):
            print(f"  {means[cause] * 1e5:8.1f}e-5  {cause}")


def main() -> None:
    """Run the yardstick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("traces", nargs="?", type=Path, help="directory of spotset/1 sets")
    parser.add_argument("-o", "--out", type=Path, help="write all results as JSON")
    parser.add_argument("--part", choices=PARTS, default="whole")
    parser.add_argument("--cold", nargs="+", choices=COLD, default=list(COLD))
    parser.add_argument("--only", nargs="+", help="names, or beginnings of names, of policies")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--why", action="store_true", help="where missing node-seconds come from")
    parser.add_argument("--quick", action="store_true", help="one market, one policy: shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.cold, options.only = ["180"], [next(iter(OURS))]
    found, missing = scenarios(options.traces, options.part)
    if missing:
        print(f"sets not here, scenarios left out: {', '.join(missing)}")
    names = [BOUND, *standard(), *OURS]
    found = found[:1] if options.quick else found
    if options.only:
        names = [n for n in names if any(n.startswith(part) for part in options.only)]
    if BOUND in names:
        try:
            bound(found[0], timings("180", found[0]))
        except SolverMissing as error:
            print(f"no bound: {error}")
            names.remove(BOUND)
    work = [
        (n, c, s, seed) for n in names for c in options.cold for s in found for seed in range(options.seeds)
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(one, work))
    show(rows, names, options.cold)
    if options.why:
        show_why(rows)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
