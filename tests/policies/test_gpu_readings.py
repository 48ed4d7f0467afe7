"""What the readings of one node ask for, and how long it has been throttled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.gpu_errors import Remedy
from policies.gpu_readings import (
    FRESH,
    GAP,
    MOST_XIDS,
    GpuReading,
    GpuState,
    NodeGpus,
    Xid,
    asks,
    follow,
    lasts,
    throttled,
    with_earlier,
)

NOW = 1_000.0


def looked(at: float = NOW, *xids: int, **gpu: Any) -> NodeGpus:
    errors = tuple(Xid(pci="0000:1b:00", code=code, text="") for code in xids)
    return NodeGpus(node="n", at=at, source="agent", gpus=(GpuReading(index=0, **gpu),), xids=errors)


@pytest.mark.parametrize("bits", [0, 0x1, 0x2, 0x4, 0x10, 0x100, 0x117])
def test_a_clock_that_somebody_set_or_that_has_no_work_is_not_throttled(bits: int) -> None:
    assert throttled(bits) == ""


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (0x8, "hardware slowdown"),
        (0x20, "thermal slowdown by software"),
        (0x40, "thermal slowdown by hardware"),
        (0x80, "power brake"),
        (0x6C, "thermal slowdown by hardware, thermal slowdown by software, hardware slowdown"),
    ],
)
def test_heat_the_hardware_and_the_power_supply_throttle(bits: int, words: str) -> None:
    assert throttled(bits) == words


@given(st.none() | st.floats(allow_nan=False) | st.integers())
def test_any_bits_can_be_read(bits: float | None) -> None:
    assert isinstance(throttled(bits), str)


@pytest.mark.parametrize(
    ("reading", "remedy", "words"),
    [
        ({}, Remedy.NOTHING, ""),
        ({"ecc_corrected": 9_000.0}, Remedy.NOTHING, ""),
        ({"retired_pending": 1.0, "remap_pending": 1.0, "remapped_rows": 3.0}, Remedy.NOTHING, ""),
        ({"ecc_uncorrected": 2.0}, Remedy.RESET, "GPU 0: 2 uncorrected memory errors"),
        ({"remap_failed": 1.0}, Remedy.REPLACE, "GPU 0: a row of memory could not be replaced"),
        ({"state": "lost"}, Remedy.REPLACE, "GPU 0: lost"),
        ({"state": "reset required"}, Remedy.RESET, "GPU 0: reset required"),
    ],
)
def test_what_a_gpu_says_asks_for_something(reading: dict[str, Any], remedy: Remedy, words: str) -> None:
    asked = asks(looked(**reading))
    assert (asked.remedy, asked.text) == (remedy, words)


def test_the_gravest_of_all_counts() -> None:
    asked = asks(looked(NOW, 31, 48, 63, ecc_uncorrected=1.0, remap_failed=1.0))
    assert asked.remedy is Remedy.REPLACE
    assert asks(looked(NOW, 31, 48, 63)).text == "Xid 48: a double-bit error in GPU memory"


def test_an_error_that_was_contained_asks_for_no_reset() -> None:
    """The counters of a GPU count it too."""
    assert asks(looked(NOW, 63, 94, ecc_uncorrected=1.0, remap_pending=1.0)).remedy is Remedy.RESTART
    assert asks(looked(NOW, 63, 94, 95, ecc_uncorrected=2.0)).remedy is Remedy.RESET
    assert asks(looked(NOW, 94, 64, ecc_uncorrected=1.0)).remedy is Remedy.RESET


def run(*looks: tuple[float, int]) -> GpuState | None:
    """The state after looks at times, with reasons."""
    state = None
    for at, bits in looks:
        state = follow(state, looked(at, throttle_reasons=float(bits)), at)
    return state


def test_a_run_of_throttling_goes_on_over_looks_that_show_nothing() -> None:
    """A GPU at its limit goes back and forth."""
    state = run((0.0, 0x40), (15.0, 0x4), (30.0, 0x40), (45.0, 0x0), (60.0, 0x20))
    assert state is not None
    assert lasts(state.throttled_since, state.throttled_at, 60.0) == 60.0
    assert state.throttle == "thermal slowdown by software"


def test_a_run_is_over_when_nothing_was_seen_for_long() -> None:
    state = run((0.0, 0x40), (10.0, 0x40))
    assert state is not None
    assert lasts(state.throttled_since, state.throttled_at, 10.0 + GAP) == 10.0
    assert lasts(state.throttled_since, state.throttled_at, 11.0 + GAP) == 0.0
    again = run((0.0, 0x40), (10.0, 0x40), (20.0 + GAP, 0x40))
    assert again is not None
    assert again.throttled_since == 20.0 + GAP


def test_an_old_reading_tells_nothing_of_now_but_its_errors_hold() -> None:
    old = looked(NOW, 79, throttle_reasons=float(0x40), sm_clock_mhz=900.0, utilisation_percent=90.0)
    state = follow(None, old, NOW + FRESH + 1.0)
    assert state is not None
    assert (state.remedy, state.clock, state.throttled_since) == (Remedy.REPLACE, None, None)


def test_nothing_is_known_where_nobody_looked() -> None:
    assert follow(None, None, NOW) is None
    state = run((0.0, 0x0))
    assert follow(state, None, NOW) is state
    slow = GpuState(node="n", slow="slow", slow_at=NOW, slow_since=NOW)
    assert follow(slow, None, NOW + GAP) is slow
    assert follow(slow, None, NOW + GAP + 1.0) is None


@pytest.mark.parametrize(("busy", "clock"), [(97.0, 1200.0), (50.0, 1200.0), (49.0, None), (None, None)])
def test_only_the_clock_of_a_gpu_with_work_counts(busy: float | None, clock: float | None) -> None:
    state = follow(None, looked(utilisation_percent=busy, sm_clock_mhz=1200.0), NOW)
    assert state is not None
    assert state.clock == clock


def test_errors_of_earlier_looks_are_kept_once_each() -> None:
    """An exporter tells only of the last error: 43 must not hide the 48 before it."""
    first = with_earlier(None, looked(0.0, 48))
    second = with_earlier(first, looked(1.0, 43))
    third = with_earlier(second, looked(2.0, 43))
    assert [x.code for x in third.xids] == [48, 43]
    assert third.at == 2.0
    many = looked(0.0, *range(1, 200))
    assert len(with_earlier(many, many).xids) == MOST_XIDS
