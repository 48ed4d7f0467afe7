"""The configuration file: what is written comes back, what is wrong is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.local.config import (
    InstanceType,
    LocalCloudConfig,
    Reclaiming,
    SetupError,
    SyntheticSource,
    TraceSource,
    build_market,
    check,
    dump_config,
    load_config,
)
from cloud.local.spotset import SpotSet, SpotZone, write_spotset
from cloud.local.synthetic import SyntheticParameters


def test_an_empty_configuration_is_nearly_enough(tmp_path):
    (tmp_path / "cloud.json").write_text('{"state_dir": "state"}')
    config = load_config(tmp_path / "cloud.json")
    assert config == LocalCloudConfig(state_dir=tmp_path / "state")
    assert config.socket_path == tmp_path / "state" / "cloud.sock"
    assert len(build_market(config).zones) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"market": SyntheticSource(parameters=SyntheticParameters(regions=1), seed=4, start="liveliest")},
        {"market": TraceSource(directory=Path("/traces/x"), zones=("a",), start=5.0)},
        {"instance_types": (InstanceType(name="big", price_factor=8.0, capacity_factor=0.5),)},
        {"reclaiming": Reclaiming(notice=30.0, late_share=0.5), "socket": Path("/run/x.sock"), "speed": 60.0},
    ],
)
def test_what_is_written_comes_back(tmp_path, changes):
    config = replace(LocalCloudConfig(state_dir=tmp_path), **changes)
    dump_config(config, tmp_path / "cloud.json")
    assert load_config(tmp_path / "cloud.json") == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Invalid JSON"),
        ("{}", "state_dir: Field required"),
        ('{"state_dir": "s", "sped": 3}', "sped: Unexpected keyword argument"),
        ('{"state_dir": "s", "speed": 0}', "speed: Input should be greater than 0"),
        ('{"state_dir": "s", "boot_jitter": 2}', "boot_jitter: Input should be less than or equal to 1"),
        ('{"state_dir": "s", "engine_port": 0}', "engine_port"),
        ('{"state_dir": "s", "market": {"source": "wish"}}', "market: .*'constant', 'trace', 'synthetic'"),
        ('{"state_dir": "s", "market": {"source": "trace"}}', r"market\.trace\.directory: Field required"),
        (
            '{"state_dir": "s", "market": {"source": "constant", "zones": [{"zone": "a", "capacity": -1}]}}',
            r"market\.constant\.zones\.0\.capacity",
        ),
        ('{"state_dir": "s", "engine_port": 9, "metadata_port": 9}', "metadata_port: 9 is also engine_port"),
        ('{"state_dir": "s", "instance_types": []}', "instance_types: at least one"),
        ('{"state_dir": "s", "reclaiming": {"late_share": 0.6, "missing_share": 0.6}}', "at most 1"),
        ('{"state_dir": "s", "reclaiming": {"notice": 10}}', "late_notice is longer than notice"),
        (json.dumps({"state_dir": "s" * 120}), "longer than 107 bytes"),
        (
            '{"state_dir": "s", "market": {"source": "synthetic", "parameters": '
            '{"storm_share": 0.9, "storm_factor": 9}}}',
            "below 1",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    (tmp_path / "cloud.json").write_text(text)
    with pytest.raises(SetupError, match=words):
        load_config(tmp_path / "cloud.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SetupError, match="cannot be read: No such file"):
        load_config(tmp_path / "cloud.json")


def test_relative_paths_start_at_the_file(tmp_path):
    text = '{"state_dir": "s", "socket": "c.sock", "market": {"source": "trace", "directory": "t"}}'
    (tmp_path / "cloud.json").write_text(text)
    config = load_config(tmp_path / "cloud.json")
    assert config.socket_path == tmp_path / "c.sock"
    assert isinstance(config.market, TraceSource)
    assert config.market.directory == tmp_path / "t"


def recorded(directory: Path) -> Path:
    zones = tuple(
        SpotZone(zone=name, region="r", spot_price=1.0, on_demand_price=4.0, data=(4,) * 50 + (0, 4) * 25)
        for name in ("a", "b")
    )
    write_spotset(SpotSet(name="s", gap_seconds=600.0, ticks=100, zones=zones), directory)
    return directory


def test_a_market_from_a_recording(tmp_path):
    source = TraceSource(directory=recorded(tmp_path / "set"), zones=("b",))
    market = build_market(LocalCloudConfig(state_dir=tmp_path, market=source))
    assert [series.zone for series in market.zones] == ["b"]
    assert market.capacity("b", 0) == 4
    lively = replace(source, start="liveliest", span=6000.0)
    market = build_market(LocalCloudConfig(state_dir=tmp_path, market=lively))
    assert 0 in {market.capacity("b", at) for at in range(0, 6000, 600)}


def test_a_synthetic_market_follows_the_clouds_seed(tmp_path):
    source = SyntheticSource(parameters=SyntheticParameters(days=1.0))

    def counts(**changes):
        market = build_market(replace(LocalCloudConfig(state_dir=tmp_path, market=source), **changes))
        return [market.capacity("syn-1a", at) for at in range(0, 86400, 300)]

    assert counts(seed=1) == counts(seed=1)
    assert counts(seed=1) != counts(seed=2)
    assert counts(seed=2) == counts(seed=1, market=replace(source, seed=2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"directory": "nowhere"}, "no such directory"),
        ({"zones": ("x",)}, "no zone x; it has a, b"),
    ],
)
def test_a_recording_that_does_not_fit(tmp_path, changes, words):
    source = TraceSource(directory=recorded(tmp_path / "set"))
    if "directory" in changes:
        changes = {"directory": tmp_path / changes["directory"]}
    with pytest.raises(SetupError, match=words):
        build_market(LocalCloudConfig(state_dir=tmp_path, market=replace(source, **changes)))


def test_two_zones_of_one_name(tmp_path):
    config = LocalCloudConfig(state_dir=tmp_path)
    doubled = replace(config.market, zones=config.market.zones * 2)
    with pytest.raises(SetupError, match="each name once"):
        build_market(replace(config, market=doubled))


def test_a_good_configuration_passes(tmp_path):
    check(LocalCloudConfig(state_dir=Path("/tmp/x")))
