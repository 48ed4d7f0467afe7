"""Public recordings become sets: what they say is kept, what they do not say is asked for or written down."""

import json

import pytest

from cloud.local.recordings import Assumed, from_price_history, from_skypilot, region_of
from cloud.local.spotset import SpotsetError, read_spotset, save_spotset

ASSUMED = Assumed(name="set", on_demand_price=3.0)


@pytest.fixture
def skypilot(tmp_path):
    """Writes a file of spot-traces."""

    def write(name, data, *, gap=300, **metadata):
        file = tmp_path / name
        file.write_text(json.dumps({"metadata": {"gap_seconds": gap, **metadata}, "data": data}))
        return file

    return write


def price(zone, at, usd, *, instance="p5.48xlarge", product="Linux/UNIX"):
    return {
        "AvailabilityZone": zone,
        "InstanceType": instance,
        "ProductDescription": product,
        "SpotPrice": str(usd),
        "Timestamp": f"2026-11-01T{at}:00+00:00",
    }


HISTORY = [
    price("us-east-1a", "03:00", 2.5),  # newest first, as the command prints it
    price("us-east-1a", "01:30", 4.0),
    price("us-east-1b", "00:00", 1.5),
    price("us-east-1a", "01:00", 2.0),
]


@pytest.fixture
def history(tmp_path):
    """Writes a price history."""

    def write(records, name="prices.json"):
        file = tmp_path / name
        file.write_text(json.dumps({"SpotPriceHistory": records}))
        return file

    return write


# -- skypilot -------------------------------------------------------------------------------------


def test_skypilot_files_become_zones(skypilot, tmp_path):
    files = [
        skypilot("us-west-2a_v100_1.json", [4, 4, 0, 3]),
        skypilot("us-central1-c_v100_1.json", [1, 2, 3, 4, 4]),
    ]
    made = from_skypilot(files, ASSUMED)
    assert [(z.zone, z.region, z.data) for z in made.zones] == [
        ("us-west-2a", "us-west-2", (4, 4, 0, 3)),
        ("us-central1-c", "us-central1", (1, 2, 3, 4)),
    ]
    assert (made.ticks, made.gap_seconds, made.name) == (4, 300.0, "set")
    assert {(z.on_demand_price, z.spot_price) for z in made.zones} == {(3.0, 0.9)}
    assert made.notes["instance"] == "v100_1"
    assert made.notes["length"] == "cut to the shortest zone; the longest has 5 ticks"
    assert made.notes["prices"] == "not in the recording: spot assumed at 30% of on-demand"
    save_spotset(made, tmp_path / "out")
    assert read_spotset(tmp_path / "out") == made


def test_a_probe_of_one_node_can_stand_for_more(skypilot):
    made = from_skypilot(
        [skypilot("us-west-2a_v100_1.json", [1, 0])], Assumed(name="s", on_demand_price=3, nodes=16)
    )
    assert made.zones[0].data == (16, 0)
    assert made.notes["capacity"] == "every recorded count is taken times 16"


def test_prices_in_the_file_win_over_assumptions(tmp_path):
    file = tmp_path / "us-west-2a_v100_1.json"
    metadata = {"gap_seconds": 195, "on_demand_price": 3.06, "spot_price": 1.1, "start_time": "2023-02-15"}
    file.write_text(json.dumps({"metadata": metadata, "data": [1, 1], "prices": [1.1, 1.2]}))
    made = from_skypilot([file], Assumed(name="s"))
    (zone,) = made.zones
    assert (zone.spot_price, zone.on_demand_price, zone.prices) == (1.1, 3.06, (1.1, 1.2))
    assert made.notes["start_time"] == "2023-02-15"
    assert "prices" not in made.notes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "must hold one JSON object"),
        ('{"metadata": {}, "data": [1]}', "metadata.gap_seconds: must be a number of seconds, is None"),
        ('{"metadata": {"gap_seconds": 60}, "data": []}', "data: must be a list"),
        ('{"metadata": {"gap_seconds": 60}, "data": [1, -1]}', r"data\[1\]: -1 must be a whole number"),
        ('{"metadata": {"gap_seconds": 60}, "data": [1.5]}', r"data\[0\]: 1.5 must be"),
        ('{"metadata": {"gap_seconds": 60, "zone": "a/b"}, "data": [1]}', "'a/b' is no name of a zone"),
        ('{"metadata": {"gap_seconds": 60}, "data": [1, 2], "prices": [1]}', "as long as data"),
    ],
)
def test_a_faulty_skypilot_file_is_named_with_its_fault(tmp_path, text, complaint):
    file = tmp_path / "us-west-2a_v100_1.json"
    file.write_text(text)
    with pytest.raises(SpotsetError, match=complaint) as error:
        from_skypilot([file], ASSUMED)
    assert str(file) in str(error.value)


