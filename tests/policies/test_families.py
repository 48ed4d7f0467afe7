"""How long requests may be, by the names of models, as their config.json has it."""

import pytest

from policies.families import longest_request

K = 1024


@pytest.mark.parametrize(
    ("model", "context"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 128 * K),
        ("meta-llama/Llama-3.3-70B-Instruct", 128 * K),
        ("meta-llama/Llama-3.2-1B", 128 * K),
        ("meta-llama/Meta-Llama-3.1-405B-Instruct-FP8", 128 * K),
        ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", 128 * K),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8 * K),
        ("meta-llama/Llama-2-70b-chat-hf", 4 * K),
        ("/opt/weights/llama-3.1-70b", 128 * K),
        ("Qwen/Qwen2.5-7B-Instruct", 32 * K),
        ("Qwen/Qwen2.5-72B-Instruct-AWQ", 32 * K),
        ("Qwen/Qwen3-8B", 40 * K),
        ("Qwen/Qwen3-30B-A3B", 40 * K),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 256 * K),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507-FP8", 256 * K),
        ("mistralai/Mistral-7B-Instruct-v0.3", 32 * K),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 32 * K),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", 64 * K),
        ("mistralai/Mistral-Small-24B-Instruct-2501", 32 * K),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", 128 * K),
        ("google/gemma-7b-it", 8 * K),
        ("google/gemma-2-27b-it", 8 * K),
        ("google/gemma-3-1b-it", 32 * K),
        ("google/gemma-3-27b-it", 128 * K),
        ("microsoft/phi-4", 16 * K),
        ("deepseek-ai/DeepSeek-V3", 160 * K),
        ("deepseek-ai/DeepSeek-R1-0528", 160 * K),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", 128 * K),
        ("openai/gpt-oss-120b", 128 * K),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", 128 * K),
        ("moonshotai/Kimi-K2-Instruct", 128 * K),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", 256 * K),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 256 * K),
        ("Qwen/Qwen1.5-7B-Chat-GPTQ-Int4", 32 * K),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 128_000),
    ],
)
def test_the_longest_request_of_a_known_family(model, context):
    assert longest_request(model) == context


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen2.5-7B",  # the base model has another maximum than the one for instructions
        "Qwen/Qwen2.5-7B-Instruct-1M",
        "Qwen/Qwen3-8B-Base",
        "microsoft/Phi-3-mini-128k-instruct",  # what vLLM takes depends on its version
        "microsoft/Phi-4-mini-instruct",
        "acme/llama-3x-thing",
        "acme/odd-7B",
        "codellama/CodeLlama-34b-hf",
        "moonshotai/Kimi-K2-Instruct-0905",  # twice as long as the first one
        "",
    ],
)
def test_what_is_not_known_has_no_answer(model):
    assert longest_request(model) is None
