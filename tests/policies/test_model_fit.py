"""Whether a model fits: the cases that people meet, and what is advised."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.formats import AWQ, DOUBLE, FP8, GPTQ, WHOLE, format_in
from policies.model_fit import Gpus, Need, Split, alone, check, over_all, parameters_in, tensor_sizes
from policies.model_shapes import shape

A10G, L40S, H100 = (
    Gpus(kind="A10G", count=4, memory=22.4),
    Gpus(kind="L40S", count=4, memory=44.7),
    Gpus(kind="H100", count=8, memory=80.0),
)
SEVENTY = Need(parameters=70e9, context=8192)
EIGHT = Need(parameters=8e9, context=8192)


@pytest.mark.parametrize(
    ("need", "gpus", "parallel", "fits"),
    [
        (EIGHT, A10G, 1, True),
        (EIGHT, replace(A10G, memory=14.6), 1, False),  # a T4: 15 GiB of weights alone
        (SEVENTY, H100, 1, False),
        (SEVENTY, H100, 2, True),
        (SEVENTY, L40S, 4, True),  # four have 179 GiB for 133
        (replace(SEVENTY, form=FP8), L40S, 4, True),
        (replace(SEVENTY, form=FP8), L40S, 1, False),
        (replace(SEVENTY, form=AWQ), A10G, 4, True),
        (replace(SEVENTY, form=AWQ), A10G, 2, False),
        (replace(SEVENTY, form=AWQ), H100, 1, True),
    ],
)
def test_known_cases(need, gpus, parallel, fits):
    assert check(need, gpus, Split(tensor=parallel)).fits is fits


def test_what_is_advised_fits_and_is_the_smallest_change() -> None:
    text = check(SEVENTY, H100, Split(tensor=1)).text
    assert text == (
        "70B in 16 bits needs about 140 GB for its weights; 1 x H100 has 80 GiB: "
        "use 4 bits or tensor parallel 2"
    )


def test_a_request_that_is_too_long_is_named() -> None:
    verdict = check(replace(EIGHT, context=131_072), A10G, Split(tensor=1))
    assert not verdict.fits
    assert "for one request of 131072 tokens" in verdict.text
    assert verdict.text.endswith("use tensor parallel 2 or --max-model-len 16384")
    assert check(replace(EIGHT, context=16_384), A10G, Split(tensor=1)).fits


def test_where_one_change_is_not_enough_two_are_named() -> None:
    need = replace(SEVENTY, context=131_072)
    assert check(need, replace(H100, count=1), Split(tensor=1)).text.endswith(
        "use 4 bits, with --max-model-len 65536"
    )
    assert check(replace(need, form=AWQ, context=65_536), H100, Split(tensor=1)).fits


def test_more_gpus_than_there_are() -> None:
    verdict = check(EIGHT, A10G, Split(tensor=8))
    assert not verdict.fits
    assert verdict.text.startswith("8 GPUs are asked for and the machine has 4 x A10G")


def test_nothing_helps() -> None:
    need = Need(parameters=405e9, form=AWQ, context=2048)
    assert check(need, A10G, Split(tensor=4)).text.endswith("choose a machine with more GPU memory")


def test_a_near_miss_is_tight_and_a_clear_one_is_not() -> None:
    assert check(replace(SEVENTY, form=FP8), H100, Split(tensor=1)).tight
    assert not check(SEVENTY, H100, Split(tensor=1)).tight
    assert not check(EIGHT, H100, Split(tensor=1)).tight


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


@given(
    parameters=st.floats(1e8, 1e12),
    form=st.sampled_from((AWQ, FP8, WHOLE)),
    context=st.integers(256, 200_000),
    memory=st.floats(10, 300),
    parallel=st.sampled_from((1, 2, 4, 8)),
)
def test_more_memory_and_fewer_bits_never_hurt(parameters, form, context, memory, parallel):
    need = Need(parameters=parameters, form=form, context=context)
    gpus = Gpus(kind="X", count=8, memory=memory)
    verdict = check(need, gpus, Split(tensor=parallel))
    assert check(need, replace(gpus, memory=memory * 2), Split(tensor=parallel)).used <= verdict.used
    assert check(replace(need, form=AWQ), gpus, Split(tensor=parallel)).used <= verdict.used
    if verdict.fits:
        assert check(replace(need, context=context // 2), gpus, Split(tensor=parallel)).fits


LLAMA_8B = shape("meta-llama/Llama-3.1-8B-Instruct")
LLAMA_70B = shape("meta-llama/Llama-3.3-70B-Instruct")
DEEPSEEK = shape("deepseek-ai/DeepSeek-R1-0528")
CODER = shape("Qwen/Qwen3-Coder-480B-A35B-Instruct")
H200 = Gpus(kind="H200", count=8, memory=141.0)


def known(model, **more):
    return Need(**{"parameters": model.parameters, "context": 8192, "shape": model} | more)


def test_the_cache_is_what_vllm_said_it_needs() -> None:
    """vllm-project/recipes#12: 62.00 GiB for 262,144 tokens; vllm-project/vllm#34076: 24.0 GiB."""
    assert known(CODER, context=262_144).cache == pytest.approx(62.0)
    assert known(shape("Qwen/Qwen3-Coder-30B-A3B-Instruct"), context=262_144).cache == pytest.approx(24.0)


