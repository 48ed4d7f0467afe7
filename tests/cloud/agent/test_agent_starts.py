"""What a node's report says of its start: in this host's time, and nothing that is not of its type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.agent_starts import read_start
from policies.starts import NodeStart

NOW = 1_800_000_000.0
BOOT = {"first": NOW - 90, "times": {"start": NOW - 30, "checks": NOW - 50, "failed": NOW - 70, "later": NOW}}
ENGINE = {
    "serves": True,
    "serves_at": NOW - 1,
    "took": {"load": 8, "compile": 9.5, "dance": 1, "graphs": "x"},
}


@pytest.mark.parametrize("behind", [0.0, 40.0, -40.0])
def test_times_are_those_of_this_host(behind):
    report = {"at": NOW, "boot": BOOT, "engine": ENGINE}
    assert read_start(report, NOW + behind) == NodeStart(
        first=NOW - 90 + behind,
        stages=(("checks", NOW - 50 + behind), ("start", NOW - 30 + behind)),
        took={"load": 8.0, "compile": 9.5},
        serves=True,
        serves_at=NOW - 1 + behind,
    )


def test_an_older_agent_says_how_far_it_came_and_no_times():
    assert read_start({"at": NOW, "boot": {"stage": "start"}}, NOW) == NodeStart()
    assert read_start({"at": NOW, "boot": None}, NOW) is None
    assert read_start({"boot": BOOT}, NOW) is None, "whose clock is that?"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("times", "first", "start", "took", "load", "serves", "serves_at")), inner
        )
    ),
    max_leaves=12,
)


@given(boot=JUNK, engine=JUNK)
def test_whatever_is_said_is_read(boot, engine):
    found = read_start({"at": NOW, "boot": boot, "engine": engine}, NOW)
    assert found is None or all(seconds >= 0 for seconds in found.took.values())
