"""Whether a model fits: the cases that people meet, and what is advised."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.fit import Gpus, Need, bits_in, check, parameters_in

A10G, L40S, H100 = (
    Gpus(kind="A10G", count=4, memory=22.4),
    Gpus(kind="L40S", count=4, memory=44.7),
    Gpus(kind="H100", count=8, memory=80.0),
)
SEVENTY = Need(parameters=70e9, bits=16, context=8192)
EIGHT = Need(parameters=8e9, bits=16, context=8192)


@pytest.mark.parametrize(
    ("need", "gpus", "parallel", "fits"),
    [
        (EIGHT, A10G, 1, True),
        (EIGHT, replace(A10G, memory=14.6), 1, False),  # a T4: 15 GiB of weights alone
        (SEVENTY, H100, 1, False),
        (SEVENTY, H100, 2, True),
        (SEVENTY, L40S, 4, True),  # four have 179 GiB for 133
        (replace(SEVENTY, bits=8), L40S, 4, True),
        (replace(SEVENTY, bits=8), L40S, 1, False),
        (replace(SEVENTY, bits=4), A10G, 4, True),
        (replace(SEVENTY, bits=4), A10G, 2, False),
        (replace(SEVENTY, bits=4), H100, 1, True),
    ],
)
def test_known_cases(need, gpus, parallel, fits):
    assert check(need, gpus, parallel=parallel).fits is fits


def test_what_is_advised_fits_and_is_the_smallest_change():
    text = check(SEVENTY, H100, parallel=1).text
    assert text == (
        "70B in 16 bits needs about 140 GB for its weights; 1 x H100 has 80 GiB: "
        "use 4 bits or tensor parallel 2"
    )


def test_a_request_that_is_too_long_is_named():
    verdict = check(replace(EIGHT, context=131_072), A10G, parallel=1)
    assert not verdict.fits
    assert "for one request of 131072 tokens" in verdict.text
    assert verdict.text.endswith("use tensor parallel 2 or --max-model-len 16384")
    assert check(replace(EIGHT, context=16_384), A10G, parallel=1).fits


def test_where_one_change_is_not_enough_two_are_named():
    need = replace(SEVENTY, context=131_072)
    assert check(need, replace(H100, count=1), parallel=1).text.endswith(
        "use 4 bits, with --max-model-len 65536"
    )
    assert check(replace(need, bits=4, context=65_536), H100, parallel=1).fits


def test_families_that_keep_less_of_a_request_need_less():
    whole, less = replace(EIGHT, context=131_072), replace(EIGHT, context=131_072, cache_share=0.25)
    assert less.cache == whole.cache / 4


def test_more_gpus_than_there_are():
    verdict = check(EIGHT, A10G, parallel=8)
    assert not verdict.fits
    assert verdict.text.startswith("8 GPUs are asked for and the machine has 4 x A10G")


def test_nothing_helps():
    need = Need(parameters=405e9, bits=4, context=2048)
    assert check(need, A10G, parallel=4).text.endswith("choose a machine with more GPU memory")


def test_a_near_miss_is_tight_and_a_clear_one_is_not():
    assert check(replace(SEVENTY, bits=8), H100, parallel=1).tight
    assert not check(SEVENTY, H100, parallel=1).tight
    assert not check(EIGHT, H100, parallel=1).tight


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", 70e9),
        ("Qwen/Qwen2.5-0.5B", 0.5e9),
        ("mistralai/Mixtral-8x7B-v0.1", 56e9),
        ("Qwen/Qwen3-235B-A22B-FP8", 235e9),
        ("models/llama-3-8b", 8e9),
        ("simulated", None),
        ("gpt-4b1t", None),
    ],
)
def test_parameters_are_read_off_the_name(name, parameters):
    assert parameters_in(name) == parameters


@pytest.mark.parametrize(
    ("name", "bits"),
    [("x-AWQ", 4), ("x-GPTQ-Int4", 4), ("x-W8A8", 8), ("x-FP8-dynamic", 8), ("x-bf16", 16), ("x", 16)],
)
def test_bits_are_read_off_the_name(name, bits):
    assert bits_in(name) == bits


@given(
    parameters=st.floats(1e8, 1e12),
    bits=st.sampled_from((4, 8, 16)),
    context=st.integers(256, 200_000),
    memory=st.floats(10, 300),
    parallel=st.sampled_from((1, 2, 4, 8)),
)
def test_more_memory_and_fewer_bits_never_hurt(parameters, bits, context, memory, parallel):
    need = Need(parameters=parameters, bits=bits, context=context)
    gpus = Gpus(kind="X", count=8, memory=memory)
    verdict = check(need, gpus, parallel=parallel)
    assert check(need, replace(gpus, memory=memory * 2), parallel=parallel).used <= verdict.used
    assert check(replace(need, bits=4), gpus, parallel=parallel).used <= verdict.used
    if verdict.fits:
        assert check(replace(need, context=context // 2), gpus, parallel=parallel).fits
