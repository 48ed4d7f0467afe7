"""The picture of a simulation: ready nodes, shortfalls, money and the market over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from textwrap import wrap
from typing import Any

from orchestrator.backtest.report import best_baseline, first_of, ready_text
from orchestrator.backtest.scenario import Scenario
from orchestrator.backtest.study import POOL, Result
from orchestrator.backtest.timeline import Timeline
from orchestrator.pictures import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, new_figure, style, title
from orchestrator.words import money, percent

_MOST_ZONES = 20
_DAY = 86400.0


def draw(file: Path, scenario: Scenario, results: Sequence[Result], begin: str | None) -> None:
    """Draw the pool (or the first policy that ran) into a file. Raises PlotMissing and OSError.

    `begin` is the date at which the scenario begins, if it is known.
    """
    mine = first_of(results)
    if mine is None or mine.timeline is None:
        return
    strips = min(_MOST_ZONES, len(scenario.tapes))
    heights = [2.6, 2.2, 0.35 + 0.17 * strips]
    figure = new_figure(sum(heights) + 1.5)
    nodes, cost, market = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    at = _axis(begin)
    _nodes(nodes, scenario, mine.timeline, at)
    _shortfalls(nodes, scenario, mine, at)
    _cost(cost, results, mine, at)
    _market(market, scenario, at)
    _dates(market, scenario, begin, at)
    name = "" if mine.row.name == POOL else f" ({mine.row.name})"
    title(
        figure,
        f"{mine.row.pool.name}{name} on {scenario.name}: {percent(mine.cost_ratio)} of the cost of "
        f"on-demand, {ready_text(mine.availability)} of the capacity ready",
    )
    figure.savefig(file)


# -- panels ----------------------------------------------------------------------------------------


def _nodes(axes: Any, scenario: Scenario, line: Timeline, at: Callable[[float], Any]) -> None:
    wanted = scenario.replicas
    times = [at(time) for time in line.times]
    on_demand = [min(count, wanted) for count in line.on_demand]
    useful = [min(wanted, s + o) for s, o in zip(line.spot, line.on_demand, strict=True)]
    total = [s + o for s, o in zip(line.spot, line.on_demand, strict=True)]
    areas = (
        ([0] * len(times), on_demand, ORANGE, "on-demand"),
        (on_demand, useful, BLUE, "spot"),
        (useful, total, PALE, "surplus"),
    )
    for low, high, colour, label in areas:
        axes.fill_between(times, low, high, step="post", color=colour, linewidth=0, label=label)
    axes.axhline(wanted, color=INK, linewidth=1.2, label="wanted")
    axes.set_ylim(0, max([wanted, *total]) * 1.12 + 0.6)
    axes.yaxis.get_major_locator().set_params(integer=True)
    style(axes, "Ready nodes")


def _shortfalls(axes: Any, scenario: Scenario, mine: Result, at: Callable[[float], Any]) -> None:
    found, wanted = mine.shortfalls, scenario.replicas
    for gap in found:
        left, right = at(gap.begin), at(gap.begin + gap.seconds)
        # An edge, so that a minute is still seen in a picture of a month.
        axes.fill_between([left, right], wanted - gap.most_missing, wanted, color=RED, linewidth=0.9)
    if found:
        top = axes.get_ylim()[1]
        axes.scatter(
            [at(gap.begin) for gap in found],
            [top * 0.965] * len(found),
            s=[10 + 26 * gap.most_missing / wanted for gap in found],
            marker="v",
            color=RED,
            linewidths=0,
            label=f"short: {len(found)}x, {sum(g.node_hours for g in found):.1f} node-hours (drawn wider)",
            zorder=5,
        )
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.14, 0.99),
        ncols=5,
        frameon=False,
        fontsize=8.5,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def _cost(axes: Any, results: Sequence[Result], mine: Result, at: Callable[[float], Any]) -> None:
    peer = _peer(results, mine)
    line = mine.timeline
    if line is None:
        return
    ends = [(mine.on_demand_dollars, f"{money(mine.on_demand_dollars)} all on-demand", GREY)]
    first, last = at(line.times[0]), at(line.times[-1])
    axes.plot([first, last], [0, mine.on_demand_dollars], color=GREY, linewidth=1.4, linestyle=(0, (4, 2)))
    if peer is not None and peer.timeline is not None:
        axes.plot([at(t) for t in peer.timeline.times], peer.timeline.dollars, color=GREEN, linewidth=1.4)
        ends.append((peer.dollars, _label(peer, peer.row.name), GREEN))
    axes.plot([at(time) for time in line.times], line.dollars, color=INK, linewidth=2.0)
    own = "this pool" if mine.row.name == POOL else mine.row.name
    ends.append((mine.dollars, _label(mine, own), INK))
    least = next((r for r in results if r.score is None), None)
    if least is not None:
        axes.plot([first, last], [0, least.dollars], color=GREY, linewidth=1.0, linestyle=(0, (1, 2)))
        ends.append((least.dollars, f"{money(least.dollars)} if the future were known", GREY))
    axes.set_ylim(0, max(value for value, _, _ in ends) * 1.1)
    axes.yaxis.set_major_formatter(lambda value, _: f"${value:,.0f}")
    _end_labels(axes, ends, last)
    style(axes, "Cost so far, USD")


def _label(result: Result, name: str) -> str:
    lines = [f"{money(result.dollars)} {ready_text(result.availability)} ready", *wrap(name, 26)]
    return "\n".join(lines)


def _end_labels(axes: Any, ends: Sequence[tuple[float, str, str]], last: Any) -> None:
    """Names and sums at the right end of the lines, pushed apart where they would overlap."""
    top = axes.get_ylim()[1]
    placed: list[float] = []
    for value, name, colour in sorted(ends, key=lambda end: end[0]):
        room = 0.08 * (1 + name.count("\n"))
        low = value / top - room / 2
        middle = max(low, placed[-1] if placed else 0.0) + room / 2
        placed.append(middle + room / 2 + 0.02)
        axes.annotate(
            name,
            (last, middle * top),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
        )


def _market(axes: Any, scenario: Scenario, at: Callable[[float], Any]) -> None:
    """A strip for each zone: the darker, the more of the wanted nodes it could hold."""
    tapes = scenario.tapes[:_MOST_ZONES]
    for row, tape in enumerate(tapes):
        edges = [*tape.times, scenario.seconds]
        shades: dict[float, list[tuple[Any, Any]]] = {}
        for place, count in enumerate(tape.capacities):
            share = min(count, scenario.replicas) / scenario.replicas
            if share > 0:
                left, right = at(edges[place]), at(edges[place + 1])
                shades.setdefault(round(share, 2), []).append((left, right - left))
        for share, spans in shades.items():
            axes.broken_barh(
                spans, (row + 0.12, 0.76), facecolors=BLUE, alpha=0.15 + 0.85 * share, linewidth=0
            )
    axes.set_ylim(len(tapes), 0)
    axes.set_yticks([row + 0.5 for row in range(len(tapes))], [tape.zone for tape in tapes], fontsize=8)
    more = len(scenario.tapes) - len(tapes)
    style(axes, "Spot to be had" + (f" (first {len(tapes)} of {len(scenario.tapes)} zones)" if more else ""))
    axes.text(
        1.0,
        1.02,
        f"white: none, full colour: all {scenario.replicas}",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=GREY,
    )
    axes.grid(visible=False)


def _peer(results: Sequence[Result], mine: Result) -> Result | None:
    """The baseline to draw: the best one, or the most available other one where that is all on-demand."""
    best = best_baseline(results)
    others = [
        r for r in results if r.row.kind == "baseline" and r is not mine and r.row.name != "all on-demand"
    ]
    if best in others:
        return best
    return max(others, key=lambda r: (r.availability, -r.dollars), default=None)


# -- axes ------------------------------------------------------------------------------------------


def _axis(begin: str | None) -> Callable[[float], Any]:
    """From seconds of the scenario to where they are on the x axis: dates, or days."""
    if begin is None:
        return lambda seconds: seconds / _DAY
    first = float(import_module("matplotlib.dates").date2num(datetime.fromisoformat(begin)))
    return lambda seconds: first + seconds / _DAY


def _dates(axes: Any, scenario: Scenario, begin: str | None, at: Callable[[float], Any]) -> None:
    axes.set_xlim(at(0.0), at(scenario.seconds))
    if begin is None:
        axes.set_xlabel("days", fontsize=9, color=INK)
        return
    dates = import_module("matplotlib.dates")
    zone = datetime.fromisoformat(begin).tzinfo
    locator = dates.AutoDateLocator(minticks=4, maxticks=12, tz=zone)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=zone))
