"""One part alone is away: what is promised for that holds, and was put to the test."""

from __future__ import annotations

from itertools import islice

import pytest
from campaign import OUTAGES_SHARE, Campaign
from outages import OUTAGES, Outage, outage_of, play

HOURS = 0.5


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.invariant)
def test_a_seed_in_which_one_part_is_away(outage: Outage, sound) -> None:
    seed = next(s for s in range(1, 1000) if outage_of(s) is outage)
    outcome = sound(play(seed, hours=HOURS))
    assert outcome.checked[outage.invariant] > 100
    assert outcome.happened[f"fault {outage.script.__name__}"] > 3


FOUND = (138260878,)  # launches asked of a region just before it was known to be silent may take up the room
"""Seeds that once found something, looking every five seconds."""


@pytest.mark.parametrize("seed", FOUND)
def test_a_seed_that_found_something_stays_sound(seed: int, sound) -> None:
    sound(play(seed, hours=HOURS, look=5.0))


def test_seeds_that_nobody_played_have_all_of_them() -> None:
    drawn = list(islice(Campaign(base=1, hours=1.0).fresh(), 2000))
    seeds = [job.seed for job in drawn if job.kind == "outage"]
    assert 0.8 < len(seeds) / (len(drawn) * OUTAGES_SHARE) < 1.2
    for outage in OUTAGES:
        assert sum(outage_of(seed) is outage for seed in seeds) > 0.8 * len(seeds) / len(OUTAGES)
