"""Which engine a pool runs, and what is said of one that could not start, or would never be ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.clock import SystemClock
from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.wiring.ports import connect


def load(directory: Path, engine: str, *, model: str = "", more: str = "") -> Config:
    file = directory / "pool.toml"
    model = f"model = '{model}'\n" if model else ""
    file.write_text(f"[pool.a]\nreplicas = 1\n{model}{more}[pool.a.engine]\n{engine}\n", encoding="utf-8")
    return load_config(file)


def faults(directory: Path, engine: str, *, model: str = "", more: str = "") -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(directory, engine, model=model, more=more)
    return {problem.key: problem.text for problem in caught.value.problems}


@pytest.fixture
def gguf(tmp_path: Path) -> str:
    path = tmp_path / "llama.gguf"
    path.touch()
    return str(path)


def test_llamacpp_is_started_with_the_model_and_the_task(tmp_path: Path, gguf: str) -> None:
    engine = 'kind = "llamacpp"\ntask = "embed"\nserved_name = "bge"\nargs = ["--pooling", "cls"]'
    ports = connect(load(tmp_path, engine, model=gguf), SystemClock())
    assert ports.engine.name == "llamacpp"
    assert ports.command.argv[:5] == ("llama-server", "--model", gguf, "--alias", "bge")
    assert ports.command.argv[-3:] == ("--embedding", "--pooling", "cls")


@pytest.mark.parametrize("kind", ["vllm", "simulated"])
def test_an_embedding_pool_of_vllms_dialect_is_started_to_pool(tmp_path: Path, kind: str) -> None:
    ports = connect(load(tmp_path, f'kind = "{kind}"\ntask = "embed"', model="org/bert"), SystemClock())
    position = ports.command.argv.index("--runner")
    assert ports.command.argv[position + 1] == "pooling"
    assert not {"--enable-scale-out", "--enable-prompt-tokens-details"} & set(ports.command.argv)


@pytest.mark.parametrize(
    "engine",
    [
        'kind = "vllm"\nargs = ["--runner", "pooling"]',
        'kind = "vllm"\nargs = ["--runner=pooling"]',
        'kind = "llamacpp"\nargs = ["--embeddings"]',
    ],
)
def test_an_engine_that_embeds_says_so_as_its_task(tmp_path: Path, gguf: str, engine: str) -> None:
    assert 'write task = "embed"' in faults(tmp_path, engine, model=gguf)["pool.a.engine.task"]


def test_llamacpp_needs_a_model(tmp_path: Path) -> None:
    assert "llama.cpp needs a model" in faults(tmp_path, 'kind = "llamacpp"')["pool.a.model"]


@pytest.mark.parametrize(
    ("model", "words"),
    [("llama.gguf", "write its whole path"), ("/no/such/llama.gguf", "there is no file /no/such/llama.gguf")],
)
def test_a_model_that_is_not_there_is_named(tmp_path: Path, model: str, words: str) -> None:
    assert words in faults(tmp_path, 'kind = "llamacpp"', model=model)["pool.a.model"]


def test_a_model_of_a_hub_is_not_looked_for(tmp_path: Path) -> None:
    assert load(tmp_path, 'kind = "llamacpp"', model="org/llama-GGUF:Q4_K_M").pool.engine.kind == "llamacpp"


def test_a_flag_of_vllm_is_answered_with_that_of_llamacpp(tmp_path: Path, gguf: str) -> None:
    engine = 'kind = "llamacpp"\nargs = ["--max-model-len", "8192"]'
    assert "write --ctx-size" in faults(tmp_path, engine, model=gguf)["pool.a.engine.args"]


def test_a_program_that_is_not_installed_is_warned_of(tmp_path: Path, gguf: str) -> None:
    warnings = load(tmp_path, 'kind = "llamacpp"\nexecutable = "no-llama-here"', model=gguf).warnings
    (warning,) = [warning for warning in warnings if warning.key == "pool.a.engine.executable"]
    assert "no-llama-here is not on the PATH" in warning.text
