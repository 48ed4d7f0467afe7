"""Look for planted bugs with seeds that know nothing of them: how many hours until the checker speaks.

    python tests/simulation/hunts.py [--hours H] [--ranges N] [--bugs SLUG,...] [--jobs N] [--into FILE]
        [--page] [-o table|json]

Each bug is looked for in disjoint ranges of seeds, in each until something breaks or the hours are over. The
seeds are of the kind that `campaign.py` draws, swarm and outages, or outages alone for what only these show;
a bug that none of their pools can show is looked for by its own script, with the seeds of the range. What
broke must hold without the bug; a run ends, and the hours are counted, as soon as something breaks. Results
are added to FILE as they come, and what is in it already is not looked for again. `--page` writes what is in
`hunts.jsonl` into the docs and looks for nothing. Exits with 1 if a bug was not caught in every range.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also under PYTHONSAFEPATH

from campaign import fresh_seeds
from jobs import Job, bug, outcome_of, slug, worker
from outages import play as play_outage
from planted import PLANTED, Planted
from swarm import Swarm, play_swarm

from orchestrator.simulation.simulate import Outcome

_WIDTH = 10**8
"""Seeds in a range."""

FOUND = Path(__file__).with_name("hunts.jsonl")
"""What the page shows."""

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "simulation.md"

_BEGIN = "<!-- Made by tests/simulation/hunts.py from hunts.jsonl. Do not edit. -->\n\n"
_END = "\n\n<!-- The end of what hunts.py made. -->"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of one bug in one range: the simulated `hours` that were played, and what broke `by` which
    invariant, empty where nothing did. `line`: the run in which it did, of a seed without the bug."""

    bug: str
    number: int
    hours: float
    by: str = ""
    line: str = ""


def hunt(name: str, number: int, hours: float) -> Found:
    """Look for a bug in one range of seeds."""
    planted, played = bug(name), 0.0
    for job in runs_of(planted, number):
        outcome = with_bug(planted, job)
        played += outcome.seconds / 3600.0
        broken = sorted({b.name for b in outcome.broken})
        if broken and (planted.seeds == "script" or sound(job)):
            by = planted.invariant if planted.invariant in broken else broken[0]
            shown = replace(job, kind="planted", name=planted.name) if planted.seeds == "script" else job
            return Found(bug=slug(name), number=number, hours=round(played, 4), by=by, line=shown.line)
        if played >= hours:
            break
    return Found(bug=slug(name), number=number, hours=round(played, 4))


def runs_of(planted: Planted, number: int) -> Iterator[Job]:
    """The runs of a range that may show a bug, without end."""
    seeds = range(10**9 + number * _WIDTH, 10**9 + (number + 1) * _WIDTH)
    runs = fresh_seeds(random.Random(f"hunt/{number}"), seeds)
    return runs if planted.seeds != "outage" else (replace(run, kind="outage") for run in runs)


def with_bug(planted: Planted, job: Job) -> Outcome:
    """One run with a bug in it."""
    if planted.seeds == "script":
        with tempfile.TemporaryDirectory() as folder:
            return planted.play(Path(folder), seed=job.seed, hasty=True)
    with planted.rule():
        if job.kind == "outage":
            return play_outage(job.seed, hours=job.hours, look=job.look, planted=planted)
        return play_swarm(Swarm(job.seed, job.hours, look=job.look), planted=planted)


@cache
def sound(job: Job) -> bool:
    """Nothing breaks in this run without a bug; what does is said."""
    broken = outcome_of(job).broken
    if broken:
        print(f"breaks without a bug: {job.line}: {broken[0]}", file=sys.stderr, flush=True)
    return not broken


def results(into: Path | None) -> list[Found]:
    """What was found before."""
    if into is None or not into.exists():
        return []
    return [Found(**json.loads(line)) for line in into.read_text().splitlines()]


def table(found: list[Found]) -> str:
    """The rows of the page: one for each bug, with the hours that each range took."""
    lines = ["| planted bug | its invariant | simulated hours, in each range of seeds | what spoke |"]
    lines.append("|---|---|---|---|")
    for planted in PLANTED:
        rows = sorted((f for f in found if f.bug == slug(planted.name)), key=lambda f: f.number)
        if not rows:
            continue
        took = ", ".join(_hours(f) for f in rows)
        by = ", ".join(f"`{name}`" for name in sorted({f.by for f in rows if f.by}))
        where = {"script": " (its script)", "outage": " (outages)"}.get(planted.seeds, "")
        lines.append(f"| {planted.name} | `{planted.invariant}` | {took}{where} | {by} |")
    return "\n".join(lines)


def with_table(page: str, found: list[Found]) -> str:
    """The page with its table made anew. Raises ValueError where it has no place for one."""
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not (begin and end):
        raise ValueError("the page has no place for what was found")
    return head + begin + table(found) + end + tail


def _hours(found: Found) -> str:
    if not found.by:
        return f"not in {found.hours:.0f}"
    return f"{found.hours:.1f}" if found.hours >= 0.05 else "< 0.1"


def main() -> int:
    """Look for all of them."""
    known = argparse.ArgumentParser(description="Look for planted bugs with fresh seeds.")
    known.add_argument("--hours", type=float, default=100.0, help="simulated hours in each range, at most")
    known.add_argument("--ranges", type=int, default=5)
    known.add_argument("--bugs", default=",".join(slug(p.name) for p in PLANTED))
    known.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    known.add_argument("--into", type=Path, help="where results are kept")
    known.add_argument("--page", action="store_true", help="write hunts.jsonl into the docs, and no more")
    known.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = known.parse_args()
    if given.page:
        PAGE.write_text(with_table(PAGE.read_text(), results(FOUND)))
        return 0
    names = [bug(name).name for name in given.bugs.split(",")]
    found = results(given.into)
    done = {(f.bug, f.number) for f in found}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context, initializer=worker) as pool:
        waiting = [
            pool.submit(hunt, name, number, given.hours)
            for name in names
            for number in range(given.ranges)
            if (slug(name), number) not in done
        ]
        for future in as_completed(waiting):
            found.append(future.result())
            print(found[-1], file=sys.stderr, flush=True)
            if given.into is not None:
                with given.into.open("a") as file:
                    file.write(json.dumps(asdict(found[-1])) + "\n")
    found = [f for f in found if f.bug in map(slug, names)]
    print(table(found) if given.output == "table" else json.dumps([asdict(f) for f in found]))
    return 0 if all(f.by for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
