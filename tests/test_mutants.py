"""`make mutants`: what it changes and draws, what it says of a small tree, what it leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from mutants import equivalent
from mutants.cover import Case, Cover
from mutants.draw import candidates, draw
from mutants.groups import group_of
from mutants.operators import OPERATORS, mutants
from mutants.report import difference
from mutants.source import Mutant, Source

ROOT = Path(__file__).parents[1]


def afters(text: str, operator: str) -> list[str]:
    """What the operator makes of the text, line by line."""
    source = Source("policies/some.py", text.encode())
    found = [m for m in mutants(source) if m.operator == operator]
    assert all(m.compiles(source.data) for m in found)
    return [m.after for m in found]


@pytest.mark.parametrize(
    ("operator", "text", "expected"),
    [
        ("comparison", "x = a < b", ["x = a >= b"]),
        ("comparison", "x = a  not  in b", ["x = a in b"]),
        ("comparison", "x = (a) is not (b) == c", ["x = (a) is (b) == c", "x = (a) is not (b) != c"]),
        ("boundary", "x = a < b <= c", ["x = a <= b <= c", "x = a < b < c"]),
        ("boundary", "x = a == b", []),
        ("junction", "x = a and (b or c)", ["x = a or (b or c)", "x = a and (b and c)"]),
        ("negation", "if a == b:\n    f()", ["if not (a == b):"]),
        ("negation", "if not (a or b):\n    f()", ["if (a or b):"]),
        ("negation", "x = [i for i in a if i.ok]", ["x = [i for i in a if not (i.ok)]"]),
        (
            "clause",
            "x = (a or b) and c and d",
            [
                "x = c and d",
                "x = (a or b) and d",
                "x = (a or b) and c",
                "x = (b) and c and d",
                "x = (a) and c and d",
            ],
        ),
        (
            "filter",
            "x = sum(i for i in a if i if (j))",
            ["x = sum(i for i in a if (j))", "x = sum(i for i in a if i)"],
        ),
        ("jump", "for i in a:\n    continue", ["break"]),
        ("constant", "x = f(3, 0)", ["x = f(4, 0)", "x = f(2, 0)", "x = f(3, 1)"]),
        ("constant", "f(1.5, on=True)", ["f(3.0, on=True)", "f(1.5, on=False)"]),
        (
            "default",
            "def f(a=1, *, b=False): ...",
            ["def f(a=2, *, b=False): ...", "def f(a=1, *, b=True): ..."],
        ),
        ("default", "class A:\n    wait: float = 2.0", ["wait: float = 4.0"]),
        ("returned", "def f() -> bool:\n    return a", ["return True", "return False"]),
        ("returned", "def f() -> list[int]:\n    return a", ["return []"]),
        ("returned", "def f() -> Node | None:\n    return a", ["return None"]),
        ("statement", "f(a)", ["pass"]),
        ("statement", "self.a = 1", ["pass"]),
        ("statement", "a = 1", []),
        ("statement", "log.info('node.gone', node=a)", []),
        ("awaited", "async def f():\n    await guard()", ["pass"]),
        ("raised", "raise ValueError(f'{a + 1}')", ["pass"]),
        ("arguments", "f((a), b, c)", ["f(b, (a), c)"]),
        ("arguments", "min(a, b)", []),
        ("arithmetic", "x = a - (b * c)", ["x = a + (b * c)", "x = a - (b / c)"]),
        ("arithmetic", "a += b", ["a -= b"]),
        ("arithmetic", "x = 'a' + b", []),
        ("extreme", "x = max(a, b)", ["x = min(a, b)"]),
    ],
)
def test_an_operator_changes_this_and_nothing_else(operator: str, text: str, expected: list[str]) -> None:
    assert sorted(afters(text, operator)) == sorted(expected)


@pytest.mark.parametrize(
    "text",
    [
        "def f(a: Literal[1] = x) -> Literal[2]: ...",
        "x = f'{a + 1}'",
        "assert a < 1",
        "if TYPE_CHECKING:\n    f(1)",
        "class A(Protocol):\n    async def f(self, a=1): ...",
        "class A:\n    def __repr__(self):\n        return a + 1",
        "x = Field(description=f(1, 2))",
        "@mark(1)\ndef f(): ...",
        "LIMIT = 64 * 1024 * 1024",
        "BUFFER = 2**16",
        "SHAPES = {" + ", ".join(f"'a{n}': {n}" for n in range(13)) + "}",
    ],
)
def test_messages_types_and_ports_are_left_alone(text: str) -> None:
    assert mutants(Source("policies/some.py", text.encode())) == []


def test_a_change_is_shown_on_one_line() -> None:
    (mutant,) = [
        m for m in mutants(Source("policies/a.py", b"x = f(a, b) if c else d")) if m.operator == "negation"
    ]
    assert difference(mutant) == "x = f(a, b) if [-c-]{+not (c)+} else d"


# -- a small tree -----------------------------------------------------------------------------------

FAIR = '''
def share(total, parts):
    """What each gets."""
    if parts < 1:
        return 0
    return total / parts


def count_down(number):
    while number > 0:
        number = number - 1
    return "down"


def same(a):
    return a + 0 - 0


def nobody(a):
    return a == 1
'''
TESTS = """
from policies.fair import count_down, same, share

