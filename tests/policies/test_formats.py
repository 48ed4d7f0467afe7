"""How weights are stored, by names, and which GPUs read it."""

from __future__ import annotations

import pytest

from cloud.aws.catalogue import catalogue
from policies.formats import AWQ, CAPABILITY, FP8, GPTQ, WHOLE, format_in, refuses, weight_only


@pytest.mark.parametrize(
    ("name", "word", "bits"),
    [
        ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "AWQ", 4),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "GPTQ", 4),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "GPTQ", 8),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "FP8", 8),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "INT8", 8),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a16", "INT8 (weight-only)", 8),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "INT4", 4),
        ("acme/gpt-oss-20b-mxfp4", "MXFP4", 4),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "FP4", 4),
        ("nvidia/Qwen3-8B-NVFP4", "FP4", 4),
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "bitsandbytes", 4),
        ("bitsandbytes meta-llama/Llama-3.1-8B", "bitsandbytes", 4),
        ("fp8 meta-llama/Llama-3.1-8B", "FP8", 8),
        ("meta-llama/Llama-3.1-8B-bf16", "16 bits", 16),
        ("unsloth/gpt-oss-20b-BF16", "16 bits", 16),
        ("acme/f16b-llama", "", 16),
        ("", "", 16),
    ],
)
def test_the_form_is_read_off_the_name(name: str, word: str, bits: int) -> None:
    found = format_in(name)
    assert (found.word, found.bits) == (word, bits)


@pytest.mark.parametrize(
    ("form", "kind", "read"),
    [
        (AWQ, "V100", False),
        (AWQ, "T4", True),
        (GPTQ, "V100", True),
        (FP8, "V100", False),
        (FP8, "T4", True),
        (format_in("mxfp4"), "T4", False),
        (format_in("mxfp4"), "A100", True),
        (format_in("w8a8"), "H100", True),
        (format_in("w8a8"), "B200", False),
        (format_in("w8a8"), "RTX PRO Server 6000", False),
        (WHOLE, "V100", True),
        (AWQ, "GPU of tomorrow", True),
    ],
)
def test_which_gpus_read_it(form, kind: str, read: bool) -> None:
    assert (refuses(form, kind) == "") is read


def test_fp8_is_computed_from_ada_on() -> None:
    assert [kind for kind in ("T4", "A100", "A10G", "L4", "H100") if weight_only(FP8, kind)] == [
        "T4",
        "A100",
        "A10G",
    ]
    assert not weight_only(WHOLE, "T4")


def test_every_gpu_that_ec2_has_is_known() -> None:
    assert {kind.gpus.kind for kind in catalogue().types.values()} <= set(CAPABILITY)
