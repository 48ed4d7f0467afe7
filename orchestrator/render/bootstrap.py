"""What `orchestrator aws bootstrap` found and did, as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.render.parts import Look, text_of
from orchestrator.views.setup import BootstrapView, DifferenceView, PartView
from orchestrator.words import clean, plural

_MARK: Final = {
    "create": ("+", "green"),
    "update": ("~", "yellow"),
    "keep": ("=", "dim"),
    "refuse": ("!", "red"),
}


def plan(parts: Iterable[PartView], look: Look) -> str:
    """Every part, with what differs."""
    lines: list[RenderableType] = []
    region = ""
    for part in parts:
        if part["region"] != region:
            region = part["region"]
            lines.append(Text(region, style="bold"))
        mark, style = _MARK[part["verb"]]
        note = f": {part['note']}" if part["note"] else ""
        line = Text.assemble((f"{mark} ", style), (part["kind"], style), f" {part['name']}{note}")
        lines.append(Text("  ") + line)
        lines += [Text(f"      {line}") for d in part["differences"] for line in _lines(d)]
        lines += [
            Text(f"      kept: {clean(k['field'])}: {clean(k['value'])}", style="dim") for k in part["kept"]
        ]
    return text_of(Group(*lines), look)


def outcome(view: BootstrapView, missing: Mapping[str, Mapping[str, str | int]], table: str) -> str:
    """What was done and what to do next. `table`: the name of the regions' table in the file."""
    done = sum(part["done"] for part in view["parts"])
    lines = []
    if any(part["verb"] == "refuse" for part in view["parts"]):
        lines.append("Nothing is changed while a part is refused (!).")
    elif view["error"]:
        lines.append(f"{plural(done, 'part')} changed, then: {view['error']}")
        lines.append("What was made stays. Run the same command again: it goes on from there.")
    elif view["pending"]:
        lines.append("Next: the same command with --apply")
    else:
        lines.append(f"{plural(done, 'part')} changed." if done else "Nothing to change.")
    for region, keys in missing.items():
        lines.append(f"Write into the file:\n[{table}.{region}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _lines(difference: DifferenceView) -> list[str]:
    field, before, after = difference["field"], clean(difference["before"]), difference["after"]
    if "\n" in after:
        return [f"{field}:", *(f"  {clean(line)}" for line in after.splitlines())]
    if not before:
        return [f"{field}: {clean(after)}"] if after else []
    return [f"{field}: {before}", f"{' ' * len(field)}-> {clean(after) or 'none'}"]