def test_without_any_on_demand_price_it_asks_for_one(skypilot):
    with pytest.raises(SpotsetError, match="give --on-demand-price"):
        from_skypilot([skypilot("us-west-2a_v100_1.json", [1])], Assumed(name="s"))


def test_files_that_do_not_belong_together_are_refused(skypilot):
    one = skypilot("us-west-2a_v100_1.json", [1])
    with pytest.raises(SpotsetError, match="us-west-2a given twice"):
        from_skypilot([one, skypilot("us-west-2a_k80_1.json", [1])], ASSUMED)
    with pytest.raises(SpotsetError, match="the files tick differently"):
        from_skypilot([one, skypilot("us-west-2b_v100_1.json", [1], gap=60)], ASSUMED)


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(SpotsetError, match=r"nothing\.json: cannot be read: No such file"):
        from_skypilot([tmp_path / "nothing.json"], ASSUMED)


# -- price history ---------------------------------------------------------------------------------


def test_a_price_history_becomes_prices_per_tick(history, tmp_path):
    made = from_price_history([history(HISTORY)], Assumed(name="p5", on_demand_price=3.0, gap=1800.0))
    first, second = made.zones
    # from when every zone has a price until the last change
    assert (made.notes["start_time"], made.ticks) == ("2026-11-01T01:00:00+00:00", 4)
    assert (first.zone, first.prices, first.data) == ("us-east-1a", (2.0, 4.0, 4.0, 4.0), (16, 0, 0, 0))
    assert (second.zone, second.prices, second.data) == ("us-east-1b", (1.5,) * 4, (16,) * 4)
    assert (
        made.notes["capacity"]
        == "the history says none: 16 nodes while the price is at most 3 USD/h, else none"
    )
    save_spotset(made, tmp_path / "out")
    assert read_spotset(tmp_path / "out") == made


def test_json_lines_pages_and_csv_say_the_same(history, tmp_path):
    assumed = Assumed(name="p5", on_demand_price=3.0, gap=1800.0, nodes=4, max_price=2.2)
    lines = tmp_path / "lines.json"
    lines.write_text("".join(json.dumps(record) + "\n" for record in HISTORY))
    pages = tmp_path / "pages.json"
    pages.write_text("".join(json.dumps({"SpotPriceHistory": HISTORY[i : i + 2]}) + "\n" for i in (0, 2)))
    table = tmp_path / "prices.csv"
    names = list(HISTORY[0])
    table.write_text("\n".join([",".join(names), *(",".join(r[n] for n in names) for r in HISTORY)]) + "\n")
    made = [from_price_history([f], assumed).zones for f in (history(HISTORY), lines, pages, table)]
    assert made[0] == made[1] == made[2] == made[3]
    assert made[0][0].data == (4, 0, 0, 0)


def test_losses_can_be_taken_from_the_synthetic_market(history):
    zones = [f"us-east-{r}{z}" for r in (1, 2) for z in "ab"]
    records = [price(z, "00:00", 1.0) for z in zones]
    records += [price(z, "00:00", 1.0) | {"Timestamp": "2026-11-20T00:00:00Z"} for z in zones]
    file = history(records)
    assumed = Assumed(name="p5", on_demand_price=3.0, capacity="synthetic", nodes=8, seed=3)
    made = from_price_history([file], assumed)
    assert from_price_history([file], assumed) == made
    assert {max(zone.data) for zone in made.zones} == {8}
    assert all(0 in zone.data for zone in made.zones)
    assert len({zone.data for zone in made.zones}) == 4
    assert "losses of the synthetic market of seed 3" in made.notes["capacity"]


