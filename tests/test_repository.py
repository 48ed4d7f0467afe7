"""Rules that the whole repository keeps: layers, sizes, words that may not be in it, make targets."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "cloud", "policies")
LONGEST_FILE = 520
LONGEST_FUNCTION = 75

# Registries and model hubs: what is installed from where is the user's choice, not the repository's.
HOSTS = (
    r"pypi\.org|pythonhosted\.org|huggingface\.co|\bhf\.co|ghcr\.io|docker\.io|quay\.io|gcr\.io|npmjs|crates\.io"
    r"|download\.pytorch\.org|wheels\.vllm\.ai"
)
HOMES = (
    r"/(?:home|Users)/[a-z][\w.-]*/|(?<![\w.])/root/|(?<![\w.])/(?:work|workspace|mnt(?!/orchestrator\b))/"
)


@cache
def tracked() -> tuple[Path, ...]:
    """The files of the repository: what git tracks, or, outside of a clone, everything that is not made."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        found = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        made = (".venv", ".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")
        found = [f for f in ROOT.rglob("*") if f.is_file() and not set(f.parts) & set(made)]
    return tuple(file for file in found if file.is_file())


def sources() -> list[Path]:
    """Every Python file of the three packages."""
    return [file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py"))]


def short(file: Path) -> str:
    return str(file.relative_to(ROOT))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_layers_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_files_are_short() -> None:
    long = {short(f): n for f in sources() if (n := len(f.read_text().splitlines())) > LONGEST_FILE}
    assert long == {}


def test_functions_are_short() -> None:
    long = {}
    for file in sources():
        for function in functions(ast.parse(file.read_text(encoding="utf-8"))):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > LONGEST_FUNCTION:
                long[f"{short(file)}:{function.name}"] = lines
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    bare = [short(f) for f in sources() if not ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))]
    assert bare == []


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a registry or model hub", HOSTS),
        ("a directory of one machine", HOMES),
        ("work left for later", r"\b(?:TODO|FIXME|XXX|HACK)\b"),
    ],
    ids=["hosts", "homes", "later"],
)
def test_no_tracked_file_names(what: str, pattern: str) -> None:
    expression = re.compile(pattern)
    found = []
    for file in tracked():
        if file == Path(__file__):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if expression.search(line):
                found.append(f"{short(file)}:{number}: {line.strip()[:100]}")
    assert found == [], f"{what} in tracked files"


def test_nothing_large_or_secret_is_tracked() -> None:
    large = {short(f): f.stat().st_size for f in tracked() if f.stat().st_size > 512 * 1024}
    assert large == {}
    secret = [
        short(f) for f in tracked() if f.suffix in (".pem", ".key", ".p12") or f.name.startswith(".env")
    ]
    assert secret == []


def test_test_files_of_the_same_name_are_told_apart() -> None:
    """Import mode importlib needs no packages; an __init__.py in tests would bring them back."""
    assert [short(f) for f in (ROOT / "tests").rglob("__init__.py")] == []


# -- rooms ----------------------------------------------------------------------------------------

DAEMON = ROOT / "orchestrator"
MOST_BESIDE = 12


def rooms() -> set[str]:
    return {file.parent.name for file in DAEMON.glob("*/__init__.py")}


def beside() -> set[str]:
    """Modules that stand beside the rooms."""
    return {file.stem for file in DAEMON.glob("*.py")} - {"__init__", "__main__"}


def test_the_architecture_page_has_every_room_in_a_line() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"(?ms)^```text\norchestrator/\n(.*?)^```", page)
    lines = [re.fullmatch(r"  ([a-z]+)/ +(\S.{20,})", line) for line in tree.splitlines()]
    assert all(lines), tree
    assert sorted(line[1] for line in lines if line is not None) == sorted(rooms())


def test_the_page_lists_rooms_as_the_contract_does() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    listed = [name for name in re.findall(r"(?m)^  ([a-z]+)/ ", page) if name in rooms()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c.get("containers") == ["orchestrator"]]
    ranks = {name: rank for rank, line in enumerate(layers) for name in line.split(" | ")}
    assert [ranks[name] for name in listed] == sorted(ranks[name] for name in listed)


