"""Seeds that draw pools, worlds and faults: a few on every run, and those that once found something.

Of the latter one in `EVERY` is played here, all of them by `make sim`, also in the continuous check.
More fresh ones: `python tests/simulation/test_swarm.py 1 200`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scenarios import place
from swarm import REGRESSION_HOURS, REGRESSIONS, Swarm, drawn, play, waits_for_a_person
from swarm_faults import FAULTS

from cloud.sim.notices import METADATA, QUEUE
from policies.model import Limits, Market, Pool

HOURS = 0.25
FRESH = range(2000, 2004)
EVERY = 6


@pytest.mark.parametrize("seed", FRESH)
def test_a_fresh_seed_is_sound(seed: int, sound) -> None:
    replay = f"replay: python tests/simulation/test_swarm.py {seed} {seed + 1} {HOURS}"
    outcome = sound(play(seed, hours=HOURS), replay)
    assert outcome.checked["convergence"] == 1


@pytest.mark.parametrize("seed", REGRESSIONS[::EVERY])
def test_a_seed_that_found_a_bug_stays_sound(seed: int, sound) -> None:
    replay = f"replay: python tests/simulation/test_swarm.py {seed} {seed + 1} {REGRESSION_HOURS}"
    sound(play(seed, hours=REGRESSION_HOURS), replay)


def test_the_seeds_draw_every_fault() -> None:
    drawn = {kind.name for seed in range(100) for kind in Swarm(seed, HOURS).kinds}
    assert drawn == {kind.name for kind in FAULTS}
    assert len(drawn) == len(FAULTS)


DIGEST = """
import logging
import structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
from swarm import play
print(play(1000, hours=0.1).digest)
"""


@pytest.mark.slow
def test_one_seed_gives_one_digest_in_any_process() -> None:
    """Also with other hash seeds, which reorder every set of strings."""
    here = Path(__file__).parent
    digests = set()
    for hash_seed in ("0", "77"):
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


def test_another_seed_is_another_run() -> None:
    first, second = (play(seed, hours=0.05) for seed in (1000, 1001))
    assert first.digest != second.digest


def test_a_kind_of_fault_draws_the_same_whatever_others_there_are() -> None:
    """Adding a kind must not turn every saved seed into another run."""
    swarm = Swarm(7, HOURS)
    first = [drawn(f"strikes/{kind.name}", 7).random() for kind in swarm.kinds]
    fewer = Swarm(7, HOURS)
    fewer.kinds = fewer.kinds[1:]
    assert [drawn(f"strikes/{kind.name}", 7).random() for kind in fewer.kinds] == first[1:]
    assert (swarm.pool, swarm.pace, swarm.rates) == (fewer.pool, fewer.pace, fewer.rates)
    assert len(set(first)) == len(first)


def test_one_pool_in_ten_is_adaptive_and_the_saved_seeds_are_not() -> None:
    swarms = [Swarm(seed, HOURS) for seed in range(5000, 5500)]
    adaptive = [s.pool for s in swarms if s.pool.get("mix") == "adaptive"]
    assert 30 <= len(adaptive) <= 70
    assert not any("hot" in pool["standby"] or "units" in pool for pool in adaptive)
    assert not any("mix" in Swarm(seed, HOURS).pool for seed in REGRESSIONS)


def test_some_pools_have_a_spend_cap_where_prices_stand_still() -> None:
    swarms = [Swarm(seed, HOURS) for seed in range(5000, 5500)]
    capped = [s for s in swarms if "limits" in s.pool]
    assert 80 <= len(capped) <= 150
    tight = [s for s in capped if s.pool["limits"]["spend_per_hour"] < 3.6 * s.pool["replicas"]]
    assert len(tight) >= 15  # they cannot all be on demand
    assert not any(s.large or "price_walk" in {kind.name for kind in s.kinds} for s in capped)
    assert not any("limits" in Swarm(seed, HOURS).pool for seed in REGRESSIONS)


def test_some_pools_lose_their_prices_for_good_and_have_no_spend_cap() -> None:
    swarms = [Swarm(seed, HOURS) for seed in range(5000, 5500)]
    priceless = [s for s in swarms if s.priceless_from is not None]
    assert 30 <= len(priceless) <= 70
    assert any(s.priceless_from == 0.0 for s in priceless)
    assert not any("limits" in s.pool for s in priceless)
    assert not any(Swarm(seed, HOURS).priceless_from is not None for seed in REGRESSIONS)


def test_some_balancers_are_slow_and_some_pools_have_one_source_of_notices() -> None:
    swarms = [Swarm(seed, HOURS) for seed in range(5000, 5500)]
    slow = [s for s in swarms if s.propagation]
    assert 70 <= len(slow) <= 130
    assert all(s.pool["drain"]["settle"] > s.propagation for s in slow)
    alone = Counter(s.sources for s in swarms if len(s.sources) == 1)
    assert min(alone[(QUEUE,)], alone[(METADATA,)]) >= 70
    saved = [Swarm(seed, HOURS) for seed in REGRESSIONS]
    assert not any(s.propagation or len(s.sources) == 1 for s in saved)
    assert 100 <= sum(s.answers[0] > 5.0 for s in swarms) <= 200
    assert not any(s.answers[0] > 5.0 for s in saved)
    assert not any("slow_disk" in {kind.name for kind in s.kinds} for s in saved)


def test_some_seeds_know_no_fault_and_none_knows_all() -> None:
    known = [len(Swarm(seed, HOURS).kinds) for seed in range(200)]
    assert min(known) == 0
    assert 5 <= sorted(known)[100] <= 20
    assert max(known) < len(FAULTS)


def main() -> int:
    """Play seeds from the command line: first, one past the last, hours each."""
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    first, end = int(sys.argv[1]), int(sys.argv[2])
    hours = float(sys.argv[3]) if len(sys.argv) > 3 else HOURS
    bad = 0
    for seed in range(first, end):
        outcome = play(seed, hours=hours)
        for broken in outcome.broken:
            print(f"seed {seed}: {broken}")
        if outcome.broken and end == first + 1:
            print("\n".join(outcome.tail))
        bad += bool(outcome.broken)
    print(f"{end - first} seeds of {hours:g} h, {bad} broken")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())


@pytest.mark.parametrize(
    ("cap", "lost", "waits"),
    [
        (11.0, ("on-demand",), True),  # 9.00 live, and one on demand costs 3.00
        (12.0, ("on-demand",), False),
        (10.0, ("spot",), False),  # one on spot costs 1.00
        (9.9, ("spot",), True),
        (9.9, (), False),  # nothing is missing: it should have come to rest
        (11.0, ("on-demand", "spot"), False),
        (None, ("on-demand",), False),
    ],
)
def test_a_pool_waits_for_a_person_only_where_its_cap_has_no_room(
    cap: float | None, lost: tuple[str, ...], waits: bool
) -> None:
    pool = Pool(name="p", replicas=5, spot_share=0.6, limits=Limits(spend_per_hour=cap))
    places = {market: place(market, "a") for market in Market}
    price = {places[Market.SPOT]: 1.0, places[Market.ON_DEMAND]: 3.0}

    def machine(market: Market, number: int) -> SimpleNamespace:
        told = 1.0 if market in lost and not number else None
        return SimpleNamespace(placement=places[market], told_at=told, able=lambda _now: True)

    held = {
        m: [machine(m, n) for n in range(count)] for m, count in ((Market.SPOT, 3), (Market.ON_DEMAND, 2))
    }
    sim = SimpleNamespace(
        pool=pool,
        clock=SimpleNamespace(now=lambda: 0.0),
        world=SimpleNamespace(prices=price),
        live=lambda market=None: [m for name in held for m in held[name] if market in (None, name)],
    )
    assert waits_for_a_person(cast(Any, sim)) is waits
