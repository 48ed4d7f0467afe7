"""Play seeds of the simulation that nobody played, and tell whether this change broke what they find.

    python tools/fresh_seeds.py [--hours H] [--seed N] [--jobs N] [--budget SECONDS]

A fresh seed that breaks an invariant has found a bug, and seldom one of this change. Each that fails is
played again on the parent commit: clean there, this change broke it. Broken there too, the bug is older: it
is said loudly, and fixed in a change of its own. The parent is HEAD's first one, HEAD itself while something
is not committed, or what ORCHESTRATOR_CI_PARENT names (a merge base).

A seed that cannot be played on the parent counts against this change: nobody can say that the bug is older,
and it takes one command to find out (`git fetch --unshallow`, or another ORCHESTRATOR_CI_PARENT). So does one
that did not get its turn within the budget. One that does not end there is broken there.

Exit code: 0 no seed failed that is clean on the parent; 1 one did, or cannot be told; 2 nothing was played.
"""

from __future__ import annotations

import argparse
import enum
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from commits import ROOT, NoCommit, archive, commit_of, git

from cloud.clock import SystemClock

PARENT = "ORCHESTRATOR_CI_PARENT"

BUDGET = 900.0
"""Seconds for all seeds that are played again."""

LONGEST = 300.0
"""Seconds after which a run on the parent is given up; the longest take some ten."""

CLOCK = SystemClock()


class Verdict(enum.Enum):
    """What the parent commit says of a seed that fails here."""

    CLEAN = "clean on the parent: this change broke it"
    BROKEN = "broken on the parent too: an older bug"
    UNKNOWN = "not played on the parent"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A failing seed by the line that plays it again, and the verdict. `why` it is not known, else empty."""

    line: str
    verdict: Verdict
    why: str = ""

    def __str__(self) -> str:
        return f"{self.line}\n    {self.verdict.value}" + (f" ({self.why})" if self.why else "")


def campaign(given: argparse.Namespace) -> Mapping[str, Any] | None:
    """What the fresh seeds came to; None where they could not be played."""
    words = ["--parts", "fresh", "--hours", f"{given.hours:g}", "-o", "json"]
    words += ["--jobs", str(given.jobs)] + (["--seed", str(given.seed)] if given.seed is not None else [])
    command = [sys.executable, "tests/simulation/campaign.py", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    try:
        said: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        return None
    return said


def parent() -> str:
    """The commit that a failing seed is played on. Raises NoCommit."""
    if name := os.environ.get(PARENT, ""):
        return commit_of(name)
    changed = git("status", "--porcelain", "--untracked-files=no").strip()
    return commit_of("HEAD" if changed else "HEAD^")


def judge(lines: Sequence[str], *, budget: float) -> Iterator[Judged]:
    """The verdict on each failing seed, as it is known."""
    with tempfile.TemporaryDirectory(prefix="parent-") as folder:
        tree = Path(folder)
        try:
            with archive(parent()) as packed:
                packed.extractall(tree, filter="data")
            why = _unplayable(tree)
        except NoCommit as error:
            why = str(error)
        end = CLOCK.steady() + budget
        for line in lines:
            if why:
                yield Judged(line=line, verdict=Verdict.UNKNOWN, why=why)
            elif (left := end - CLOCK.steady()) <= 0:
                yield Judged(line=line, verdict=Verdict.UNKNOWN, why=f"the {budget:.0f} s for this were over")
            else:
                yield _played(line, tree, min(left, LONGEST))


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}


def _unplayable(tree: Path) -> str:
    """Why the tree's packages cannot be played with; empty where they can."""
    probe = (
        "import cloud, orchestrator, policies as p; print(*(m.__file__ for m in (cloud, orchestrator, p)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=tree,
        env=_environment(tree),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    strays = [name for name in done.stdout.split() if not Path(name).is_relative_to(tree)]
    return f"{strays[0]} came in the place of the parent's own" if strays else ""


def _played(line: str, tree: Path, seconds: float) -> Judged:
    """Play a line on the parent."""
    command = [sys.executable, *shlex.split(line)[1:]]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=_environment(tree),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        if seconds < LONGEST:
            return Judged(line=line, verdict=Verdict.UNKNOWN, why="the time for this was over")
        return Judged(line=line, verdict=Verdict.BROKEN, why=f"no end after {seconds:.0f} s")
    if done.returncode == 0:
        return Judged(line=line, verdict=Verdict.CLEAN)
    if any(said.startswith("BROKEN ") for said in done.stdout.splitlines()):
        return Judged(line=line, verdict=Verdict.BROKEN)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Judged(line=line, verdict=Verdict.UNKNOWN, why=last)


def box(*lines: str) -> str:
    """Lines that nobody overlooks."""
    return "\n".join(["", "#" * 72, *(f"# {line:68} #" for line in lines), "#" * 72])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    known = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    known.add_argument("--hours", type=float, default=100.0, help="simulated hours (default 100)")
    known.add_argument("--seed", type=int, help="the base seed (default: the time of day)")
    known.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    known.add_argument("--budget", type=float, default=BUDGET, help="seconds for all seeds on the parent")
    return known


def main() -> int:
    """Play, judge what fails, and say what came of it."""
    given = parser().parse_args()
    said = campaign(given)
    if said is None:
        print("fresh_seeds: the campaign did not come to its end", file=sys.stderr)
        return 2
    played = (
        f"{sum(said['runs'].values())} fresh seeds, {said['fresh_hours']:.0f} h, base {said['base_seed']}"
    )
    print(f"{played}: {len(said['failures'])} failed", flush=True)
    for failure in said["failures"]:
        print(failure["replay"], *(f"    {b['name']}: {b['text']}" for b in failure["broken"]), sep="\n")
    found = []
    for judged in judge([failure["replay"] for failure in said["failures"]], budget=given.budget):
        print(judged, flush=True)
        found.append(judged.verdict)
    if Verdict.BROKEN in found:
        print(
            box(
                "FOUND: seeds above break an invariant, and do so on the parent too.",
                "Fix it, and keep the seed.",
            )
        )
    if Verdict.CLEAN in found:
        print(box("BROKEN BY THIS CHANGE: seeds above are clean on the parent commit."))
    if Verdict.UNKNOWN in found:
        print(
            box(
                "SEEDS ABOVE FAIL, and cannot be played on the parent commit:",
                f"{PARENT}=COMMIT names another one.",
            )
        )
    return 1 if {Verdict.CLEAN, Verdict.UNKNOWN} & {*found} else 0


if __name__ == "__main__":
    sys.exit(main())
