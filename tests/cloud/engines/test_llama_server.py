"""The real llama.cpp with the tiny model: what tests and adapters count on when they use it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_servers import MODEL, PROGRAM, ROOT, WEATHER, WIDTH, LlamaServer, running_llama

pytestmark = pytest.mark.llamacpp


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    with running_llama(tmp_path_factory.mktemp("llama"), key="secret") as server:
        yield server


def post(
    server: LlamaServer, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> dict[str, Any]:
    status, text = server.ask(path, body, headers)
    assert status == 200, text
    answer: dict[str, Any] = json.loads(text)
    return answer


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def test_a_required_tool_is_called(llama: LlamaServer) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
    asked = {**CHAT, "tools": [tool], "tool_choice": "required", "max_tokens": 1000}
    (choice,) = post(llama, "/v1/chat/completions", asked)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    for call in choice["message"]["tool_calls"]:
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Bergen")


def test_it_speaks_messages_with_the_key_of_either_kind(llama: LlamaServer) -> None:
    body = {"model": "claude", "messages": CHAT["messages"], "max_tokens": 4}
    for headers in ({"x-api-key": "secret"}, {"Authorization": "Bearer secret"}):
        answer = post(llama, "/v1/messages", body, headers)
        assert (answer["type"], answer["usage"]["output_tokens"]) == ("message", 4)
    assert llama.ask("/v1/messages", body, {"x-api-key": "wrong"})[0] == 401


def test_greedy_answers_are_the_same_again(llama: LlamaServer) -> None:
    asked = {**CHAT, "max_tokens": 40, "ignore_eos": True}
    answers = [post(llama, "/v1/chat/completions", asked) for _ in range(2)]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["usage"]["completion_tokens"] == 40


def test_embeddings(tmp_path: Path) -> None:
    with running_llama(tmp_path, name="embed", task="embed") as server:
        answer = post(server, "/v1/embeddings", {"model": "embed", "input": ["one", "another"]})
        assert [len(found["embedding"]) for found in answer["data"]] == [WIDTH, WIDTH]
        assert answer["data"][0]["embedding"] != answer["data"][1]["embedding"]


def test_it_dies_and_comes_back_at_its_port(tmp_path: Path) -> None:
    with running_llama(tmp_path) as server:
        port = server.port
        post(server, "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 1})
        assert server.metric("tokens_predicted_total") == 1
        server.kill()
        with pytest.raises(OSError, match="refused"):
            server.metric("tokens_predicted_total")
        server.start()
        assert (server.port, server.metric("tokens_predicted_total")) == (port, 0)


def test_a_flag_that_is_not_known_ends_it() -> None:
    done = subprocess.run([PROGRAM, "--model", MODEL, "--mirostat", "2"], capture_output=True, timeout=60)
    assert done.returncode != 0
    assert b"--mirostat" in done.stderr


def test_the_tiny_model_is_the_same_to_the_byte(tmp_path: Path) -> None:
    again = tmp_path / "again.gguf"
    maker = ROOT / "tools" / "llamacpp" / "make_tiny_model.py"
    subprocess.run([sys.executable, maker, again], check=True, timeout=60)
    assert again.read_bytes() == MODEL.read_bytes()
