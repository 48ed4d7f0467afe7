"""`config show`: the configuration in force, as a file that means the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.__main__ import main
from orchestrator.config.load import load_config
from orchestrator.config.values import settings
from orchestrator.redact import HIDDEN

FILE = """
[daemon]
state_dir = "state"
[pool.llama]
replicas = 4
spot_share = 0.705
[pool.llama.engine]
kind = "simulated"
args = ["--tokens-per-second", "50", "--api-key", "sk-planted"]
env = { HF_TOKEN = "hf_planted", "odd name" = "x" }
[pool.llama.drain]
budget = "90s"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pool.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["config", "show", *arguments]) == 0
    return capsys.readouterr().out


def test_the_effective_configuration_means_the_same(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.toml"
    again.write_text(shown(capsys, str(file), "--effective", "--origin"), encoding="utf-8")
    before = {s.path: s.value for s in settings(load_config(file))}
    after = {s.path: s.value for s in settings(load_config(again))}
    hidden = {("pool", "llama", "engine", key) for key in ("args", "env")}
    assert {path for path in before if before[path] != after[path]} == hidden


def test_only_what_the_file_sets(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, str(file), "--origin").splitlines()
    assert f'budget = "90s"  # {file}:12' in lines
    assert f'spot_share = "70.5%"  # {file}:6' in lines
    assert not any("default" in line for line in lines)


def test_defaults_are_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, str(file), "--effective", "--origin").splitlines()
    assert 'margin = "5s"  # default' in lines
    assert "# on_demand_floor is not set  # default" in lines


def test_secrets_are_hidden(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--effective"], ["-o", "json"]):
        out = shown(capsys, str(file), *flags)
        assert "planted" not in out
        assert HIDDEN in out
        assert "tokens-per-second" in out


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view = json.loads(shown(capsys, str(file), "--effective", "-o", "json"))
    found = {s["key"]: s for s in view["settings"]}
    assert view["schema"] == "config-show/1"
    assert found["pool.llama.drain.budget"] == {
        "key": "pool.llama.drain.budget", "table": "pool.llama.drain", "name": "budget", "value": '"90s"',
        "origin": "file", "line": 12,
    }  # fmt: skip
    assert found["pool.llama.on_demand_floor"]["value"] is None


def test_several_pools_routes_and_providers_mean_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = Path(__file__).parents[3] / "examples" / "two-pools-and-an-api.toml"
    file, again = tmp_path / "pool.toml", tmp_path / "again.toml"
    file.write_text(example.read_text().replace("../state", "state"), encoding="utf-8")
    for flags in ([], ["--effective", "--origin"]):
        again.write_text(shown(capsys, str(file), *flags), encoding="utf-8")
        before, after = load_config(file), load_config(again)
        assert {s.path: s.value for s in settings(before)} == {s.path: s.value for s in settings(after)}
        assert before.routes == after.routes


def test_what_a_pool_has_from_the_gateway_is_named_with_its_line(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FILE + "[gateway]\nqueue_limit = 7\n", encoding="utf-8")
    assert shown(capsys, str(file), "--origin").count("queue_limit") == 1
    effective = shown(capsys, str(file), "--effective", "--origin")
    assert effective.count(f"queue_limit = 7  # {file}:14") == 2


def test_what_a_key_file_holds_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text("sk-planted")
    file = tmp_path / "pool.toml"
    file.write_text(
        '[provider.api]\nkind = "openai"\nurl = "http://127.0.0.1:9"\napi_key_file = "key"\n'
        '[[route]]\nmodels = ["a"]\nto = [{ provider = "api", model = "x" }]\n',
        encoding="utf-8",
    )
    out = shown(capsys, str(file), "--effective")
    assert "planted" not in out
    assert f'api_key_file = "{tmp_path}/key"' in out
    assert '[[route]]\nmodels = ["a"]\nto = [{ provider = "api", model = "x" }]' in out


def test_a_faulty_file_is_refused_as_by_validate(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(FILE.replace("replicas", "replcas"), encoding="utf-8")
    assert main(["config", "show", str(file)]) == 1
    assert "did you mean replicas?" in capsys.readouterr().err
