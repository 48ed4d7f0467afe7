"""The picture of a cost report: money, dollars per million tokens and utilisation by day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.pictures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, new_figure, style, title
from orchestrator.views.cost import CostLineView, CostView
from orchestrator.words import instant, money, percent

BY: Final = ("day", "pool")
"""The dimensions of the report that is drawn."""

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, INK)
_MOST_LABELS = 14
_PANEL = 2.1  # inches


def draw(file: Path, view: CostView) -> None:
    """Draw a report by day and pool into a file. Raises PlotMissing, and OSError."""
    rows = {(row["group"]["day"] or "", row["group"]["pool"] or ""): row for row in view["rows"]}
    days, names = (list(dict.fromkeys(key[place] for key in sorted(rows))) for place in (0, 1))
    pools = [pool["pool"] for pool in view["pools"]]
    names.sort(key=lambda name: (name not in pools, name))
    figure = new_figure(3 * _PANEL + 1.0)
    usd, mtok, used = figure.subplots(3, 1, sharex=True)
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    _usd(usd, rows, days, colours)
    _mtok(mtok, rows, days, colours)
    _used(used, view, rows, days, colours)
    step = max(1, -(-len(days) // _MOST_LABELS))
    used.set_xticks(range(0, len(days), step), [day[5:] for day in days[::step]], fontsize=8)
    used.set_xlim(-0.6, max(len(days), 1) - 0.4)
    title(figure, _headline(view))
    figure.savefig(file)


Rows = Mapping[tuple[str, str], CostLineView]


def _headline(view: CostView) -> str:
    total = view["total"]
    spent = money(total["known_usd"]) + (" and an unknown sum" if total["spent_usd"] is None else "")
    saved = total["saved_share"]
    against = "" if saved is None else f", {percent(saved)} saved against on-demand"
    return f"{spent} from {instant(view['since'])[:10]} to {instant(view['until'])[:10]}{against}"


def _usd(axes: Any, rows: Rows, days: Sequence[str], colours: Mapping[str, str]) -> None:
    base = [0.0] * len(days)
    for name, colour in colours.items():
        heights = [rows[day, name]["known_usd"] if (day, name) in rows else 0.0 for day in days]
        axes.bar(range(len(days)), heights, bottom=base, color=colour, width=0.72, label=name)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    wanted = [_sum(rows, day, "on_demand_usd") for day in days]
    if any(wanted):
        places = [place for place, value in enumerate(wanted) if value is not None]
        at = [(place - 0.42, place + 0.42) for place in places]
        for (left, right), place in zip(at, places, strict=True):
            label = "wanted units on-demand" if place == places[0] else None
            axes.plot([left, right], [wanted[place]] * 2, color=GREY, linewidth=1.4, label=label)
    axes.yaxis.set_major_formatter(
        lambda value, _: f"${value:,.0f}" if value >= 10 or not value else f"${value:,.2f}"
    )
    _legend(axes)
    style(axes, "USD a day")


def _sum(rows: Rows, day: str, name: str) -> float | None:
    """A figure of a whole day; None where a part of it is not known."""
    values: list[Any] = [row[name] for (of, _), row in rows.items() if of == day]  # type: ignore[literal-required]
    return None if any(value is None for value in values) else sum(values)


def _mtok(axes: Any, rows: Rows, days: Sequence[str], colours: Mapping[str, str]) -> None:
    for name, colour in colours.items():
        own = [_figure(rows, day, name, "usd_per_mtok_people") for day in days]
        api = [_figure(rows, day, name, "api_usd_per_mtok") for day in days]
        _line(axes, own, colour, name)
        _line(axes, api, colour, f"{name}: its API" if any(v is not None for v in api) else None, dashed=True)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"${value:,.2f}")
    _legend(axes)
    style(axes, "USD per million tokens, people's work included")


def _used(axes: Any, view: CostView, rows: Rows, days: Sequence[str], colours: Mapping[str, str]) -> None:
    for pool in view["pools"]:
        name = pool["pool"]
        if name not in colours:
            continue
        _line(axes, [_figure(rows, day, name, "utilisation") for day in days], colours[name], name)
        even = pool["line"]["break_even_utilisation"]
        if even is not None and even <= 1.5:
            label = f"{name}: cheaper than its API above {percent(even)}"
            axes.axhline(even, color=colours[name], linewidth=1.0, linestyle=(0, (4, 2)), label=label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.0f}%")
    _legend(axes)
    style(axes, "Utilisation")


def _figure(rows: Rows, day: str, name: str, figure: str) -> float | None:
    row: Any = rows.get((day, name))
    value: float | None = None if row is None else row[figure]
    return value


def _line(
    axes: Any, values: Sequence[float | None], colour: str, label: str | None, *, dashed: bool = False
) -> None:
    """A line with a dot for each day; days of which it is not known leave a gap."""
    heights = [float("nan") if value is None else value for value in values]
    if any(value is not None for value in values):
        axes.plot(
            range(len(values)),
            heights,
            color=colour,
            label=label,
            linewidth=1.2 if dashed else 1.8,
            linestyle=(0, (3, 2)) if dashed else "-",
            marker=None if dashed and len(values) > 1 else "o",
            markersize=4,
        )


def _legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, labels, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=4, frameon=False,
            fontsize=8, handlelength=1.4, columnspacing=1.2, borderaxespad=0.2,
        )  # fmt: skip
