"""Starts as the API tells of them: each with its parts, and the parts over the starts of a kind."""

from __future__ import annotations

import pytest

from orchestrator.api import history, starts
from policies.model import Market, Placement
from policies.records import StartMeasured

AT = 1_000.0


def start(
    number: int, seconds: float, *, standby: bool = False, kind: str = "gpu", **parts: float
) -> StartMeasured:
    return StartMeasured(
        at=AT + number,
        node=f"i-{number}",
        placement=Placement("sim", "r", "a", kind, Market.SPOT),
        standby=standby,
        began_at=AT + number - seconds,
        seconds=seconds,
        parts=tuple(parts.items()),
    )


def test_parts_are_summed_up_over_the_starts_that_know_them() -> None:
    begun = [
        start(1, 100.0, fetch=60.0, other=40.0),
        start(2, 200.0, fetch=140.0, load=60.0),
        start(3, 100.0, other=100.0),
    ]
    (kind,) = history.view([], [("", s) for s in begun], at=AT, limit=10)["start_kinds"]
    assert (kind["starts"], kind["median_s"], kind["p90_s"]) == (3, 100.0, 200.0)
    assert kind["parts"] == [
        {"part": "fetch", "starts": 2, "median_s": 60.0, "p90_s": 140.0, "share": 0.5},
        {"part": "load", "starts": 1, "median_s": 60.0, "p90_s": 60.0, "share": 0.15},
        {"part": "other", "starts": 2, "median_s": 40.0, "p90_s": 100.0, "share": 0.35},
    ]
    assert kind["advice"].startswith("fetch takes 50 % of a start: keep the weights on the machine image")
    assert sum(part["share"] for part in kind["parts"]) == pytest.approx(1.0)


def test_kinds_of_starts_are_not_mixed() -> None:
    begun = [
        ("a", start(1, 100.0, other=100.0)),
        ("a", start(2, 10.0, standby=True, other=10.0)),
        ("a", start(3, 50.0, kind="big", other=50.0)),
        ("b", start(4, 20.0, other=20.0)),
    ]
    found = starts.kinds(begun)
    assert [(k["pool"], k["instance_type"], k["standby"], k["median_s"]) for k in found] == [
        ("a", "big", False, 50.0),
        ("a", "gpu", False, 100.0),
        ("a", "gpu", True, 10.0),
        ("b", "gpu", False, 20.0),
    ]


def test_the_newest_come_last_and_only_so_many() -> None:
    begun = [("", start(n, 10.0, other=10.0)) for n in (3, 1, 2)]
    found = history.view([], begun, at=AT, limit=2)
    assert [s["node"] for s in found["starts"]] == ["i-2", "i-3"]
    assert found["start_kinds"][0]["starts"] == 2
    assert "pool" not in found["starts"][0]


def test_a_start_that_took_no_time_and_a_part_of_another_version() -> None:
    (kind,) = starts.kinds([("", start(1, 0.0, route=0.0, dance=3.0))])
    assert [part["part"] for part in kind["parts"]] == ["route"]
    assert kind["parts"][0]["share"] == 0.0
    assert starts.kinds([("", start(1, 5.0))])[0]["advice"] == ""
