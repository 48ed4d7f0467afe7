"""The file of clients' keys, as a configuration is checked: what keeps clients out, or lets too many in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.config.tables.file import Role
from orchestrator.wiring.gateway import gateway_config

SHA = "ab" * 32
KEY = f'[key.team-a]\nsha256 = "{SHA}"\n'
TEXT = """[gateway]
keys_file = "keys.toml"
[pool.chat]
replicas = 2
model = "m/chat"
[[route]]
models = ["assistant"]
to = [{ pool = "chat" }]
"""


@pytest.fixture
def file(short_dir: Path) -> Path:
    path = short_dir / "keys.toml"
    path.write_text(KEY)
    path.chmod(0o600)
    return path


def load(directory: Path, role: Role = "any", text: str = TEXT) -> Config:
    config = directory / "pool.toml"
    config.write_text(text)
    return load_config(config, role)


def warned(directory: Path, role: Role = "any", text: str = TEXT) -> list[str]:
    found = load(directory, role, text).warnings
    return [str(each).replace(f"{directory}/", "") for each in found]


def test_a_file_of_keys_is_handed_to_the_gateway(short_dir: Path, file: Path) -> None:
    config = load(short_dir)
    assert config.warnings == ()
    assert gateway_config(config).keys_file == file
    assert gateway_config(load(short_dir, text=TEXT.replace("keys_file", "# "))).keys_file is None


@pytest.mark.parametrize("role", ["gateway", "any"])
def test_a_missing_file_stops_no_gateway(short_dir: Path, role: Role) -> None:
    (found,) = warned(short_dir, role)
    assert found.startswith("pool.toml:2: gateway.keys_file: there is no file keys.toml;")
    assert "until then every request is refused" in found
    assert warned(short_dir, "daemon") == warned(short_dir, "client") == []


def test_a_broken_file_is_an_error_where_all_is_checked_and_stops_no_gateway(
    short_dir: Path, file: Path
) -> None:
    file.write_text(KEY + "revokd = true\n")
    (found,) = warned(short_dir, "gateway")
    assert "keys.toml key team-a: no field is called 'revokd'; until it is put right" in found
    with pytest.raises(ConfigError, match="no field is called 'revokd'"):
        load(short_dir)
    assert load(short_dir, "daemon").gateway.keys_file == file


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o600, ""),
        (0o640, ""),
        (0o400, ""),
        (0o644, "can be read by every user"),
        (0o660, "can be changed by other users"),
        (0o602, "can be changed by other users"),
    ],
)
def test_who_else_may_read_or_change_it(short_dir: Path, file: Path, mode: int, said: str) -> None:
    file.chmod(mode)
    found = warned(short_dir)
    assert (len(found), all(said in each for each in found)) == (1 if said else 0, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key that is in force: every request is refused"),
        (KEY + "revoked = true\n", "has no key that is in force"),
        (KEY + "expires = 2099-01-01\n", ""),
        (KEY + 'models = ["assistant", "m/*"]\n', ""),
        (KEY + 'models = ["assistant", "Assistant"]\n', 'key team-a may ask for "Assistant", which nothing'),
        (KEY + 'models = ["assistant", "Assistant"]\nrevoked = true\n', "has no key that is in force"),
    ],
)
def test_keys_that_are_of_no_use(short_dir: Path, file: Path, text: str, said: str) -> None:
    file.write_text(text)
    found = warned(short_dir)
    assert (len(found), all(said in each for each in found)) == (1 if said else 0, True)


def test_expired_keys_are_named(short_dir: Path, file: Path) -> None:
    rows = "".join(f'[key.k{n}]\nsha256 = "{n:064}"\nexpires = 2020-01-01\n' for n in range(7))
    file.write_text(KEY + rows)
    (found,) = warned(short_dir)
    assert "keys that have expired: k0, k1, k2, k3, k4 and 2 more" in found


def test_engines_that_ask_for_a_key_get_the_gateway_s(short_dir: Path, file: Path) -> None:
    """Without keys of its own the gateway passes on what clients show; with them that ends here."""
    (short_dir / "engine-key").write_text("k")
    (short_dir / "engine-key").chmod(0o600)
    text = TEXT.replace("[[route]]", '[pool.chat.engine]\napi_key_file = "engine-key"\n[[route]]')
    with pytest.raises(ConfigError, match=r"pool\.chat\.engine\.api_key_file: the engine asks for a key"):
        load(short_dir, text=text)
    assert load(short_dir, text=text.replace("keys_file", "# ")).warnings == ()
    named = text.replace("[[route]]", '[pool.chat.gateway]\napi_key_file = "engine-key"\n[[route]]')
    assert load(short_dir, text=named).warnings == ()


def test_one_path_is_not_two_files(short_dir: Path, file: Path) -> None:
    text = TEXT.replace("[pool.chat]", 'spend_file = "keys.toml"\n[pool.chat]')
    with pytest.raises(ConfigError, match=r"is the path of gateway\.spend_file too"):
        load(short_dir, text=text)


def test_a_pipe_in_the_files_place_is_named_and_waits_for_nobody(short_dir: Path) -> None:
    os.mkfifo(short_dir / "keys.toml")
    for role in ("any", "gateway"):
        (found,) = warned(short_dir, role)
        assert found.startswith("pool.toml:2: gateway.keys_file: there is no file keys.toml;")
