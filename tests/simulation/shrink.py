"""Find the few kinds of faults that a broken seed needs: leaves out one after another while it stays broken.

    python tests/simulation/shrink.py SEED [HOURS] [LOOK] [INVARIANT]

Every kind draws from a generator of its own, so leaving one out leaves the others as they were, as long as
the daemon does the same. Prints the kinds that are left, what breaks, and the last lines of the trace.
"""

from __future__ import annotations

import dataclasses
import logging
import sys

import structlog
from scenarios import LOOK
from swarm import Swarm, play_swarm

from orchestrator.simulation.simulate import Outcome

SHOWN = 60
"""Lines of the trace before the first violation."""


def without(swarm: Swarm, name: str) -> Swarm:
    """The same swarm without one kind of fault, or without a kind of bad luck."""
    smaller = Swarm(swarm.seed, swarm.seconds / 3600.0, look=swarm.look)
    smaller.pool, smaller.pace, smaller.rates = swarm.pool, swarm.pace, swarm.rates
    smaller.kinds = tuple(k for k in swarm.kinds if k.name != name)
    if hasattr(smaller.rates, name):
        smaller.rates = dataclasses.replace(smaller.rates, **{name: 0.0})
    if hasattr(smaller.pace, name):
        smaller.pace = dataclasses.replace(smaller.pace, **{name: 0.0})
    return smaller


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    seed = int(sys.argv[1])
    hours = float(sys.argv[2]) if len(sys.argv) > 2 else 0.5
    swarm = Swarm(seed, hours, look=float(sys.argv[3]) if len(sys.argv) > 3 else LOOK)
    outcome = play_swarm(swarm, kept=100_000)
    wanted = sys.argv[4] if len(sys.argv) > 4 else next((b.name for b in outcome.broken), "")

    def breaks(found: Outcome) -> bool:
        return wanted in {b.name for b in found.broken}

    if not wanted or not breaks(outcome):
        print(f"seed {seed} is sound")
        return 0
    for name in [*(k.name for k in swarm.kinds), "lost", "throttled", "failed", "slow", "duds", "slow_loads"]:
        smaller = without(swarm, name)
        found = play_swarm(smaller, kept=100_000)
        if breaks(found):
            swarm, outcome = smaller, found
    lines = [line for line in outcome.tail if not line.endswith("journal charge")]
    first = next((n for n, line in enumerate(lines) if f"BROKEN {wanted}" in line), len(lines))
    print("\n".join(lines[max(0, first - SHOWN) : first + 5]))
    for broken in outcome.broken:
        print(f"BROKEN {broken}")
    print(f"seed {seed}: {', '.join(k.name for k in swarm.kinds) or 'no fault'}")
    print(swarm.pool, swarm.rates, swarm.pace)
    return 1


if __name__ == "__main__":
    sys.exit(main())
