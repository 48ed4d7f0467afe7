"""What a configuration for Azure may say."""

from __future__ import annotations

import copy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.errors import ConfigError
from orchestrator.config.load import build_config

EXAMPLE = Path(__file__).parents[3] / "examples" / "azure-8b-a10.toml"
HERE = ("cloud", "azure")
REGION = (*HERE, "regions", "eastus")


def tables() -> dict[str, Any]:
    found = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    found["daemon"].pop("state_dir")
    return found


def problems(pool: dict[str, Any], daemon: dict[str, Any] | None = None) -> dict[str, str]:
    try:
        build_config({"daemon": daemon or {"poll_instances": "10s"}, "pool": {"chat": pool}})
    except ConfigError as error:
        return {problem.key.removeprefix("pool.chat."): problem.text for problem in error.problems}
    return {}


def written(path: tuple[str, ...]) -> str:
    """A key as messages name it."""
    return ".".join(key if key.replace("_", "").isalnum() else f'"{key}"' for key in path)


def changed(path: tuple[str, ...], value: object) -> dict[str, Any]:
    pool = copy.deepcopy(tables()["pool"]["chat"])
    at = pool
    for key in path[:-1]:
        at = at.setdefault(key, {})
    at[path[-1]] = value
    return pool


def test_the_example_is_valid() -> None:
    assert problems(tables()["pool"]["chat"]) == {}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((*HERE, "subscription"), "mine", "no id of a subscription"),
        ((*HERE, "instance_types"), [], "is missing"),
        ((*HERE, "image"), "a:b:c:latest", "pin a number"),
        ((*HERE, "image"), "ubuntu", "publisher:offer:sku:version"),
        ((*HERE, "image"), "/subscriptions/x", "id of an image"),
        ((*HERE, "ssh_public_key"), "-----BEGIN OPENSSH PRIVATE KEY-----", "no public key"),
        ((*HERE, "admin_user"), "root", "no name that Azure takes"),
        ((*HERE, "weights"), "s3://bucket", "not an absolute path"),
        ((*HERE, "endpoint"), "http://10.0.0.1", "not encrypted"),
        ((*HERE, "prices_endpoint"), "prices.azure.com", "is no URL"),
        ((*HERE, "tags", "a/b"), "c", "Azure refuses"),
        ((*HERE, "tags", "orchestrator:pool"), "c", "pool's own tags"),
        ((*HERE, "regions"), {}, "is missing"),
        ((*REGION, "zones"), ["4"], "is none of 1, 2, 3"),
        ((*REGION, "subnet"), "nodes", "no id of a subnet"),
        ((*REGION, "subnet"), "", "is missing"),
        ((*REGION, "resource_group"), "", "is missing"),
        (("units", "Standard_X"), 2, "not one of cloud.azure.instance_types"),
    ],
)
def test_what_azure_would_refuse_is_found_by_its_key(
    path: tuple[str, ...], value: object, words: str
) -> None:
    found = problems(changed(path, value))
    assert [(key, words in text) for key, text in found.items()] == [(written(path), True)]


def test_a_region_is_named_as_azure_names_it() -> None:
    pool = changed(
        (*HERE, "regions", "East US"), tables()["pool"]["chat"]["cloud"]["azure"]["regions"]["eastus"]
    )
    assert [("East US" in key, "no name of a region" in text) for key, text in problems(pool).items()] == [
        (True, True)
    ]


def test_an_adaptive_mix_may_count_on_ten_seconds_and_no_more() -> None:
    pool = {**tables()["pool"]["chat"], "mix": "adaptive", "starts": {"notice": "30s"}}
    assert "Azure gives 10s" in problems(pool)["starts.notice"]


def test_nodes_that_nobody_hears_are_warned_of() -> None:
    config = build_config({"daemon": {"poll_instances": "10s"}, "pool": {"chat": tables()["pool"]["chat"]}})
    said = {problem.key: problem.text for problem in config.warnings}
    assert "only the agents of nodes hear of evictions" in said["pool.chat.agents.listen"]


def test_a_daemon_without_azure_pools_loads_nothing_of_its_sdk() -> None:
    program = (
        "import sys, orchestrator.daemon, orchestrator.wiring.ports, orchestrator.doctor.clouds, "
        "cloud.azure.instances, cloud.azure.offerings; "
        "sys.exit(any(name.partition('.')[0] in ('azure', 'msal') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