def test_the_cache_of_llama_4_on_one_of_eight_gpus() -> None:
    """vllm-project/vllm#16118: 24.00 GiB for 1,048,576 tokens on each of 8 GPUs."""
    need = known(shape("meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8"), context=1_048_576)
    split = Split(tensor=8)
    assert need.on_each(split) - need.without_cache(split) == pytest.approx(24.0)


@pytest.mark.parametrize(
    ("model", "form", "split", "measured"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", WHOLE, Split(), 14.99),  # vllm-project/vllm#10517
        ("meta-llama/Meta-Llama-3.1-405B-Instruct-FP8", FP8, Split(tensor=8), 57.75),  # #6746
        ("Qwen/Qwen3-235B-A22B", WHOLE, Split(tensor=8), 54.92),  # #18446
        ("openai/gpt-oss-120b", format_in("mxfp4"), Split(), 60.8),  # its model card
        ("openai/gpt-oss-20b", format_in("mxfp4"), Split(), 12.8),
        ("Qwen/Qwen2.5-VL-72B-Instruct", WHOLE, Split(tensor=4), 34.43),  # #16570
    ],
)
def test_weights_on_a_gpu_are_as_engines_reported(model, form, split, measured):
    need = known(shape(model), form=form)
    assert need.without_cache(split) - 2.0 == pytest.approx(measured, rel=0.03)


def test_latent_attention_is_whole_on_each_gpu() -> None:
    need = known(DEEPSEEK, form=FP8, context=163_840)
    one, eight = (need.on_each(s) - need.without_cache(s) for s in (Split(), Split(tensor=8)))
    assert one == eight == pytest.approx(10.7, abs=0.1)


def test_key_value_heads_are_not_cut_below_one() -> None:
    need = known(LLAMA_70B, context=131_072)
    on = [need.on_each(Split(tensor=t)) - need.without_cache(Split(tensor=t)) for t in (4, 8, 16)]
    assert on == pytest.approx([10.0, 5.0, 5.0])


def test_a_window_bounds_what_its_layers_hold() -> None:
    gemma = shape("google/gemma-3-27b-it")
    short, long = (known(gemma, context=tokens).cache for tokens in (16_384, 131_072))
    whole = 10 * 2 * 16 * 128 * 2 / 2**30  # GiB a token of the layers that hold all
    assert long - short == pytest.approx(whole * (131_072 - 16_384))


def test_linear_attention_holds_nothing_that_grows() -> None:
    qwen = shape("Qwen/Qwen3-Next-80B-A3B-Instruct")
    assert known(qwen, context=262_144).cache == pytest.approx(6.0)  # 12 of 48 layers


