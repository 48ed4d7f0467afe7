"""The cost report as text for a terminal, and as CSV."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.render.parts import Look, table_of, text_of
from orchestrator.words import clean, instant, money, percent, plural, small_money
from policies.self_or_api import count_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.views.cost import (
        CostEstimateView,
        CostLineView,
        CostView,
        MachineCostView,
        RouteCostView,
    )

_ROOMY: Final = 100  # columns from which prompts and answers are separate
_NAME: Final = 12  # columns that a name gets at least
_GAP: Final = 2
_FIRST_TO_GO: Final = ("IN", "OUT", "EVEN AT", "+PEOPLE", "SAVED", "API", "USED", "TOKENS", "$/MTOK")
"""Columns of figures that a narrow terminal goes without, one after the other."""

_EMPTY: Final = {"key": "(no key)", "adapter": "(none)", "route": "(no route)"}
"""What an empty value of a dimension means."""

_FORMULA: Final = "=+-@\t\r"
"""What a formula begins with (OWASP, "CSV Injection")."""

_Cell = tuple[str, "Callable[[CostLineView], str]"]


def report(view: CostView, look: Look) -> str:
    """The table, what it means for each pool and route, the month, and what is missing."""
    parts: list[RenderableType] = [
        Text(f"Costs from {instant(view['since'])} to {instant(view['until'])}", style="bold"),
        Text(),
    ]
    parts += [_table(view, look), Text()] if view["rows"] else []
    parts += [
        _advice(f"{pool['pool']}: {pool['advice']}", pool["cheaper"] == "api") for pool in view["pools"]
    ]
    parts += [_advice(f"route {route['route']}: {route['advice']}", _pays(route)) for route in view["routes"]]
    parts.append(Text(clean(view["forecast"]["text"]) + "."))
    parts += [Text(f"* {clean(note)}", style="dim") for note in view["notes"]]
    return text_of(Group(*parts), look)


def _pays(route: RouteCostView) -> bool:
    from_here = route["pays_from_tokens_per_month"]
    return from_here is not None and route["tokens_per_month"] > from_here


def _advice(text: str, notable: bool) -> Text:
    return Text(clean(text), style="yellow" if notable else "")


def _table(view: CostView, look: Look) -> RenderableType:
    cells = _NARROW if look.width < _ROOMY else _USUAL + _WIDE if look.wide else _USUAL
    heads = [name.upper() for name in view["by"]]
    if not look.wide:
        cells = _fitting(view, cells, look.width - sum(_name_width(view, name) for name in view["by"]))
    table = table_of(*heads, *(head for head, _ in cells), right=[head for head, _ in cells], wrapping=heads)
    for row in view["rows"]:
        table.add_row(*_names(row, view["by"]), *(show(row) for _, show in cells))
    if heads and len(view["rows"]) > 1:
        total = ["total", *("" for _ in heads[1:])]
        table.add_row(*total, *(show(view["total"]) for _, show in cells), style="bold")
    return table


def _fitting(view: CostView, cells: tuple[_Cell, ...], room: int) -> tuple[_Cell, ...]:
    """The columns of figures that fit: one that is cut would be another figure."""
    lines = [*view["rows"], view["total"]]
    wide = {head: _GAP + max(len(head), *(len(show(line)) for line in lines)) for head, show in cells}
    for goes in _FIRST_TO_GO:
        if sum(wide.values()) <= room:
            break
        wide.pop(goes, None)
    return tuple(cell for cell in cells if cell[0] in wide)


def _name_width(view: CostView, dimension: str) -> int:
    """What a column of names needs, which may break over several lines."""
    names = [_name(row, dimension) for row in view["rows"]]
    return min(max(map(len, [dimension, *names])), _NAME) + _GAP


def _names(row: CostLineView, by: Sequence[str]) -> list[str]:
    """The values of a group; what does not apply is a dash."""
    return [_name(row, name) for name in by]


def _name(row: CostLineView, dimension: str) -> str:
    value = row["group"][dimension]
    if value is not None:
        return clean(value) or _EMPTY.get(dimension, "-")
    if dimension not in ("key", "route"):
        return "-"
    return "?" if row["requests"] is None else "(idle)"  # a day on which nobody asked


def _money(value: float | None, known: float | None = None) -> str:
    """USD; what is not known is a question mark, beside what is."""
    if value is None:
        return "?" if not known else f"{money(known)} + ?"
    return money(value)


def _fine(value: float | None) -> str:
    """USD for a million tokens: small ones need more than cents."""
    return "-" if value is None else small_money(value)


def _count(*tokens: int | None) -> str:
    """Tokens in few characters, all kinds together."""
    known = [count for count in tokens if count is not None]
    return count_words(sum(known)) if len(known) == len(tokens) else "?"


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


_USUAL: Final[tuple[_Cell, ...]] = (
    ("SPENT", lambda line: _money(line["spent_usd"], line["known_usd"])),
    ("SAVED", lambda line: _share(line["saved_share"])),
    ("IN", lambda line: _count(line["tokens_in"])),
    ("OUT", lambda line: _count(line["tokens_out"])),
    ("USED", lambda line: _share(line["utilisation"])),
    ("$/MTOK", lambda line: _fine(line["usd_per_mtok"])),
    ("+PEOPLE", lambda line: _fine(line["usd_per_mtok_people"])),
    ("API", lambda line: _fine(line["api_usd_per_mtok"])),
    ("EVEN AT", lambda line: _share(line["break_even_utilisation"])),
)
_NARROW: Final[tuple[_Cell, ...]] = (
    *_USUAL[:2],
    ("TOKENS", lambda line: _count(line["tokens_in"], line["tokens_out"])),
    *_USUAL[4:-1],
)
_WIDE: Final[tuple[_Cell, ...]] = (
    ("$/H", lambda line: _money(line["usd_per_hour"])),
    ("MACHINES", lambda line: _money(line["machines_usd"])),
    ("PROVIDERS", lambda line: _money(line["providers_usd"])),
    ("PEOPLE", lambda line: _money(line["people_usd"])),
    ("ON-DEMAND", lambda line: _money(line["on_demand_usd"])),
    ("API WOULD", lambda line: _money(line["api_usd"])),
    ("NODE-HOURS", lambda line: f"{line['node_hours']:.1f}"),
    ("REQUESTS", lambda line: "?" if line["requests"] is None else f"{line['requests']:,}"),
    ("CACHED", lambda line: _count(line["tokens_cached"])),
)


def as_csv(view: CostView) -> str:
    """The rows as CSV with a header: dimensions, then every figure of a line; unknown ones are empty."""
    buffer = io.StringIO()
    names = [name for name in view["total"] if name != "group"]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*view["by"], *names])
    for row in view["rows"] if view["by"] else [view["total"]]:
        figures = dict(row)
        group = (_harmless(row["group"][name]) for name in view["by"])
        writer.writerow([*group, *(figures[name] for name in names)])
    return buffer.getvalue()


def _harmless(name: str | None) -> str | None:
    """A name that no spreadsheet takes for a formula: names of models come from elsewhere."""
    return f"'{name}" if name and name[0] in _FORMULA else name


# -- before anything runs ------------------------------------------------------------------------------


def estimate(view: CostEstimateView, look: Look) -> str:
    """What a traffic costs at each API, and what it would on each kind of machine."""
    whole, cached = view["tokens_per_month"], percent(view["cached_share"])
    days = "" if view["days"] is None else f", at the pace of {plural(round(view['days']), 'day')}"
    parts: list[RenderableType] = [
        Text(clean(f"{count_words(whole)} tokens a month{days} ({view['source']})"), style="bold"),
        Text(
            f"{count_words(view['tokens_in_per_month'])} in prompts, {cached} of them cached, "
            f"{count_words(view['tokens_out_per_month'])} in answers; the busiest hour has "
            f"{view['peak']:.1f} times the mean"
        ),
        Text(),
    ]
    if view["apis"]:
        table = table_of("API", "A MONTH", "$/MTOK", right=["A MONTH", "$/MTOK"])
        for api in view["apis"]:
            table.add_row(clean(api["api"]), _money(api["usd_per_month"]), _fine(api["usd_per_mtok"]))
        parts += [table, Text()]
    if view["machines"]:
        against = view["apis"][0]["api"] if len(view["apis"]) > 1 else ""
        parts += [Text(clean(f"Held against {against}:"))] if against else []
        parts += [_machines(view["machines"]), Text()]
        parts += [_advice(one["advice"], one["cheaper"] == "pool") for one in view["machines"]]
    parts += [Text(f"* {clean(note)}", style="dim") for note in view["notes"]]
    return text_of(Group(*parts), look)


def _machines(machines: Sequence[MachineCostView]) -> RenderableType:
    right = ("$/H", "TOKENS/S", "UNITS", "A MONTH", "$/MTOK", "USED", "EVEN AT", "PAYS FROM")
    table = table_of("MACHINE", *right, right=right)
    for one in machines:
        rate, pays = one["tokens_per_second"], one["pays_from_tokens_per_month"]
        table.add_row(
            clean(one["machine"]),
            _fine(one["usd_per_hour"]),
            "?" if rate is None else f"{rate:,.0f}",
            "?" if one["units"] is None else f"{one['units']:,}",
            _money(one["usd_per_month"]),
            _fine(one["usd_per_mtok"]),
            _share(one["utilisation"]),
            _share(one["break_even_utilisation"]),
            "-" if pays is None else f"{count_words(pays)}/month",
        )
    return table