def test_share():
    assert share(6, 2) == 3

def test_none():
    assert share(6, -3) == 0

def test_count_down():
    assert count_down(5) == "down"

def test_same():
    assert same(3) == 3
"""
CHOSEN = [part for name in ("comparison", "boundary", "arithmetic") for part in ("--operator", name)]
TABLE = """
[[mutant]]
file = 'policies/fair.py'
function = 'same'
before = 'return a + 0 - 0'
after = 'return a + 0 + 0'
why = "Nothing taken away is nothing added."
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tree with one policy and its tests."""
    root = tmp_path / "small"
    for name, text in {
        "policies/__init__.py": "",
        "policies/fair.py": FAIR,
        "tests/policies/test_fair.py": TESTS,
        "tools/mutants/equivalent.toml": TABLE,
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "--import-mode=importlib"\n',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def whole_runs(test: Any) -> Any:
    """Each forks a dozen processes that import pytest: some seconds where nothing else runs."""
    return pytest.mark.slow(pytest.mark.timeout(300)(test))


def command(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """`make mutants` on this tree, with its temporary files beside it."""
    temporary = root.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools"), "TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-m", "mutants", "--root", str(root), "--workers", "2", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def whole(root: Path, *arguments: str) -> tuple[int, str, str]:
    """The exit code and what was printed."""
    with command(root, *arguments) as process:
        out, errors = process.communicate(timeout=280)
    return process.returncode, out, errors


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and ".cache" not in p.parts
    }


def left_over(root: Path) -> list[str]:
    """Processes and files of a run."""
    found = [str(path) for path in (root.parent / "temporary").iterdir()]
    for entry in Path("/proc").iterdir():
        try:
            if str(root.parent / "temporary").encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


@whole_runs
def test_a_run_says_what_was_noticed_and_what_was_not(small: Path) -> None:
    before = contents(small)
    code, out, errors = whole(small, *CHOSEN, "-o", "json", "--at-least", "0.99")
    assert code == 1, errors
    said = json.loads(out)
    ended = {(t["function"], t["operator"], t["after"]): t["ended"] for t in said["tried"]}
    assert ended["share", "comparison", "if parts >= 1:"] == "killed"
    # The planted one: nobody asks for one part.
    assert ended["share", "boundary", "if parts <= 1:"] == "survived"
    assert ended["nobody", "comparison", "return a != 1"] == "uncovered"
    assert ended["count_down", "arithmetic", "number = number + 1"] == "timeout"
    assert ("same", "arithmetic", "return a + 0 + 0") not in ended
    assert said["equivalent"] == 1
    assert ("share", "boundary") in {(s["function"], s["operator"]) for s in said["survivors"]}
    assert said["mutants"] == len(said["tried"]) == said["killed"] + len(said["survivors"])
    assert said["timeouts"] >= 1
    assert said["void"] == 0
    assert contents(small) == before
    assert left_over(small) == []


@whole_runs
def test_a_run_that_is_good_enough_ends_with_zero_and_prints_tables(small: Path) -> None:
    code, out, errors = whole(
        small, "--at", "policies/fair.py:4", "--operator", "comparison", "--at-least", "1"
    )
    assert code == 0, errors
    assert "policies           1       1    100%" in out
    assert "seed 1: 1 of 1 mutants killed, 100.0%" in out


@whole_runs
def test_a_test_that_fails_without_the_mutant_as_well_makes_it_void(small: Path) -> None:
    """It passes when it is asked first, and fails ever after."""
    seen = small.parent / "seen"
    flaky = f"""
