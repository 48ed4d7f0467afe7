"""How llama.cpp is started and stopped."""

from __future__ import annotations

import pytest

from cloud.clock import SystemClock
from cloud.engines.llamacpp import LlamaCppEngine
from cloud.ports import EngineCommand, EngineSpec, Task


def command(*args: str, model: str = "/models/llama.gguf", task: Task = "generate") -> EngineCommand:
    spec = EngineSpec(model=model, served_name="llama", args=args, task=task, drain_budget=300.0)
    return LlamaCppEngine(SystemClock(), model_name="llama", task=task).command(spec)


def test_our_flags_where_the_user_gives_none() -> None:
    made = command()
    assert made.argv == (
        *("llama-server", "--model", "/models/llama.gguf", "--alias", "llama"),
        *("--host", "{host}", "--port", "{port}", "--metrics"),
    )
    assert made.stop_signal == "SIGTERM"
    assert made.stop_grace < 30, "it does not drain: there is nothing to wait for"


def test_a_model_that_is_no_file_comes_from_a_hub() -> None:
    assert command(model="org/model-GGUF:Q4_K_M").argv[1:3] == ("--hf-repo", "org/model-GGUF:Q4_K_M")


def test_an_embedding_pool_says_so_once() -> None:
    assert "--embedding" in command(task="embed").argv
    assert command("--embedding", task="embed").argv.count("--embedding") == 1
    assert "--embedding" not in command().argv


def test_texts_that_are_embedded_at_once_share_a_cache() -> None:
    assert "--kv-unified" in command(task="embed").argv
    assert not {"--kv-unified", "--no-kv-unified"} & {*command("--no-kv-unified", task="embed").argv}
    assert "--kv-unified" not in command().argv


def test_a_reranking_pool_says_so_once() -> None:
    assert "--reranking" in command(task="rerank").argv
    assert "--embedding" not in command(task="rerank").argv
    assert command("--reranking", task="rerank").argv.count("--reranking") == 1


def test_the_users_flags_pass_through_and_win() -> None:
    args = ("--parallel", "8", "--host=127.0.0.9", "--metrics", "-c", "8192")
    spec = EngineSpec(
        model="m.gguf", served_name="l", args=args, env={"A": "b"}, executable="/opt/llama-server"
    )
    made = LlamaCppEngine(SystemClock(), model_name="l").command(spec)
    assert made.argv == (
        *("/opt/llama-server", "--model", "m.gguf", "--alias", "l", "--port", "{port}"),
        *args,
    )
    assert made.env == {"A": "b"}


@pytest.mark.parametrize("kind", ["vllm", "simulated"])
def test_the_task_is_part_of_what_a_node_runs_where_it_is_not_the_usual_one(kind: str) -> None:
    """Nodes of a daemon that knew no tasks are still of the same build."""
    generate, embed = (EngineSpec(model="m", served_name="m", task=t) for t in ("generate", "embed"))
    assert generate.build(kind) != embed.build(kind)
    assert EngineSpec(model="m", served_name="m").build("vllm") == "cd2a79bb84864388170e"
