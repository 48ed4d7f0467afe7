"""The vocabulary of the log: one name for each event and each logger, and a page that has them all."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))

import log_event_table

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference" / "log-events.md").read_text(encoding="utf-8")
FILES = [file for package in ("cloud", "orchestrator") for file in sorted((ROOT / package).rglob("*.py"))]
NAME = re.compile(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*")
IRREGULAR = {"cut", "heard", "hung", "lost", "set"}
LEVELS = {"debug", "info", "warning", "error", "exception", "log"}


def logs(file: Path) -> ast.Module | None:
    """The code of a file that has a logger."""
    text = file.read_text(encoding="utf-8")
    return ast.parse(text) if "get_logger" in text else None


def rows() -> list[tuple[str, str, str, str]]:
    """Event, logger, level and keys of each row of the page."""
    return re.findall(r"(?m)^\| `([^`]+)` \| (\w+) \| ([a-z, ]+) \| (.*?) \| .+ \|$", PAGE)


def literals(tree: ast.Module) -> Iterator[tuple[int, str | None]]:
    """Line and event of every use of `log`, None where the event is not a literal."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for name in ast.walk(tree):
        if not (isinstance(name, ast.Name) and name.id == "log" and isinstance(name.ctx, ast.Load)):
            continue
        method = parents[name]
        call = parents[method]
        assert isinstance(method, ast.Attribute)
        if not isinstance(call, ast.Call) or method.attr not in LEVELS:
            yield name.lineno, None
            continue
        first = 0 if call.func is method and method.attr != "log" else 1
        event = call.args[first] if len(call.args) == first + 1 else None
        literal = isinstance(event, ast.Constant) and isinstance(event.value, str)
        yield name.lineno, event.value if literal else None  # type: ignore[union-attr,return-value]


@pytest.mark.parametrize(
    "file", [file for file in FILES if logs(file)], ids=lambda f: str(f.relative_to(ROOT))
)
def test_a_logger_has_the_name_of_its_directory(file: Path) -> None:
    made = [
        node
        for node in ast.walk(logs(file) or ast.Module([], []))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("get_logger")
    ]
    package, *path = file.relative_to(ROOT).parts
    room = path[0] if len(path) > 1 else package
    assert [ast.unparse(call) for call in made] == [f"structlog.get_logger({room!r})"]


def test_every_event_is_a_literal_and_in_the_table() -> None:
    listed = {event for event, *_ in rows()}
    wrong = []
    seen = set()
    for file in FILES:
        if (tree := logs(file)) is None or "log = structlog" not in file.read_text(encoding="utf-8"):
            continue
        for line, event in literals(tree):
            if event is None or event not in listed:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {event or 'not a literal'}")
            seen.add(event)
    assert wrong == []
    assert seen == listed, "a row that no code logs"


def test_every_event_is_a_noun_and_a_verb() -> None:
    for event, *_ in rows():
        assert NAME.fullmatch(event), event
        words = event.partition(".")[2].split("_")
        assert any(word in IRREGULAR or word.endswith(("ed", "ing")) for word in words), event


def test_every_event_is_described_once() -> None:
    listed = {event for event, *_ in rows()}
    assert set(log_event_table.WHEN) == listed
    assert set(log_event_table.MORE) <= listed
    assert len({(event, logger) for event, logger, *_ in rows()}) == len(rows()) > 90


def test_a_page_names_no_event_that_is_not_logged() -> None:
    """In backticks of pages for operators (others name attributes of code so), or where a log is searched."""
    listed = {event for event, *_ in rows()}
    verbs = {event.partition(".")[2] for event in listed} - {"stopped"}  # `standby.stopped` is a key
    wrong, searched = [], 0
    kinds = ("how-to", "reference", "runbooks", "tutorial")
    for page in sorted(page for kind in kinds for page in (ROOT / "docs" / kind).glob("*.md")):
        text = page.read_text(encoding="utf-8")
        named = re.findall(rf"`([a-z_]+\.(?:{'|'.join(verbs)}))`", text)
        for command in re.findall(r"(?m)^journalctl .*\| grep .*$", text):
            named += re.findall(r"[a-z_]+\.[a-z_]+", command.partition("grep")[2])
            searched += 1
        wrong += [f"{page.name}: {name}" for name in named if name not in listed]
    assert wrong == []
    assert searched > 10
