"""The boot report: what it holds, how starts are counted, and that it stops nothing."""

import json
import os

import pytest

from cloud.node_boot import SETTLED, Boot, pause, restarts_after

NOW = 1_800_000_000.0


def told(path) -> dict:
    return json.loads(path.read_text())


def test_steps_and_checks_are_written_and_printed(tmp_path, capsys):
    file = tmp_path / "boot.json"
    boot = Boot(str(file))
    boot.stage("checks")
    boot.check("driver", True, "4 x L40S")
    boot.check("ninja", False, "no ninja")
    boot.check("driver", True, "8 x L40S")
    boot.stage("weights", "1 of 2 GB", aloud=False)
    found = told(file)
    at, first, times = found.pop("at"), found.pop("first"), found.pop("times")
    assert NOW / 2 < first == times["checks"] <= times["weights"] <= at
    assert set(times) == {"checks", "weights"}
    assert found == {
        "schema": 1,
        "stage": "weights",
        "ok": True,
        "detail": "1 of 2 GB",
        "checks": [
            {"name": "ninja", "ok": False, "text": "no ninja"},
            {"name": "driver", "ok": True, "text": "8 x L40S"},
        ],
        "restarts": 0,
    }
    said = capsys.readouterr().err
    assert "node-start: WARNING: ninja: no ninja" in said
    assert "1 of 2 GB" not in said
    assert list(tmp_path.iterdir()) == [file]  # nothing half-written beside it


@pytest.mark.parametrize(
    ("before", "count"),
    [
        ({}, 0),
        ({"stage": "disks", "at": NOW - 5}, 0),
        ({"stage": "start", "ok": True, "at": NOW - 5}, 1),
        ({"stage": "start", "ok": True, "at": NOW - 5, "restarts": 3}, 4),
        ({"stage": "start", "ok": True, "at": NOW - SETTLED, "restarts": 3}, 0),
        ({"stage": "start", "ok": True, "at": 10**400, "restarts": 3}, 4),
        ({"stage": "start", "ok": True, "at": NOW + 9999, "restarts": 3}, 4),  # the clock was put back
        ({"stage": "failed", "ok": False, "at": NOW - 9999, "restarts": 3}, 4),
        ({"stage": "weights", "ok": True, "at": NOW - 9999, "restarts": 0}, 1),  # killed in the middle
        ({"stage": "start", "ok": True, "at": "now", "restarts": "many"}, 1),
        ({"stage": ["x"], "restarts": 3}, 0),
    ],
)
def test_only_starts_that_ended_early_count(before, count):
    assert restarts_after(before, NOW) == count


def test_tries_become_rare_and_never_stop():
    pauses = [pause(n) for n in range(40)]
    assert pauses == sorted(pauses)
    assert pauses[:4] == [0.0, 0.0, 5.0, 10.0]
    assert max(pauses) == pause(10**9) == 300.0


def test_the_disks_stay_in_the_report_and_the_rest_is_looked_at_again(tmp_path):
    file = tmp_path / "boot.json"
    disks = Boot(str(file), "node-disks")
    disks.stage("disks", "a stripe")
    disks.check("local-disk", True, "a stripe over two")
    boot = Boot(str(file))
    assert boot.restarts == 0
    boot.stage("checks")
    boot.check("driver", False, "hangs")
    boot.stage("failed", "driver: hangs", ok=False)
    again = Boot(str(file))
    assert (again.restarts, again.before) == (1, "driver: hangs")
    again.stage("failed", "driver: hangs; restart 1 follows")
    assert [check["name"] for check in told(file)["checks"]] == ["local-disk", "driver"]
    again.stage("checks")
    assert [check["name"] for check in told(file)["checks"]] == ["local-disk"]


def test_how_the_engine_ended_is_known_at_the_next_start(tmp_path):
    file = tmp_path / "boot.json"
    Boot(str(file)).stage("start", "vllm starts")
    (tmp_path / "ended").write_text("exit-code exited 1\n")
    again = Boot(str(file))
    assert (again.restarts, again.before) == (1, "the engine ended (exit-code exited 1); its log says why")


@pytest.mark.parametrize(
    "text", ["", "[]", "nonsense", '{"checks": [1]}', '{"checks": 5}', "[" * 9999, '{"checks": [{}]}', "\x00"]
)
def test_an_odd_report_of_before_counts_for_nothing(tmp_path, text):
    file = tmp_path / "boot.json"
    file.write_text(text)
    boot = Boot(str(file))
    boot.stage("checks", "go on")
    assert (boot.restarts, told(file)["checks"]) == (0, [])


@pytest.mark.parametrize("kind", ["fifo", "zeros", "directory"])
def test_what_stands_in_the_place_of_a_report_stops_nothing(tmp_path, kind):
    place = tmp_path / "boot.json"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "zeros":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()
    boot = Boot(str(place))
    boot.stage("checks", "go on")
    assert boot.restarts == 0
    assert kind == "directory" or told(place)["detail"] == "go on"


def test_a_report_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    boot = Boot(str(tmp_path / "missing" / "boot.json"))
    boot.stage("start", "vllm starts")
    assert "cannot be written" in capsys.readouterr().err


def test_each_start_has_times_of_its_own_and_the_machine_one_beginning(tmp_path):
    file = tmp_path / "boot.json"
    Boot(str(file), "node-disks").stage("disks")
    first = told(file)["first"]
    boot = Boot(str(file))
    boot.stage("checks")
    boot.stage("start")
    assert [*told(file)["times"]] == ["disks", "checks", "start"], "the disks' unit was before this start"
    assert told(file)["times"]["disks"] == first
    again = Boot(str(file))
    again.stage("checks")
    assert [*told(file)["times"]] == ["checks"]
    assert told(file)["first"] == first, "the machine did not boot again"


@pytest.mark.parametrize(
    "before", ['{"stage": "disks", "times": 7}', '{"stage": "disks", "first": "x"}', "[]"]
)
def test_a_report_of_another_version_stops_no_times(tmp_path, before):
    file = tmp_path / "boot.json"
    file.write_text(before)
    Boot(str(file)).stage("checks")
    assert [*told(file)["times"]] == ["checks"]
