"""Turns decided by two versions: equal versions say so, a planted difference is found and classed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import orjson
import pytest
from scenarios import SCENARIOS, play

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import compare_decisions
from compare_decisions import Accepted, Unusable, accepted_by, read_accepted
from decisions.differences import compare, same_words, state_of
from decisions.judge import NoDecision, find_decide
from decisions.player import CODEC, Comparison, Judge, JudgeDied, Tally, overheard
from decisions.wire import Decoder, Encoder, schema

from policies.decide import decide

ROOT = Path(__file__).parents[2]

DRAINS_LEFT_OUT = """

_whole = decide


def decide(pool: Pool, world: World, memory: Memory) -> Plan:
    plan = _whole(pool, world, memory)
    plan.actions = tuple(action for action in plan.actions if action.kind != "drain")
    return plan
"""

LAUNCHES_LEFT_OUT = DRAINS_LEFT_OUT.replace("drain", "launch")

MORE_WORDS = """

_whole = decide


def decide(pool: Pool, world: World, memory: Memory) -> Plan:
    plan = _whole(pool, world, memory)
    plan.notes = (*plan.notes, "and that is that")
    return plan
"""

RAISES = """

def decide(pool: Pool, world: World, memory: Memory) -> Plan:
    raise LookupError(f"nobody thought of {pool.name}")
"""

ANOTHER_WORLD = """
from dataclasses import dataclass
from typing import Literal

@dataclass
class Pool:
    name: str

@dataclass
class World:
    now: float
    mood: str = "good"

@dataclass
class Memory:
    epoch: TYPE = 0

@dataclass
class Plan:
    actions: tuple = ()
    targets: tuple = ()
    write: tuple = ()
    notes: tuple[str, ...] = ()

def decide(pool: Pool, world: World, memory: Memory) -> Plan:
    return Plan(notes=(f"{pool.name} is {world.mood}",))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str], Path]:
    """A version of the policies: this tree's with some more at the end of `decide.py`."""

    def make(more: str) -> Path:
        home = tmp_path / "tree"
        shutil.copytree(ROOT / "policies", home / "policies", ignore=shutil.ignore_patterns("__pycache__"))
        with (home / "policies" / "decide.py").open("a") as file:
            file.write(more)
        return home

    return make


@pytest.fixture
def judge() -> Iterator[Callable[[Path], Judge]]:
    opened: list[Judge] = []

    def make(home: Path) -> Judge:
        opened.append(Judge(home))
        opened[-1].greet(sorted(schema(decide)))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def compared(judge: Judge, folder: Path, scenario: str = "notice") -> Tally:
    comparison = Comparison(judge, decide, scenario)
    with overheard(comparison):
        play(SCENARIOS[scenario], folder / "run", seed=1)
    return comparison.finish()


# -- whole runs ------------------------------------------------------------------------------------


def test_equal_versions_decide_the_same(judge: Callable[[Path], Judge], tmp_path: Path) -> None:
    tally = compared(judge(ROOT), tmp_path)
    assert tally.turns > 20
    assert (tally.different, tally.words, tally.classes, tally.lacks, tally.adds) == (0, 0, {}, (), ())


def test_a_planted_difference_is_found_and_classed(
    judge: Callable[[Path], Judge], tree: Callable[[str], Path], tmp_path: Path
) -> None:
    home = tree(DRAINS_LEFT_OUT)
    tally = compared(judge(home), tmp_path)
    assert 0 < tally.different < tally.turns
    (signature,) = [s for s in tally.classes if s.startswith("drain for notice only here")]
    assert "running" in signature
    assert "noticed" in signature
    count = tally.classes[signature]
    assert (count.turns, count.runs, count.nodes) == (1, 1, 1)
    assert count.example is not None
    assert any(line.startswith("drain i-") for line in count.example["lines"])
    kept = tmp_path / "kept.json"
    kept.write_bytes(orjson.dumps(count.example))
    assert compare_decisions.replay(kept, home) == 1
    assert compare_decisions.replay(kept, ROOT) == 0


def test_words_do_not_count(
    judge: Callable[[Path], Judge], tree: Callable[[str], Path], tmp_path: Path
) -> None:
    tally = compared(judge(tree(MORE_WORDS)), tmp_path)
    assert (tally.different, tally.classes) == (0, {})
    assert tally.words == tally.turns > 20


def test_a_version_that_raises_is_a_class(
    judge: Callable[[Path], Judge], tree: Callable[[str], Path], tmp_path: Path
) -> None:
    tally = compared(judge(tree(RAISES)), tmp_path)
    assert tally.different == tally.turns
    assert tally.classes.keys() == {"raised there: LookupError"}
    example = tally.classes["raised there: LookupError"].example
    assert example is not None
    assert example["lines"] == ("there: LookupError: nobody thought of p",)


def test_types_of_another_version_are_filled_as_far_as_they_go(
    judge: Callable[[Path], Judge], tmp_path: Path
) -> None:
    other = judge(_another(tmp_path, "int"))
    assert {"world.regions", "memory.nodes", "world.regions.value.state=running"} <= set(other.lacks)
    assert other.adds == ("world.mood",)
    tally = compared(other, tmp_path)
    assert 0 < tally.different < tally.turns  # it wants nobody in the target set
    assert not any("unreadable" in signature for signature in tally.classes)


