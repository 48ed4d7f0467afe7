"""Play one scenario again and show what happened: the line that a failing test prints.

    python tests/simulation/replay.py notice --seed 1 --kill 17:after

Prints the trace, the invariants that broke and the digest. Exits with 1 if any broke.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import structlog
from scenarios import SCENARIOS, play

from cloud.sim.effects import Point


def main() -> int:
    parser = argparse.ArgumentParser(description="Play one simulated scenario and show what happened.")
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--kill", type=Point.parse, help="effect and moment at which the daemon dies: 17:after"
    )
    parser.add_argument("--quiet", action="store_true", help="only the digest")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder:
        outcome = play(SCENARIOS[given.scenario], Path(folder), seed=given.seed, crash=given.kill)
    if not given.quiet:
        print("\n".join(outcome.tail))
        for broken in outcome.broken:
            print(f"BROKEN {broken}")
    print(outcome.digest)
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
