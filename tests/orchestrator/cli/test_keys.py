"""`orchestrator keys`, as people type it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cloud.clock import SystemClock
from orchestrator.config.load import load_config
from orchestrator.gateway.accounts.key_edit import read_file
from orchestrator.gateway.accounts.key_format import digest
from orchestrator.gateway.accounts.limit_file import Ask, LimitFile
from orchestrator.gateway.accounts.usage_file import UsageFile
from orchestrator.gateway.spend_file import Claim, SpendFile
from policies.keys import KeyLimits
from policies.spend import usd
from tests.orchestrator.cli.test_cli import check_schema
from tests.support.routed import TOML
from tests.support.sample_answers import Run

KEYS = '[gateway]\nkeys_file = "keys.toml"\n'


@pytest.fixture
def config(short_dir: Path) -> Path:
    file = short_dir / "pool.toml"
    file.write_text(TOML + KEYS)
    return file


@pytest.fixture
def keys(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> tuple[int, str, str]:
        return run("keys", *words, "--config", str(config))

    return call


def test_a_new_key_is_printed_alone_and_once(keys: Run, config: Path) -> None:
    code, out, err = keys("new", "team-a")
    file = config.with_name("keys.toml")
    assert code == 0
    (secret,) = out.splitlines()
    assert read_file(file)["team-a"].sha256 == digest(secret)
    assert secret not in err + file.read_text()
    assert "it is nowhere else" in err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_new_key_with_everything(keys: Run, config: Path) -> None:
    code, out, _ = keys(
        *("new", "nightly", "--models", "assistant, gpt-*", "--requests-per-minute", "600"),
        *("--tokens-per-minute", "20000", "--in-flight", "4", "--usd-per-day", "$25.50"),
        *("--expires", "2999-01-31", "-o", "json"),
    )
    assert code == 0
    check_schema("new-key", out)
    answer = json.loads(out)
    made = read_file(config.with_name("keys.toml"))["nightly"]
    assert made.sha256 == digest(answer["key"])
    assert made.models == ("assistant", "gpt-*")
    assert made.limits == KeyLimits(
        requests_per_minute=600, tokens_per_minute=20_000, in_flight=4, usd_per_day=usd("25.50")
    )
    assert made.expires == 32_474_736_000.0
    assert answer["made"]["limits"]["usd_per_day"] == 25.5
    assert answer["made"]["hint"] == answer["key"][-4:]


@pytest.mark.parametrize(
    ("text", "after"), [("90d", 90 * 86_400.0), ("1h", 3600.0), ("2999-01-31T08:00Z", None)]
)
def test_when_a_key_expires(keys: Run, config: Path, text: str, after: float | None) -> None:
    assert keys("new", "team-a", "--expires", text)[0] == 0
    key = read_file(config.with_name("keys.toml"))["team-a"]
    assert key.expires == (32_474_764_800.0 if after is None else key.created + after)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("new", "a b"), "cannot be the name of a key"),
        (("new", "other"), "stands for all further keys"),
        (("new", "sk-orch-xyz"), "it looks like a key"),
        (("new", "a", "--usd-per-day", "lots"), "'lots' is no amount in dollars"),
        (("new", "a", "--usd-per-day", "-1"), "-1"),
        (("new", "a", "--expires", "soon"), "neither a date"),
        (("new", "a", "--expires", "2020-01-01"), "is past"),
        (("new", "a", "--expires", "2999-01-31T08:00"), "neither a date"),
        (("new", "a", "--expires", "0s"), "is past"),
        (("new", "a", "--in-flight", "-1"), "in-flight"),
        (("new", "a", "--in-flight", "1.5"), "'1.5' is no whole number"),
        (("new", "a", "--tokens-per-minute", "0.4"), "'0.4' is no whole number"),
        (("new",), "name"),
        (("revoke",), "name"),
    ],
)
def test_wrong_usage_makes_no_key(keys: Run, config: Path, words: tuple[str, ...], said: str) -> None:
    code, out, err = keys(*words)
    assert (code, out) == (2, "")
    assert said in err.lower() or said in err
    assert not config.with_name("keys.toml").exists()


def test_a_name_is_taken_for_ever(keys: Run, config: Path) -> None:
    assert keys("new", "team-a")[0] == 0
    before = config.with_name("keys.toml").read_bytes()
    assert keys("revoke", "team-a")[0] == 0
    revoked = config.with_name("keys.toml").read_bytes()
    code, out, err = keys("new", "team-a")
    assert (code, out) == (1, "")
    assert "there is a key team-a already" in err
    assert config.with_name("keys.toml").read_bytes() == revoked != before


def test_names_of_models_that_nothing_serves_are_doubted(keys: Run) -> None:
    code, _, err = keys("new", "team-a", "--models", "assistant,asistant,small-*")
    assert code == 0
    assert "warning: nothing serves 'asistant', 'small-*'" in err
    assert "warning" not in keys("new", "team-b", "--models", "gpt-*,llama")[2]


def test_a_revoked_key(keys: Run, config: Path) -> None:
    keys("new", "team-a")
    assert keys("revoke", "team-a")[:2] == (
        0,
        "team-a is revoked. Gateways take it up within a second; a restart is not needed.\n",
    )
    assert read_file(config.with_name("keys.toml"))["team-a"].revoked is not None
    assert keys("revoke", "team-a")[:2] == (0, "team-a was revoked before.\n")
    code, out, _ = keys("revoke", "team-a", "-o", "json")
    check_schema("revoked-key", out)
    assert (code, json.loads(out)["was"]) == (0, "revoked")
    code, _, err = keys("revoke", "team-b")
    assert code == 1
    assert "there is no key 'team-b'" in err
    assert "did you mean 'team-a'?" in err


def test_a_list_says_what_each_may_and_used_today(keys: Run, config: Path) -> None:
    assert keys("list")[0] == 1  # there is no file yet
    keys("new", "team-a")
    keys("new", "b", "--models", "assistant", "--requests-per-minute", "600", "--usd-per-day", "25")
    keys("revoke", "team-a")
    code, out, _ = keys("list", "-o", "json")
    check_schema("keys", out)
    rows = {row["name"]: row for row in json.loads(out)["keys"]}
    assert code == 0
    assert {name: (row["state"], row["today"]) for name, row in rows.items()} == {
        "team-a": ("revoked", None),
        "b": ("valid", None),
    }
    now, usage = SystemClock().now(), load_config(config, "client").gateway.usage_file
    usage.parent.mkdir(exist_ok=True)
    book = UsageFile(usage)
    for day, requests in ((0, 3), (1, 50)):
        hour = int(now // 3600) - 24 * day
        book.add(
            [((hour, "b", "assistant", "pool/chat", ""), [requests, 0, 0, 1000, 200, 30, 4, 0.1, 1])], now
        )
    book.close()
    _, out, _ = keys("list", "-o", "json")
    check_schema("keys", out)
    rows = {row["name"]: row["today"] for row in json.loads(out)["keys"]}
    assert rows == {
        "team-a": {"requests": 0, "tokens_in": 0, "tokens_out": 0},
        "b": {"requests": 3, "tokens_in": 1230, "tokens_out": 4},
    }
    shown = [line.split() for line in keys("list")[1].splitlines()]
    assert shown[0][:2] == ["NAME", "STATE"]
    assert shown[1][:2] == ["team-a", "revoked"]
    assert shown[2][0] == "b"
    assert " ".join(shown[2]).endswith("3 1,234")
    assert "0/600 req/min, $0.00/$25.00 a day" in " ".join(shown[2])


def test_a_list_holds_limits_against_what_is_used(keys: Run, config: Path) -> None:
    keys("new", "a", "--requests-per-minute", "600", "--in-flight", "4", "--usd-per-day", "25")
    keys("new", "free")
    settings, clock = load_config(config, "client").gateway, SystemClock()
    settings.usage_file.parent.mkdir(exist_ok=True)
    limits = read_file(config.with_name("keys.toml"))["a"].limits
    file, spend = LimitFile(settings.usage_file), SpendFile(settings.spend_file)
    file.apply([Ask("a", limits, 0)] * 3, {}, clock.steady())
    names = {"provider": "claude", "route": "assistant", "model": "big", "key": "a"}
    spend.apply([Claim(amount=usd("1.5"), until=clock.now() + 60, **names)], clock.now())
    file.close()
    spend.close()
    _, out, _ = keys("list", "-o", "json")
    check_schema("keys", out)
    rows = {row["name"]: row["now"] for row in json.loads(out)["keys"]}
    assert rows == {
        "a": {"requests": 3, "tokens": 0, "in_flight": 3, "usd_today": 1.5},
        "free": {"requests": 0, "tokens": 0, "in_flight": 0, "usd_today": 0.0},
    }
    shown = " ".join(keys("list")[1].split())
    for part in ("3/600 req/min", "3/4 at once", "$1.50/$25.00 a day"):
        assert part in shown
    settings.usage_file.write_bytes(b"no database at all, but longer than a header" * 100)
    _, out, _ = keys("list", "-o", "json")
    assert {row["now"] for row in json.loads(out)["keys"]} == {None}
    shown = " ".join(keys("list")[1].split())
    for part in (" 600 req/min", " 4 at once", " $25.00 a day"):
        assert part in shown


def test_a_list_without_keys_says_what_that_means(keys: Run, config: Path) -> None:
    config.with_name("keys.toml").write_text("# nobody\n")
    code, out, _ = keys("list")
    assert code == 0
    assert "nobody is let in" in out


@pytest.mark.parametrize("words", [("new", "a"), ("list",), ("revoke", "a")])
def test_a_bad_file_is_one_clear_error_and_stays(keys: Run, config: Path, words: tuple[str, ...]) -> None:
    file = config.with_name("keys.toml")
    file.write_text("[key.a\n")
    code, out, err = keys(*words)
    assert (code, out) == (1, "")
    assert f"{file} is not TOML" in err
    assert "nothing was changed" in err
    assert "Traceback" not in err
    assert file.read_text() == "[key.a\n"


@pytest.mark.parametrize("words", [("new", "a"), ("list",), ("revoke", "a")])
def test_without_a_file_of_keys_it_says_what_to_write(run: Run, config: Path, words: tuple[str, ...]) -> None:
    config.write_text(TOML)
    code, _, err = run("keys", *words, "--config", str(config))
    assert code == 1
    assert 'write keys_file = "{state_dir}/keys.toml" under [gateway]' in err


def test_a_directory_that_is_not_there(run: Run, config: Path) -> None:
    config.write_text(TOML + KEYS.replace("keys.toml", "none/keys.toml"))
    code, _, err = run("keys", "new", "a", "--config", str(config))
    assert code == 1
    assert "there is no directory" in err
