"""Every policy says what it decides, why, and what it never does; its examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import policies

WORDS = {
    "value": "how values are made",
    "model": "the words of the domain",
    "rules": "how patient each policy is",
    "actions": "what may be done",
    "events": "what may arrive",
    "records": "what memory is made of",
    "memory": "how an event changes it",
    "memory_builder": "a memory being changed",
    "evidence.sources": "what is read at all",
    "fleet": "nodes joined into one view",
    "evidence.conditions": "what may be known of a node",
    "evidence.balancers": "what balancers say",
    "evidence.evidence": "what witnesses say of a node",
    "node": "one node, and what is known of it",
    "plan_builder": "a decision in the making",
    "grant": "what pools ask of a shared budget",
    "service": "how a balancer serves clients",
    "held": "adapters, wanted and held",
    "adapter_events": "what may arrive of adapters",
    "cost_rows": "what a cost report is made from",
    "plain_text": "text from outside, made safe",
}
"""Modules that decide nothing: values and bookkeeping."""

MODULES = [importlib.import_module(m.name) for m in pkgutil.walk_packages(policies.__path__, "policies.")]
SECTIONS = ("What it decides:", "Why:", "Never:", "Example")


def name(module: ModuleType) -> str:
    return module.__name__.removeprefix("policies.")


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_examples_run(module: ModuleType) -> None:
    failed, _ = doctest.testmod(module, report=True)
    assert failed == 0


@pytest.mark.parametrize("module", [m for m in MODULES if name(m) not in WORDS], ids=name)
def test_a_policy_says_what_why_never_and_gives_an_example(module: ModuleType) -> None:
    text = inspect.getdoc(module) or ""
    places = [text.find(section) for section in SECTIONS]
    assert -1 not in places, f"{module.__name__} lacks {[s for s in SECTIONS if s not in text]}"
    assert places == sorted(places)
    assert text.splitlines()[0].endswith(".")


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_files_and_functions_stay_small(module: ModuleType) -> None:
    source = inspect.getsource(module)
    assert len(source.splitlines()) <= 520
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno
            assert length <= 75, f"{module.__name__}.{node.name} has {length} lines"


def test_there_are_policies() -> None:
    assert {"capacity", "mix", "placement", "interruption", "drain", "swap"} <= {name(m) for m in MODULES}
    assert WORDS.keys() <= {name(m) for m in MODULES}
