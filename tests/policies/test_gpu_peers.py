"""How fast a node is beside its peers: who is slow, and who only has more or other work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.gpu_peers import FEWEST, paced, paces, watch
from policies.gpu_readings import GAP, GpuState
from policies.model import EngineReading, GpuRules

RULES = GpuRules(slow_share=0.5)


def engine(node: str, rate: float | None = None, load: float = 0.0, **more: Any) -> EngineReading:
    return EngineReading(node=node, at=1.0, ready=True, ok=True, rate=rate, load=load, **more)


def shares(
    works: Mapping[str, tuple[float, float]], clocks: Mapping[str, float] | None = None, kind: str = "a"
) -> dict[str, float]:
    """The shares of nodes by (tokens a second, requests), all of one kind."""
    engines = {node: engine(node, rate, load) for node, (rate, load) in works.items()}
    states = {node: GpuState(node=node, clock=clock) for node, clock in (clocks or {}).items()}
    kinds = dict.fromkeys((*works, *states), kind)
    return {node: pace.share for node, pace in paces(engines, states, kinds).items()}


def test_a_node_that_makes_fewer_tokens_for_as_many_requests_is_slow() -> None:
    found = shares({"a": (500.0, 10.0), "b": (510.0, 10.0), "c": (490.0, 10.0), "d": (120.0, 10.0)})
    assert found["d"] == pytest.approx(0.24, abs=0.01)
    assert min(found["a"], found["b"], found["c"]) > 0.95


def test_a_node_with_more_or_fewer_requests_is_not_slow_for_that() -> None:
    """Each of many requests is slower, few make fewer tokens in all."""
    many = shares({"a": (500.0, 10.0), "b": (500.0, 10.0), "many": (700.0, 40.0)})
    assert many["many"] == pytest.approx(1.4)
    few = shares({"a": (500.0, 10.0), "b": (500.0, 10.0), "few": (120.0, 2.0)})
    assert few["few"] == pytest.approx(1.2)


def test_a_slow_node_on_which_requests_pile_up_is_slow_all_the_same() -> None:
    found = shares({"a": (500.0, 10.0), "b": (500.0, 10.0), "slow": (150.0, 40.0)})
    assert found["slow"] == pytest.approx(0.3)


def test_if_all_are_slow_none_is() -> None:
    assert set(shares(dict.fromkeys("abcd", (5.0, 10.0))).values()) == {1.0}


def test_fewer_than_two_peers_say_nothing() -> None:
    assert FEWEST == 3
    assert shares({"a": (500.0, 10.0), "b": (5.0, 10.0)}) == {}


def test_nodes_of_another_kind_are_no_peers() -> None:
    engines = {n: engine(n, r, 10.0) for n, r in (("a", 500.0), ("b", 500.0), ("c", 500.0), ("small", 50.0))}
    kinds = {"a": "big", "b": "big", "c": "big", "small": "small"}
    assert "small" not in paces(engines, {}, kinds)
    assert "a" not in paces(engines, {}, {"b": "big", "c": "big", "small": "big"}), "no list shows it"


def test_the_clocks_tell_too_and_the_worse_of_both_counts() -> None:
    clocks = {"a": 1900.0, "b": 1935.0, "c": 1935.0, "d": 690.0}
    assert shares({}, clocks)["d"] == pytest.approx(0.36, abs=0.001)
    works = dict.fromkeys("abcd", (500.0, 10.0))
    found = shares(works, clocks)
    assert found["d"] == pytest.approx(0.36, abs=0.001)
    assert found["a"] == pytest.approx(0.991, abs=0.001)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.floats(0.0, 1e5), st.floats(0.0, 500.0))))
def test_any_speeds_can_be_compared_and_half_of_the_nodes_are_never_slow(
    works: dict[str, tuple[float, float]],
) -> None:
    found = shares(works)
    assert sum(share < 0.5 for share in found.values()) <= len(found) / 2


# -- since when ---------------------------------------------------------------------------------------------


def test_a_run_of_slowness_goes_on_through_short_gaps_and_ends_after_long_ones() -> None:
    slow = paces(
        {n: engine(n, r, 10.0) for n, r in (("a", 500.0), ("b", 500.0), ("c", 100.0))},
        {},
        dict.fromkeys("abc", 1),
    )
    states = watch({}, slow, RULES, 0.0)
    assert set(states) == {"c"}
    assert states["c"].slow == "20% of the tokens a second of its peers"
    states = watch(states, slow, RULES, GAP)
    assert (states["c"].slow_since, states["c"].slow_at) == (0.0, GAP)
    states = watch(states, {}, RULES, GAP + 1.0)
    assert states["c"].slow_at == GAP, "nothing is known of now"
    assert watch(states, slow, RULES, 3 * GAP)["c"].slow_since == 3 * GAP


def test_a_share_of_zero_makes_none_slow() -> None:
    slow = paces(
        {n: engine(n, r, 10.0) for n, r in (("a", 500.0), ("b", 500.0), ("c", 0.0))},
        {},
        dict.fromkeys("abc", 1),
    )
    assert watch({}, slow, GpuRules(slow_share=0.0), 0.0) == {}


# -- what an engine did lately ------------------------------------------------------------------------------


def after(*looks: tuple[float, int, float]) -> EngineReading:
    """The last of looks at (time, running, tokens so far)."""
    last: EngineReading | None = None
    for at, running, progress in looks:
        reading = EngineReading(node="n", at=at, ready=True, ok=True, running=running, progress=progress)
        last = paced(last, reading)
    assert last is not None
    return last


def test_the_rate_is_that_of_the_last_half_minute_or_so() -> None:
    steady = after(*((2.0 * i, 10, 1_000.0 * i) for i in range(100)))
    assert (steady.rate, steady.load) == (pytest.approx(500.0), pytest.approx(10.0))
    slower = after(
        *((2.0 * i, 10, 1_000.0 * i) for i in range(50)),
        *((98.0 + 2.0 * i, 10, 49_000.0 + 200.0 * i) for i in range(1, 51)),
    )
    assert slower.rate == pytest.approx(100.0, abs=15.0)


@pytest.mark.parametrize(
    "looks",
    [
        ((0.0, 10, 0.0),),
        ((0.0, 0, 0.0), (2.0, 0, 0.0)),
        ((0.0, 10, 5_000.0), (2.0, 10, 10.0)),
        ((0.0, 10, 0.0), (100.0, 10, 5_000.0)),
        ((0.0, 10, 0.0), (0.0, 10, 10.0)),
    ],
    ids=["first", "idle", "restarted", "long ago", "at once"],
)
def test_nothing_is_measured_where_nothing_can_be(looks: tuple[tuple[float, int, float], ...]) -> None:
    assert after(*looks).rate is None


def test_a_look_that_failed_measures_nothing() -> None:
    well = after((0.0, 10, 0.0), (2.0, 10, 1_000.0))
    failed = EngineReading(node="n", at=4.0, ready=True, ok=False, running=10, progress=1_000.0)
    assert paced(well, failed).rate is None
    assert paced(failed, well).rate == well.rate