from pathlib import Path
from policies.fair import nobody

def test_flaky():
    nobody(1)
    seen = Path({str(seen)!r})
    assert not seen.exists()
    seen.touch()
"""
    (small / "tests/policies/test_fair.py").write_text(flaky)
    code, out, errors = whole(small, "--at", "policies/fair.py:20", "--operator", "comparison", "-o", "json")
    assert seen.exists(), errors
    said = json.loads(out)
    assert (said["mutants"], said["killed"], said["void"], code) == (0, 0, 1, 0)


@whole_runs
def test_ctrl_c_ends_everything_that_was_started(small: Path) -> None:
    begun = small.parent / "begun"
    hangs = f"""
import subprocess, sys
from pathlib import Path
from policies.fair import nobody

def test_hangs_when_changed():
    if not nobody(1):
        Path({str(begun)!r}).touch()
        subprocess.run([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
"""
    (small / "tests/policies/test_fair.py").write_text(hangs)
    before = contents(small)
    with command(small, "--at", "policies/fair.py:20", "--operator", "comparison") as process:
        until = time.monotonic() + 200
        while not begun.exists():
            assert time.monotonic() < until, "the test does not begin"
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert contents(small) == before
    assert left_over(small) == []


# -- the sample -------------------------------------------------------------------------------------


def sample(root: Path, seed: int, count: int, **asked: Any) -> list[Mutant]:
    return list(itertools.islice(draw(root, candidates(root, **asked), seed), count))


@pytest.fixture(scope="module")
def some() -> list[Mutant]:
    """Mutants of three groups."""
    return [
        m
        for at in ("policies/s*.py", "orchestrator/loop/*.py", "cloud/aws/*.py")
        for m in candidates(ROOT, at=at)
    ]


def test_the_same_seed_draws_the_same(some: list[Mutant]) -> None:
    first, again, other = (list(itertools.islice(draw(ROOT, some, seed), 40)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert len(set(first)) == 40


def test_the_sample_is_even_over_groups_and_operators(some: list[Mutant]) -> None:
    drawn = list(itertools.islice(draw(ROOT, some, 7), 96))
    groups = Counter(group_of(m.file) for m in drawn)
    assert set(groups.values()) == {32}
    operators = Counter(m.operator for m in drawn)
    assert operators.keys() == OPERATORS.keys()
    assert max(operators.values()) <= 2 * 3 + 3  # 32 of a group over 16 operators, some of which have few


def test_a_smaller_run_tries_the_first_of_a_larger_one(some: list[Mutant]) -> None:
    few, many = (list(itertools.islice(draw(ROOT, some, 7), count)) for count in (10, 30))
    assert many[:10] == few


def test_what_is_asked_for_is_drawn(small: Path) -> None:
    assert {m.operator for m in sample(small, 1, 9, operators=["returned"])} == {"returned"}
    assert {m.function for m in sample(small, 1, 9, at="policies/fair.py:20")} == {"nobody"}
    assert sample(small, 1, 9, groups=["gateway"]) == []


# -- which tests are run ----------------------------------------------------------------------------


def ran(*lines: int) -> dict[str, bytes]:
    bits = bytearray(8)
    for line in lines:
        bits[line // 8] |= 1 << line % 8
    return {"policies/fair.py": bytes(bits)}


def test_a_module_s_own_tests_come_first_and_the_quickest_of_them(small: Path) -> None:
    cover = Cover(
        small,
        [
            Case("tests/orchestrator/loop/test_a.py::test_a", 0.1, 0.1, ran(20)),
            Case("tests/policies/test_other.py::test_b", 0.1, 0.1, ran(20)),
            Case("tests/policies/test_fair.py::test_slow", 2.0, 2.0, ran(20)),
            Case("tests/policies/test_fair.py::test_quick", 1.0, 1.0, ran(20, 21)),
            Case("tests/policies/test_fair.py::test_elsewhere", 0.1, 0.1, ran(4)),
        ],
    )
    (mutant,) = sample(small, 1, 1, at="policies/fair.py:20", operators=["comparison"])
    assert cover.batches(mutant, 20.0) == [
        ["tests/policies/test_fair.py::test_quick", "tests/policies/test_fair.py::test_slow"],
        ["tests/policies/test_other.py::test_b"],
        ["tests/orchestrator/loop/test_a.py::test_a"],
    ]
    assert cover.batches(mutant, 1.6) == [["tests/policies/test_fair.py::test_quick"]]


def test_a_constant_is_held_by_the_tests_that_run_a_line_with_its_name(small: Path) -> None:
    (small / "policies/fair.py").write_text(
        "LIMIT = 3\n\n\ndef f(a):\n    return a < LIMIT\n\n\ndef g():\n    return 1\n"
    )
    cover = Cover(
        small,
        [
            Case("tests/policies/test_fair.py::test_f", 0.1, 0.1, ran(5)),
            Case("tests/policies/test_fair.py::test_g", 0.1, 0.1, ran(9)),
        ],
    )
    mutant = sample(small, 1, 1, at="policies/fair.py:1")[0]
    assert [t.name for t in cover.reached(mutant)] == ["tests/policies/test_fair.py::test_f"]


def test_a_field_is_held_by_the_tests_that_make_one_of_its_class(small: Path) -> None:
    (small / "policies/fair.py").write_text(
        "class Rules:\n    limit: int = 3\n\n\ndef f():\n    return Rules()\n\n\n"
        "def g(a):\n    return a.limit\n"
    )
    tests = [Case(f"tests/policies/test_fair.py::{n}", 0.1, 0.1, ran(n)) for n in (1, 6, 10)]
    mutant = sample(small, 1, 1, at="policies/fair.py:2")[0]
    assert [t.name[-2:].strip(":") for t in Cover(small, tests).reached(mutant)] == ["1", "6", "10"]


def test_a_module_s_own_tests_may_stand_in_another_room(small: Path) -> None:
    (small / "cloud").mkdir(exist_ok=True)
    (small / "cloud/disks.py").write_text("def f(a):\n    return a < 3\n")
    lines = {"cloud/disks.py": ran(2)["policies/fair.py"]}
    cover = Cover(
        small,
        [
            Case("tests/cloud/test_other.py::test_a", 0.1, 0.1, lines),
            Case("tests/cloud/agent/test_disks.py::test_b", 1.0, 1.0, lines),
            Case("tests/orchestrator/agent/test_disks.py::test_c", 0.1, 0.1, lines),
        ],
    )
    mutant = sample(small, 1, 1, at="cloud/disks.py:2")[0]
    assert cover.batches(mutant, 20.0)[0] == ["tests/cloud/agent/test_disks.py::test_b"]


# -- the table of equivalents -----------------------------------------------------------------------


def test_every_entry_of_the_table_is_a_mutant_of_today() -> None:
    table = equivalent.read(ROOT)
    found = [
        mutant for file in sorted({entry.file for entry in table}) for mutant in candidates(ROOT, at=file)
    ]
    assert equivalent.stale(table, found) == []


def test_an_entry_stands_once_in_the_table() -> None:
    twice = [key for key, n in Counter(entry.key for entry in equivalent.read(ROOT)).items() if n > 1]
    assert twice == []


def test_a_stale_entry_is_found(small: Path) -> None:
    table = equivalent.read(small)
    assert equivalent.stale(table, candidates(small)) == []
    (small / "policies/fair.py").write_text(FAIR.replace("a + 0 - 0", "a"))
    assert equivalent.stale(table, candidates(small)) == table


@pytest.mark.parametrize("broken", ['why = ""', "", 'why = "so"\nline = 3'])
def test_an_entry_has_a_reason_and_no_more_than_it_needs(small: Path, broken: str) -> None:
    (small / "tools/mutants/equivalent.toml").write_text(
        TABLE.replace('why = "Nothing taken away is nothing added."', broken)
    )
    with pytest.raises(ValueError, match="an entry has"):
        equivalent.read(small)
