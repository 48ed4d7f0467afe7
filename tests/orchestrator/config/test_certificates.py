"""The certificate of the gateway in a file: what is missing, what does not work, what runs out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.validate import validate
from orchestrator.config.checks.certificates import doubt
from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.config.tables.file import Role
from tests.support.certificates import pair

DAY = 86400.0


def built(directory: Path, role: Role = "any", pools: int = 1, **gateway: Any) -> Config:
    keys = {"tls_cert_file": "listener.crt", "tls_key_file": "listener.key"} | gateway
    lines = ["[daemon]", 'listen = "off"', "[gateway]"]
    lines += [f'{key} = "{value}"' for key, value in keys.items() if value is not None]
    lines += [f'[pool.p{n}]\nreplicas = 2\nengine.served_name = "m{n}"' for n in range(pools)]
    file = directory / "pool.toml"
    file.write_text("\n".join(lines))
    return load_config(file, role)


def faults(directory: Path, role: Role = "any", **gateway: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        built(directory, role, **gateway)
    return {problem.key: problem.text for problem in raised.value.problems}


@pytest.mark.parametrize("pools", [1, 2])
def test_a_pair_that_works_is_no_news(tmp_path: Path, pools: int) -> None:
    pair(tmp_path).write()
    config = built(tmp_path, pools=pools)
    assert config.warnings == ()
    assert config.gateway.tls_key_file == tmp_path / "listener.key"


@pytest.mark.parametrize("missing", ["tls_cert_file", "tls_key_file"])
def test_one_without_the_other(tmp_path: Path, missing: str) -> None:
    pair(tmp_path).write()
    for role in ("daemon", "gateway", "any"):
        (found,) = faults(tmp_path, role, **{missing: None}).items()
        assert found[0].endswith(f"gateway.{missing}")
        assert "write both or neither" in found[1]


def test_files_that_are_not_there_or_do_not_fit(tmp_path: Path) -> None:
    assert set(faults(tmp_path)) == {"gateway.tls_cert_file", "gateway.tls_key_file"}
    made = pair(tmp_path).write()
    made.key.write_bytes(pair(tmp_path).secret)
    for role in ("gateway", "any"):
        assert (
            "the private key is not that of the certificate"
            in faults(tmp_path, role)["gateway.tls_cert_file"]
        )
    # other processes need not be able to read them
    assert built(tmp_path, "daemon").warnings == built(tmp_path, "client").warnings == ()


def test_credentials_are_the_gateways_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    given = {"tls_cert_file": "{credentials}/crt", "tls_key_file": "{credentials}/key"}
    assert built(tmp_path, "any", **given).warnings == ()
    found = faults(tmp_path, "gateway", **given)
    assert all("no service manager" in text for text in found.values())
    assert len(found) == 2


@pytest.mark.parametrize(
    ("begins", "ends", "words"),
    [
        (-30, -2, "expired"),
        (-30, 13, "expires in 12d"),
        (-30, 15, ""),
        (3, 60, "is not valid for another 2d"),
    ],
)
def test_a_time_that_is_no_good_is_a_warning(tmp_path: Path, begins: int, ends: int, words: str) -> None:
    """A gateway with such a certificate serves those who do not look."""
    pair(tmp_path, begins=timedelta(days=begins), ends=timedelta(days=ends)).write()
    warned = [str(warning) for warning in built(tmp_path, "gateway").warnings]
    assert len(warned) == bool(words)
    assert all(words in text for text in warned)


def test_a_key_that_others_may_read_is_a_warning(tmp_path: Path) -> None:
    pair(tmp_path).write().key.chmod(0o644)
    (warned,) = built(tmp_path).warnings
    assert (warned.key, "chmod 600" in warned.text) == ("gateway.tls_key_file", True)


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        ({"listen": "0.0.0.0:8000"}, True),
        ({"listen": "127.0.0.1:8000"}, False),
        ({"listen": "0.0.0.0:8000", "tls_cert_file": "listener.crt", "tls_key_file": "listener.key"}, False),
    ],
)
def test_keys_that_travel_in_the_clear_are_a_warning(
    tmp_path: Path, more: dict[str, str], warned: bool
) -> None:
    pair(tmp_path).write()
    (tmp_path / "keys.toml").write_text("")
    none = {"tls_cert_file": None, "tls_key_file": None, "keys_file": "keys.toml"}
    found = [w.text for w in built(tmp_path, "gateway", **(none | more)).warnings if "tls" in w.key]
    assert len(found) == warned
    assert all("the keys of clients can be read on the way" in text for text in found)


@pytest.mark.parametrize(
    ("begins", "expires", "words"),
    [
        (0, 50 * DAY, "expired 2d ago: clients refuse it; renew it"),
        (0, 52 * DAY - 60, "expired 1m ago: clients refuse it; renew it"),
        (0, 52 * DAY + 5400, "expires in 90m; renew it"),
        (0, 66 * DAY, ""),
        (52 * DAY + 7200, 99 * DAY, "is not valid for another 2h: clients refuse it until then"),
    ],
)
def test_what_is_said_on_day_52(begins: float, expires: float, words: str) -> None:
    assert doubt(begins, expires, 52 * DAY) == words


@pytest.mark.parametrize("pools", [0, 1])
def test_validate_says_where_clients_ask_and_for_which_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pools: int
) -> None:
    pair(tmp_path, names=("llm.example", "10.0.0.5")).write()
    text = (
        '[gateway]\nlisten = "10.0.0.5:8443"\ntls_cert_file = "listener.crt"\ntls_key_file = "listener.key"\n'
    )
    text += '[daemon]\nlisten = "off"\n'
    if pools:
        text += "[pool.p]\nreplicas = 1\n"
    else:
        text += '[provider.near]\nkind = "openai"\nurl = "http://127.0.0.1:1/v1"\n'
        text += '[[route]]\nmodels = ["m"]\nto = [{ provider = "near", model = "m" }]\n'
    file = tmp_path / "pool.toml"
    file.write_text(text)
    assert validate(file) == 0, capsys.readouterr()
    assert "https://10.0.0.5:8443 (its certificate is for llm.example, 10.0.0.5)" in capsys.readouterr().out
