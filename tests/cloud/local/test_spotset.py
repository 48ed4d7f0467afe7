"""Reading and writing `spotset/1`: what is written comes back, what is wrong is named."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud.local.spotset import SpotSet, SpotsetError, SpotZone, read_spotset, write_spotset

MANIFEST = {
    "format": "spotset/1",
    "name": "small",
    "gap_seconds": 600,
    "ticks": 3,
    "zones": [{"zone": "a", "region": "r", "file": "a.json", "spot_price": 1.0, "on_demand_price": 3.0}],
}
ZONE = {"data": [4, 0, 2], "prices": [1.0, 1.5, 2]}


def write(directory: Path, manifest=MANIFEST, zone=ZONE) -> Path:
    for name, value in (("set.json", manifest), ("a.json", zone)):
        text = value if isinstance(value, str) else json.dumps(value)
        (directory / name).write_text(text)
    return directory


def test_a_set_is_read(tmp_path):
    spotset = read_spotset(write(tmp_path, {**MANIFEST, "source": "somewhere", "missing": [[1, 2]]}))
    assert (spotset.name, spotset.gap_seconds, spotset.ticks) == ("small", 600.0, 3)
    assert spotset.notes == {"source": "somewhere"}
    [zone] = spotset.zones
    assert zone.data == (4, 0, 2)
    assert zone.prices == (1.0, 1.5, 2.0)
    assert (zone.spot_price, zone.on_demand_price) == (1.0, 3.0)


def test_prices_and_format_may_be_left_out(tmp_path):
    manifest = {key: value for key, value in MANIFEST.items() if key != "format"}
    assert read_spotset(write(tmp_path, manifest, {"data": [1, 1, 1]})).zones[0].prices == ()


def changed(**values):
    return {**MANIFEST, **values}


def zone_changed(**values):
    return changed(zones=[{**MANIFEST["zones"][0], **values}])


@pytest.mark.parametrize(
    ("manifest", "zone", "words"),
    [
        ("{", ZONE, r"set\.json:1: not JSON"),
        ("[" * 100_000, ZONE, r"set\.json: not JSON: it is nested too deeply"),
        ('{"ticks": ' + "9" * 5_000 + "}", ZONE, r"set\.json: not JSON: a number has too many digits"),
        ("[]", ZONE, r"set\.json: must hold one JSON object"),
        (changed(format="spotset/2"), ZONE, "format: is 'spotset/2'"),
        (changed(name=""), ZONE, "name: must be a text"),
        (changed(gap_seconds=0), ZONE, "gap_seconds: must be a number above 0, is 0"),
        (changed(gap_seconds=True), ZONE, "gap_seconds"),
        (changed(gap_seconds="600"), ZONE, "gap_seconds"),
        ('{"name": "x", "gap_seconds": NaN, "ticks": 3, "zones": [1]}', ZONE, "gap_seconds"),
        (changed(ticks=0), ZONE, "ticks: must be a whole number from 1 up, is 0"),
        (changed(ticks=3.0), ZONE, "ticks"),
        (changed(ticks=4), ZONE, r"a\.json: data: has 3 ticks, set\.json says 4"),
        (changed(zones=[]), ZONE, "zones: must be a list with at least one zone"),
        (changed(zones={}), ZONE, "zones"),
        (changed(zones=["a"]), ZONE, r"zones\[0\]: must be an object"),
        (changed(zones=MANIFEST["zones"] * 2), ZONE, "a listed twice"),
        (zone_changed(file="../a.json"), ZONE, r"zones\[0\]\.file: '../a.json' must be a name inside"),
        (zone_changed(file="b.json"), ZONE, r"b\.json: no such file"),
        (zone_changed(region=None), ZONE, r"zones\[0\]\.region"),
        (zone_changed(spot_price=0), ZONE, r"zones\[0\]\.spot_price: must be a number above 0"),
        (zone_changed(on_demand_price="3"), ZONE, r"zones\[0\]\.on_demand_price"),
        (MANIFEST, {}, r"a\.json: data: must be a list"),
        (MANIFEST, {"data": [1, -1, 1]}, r"data\[1\]: -1 must be a whole number, 0 or more"),
        (MANIFEST, {"data": [1, 1, 1.5]}, r"data\[2\]: 1\.5"),
        (MANIFEST, {"data": [1, True, 1]}, r"data\[1\]: True"),
        (MANIFEST, {"data": [1, 1, 1], "prices": [1.0]}, "prices: has 1 ticks"),
        (MANIFEST, {"data": [1, 1, 1], "prices": 3}, "prices: has no list ticks"),
        (MANIFEST, {"data": [1, 1, 1], "prices": [1, 0, 1]}, r"prices\[1\]: 0 must be a number above 0"),
        (MANIFEST, {"data": [1, 1, 1], "prices": [1, None, 1]}, r"prices\[1\]: None"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, manifest, zone, words):
    with pytest.raises(SpotsetError, match=words) as caught:
        read_spotset(write(tmp_path, manifest, zone))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(SpotsetError, match="no such directory"):
        read_spotset(tmp_path / "nowhere")
    with pytest.raises(SpotsetError, match="no such file"):
        read_spotset(tmp_path)


def test_a_compressed_file(tmp_path):
    write(tmp_path)
    (tmp_path / "a.json").write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(SpotsetError, match="not UTF-8"):
        read_spotset(tmp_path)


names = st.text("abcdefghij-1", min_size=1, max_size=8)
prices = st.floats(0.001, 100, allow_nan=False)


@st.composite
def spotsets(draw):
    ticks = draw(st.integers(1, 20))
    zones = tuple(
        SpotZone(
            zone=name,
            region=draw(names),
            spot_price=draw(prices),
            on_demand_price=draw(prices),
            data=tuple(draw(st.lists(st.integers(0, 99), min_size=ticks, max_size=ticks))),
            prices=draw(st.just(()) | st.lists(prices, min_size=ticks, max_size=ticks).map(tuple)),
        )
        for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))
    )
    return SpotSet(name=draw(names), gap_seconds=draw(st.floats(1, 1e5)), ticks=ticks, zones=zones)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spotset=spotsets())
def test_what_is_written_comes_back(tmp_path, spotset):
    write_spotset(spotset, tmp_path / "set")
    assert read_spotset(tmp_path / "set") == spotset


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(ZONE)), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from([*MANIFEST, "data", "prices"]), value=json_values)
def test_any_damage_is_one_clear_error_or_none(tmp_path, key, value):
    manifest, zone = dict(MANIFEST), dict(ZONE)
    (zone if key in ("data", "prices") else manifest)[key] = value
    write(tmp_path, manifest, zone)
    try:
        spotset = read_spotset(tmp_path)
    except SpotsetError as error:
        complaint = str(error)
    else:
        assert all(len(zone.data) == spotset.ticks for zone in spotset.zones)
        return
    assert str(tmp_path) in complaint
    assert "\n" not in complaint


TRACES = Path(__file__).parents[4] / "shared" / "traces"


@pytest.mark.skipif(not TRACES.is_dir(), reason="the recorded traces are not here")
def test_the_recorded_traces_are_read():
    found = sorted(path.parent for path in TRACES.glob("*/set.json"))
    assert found
    for directory in found:
        spotset = read_spotset(directory)
        assert spotset.ticks > 100
        assert all(max(zone.data) > 0 for zone in spotset.zones)
