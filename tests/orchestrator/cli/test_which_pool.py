"""Commands that need one pool of a file: the only one, the only one that fits, or the one that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.__main__ import main
from orchestrator.cli.local_cloud import _of_cloud
from orchestrator.cli.shared import CommandError, one_pool
from orchestrator.config.load import build_config

POOL = {"replicas": 2}


def test_the_only_one_needs_no_name(tmp_path: Path) -> None:
    config = build_config({"pool": {"chat": POOL}}, base=tmp_path)
    assert one_pool(config, None).pool_name == one_pool(config, "chat").pool_name == "chat"


def test_one_of_several_has_to_be_named(tmp_path: Path) -> None:
    pools = {"chat": {**POOL, "model": "a"}, "embed": {**POOL, "model": "b"}}
    config = build_config({"pool": pools}, base=tmp_path)
    with pytest.raises(CommandError, match="say which: --pool chat or embed"):
        one_pool(config, None)
    with pytest.raises(CommandError, match=r"no pool 'chta' \(did you mean 'chat'\?\)"):
        one_pool(config, "chta")
    only = one_pool(config, "embed")
    assert list(only.pools) == ["embed"]
    assert one_pool(config, None, ["chat"]).pool_name == "chat"


def test_a_file_without_pools_has_none(tmp_path: Path) -> None:
    config = build_config(
        {"provider": {"a": {"kind": "openai", "url": "http://127.0.0.1:9"}},
         "route": [{"models": ["x"], "to": [{"provider": "a", "model": "m"}]}]},
        base=tmp_path,
    )  # fmt: skip
    with pytest.raises(CommandError, match="no pool in the file"):
        one_pool(config, None)


def test_pools_of_one_local_cloud_need_no_name(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    text = '[pool.a]\nreplicas = 2\nmodel = "a"\n[pool.b]\nreplicas = 2\nmodel = "b"\n'
    file.write_text(text)
    assert _of_cloud(file, None).pool.cloud.socket == tmp_path / "state/cloud/cloud.sock"
    file.write_text(text + '[pool.b.cloud]\nstate_dir = "other"\nsocket = "other.sock"\n')
    with pytest.raises(CommandError, match="--pool a or b"):
        _of_cloud(file, None)
    assert _of_cloud(file, "b").pool.cloud.socket == tmp_path / "other.sock"


@pytest.mark.parametrize("command", [["simulate", "-c"], ["doctor", "--try-node", "spot", "-c"]])
def test_commands_ask_which(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.toml"
    file.write_text('[pool.a]\nreplicas = 2\nmodel = "a"\n[pool.b]\nreplicas = 2\nmodel = "b"\n')
    assert main([*command, str(file)]) == 2
    assert "say which: --pool a or b" in capsys.readouterr().err