def test_a_turn_that_another_version_cannot_hold_is_a_class(
    judge: Callable[[Path], Judge], tmp_path: Path
) -> None:
    """Also later, while what it cannot hold stays the same and is not sent again."""
    tally = compared(judge(_another(tmp_path, 'Literal["none"]')), tmp_path)
    assert tally.different == tally.turns
    assert all(signature.startswith("unreadable there") for signature in tally.classes)


def _another(folder: Path, kind: str) -> Path:
    home = folder / "another"
    (home / "policies").mkdir(parents=True)
    (home / "policies" / "__init__.py").touch()
    (home / "policies" / "somewhere_else.py").write_text(ANOTHER_WORLD.replace("TYPE", kind))
    return home


def test_what_json_alone_changes_has_a_class_of_its_own(
    judge: Callable[[Path], Judge], tree: Callable[[str], Path], tmp_path: Path
) -> None:
    """This tree's `decide`, asked again, says another thing: the two versions are not to blame."""

    def forgetful(pool: Any, world: Any, memory: Any) -> Any:
        return replace(decide(pool, world, memory), targets=())

    forgetful.__annotations__ = get_type_hints(decide)
    comparison = Comparison(judge(tree(DRAINS_LEFT_OUT)), forgetful, "notice")
    with overheard(comparison):
        play(SCENARIOS["notice"], tmp_path / "run", seed=1)
    assert comparison.finish().classes.keys() == {CODEC}


def test_a_judge_that_ends_says_so(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "rest.py").write_text("def rest() -> None: ...\n")
    asked = Judge(tmp_path)
    with pytest.raises(JudgeDied, match="nothing in its policies defines decide"):
        asked.greet([])
    with pytest.raises(JudgeDied, match="ended"):
        asked.decide([b"{}"])
    asked.close()
    with pytest.raises(NoDecision):
        find_decide(tmp_path)


# -- the wire --------------------------------------------------------------------------------------


def test_a_turn_comes_out_as_it_went_in(tmp_path: Path) -> None:
    encoder, decoder = Encoder(), Decoder(decide)
    sizes = []

    def check(pool: Any, world: Any, memory: Any, _: Any) -> None:
        message = encoder.turn(pool, world, memory)
        sizes.append(len(message))
        assert decoder.turn(orjson.loads(message)) == (pool, world, memory)

    with overheard(check):  # type: ignore[arg-type]
        play(SCENARIOS["stopped_standby"], tmp_path, seed=1)
    assert len(sizes) > 20
    assert sorted(sizes)[len(sizes) // 2] < sizes[0]  # what is known already is not sent again


# -- two plans -------------------------------------------------------------------------------------

DRAIN = {"kind": "drain", "node": "i-1", "deadline": 5.0, "cause": "sick", "reason": "it is silent"}
TARGET = {"id": "i-1", "phase": "active", "weight": 100}
TURN = {
    "world": {
        "leading": True,
        "regions": {"": {"value": [{"id": "i-1", "state": "running"}]}},
        "engines": {"i-1": {"ok": False, "ready": True}},
        "balancers": {"b": {"value": [{"id": "i-1", "state": "healthy"}]}},
    },
    "memory": {"nodes": {"i-1": {"drain": None, "notices": []}}},
}
STATE = "running, silent, target healthy"


def plan(**parts: Any) -> dict[str, Any]:
    return {"actions": [], "targets": [], "write": [], "notes": [], "deferred": []} | parts


@pytest.mark.parametrize(
    ("here", "there", "signature"),
    [
        (plan(actions=[DRAIN]), plan(), f"drain for sick only here ({STATE})"),
        (plan(), plan(actions=[DRAIN]), f"drain for sick only there ({STATE})"),
        (
            plan(actions=[DRAIN]),
            plan(actions=[DRAIN | {"deadline": 6.0, "cause": "excess"}]),
            f"drain with another cause, deadline ({STATE})",
        ),
        (plan(targets=[TARGET]), plan(), f"target active here, absent there ({STATE})"),
        (
            plan(targets=[TARGET]),
            plan(targets=[TARGET | {"weight": 50}]),
            f"target with another weight ({STATE})",
        ),
        (plan(write=["b"]), plan(), "write only here"),
        (plan(targets=[TARGET], write=["b"]), plan(), f"target active here, absent there ({STATE})"),
        (
            plan(actions=[DRAIN, DRAIN | {"node": "i-2"}]),
            plan(actions=[DRAIN | {"node": "i-2"}, DRAIN]),
            "actions in another order",
        ),
        (
            plan(
                actions=[{"kind": "launch", "token": "t", "placement": {"market": "spot"}, "cause": "short"}]
            ),
            plan(),
            "launch for short on spot only here",
        ),
        (
            plan(actions=[{"kind": "alarm", "name": "InvariantViolated", "reason": "floor: 1 of 2"}]),
            plan(),
            "alarm InvariantViolated floor only here",
        ),
        ({"raised": "KeyError: 'i-1'"}, plan(), "raised here: KeyError"),
    ],
)
def test_the_class_of_a_difference(here: dict[str, Any], there: dict[str, Any], signature: str) -> None:
    found = compare(here, there, TURN)
    assert found is not None
    assert found.signature == signature


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (plan(actions=[DRAIN]), plan(actions=[DRAIN | {"reason": "it says nothing"}]), False),
        (plan(notes=["calm"]), plan(), False),
        (plan(actions=[DRAIN]), plan(actions=[DRAIN | {"deadline": 5, "fresh": 1}]), True),
        ({"raised": "KeyError: 1"}, {"raised": "KeyError: 1"}, True),
    ],
)
def test_what_is_no_difference(here: dict[str, Any], there: dict[str, Any], words: bool) -> None:
    assert compare(here, there, TURN) is None
    assert same_words(here, there) is words