def test_several_types_or_products_must_be_chosen_from(history):
    file = history([*HISTORY, price("us-east-1a", "01:00", 9.0, instance="p4d.24xlarge")])
    with pytest.raises(
        SpotsetError, match=r"holds several: p4d.24xlarge, p5.48xlarge; choose one with --instance"
    ):
        from_price_history([file], ASSUMED)
    chosen = Assumed(name="s", on_demand_price=3.0, instance="p5.48xlarge")
    assert from_price_history([file], chosen).notes["instance"] == "p5.48xlarge"
    with pytest.raises(SpotsetError, match=r"has no g5\.xlarge"):
        from_price_history([file], Assumed(name="s", on_demand_price=3.0, instance="g5.xlarge"))
    file = history([*HISTORY, price("us-east-1a", "01:00", 9.0, product="Windows")])
    with pytest.raises(SpotsetError, match="choose one with --product"):
        from_price_history([file], ASSUMED)


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ([], "holds no price"),
        ([{"SpotPrice": "1"}], "has no Timestamp, AvailabilityZone, InstanceType"),
        ([price("us-east-1a", "00:00", "")], "has no SpotPrice"),
        ([price("us-east-1a", "00:00", "cheap")], "SpotPrice: must be a price above 0"),
        ([price("us-east-1a", "00:00", -1)], "SpotPrice: must be a price above 0"),
        ([price("us-east-1a", "00:00", 1) | {"Timestamp": "today"}], "'today' is no ISO 8601 time"),
        ([price("us east", "00:00", 1)], "is no name of a zone"),
        ([price("us-east-1a", "00:00", 1)], "less than one tick"),
        (["text"], "is no price"),
    ],
)
def test_a_faulty_price_history_is_named_with_its_fault(history, records, complaint):
    file = history(records)
    with pytest.raises(SpotsetError, match=complaint) as error:
        from_price_history([file], ASSUMED)
    assert str(file) in str(error.value)


def test_a_price_history_needs_an_on_demand_price(history):
    with pytest.raises(SpotsetError, match="give --on-demand-price"):
        from_price_history([history(HISTORY)], Assumed(name="s"))


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-east-1f", "us-east-1"),
        ("us-central1-c", "us-central1"),
        ("ap-southeast-2b", "ap-southeast-2"),
        ("x", "x"),
    ],
)
def test_the_region_of_a_zone(zone, region):
    assert region_of(zone) == region


# -- writing ---------------------------------------------------------------------------------------


def test_a_set_is_never_written_over_by_accident(skypilot, tmp_path):
    old = from_skypilot([skypilot("us-west-2a_v100_1.json", [1, 2])], ASSUMED)
    new = from_skypilot([skypilot("us-west-2b_v100_1.json", [3, 4])], ASSUMED)
    where = tmp_path / "deep" / "set"
    save_spotset(old, where)
    with pytest.raises(SpotsetError, match="is there already"):
        save_spotset(new, where)
    assert read_spotset(where) == old
    save_spotset(new, where, replace=True)
    assert read_spotset(where) == new
    assert {f.name for f in where.iterdir()} == {"set.json", "us-west-2b.json"}
    assert [f.name for f in where.parent.iterdir()] == ["set"]  # nothing half-made is left


def test_what_is_no_set_is_not_replaced(skypilot, tmp_path):
    made = from_skypilot([skypilot("us-west-2a_v100_1.json", [1, 2])], ASSUMED)
    where = tmp_path / "home"
    where.mkdir()
    (where / "precious").write_text("x")
    with pytest.raises(SpotsetError, match=r"holds no set.json, so it is no set"):
        save_spotset(made, where, replace=True)
    assert (where / "precious").read_text() == "x"
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(SpotsetError, match="so it is no set"):
        save_spotset(made, file, replace=True)


def test_a_write_that_fails_leaves_the_old_set(skypilot, tmp_path, monkeypatch):
    old = from_skypilot([skypilot("us-west-2a_v100_1.json", [1, 2])], ASSUMED)
    where = tmp_path / "set"
    save_spotset(old, where)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloud.local.spotset.write_spotset", full)
    with pytest.raises(SpotsetError, match="cannot be written: No space left"):
        save_spotset(old, where, replace=True)
    assert read_spotset(where) == old
    assert sorted(f.name for f in tmp_path.iterdir()) == ["set", "us-west-2a_v100_1.json"]
