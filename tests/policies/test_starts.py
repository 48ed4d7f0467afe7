"""The parts of a start: they add up, what nobody measured is missing, and what cannot be true is left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.memory import Memory, reduce
from policies.model import Market, Placement
from policies.records import StartMeasured
from policies.starts import SHORTENED, STARTS_KEPT, NodeStart, Part, Seen, parts_of

PLACE = Placement("aws", "us-east-1", "us-east-1a", "g6e.12xlarge", Market.SPOT)
SEEN = Seen(began=1000.0, ready=1300.0, routed=1302.0)
STAGES = (("disks", 1050.0), ("checks", 1055.0), ("secrets", 1058.0), ("weights", 1060.0), ("start", 1160.0))
TOOK = {"load": 30.0, "compile": 40.0, "graphs": 20.0, "warm_up": 10.0}


def test_a_start_of_which_all_is_known() -> None:
    said = NodeStart(first=1050.0, stages=STAGES, took=TOOK, serves=True, serves_at=1299.0)
    assert parts_of(SEEN, said) == {
        Part.MACHINE: 50.0,
        Part.PREPARE: 10.0,
        Part.FETCH: 100.0,
        Part.PROCESS: 39.0,
        Part.LOAD: 30.0,
        Part.COMPILE: 40.0,
        Part.GRAPHS: 20.0,
        Part.WARM_UP: 10.0,
        Part.TOKEN: 1.0,
        Part.ROUTE: 2.0,
    }


def test_a_start_of_which_the_node_says_nothing_is_not_told_apart() -> None:
    assert parts_of(SEEN, None) == {Part.ROUTE: 2.0, Part.OTHER: 300.0}
    assert parts_of(Seen(began=1000.0, ready=1300.0), None) == {Part.OTHER: 300.0}, "nobody routed it"


def test_an_engine_whose_log_says_nothing_is_one_part() -> None:
    parts = parts_of(SEEN, NodeStart(stages=STAGES))
    assert parts[Part.ENGINE] == 140.0
    assert Part.PROCESS not in parts
    assert Part.TOKEN not in parts
    serving = parts_of(SEEN, NodeStart(stages=STAGES, serves=True, serves_at=1297.0))
    assert (serving[Part.ENGINE], serving[Part.TOKEN]) == (137.0, 3.0)
    assert Part.TOKEN not in parts_of(SEEN, NodeStart(stages=STAGES, serves_at=900.0)), "of another start"


def test_the_log_alone_leaves_the_rest_untold() -> None:
    parts = parts_of(SEEN, NodeStart(took=TOOK))
    assert (parts[Part.COMPILE], parts[Part.OTHER]) == (40.0, 200.0)
    assert Part.PROCESS not in parts, "when the engine's process began is not known"


def test_weights_that_the_engine_brings_itself_are_brought_all_the_same() -> None:
    stages = (("checks", 1050.0), ("start", 1060.0))
    assert parts_of(SEEN, NodeStart(stages=stages, took={"fetch": 90.0, "load": 5.0}))[Part.FETCH] == 90.0


def test_starts_of_the_engine_that_ended_early_are_a_part() -> None:
    said = NodeStart(first=1020.0, stages=(("checks", 1200.0), ("start", 1210.0)), took=TOOK)
    parts = parts_of(SEEN, said)
    assert (parts[Part.MACHINE], parts[Part.RETRIES]) == (20.0, 180.0)
    assert sum(parts.values()) == pytest.approx(SEEN.seconds)
    assert parts[Part.ENGINE] == 90.0, "100 s by the log do not fit in: it is of another start"


def test_times_that_cannot_be_true_are_left_out() -> None:
    later = tuple((stage, at + 400.0) for stage, at in STAGES)
    before = tuple((stage, at - 400.0) for stage, at in STAGES)
    crossed = (("weights", 1200.0), ("start", 1100.0))
    unfinished = STAGES[:-1]
    for stages in (later, before, crossed, unfinished):
        assert set(parts_of(SEEN, NodeStart(stages=stages))) == {Part.OTHER, Part.ROUTE}


def test_a_stage_that_a_clock_puts_just_before_the_launch_is_no_negative_part() -> None:
    parts = parts_of(SEEN, NodeStart(stages=(("checks", 999.0), ("start", 1301.5))))
    assert parts == {Part.MACHINE: 0.0, Part.PREPARE: 300.0, Part.ENGINE: 0.0, Part.ROUTE: 2.0}


@given(
    began=st.floats(0, 1e5),
    ready=st.floats(0, 1e5),
    routed=st.none() | st.floats(0, 1e5),
    first=st.none() | st.floats(-1e5, 1e6),
    stages=st.lists(st.tuples(st.sampled_from([s for s, _ in STAGES]), st.floats(-1e5, 1e6)), max_size=6),
    ordered=st.booleans(),
    took=st.dictionaries(st.sampled_from([*TOOK, "fetch", "?"]), st.floats(0, 1e5)),
    serves_at=st.none() | st.floats(-1e5, 1e6),
)
def test_the_parts_are_never_negative_and_add_up_whatever_is_said(
    began, ready, routed, first, stages, ordered, took, serves_at
):
    ready = began + ready
    routed = None if routed is None else ready + routed
    stages = [(name, at if at > began else began + abs(at)) for name, at in stages]
    if ordered:
        stages = sorted(stages, key=lambda stage: stage[1])
    seen = Seen(began=began, ready=ready, routed=routed)
    said = NodeStart(first=first, stages=tuple(stages), took=took, serves=True, serves_at=serves_at)
    parts = parts_of(seen, said)
    assert all(seconds >= 0.0 for seconds in parts.values())
    assert sum(parts.values()) == pytest.approx(seen.seconds, abs=1e-3)


def test_every_part_has_what_shortens_it() -> None:
    assert set(SHORTENED) == set(Part)


def measured(number: int, seconds: float = 100.0) -> StartMeasured:
    return StartMeasured(
        at=float(number),
        node=f"i-{number}",
        placement=PLACE,
        standby=False,
        began_at=float(number),
        seconds=seconds,
        parts=(("machine", 1.0),),
    )


def test_the_newest_starts_are_remembered_each_once() -> None:
    memory = reduce(Memory(), *(measured(n) for n in range(STARTS_KEPT + 5)))
    assert [s.node for s in memory.starts][0 :: STARTS_KEPT - 1] == ["i-5", f"i-{STARTS_KEPT + 4}"]
    again = reduce(memory, measured(40, 50.0))
    assert len(again.starts) == STARTS_KEPT
    assert [s.seconds for s in again.starts if s.node == "i-40"] == [50.0]
