"""The rounds of the contract suites: what counts as green, what is shown of a failure, one run for real."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import contract_rounds
from contract_rounds import Case, Round, always_skipped, as_data, is_green, replay_line, summary, table

WORDS = ["--jobs", "0", "--busy", "0", "--suites", "instances"]

SUITE = """
import os, pathlib
import pytest

SEEN = pathlib.Path(__file__).with_name("seen")

@pytest.fixture(params=["one", "two-worded"])
def cloud_world(request):
    return request.param

@pytest.mark.parametrize("number", range(6))
def test_a(cloud_world, number):
    with SEEN.open("a") as seen:
        seen.write(f"{cloud_world}{number} ")

def test_b(cloud_world):
    if cloud_world == "one":
        pytest.skip("one cannot")

def test_c(cloud_world):
    assert (cloud_world, SEEN.with_name("broken").exists()) != ("two-worded", True), "it is broken"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_instances_contract.py").write_text(SUITE)
    return tmp_path


def case(adapter: str, name: str = "test_a", result: Any = "passed", **more: Any) -> Case:
    return Case(suite="instances", adapter=adapter, name=f"{name}[{adapter}]", result=result, **more)


def of(*cases: Case, seed: int = 1, busy: int = 0, **more: Any) -> Round:
    return Round(seed=seed, busy=busy, seconds=3.0, load=1.5, cases=cases, **more)


def test_a_round_for_real(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert contract_rounds.main([*WORDS, "--rounds", "2"], folder=folder) == 0
    said = capfd.readouterr()
    assert "round 2 of 2, seed 1001 alone: 15 passed, 0 failed, 1 skipped in" in said.err
    assert [line.split() for line in said.out.splitlines()[1:3]] == [
        ["instances", "one", "2", "of", "2", "14", "0", "2"],
        ["instances", "two-worded", "2", "of", "2", "16", "0", "0"],
    ]
    assert "  test_b[one]: one cannot" in said.out
    seen = (folder / "seen").read_text().split()
    assert sorted(seen[:12]) == sorted(seen[12:])
    assert seen[:12] != seen[12:]  # another seed, another order


def test_a_failure_is_shown_with_the_line_that_runs_it_again(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken").touch()
    assert contract_rounds.main([*WORDS, "--rounds", "1", "--seed", "7", "-o", "json"], folder=folder) == 1
    said = capfd.readouterr()
    told = json.loads(said.out)
    assert told["green"] is False
    assert {row["adapter"]: (row["green"], row["failed"]) for row in told["adapters"]} == {
        "one": (1, 0),
        "two-worded": (0, 1),
    }
    assert [(c["adapter"], c["name"]) for c in told["rounds"][0]["failed"]] == [
        ("two-worded", "test_c[two-worded]")
    ]
    assert "FAILED test_instances_contract.py::test_c[two-worded]" in said.err
    assert "it is broken" in said.err
    assert "--rounds 1 --busy 0 --seed 7 --suites instances --jobs 0" in said.err


def test_a_suite_that_cannot_be_read_is_no_round(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "test_instances_contract.py").write_text("import nothing_of_this_name")
    assert contract_rounds.main([*WORDS, "--rounds", "1"], folder=folder) == 2
    assert "nothing_of_this_name" in capfd.readouterr().err


def test_an_adapter_of_which_nothing_ran_is_not_green() -> None:
    ran, absent = case("local"), case("haproxy", result="skipped", why="no haproxy: make balancers-env")
    assert is_green([of(ran)])
    assert not is_green([of(ran, absent)])
    assert [(row.adapter, row.green) for row in table([of(ran, absent)])] == [("haproxy", 0), ("local", 1)]


def test_one_red_round_of_many_is_red() -> None:
    good, bad = of(case("local")), of(case("local", result="failed", why="x"), seed=2, busy=4)
    assert is_green([good, good])
    assert not is_green([good, bad])
    assert table([good, bad])[0].green == 1
    assert replay_line(bad, ["instances"], 3) == (
        "python tools/contract_rounds.py --rounds 1 --busy 4 --seed 2 --suites instances --jobs 3"
    )


def test_a_round_without_an_end_is_red_whatever_passed() -> None:
    assert not is_green([of(case("local"), problem="no end after 900 s")])


def test_a_test_that_ran_in_one_round_is_not_called_skipped() -> None:
    skipped, ran = case("aws", result="skipped", why="no room"), case("aws")
    assert always_skipped([of(skipped), of(skipped)]) == {"test_a[aws]": "no room"}
    assert always_skipped([of(skipped), of(ran)]) == {}
    assert as_data([of(skipped)])["skipped_in_every_round"] == {"test_a[aws]": "no room"}


def test_rounds_alone_and_beside_loops_are_counted_apart() -> None:
    said = summary([of(case("local")), of(case("local", result="failed"), busy=4)])
    heavy = f"a round took 3 to 3 s, the load was 1.5 to 1.5 on {os.cpu_count()} processors"
    assert f"1 rounds alone: 0 failed of 1 tests run; {heavy}" in said
    assert f"1 rounds beside 4 busy loops: 1 failed of 1 tests run; {heavy}" in said


@pytest.mark.parametrize(
    "words", [["--suites", "none"], ["--busy", "x"], ["--busy", "-1"], ["--suites", ","]]
)
def test_what_makes_no_sense_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        contract_rounds.arguments(words)
    assert ended.value.code == 2


def test_busy_loops_run_and_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = contract_rounds.subprocess.Popen

    def watched(*words: Any, **more: Any) -> Any:
        started.append(real(*words, **more))
        return started[-1]

    monkeypatch.setattr(contract_rounds.subprocess, "Popen", watched)
    with contract_rounds.busy_loops(2):
        assert [loop.poll() for loop in started] == [None, None]
    assert [loop.poll() for loop in started] == [-9, -9]
