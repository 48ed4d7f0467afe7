"""`validate` of files with several pools, routes and providers: which name goes where, and what it costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.__main__ import main

EXAMPLES = Path(__file__).parents[3] / "examples"


def said(capsys: pytest.CaptureFixture[str], file: Path) -> list[str]:
    assert main(["validate", str(file)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out.splitlines()


def view(capsys: pytest.CaptureFixture[str], file: Path) -> Any:
    code = main(["validate", str(file), "-o", "json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is (code == 0)
    return found


def test_the_example_says_where_every_name_goes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, EXAMPLES / "two-pools-and-an-api.toml")
    assert lines[-7:] == [
        "  All pools together have at most $60.00 an hour: floors first, then chat, embed.",
        "  assistant (also llama-70b): pool chat; provider claude (claude-sonnet-5) when that is down; at "
        "most $20 a day at providers.",
        "  support: pool chat (support); its data stays here.",
        "  embeddings: pool embed (bge-m3); its data stays here.",
        "  bge-m3: pool embed.",
        "  claude: https://api.anthropic.com (anthropic), at most $50 a day; claude-sonnet-5 costs $3 in and "
        "$15 out per million tokens (the file's own price).",
        f"Next: orchestrator run --config {EXAMPLES / 'two-pools-and-an-api.toml'}",
    ]
    assert len([line for line in lines if line.startswith(("  chat: ", "  embed: "))]) == 2


def test_a_file_without_pools_needs_only_the_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, EXAMPLES / "api-only.toml")
    assert "  Clients send requests to 127.0.0.1:8000." in lines
    assert lines[-1].startswith("Next: orchestrator gateway --config ")


def test_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = view(capsys, EXAMPLES / "two-pools-and-an-api.toml")
    assert [pool["name"] for pool in found["pools"]] == ["chat", "embed"]
    assistant, *others = found["routes"]
    assert assistant["models"] == ["assistant", "llama-70b"]
    assert assistant["to"] == [
        {"backend": "pool chat", "when": ""},
        {"backend": "provider claude (claude-sonnet-5)", "when": "when that is down"},
    ]
    assert (assistant["stays"], assistant["usd_per_day"], assistant["written"]) == (False, 20.0, True)
    assert [(route["models"], route["written"], route["stays"]) for route in others] == [
        (["support"], True, True),
        (["embeddings"], True, True),
        (["bge-m3"], False, True),
    ]
    (claude,) = found["providers"]
    assert (claude["name"], claude["usd_per_day"]) == ("claude", 50.0)
    assert claude["models"] == [{"model": "claude-sonnet-5", "known": True, "source": "the file's own price"}]


def test_conditions_and_weights_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(
        """
        [pool.a]
        replicas = 2
        model = "a"
        [pool.b]
        replicas = 2
        model = "b"
        [provider.api]
        kind = "openai"
        url = "http://127.0.0.1:9"
        [[route]]
        models = ["x"]
        to = [{ pool = "a", weight = 9 }, { pool = "b", weight = 1 }, { provider = "api", model = "m" }]
        [[route]]
        models = ["y"]
        to = [
          { pool = "a" },
          { pool = "b", waited = "2s" },
          { provider = "api", model = "m", when = ["always"] },
        ]
        """,
        encoding="utf-8",
    )
    lines = said(capsys, file)
    assert "  x: pool a for 9 of 10; pool b for 1 of 10; provider api (m) when that is down." in lines
    assert (
        "  y: pool a; pool b when that is down or saturated, or after 2 s of waiting; provider api (m) when "
        "that is down or saturated or failing." in lines
    )
    assert "  api: http://127.0.0.1:9 (openai), without a cap; m has no known price (no price)." in lines


def test_one_pool_without_routes_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    found = view(capsys, EXAMPLES / "pool.toml")
    assert (found["routes"], found["providers"]) == ([], [])
    assert all(
        line.startswith(("OK", "  llama", "  ", "Next")) for line in said(capsys, EXAMPLES / "pool.toml")
    )


def test_a_list_price_names_its_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("genai_prices", reason="the extra `providers` is not installed")
    file = tmp_path / "pool.toml"
    text = (EXAMPLES / "api-only.toml").read_text(encoding="utf-8").replace("../state", "state")
    head, _, rest = text.partition("[provider.openai.price")
    file.write_text(head + rest[rest.index("[[route]]") :], encoding="utf-8")
    (openai,) = view(capsys, file)["providers"]
    (model,) = openai["models"]
    assert model["known"]
    assert model["source"].startswith("genai-prices ")


def test_faults_have_neither_routes_nor_providers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.toml"
    shutil.copy(EXAMPLES / "api-only.toml", file)
    file.write_text(file.read_text().replace("../state", "no/such/state"), encoding="utf-8")
    found = view(capsys, file)
    assert (found["ok"], found["routes"], found["providers"]) == (False, [], [])