def test_experts_are_divided_over_copies_and_the_rest_is_not() -> None:
    need = known(DEEPSEEK, form=FP8)
    alone, eight = (need.without_cache(Split(data=data, whole_experts=True)) for data in (1, 8))
    assert alone > 600
    assert 90 < eight < 100  # 76 of experts, and the rest whole
    dense = known(LLAMA_70B)
    assert dense.without_cache(Split(data=8)) == dense.without_cache(Split())


def test_a_pipeline_is_as_full_as_its_longest_stage() -> None:
    need = known(DEEPSEEK, form=FP8)  # 61 layers in 4 stages: 16, not 15.25
    ratio = (need.without_cache(Split(pipeline=4)) - 2.0) / (need.without_cache(Split()) - 2.0)
    assert ratio == pytest.approx(16 / 61)
    assert not check(known(LLAMA_70B), replace(H100, count=2), Split()).fits
    assert check(known(LLAMA_70B), replace(H100, count=2), Split(pipeline=2)).fits


def test_adapters_take_their_places_whether_any_is_loaded() -> None:
    base = known(LLAMA_8B)
    one = known(LLAMA_8B, slots=1, rank=16)
    assert one.on_each(Split()) - base.on_each(Split()) == pytest.approx(44.06e6 * 2 / 2**30, rel=0.01)
    many = known(LLAMA_8B, slots=32, rank=64)
    assert many.adapters_on(Split()) == pytest.approx(32 * 4 * one.adapters_on(Split()))
    cut = many.adapters_on(Split(tensor=4)) / many.adapters_on(Split())
    assert cut == pytest.approx(0.536, abs=0.001)  # one factor of each matrix is whole on each GPU


def test_adapters_of_an_unknown_shape_are_estimated() -> None:
    need = Need(parameters=8e9, context=8192, slots=1)
    assert need.adapters_on(Split()) == pytest.approx(known(LLAMA_8B, slots=1).adapters_on(Split()), rel=0.1)


def test_adapters_that_are_too_many_are_named_with_how_many_fit() -> None:
    need = known(LLAMA_8B, context=8192, slots=32, rank=64)
    verdict = check(need, replace(A10G, count=1), Split())
    assert not verdict.fits
    assert "10.5 GiB for 32 adapters of rank 64" in verdict.text
    fewer = int(verdict.text.rpartition("--max-loras ")[2])
    assert check(replace(need, slots=fewer), A10G, Split()).fits
    assert not check(replace(need, slots=fewer + 3), A10G, Split()).fits


def test_the_sizes_among_which_heads_are_divided() -> None:
    assert tensor_sizes(LLAMA_8B, 8) == (1, 2, 4, 8)
    assert tensor_sizes(shape("Qwen/Qwen2.5-7B"), 8) == (1, 2, 4)  # 28 heads
    assert tensor_sizes(shape("Qwen/Qwen2.5-0.5B"), 8) == (1, 2)  # 14
    assert tensor_sizes(shape("microsoft/phi-4"), 10) == (1, 2, 5, 10)
    verdict = check(known(shape("Qwen/Qwen2.5-7B")), H100, Split(tensor=8))
    assert not verdict.fits
    assert not verdict.tight
    assert "28 attention heads" in verdict.text
    assert "use tensor parallel 1, 2, 4, with" in verdict.text


def test_a_machine_is_used_whole_where_its_gpus_do_not_divide_the_heads() -> None:
    assert over_all(known(shape("Qwen/Qwen2.5-7B")), H100) == Split(tensor=4, pipeline=2)
    assert over_all(known(LLAMA_70B), H100) == Split(tensor=8)
    assert over_all(EIGHT, H100) == Split(tensor=8)


def test_experts_in_blocks() -> None:
    model = shape("Qwen/Qwen3-235B-A22B-FP8")
    need = known(model, form=FP8, blocks=128)
    assert "--enable-expert-parallel" in check(need, H100, Split(tensor=8)).text
    assert check(need, H100, Split(tensor=8, whole_experts=True)).fits
    assert check(need, H100, Split(tensor=4)).fits
    assert check(replace(need, blocks=0), H100, Split(tensor=8)).fits  # a scale a channel


