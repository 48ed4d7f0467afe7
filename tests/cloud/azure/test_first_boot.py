"""What a machine of Azure is given for its first boot, and what runs from it there."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cloud import node_azure
from cloud.cloud_init.user_data import AZURE_LIMIT, NodeSetup, unpacked, user_data, written
from cloud.node_azure import AzureMetadata
from cloud.node_metadata import Metadata, Refused, metadata_of
from cloud.ports import EngineCommand

KEY = "ab" * 32
AGENT = "/etc/systemd/system/orchestrator-agent.service"


def setup(**changed: Any) -> NodeSetup:
    values: dict[str, Any] = {
        "cloud": "azure",
        "pool": "chat",
        "command": EngineCommand(argv=("/opt/vllm", "serve", "--host", "{host}")),
        "port": 8000,
        "local_disk": False,
        "report_url": "https://control:9465",
        "key": KEY,
    }
    return NodeSetup(**{**values, **changed})


def test_the_agent_is_there_with_the_nodes_own_key_which_only_root_reads() -> None:
    files = {file["path"]: file for file in yaml.safe_load(unpacked(user_data(setup())))["write_files"]}
    key = files["/opt/orchestrator/agent.key"]
    assert (key["content"].strip(), key["permissions"]) == (KEY, "0600")
    assert {file["permissions"] for path, file in files.items() if path != "/opt/orchestrator/agent.key"} == {
        "0644"
    }
    unit = files[AGENT]["content"]
    assert "LoadCredential=key:/opt/orchestrator/agent.key\n" in unit
    assert "--cloud azure --key-file ${CREDENTIALS_DIRECTORY}/key" in unit
    assert "node_start key" not in unit
    compile(files["/opt/orchestrator/agent.py"]["content"], "agent.py", "exec")
    assert len(user_data(setup())) < AZURE_LIMIT


def test_the_engine_asks_azures_metadata() -> None:
    units = {path: text for path, text in written(setup()).items() if path.endswith(".service")}
    asking = [path for path, text in units.items() if "Environment=ORCHESTRATOR_CLOUD=azure\n" in text]
    assert sorted(path.rpartition("/")[2] for path in asking) == [
        "orchestrator-console.service",
        "orchestrator-engine.service",
    ]
    assert "/opt/orchestrator/cloud/node_azure.py" in written(setup())


def test_nodes_of_ec2_get_nothing_of_it() -> None:
    files = written(setup(cloud="aws", key=""))
    assert not any(
        "azure" in path or "ORCHESTRATOR_CLOUD" in text
        for path, text in files.items()
        if path.endswith((".service", "node_azure.py"))
    )
    assert "/opt/orchestrator/agent.key" not in files
    assert "node_start key" in files[AGENT]


def test_which_metadata_is_asked_is_in_the_units_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(metadata_of("http://x"), Metadata)
    monkeypatch.setenv("ORCHESTRATOR_CLOUD", "azure")
    assert isinstance(metadata_of("http://x"), AzureMetadata)


TOLD = (
    b'{"compute": {"name": "so-1", "vmSize": "Standard_X"}, "network": {"interface": [{"ipv4": '
    b'{"ipAddress": [{"privateIpAddress": "10.20.4.5", "publicIpAddress": ""}]}}]}}'
)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("meta-data/local-ipv4", "10.20.4.5"),
        ("meta-data/instance-type", "Standard_X"),
        ("meta-data/instance-id", "so-1"),
        ("meta-data/iam/security-credentials/", None),
    ],
)
def test_metadata_under_ec2s_names(monkeypatch: pytest.MonkeyPatch, path: str, found: str | None) -> None:
    asked = []

    def fetch(url: str, headers: dict[str, str], timeout: float) -> tuple[int, bytes]:
        asked.append((url, headers))
        return 200, TOLD

    monkeypatch.setattr(node_azure, "fetch", fetch)
    assert AzureMetadata("http://169.254.169.254/").get(path) == found
    assert asked == [
        ("http://169.254.169.254/metadata/instance?api-version=2021-02-01", {"Metadata": "true"})
    ]


@pytest.mark.parametrize("answer", [(500, TOLD), (200, b"<html>"), (200, b'{"compute": []}'), (200, b"{}")])
def test_metadata_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes]) -> None:
    monkeypatch.setattr(node_azure, "fetch", lambda *_args, **_options: answer)
    with pytest.raises(Refused):
        AzureMetadata("http://x").get("meta-data/local-ipv4")
