"""What the history says of swaps."""

from __future__ import annotations

from orchestrator.api import history
from policies.actions import Cause
from policies.records import Swap

AT = 1_000.0


def swap(number: int, **changes: float | str) -> tuple[str, Swap]:
    values = {"outgoing": f"i-{number}", "cause": Cause.NOTICE, "opened_at": AT + number, **changes}
    return "", Swap(**values)  # type: ignore[arg-type]


def test_stages_count_from_the_beginning_of_the_swap() -> None:
    found = history.view(
        [
            swap(
                0,
                incoming="i-9",
                detached_at=AT + 0.5,
                drained_at=AT + 3,
                replaced_at=AT + 60,
                gone_at=AT + 120,
            )
        ],
        at=AT + 200,
        limit=10,
    )
    (only,) = found["swaps"]
    assert only["seconds"] == {"detached": 0.5, "drained": 3.0, "replaced": 60.0, "gone": 120.0}
    assert (only["incoming"], only["stage"], only["cause"]) == ("i-9", "done", "notice")


def test_a_stage_that_was_before_the_beginning_took_no_time() -> None:
    """Spare capacity that was ready already."""
    (only,) = history.view([swap(0, replaced_at=AT - 5)], at=AT, limit=1)["swaps"]
    assert only["seconds"]["replaced"] == 0.0
    assert only["incoming"] is None


def test_the_newest_come_last_and_only_so_many() -> None:
    found = history.view([swap(n) for n in (3, 1, 2)], at=AT, limit=2)
    assert [s["outgoing"] for s in found["swaps"]] == ["i-2", "i-3"]


def test_each_stage_is_summed_up_over_the_swaps_that_reached_it() -> None:
    swaps = [swap(n, detached_at=AT + n + delay) for n, delay in enumerate((1.0, 2.0, 3.0, 4.0))]
    found = history.view([*swaps, swap(9)], at=AT, limit=10)
    assert found["stages"] == [
        {"stage": "detached", "swaps": 4, "median_s": 2.0, "p95_s": 4.0, "longest_s": 4.0}
    ]


def test_nothing_happened_yet() -> None:
    assert history.view([], at=AT, limit=5) == {
        "schema": "history/1",
        "at": AT,
        "swaps": [],
        "stages": [],
        "starts": [],
        "start_kinds": [],
    }


def test_swaps_of_several_pools_say_whose_they_are() -> None:
    (_, one), (_, two) = swap(2), swap(1)
    found = history.view([("chat", one), ("embed", two)], at=AT, limit=10)["swaps"]
    assert [(s["outgoing"], s["pool"]) for s in found] == [("i-1", "embed"), ("i-2", "chat")]
    assert "pool" not in history.view([("", one)], at=AT, limit=1)["swaps"][0]
