"""Play one run of the simulation again and show what happened: the line that a failing run prints.

    python tests/simulation/replay.py notice --seed 1 --kill 17:after
    python tests/simulation/replay.py swarm --seed 12345 --hours 0.5
    python tests/simulation/replay.py outage --seed 12345 --hours 0.5
    python tests/simulation/replay.py planted --bug the-cloud-ignores-tokens --seed 1

Prints the last lines of the trace, the invariants that broke and the digest. Exits with 1 if any broke, for a
planted bug if its invariant did not.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also under PYTHONSAFEPATH

from jobs import CRASH_SEED, Job, bug, judge, outcome_of, quiet, slug
from planted import PLANTED
from scenarios import LOOK, SCENARIOS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    known = argparse.ArgumentParser(description="Play one simulated run and show what happened.")
    known.add_argument("what", choices=[*sorted(SCENARIOS), "swarm", "outage", "planted"], metavar="WHAT")
    known.add_argument("--seed", type=int, default=CRASH_SEED)
    known.add_argument("--hours", type=float, default=0.5, help="hours of faults, for swarm and outage")
    known.add_argument("--look", type=float, default=LOOK, help="seconds between two looks, for the same")
    known.add_argument("--kill", default="", help="where the daemon dies, for a scenario: 17:after")
    known.add_argument("--bug", choices=sorted(slug(p.name) for p in PLANTED), metavar="BUG")
    known.add_argument("--quiet", action="store_true", help="only the digest")
    return known


def job_of(given: argparse.Namespace) -> Job:
    """The job that a command line names."""
    if given.what in ("swarm", "outage"):
        kind = "fresh" if given.what == "swarm" else given.what
        return Job(kind=kind, seed=given.seed, hours=given.hours, look=given.look)
    if given.what == "planted":
        return Job(kind="planted", seed=given.seed, name=given.bug)
    return Job(kind="crash", seed=given.seed, name=given.what, point=given.kill)


def main() -> int:
    """Play it."""
    known = parser()
    given = known.parse_args()
    if given.what == "planted" and given.bug is None:
        known.error(f"--bug names what to plant: {', '.join(sorted(slug(p.name) for p in PLANTED))}")
    quiet()
    job = job_of(given)
    try:
        outcome = outcome_of(job)
    except Exception as error:  # as the campaign counts it
        traceback.print_exc()
        print(f"BROKEN nothing-unhandled: {type(error).__name__}: {error}")
        return 1
    broken = judge(job, outcome)
    if not given.quiet:
        print("\n".join(outcome.tail))
        for name, text in broken:
            print(f"BROKEN {name}: {text}")
    print(outcome.digest)
    if job.kind == "planted":
        return 0 if bug(job.name).invariant in dict(broken) else 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
