"""Several clouds in one pool: what is refused with the reason, and how each cloud sees the pool alone."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from cloud.agent_keys import Identify
from cloud.clock import SystemClock
from cloud.errors import CloudError, Denied, Misconfigured, Uncertain
from cloud.many import AbsentInstances, ManyInstances
from orchestrator.config.checks.costs import stated_offerings
from orchestrator.config.clouds import each_cloud
from orchestrator.config.errors import ConfigError
from orchestrator.config.load import Config, build_config, load_config
from orchestrator.config.tables.cloud import CloudConfig
from orchestrator.config.values import settings
from orchestrator.wiring import clouds, many_clouds
from orchestrator.wiring.clouds import WIRING
from orchestrator.wiring.many_clouds import any_of, by_hand_on_clouds
from orchestrator.wiring.ports import connect

AWS: dict[str, Any] = {
    "instance_types": ["g6.2xlarge"],
    "regions": {
        "us-east-1": {
            "subnets": {"us-east-1a": "subnet-1", "us-east-1b": "subnet-2"},
            "launch_template": "node",
            "on_demand_prices": {"g6.2xlarge": 0.98},
        }
    },
}
GCP: dict[str, Any] = {
    "project": "ml-serving",
    "instance_types": ["g2-standard-12"],
    "image": "projects/ml-serving/global/images/family/vllm-node",
    "service_account": "node@ml-serving.iam.gserviceaccount.com",
    "regions": {
        "us-central1": {"zones": ["us-central1-a"], "on_demand_prices": {"g2-standard-12": 1.0}},
    },
}
SKY: dict[str, Any] = {
    "cloud": "aws",
    "instance_types": ["g6.xlarge"],
    "regions": {
        "us-west-2": {
            "zones": ["us-west-2a"],
            "network": "sg-0123456789abcdef0",
            "image": "ami-0123456789abcdef0",
        }
    },
}
SLOW = {"poll_instances": "30s", "call_timeout": "60s"}


def built(
    kind: object = ("aws", "gcp"), daemon: dict[str, Any] | None = None, cloud: Any = None, **pool: Any
) -> Config:
    table = {
        "replicas": 4,
        "engine": {"kind": "simulated", "allow_simulated": True},
        "limits": {"spend_per_hour": 99},
        "patience": {"stale_after": "5m"},
        "cloud": {
            "kind": list(kind) if isinstance(kind, tuple) else kind,
            "aws": deepcopy(AWS),
            "gcp": deepcopy(GCP),
            "skypilot": deepcopy(SKY),
            **(cloud or {}),
        },
    }
    return build_config({"daemon": daemon or {}, "pool": {"llama": table | pool}})


def faults(*given: Any, **changes: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        built(*given, **changes)
    return {p.key.removeprefix("pool.llama."): p.text for p in raised.value.problems}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ((), "names no cloud"),
        (("aws", "aws"), "'aws' stands there twice"),
        (("aws", "awz"), "'awz' is not known (did you mean 'aws'?)"),
        ("awz", "'awz' is not known (did you mean 'aws'?); write 'local', 'aws'"),
        (("aws", 7), "7 is not known"),
        (("aws", "local"), "'local' cannot be one of several: its nodes are processes of this machine"),
    ],
)
def test_a_list_that_is_none_is_refused_with_the_reason(kind: object, words: str) -> None:
    found = faults(kind)
    assert list(found) == ["cloud.kind"]
    assert words.replace("'", '"') in found["cloud.kind"].replace("'", '"')


def test_one_cloud_is_one_cloud_however_it_is_written() -> None:
    assert built(("aws",)).pool.cloud.kind == built("aws").pool.cloud.kind == "aws"
    assert built("aws").pool.cloud.kinds == ("aws",)
    assert built(("gcp", "aws")).pool.cloud.kinds == ("gcp", "aws")
    assert CloudConfig(kind="local").kinds == ("local",)


def test_two_clouds_are_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        '[pool.a]\nreplicas = 1\n[pool.a.cloud]\nkind = ["aws", "local"]\n', encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"pool\.toml:4: pool\.a\.cloud\.kind: .*cannot be one of several"):
        load_config(tmp_path / "pool.toml")


def test_a_region_of_two_clouds_is_refused() -> None:
    twice = {"skypilot": {**deepcopy(SKY), "regions": {"us-east-1": SKY["regions"]["us-west-2"]}}}
    twice["skypilot"]["regions"]["us-east-1"] = {
        **SKY["regions"]["us-west-2"],
        "zones": ["us-east-1a"],
    }
    found = faults(("aws", "skypilot"), SLOW, twice)
    assert list(found) == ["cloud.skypilot.regions.us-east-1"]
    assert "is a region of cloud.aws too" in next(iter(found.values()))
    built(("aws", "skypilot"), SLOW)
    built("aws", SLOW, twice)  # a table that is not used may say what it likes


def test_a_target_group_takes_no_nodes_of_another_cloud() -> None:
    group = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/llm/0123456789abcdef"
    own = {"aws": {**deepcopy(AWS), "target_group": group}}
    assert "takes instances of EC2 alone" in faults(cloud=own)["cloud.aws.target_group"]


@pytest.mark.parametrize(
    ("kind", "daemon", "pool", "key", "words"),
    [
        (
            ("aws", "skypilot"),
            SLOW,
            {"mix": "adaptive", "starts": {"notice": "60s"}},
            "starts.notice",
            "SkyPilot gives none",
        ),
        (("aws", "skypilot"), {}, {}, "daemon.poll_instances", "too often for SkyPilot"),
    ],
)
def test_what_one_of_them_cannot_do_is_refused_by_its_name(
    kind: object, daemon: dict[str, Any], pool: dict[str, Any], key: str, words: str
) -> None:
    found = faults(kind, daemon, **pool)
    assert words in found[key], found
    built("aws", daemon, **pool)


def test_a_drain_that_one_of_them_cuts_short_is_warned_of_by_its_name() -> None:
    slow = {"drain": {"budget": "90s", "margin": "60s"}}
    said = [p.text for p in built(**slow).warnings if p.key == "pool.llama.drain.budget"]
    assert [name in text for name, text in zip(("(AWS)", "(Google Cloud)"), said, strict=True)] == [True] * 2


def test_faults_in_each_table_are_found_and_those_of_unused_tables_are_not() -> None:
    found = faults(cloud={"aws": {**deepcopy(AWS), "instance_types": []}, "gcp": {**GCP, "project": ""}})
    assert {"cloud.aws.instance_types", "cloud.gcp.project"} <= found.keys()
    assert not any(key.startswith(("cloud.skypilot", "cloud.azure")) for key in found)


def test_units_and_engines_may_be_of_types_of_any_of_them() -> None:
    units = {"units": {"g6.2xlarge": 1, "g2-standard-12": 2}}
    assert dict(built(**units).wanted.units) == units["units"]
    assert [dict(alone.units) for _, alone in each_cloud(built(**units).pool)] == [
        {"g6.2xlarge": 1},
        {"g2-standard-12": 2},
    ]
    assert list(faults(units={"nothing": 2})) == ["units.nothing"]
    on = {"kind": "vllm", "on": {"g2-standard-12": {"args": ["--max-model-len", "4096"]}}}
    built(engine=on, model="m/m")
    wrong = faults(engine={**on, "on": {"x": {"args": ["--max-model-len", "1"]}}}, model="m/m")
    assert "is none of cloud.aws.instance_types or cloud.gcp.instance_types" in wrong["engine.on.x"]


def test_what_is_said_of_the_whole_pool_is_of_all_clouds() -> None:
    cloud = built(("aws", "skypilot"), SLOW).pool.cloud
    assert (cloud.title, cloud.here) == ("AWS and SkyPilot", False)
    assert cloud.bills == "AWS and the cloud behind SkyPilot"
    assert (cloud.traits.notice, cloud.traits.lists_at_once, cloud.traits.stops) == (0.0, False, True)
    assert cloud.zones() == 3
    both = built().pool
    assert both.cloud.types() == ("g6.2xlarge", "g2-standard-12")
    assert set(both.cloud.prices()) == {"us-east-1", "us-central1"}
    assert {o.placement.provider: o.price for o in stated_offerings(both)} == {"aws": 0.98, "gcp": 1.0}
    assert {"aws-spot-requests", "gcp-operations"} <= both.cloud.sources().keys()


def test_a_price_that_one_of_them_lacks_leaves_none_known() -> None:
    own = {"gcp": {**deepcopy(GCP), "regions": {"us-central1": {"zones": ["us-central1-a"]}}}}
    assert stated_offerings(built(cloud=own).pool) == ()
    found = faults(cloud=own, limits={})
    assert "a pool on AWS and Google Cloud does not start without a cap" in found["limits.spend_per_hour"]


def test_each_cloud_sees_the_pool_on_it_alone() -> None:
    config = built()
    alone = config.on_cloud("gcp")
    assert (alone.pool.cloud.kind, alone.pool_name) == ("gcp", "llama")
    assert config.pool.cloud.kinds == ("aws", "gcp")
    one = built("gcp")
    assert one.on_cloud("gcp").pool is one.pool


async def test_the_ports_are_those_of_every_cloud(tmp_path: Path) -> None:
    ports = connect(built(daemon={"state_dir": str(tmp_path)}), SystemClock())
    try:
        assert isinstance(ports.instances, ManyInstances)
        assert ports.instances.regions == ("us-east-1", "us-central1")
        assert {part.split()[0] for part in ports.offerings.parts()} == {"aws", "gcp"}
        names = [source.name for source in ports.notices]
        assert {"aws-spot-requests", "gcp-operations"} <= set(names)
        assert len(names) == len(set(names))
    finally:
        await ports.close()


def broken(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    def connect_none(*_given: object) -> Any:
        raise ValueError("the SDK is not installed")

    rows: dict[str, clouds.CloudWiring] = {**WIRING}
    for kind in kinds:
        rows[kind] = clouds.CloudWiring(connect=connect_none, by_hand=WIRING[kind].by_hand)
    monkeypatch.setattr(many_clouds, "WIRING", rows)


async def test_a_cloud_whose_adapters_cannot_be_made_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "gcp")
    ports = connect(built(daemon={"state_dir": str(tmp_path)}), SystemClock())
    try:
        assert ports.instances.regions == ("us-east-1", "us-central1")
        with pytest.raises(
            Misconfigured, match="Google Cloud is not used: the SDK is not installed; once that is fixed"
        ):
            await ports.instances.list("llama", "us-central1")
        assert any(part.startswith("aws ") for part in ports.offerings.parts())
    finally:
        await ports.close()


def test_a_pool_none_of_whose_clouds_can_be_used_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, "aws", "gcp")
    with pytest.raises(ValueError, match="the SDK is not installed"):
        connect(built(daemon={"state_dir": str(tmp_path)}), SystemClock())
    assert AbsentInstances.__doc__


def judge(answer: str | CloudError) -> Identify:
    async def identify(_headers: object, _challenge: str) -> str:
        if isinstance(answer, CloudError):
            raise answer
        return answer

    return identify


@pytest.mark.parametrize(
    ("aws", "gcp", "found"),
    [
        ("i-1", Denied("no token"), "i-1"),
        (Denied("no signature"), "so-1", "so-1"),
        (Uncertain("STS is silent"), "so-1", "so-1"),
        (Denied("no signature"), Denied("no token"), "AWS: no signature; Google Cloud: no token"),
        (Denied("no signature"), Uncertain("no certificates"), "no certificates"),
        (Denied("no signature"), "i-1", "AWS: no signature; Google Cloud: i-1 is a machine of another cloud"),
        (Denied("no signature"), "i-2", "i-2"),  # not listed yet: nobody's so far
    ],
)
async def test_a_node_proves_to_its_own_cloud_who_it_is(aws: Any, gcp: Any, found: str) -> None:
    owners = {"i-1": "aws", "so-1": "gcp"}
    judged = any_of({"aws": judge(aws), "gcp": judge(gcp)}, lambda node: owners.get(node, ""))
    try:
        said = await judged({}, "challenge")
    except CloudError as error:
        said = str(error)
    assert said == found


def test_a_person_is_told_how_to_end_a_machine_of_its_own_cloud() -> None:
    by_hand = by_hand_on_clouds(built())
    assert by_hand("us-central1", "so-1", "") == "gcloud compute instances delete so-1"
    assert by_hand("us-east-1", "i-1", "").startswith("aws ec2 terminate-instances --region us-east-1")


def test_the_list_is_shown_as_it_is_written() -> None:
    def shown(kind: object) -> str:
        return next(s.text for s in settings(built(kind)) if s.path == ("pool", "llama", "cloud", "kind"))

    assert (shown(("aws", "gcp")), shown("aws")) == ('["aws", "gcp"]', '"aws"')
