"""Seeds that draw pools, worlds and faults: a few on every run, and those that once found something.

More of them: `python tests/simulation/test_swarm.py 1 200`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from swarm import Swarm, play_swarm

HOURS = 0.25
FRESH = range(1000, 1008)

FOUND = {
    3: "a running standby was ended before any balancer was asked what it does",
    28: "an adopted node under a notice was ended before anybody had looked at it",
    91: "a target set that was wanted no more was written when the balancer accepted writes again",
    125: "a restarted daemon gave back a node that it had not probed yet",
    184: "a starting node was given back while the one it should replace was silent",
}
"""Seeds that found a bug, at half an hour each, and the bug."""


@pytest.mark.parametrize("seed", FRESH)
def test_a_fresh_seed_is_sound(seed: int, tmp_path: Path, sound) -> None:
    replay = f"replay: python tests/simulation/test_swarm.py {seed} {seed + 1} {HOURS}"
    outcome = sound(play_swarm(seed, tmp_path, hours=HOURS), replay)
    assert outcome.checked["convergence"] == 1


@pytest.mark.parametrize("seed", FOUND)
def test_a_seed_that_found_a_bug_stays_sound(seed: int, tmp_path: Path, sound) -> None:
    replay = f"replay: python tests/simulation/test_swarm.py {seed} {seed + 1} 0.5 ({FOUND[seed]})"
    sound(play_swarm(seed, tmp_path, hours=0.5), replay)


def test_the_seeds_draw_every_fault() -> None:
    drawn = {deed.__name__ for seed in [*FRESH, *FOUND] for deed in Swarm(seed, HOURS).deeds}
    assert len(drawn) >= 18


DIGEST = """
import logging, sys, tempfile
from pathlib import Path
import structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
from swarm import play_swarm
with tempfile.TemporaryDirectory() as folder:
    print(play_swarm(1000, Path(folder), hours=0.1).digest)
"""


@pytest.mark.slow
def test_one_seed_gives_one_digest_in_any_process() -> None:
    """Also with other hash seeds, which reorder every set of strings."""
    here = Path(__file__).parent
    digests = set()
    for hash_seed in ("0", "1", "77"):
        output = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{here}:{here.parents[1]}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        digests.add(output.stdout)
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    first, second = (play_swarm(seed, tmp_path / str(seed), hours=0.05) for seed in (1000, 1001))
    assert first.digest != second.digest


def main() -> int:
    """Play seeds from the command line: first, one past the last, hours each."""
    import logging
    import tempfile

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    first, end = int(sys.argv[1]), int(sys.argv[2])
    hours = float(sys.argv[3]) if len(sys.argv) > 3 else HOURS
    bad = 0
    for seed in range(first, end):
        with tempfile.TemporaryDirectory() as folder:
            outcome = play_swarm(seed, Path(folder), hours=hours)
        for broken in outcome.broken:
            print(f"seed {seed}: {broken}")
        if outcome.broken and end == first + 1:
            print("\n".join(outcome.tail))
        bad += bool(outcome.broken)
    print(f"{end - first} seeds of {hours:g} h, {bad} broken")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
