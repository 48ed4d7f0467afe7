"""Starts of nodes in parts, for a terminal. A daemon of an older version reports none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.render.parts import Look, table_of, text_of
from orchestrator.words import clean, clock_time, instant, plural, short_time

if TYPE_CHECKING:
    from orchestrator.views.api import HistoryView
    from orchestrator.views.starts import PastStartView, StartKindView


def starts(view: HistoryView, look: Look) -> str:
    """Each start with its parts, then the starts of each kind summed up, and what shortens them."""
    begun = view.get("starts", [])
    if not begun:
        return "No start was measured yet.\n"
    names = [part["part"] for kind in view["start_kinds"] for part in kind["parts"]]
    names = sorted(set(names), key=names.index)
    pools = ["POOL"] if any("pool" in start for start in begun) else []
    columns = [name.upper() for name in names]
    table = table_of("BEGAN", *pools, "NODE", "TYPE", "START", "TOOK", *columns, right=["TOOK", *columns])
    for start in begun:
        table.add_row(
            instant(start["began_at"]) if look.wide else clock_time(start["began_at"]),
            *(clean(start.get("pool", "-")) for _ in pools),
            clean(start["node"]),
            clean(start["instance_type"]),
            _what(standby=start["standby"]),
            short_time(start["seconds"]),
            *(short_time(start["parts"][name]) if name in start["parts"] else "-" for name in names),
        )
    parts: list[RenderableType] = [table]
    for kind in view["start_kinds"]:
        parts += [Text(), Text(summary(kind)), *_kind(kind)]
    return text_of(Group(*parts), look)


def summary(kind: StartKindView) -> str:
    """The starts of one kind in a line."""
    of = f" of pool {clean(kind['pool'])}" if "pool" in kind else ""
    return (
        f"{_what(standby=kind['standby'])} of {clean(kind['instance_type'])}{of}: "
        f"{plural(kind['starts'], 'start')}, median {short_time(kind['median_s'])}, "
        f"p90 {short_time(kind['p90_s'])}; {clean(kind['advice'])}"
    )


def start_line(start: PastStartView) -> str:
    """The start of one node in a line."""
    parts = ", ".join(f"{clean(part)} {short_time(took)}" for part, took in start["parts"].items())
    return f"Its {_what(standby=start['standby'])} took {short_time(start['seconds'])}: {parts}."


def _kind(kind: StartKindView) -> list[RenderableType]:
    table = table_of("PART", "KNOWN", "MEDIAN", "P90", "SHARE", right=["KNOWN", "MEDIAN", "P90", "SHARE"])
    for part in kind["parts"]:
        table.add_row(
            clean(part["part"]),
            f"{part['starts']} of {kind['starts']}",
            short_time(part["median_s"]),
            short_time(part["p90_s"]),
            f"{part['share'] * 100:.0f} %",
        )
    return [table]


def _what(*, standby: bool) -> str:
    return "standby" if standby else "launch"
