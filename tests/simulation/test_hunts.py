"""Hunts for planted bugs: what seeds they play and when they end."""

from __future__ import annotations

import dataclasses
import tempfile
from itertools import islice
from pathlib import Path

import pytest
from hunts import FOUND, PAGE, Found, hunt, results, runs_of, table, with_bug, with_table
from jobs import Job, bug, slug
from planted import PLANTED

MISSED = (
    "a notice is acknowledged before it is journalled",
    "the spend cap forgets stopped standbys that run",
    "the floor is one short",
    "the floor is rounded down",
    "a pause is ignored",
    "stale lists are trusted a hundred times as long",
    "noticed nodes always leave at once",
    "nothing is launched for 40 minutes after a reclaim",
)
"""Bugs that no seed showed once."""

ROW = Found(bug=slug(PLANTED[0].name), number=0, hours=1.25, by="floor", line="x")


def test_ranges_are_disjoint_and_the_same_every_time() -> None:
    first, second = (list(islice(runs_of(PLANTED[0], number), 50)) for number in (0, 1))
    assert first == list(islice(runs_of(PLANTED[0], 0), 50))
    assert max(job.seed for job in first) < min(job.seed for job in second)


def test_what_only_an_outage_shows_is_looked_for_in_outages() -> None:
    jobs = list(islice(runs_of(bug("a silent region freezes all"), 0), 20))
    assert {job.kind for job in jobs} == {"outage"}


@pytest.mark.parametrize("kind", ["fresh", "outage"])
def test_a_run_ends_when_the_checker_speaks(kind: str) -> None:
    raises = bug("an adapter raises what it may not, in a root task")
    outcome = with_bug(raises, Job(kind=kind, seed=2, hours=1.0))
    assert len({b.at for b in outcome.broken}) == 1
    assert outcome.seconds < 3600.0  # faults alone would take as long


def test_so_does_its_own_script_where_only_that_shows_it() -> None:
    planted = bug("a pool launches beyond its grant")
    hasty = with_bug(planted, Job(kind="fresh", seed=1, hours=1.0))
    with tempfile.TemporaryDirectory() as folder:
        whole = planted.play(Path(folder), seed=1)
    assert hasty.broken[0] == whole.broken[0]
    assert hasty.seconds < whole.seconds


def test_what_was_caught_is_said_with_the_run_that_shows_it() -> None:
    found = hunt("requests of operators are lost", 0, hours=5.0)
    assert found.by == "operator-obeyed"
    assert 0.0 < found.hours < 0.1
    assert found.line.startswith("python tests/simulation/replay.py planted --bug requests-of-operators")


def test_a_hunt_without_a_catch_says_so() -> None:
    harmless = hunt("requests of operators are lost", 0, hours=0.0)
    assert (harmless.bug, harmless.number) == ("requests-of-operators-are-lost", 0)
    nothing = dataclasses.replace(ROW, by="", line="", number=1)
    soon = dataclasses.replace(ROW, number=2, hours=0.01)
    assert "| 1.2, not in 1, < 0.1 |" in table([ROW, nothing, soon]).splitlines()[2]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "found"
    assert results(file) == []
    file.write_text('{"bug": "a", "number": 0, "hours": 1.0, "by": "floor", "line": "x"}\n')
    assert results(file) == [Found(bug="a", number=0, hours=1.0, by="floor", line="x")]


def test_the_page_has_what_was_found() -> None:
    page, found = PAGE.read_text(), results(FOUND)
    assert with_table(page, found) == page, "run `python tests/simulation/hunts.py --page`"
    with pytest.raises(ValueError, match="no place"):
        with_table("# A page", found)


def test_what_seeds_missed_once_they_find_in_each_of_five_ranges() -> None:
    found = results(FOUND)
    for name in MISSED:
        assert {f.number for f in found if f.bug == slug(bug(name).name)} == set(range(5)), name
    assert {f.bug for f in found} <= {slug(planted.name) for planted in PLANTED}
    assert [f for f in found if not f.by] == []
