"""What a support bundle holds of routes and providers: where requests go, what was spent, no key."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from cloud.clock import SystemClock
from orchestrator.cli import bundle
from orchestrator.config.load import Config, load_config
from orchestrator.gateway.accounts.usage_file import UsageFile
from orchestrator.gateway.spend_file import Claim, SpendFile
from orchestrator.redact import Redactor

KEY = "sk-planted-4711"
FILE = """
[pool.a]
replicas = 2
model = "a"
[pool.b]
replicas = 2
model = "b"
[provider.api]
kind = "openai"
url = "http://127.0.0.1:9"
api_key_file = "key"
[[route]]
models = ["x"]
to = [{ pool = "a" }, { provider = "api", model = "m" }]
"""


@pytest.fixture
def config(short_dir: Path) -> Config:
    (short_dir / "state").mkdir()
    (short_dir / "key").write_text(f"{KEY}\n")
    (short_dir / "key").chmod(0o600)
    (short_dir / "pool.toml").write_text(FILE, encoding="utf-8")
    return load_config(short_dir / "pool.toml")


def test_the_key_of_a_provider_is_known_as_a_secret(config: Config) -> None:
    assert list(bundle.secrets(config)) == [KEY]
    assert KEY not in Redactor(bundle.secrets(config)).text(f"the log says {KEY}")


def test_each_pool_and_the_routes_are_asked_for(config: Config) -> None:
    names = [name for name, _ in bundle._running(config)]
    assert names == [
        "daemon.prom", "gateway.prom", "gateway-a.json", "gateway-b.json", "routes.json", "spend.json",
    ]  # fmt: skip


def test_commands_about_one_pool_are_given_for_each(config: Config) -> None:
    given = dict(bundle._commands(Path("pool.toml"), tuple(config.pools)))
    assert given["explain-a.txt"] == ("explain", "pool", "--pool", "a", "--config", "pool.toml")
    assert {"history-a.json", "history-b.json", "explain-b.txt"} <= set(given)
    alone = dict(bundle._commands(Path("pool.toml"), ("a",)))
    assert alone["explain.txt"] == ("explain", "pool", "--config", "pool.toml")


def test_what_was_spent_on_what_is_there_without_a_daemon(config: Config, short_dir: Path) -> None:
    """Keys are told by their names: no part has a hash of one."""
    keys = short_dir / "state" / "keys.toml"
    keys.write_text(f'[key.team-a]\nsha256 = "{"5e" * 32}"\nhint = "so...7f2"\ncreated = 2026-11-30\n')
    with closing(UsageFile(config.gateway.usage_file)) as usage:
        now = SystemClock().now()
        names = (int(now // 3600), "team-a", "x", "pool/a", "")
        usage.add([(names, [1, 0, 0, 70, 0, 0, 30, 0.1, 1.0])], now)
    given = dict(bundle._commands(short_dir / "pool.toml", tuple(config.pools)))
    for name, group in (("cost.json", {"pool": "a"}), ("cost-use.json", {"key": "team-a", "route": "x"})):
        part = bundle._part(name, bundle._command(given[name]), Redactor())
        assert part.ok, part.text
        view = json.loads(part.text)
        [row] = [row for row in view["rows"] if row["requests"]]
        assert group.items() <= row["group"].items()
        assert row["tokens_in"] + row["tokens_out"] == 100
        assert "5e5e" not in part.text
        assert "7f2" not in part.text


def test_what_was_spent_is_there_without_a_gateway(config: Config) -> None:
    (spend,) = [source for name, source in bundle._running(config) if name == "spend.json"]
    assert [day["lines"] for day in json.loads(spend())] == [[]] * 8
    book = SpendFile(config.gateway.spend_file)
    claim = Claim(provider="api", route="x", model="m", amount=5_000_000, until=SystemClock().now() + 60.0)
    book.apply([claim], SystemClock().now())
    book.close()
    (today, *_), [line] = (json.loads(spend()), json.loads(spend())[0]["lines"])
    assert len(today["day"]) == 10
    assert (line["provider"], line["route"], line["model"], line["held"]) == ("api", "x", "m", 5_000_000)


def test_a_spend_file_that_is_none_says_so(config: Config) -> None:
    config.gateway.spend_file.write_text("no database, and long enough to be looked at" * 40)
    (source,) = [source for name, source in bundle._running(config) if name == "spend.json"]
    part = bundle._part("spend.json", source, Redactor())
    assert not part.ok
    assert part.text.startswith("not collected: the spend file ")
