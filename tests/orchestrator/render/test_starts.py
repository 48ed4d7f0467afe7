"""Starts for a terminal."""

from __future__ import annotations

from typing import Any

import pytest
from sample_answers import AT, make_history

from orchestrator.render import render
from orchestrator.render.parts import Look
from orchestrator.render.starts import start_line, starts

START: dict[str, Any] = {
    "node": "i-0c41",
    "instance_type": "g6e.12xlarge",
    "market": "spot",
    "standby": False,
    "began_at": AT - 300.0,
    "seconds": 250.0,
    "parts": {"machine": 50.0, "fetch": 150.0, "engine": 50.0},
}
KIND: dict[str, Any] = {
    "instance_type": "g6e.12xlarge",
    "standby": False,
    "starts": 2,
    "median_s": 250.0,
    "p90_s": 260.0,
    "parts": [
        {"part": "machine", "starts": 2, "median_s": 50.0, "p90_s": 55.0, "share": 0.2},
        {"part": "fetch", "starts": 1, "median_s": 150.0, "p90_s": 150.0, "share": 0.3},
        {"part": "engine", "starts": 1, "median_s": 50.0, "p90_s": 50.0, "share": 0.1},
        {"part": "other", "starts": 1, "median_s": 200.0, "p90_s": 200.0, "share": 0.4},
    ],
    "advice": "other takes 40 % of a start: let the node agent report, which tells it apart",
}
LOOK = Look(width=160)


def view(**changes: Any) -> Any:
    more = START | {"node": "i-0f22", "parts": {"machine": 50.0, "other": 200.0}}
    return make_history() | {"starts": [START, more], "start_kinds": [KIND]} | changes


def test_starts_and_their_parts() -> None:
    lines = starts(view(), LOOK).splitlines()
    headers = ["BEGAN", "NODE", "TYPE", "START", "TOOK", "MACHINE", "FETCH", "ENGINE", "OTHER"]
    assert lines[0].split() == headers
    assert lines[1].split()[1:] == ["i-0c41", "g6e.12xlarge", "launch", "4m10s", "50s", "2m30s", "50s", "-"]
    assert lines[2].split()[-4:] == ["50s", "-", "-", "3m20s"], "what is not known is not 0"
    summary = "launch of g6e.12xlarge: 2 starts, median 4m10s, p90 4m20s; other takes 40 % of a start: "
    assert lines[4].startswith(summary)
    assert [line.split() for line in lines[5:8]] == [
        ["PART", "KNOWN", "MEDIAN", "P90", "SHARE"],
        ["machine", "2", "of", "2", "50s", "55s", "20", "%"],
        ["fetch", "1", "of", "2", "2m30s", "2m30s", "30", "%"],
    ]


def test_starts_of_several_pools_say_whose_they_are() -> None:
    text = starts(view(starts=[START | {"pool": "chat"}], start_kinds=[KIND | {"pool": "chat"}]), LOOK)
    assert text.splitlines()[0].split()[:2] == ["BEGAN", "POOL"]
    assert "launch of g6e.12xlarge of pool chat: 2 starts" in text


def test_the_history_ends_with_a_line_for_each_kind_of_start() -> None:
    assert render.history(view(), LOOK).splitlines()[-1].startswith("launch of g6e.12xlarge: 2 starts")
    assert "standby of" in render.history(view(swaps=[], start_kinds=[KIND | {"standby": True}]), LOOK)


@pytest.mark.parametrize("older", [True, False])
def test_where_no_start_was_measured(older: bool) -> None:
    found = view(starts=[], start_kinds=[])
    if older:
        del found["starts"], found["start_kinds"]
    assert starts(found, LOOK) == "No start was measured yet.\n"
    assert "launch" not in render.history(found, LOOK)


def test_the_start_of_one_node() -> None:
    assert start_line(START) == "Its launch took 4m10s: machine 50s, fetch 2m30s, engine 50s."  # type: ignore[arg-type]