def test_a_gpu_that_does_not_read_the_weights() -> None:
    volta = Gpus(kind="V100", count=8, memory=32.0)
    verdict = check(replace(EIGHT, form=AWQ), volta, Split())
    assert not verdict.fits
    assert "compute capability 7.5" in verdict.text
    assert check(replace(EIGHT, form=GPTQ), volta, Split()).fits


def test_weights_that_save_no_time_are_named() -> None:
    assert "saves memory and no time" in check(replace(EIGHT, form=FP8), A10G, Split()).text
    assert "no time" not in check(replace(EIGHT, form=FP8), L40S, Split()).text


def test_copies_need_gpus_of_their_own() -> None:
    verdict = check(EIGHT, H100, Split(tensor=4, data=4))
    assert not verdict.fits
    assert "16 GPUs are asked for" in verdict.text


def test_what_is_said_of_a_split() -> None:
    assert str(Split()) == "one GPU"
    assert str(Split(tensor=4, pipeline=2)) == "tensor parallel 4 and pipeline parallel 2"


def test_weights_that_lie_outside_the_gpus() -> None:
    """vLLM's own example: 13 billion parameters in 16 bits on 24 GB, with 10 GiB outside."""
    gpu = Gpus(kind="RTX 4090", count=1, memory=24.0)
    need = Need(parameters=13e9, context=2048)
    assert not check(need, gpu, Split()).fits
    assert check(replace(need, offload=10.0), gpu, Split()).fits
    all_outside = replace(need, offload=1000.0)
    assert all_outside.on_each(Split()) == pytest.approx(need.on_each(Split()) - need.weights)


def test_what_lies_outside_has_to_fit_there() -> None:
    gpus = Gpus(kind="L40S", count=2, memory=44.7, host=64.0)
    need = replace(SEVENTY, offload=40.0)
    verdict = check(need, gpus, Split(tensor=2))
    assert not verdict.fits
    assert verdict.text.startswith("80 GiB of weights are to lie outside the GPUs")
    assert check(need, replace(gpus, host=96.0), Split(tensor=2)).fits
    small = replace(EIGHT, offload=40.0)  # no more than there is leaves the GPU
    assert check(small, replace(gpus, host=16.0), Split()).fits


def test_a_model_that_drafts_takes_its_share() -> None:
    alone_, beside = replace(EIGHT, context=4096), replace(EIGHT, context=4096, draft=3.0)
    assert beside.on_each(Split(tensor=2)) == pytest.approx(alone_.on_each(Split(tensor=2)) + 1.5)
    verdict = check(beside, A10G, Split())
    assert not verdict.fits
    assert "GB, and 3.0 GiB for the model that drafts, for its weights" in verdict.text


def test_32_bits_take_twice_16() -> None:
    assert replace(EIGHT, form=DOUBLE).weights == pytest.approx(2 * EIGHT.weights)
    assert known(LLAMA_8B, form=DOUBLE).weights == pytest.approx(2 * known(LLAMA_8B).weights)


def test_weights_alone_are_all_that_is_held_against_all_gpus() -> None:
    assert alone(SEVENTY, H100).fits
    verdict = alone(SEVENTY, A10G)
    assert not verdict.fits
    assert verdict.text == ("70B in 16 bits needs about 140 GB for its weights alone; 4 x A10G has 90 GiB")


def test_what_a_guessed_cache_decides_is_never_certain() -> None:
    """Models with linear attention hold long requests where others of their size do not."""
    gpus = Gpus(kind="RTX 5090", count=2, memory=31.8)
    long = Need(parameters=27e9, context=262_144, form=FP8)
    verdict = check(long, gpus, Split(tensor=2))
    assert (verdict.fits, verdict.tight) == (False, True)
    assert "262144 tokens (guessed by its size; with linear attention" in verdict.text
    assert not check(replace(long, parameters=70e9), gpus, Split(tensor=2)).tight, "the weights decide"
    assert not check(known(LLAMA_8B, context=2_000_000), gpus, Split(tensor=2)).tight, "it is known"
