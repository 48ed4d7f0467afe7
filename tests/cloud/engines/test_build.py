"""What two engines must have in common to be taken for the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloud.clock import SystemClock
from cloud.engines.simulated import SimulatedEngine
from cloud.engines.vllm import VllmEngine
from cloud.ports import EngineSpec, machine_build

SPEC = EngineSpec(
    model="some/model",
    served_name="m",
    args=("--revision", "abc", "--dtype", "bfloat16"),
    env={"A": "1", "B": "2"},
)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other/model"},
        {"served_name": "n"},
        {"args": ("--revision", "abd", "--dtype", "bfloat16")},
        {"args": ("--revision", "abc", "--dtype", "float16")},
        {"args": ("--revision abc", "--dtype", "bfloat16")},
        {"env": {"A": "1"}},
        {"env": {"A": "12", "B": ""}},
        {"executable": "/opt/vllm/bin/vllm"},
    ],
    ids=str,
)
def test_any_difference_in_what_is_run_is_another_build(change) -> None:
    assert replace(SPEC, **change).build("vllm") != SPEC.build("vllm")


def test_what_does_not_change_an_answer_is_the_same_build() -> None:
    assert replace(SPEC, drain_budget=300.0).build("vllm") == SPEC.build("vllm")
    assert replace(SPEC, keep_alive=300.0).build("vllm") == SPEC.build("vllm")
    assert replace(SPEC, env={"B": "2", "A": "1"}).build("vllm") == SPEC.build("vllm")


def test_what_is_vouched_for_is_one_build_whatever_else_a_machine_has() -> None:
    usual, same = SPEC.build("vllm"), replace(SPEC, vouched="v1").build("vllm")
    assert machine_build(usual, "image") != machine_build(usual, "another image")
    assert machine_build(same, "image") == machine_build(same, "another image", "template") == same
    assert replace(SPEC, vouched="v2").build("vllm") != same  # another word
    assert (
        replace(SPEC, vouched="v1", args=()).build("vllm") != same
    )  # what the settings say counts as before
    assert replace(SPEC, vouched="v1", drain_budget=300.0).build("vllm") == same


def test_the_engine_itself_counts() -> None:
    vllm = VllmEngine(SystemClock(), model_name="m").command(SPEC)
    simulated = SimulatedEngine(SystemClock(), model_name="m").command(SPEC)
    assert vllm.build == SPEC.build("vllm")
    assert simulated.build == SPEC.build("simulated") != vllm.build


def test_a_build_shows_no_secret() -> None:
    secret = "hf_secretsecret"
    build = replace(SPEC, env={"HF_TOKEN": secret}).build("vllm")
    assert secret not in build
    assert len(build) == 20
