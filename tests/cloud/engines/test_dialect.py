"""The table of dialects: every fact has a source, and what was only read is not passed off as tried."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from cloud.engines.dialect import DIALECTS, PROGRAMS
from cloud.engines.row import Dialect
from cloud.ports import Task

WORDS = {"title", "program", "unready", "measured", "sources"}  # ours, not the engine's
ROWS = pytest.mark.parametrize("kind", DIALECTS)


@ROWS
def test_every_fact_of_a_row_has_a_source(kind: str) -> None:
    row = DIALECTS[kind]
    named = [fact for source in row.sources for fact in source.facts]
    fields = {field.name for field in dataclasses.fields(Dialect)}
    assert set(named) <= fields
    assert len(named) == len(set(named)), "one source for one fact"
    for name in fields - WORDS:
        empty = getattr(row, name) in ("", None, False, {}) or (name == "ranking" and not ranks(row))
        assert empty or name in named, f"{kind}: {name} without a source"
    assert all(source.version and source.where for source in row.sources)
    if row.program:
        assert all(source.date.startswith("202") for source in row.sources)


def ranks(row: Dialect) -> bool:
    return "rerank" in row.capabilities.tasks


@ROWS
def test_a_row_is_whole(kind: str) -> None:
    row = DIALECTS[kind]
    assert row.capabilities.tasks <= set(get_args(Task))
    assert row.capabilities.tasks == set(row.too_long)
    if row.metrics:
        assert set(row.progress) == row.capabilities.tasks, "each task shows its progress"
        assert all(row.progress.values())
    else:
        assert not row.progress
        assert (row.running, row.waiting) == ("", "")


def test_only_what_ran_here_says_so() -> None:
    assert {kind for kind, row in DIALECTS.items() if row.capabilities.ran} == {
        "vllm",
        "llamacpp",
        "simulated",
    }
    assert PROGRAMS["tei"] == "text-embeddings-router"
    assert "simulated" not in PROGRAMS


@pytest.mark.parametrize(
    ("kind", "model", "name"),
    [
        ("tgi", "/data/llama", "/data/llama"),
        ("trtllm", "/data/llama", "llama"),
        ("trtllm", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("ollama", "llama3.2", "llama3.2:latest"),
        ("ollama", "llama3.2:1b", "llama3.2:1b"),
        ("ollama", "org/model", "org/model:latest"),
        ("ollama", "shelf:5000/org/model", "shelf:5000/org/model:latest"),
    ],
)
def test_what_an_engine_calls_a_model(kind: str, model: str, name: str) -> None:
    own_name = DIALECTS[kind].own_name
    assert own_name is not None
    assert own_name(model) == name
