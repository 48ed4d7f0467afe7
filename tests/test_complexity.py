"""The cyclomatic complexity that `tools/complexity.py` counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from complexity import Unreadable, by_package, complexity, of_tree, report, table

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("x = 1\nclass A:\n    y = 2\n", 0),
        ("def f(): ...\nasync def g(): ...\n", 2),
        ("f = lambda: 1", 1),
        ("if a:\n    b\nelif c:\n    d\nelse:\n    e\n", 2),
        ("x = 1 if a else 2", 1),
        ("x = a and b and c or d", 3),
        ("for x in y:\n    pass\nelse:\n    pass\n", 1),
        ("async def f():\n    async for x in y:\n        pass\n", 2),
        ("while a:\n    break", 1),
        ("x = [y for y in z if y if not y.w for v in y]", 4),
        ("x = {y: 1 for y in z}; w = {y for y in z}; v = (y for y in z)", 3),
        ("try:\n    a\nexcept KeyError:\n    b\nexcept OSError:\n    c\nelse:\n    d\nfinally:\n    e\n", 2),
        ("match a:\n    case 1 | 2:\n        b\n    case _ if c:\n        d\n", 2),
        ("assert a", 1),
        ("with a as b, c:\n    d", 0),
    ],
)
def test_each_way_that_code_can_take_is_one(source: str, count: int) -> None:
    assert complexity(source) == count


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    def make(files: dict[str, str]) -> Path:
        for name, source in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(source)
        return tmp_path

    return make


def test_what_was_moved_to_another_package_shows(tree: Callable[[dict[str, str]], Path]) -> None:
    now = of_tree(tree({"a/one.py": "x = 1", "b/deep/two.py": "def f(): return 1 if a else 2"}), ("a", "b"))
    assert now == {"a/one.py": 0, "b/deep/two.py": 2}
    assert by_package(now, ("a", "b")) == {"a": 0, "b": 2}
    said = report(now, {"a/one.py": 4, "b/deep/two.py": 2, "b/old.py": 4}, ("a", "b"))
    assert said["packages"]["a"] == {"now": 0, "before": 4, "ratio": 0.0}
    assert said["packages"]["b"] == {"now": 2, "before": 6, "ratio": 2 / 6}
    assert said["sum"] == {"now": 2, "before": 10, "ratio": 0.2}
    assert report({"a/n.py": 1}, {}, ("a",))["files"]["a/n.py"] == {"now": 1, "before": 0, "ratio": None}
    changed = [line.split()[-1] for line in table(said, every=False).splitlines()]
    assert changed == ["ratio", "a/one.py", "b/old.py", "a/", "b/", "sum"]
    assert "b/deep/two.py" in table(said, every=True)


def test_a_package_is_no_other_that_begins_alike() -> None:
    assert by_package({"cloud/a.py": 1, "clouds/b.py": 2}, ("cloud",)) == {"cloud": 1}


@pytest.mark.parametrize(
    ("name", "said"), [("a/broken.py", "^a/broken.py: "), ("b/other.py", "^a: no such folder")]
)
def test_what_cannot_be_counted_is_named(
    tree: Callable[[dict[str, str]], Path], name: str, said: str
) -> None:
    with pytest.raises(Unreadable, match=said):
        of_tree(tree({name: "def f(:"}), ("a",))


def count(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "complexity.py"), *words]
    there = {**os.environ, "PYTHONSAFEPATH": "1", **env}
    return subprocess.run(command, env=there, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_counts_a_commit(tree: Callable[[dict[str, str]], Path]) -> None:
    """A repository of its own has the commit, in which policies were next to nothing."""
    home = tree({"policies/decide.py": "def decide(): ..."})
    env = {"GIT_DIR": str(home / ".git"), "GIT_WORK_TREE": str(home)}
    env |= {f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for words in (["init", "-q"], ["add", "policies"], ["commit", "-qm", "small"]):
        subprocess.run(["git", *words], cwd=home, env={**os.environ, **env}, check=True)
    done = count("--against", "HEAD", "-o", "json", "policies", **env)
    said = json.loads(done.stdout)
    assert said["packages"]["policies"]["before"] == said["sum"]["before"] == 1
    assert said["sum"]["now"] == sum(of_tree(ROOT, ["policies"]).values()) > 1000


@pytest.mark.parametrize("words", [("--against", "nowhere"), ("no-such-folder",)])
def test_what_the_command_cannot_read_is_said_in_a_line(words: tuple[str, ...]) -> None:
    done = count(*words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert words[-1] in done.stderr
