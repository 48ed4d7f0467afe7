"""Fresh seeds that fail are judged by the parent commit: what is clean there was broken by this change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import fresh_seeds
from fresh_seeds import Verdict

ROOT = Path(__file__).parents[1]

CAMPAIGN = """
import json, pathlib
bugs = json.loads(pathlib.Path("bugs.json").read_text())
failures = [
    {"replay": f"python tests/simulation/replay.py {seed}", "broken": [{"name": "floor", "text": what}]}
    for seed, what in bugs.items()
]
print(json.dumps({"runs": {"fresh": 5}, "fresh_hours": 2.0, "base_seed": 7, "failures": failures}))
"""

REPLAY = """
import json, os, pathlib, sys
import policies
what = json.loads(pathlib.Path("bugs.json").read_text()).get(sys.argv[1])
if what == "crash":
    raise ImportError("this version has no such run")
if what is not None:
    print(f"BROKEN floor: {what} in {policies.__file__}")
sys.exit(what is not None)
"""

AUTHOR = {f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(home: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "commit.gpgsign=false", *words],
        cwd=home,
        env={**os.environ, **AUTHOR},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def commit(home: Path, bugs: dict[str, str]) -> str:
    (home / "bugs.json").write_text(json.dumps(bugs))
    git(home, "add", "-A")
    git(home, "commit", "-qm", "a change", "--allow-empty")
    return git(home, "rev-parse", "HEAD")


def fresh(home: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The tool of a repository, in that repository."""
    known = {name: value for name, value in os.environ.items() if name != fresh_seeds.PARENT}
    return subprocess.run(
        [sys.executable, "tools/fresh_seeds.py", *words],
        cwd=home,
        env={**known, "PYTHONSAFEPATH": "1", **env},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., Path]:
    """A repository with a commit for each set of bugs, by seed, and a campaign that finds them."""

    def make(*commits: dict[str, str]) -> Path:
        home = tmp_path / "repository"
        for package in ("cloud", "orchestrator", "policies"):
            (home / package).mkdir(parents=True)
            (home / package / "__init__.py").touch()
        for name in ("tools/fresh_seeds.py", "tools/commits.py", "cloud/clock.py"):
            (home / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, home / name)
        (home / "tests" / "simulation").mkdir(parents=True)
        (home / "tests" / "simulation" / "campaign.py").write_text(CAMPAIGN)
        (home / "tests" / "simulation" / "replay.py").write_text(REPLAY)
        (home / ".gitignore").write_text("__pycache__\n")
        git(home.parent, "init", "-q", str(home))
        for bugs in commits:
            commit(home, bugs)
        return home

    return make


@pytest.mark.parametrize(
    ("before", "now", "code", "said"),
    [
        ({}, {}, 0, "5 fresh seeds, 2 h, base 7: 0 failed\n"),
        ({"1": "too few"}, {"1": "too few"}, 0, "FOUND: seeds above"),
        ({}, {"1": "too few"}, 1, "BROKEN BY THIS CHANGE"),
        ({"1": "too few"}, {"1": "too few", "2": "too few"}, 1, "BROKEN BY THIS CHANGE"),
        ({"1": "crash"}, {"1": "too few"}, 1, "ImportError: this version has no such run"),
    ],
)
def test_the_parent_says_whose_bug_it_is(
    repository: Callable[..., Path], before: dict[str, str], now: dict[str, str], code: int, said: str
) -> None:
    done = fresh(repository(before, now))
    assert done.returncode == code, done.stderr
    assert said in done.stdout
    assert ("FOUND" in done.stdout) is ("1" in before and before["1"] != "crash")
    for seed in now:
        assert f"python tests/simulation/replay.py {seed}\n" in done.stdout


def test_each_seed_has_its_own_verdict(repository: Callable[..., Path]) -> None:
    home = repository({"1": "too few", "3": "crash"}, {"1": "too few", "2": "too few", "3": "too few"})
    lines = fresh(home).stdout.splitlines()
    verdicts = [line.strip() for line in lines if line.startswith("    ") and "parent" in line]
    assert verdicts == [
        Verdict.BROKEN.value,
        Verdict.CLEAN.value,
        f"{Verdict.UNKNOWN.value} (ImportError: this version has no such run)",
    ]


