"""The tables of a pool through SkyPilot: what they mean, and what is refused with the reason."""

from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from cloud.skypilot.instances import SkyInstances
from orchestrator.config.load import Config, ConfigError, build_config
from orchestrator.wiring.ports import connect
from orchestrator.wiring.skypilot import regions_of
from policies.model import Market

AWS = {"zones": ["us-east-1a"], "network": "sg-0123456789abcdef0", "image": "ami-0123456789abcdef0"}


def built(
    tmp_path: Path, *, pool: Any = None, daemon: Any = None, regions: Any = None, **table: Any
) -> Config:
    python = tmp_path / "python"
    python.touch()
    own = {
        "python": str(python),
        "cloud": "aws",
        "instance_types": ["g6.xlarge"],
        "regions": {"us-east-1": AWS} if regions is None else regions,
        **table,
    }
    settings = {
        "replicas": 2,
        "engine": {"allow_simulated": True},
        "limits": {"spend_per_hour": "unlimited"},
        "patience": {"stale_after": "5m"},
        "cloud": {"kind": "skypilot", "skypilot": own},
        **(pool or {}),
    }
    slow = {"state_dir": str(tmp_path), "poll_instances": "30s", "call_timeout": "60s", **(daemon or {})}
    return build_config({"daemon": slow, "pool": {"llama": settings}}, base=tmp_path)


def faults(tmp_path: Path, **settings: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        built(tmp_path, **settings)
    return {p.key.removeprefix("pool.llama.cloud.skypilot."): p.text for p in raised.value.problems}


def test_a_complete_pool_is_wired_and_starts_nothing(tmp_path: Path) -> None:
    config = built(tmp_path)
    ports = connect(config, SystemClock())
    assert isinstance(ports.instances, SkyInstances)
    assert (ports.instances.regions, ports.notices) == (("us-east-1",), ())
    markets = [o.placement.market for part in ports.offerings.parts().values() for o in part]
    assert markets == [Market.ON_DEMAND, Market.SPOT] or markets == [Market.SPOT, Market.ON_DEMAND]
    assert not (tmp_path / "skypilot").exists()


def test_the_only_warning_is_of_notices(tmp_path: Path) -> None:
    (warning,) = built(tmp_path).warnings
    assert "takes spot machines without a notice" in warning.text


def test_on_aws_the_engine_starts_by_user_data_and_elsewhere_over_ssh(tmp_path: Path) -> None:
    (aws,) = regions_of(built(tmp_path), SystemClock())
    assert (aws.user_data[:2], aws.script) == (b"\x1f\x8b", "")
    there = built(
        tmp_path,
        pool={"accept_unproven": True},
        cloud="nebius",
        regions={"eu-north1": {"network": "group", "image": "img"}},
    )
    (nebius,) = regions_of(there, SystemClock())
    assert (nebius.user_data, nebius.zones) == (b"", ("eu-north1",))
    assert "orchestrator-engine.service" in nebius.script


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"cloud": ""}, "cloud", "is missing; write one of aws, gcp"),
        (
            {"cloud": "azure"},
            "cloud",
            'gives every node there a role and opens port 22 to the world; use kind = "azure"',
        ),
        ({"cloud": "aws2"}, "cloud", "write one of aws"),
        ({"cloud": "gcp"}, "cloud", "accept_unproven = true"),
        ({"instance_types": []}, "instance_types", "is missing"),
        ({"regions": {}}, "regions", "is missing"),
        ({"user_id": "UPPER"}, "user_id", "write 4 to 16"),
        ({"private": False, "public_ip": False}, "private", "no other address"),
        (
            {"regions": {"us-east-1": {**AWS, "network": ""}}},
            "regions.us-east-1.network",
            "open ports to the world",
        ),
        (
            {"regions": {"us-east-1": {**AWS, "network": "nodes"}}},
            "regions.us-east-1.network",
            "security group (sg-",
        ),
        ({"regions": {"us-east-1": {**AWS, "image": "ubuntu"}}}, "regions.us-east-1.image", "image (ami-"),
        ({"regions": {"us-east-1": {**AWS, "zones": []}}}, "regions.us-east-1.zones", "is missing"),
        (
            {"regions": {"us-east-1": {**AWS, "zones": ["eu-west-1a"]}}},
            "regions.us-east-1.zones",
            "not a zone of",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, settings: Any, key: str, words: str) -> None:
    found = faults(tmp_path, **settings)
    assert words in found[key]


UNPROVEN = {"accept_unproven": True}


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"cloud": "runpod", "tags": {"team": "ml"}}, "tags", "for aws only"),
        ({"cloud": "verda", "regions": {"FIN-01": {"zones": ["a"]}}}, "regions.FIN-01.zones", "has no zones"),
        (
            {
                "cloud": "gcp",
                "regions": {n: {"zones": [f"{n}-a"], "network": n} for n in ("us-east1", "us-west1")},
            },
            "regions",
            "one network for all regions of gcp",
        ),
    ],
)
def test_what_other_clouds_cannot_is_refused(tmp_path: Path, settings: Any, key: str, words: str) -> None:
    assert words in faults(tmp_path, pool=UNPROVEN, **settings)[key]


def test_lists_at_a_pace_that_calls_for_every_machine_allow(tmp_path: Path) -> None:
    often = faults(tmp_path, daemon={"poll_instances": "5s"})
    assert "asked for every machine by itself" in often["daemon.poll_instances"]
    short = faults(tmp_path, daemon={"call_timeout": "10s"})
    assert "too short for SkyPilot" in short["daemon.call_timeout"]


def test_a_stopped_standby_needs_a_cloud_that_stops(tmp_path: Path) -> None:
    standby = {"standby": {"stopped": 1}}
    assert built(tmp_path, pool=standby).pool.standby.stopped == 1
    regions = {"US": {"zones": ["US-KS-2"], "image": "i"}}
    found = faults(tmp_path, pool={**standby, **UNPROVEN}, cloud="runpod", regions=regions)
    assert "cannot stop a machine" in found["pool.llama.standby.stopped"]


def test_pools_with_one_helper_say_the_same_of_it(tmp_path: Path) -> None:
    one = built(tmp_path).pools["llama"]
    other = one.cloud.skypilot.model_copy(update={"public_ip": False})
    from orchestrator.config.checks.skypilot import sky_among

    pools = {
        "a": one,
        "b": one.model_copy(update={"cloud": one.cloud.model_copy(update={"skypilot": other})}),
    }
    found = {key[-1]: text for key, text in sky_among(type("File", (), {"pool": pools})())}
    assert set(found) == {"public_ip", "user_id"}
    assert "differs from pool a" in found["public_ip"]


def test_names_of_machines_say_whose_they_are(tmp_path: Path) -> None:
    table = built(tmp_path).pool.cloud.skypilot
    assert table.user_of("a") == table.user_of("a") != table.user_of("b")
    assert len(table.user_of("a")) == 8
    assert table.model_copy(update={"user_id": "mine"}).user_of("a") == "mine"