def test_what_stands_beside_the_rooms_is_used_by_several_files() -> None:
    assert len(beside()) + 2 <= MOST_BESIDE
    texts = {file: file.read_text(encoding="utf-8") for file in sources()}
    for module in beside():
        name = re.compile(rf"from orchestrator\.{module} import|from orchestrator import .*\b{module}\b")
        users = [short(file) for file, text in texts.items() if name.search(text)]
        assert len(users) > 1, f"orchestrator/{module}.py is used by {users} alone: it belongs there"


def test_tests_of_the_daemon_stand_in_the_rooms_that_they_test() -> None:
    tests = ROOT / "tests" / "orchestrator"
    folders = {file.relative_to(tests).parts[0] for file in tests.glob("*/**/test_*.py")}
    assert folders - rooms() == set()
    assert {file.stem.removeprefix("test_") for file in tests.glob("test_*.py")} - beside() == set()
    strays = {}
    for file in tests.glob("*/**/test_*.py"):
        used = set(re.findall(r"from orchestrator\.([a-z]+)", file.read_text(encoding="utf-8")))
        room = file.relative_to(tests).parts[0]
        if used and room not in used and room != "cli":  # commands are typed there
            strays[short(file)] = used
    assert strays == {}


# -- make -----------------------------------------------------------------------------------------


def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def targets() -> set[str]:
    """Targets that people type."""
    return set(re.findall(r"(?m)^([a-z][a-z-]*):", makefile()))


def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.strip().startswith("make ")}
    assert listed == targets()
    assert subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True).stdout == done.stdout


def test_every_target_is_phony() -> None:
    """A file of the same name would switch a target off."""
    (phony,) = re.findall(r"(?m)^\.PHONY: (.*)$", makefile())
    assert set(phony.split()) == targets()


@pytest.mark.parametrize("target", ["demo", "test", "lint", "check", "bench", "docs", "setup"])
def test_targets_can_be_made(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_is_left_out_of_make_test_is_found_by_test_long() -> None:
    """It reads the files whose text speaks of a mark, or of the one helper that gives it to tests."""
    recipe = makefile().partition("test-long: $(STAMP)")[2].partition("\n\n")[0]
    (pattern,) = re.findall(r'grep -rlE "([^"]+)"', recipe)
    marked = re.compile(r"mark\.(llamacpp|long)\b")
    giving = [f for f in tracked() if f.suffix == ".py" and marked.search(f.read_text(encoding="utf-8"))]
    helpers = {f.stem for f in giving if not f.name.startswith("test_")} - {"conftest"}
    assert len(giving) > len(helpers) > 0
    assert set(pattern.split("|")[-len(helpers) :]) == helpers


def test_scripts_are_executable_and_sound() -> None:
    scripts = [f for f in tracked() if f.suffix == ".sh" or f.parent.name == ".ci"]
    assert scripts
    for script in scripts:
        assert os.access(script, os.X_OK), f"{short(script)} is not executable"
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "set -euo pipefail" in script.read_text(encoding="utf-8"), (
            f"{short(script)} goes on after errors"
        )


def test_the_continuous_check_makes_what_people_make() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    used = set(re.findall(r"(?m)^\s*make ([a-z-]+)", text))
    assert {"setup", "lint", "test", "test-long"} <= used <= targets()


def test_a_missing_part_of_debian_skips_a_test_and_fails_it_where_all_are_required(
    lacking: Callable[[str], NoReturn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORCHESTRATOR_REQUIRE_DEBIAN", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no frobnicator"):
        lacking("no frobnicator")
    monkeypatch.setenv("ORCHESTRATOR_REQUIRE_DEBIAN", "1")
    with pytest.raises(pytest.fail.Exception, match="no frobnicator"):
        lacking("no frobnicator")
    check = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "ORCHESTRATOR_REQUIRE_DEBIAN=1" in check
    assert "ORCHESTRATOR_REQUIRE_CONTAINERS=1" in check
