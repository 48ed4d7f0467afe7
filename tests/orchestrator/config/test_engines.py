"""Which engine a pool runs, and what is said of one that could not start, or would never be ready."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from cloud.clock import SystemClock
from cloud.engines.dialect import DIALECTS, Kind
from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.wiring.gateway import gateway_config
from orchestrator.wiring.ports import ENGINES, connect


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
    assert ports.command.argv[-4:] == ("--embedding", "--kv-unified", "--pooling", "cls")


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


def warned(directory: Path, engine: str, *, model: str = "", more: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in load(directory, engine, model=model, more=more).warnings:
        found.setdefault(problem.key, []).append(problem.text)
    return found


OPTIONS = 'args = ["--extra_llm_api_options", "/srv/o.yaml"]'


@pytest.mark.parametrize(
    ("engine", "model", "words"),
    [
        ('kind = "sglang"', "org/llama", "sglang serve --model-path org/llama --served-model-name org/llama"),
        ('kind = "sglang"\ntask = "embed"', "org/bert", "--enable-metrics --is-embedding"),
        ('kind = "sglang"\nargs = ["--no-enable-metrics", "--tp", "2"]', "org/llama", "{port} --tp 2"),
        ('kind = "tgi"', "org/llama", "text-generation-launcher --model-id org/llama --hostname {host}"),
        (
            'kind = "tei"\ntask = "embed"\nserved_name = "bge"',
            "org/bge",
            "--served-model-name bge",
        ),
        (
            'kind = "ollama"\nenv = { OLLAMA_NUM_PARALLEL = "999" }',
            "llama:1b",
            "env OLLAMA_HOST={host}:",
        ),
        (
            f'kind = "trtllm"\n{OPTIONS}',
            "org/llama",
            "trtllm-serve org/llama --host {host}",
        ),
    ],
)
def test_how_the_others_are_started(tmp_path: Path, engine: str, model: str, words: str) -> None:
    ports = connect(load(tmp_path, engine, model=model), SystemClock())
    assert words in " ".join(ports.command.argv)
    assert ports.command.build


def test_how_the_others_are_stopped(tmp_path: Path) -> None:
    """What drains gets its budget, what does not gets moments."""
    drains = "drain.budget = '100s'\n"
    tei = connect(load(tmp_path, 'kind = "tei"\ntask = "embed"', model="m", more=drains), SystemClock())
    assert 100 < tei.command.stop_grace < 200
    tgi = connect(load(tmp_path, 'kind = "tgi"', model="m", more=drains), SystemClock()).command
    assert tgi.argv[-2:] == ("--graceful-termination-timeout", "100")
    assert 100 < tgi.stop_grace < 200
    own = 'kind = "tgi"\nargs = ["--graceful-termination-timeout=7"]'
    assert connect(load(tmp_path, own, model="m", more=drains), SystemClock()).command.stop_grace == 27.0
    ollama = 'kind = "ollama"\nenv = { OLLAMA_NUM_PARALLEL = "999" }'
    cut = connect(load(tmp_path, ollama, model="m:1b", more=drains), SystemClock()).command
    assert cut.stop_grace < 30
    assert cut.env == {"OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_NUM_PARALLEL": "999"}


def test_no_health_check_of_sglang_makes_a_token(tmp_path: Path) -> None:
    env = connect(load(tmp_path, 'kind = "sglang"', model="m"), SystemClock()).command.env
    assert env == {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0", "SGLANG_TIMEOUT_KEEP_ALIVE": "75"}


@pytest.mark.parametrize(
    ("engine", "model", "key", "words"),
    [
        ('kind = "tei"', "m", "engine.task", 'does not do; write "embed" or "rerank"'),
        ('kind = "tgi"\ntask = "embed"', "m", "engine.task", 'Inference does not do; write "generate"'),
        ('kind = "ollama"\ntask = "rerank"', "m:1", "engine.task", 'write "embed" or "generate"'),
        ('kind = "sglang"', "", "model", "SGLang needs a model"),
        ('kind = "tgi"\nserved_name = "llama"', "org/llama", "engine.served_name", 'would call the model'),
        (f'kind = "trtllm"\n{OPTIONS}', "/srv/llama", "engine.served_name", 'write served_name = "llama"'),
        ('kind = "ollama"', "llama3.2", "engine.served_name", 'write served_name = "llama3.2:latest"'),
        ('kind = "ollama"', "llama3.2:1b", "gateway.max_in_flight", "answers 1 request at once"),
        ('kind = "ollama"\nargs = ["--parallel"]', "m:1", "engine.args", "takes none"),
        ('kind = "trtllm"', "org/llama", "engine.args", "true and enable_iter_perf_stats: true"),
        ('kind = "sglang"\nargs = ["--max-model-len", "8k"]', "m", "engine.args", "write --context-length"),
        ('kind = "tgi"\nargs = ["--tensor-parallel-size", "2"]', "m", "engine.args", "write --num-shard"),
        ('kind = "sglang"\nargs = ["--is-embedding"]', "m", "engine.task", "the engine embeds"),
        ('kind = "llamacpp"\nargs = ["--reranking"]', "org/m", "engine.task", 'write task = "rerank"'),
    ],
)  # fmt: skip
def test_what_the_others_cannot_do(tmp_path: Path, engine: str, model: str, key: str, words: str) -> None:
    assert words in faults(tmp_path, engine, model=model)[f"pool.a.{key}"]


def test_what_was_never_run_says_so(tmp_path: Path) -> None:
    for engine, model in (
        ('kind = "sglang"', "m"),
        ('kind = "tgi"', "m"),
        ('kind = "tei"\ntask = "rerank"', "m"),
        ('kind = "ollama"\nenv = { OLLAMA_NUM_PARALLEL = "999" }', "m:1"),
        (f'kind = "trtllm"\n{OPTIONS}', "m"),
    ):
        said = warned(tmp_path, engine, model=model)["pool.a.engine.kind"]
        assert any("was not run against the real one" in text for text in said)
    for engine in ('kind = "vllm"', 'kind = "llamacpp"', 'kind = "simulated"'):
        assert not any(
            "not run" in text
            for text in warned(tmp_path, engine, model="org/m").get("pool.a.engine.kind", [])
        )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("", True),
        ('"--pooling", "mean"', True),
        ('"--pooling", "last"', False),
        ('"--ubatch-size", "2048"', False),
        ('"-ub", "2048"', False),
    ],
)
def test_inputs_that_llamacpp_does_not_read_in_one_piece(tmp_path: Path, args: str, says: bool) -> None:
    engine = f'kind = "llamacpp"\ntask = "embed"\nargs = [{args}]'
    said = warned(tmp_path, engine, model="org/m").get("pool.a.engine.args", [])
    assert any("more than 512 tokens is refused" in text for text in said) is says


def test_inputs_that_tei_cuts_without_a_word(tmp_path: Path) -> None:
    engine = 'kind = "tei"\ntask = "embed"'
    assert any(
        "cut without a word" in text for text in warned(tmp_path, engine, model="m")["pool.a.engine.args"]
    )
    whole = f'{engine}\nargs = ["--auto-truncate", "false"]'
    assert "pool.a.engine.args" not in warned(tmp_path, whole, model="m")


def test_the_gateway_asks_each_engine_for_its_own_health_and_goes_on_from_ids_only_where_they_are_told(
    tmp_path: Path,
) -> None:
    def gate(engine: str, model: str, more: str = ""):
        (made,) = gateway_config(load(tmp_path, engine, model=model, more=more)).pools
        return made.health_path, made.tells_ids

    ollama = 'kind = "ollama"\nenv = { OLLAMA_NUM_PARALLEL = "999" }'
    assert gate('kind = "vllm"', "m") == ("/health", True)
    assert gate('kind = "llamacpp"', "org/m") == ("/health", False)
    assert gate('kind = "sglang"', "m") == ("/health", False)
    assert gate(ollama, "m:1") == ("/api/version", False)
    assert gate(ollama, "m:1", "gateway.health_path = '/'\n") == ("/", False)


def test_every_kind_has_its_engine() -> None:
    assert set(ENGINES) == set(DIALECTS) == set(get_args(Kind))
    assert all(ENGINES[kind].dialect is row for kind, row in DIALECTS.items())
    assert all(engine.name == kind for kind, engine in ENGINES.items())
