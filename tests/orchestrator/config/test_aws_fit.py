"""Whether a model fits on machines of EC2: what is not known, and what flags change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.config.test_aws import built, faults, vllm


def test_a_model_of_unknown_size_is_never_said_to_fit(tmp_path: Path) -> None:
    (warning,) = built(tmp_path, pool=vllm("a-model-without-a-size")).warnings
    assert "whether a-model-without-a-size fits is not known" in warning.text
    assert "--pool llama --try-node on-demand" in warning.text
    embeds = {**vllm("acme/embeds"), "engine": {"kind": "vllm", "task": "embed"}}
    assert built(tmp_path, pool=embeds).warnings == ()


def test_more_gpus_than_there_are_need_no_size(tmp_path: Path) -> None:
    found = faults(tmp_path, pool=vllm("acme/mystery", "--tensor-parallel-size", "8"))
    assert "8 GPUs are asked for and the machine has 1 x H100" in found["pool.llama.cloud.aws.instance_types"]


@pytest.mark.parametrize("kind", ["sglang", "tgi", "trtllm"])
def test_of_other_engines_the_weights_alone_are_judged(tmp_path: Path, kind: str) -> None:
    args = ["--extra_llm_api_options", "/etc/trtllm.yaml"] if kind == "trtllm" else []
    small, large = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-405B-Instruct"
    engine = {"kind": kind, "args": args}
    found = faults(tmp_path, pool={"model": large, "engine": engine})
    assert "for its weights alone; 1 x H100 has" in found["pool.llama.cloud.aws.instance_types"]
    texts = [one.text for one in built(tmp_path, pool={"model": small, "engine": engine}).warnings]
    assert any("only the weights were held against the memory of the GPUs" in text for text in texts)


def test_weights_outside_the_gpus_and_in_32_bits_are_counted(tmp_path: Path) -> None:
    words = ("--max-model-len", "4096", "--tensor-parallel-size", "4")
    large = "meta-llama/Llama-3.1-70B-Instruct"
    types = {"instance_types": ["g5.12xlarge"]}
    key = "pool.llama.cloud.aws.instance_types"
    assert "needs about 141 GB" in faults(tmp_path, pool=vllm(large, *words), **types)[key]
    outside = vllm(large, *words, "--cpu-offload-gb", "24")
    assert built(tmp_path, pool=outside, **types).warnings == ()
    too_much = vllm(large, *words, "--cpu-offload-gb", "300", "--kv-cache-dtype", "fp8")
    assert built(tmp_path, pool=too_much, **types).warnings == (), "131 GiB of 192 at most"
    wide = vllm("meta-llama/Llama-3.1-8B-Instruct", "--max-model-len", "4096", "--dtype", "float32")
    assert "in 32 bits needs about 32 GB" in faults(tmp_path, pool=wide, instance_types=["g6.xlarge"])[key]


def test_the_model_that_drafts_is_counted(tmp_path: Path) -> None:
    large = ("meta-llama/Llama-3.1-70B-Instruct", "--max-model-len", "8192", "--tensor-parallel-size", "2")
    types = {"instance_types": ["p5.48xlarge"]}
    drafts = '{"model": "meta-llama/Llama-3.1-8B-Instruct", "num_speculative_tokens": 4}'
    told = built(tmp_path, pool=vllm(*large, "--speculative-config", drafts), **types).warnings
    assert any("16.0 GiB for the model that drafts" in warning.text for warning in told)
    for none in ('{"method": "ngram"}', "nonsense", "[]", '{"model": 7}'):
        texts = built(tmp_path, pool=vllm(*large, "--speculative-config", none), **types).warnings
        assert not any("drafts" in warning.text for warning in texts)


def test_a_rank_that_vllm_does_not_know_ends_it(tmp_path: Path) -> None:
    words = ("--max-model-len", "8192", "--enable-lora", "--max-lora-rank")
    found = faults(tmp_path, pool=vllm("meta-llama/Llama-3.1-8B", *words, "48"))
    assert "ends the engine at once" in found["pool.llama.engine.args"]
    assert "write 64, which holds smaller ones as well" in found["pool.llama.engine.args"]
    assert built(tmp_path, pool=vllm("meta-llama/Llama-3.1-8B", *words, "64")).warnings == ()


def test_a_request_longer_than_the_model_is_told(tmp_path: Path) -> None:
    long = vllm("meta-llama/Llama-3.1-8B-Instruct", "--max-model-len", "200000")
    (warning,) = built(tmp_path, pool=long).warnings
    assert "more than the 131072 tokens of meta-llama/Llama-3.1-8B-Instruct" in warning.text
    stretched = vllm("meta-llama/Llama-3.1-8B-Instruct", "--max-model-len", "200000", "--hf-overrides", "{}")
    assert built(tmp_path, pool=stretched).warnings == ()


def test_what_somebody_unpacked_is_not_as_its_publisher_stores_it(tmp_path: Path) -> None:
    words = ("--tensor-parallel-size", "{gpus}", "--enable-expert-parallel")
    types = {"instance_types": ["p5en.48xlarge"]}
    stored = built(tmp_path, pool=vllm("deepseek-ai/DeepSeek-R1", *words), **types)
    assert not any("fit" in warning.text for warning in stored.warnings)
    found = faults(tmp_path, pool=vllm("unsloth/DeepSeek-R1-BF16", *words), **types)
    assert "671B in 16 bits needs about 1342 GB" in found["pool.llama.cloud.aws.instance_types"]
