"""What a campaign came to: counts added up over runs, and the pages that show them."""

from __future__ import annotations

import json
import textwrap
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from jobs import FRESH, Result

from cloud.sim.invariants import INVARIANTS

_WIDTH = 110

_SHOWN = 160
"""Characters of a failure that are shown behind the line that replays it."""


@dataclass(kw_only=True)
class Summary:
    """Adds results up. Runs with a planted bug count only as caught or not: they break what they should."""

    base: int
    wall: float = 0.0
    runs: int = 0
    seconds: float = 0.0
    fresh_seconds: float = 0.0
    cpu: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    cpu_by_kind: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    checked: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    caught: int = 0
    failed: list[Result] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Nothing broke and every planted bug was caught."""
        return not self.failed

    @property
    def hours(self) -> float:
        """Simulated hours, without the runs of planted bugs."""
        return self.seconds / 3600.0

    @property
    def fresh_hours(self) -> float:
        """Simulated hours of fresh seeds."""
        return self.fresh_seconds / 3600.0

    def add(self, result: Result) -> None:
        """Count one result."""
        self.runs += 1
        self.cpu += result.cpu
        self.kinds[result.job.kind] += 1
        self.cpu_by_kind[result.job.kind] += result.cpu
        if not result.good:
            self.failed.append(result)
        if result.job.kind == "planted":
            self.caught += result.caught
            return
        self.seconds += result.seconds
        self.fresh_seconds += result.seconds if result.job.kind in FRESH else 0.0
        self.checked += result.checked
        self.happened += result.happened
        self.launches += result.launches
        self.violations += Counter(name for name, _ in result.broken)

    # -- showing -----------------------------------------------------------------------------------

    def invariants(self) -> list[tuple[str, str, int, int]]:
        """Name, sentence, times checked, violations; every one that is known or was broken."""
        names = [*INVARIANTS, *sorted((self.checked | self.violations).keys() - INVARIANTS.keys())]
        return [(n, INVARIANTS.get(n, ""), self.checked[n], self.violations[n]) for n in names]

    def faults(self) -> dict[str, int]:
        """Faults drawn, by kind: those of the swarm by name, those of single calls as "call KIND"."""
        found = {
            w.removeprefix("fault "): n for w, n in self.happened.items() if w.startswith(("fault ", "call "))
        }
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))

    def text(self) -> str:
        """The page for people."""
        rows = self.invariants()
        wide = max(len(name) for name, *_ in rows)
        says = max(len(text) for _, text, *_ in rows)
        lines = ["", f"{'invariant':{wide}}  {'what it says':{says}}  {'checked':>10}  violations"]
        lines += [
            f"{n:{wide}}  {text:{says}}  {checked:10d}  {broken:10d}" for n, text, checked, broken in rows
        ]
        lines += ["", *self._counts(), ""]
        if self.good:
            lines.append(f"no violation (base seed {self.base})")
        else:
            lines.append(
                f"{len(self.failed)} runs failed (base seed {self.base}); each line plays one again:"
            )
            lines += [self._failure(result) for result in self.failed]
        return "\n".join(lines)

    def _counts(self) -> list[str]:
        per_cpu = self.hours / self.cpu if self.cpu else 0.0
        runs = ", ".join(
            f"{n} {kind} ({self.cpu_by_kind[kind]:.0f} s)" for kind, n in sorted(self.kinds.items())
        )
        faults = ", ".join(f"{name} {n}" for name, n in self.faults().items()) or "none"
        seeds = sum(self.kinds[kind] for kind in FRESH)
        return [
            f"planted bugs caught: {self.caught} of {self.kinds['planted']}",
            f"simulated: {self.hours:.1f} h, {self.fresh_hours:.1f} h of them in {seeds} seeds that nobody "
            "played before",
            f"speed: {per_cpu:.2f} simulated hours in one CPU-second; {self.cpu:.0f} CPU-seconds, "
            f"{self.wall:.0f} s of wall time",
            f"runs (CPU): {runs}",
            f"daemons: {self.happened['kill']} killed, {self.happened['boot']} started; machines: "
            f"{self.launches} launched, {self.happened['reclaim']} taken away",
            *textwrap.wrap(f"faults: {faults}", _WIDTH, subsequent_indent="  "),
        ]

    def _failure(self, result: Result) -> str:
        texts = "; ".join(f"{name}: {text}" for name, text in result.broken)
        return f"{result.job.line}  # {texts[:_SHOWN]}".replace("\n", " ")

    def json(self) -> str:
        """The same as JSON."""
        return json.dumps(
            {
                "schema": "sim/1",
                "base_seed": self.base,
                "good": self.good,
                "simulated_hours": round(self.hours, 3),
                "fresh_hours": round(self.fresh_hours, 3),
                "cpu_s": round(self.cpu, 1),
                "cpu_s_by_kind": {kind: round(cpu, 1) for kind, cpu in sorted(self.cpu_by_kind.items())},
                "wall_s": round(self.wall, 1),
                "runs": dict(self.kinds),
                "kills": self.happened["kill"],
                "boots": self.happened["boot"],
                "launches": self.launches,
                "reclaims": self.happened["reclaim"],
                "faults": self.faults(),
                "invariants": [
                    {"name": n, "says": text, "checked": checked, "violations": broken}
                    for n, text, checked, broken in self.invariants()
                ],
                "planted": {"caught": self.caught, "of": self.kinds["planted"]},
                "failures": [
                    {"replay": r.job.line, "broken": [{"name": n, "text": t} for n, t in r.broken]}
                    for r in self.failed
                ],
            },
            indent=2,
        )
