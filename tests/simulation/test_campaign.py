"""The campaign: what it draws, what it says, and that the line of a failing run plays that run again."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import campaign
import jobs
import pytest
import replay
from campaign import LENGTHS, LOOKS, Campaign, play
from jobs import CRASH_SEED, Job, Result, bug, outcome_of, run, slug
from planted import PLANTED, Planted
from rich.console import Console
from scenarios import SCENARIOS, bootstrap
from summary import Summary

from cloud.sim.invariants import INVARIANTS

ROOT = Path(__file__).parents[2]


def process(*words: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """A command of the simulation in a process of its own, from the root, as a person would run it."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


# -- what is drawn ---------------------------------------------------------------------------------


def test_a_base_seed_names_the_runs() -> None:
    first, again, other = (list(islice(Campaign(base=base, hours=1.0).fresh(), 100)) for base in (7, 7, 8))
    assert first == again
    assert not {job.seed for job in first} & {job.seed for job in other}


def test_no_seed_is_drawn_twice() -> None:
    fresh = list(islice(Campaign(base=1, hours=1.0).fresh(), 1000))
    assert len({job.seed for job in fresh}) == 1000
    assert {job.hours for job in fresh} == set(LENGTHS)
    assert {job.look for job in fresh} == set(LOOKS)


def test_seeds_are_played_until_the_hours_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "LENGTHS", (0.1,))
    monkeypatch.setattr(campaign, "_AHEAD", 1)
    summary = play(Campaign(base=1, hours=0.2, parts=("fresh",)), 1, Console(quiet=True))
    assert summary.fresh_hours >= 0.2
    assert summary.kinds.keys() == {"fresh"}


def test_all_parts_are_played() -> None:
    kinds = Counter(job.kind for job in Campaign(base=1, hours=1.0).known())
    assert kinds["planted"] == len(PLANTED)
    assert kinds["regression"] == len(jobs.REGRESSIONS)
    assert kinds["crash"] > 50 * len(SCENARIOS)


def test_every_planted_bug_breaks_a_known_invariant() -> None:
    assert {p.invariant for p in PLANTED} <= set(INVARIANTS)
    assert len({slug(p.name) for p in PLANTED}) == len(PLANTED)


# -- playing again ---------------------------------------------------------------------------------

LINES = [
    Job(kind="fresh", seed=1000, hours=0.1),
    Job(kind="fresh", seed=1001, hours=0.1, look=10.0),
    Job(kind="crash", name="notice", seed=CRASH_SEED, point="20:late"),
    Job(kind="planted", name=PLANTED[0].name, seed=1),
]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("job", LINES, ids=lambda job: job.kind)
def test_the_line_of_a_run_plays_it_again(job: Job) -> None:
    """In any process and under any hash seed, which reorders every set of strings."""
    words = shlex.split(job.line)
    assert words[0] == "python"
    outcome = outcome_of(job)
    played = process(*words[1:], hash_seed="77")
    lines = played.stdout.splitlines()
    assert lines[-1] == outcome.digest, played.stderr
    assert [line for line in lines if line.startswith("BROKEN ")] == [f"BROKEN {b}" for b in outcome.broken]
    assert tuple(lines[: len(outcome.tail)]) == outcome.tail
    assert played.returncode == bool(outcome.broken and job.kind != "planted")


def test_a_planted_bug_shows_in_its_line() -> None:
    job = LINES[3]
    assert bug(job.name).invariant in {b.name for b in outcome_of(job).broken}


# -- failing ---------------------------------------------------------------------------------------


def test_a_bug_that_nobody_catches_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = Planted(name="no bug at all", invariant="floor", script=bootstrap)
    monkeypatch.setattr(jobs, "PLANTED", (harmless,))
    result = run(Job(kind="planted", name="no bug at all"))
    assert not result.good
    summary = Summary(base=1)
    summary.add(result)
    assert not summary.good
    assert summary.text().count("replay.py planted --bug no-bug-at-all") == 1
    assert sum(broken for *_, broken in summary.invariants()) == 0


def test_a_crash_of_the_simulation_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("the simulation has a bug of its own")

    monkeypatch.setattr(jobs, "play_seed", explode)
    result = run(Job(kind="fresh", seed=5, hours=1.0))
    assert [name for name, _ in result.broken] == ["nothing-unhandled"]
    assert "a bug of its own" in result.broken[0][1]


def test_a_run_without_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from within a task of the simulated daemon, which catches what it can."""
    monkeypatch.setattr(jobs, "CPU_LIMIT", 0.2)
    result = run(Job(kind="fresh", seed=1, hours=1000.0))
    assert [name for name, _ in result.broken] == ["nothing-unhandled"]
    assert "TooLong: no end after 0.2 CPU-seconds" in result.broken[0][1]
    assert result.job.line.endswith("--seed 1 --hours 1000")


def test_a_failing_run_gets_exactly_one_line() -> None:
    summary = Summary(base=1)
    job = Job(kind="fresh", seed=12345, hours=2.0)
    broken = (("floor", "one\ntwo"), ("floor", "three"), ("bounded", "four " * 100))
    summary.add(Result(job=job, broken=broken, checked=Counter(floor=3), seconds=7200.0))
    lines = [line for line in summary.text().splitlines() if "replay.py" in line]
    assert len(lines) == 1
    assert lines[0].startswith(
        "python tests/simulation/replay.py swarm --seed 12345 --hours 2  # floor: one two"
    )
    rows = {name: (checked, violations) for name, _, checked, violations in summary.invariants()}
    assert (rows["floor"], rows["bounded"]) == ((3, 2), (0, 1))


def test_the_page_has_one_line_for_each_invariant() -> None:
    summary = Summary(base=1)
    summary.add(run(Job(kind="crash", name="notice", seed=CRASH_SEED, point="20:late")))
    lines = summary.text().splitlines()
    for name in INVARIANTS:
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert summary.good
    assert "daemons: 1 killed, 2 started" in summary.text()


@pytest.mark.slow
@pytest.mark.long
def test_a_campaign_runs_in_processes_and_tells_in_json() -> None:
    """`make sim` plays every regression; here it is enough that each of two processes gets one."""
    assert len(jobs.REGRESSIONS) > 2
    words = ("--hours=0", "--parts=regressions", "--most=2", "--jobs=2", "--seed=1", "-o=json")
    played = process("tests/simulation/campaign.py", *words)
    told = json.loads(played.stdout)
    assert (told["schema"], told["base_seed"], told["good"]) == ("sim/1", 1, played.returncode == 0)
    assert told["runs"] == {"regression": 2}
    assert {row["name"] for row in told["invariants"]} >= set(INVARIANTS)
    assert "base seed 1" in played.stderr


def test_a_wrong_part_is_one_clear_error() -> None:
    played = process("tests/simulation/campaign.py", "--parts=fresh,everything")
    assert played.returncode == 2
    assert "everything is none of fresh, regressions, crash, planted" in played.stderr


def test_a_run_that_raises_is_played_again_as_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(_: Job) -> None:
        raise LookupError("nobody thought of this")

    monkeypatch.setattr(replay, "outcome_of", raises)
    monkeypatch.setattr(sys, "argv", ["replay.py", "swarm", "--seed", "5", "--hours", "0.25"])
    assert replay.main() == 1
    assert "BROKEN nothing-unhandled: LookupError: nobody thought of this\n" in capsys.readouterr().out