def test_a_commit_can_be_named(repository: Callable[..., Path]) -> None:
    """A merge base: the commits since then are one change."""
    home = repository({}, {"1": "too few"}, {"1": "too few"})
    assert fresh(home).returncode == 0
    done = fresh(home, **{fresh_seeds.PARENT: "HEAD~2"})
    assert done.returncode == 1
    assert "BROKEN BY THIS CHANGE" in done.stdout


def test_what_is_not_committed_is_judged_by_the_last_commit(repository: Callable[..., Path]) -> None:
    home = repository({"1": "too few"}, {})
    (home / "bugs.json").write_text(json.dumps({"1": "too few"}))
    assert "BROKEN BY THIS CHANGE" in fresh(home).stdout


def test_a_seed_that_fails_in_a_shallow_clone_counts_against_the_change(
    repository: Callable[..., Path], tmp_path: Path
) -> None:
    bugs = {"1": "too few"}
    home = repository(bugs, bugs)
    git(tmp_path, "clone", "-q", "--depth", "1", home.as_uri(), "shallow")
    done = fresh(tmp_path / "shallow")
    assert done.returncode == 1
    assert "HEAD^: no such commit here; a shallow clone lacks old ones: git fetch --unshallow" in done.stdout
    git(tmp_path / "shallow", "fetch", "-q", "--unshallow")
    assert fresh(tmp_path / "shallow").returncode == 0


def test_a_shallow_clone_without_failing_seeds_is_no_failure(
    repository: Callable[..., Path], tmp_path: Path
) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", repository({}, {}).as_uri(), "shallow")
    assert fresh(tmp_path / "shallow").returncode == 0


def test_what_the_budget_leaves_out_counts_against_the_change(repository: Callable[..., Path]) -> None:
    bugs = {"1": "too few"}
    done = fresh(repository(bugs, bugs), "--budget", "0")
    assert done.returncode == 1
    assert f"{Verdict.UNKNOWN.value} (the 0 s for this were over)" in done.stdout


def test_a_campaign_that_breaks_off_is_said(repository: Callable[..., Path]) -> None:
    home = repository({}, {})
    (home / "tests" / "simulation" / "campaign.py").write_text("raise SystemExit(3)")
    done = fresh(home)
    assert (done.returncode, done.stderr) == (2, "fresh_seeds: the campaign did not come to its end\n")


def test_a_run_without_end_is_broken_and_one_without_time_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hang.py").write_text("import threading; threading.Event().wait()")
    known = fresh_seeds._played("python hang.py", tmp_path, 0.2)
    assert (known.verdict, known.why) == (Verdict.UNKNOWN, "the time for this was over")
    monkeypatch.setattr(fresh_seeds, "LONGEST", 0.2)
    assert fresh_seeds._played("python hang.py", tmp_path, 0.2).verdict is Verdict.BROKEN


BUG = """

_whole = decide_for


def decide_for(*given: object) -> Plan:
    plan = _whole(*given)
    plan.actions = tuple(action for action in plan.actions if action.kind != "launch")
    return plan
"""

ONE_SEED = """
import json, sys
sys.path.insert(0, "tests/simulation")
from jobs import Job, quiet, run
quiet()
result = run(Job(kind="crash", name="bootstrap", seed=1))
failures = [{"replay": result.job.line, "broken": [{"name": n, "text": t} for n, t in result.broken]}]
failures = [] if result.good else failures
print(json.dumps({"runs": {"fresh": 1}, "fresh_hours": 0.1, "base_seed": 1, "failures": failures}))
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_bug_that_a_change_plants_is_its_own(repository: Callable[..., Path]) -> None:
    """The real simulation, in a repository whose last commit never launches anything."""
    home = repository()
    for folder in ("cloud", "orchestrator", "policies", "tests/simulation"):
        shutil.rmtree(home / folder)
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (home / "tests" / "simulation" / "campaign.py").write_text(ONE_SEED)
    commit(home, {})
    with (home / "policies" / "decide.py").open("a") as file:
        file.write(BUG)
    commit(home, {})
    done = fresh(home, PYTHONPATH=str(home))
    assert done.returncode == 1, done.stderr
    assert f"    {Verdict.CLEAN.value}\n" in done.stdout
