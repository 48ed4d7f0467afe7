"""What a run found, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from mutants.groups import GROUPS, group_of
from mutants.operators import OPERATORS
from mutants.run import Found, Tried
from mutants.source import Mutant


def difference(mutant: Mutant) -> str:
    """The change on one line: `if [-a-]{+b+}:`, whole words at a time."""
    before, after = mutant.before.split(" "), mutant.after.split(" ")
    head = next((n for n, (x, y) in enumerate(zip(before, after, strict=False)) if x != y), None)
    if head is None:
        head = min(len(before), len(after))
    rest = min(len(before), len(after)) - head
    pairs = zip(reversed(before), reversed(after), strict=False)
    tail = min(rest, next((n for n, (x, y) in enumerate(pairs) if x != y), rest))
    old, new = (" ".join(words[head : len(words) - tail]) for words in (before, after))
    changed = (f"[-{old}-]" if old else "") + (f"{{+{new}+}}" if new else "")
    return " ".join(filter(None, [*before[:head], changed, *before[len(before) - tail :]]))


def _table(
    found: Found, names: Iterator[str] | list[str], of: Callable[[Tried], str]
) -> dict[str, dict[str, Any]]:
    table = {}
    for name in names:
        own = [t for t in found.counted if of(t) == name]
        if own:
            killed = sum(t.killed for t in own)
            table[name] = {"mutants": len(own), "killed": killed, "score": round(killed / len(own), 4)}
    return table


def as_json(found: Found) -> str:
    """Everything, as one object."""
    whole: dict[str, Any] = {
        "seed": found.asked.seed,
        "asked": found.asked.count,
        "mutants": len(found.counted),
        "killed": sum(t.killed for t in found.counted),
        "score": round(found.score, 4),
        "timeouts": sum(t.ended == "timeout" for t in found.counted),
        "uncovered": sum(t.ended == "uncovered" for t in found.counted),
        "void": sum(t.ended == "void" for t in found.tried),
        "equivalent": len(found.left_out),
        "seconds": round(found.seconds, 1),
        "map_seconds": round(found.mapped, 1),
        "groups": _table(found, list(GROUPS), lambda t: group_of(t.mutant.file)),
        "operators": _table(found, list(OPERATORS), lambda t: t.mutant.operator),
        "survivors": [_entry(t) for t in found.counted if not t.killed],
        "tried": [_entry(t) for t in found.tried],
    }
    return json.dumps(whole, indent=1)


def _entry(tried: Tried) -> dict[str, Any]:
    mutant = tried.mutant
    return {
        "file": mutant.file,
        "line": mutant.line,
        "function": mutant.function,
        "operator": mutant.operator,
        "before": mutant.before,
        "after": mutant.after,
        "ended": tried.ended,
        "tests": tried.tests,
        "test": tried.test,
    }


def as_text(found: Found) -> str:
    """Tables by group and by operator, and the survivors."""
    facts = json.loads(as_json(found))
    lines = [f"{'':12}{'mutants':>8}{'killed':>8}{'score':>8}"]
    for table in ("groups", "operators"):
        lines += [
            f"{name:12}{row['mutants']:8}{row['killed']:8}{row['score']:8.0%}"
            for name, row in facts[table].items()
        ]
        lines.append("")
    survivors = sorted(
        (t for t in found.counted if not t.killed), key=lambda t: (t.mutant.file, t.mutant.line)
    )
    for tried in survivors:
        why = "no quick test runs it" if tried.ended == "uncovered" else f"{tried.tests} tests"
        lines.append(f"{tried.mutant.file}:{tried.mutant.line} {tried.mutant.operator} ({why})")
        lines.append(f"    {difference(tried.mutant)}")
    lines.append(
        f"seed {facts['seed']}: {facts['killed']} of {facts['mutants']} mutants killed, {facts['score']:.1%}"
        f" ({facts['timeouts']} by time-out); {len(survivors)} survived,"
        f" {facts['uncovered']} of them run by no quick test; "
        f"{facts['equivalent']} equivalent and {facts['void']} void ones left out;"
        f" {facts['seconds'] / 60:.1f} min, {facts['map_seconds'] / 60:.1f} of them for the map"
    )
    if facts["mutants"] < facts["asked"]:
        lines.append(f"{facts['asked']} were asked for: there was no time for more, or there are no more")
    return "\n".join(lines)


def entries(found: Found) -> str:
    """The survivors as entries of the table of equivalents, for those that are."""
    lines = []
    for tried in found.counted:
        if not tried.killed:
            lines.append("[[mutant]]")
            for key in ("file", "function", "before", "after"):
                lines.append(f"{key} = {_toml(getattr(tried.mutant, key))}")
            lines += ['why = ""', ""]
    return "\n".join(lines)


def _toml(text: str) -> str:
    return f"'{text}'" if "'" not in text else json.dumps(text, ensure_ascii=False)
