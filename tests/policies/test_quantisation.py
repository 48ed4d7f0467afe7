"""Weights and the flags that say how they were quantised: what vLLM refuses, what only may be wrong."""

import pytest

from policies.quantisation import judge, on_load

LLAMA = "meta-llama/Llama-3.1-70B-Instruct"
AWQ = "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"
GPTQ = "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"


@pytest.mark.parametrize(
    ("model", "method", "dtype"),
    [
        (LLAMA, "", ""),
        (LLAMA, "fp8", ""),
        (LLAMA, "bitsandbytes", ""),
        (LLAMA, "fp8_per_tensor", "bfloat16"),
        (LLAMA, "compressed-tensors", ""),  # its config says it, and names do not
        (LLAMA, "", "float32"),
        (AWQ, "", ""),
        (AWQ, "awq", ""),
        (AWQ, "AWQ_Marlin", "float16"),
        (AWQ, "auto_awq", "bfloat16"),
        (AWQ, "moe_wna16", ""),
        (AWQ, "compressed-tensors", ""),  # such weights may be named after the algorithm
        (GPTQ, "gptq_marlin", ""),
        ("acme/llama-awq-or-gptq", "gptq", ""),
        ("/opt/weights/llama-70b-awq", "awq", ""),
        ("acme/llama-gguf", "gguf", ""),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "modelopt", ""),
        (LLAMA, "of-a-plugin", ""),
    ],
)
def test_what_goes_together(model, method, dtype):
    assert judge(model, method, dtype) is None


@pytest.mark.parametrize("method", ["awq", "awq_marlin", "gptq", "gptq_marlin", "gguf", "moe_wna16"])
def test_a_publishers_plain_weights_are_not_quantised(method):
    doubt = judge(LLAMA, method)
    assert doubt is not None
    assert doubt.certain
    assert f"Cannot find the config file for {method}" in doubt.text


@pytest.mark.parametrize("model", ["/opt/weights/llama-70b", "acme/llama-70b", "llama-70b"])
def test_elsewhere_a_name_is_only_a_hint(model):
    doubt = judge(model, "awq")
    assert doubt is not None
    assert not doubt.certain


@pytest.mark.parametrize(
    ("model", "method"),
    [(AWQ, "gptq"), (GPTQ, "awq"), (AWQ, "fp8"), (GPTQ, "bitsandbytes"), (AWQ, "gptq_marlin")],
)
def test_a_method_that_contradicts_the_weights(model, method):
    doubt = judge(model, method)
    assert doubt is not None
    assert doubt.certain
    assert "leave --quantization out" in doubt.text


@pytest.mark.parametrize("dtype", ["float32", "float", "Float32"])
def test_a_type_that_such_weights_cannot_be_computed_in(dtype):
    certain = judge(AWQ, "awq", dtype)
    assert certain is not None
    assert certain.certain
    hinted = judge(AWQ, "", dtype)  # weights named so may be of compressed-tensors, which can
    assert hinted is not None
    assert not hinted.certain


def test_methods_that_the_engine_applies_itself() -> None:
    assert all(map(on_load, ("fp8", "FP8", "fp8_per_channel", "bitsandbytes", "experts_int8")))
    assert not any(map(on_load, ("awq", "gptq", "compressed-tensors", "modelopt_fp4", "")))
