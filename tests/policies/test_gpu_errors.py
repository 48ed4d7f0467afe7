"""NVIDIA's catalogue of Xid errors as data, and what each code comes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.gpu_errors import CATALOGUE, REMEDIES, Asked, Bucket, Remedy, asked_for, gravest

RECOVERY = "GPU recovery action changed from 0x0 (None) to 0x{} ({})"


@pytest.mark.parametrize("code", [13, 31, 32, 43, 45, 63, 68, 92, 94, 130])
def test_what_a_program_can_cause_ends_no_node(code: int) -> None:
    assert asked_for(code).remedy in (Remedy.NOTHING, Remedy.RESTART)


@pytest.mark.parametrize("code", [46, 48, 62, 64, 95, 109, 119, 120, 140, 143, 158])
def test_what_a_gpu_does_not_survive_asks_for_a_reset(code: int) -> None:
    asked = asked_for(code)
    assert asked.remedy is Remedy.RESET
    assert asked.text.startswith(f"Xid {code}: ")


def test_a_gpu_off_the_bus_asks_for_a_new_start() -> None:
    assert asked_for(79) == Asked(remedy=Remedy.REPLACE, text="Xid 79: the GPU has fallen off the bus")
    assert asked_for(151).remedy is Remedy.REPLACE


@pytest.mark.parametrize("code", [54, 74, 78, 142, 145, 1, 17, 171, 99_999])
def test_what_only_a_person_can_judge_ends_no_node(code: int) -> None:
    assert asked_for(code).remedy is Remedy.PERSON


def test_a_code_that_healthy_gpus_raise_ends_no_node_though_the_catalogue_asks_for_a_reset() -> None:
    assert CATALOGUE[155][0] is Bucket.RESET_GPU
    assert asked_for(155).remedy is Remedy.PERSON
    assert "sleep" in asked_for(155).text


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (RECOVERY.format(0, "None"), Remedy.NOTHING),
        (RECOVERY.format(1, "GPU Reset Required"), Remedy.RESET),
        (RECOVERY.format(2, "Node Reboot Required"), Remedy.REPLACE),
        (RECOVERY.format(3, "Drain P2P"), Remedy.RESTART),
        (RECOVERY.format(4, "Drain and Reset"), Remedy.RESET),
        (RECOVERY.format(9, "A new word"), Remedy.NOTHING),
        ("", Remedy.NOTHING),
    ],
)
def test_the_driver_says_itself_what_it_needs(text: str, remedy: Remedy) -> None:
    assert asked_for(154, text).remedy is remedy
    assert asked_for(31, text).remedy is Remedy.RESTART, "only that code says so"


def test_every_action_of_the_catalogue_comes_to_something() -> None:
    assert set(REMEDIES) == set(Bucket)
    assert {bucket for bucket, _ in CATALOGUE.values()} <= set(REMEDIES)
    assert all(words and not words.endswith(".") for _, words in CATALOGUE.values())
    assert len(CATALOGUE) == 100


@given(st.lists(st.sampled_from(sorted(CATALOGUE)), max_size=8))
def test_the_gravest_of_several_counts(codes: list[int]) -> None:
    order = list(Remedy)
    found = gravest(asked_for(code) for code in codes)
    assert all(order.index(asked_for(code).remedy) <= order.index(found.remedy) for code in codes)
    assert found.remedy is Remedy.NOTHING if not codes else found in [asked_for(code) for code in codes]


@given(st.integers(-10, 10**9), st.text(max_size=300))
def test_any_error_has_an_answer(code: int, text: str) -> None:
    assert asked_for(code, text).text.startswith(f"Xid {code}: ")
