"""`orchestrator doctor --engine`: an engine that is as its row says, and one that is not."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from llama_servers import MODEL, RANKER, running_llama
from played_engines import played

from cloud.engines import dialect
from cloud.engines.dialect import DIALECTS
from orchestrator.__main__ import main
from orchestrator.doctor import engine_claims


def asked(capsys: pytest.CaptureFixture[str], url: str, *words: str) -> tuple[int, list[dict[str, Any]]]:
    code = main(["doctor", "--engine", url if "://" in url else f"http://{url}", *words, "-o", "json"])
    return code, json.loads(capsys.readouterr().out)["findings"]


def states(rows: list[dict[str, Any]], check: str) -> set[str]:
    return {row["state"] for row in rows if row["check"] == check}


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("sglang", "generate"),
        ("sglang", "embed"),
        ("sglang", "rerank"),
        ("tgi", "generate"),
        ("tei", "embed"),
        ("tei", "rerank"),
        ("ollama", "generate"),
        ("trtllm", "generate"),
    ],
)
def test_an_engine_that_is_as_its_row_says(capsys, kind: str, task: str) -> None:
    with played(kind, "--task", task) as url:
        code, rows = asked(capsys, url, "--kind", kind, "--task", task)
    assert code == 0, [row for row in rows if row["state"] == "fail"]
    for check in ("task", "health", "model", "life", "names"):
        assert "ok" in states(rows, check), check
    assert {row["group"] for row in rows} == {"engine"}


@pytest.mark.llamacpp
@pytest.mark.parametrize(("task", "model"), [("generate", MODEL), ("embed", MODEL), ("rerank", RANKER)])
def test_a_real_llamacpp_is_as_its_row_says(capsys, tmp_path, monkeypatch, task: str, model: Any) -> None:
    monkeypatch.setattr("llama_servers.MODEL", model)
    words = ("--reranking",) if task == "rerank" else ()
    with running_llama(tmp_path, task="embed" if task == "embed" else "generate", words=words) as server:
        code, rows = asked(capsys, server.url, "--kind", "llamacpp", "--task", task)
    assert code == 0, [row for row in rows if row["state"] == "fail"]


def test_one_kind_taken_for_another_differs(capsys) -> None:
    with played("sglang") as url:
        code, rows = asked(capsys, url, "--kind", "tgi")
    assert code == 1
    (seen,) = [row for row in rows if row["check"] == "kind"]
    assert seen["text"] == "it is SGLang and not Text Generation Inference, by its /metrics"
    assert seen["advice"] == "write --kind sglang, and engine.kind in the pool's table"
    (model,) = [row for row in rows if row["check"] == "model"]
    assert (model["state"], model["text"]) == ("fail", "/info answers 404")
    assert "report it" in model["advice"]
    assert states(rows, "life") == states(rows, "names") == states(rows, "stream") == {"skipped"}


@pytest.mark.parametrize(
    ("changes", "check", "text"),
    [
        ({"waiting": "sglang:num_waiting"}, "life", "lacks sglang:num_waiting"),
        ({"progress": MappingProxyType({"generate": ("sglang:num_running_reqs",)})}, "life", "did not move"),
        ({"too_long": MappingProxyType({"generate": 422})}, "too-long", "answered with 400"),
        ({"capabilities": {"checks_names": True}}, "names", "answered with 200, and its row says 404"),
        ({"capabilities": {"token_ids": "exact"}}, "stream", "tells 0 ids"),
        ({"health": "/healthz"}, "health", "/healthz answers 404"),
    ],
)
def test_what_a_row_has_wrong_is_named(capsys, monkeypatch, changes, check: str, text: str) -> None:
    row = replace(DIALECTS["sglang"], sparse=False)
    if "capabilities" in changes:
        changes = {"capabilities": replace(row.capabilities, **changes["capabilities"])}
    monkeypatch.setattr(
        engine_claims, "DIALECTS", MappingProxyType({**dialect.DIALECTS, "sglang": replace(row, **changes)})
    )
    with played("sglang") as url:
        code, rows = asked(capsys, url, "--kind", "sglang")
    assert code == 1
    assert any(text in row["text"] for row in rows if row["check"] == check and row["state"] == "fail")


def test_the_key_and_the_model_are_those_that_are_given(capsys, tmp_path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    with played("sglang", args=("--api-key", "secret")) as url:
        code, rows = asked(capsys, url, "--kind", "sglang")
        assert code == 1
        (refused,) = [row for row in rows if "the API key was refused" in row["text"]]
        assert refused["advice"].startswith("write --key-file FILE")
        assert asked(capsys, url, "--kind", "sglang", "--key-file", str(key))[0] == 0
        code, rows = asked(capsys, url, "--kind", "sglang", "--key-file", str(key), "--model", "other")
    assert code == 1
    assert any("does not serve other, only tiny" in row["text"] for row in rows)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--engine", "http://127.0.0.1:1"], "--engine and --kind go together"),
        (["--kind", "tgi"], "--engine and --kind go together"),
        (["--engine", "http://127.0.0.1/v1", "--kind", "tgi"], "leave out what follows the port"),
        (["--engine", "http://127.0.0.1:99999", "--kind", "tgi"], "is not http://HOST:PORT"),
        (["--engine", "ftp://127.0.0.1:1", "--kind", "tgi"], "is not http://HOST:PORT"),
        (["--engine", "http://me:secret@127.0.0.1:1", "--kind", "tgi"], "is not http://HOST:PORT"),
        (["--engine", "", "--kind", "tgi"], "is not http://HOST:PORT"),
    ],
)
def test_wrong_usage(capsys, words: list[str], text: str) -> None:
    assert main(["doctor", *words]) == 2
    assert text in capsys.readouterr().err


def test_nothing_that_listens_is_told_in_words(capsys) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        code, rows = asked(capsys, address, "--kind", "tgi")
    assert code == 1
    (health,) = [row for row in rows if row["check"] == "health"]
    assert health["text"] == (
        f"cannot connect to {address}: Connection refused; Text Generation Inference listens once its model "
        "is loaded"
    )
    assert states(rows, "kind") == {"skipped"}


def test_tls_to_an_engine_that_has_none_is_told(capsys) -> None:
    with played("tgi") as url:
        code, rows = asked(capsys, f"https://{url}", "--kind", "tgi")
    assert code == 1
    (health,) = [row for row in rows if row["check"] == "health"]
    assert "does not speak TLS: write http:// for it" in health["text"]


def test_a_load_that_is_not_told_after_work_is_a_warning(capsys, monkeypatch) -> None:
    """As a TensorRT-LLM that was not told to count its iterations, or an old one."""
    row = replace(DIALECTS["sglang"], running="sglang:of_another_version")
    monkeypatch.setattr(engine_claims, "DIALECTS", MappingProxyType({**dialect.DIALECTS, "sglang": row}))
    with played("sglang") as url:
        code, rows = asked(capsys, url, "--kind", "sglang")
    assert code == 0
    (told,) = [one for one in rows if one["subject"] == "running"]
    assert told["state"] == "warn"
    assert told["text"] == (
        "/metrics does not have sglang:of_another_version, also after it worked: its load is not seen"
    )


def test_an_engine_of_millions_of_tokens_is_not_sent_more(capsys, monkeypatch) -> None:
    monkeypatch.setattr(engine_claims, "_context", lambda listing: 10_485_760)
    with played("sglang") as url:
        code, rows = asked(capsys, url, "--kind", "sglang")
    assert code == 0
    assert states(rows, "too-long") == {"skipped"}