def test_the_state_of_a_node_is_what_was_seen_and_remembered() -> None:
    record = {"drain": {"cause": "excess"}, "standby": "hot", "notices": [{"kind": "interruption"}]}
    turn = {"world": {"leading": False}, "memory": {"nodes": {"i-1": record}}}
    said = "unlisted, hot standby, drains for excess, noticed, no probe, no target, not leading"
    assert state_of(turn, "i-1") == said
    assert state_of(turn, "i-2") == "unlisted, not remembered, no probe, no target, not leading"


# -- what was accepted -----------------------------------------------------------------------------


def test_a_class_is_accepted_whole_or_part_by_part() -> None:
    drain, target = (Accepted(pattern=f"{word} *", why=word) for word in ("drain", "target"))
    assert accepted_by("drain only here + target x", [target, drain]) is drain
    assert accepted_by("drain only here + launch x", [target]) is None
    assert accepted_by("launch x", [drain, target]) is None


@pytest.mark.parametrize(
    "table", ["class = 1", "[[class]]\nis = 'x'", "[[class]]\nis = 'x'\nwhy = ' '", "= broken"]
)
def test_a_table_that_says_no_why_is_refused(table: str, tmp_path: Path) -> None:
    (tmp_path / "allow.toml").write_text(table)
    with pytest.raises(Unusable, match=r"allow\.toml"):
        read_accepted(tmp_path / "allow.toml")


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def commits(tree: Callable[[str], Path], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command on a repository of its own: its commit `equal` is this tree, `planted` is not."""
    home = tree("")
    env = {**os.environ, "GIT_DIR": str(home / ".git"), "PYTHONSAFEPATH": "1"}
    env |= {f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=home, env=env, check=True, capture_output=True)

    git("init", "-q")
    for name, more in (("equal", ""), ("planted", LAUNCHES_LEFT_OUT)):
        with (home / "policies" / "decide.py").open("a") as file:
            file.write(more)
        git("--work-tree", str(home), "add", "policies")
        git("commit", "-q", "-m", name)
        git("tag", name)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "tools" / "compare_decisions.py"), *words],
            cwd=tmp_path,
            env={**env, "GIT_WORK_TREE": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    return run


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_command_says_what_differs(
    commits: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    some = ["--parts", "scenarios", "--most", "1", "--jobs", "1", "--save", str(tmp_path / "kept")]
    equal = commits("--against", "equal", *some)
    assert equal.returncode == 0, equal.stderr
    assert "\n0 turns differ (0.000%), 0 more in their words only" in equal.stdout
    planted = commits("--against", "planted", *some, "-o", "json")
    said = json.loads(planted.stdout)
    assert planted.returncode == 1, planted.stderr
    assert f"new class, kept in {tmp_path / 'kept'}/1.json: " in planted.stderr
    assert said["runs"] == 1
    assert said["different"] == sum(each["turns"] for each in said["classes"]) > 0
    assert Path(said["classes"][0]["example"]["file"]).exists()
    (tmp_path / "allow.toml").write_text("[[class]]\nis = '*'\nwhy = 'planted'\n")
    allowed = commits("--against", "planted", *some, "--allow", str(tmp_path / "allow.toml"))
    assert allowed.returncode == 0, allowed.stderr
    assert "accepted: planted" in allowed.stdout


def test_no_run_begins_once_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = compare_decisions.Progress(hours=5.0, minutes=10.0)
    assert (progress.over, progress.enough) == (False, False)
    progress.fresh = 5.0
    assert (progress.over, progress.enough) == (False, True)
    progress.fresh = 4.0
    began = compare_decisions.CLOCK.steady()
    monkeypatch.setattr(compare_decisions, "CLOCK", SimpleNamespace(steady=lambda: began + 601.0))
    assert (progress.over, progress.enough) == (True, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--against", "nowhere"), "no such commit here"),
        (("--against", "HEAD", "--parts", "dreams"), "dreams is none of"),
        (("--against", "HEAD", "--jobs", "0"), "--jobs must be at least 1"),
        (("--against", "HEAD", "--replay", "nothing.json"), "a file that a comparison kept"),
        ((), "--against"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(words: tuple[str, ...], said: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / "compare_decisions.py"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
