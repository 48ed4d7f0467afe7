"""docs/explanation/life-of-a-node.md names what the code has, and nothing else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from policies.actions import Cause
from policies.disruption import CAUSES, Act
from policies.evidence import TESTIMONY, Question, Status
from policies.model import Phase, Word
from policies.node import Node, Role

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "life-of-a-node.md"

MOST_PREDICATES = 20


def section(title: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    (found,) = re.findall(rf"(?ms)^##+ {re.escape(title)}$(.*?)(?=^##|\Z)", text)
    return str(found)


def rows(title: str) -> list[list[str]]:
    """The cells of the first table of a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first_names(title: str) -> list[str]:
    return [named(row[0])[0] for row in rows(title)]


def predicates() -> Iterator[str]:
    """Fields and properties of a node that are true or false."""
    for field in fields(Node):
        if field.type == "bool":
            yield field.name
    for name, member in inspect.getmembers_static(Node, lambda member: isinstance(member, property)):
        if inspect.signature(member.fget).return_annotation == "bool":
            yield name


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Phases: where it is in its life", Phase),
        ("Roles: what it is there for", Role),
        ("Conditions: what is known of it", Question),
        ("Acts: what may be done to it", Act),
    ],
)
def test_every_word_has_its_row(title: str, words: type[Word]) -> None:
    assert sorted(first_names(title)) == sorted(map(str, words))


def test_every_phase_is_in_the_picture() -> None:
    (picture,) = re.findall(r"(?s)```text(.*?)```", section("Phases: where it is in its life"))
    assert {str(phase) for phase in Phase} <= set(re.findall(r"[a-z]+", picture))


def test_the_table_of_who_may_say_what_is_the_one_of_the_code() -> None:
    said = {}
    for witness, words, cell in rows("Who may say what"):
        answers = {}
        for denied, question in re.findall(r"(not )?`([^`]+)`", cell):
            answers[question] = Status.FALSE if denied else Status.TRUE
        for word in named(words):
            said[named(witness)[0], word] = answers
    assert said == {
        (str(witness), str(word)): {str(q): s for q, s in answers.items()}
        for witness, words in TESTIMONY.items()
        for word, answers in words.items()
    }


def test_every_predicate_has_its_row_and_there_are_few() -> None:
    found = sorted(predicates())
    assert sorted(first_names("Predicates: what the policies ask")) == found
    assert len(found) <= MOST_PREDICATES


def test_every_predicate_says_what_it_adds() -> None:
    for name in predicates():
        member = inspect.getattr_static(Node, name)
        assert not isinstance(member, property) or len(inspect.getdoc(member) or "") > 20, name


def test_every_cause_has_its_row() -> None:
    found = {named(row[0])[0]: row for row in rows("Causes: why it goes, and when it may return")}
    assert found.keys() == {str(cause) for cause in Cause}
    for cause, rule in CAUSES.items():
        assert found[str(cause)][1] == rule.over.name.lower().replace("_", " "), cause
        assert found[str(cause)][2] == ("yes" if cause.by_choice else "no"), cause
