"""The shapes of models: consistent with the sizes that their names and cards state."""

from __future__ import annotations

import pytest

from policies.model_fit import parameters_in
from policies.model_shapes import _NAMED, Shape, shape

MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-3.1-405B-Instruct",
    "meta-llama/Llama-3.2-3B",
    "meta-llama/Llama-2-13b-chat-hf",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-32B-Instruct",
    "Qwen/Qwen2.5-72B-Instruct",
    "Qwen/Qwen1.5-72B-Chat",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-235B-A22B",
    "Qwen/Qwen3-Coder-480B-A35B-Instruct",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "mistralai/Mistral-Small-24B-Instruct-2501",
    "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "google/gemma-2-27b-it",
    "google/gemma-3-27b-it",
    "google/gemma-7b-it",
    "openai/gpt-oss-120b",
    "microsoft/phi-4",
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V2-Lite",
    "moonshotai/Kimi-K2-Instruct",
    "zai-org/GLM-4.5-Air",
    "zai-org/GLM-4.6",
    "zai-org/GLM-4.5V",
)


@pytest.mark.parametrize("model", MODELS)
def test_the_parts_add_up_to_the_parameters(model: str) -> None:
    """Attention, MLPs and embeddings of the shape are nearly all of the stated parameters."""
    found = shape(model)
    assert found is not None
    width, kv = found.heads * found.head, 2 * found.kv_heads * found.head
    attention = found.layers * found.hidden * (2 * width + kv)
    if found.latent:  # projections to and from what is latent are a part of that
        attention *= 0.4
    embeddings = found.vocabulary * found.hidden * (1 if found.tied else 2)
    mlps = found.spread or 3.0 * found.layers * found.hidden * found.inner
    assert attention + embeddings + mlps == pytest.approx(found.parameters, rel=0.09)


@pytest.mark.parametrize("model", MODELS)
def test_the_parameters_are_near_what_the_name_says(model: str) -> None:
    found, said = shape(model), parameters_in(model)
    assert found is not None
    if said is not None:
        assert found.parameters == pytest.approx(said, rel=0.27)  # Mixtral's 8x22 is 141


@pytest.mark.parametrize(
    ("model", "kib"),
    [
        ("meta-llama/Llama-3.1-8B", 128),
        ("meta-llama/Llama-3.1-70B", 320),
        ("meta-llama/Llama-2-7b-hf", 512),
        ("Qwen/Qwen2.5-7B-Instruct", 56),
        ("Qwen/Qwen1.5-72B-Chat", 2560),
        ("Qwen/Qwen3-30B-A3B", 96),
        ("deepseek-ai/DeepSeek-V3-0324", 68.625),
        ("Qwen/Qwen3.6-27B", 64.0),
        ("zai-org/GLM-4.5V", 184.0),
        ("openai/gpt-oss-120b", 36),
        ("google/gemma-3-27b-it", 80),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 24),
    ],
)
def test_the_cache_of_a_token(model: str, kib: float) -> None:
    found = shape(model)
    assert found is not None
    assert found.token() / 1024 == kib
    assert found.token(bits=8) == found.token() / 2


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen3-Embedding-8B",
        "Qwen/Qwen3-VL-8B-Instruct",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
        "meta-llama/Llama-3.2-11B-Vision",
        "deepseek-ai/DeepSeek-R1-Distill-Odd-8B",
        "microsoft/Phi-4-mini-instruct",
        "acme/my-llama-3-80b",
        "acme/odd-7B",
        "",
    ],
)
def test_a_name_that_only_resembles_one_has_no_answer(model: str) -> None:
    assert shape(model) is None


def test_distilled_models_have_the_shape_of_what_they_were_made_from() -> None:
    for distilled, base in {
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": "meta-llama/Llama-3.3-70B-Instruct",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": "Qwen/Qwen2.5-32B",
        "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B": "Qwen/Qwen3-8B",
    }.items():
        assert shape(distilled) == shape(base) is not None


@pytest.mark.parametrize(("pattern", "known"), _NAMED)
def test_the_widths_of_every_known_shape_are_whole_blocks(pattern: str, known: Shape) -> None:
    """As published: kernels need them so, and a slip of a digit shows."""
    block = known.block or 64
    assert [width % block for width in (known.hidden, known.inner)] == [0, 0], pattern
    assert known.head % 16 == 0
