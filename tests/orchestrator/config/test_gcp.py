"""The tables of a pool on Google Cloud: what is refused, what is doubtful, and what becomes of the rest."""

from __future__ import annotations

import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from cloud.gcp.instances import GcpInstances
from orchestrator.config.errors import ConfigError
from orchestrator.config.load import Config, build_config, load_config
from orchestrator.wiring.gcp import ledger_of, machines_of, places_of
from orchestrator.wiring.ports import connect

GCP: dict[str, Any] = {
    "project": "ml-serving",
    "instance_types": ["g2-standard-12"],
    "image": "projects/ml-serving/global/images/family/vllm-node",
    "service_account": "node@ml-serving.iam.gserviceaccount.com",
    "regions": {
        "us-central1": {
            "zones": ["us-central1-a", "us-central1-b"],
            "subnetwork": "nodes",
            "on_demand_prices": {"g2-standard-12": 1.0},
        },
        "europe-west4": {"zones": ["europe-west4-a"], "on_demand_prices": {"g2-standard-12": 1.2}},
    },
}
PATH = "pool.llama.cloud.gcp"


def built(gcp: dict[str, Any] | None = None, **pool: Any) -> Config:
    table = {
        "replicas": 4,
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "engine": {"kind": "vllm"},
        "limits": {"spend_per_hour": 99},
        "cloud": {"kind": "gcp", "gcp": deepcopy(GCP) | (gcp or {})},
    }
    return build_config({"pool": {"llama": table | pool}})


def region(**changes: Any) -> dict[str, Any]:
    return {"regions": {"us-central1": {"zones": ["us-central1-a"], **changes}}}


@pytest.mark.parametrize(
    ("gcp", "key", "words"),
    [
        ({"project": ""}, "project", "is missing; write one such as ml-serving"),
        ({"project": "No Project"}, "project", "is no project's id"),
        ({"instance_types": []}, "instance_types", "is missing"),
        ({"image": ""}, "image", "is missing; write the path of an image"),
        ({"image": "debian"}, "image", "write its whole path"),
        (
            {"instance_template": "projects/p/global/instanceTemplates/t"},
            "instance_template",
            "one of the two",
        ),
        ({"service_account": "node"}, "service_account", "its whole e-mail"),
        ({"poll_operations": 0}, "poll_operations", "is 0"),
        ({"labels": {"Team": "ml"}}, "labels.Team", "small letters"),
        ({"labels": {"team": "M L"}}, "labels.team", "small letters"),
        ({"labels": {"orchestrator-pool": "x"}}, "labels.orchestrator-pool", "a label of the orchestrator"),
        ({"credentials_file": "/no/such/file"}, "credentials_file", "/no/such/file"),
        ({"regions": {}}, "regions", "write a table [pool.llama.cloud.gcp.regions.us-central1]"),
        ({"regions": {"us": {"zones": ["us-a"]}}}, "regions.us", "not the name of a region"),
        (region(zones=[]), "regions.us-central1.zones", 'write zones = ["us-central1-a"]'),
        (region(zones=["us-east1-b"]), "regions.us-central1.zones", "is not a zone of us-central1"),
        (
            region(spot_prices={"n1-standard-4": 0.1}),
            "regions.us-central1.spot_prices.n1-standard-4",
            "is not one of cloud.gcp.instance_types",
        ),
    ],
)
def test_what_is_wrong_is_refused(gcp: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        built(gcp)
    told = {problem.key: problem.text for problem in refused.value.problems}
    assert f"{PATH}.{key}" in told, told
    assert any(word in told[f"{PATH}.{key}"] for word in words.split("|")), told


def test_units_of_types_that_the_pool_has_not_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"is not one of cloud\.gcp\.instance_types"):
        built(units={"g2-standard-96": 8})
    with pytest.raises(ConfigError, match=r"is none of cloud\.gcp\.instance_types"):
        built(engine={"kind": "vllm", "on": {"g2-standard-96": {"args": []}}})


def test_machines_that_cost_money_need_a_cap_and_no_simulated_engine() -> None:
    with pytest.raises(ConfigError, match="a pool on Google Cloud does not start without a cap"):
        built(limits={})
    with pytest.raises(ConfigError, match="machines of Compute Engine are paid for"):
        built(engine={"kind": "simulated"})
    with pytest.raises(ConfigError, match="raise the cap"):
        built(limits={"spend_per_hour": 1})


def test_a_pool_without_agents_hears_of_preemptions_late() -> None:
    (warning,) = [w for w in built().warnings if w.key.endswith("agents.listen")]
    assert "gives the notice of a preemption to the machine alone" in warning.text


def test_agents_need_a_service_account(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x" * 32)
    agents = {"listen": "127.0.0.1:0", "secret_file": str(tmp_path / "secret")}
    told = built({"service_account": ""}, agents=agents).warnings
    assert any(w.key.endswith("service_account") and "cannot prove who they are" in w.text for w in told)
    assert not any(w.key.endswith("service_account") for w in built(agents=agents).warnings)


def test_what_becomes_of_the_tables() -> None:
    config = built({"disk_gib": 200, "network_tags": ["llm"]})
    places = places_of(config.pool.cloud.gcp)
    assert [place.region for place in places] == ["us-central1", "europe-west4"]
    made = machines_of(config)
    assert (made.disk_gib, made.network_tags, made.image) == (200, ("llm",), GCP["image"])
    assert made.setup is not None
    assert machines_of(built({"start_engine": False})).setup is None
    assert ledger_of(config).name == "llama.ledger"
    assert config.pool.cloud.zones() == 3
    assert config.pool.cloud.sources() == {"gcp-operations": 25.0}


async def test_the_ports_of_a_pool() -> None:
    ports = connect(built(), SystemClock())
    assert isinstance(ports.instances, GcpInstances)
    assert ports.instances.regions == ("us-central1", "europe-west4")
    assert [source.name for source in ports.notices] == ["gcp-operations"]
    assert [balancer.name for balancer in ports.balancers] == ["gateway"]
    await ports.close()


def test_the_example_is_valid_and_has_agents_once_they_are_wanted() -> None:
    file = Path(__file__).parents[3] / "examples" / "gcp-8b-l4.toml"
    assert load_config(file).pool.cloud.gcp.project == "ml-serving"
    wanted = file.read_text(encoding="utf-8").replace("# [pool.chat.agents]", "[pool.chat.agents]")
    assert "listen" in tomllib.loads(wanted.replace("# listen", "listen"))["pool"]["chat"]["agents"]
