"""The table of the nodes' agents: off by default, and what it says when something is missing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from orchestrator.config.load import Config, ConfigError, build_config
from orchestrator.daemon.daemon import Daemon, StartError
from orchestrator.wiring.ports import connect

SECRET = "0123456789abcdef"


def built(tmp_path: Path, **agents: Any) -> Config:
    pool = {"replicas": 2, "agents": agents}
    return build_config({"daemon": {"listen": "off"}, "pool": {"p": pool}}, base=tmp_path)


def faults(tmp_path: Path, **agents: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        built(tmp_path, **agents)
    return {problem.key.removeprefix("pool.p.agents."): problem.text for problem in raised.value.problems}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    return file


def test_it_is_off_by_default_and_asks_for_nothing(tmp_path: Path) -> None:
    config = built(tmp_path)
    assert config.warnings == ()
    assert connect(config, SystemClock()).agents is None


def test_with_a_secret_it_is_one_more_source_of_notices(tmp_path: Path, secret: Path) -> None:
    config = built(tmp_path, listen="127.0.0.1:0", secret_file=str(secret))
    ports = connect(config, SystemClock())
    assert ports.agents in ports.notices
    assert config.pool.agents.secret() == SECRET.encode()
    assert config.warnings == ()


def test_what_is_missing_is_said(tmp_path: Path, secret: Path) -> None:
    found = faults(tmp_path, listen="127.0.0.1:1", secret_file="nowhere")
    assert found == {"secret_file": f"there is no file {tmp_path}/nowhere; create it or correct the path"}
    secret.write_text("short")
    found = faults(tmp_path, listen="127.0.0.1:1", secret_file=str(secret))
    assert "fewer than 16 bytes; make one with `openssl rand -hex 32" in found["secret_file"]


@pytest.mark.parametrize(
    ("agents", "key", "words"),
    [
        ({"tls_cert_file": "secret"}, "tls_key_file", "write both or neither"),
        ({"tls_key_file": "secret"}, "tls_cert_file", "write both or neither"),
        ({"tls_cert_file": "no.crt", "tls_key_file": "secret"}, "tls_cert_file", "there is no file"),
        ({"url": "control:9465"}, "url", "is not a URL"),
        ({"url": "https://control:9465"}, "url", "https:// needs tls_cert_file"),
        ({"listen": "0.0.0.0:9465"}, "url", "nodes cannot call 0.0.0.0"),
    ],
)
def test_what_does_not_fit_together_is_said(
    agents: dict[str, str], key: str, words: str, tmp_path: Path, secret: Path
) -> None:
    settings = {"listen": "10.0.0.5:9465", "secret_file": str(secret), **agents}
    assert words in faults(tmp_path, **settings)[key]


def test_files_that_others_can_read_and_plain_text_are_warned_of(tmp_path: Path, secret: Path) -> None:
    secret.chmod(0o644)
    config = built(tmp_path, listen="10.0.0.5:9465", secret_file=str(secret))
    texts = [str(problem) for problem in config.warnings]
    assert any("can be read by other users" in text for text in texts)
    assert any("no node can fetch its key here" in text for text in texts)


async def test_the_secret_may_be_a_credential_of_the_unit(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    config = built(tmp_path, listen="127.0.0.1:9465")
    (warning,) = config.warnings
    assert "LoadCredential=agent-secret:PATH" in warning.text
    with pytest.raises(StartError, match="agent-secret: cannot be read"):
        await Daemon(config).start()
    await asyncio.to_thread(secret.rename, tmp_path / "agent-secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = built(tmp_path, listen="127.0.0.1:9465")
    assert config.warnings == ()
    assert config.pool.agents.secret() == SECRET.encode()


def test_nodes_are_told_where_to_report(tmp_path: Path, secret: Path) -> None:
    given = {"listen": "10.0.0.5:9465", "secret_file": str(secret)}
    assert built(tmp_path, **given).pool.agents.node_url == "http://10.0.0.5:9465"
    tls = {"tls_cert_file": str(secret), "tls_key_file": str(secret)}
    assert built(tmp_path, **given, **tls).pool.agents.node_url == "https://10.0.0.5:9465"
    named = built(tmp_path, **given, **tls, url="https://control:1/").pool.agents
    assert (named.node_url, named.trusted_file) == ("https://control:1", secret)
