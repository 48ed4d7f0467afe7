"""What `orchestrator doctor` shows."""

from __future__ import annotations

from collections import Counter
from typing import Final

from rich.console import Group
from rich.text import Text

from orchestrator.render.parts import Look, table_of, text_of
from orchestrator.views.setup import DoctorView
from orchestrator.words import clean, plural

_STYLE: Final = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def doctor(view: DoctorView, look: Look) -> str:
    """One line a finding with what to do below it, then how many of each there are."""
    table = table_of("", "CHECK", "FINDING", wrapping=("FINDING",))
    for finding in view["findings"]:
        state = finding["state"]
        text = clean(finding["text"])
        if finding["subject"]:
            text = f"{clean(finding['subject'])}: {text}"
        table.add_row(Text(state, _STYLE[state]), f"{finding['group']}/{finding['check']}", text)
        if finding["advice"]:
            table.add_row("", "", Text(f"-> {clean(finding['advice'])}", "bold" if state == "fail" else ""))
    return text_of(Group(table, Text(""), Text(_summary(view))), look)


def _summary(view: DoctorView) -> str:
    counts = Counter(finding["state"] for finding in view["findings"])
    parts = [f"{counts['ok']} ok"]
    parts += [plural(counts["warn"], "warning")] if counts["warn"] else []
    parts += [plural(counts["fail"], "failure")] if counts["fail"] else []
    parts += [f"{counts['skipped']} skipped"] if counts["skipped"] else []
    return f"{', '.join(parts)}.{_untried(view)}"


def _untried(view: DoctorView) -> str:
    """That nobody saw a node of the pool, where nobody did: what is read of an account starts no engine."""
    for finding in view["findings"]:
        name = finding["check"].partition(" ")[0]
        if (finding["group"], name, finding["state"]) == ("launch", "node", "skipped"):
            text = clean(finding["text"])
            return f" {text[:1].upper()}{text[1:]}: {clean(finding['advice'])}."
    return ""
