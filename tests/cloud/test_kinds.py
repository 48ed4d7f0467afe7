"""The tables of kinds of clouds have the same keys; what a provider cannot do is refused with the reason."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any, get_args

import pytest

from cloud import kinds
from cloud.balancers.proof import BALANCERS
from cloud.engines.dialect import DIALECTS
from cloud.kinds import KINDS, CloudName
from cloud.ports import ProviderTraits
from cloud.proof import Proof, Proved
from orchestrator.config.checks.clouds import CHECKS
from orchestrator.config.errors import ConfigError
from orchestrator.config.load import Config, build_config
from orchestrator.config.tables.cloud import CloudConfig
from orchestrator.config.tables.machines import MachinesTable
from orchestrator.doctor.clouds import LOOKS, groups_elsewhere
from orchestrator.doctor.field_kinds import FIELD
from orchestrator.wiring.clouds import WIRING


def test_every_kind_has_a_row_in_every_table() -> None:
    names = set(get_args(CloudName))
    for table in (KINDS, CHECKS, WIRING, LOOKS, FIELD):
        assert set(table) == names
    for name in names - {"local"}:
        assert isinstance(CloudConfig(kind=name).tables[0], MachinesTable)
        assert type(CloudConfig(kind=name).tables[0]) is not MachinesTable
        assert WIRING[name].prices is not None


def test_everything_says_how_it_is_proved() -> None:
    rows = (
        *(row.proved for row in KINDS.values()),
        *BALANCERS.values(),
        *(d.proved for d in DIALECTS.values()),
    )
    assert all(one.by for one in rows)
    assert {DIALECTS["vllm"].proved.proof, DIALECTS["tgi"].proved.proof} == {Proof.PROGRAM, Proof.SOURCE}


def test_groups_of_other_clouds_are_shown_as_skipped_where_they_were_asked_for() -> None:
    assert groups_elsewhere(["local"], []) == []
    assert groups_elsewhere(["local"], ["launch"]) == ["launch"]
    assert groups_elsewhere(["local"], ["host"]) == []
    assert groups_elsewhere(["aws"], ["aws", "launch"]) == []


POOL: dict[str, Any] = {
    "replicas": 4,
    "engine": {"kind": "simulated", "allow_simulated": True},
    "limits": {"spend_per_hour": 99},
    "cloud": {
        "kind": "aws",
        "aws": {
            "instance_types": ["g6.xlarge"],
            "regions": {
                "us-east-1": {
                    "subnets": {"us-east-1a": "subnet-1"},
                    "launch_template": "node",
                    "on_demand_prices": {"g6.xlarge": 0.8},
                }
            },
        },
    },
}


def built(
    monkeypatch: pytest.MonkeyPatch, pool: dict[str, Any], daemon: dict[str, Any], **row: Any
) -> Config:
    """The configuration, on a cloud that is like AWS but for this."""
    rows = {**KINDS, "aws": replace(KINDS["aws"], title="Somewhere", **row)}
    monkeypatch.setattr(kinds, "KINDS", MappingProxyType(rows))
    monkeypatch.setattr("orchestrator.config.tables.cloud.KINDS", MappingProxyType(rows))
    return build_config({"daemon": daemon, "pool": {"llama": {**POOL, **pool}}})


def traits(**changes: Any) -> dict[str, Any]:
    usual = ProviderTraits(stops=True, notice=120.0, lists_at_once=True)
    return {"traits": replace(usual, **changes)}


UNPROVEN = {"proved": Proved(proof=Proof.SOURCE, by="its documents")}


@pytest.mark.parametrize(
    ("pool", "daemon", "row", "key", "words"),
    [
        (
            {"standby": {"stopped": 1}},
            {},
            traits(stops=False),
            "pool.llama.standby.stopped",
            "Somewhere cannot stop a machine and start it again; write standby.hot",
        ),
        (
            {"mix": "adaptive", "starts": {"notice": "60s"}},
            {},
            traits(notice=30.0),
            "pool.llama.starts.notice",
            "is 1m, and Somewhere gives 30s",
        ),
        (
            {"mix": "adaptive", "starts": {"notice": "1s"}},
            {},
            traits(notice=0.0),
            "pool.llama.starts.notice",
            "is 1s, and Somewhere gives none",
        ),
        (
            {},
            {"call_timeout": "30s"},
            traits(lists_at_once=False),
            "daemon.poll_instances",
            "5s is too often for Somewhere",
        ),
        (
            {"patience": {"stale_after": "10m"}},
            {"poll_instances": "30s"},
            traits(lists_at_once=False),
            "daemon.call_timeout",
            "10s is too short for Somewhere",
        ),
        ({}, {}, UNPROVEN, "pool.llama.cloud.kind", "proved by *source only*"),
    ],
)
def test_what_it_cannot_do_is_refused(monkeypatch, pool, daemon, row, key, words) -> None:
    with pytest.raises(ConfigError) as refused:
        built(monkeypatch, pool, daemon, **row)
    assert [(problem.key, words in problem.text) for problem in refused.value.problems] == [(key, True)]


@pytest.mark.parametrize(
    ("pool", "daemon", "row"),
    [
        ({"standby": {"hot": 1}}, {}, traits(stops=False)),
        ({"mix": "adaptive"}, {}, traits(notice=30.0)),
        ({"mix": "adaptive", "starts": {"notice": "30s"}}, {}, traits(notice=30.0)),
        ({"starts": {"notice": "10m"}}, {}, traits(notice=30.0)),
        ({}, {"poll_instances": "30s", "call_timeout": "30s"}, traits(lists_at_once=False)),
        ({"accept_unproven": True}, {}, UNPROVEN),
    ],
)
def test_what_it_can_do_is_not(monkeypatch, pool, daemon, row) -> None:
    config = built(monkeypatch, {"patience": {"stale_after": "10m"}, **pool}, daemon, **row)
    assert config.pool.cloud.title == "Somewhere"


def test_the_adaptive_mix_counts_on_no_more_than_the_cloud_gives(monkeypatch) -> None:
    quick = {"mix": "adaptive", "starts": {"standby": "60s"}}
    there = built(monkeypatch, quick, {}, **traits()).wanted
    assert (there.adaptive.notice, there.standby.stopped) == (120.0, 4)
    short = built(monkeypatch, quick, {}, **traits(notice=30.0)).wanted
    assert (short.adaptive.notice, short.standby.stopped) == (30.0, 0)
    never = built(monkeypatch, quick, {}, **traits(stops=False)).wanted
    assert (never.adaptive.notice, never.standby.stopped) == (120.0, 0)


@pytest.mark.parametrize(
    ("notice", "words"),
    [
        (120.0, ""),
        (30.0, "but an interruption notice gives 30s (Somewhere)"),
        (0.0, "takes spot machines without a notice"),
    ],
)
def test_drains_that_no_notice_has_time_for_are_warned_of(monkeypatch, notice, words) -> None:
    config = built(monkeypatch, {}, {}, **traits(notice=notice))
    said = [problem.text for problem in config.warnings if problem.key == "pool.llama.drain.budget"]
    assert ([words in text for text in said] == [True]) if words else not said
