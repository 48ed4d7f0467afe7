"""Tables are as wide as the terminal allows, and lose what matters least first."""

import pytest

from orchestrator.backtest import markets, tables
from orchestrator.render.parts import Look

SET = markets.description(markets.synthetic(4, 1.0))

FIGURES = {
    "cost_ratio": 0.5,
    "capacity_availability": 0.99912,
    "lowest_capacity_availability": 0.995,
    "lowest_market": "second",
    "time_availability": 0.99,
    "mean_spot_share": 0.6,
    "preemptions": 12,
    "spot_launches": 14,
    "on_demand_launches": 3,
    "worst_shortfall_s": 125.0,
    "shortfall_node_hours": 1.26,
    "shortfalls": 3,
    "cost_usd": 1234.5,
    "cost_usd_per_hour": 12.3,
}
NOT_TOLD = dict.fromkeys(
    name for name in FIGURES if name not in ("cost_ratio", "mean_spot_share", "cost_usd", "cost_usd_per_hour")
)


def result(policy, kind, **changes):
    return {"policy": policy, "kind": kind} | FIGURES | changes


def market(name):
    results = [
        result("pool", "config"),
        result("all on-demand", "baseline", cost_ratio=1.0, capacity_availability=1.0),
        result("omniscient bound", "bound", **NOT_TOLD),
    ]
    return {
        "name": name,
        "days": 2.0,
        "zones": ["a", "b"],
        "best_baseline": "all on-demand",
        "results": results,
        "summary": ["It would have cost $1,234.50."],
    }


VIEW = {
    "pool": "llama",
    "replicas": 4,
    "spot_start_s": 600.0,
    "on_demand_start_s": 90.0,
    "notice_s": 30.0,
    "markets": [market("first"), market("second")],
    "mean": [
        result("pool", "config"),
        result("all on-demand", "baseline", lowest_capacity_availability=1.0),
        result("omniscient bound", "bound", **NOT_TOLD),
    ],
    "notes": ["No requests are played."],
}


def test_everything_where_there_is_room():
    lines = tables.simulation(VIEW, Look(width=200)).splitlines()
    assert lines[:6] == [
        "llama on first: 4 nodes wanted, 2.0 days, 2 zones, start 600 s (on-demand 90 s), notice 30 s",
        "POLICY                 COST  PER HOUR  OF ON-DEMAND     READY  SHORT  LONGEST  NODE-HOURS  ON SPOT  "
        "LOST  LAUNCHED",
        "pool              $1,234.50    $12.30         50.0%   99.912%     3x     2m5s         1.3      60%  "
        "  12  14 + 3",
        "all on-demand*    $1,234.50    $12.30        100.0%  100.000%     3x     2m5s         1.3      60%  "
        "  12  14 + 3",
        "omniscient bound  $1,234.50    $12.30         50.0%  100.000%      -        -           -      60%  "
        "   -  -",
        "* the cheapest baseline that has as much ready as the pool",
    ]
    means = lines[lines.index("All 2 markets: means; node-hours, nodes lost and money are sums") + 1 :]
    assert means[1].split() == [
        *("pool", "50.0%", "99.912%", "99.500%", "second", "2m5s", "1.3", "60%", "12", "$1,234.50")
    ]
    assert means[2].split()[4:6] == ["100.000%", "-"]  # who is always ready has no worst place
    assert lines[-1] == "* No requests are played."


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_no_line_is_longer_than_the_terminal_and_no_cell_is_cut(width):
    for text in (tables.simulation(VIEW, Look(width=width)), tables.sets([SET], Look(width=width))):
        assert max(len(line) for line in text.splitlines()) <= width
    wide = tables.simulation(VIEW, Look(width=200)).split()
    narrow = tables.simulation(VIEW, Look(width=width)).split()
    assert set(narrow) <= set(wide)
    assert "99.912%" in narrow or width < 60


def test_a_set_by_zone():
    lines = tables.sets([SET], Look(width=200)).splitlines()
    assert lines[0] == "synthetic-4: 1.0 days in ticks of 300 s, 6 zones"
    assert lines[1].split()[:4] == ["ZONE", "REGION", "AVAILABLE", "NODES"]
    assert [line.split()[0] for line in lines[2:8]] == [
        "syn-1a",
        "syn-1b",
        "syn-1c",
        "syn-2a",
        "syn-2b",
        "syn-2c",
    ]
    assert "kind: synthetic" in lines
    assert tables.sets([SET | {"start_time": "2023-02-15"}], Look(width=200)).startswith(
        f"{lines[0]}, from 2023-02-15\n"
    )
