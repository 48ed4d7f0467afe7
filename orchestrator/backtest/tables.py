"""The tables of `orchestrator simulate` and `orchestrator trace`, as wide as the terminal allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.backtest.report import ready_text
from orchestrator.backtest.study import POOL
from orchestrator.render.parts import Look, table_of, text_of
from orchestrator.views.simulate import MarketView, MeanView, ResultView, SetView, SetZoneView, SimulateView
from orchestrator.words import age, money, percent, plural

_GAP = 2  # columns between two of a table


@dataclass(frozen=True, slots=True)
class _Column:
    """A column with all its cells. `rank`: what the width does not allow goes by it, the highest first."""

    header: str
    rank: int
    cells: Sequence[str]
    right: bool = True

    @property
    def width(self) -> int:
        """Characters that it takes, with the gap after it."""
        return max(len(self.header), *(len(cell) for cell in self.cells)) + _GAP


def simulation(view: SimulateView, look: Look) -> str:
    """The whole answer of `orchestrator simulate`."""
    parts = [_market(view, market, look) for market in view["markets"]]
    if view["mean"]:
        parts.append(_means(view, look))
    notes = [Text(f"* {note}", style="dim") for note in view["notes"]]
    return text_of(Group(*parts, *notes), look)


def sets(views: Sequence[SetView], look: Look) -> str:
    """What is in sets, a table each."""
    return text_of(Group(*(_set(view, look) for view in views)), look)


def _market(view: SimulateView, market: MarketView, look: Look) -> Group:
    starts = f"{view['spot_start_s']:g} s"
    if view["on_demand_start_s"] != view["spot_start_s"]:
        starts += f" (on-demand {view['on_demand_start_s']:g} s)"
    head = (
        f"{view['pool']} on {market['name']}: {plural(view['replicas'], 'node')} wanted, "
        f"{market['days']:.1f} days, {plural(len(market['zones']), 'zone')}, start {starts}, "
        f"notice {view['notice_s']:g} s"
    )
    results = market["results"]
    bold = [result["kind"] == "config" for result in results]
    table = _table(_result_columns(results, market["best_baseline"]), bold, look)
    said = [Text(sentence) for sentence in market["summary"]]
    if market["best_baseline"]:
        said.insert(0, Text("* the cheapest baseline that has as much ready as the pool", style="dim"))
    return Group(Text(head, style="bold"), table, *said, Text())


def _result_columns(results: Sequence[ResultView], best: str | None) -> list[_Column]:
    return [
        _Column("POLICY", 0, [r["policy"] + ("*" if r["policy"] == best else "") for r in results], False),
        _Column("COST", 1, [money(r["cost_usd"]) for r in results]),
        _Column("PER HOUR", 8, [money(r["cost_usd_per_hour"]) for r in results]),
        _Column("OF ON-DEMAND", 2, [_share(r["cost_ratio"]) for r in results]),
        _Column("READY", 3, [_ready(r["capacity_availability"], 1.0) for r in results]),
        _Column("SHORT", 9, [_count(r["shortfalls"], "x") for r in results]),
        _Column("LONGEST", 5, [_age(r["worst_shortfall_s"]) for r in results]),
        _Column("NODE-HOURS", 4, [_tenths(r["shortfall_node_hours"]) for r in results]),
        _Column("ON SPOT", 6, [percent(r["mean_spot_share"]) for r in results]),
        _Column("LOST", 7, [_count(r["preemptions"]) for r in results]),
        _Column("LAUNCHED", 10, [_launches(r) for r in results], False),
    ]


def _means(view: SimulateView, look: Look) -> Group:
    means = view["mean"]
    head = f"All {len(view['markets'])} markets: means; node-hours, nodes lost and money are sums"
    table = _table(_mean_columns(means), [mean["policy"] == POOL for mean in means], look)
    return Group(Text(head, style="bold"), table, Text())


def _mean_columns(means: Sequence[MeanView]) -> list[_Column]:
    places = [m["lowest_market"] if (m["lowest_capacity_availability"] or 1.0) < 1.0 else None for m in means]
    return [
        _Column("POLICY", 0, [m["policy"] for m in means], False),
        _Column("OF ON-DEMAND", 1, [_share(m["cost_ratio"]) for m in means]),
        _Column("READY", 2, [_ready(m["capacity_availability"], 1.0) for m in means]),
        _Column("LOWEST", 3, [_ready(m["lowest_capacity_availability"]) for m in means]),
        _Column("IN", 5, [place or "-" for place in places], False),
        _Column("LONGEST", 6, [_age(m["worst_shortfall_s"]) for m in means]),
        _Column("NODE-HOURS", 4, [_tenths(m["shortfall_node_hours"]) for m in means]),
        _Column("ON SPOT", 7, [percent(m["mean_spot_share"]) for m in means]),
        _Column("LOST", 8, [_count(m["preemptions"]) for m in means]),
        _Column("COST", 9, [money(m["cost_usd"]) for m in means]),
    ]


def _set(view: SetView, look: Look) -> Group:
    head = (
        f"{view['name']}: {view['days']:.1f} days in ticks of {view['gap_seconds']:g} s, "
        f"{plural(len(view['zones']), 'zone')}"
    )
    if view["start_time"]:
        head += f", from {view['start_time']}"
    zones = view["zones"]
    columns = [
        _Column("ZONE", 0, [zone["zone"] for zone in zones], False),
        _Column("REGION", 8, [zone["region"] for zone in zones], False),
        _Column("AVAILABLE", 1, [percent(zone["available_share"]) for zone in zones]),
        _Column("NODES", 5, [f"{zone['mean_nodes']:.1f}" for zone in zones]),
        _Column("MOST", 6, [str(zone["most_nodes"]) for zone in zones]),
        _Column("LOSSES/DAY", 2, [f"{zone['losses_per_day']:.1f}" for zone in zones]),
        _Column("DIPS/DAY", 7, [f"{zone['dips_per_day']:.1f}" for zone in zones]),
        _Column("SPOT $/H", 3, [_prices(zone) for zone in zones]),
        _Column("ON-DEMAND $/H", 4, [f"{zone['on_demand_price']:.2f}" for zone in zones]),
    ]
    notes = [Text(note, style="dim") for note in view["notes"]]
    return Group(Text(head, style="bold"), _table(columns, [False] * len(zones), look), *notes, Text())


def _table(columns: Sequence[_Column], bold: Sequence[bool], look: Look) -> Table:
    """A table of the columns that fit; the first one always does."""
    left, kept = look.width + _GAP, list[_Column]()
    for column in sorted(columns, key=lambda column: column.rank):
        left -= column.width
        if left < 0 and kept:
            break
        kept.append(column)
    shown = [column for column in columns if column in kept]
    table = table_of(*(c.header for c in shown), right={c.header for c in shown if c.right})
    for number, strong in enumerate(bold):
        table.add_row(*(column.cells[number] for column in shown), style="bold" if strong else "")
    return table


# -- cells -----------------------------------------------------------------------------------------


def _share(share: float) -> str:
    return f"{100 * share:.1f}%"


def _ready(share: float | None, default: float | None = None) -> str:
    found = default if share is None else share
    return "-" if found is None else ready_text(found)


def _count(count: int | None, unit: str = "") -> str:
    return "-" if count is None else f"{count}{unit}"


def _tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _age(seconds: float | None) -> str:
    return age(seconds) if seconds else "-"


def _launches(result: ResultView) -> str:
    spot = result["spot_launches"]
    return "-" if spot is None else f"{spot} + {result['on_demand_launches']}"


def _prices(zone: SetZoneView) -> str:
    low, high = zone["lowest_spot_price"], zone["highest_spot_price"]
    return f"{low:.2f}" if low == high else f"{low:.2f}-{high:.2f}"
