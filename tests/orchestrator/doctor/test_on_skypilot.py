"""The doctor of a pool through SkyPilot, with a played helper, as it is and broken in one way each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from played_sky import PlayedCloud
from sky_stage import played_python, request

from cloud.clock import SystemClock
from cloud.skypilot.clouds import CATALOGUE, VERSION
from cloud.tombstones import Stage, Tombstones
from orchestrator.config.load import build_config
from orchestrator.doctor.clouds import LOOKS
from orchestrator.doctor.findings import State
from orchestrator.doctor.runner import run
from policies.model import Market

ROOT = Path(__file__).parents[3]
REGIONS = {
    "us-east-1": {"zones": ["us-east-1a"], "network": "sg-0123456789abcdef0", "image": "ami-0123456789"}
}
FILE = """
[daemon]
state_dir = "{state}"
poll_instances = "30s"
call_timeout = "60s"
[pool.pool]
replicas = 2
model = "m"
[pool.pool.engine]
kind = "vllm"
[pool.pool.limits]
spend_per_hour = "unlimited"
[pool.pool.patience]
stale_after = "5m"
[pool.pool.cloud]
kind = "skypilot"
[pool.pool.cloud.skypilot]
python = "{python}"
cloud = "aws"
instance_types = ["g6.xlarge"]
[pool.pool.cloud.skypilot.regions.us-east-1]
zones = ["us-east-1a"]
network = "sg-0123456789abcdef0"
image = "ami-0123456789"
"""
Told = dict[str, list[tuple[State, str, str]]]


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[PlayedCloud]:
    made = PlayedCloud(tmp_path / "cloud")
    yield made
    made.close()


async def found(directory: Path, *, version: str = VERSION, **changes: Any) -> Told:
    python = played_python(directory, PLAYED_CLOUD=str(directory / "cloud"), PLAYED_VERSION=version)
    table = {"python": str(python), "cloud": "aws", "instance_types": ["g6.xlarge"], "regions": REGIONS}
    pool = {
        "replicas": 2,
        "engine": {"allow_simulated": True},
        "limits": {"spend_per_hour": "unlimited"},
        "patience": {"stale_after": "5m"},
        "accept_unproven": True,
        "cloud": {"kind": "skypilot", "skypilot": table | changes},
    }
    daemon = {"state_dir": str(directory), "poll_instances": "30s", "call_timeout": "60s"}
    looks = LOOKS["skypilot"]
    assert looks is not None
    config = build_config({"daemon": daemon, "pool": {"pool": pool}}, base=directory)
    doctor = looks.doctor(config, "pool.toml", SystemClock())
    try:
        results = await run(doctor.checks(), SystemClock(), lambda _done, _waiting: None)
    finally:
        await doctor.close()
    assert all(f.advice for r in results for f in r.findings if f.state in (State.WARN, State.FAIL))
    return {r.check.name: [(f.state, f.subject, f.text) for f in r.findings] for r in results}


def worst(told: Told, name: str) -> tuple[State, str]:
    """The first finding of a check that is not ok, else the first."""
    rows = sorted(told[name], key=lambda row: row[0] is State.OK)
    return rows[0][0], rows[0][2]


async def test_all_is_well_and_nothing_is_made_beside_a_daemon(tmp_path: Path, cloud: PlayedCloud) -> None:
    told = await found(tmp_path)
    assert {state for rows in told.values() for state, _, _ in rows} == {State.OK}
    assert set(told) == {"environment", "programs", "home", "ledger", "credentials", "catalogue"}
    assert "user/played" in worst(told, "credentials")[1]
    assert ("us-east-1 spot", "g6.xlarge $0.300 an hour") in [row[1:] for row in told["catalogue"]]
    assert set(os.listdir(tmp_path)) == {"cloud", "played-python"}


@pytest.mark.slow
@pytest.mark.parametrize("words", [("doctor", "--only", "skypilot", "--config"), ("validate", "--prices")])
def test_what_the_helper_logs_is_no_part_of_an_answer_in_json(
    tmp_path: Path, cloud: PlayedCloud, words: Sequence[str]
) -> None:
    python = played_python(tmp_path, PLAYED_CLOUD=str(tmp_path / "cloud"), PLAYED_VERSION=VERSION)
    file = tmp_path / "pool.toml"
    file.write_text(FILE.format(state=tmp_path, python=python))
    command = [sys.executable, "-m", "orchestrator", *words, str(file), "-o", "json"]
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "schema" in json.loads(done.stdout)


async def test_an_environment_that_is_none_and_one_of_another_version(
    tmp_path: Path, cloud: PlayedCloud
) -> None:
    told = await found(tmp_path, python=str(tmp_path / "nothing" / "bin" / "python"))
    assert worst(told, "environment")[0] is State.FAIL
    assert [worst(told, name)[0] for name in ("credentials", "catalogue")] == [State.SKIPPED] * 2
    assert "cannot be started" in worst(told, "environment")[1]
    state, text = worst(await found(tmp_path, version="0.13.0"), "environment")
    assert (state, "has SkyPilot 0.13.0; this needs" in text) == (State.FAIL, True)


@pytest.mark.parametrize("word", ["denied", "misconfigured"])
async def test_credentials_that_the_cloud_does_not_take(
    tmp_path: Path, cloud: PlayedCloud, word: str
) -> None:
    cloud.fault("account", "refuse", word)
    assert worst(await found(tmp_path), "credentials") == (State.FAIL, "injected")


async def test_a_file_of_credentials_that_is_not_there(tmp_path: Path, cloud: PlayedCloud) -> None:
    told = await found(tmp_path, credentials={".aws/credentials": str(tmp_path / "missing")})
    assert worst(told, "credentials")[0] is State.FAIL
    assert cloud.asked("account") == 0


async def test_a_type_that_the_catalogue_lacks(tmp_path: Path, cloud: PlayedCloud) -> None:
    told = await found(tmp_path, instance_types=["g9.xlarge"])
    assert {state for state, _, _ in told["catalogue"]} == {State.FAIL}
    assert "has no instance type g9.xlarge" in worst(told, "catalogue")[1]


async def test_a_catalogue_that_nobody_fetches_any_more(tmp_path: Path, cloud: PlayedCloud) -> None:
    home = tmp_path / "skypilot"
    file = home / ".sky" / "catalogs" / CATALOGUE / "aws" / "vms.csv"
    file.parent.mkdir(parents=True)
    home.chmod(0o700)
    file.touch()
    assert worst(await found(tmp_path), "catalogue")[0] is State.OK
    days = SystemClock().now() - 3 * 86_400.0
    os.utime(file, (days, days))
    state, text = worst(await found(tmp_path), "catalogue")
    assert (state, "is 3 days old" in text) == (State.WARN, True)


async def test_a_home_that_others_may_look_into(tmp_path: Path, cloud: PlayedCloud) -> None:
    home = tmp_path / "skypilot"
    home.mkdir(mode=0o700)
    assert worst(await found(tmp_path), "home")[0] is State.OK
    home.chmod(0o750)
    assert worst(await found(tmp_path), "home")[0] is State.FAIL
    home.rmdir()
    home.write_text("no directory")
    assert worst(await found(tmp_path), "home")[0] is State.FAIL


async def test_a_ledger_with_damage_and_machines_out_of_reach(tmp_path: Path, cloud: PlayedCloud) -> None:
    path = tmp_path / "skypilot-launches"
    ledger = Tombstones(path, SystemClock())
    for number in range(3):
        ledger.ask(request(f"t-{number}", Market.SPOT, "us-east-1a"), f"so-{number}")
    ledger.note("t-2", Stage.REFUSED)
    state, text = worst(await found(tmp_path), "ledger")
    assert (state, "3 launches, 2 of which have not ended" in text) == (State.OK, True)
    elsewhere = {"us-west-2": {**REGIONS["us-east-1"], "zones": ["us-west-2a"]}}
    told = await found(tmp_path, regions=elsewhere)
    assert [(row[0], row[1]) for row in told["ledger"]] == [(State.FAIL, "us-east-1")]
    path.write_bytes(path.read_bytes().replace(b"so-0", b"so-x"))
    state, text = worst(await found(tmp_path), "ledger")
    assert (state, text.startswith("1 lines of")) == (State.FAIL, True)


async def test_a_home_and_a_ledger_that_are_another_users(
    tmp_path: Path, cloud: PlayedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the answer of the kernel is played."""
    home, ledger = tmp_path / "skypilot", tmp_path / "skypilot-launches"
    home.mkdir(mode=0o700)
    ledger.touch()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path not in (home, ledger) and access(path, mode))
    told = await found(tmp_path)
    assert [worst(told, name)[0] for name in ("home", "ledger")] == [State.FAIL] * 2


async def test_a_directory_that_is_not_there(tmp_path: Path, cloud: PlayedCloud) -> None:
    nowhere = tmp_path / "nowhere"
    told = await found(tmp_path, home=str(nowhere / "home"), ledger=str(nowhere / "ledger"))
    assert [worst(told, name)[0] for name in ("home", "ledger")] == [State.FAIL] * 2


async def test_the_programs_of_a_start_over_ssh(
    tmp_path: Path, cloud: PlayedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"cloud": "verda", "regions": {"FIN-01": {"image": "i"}}}
    there = {"ssh"}
    monkeypatch.setattr("shutil.which", lambda name: name if name in there else None)
    assert worst(await found(tmp_path, **place), "programs")[0] is State.OK
    told = await found(tmp_path, **place, public_ip=False)
    assert worst(told, "programs") == (State.FAIL, "engines start over SSH, and nc is not here")


def test_the_version_is_the_one_that_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extra,) = project["project"]["optional-dependencies"]["skypilot"]
    named = [
        line for line in (ROOT / "skypilot.lock").read_text().splitlines() if line.startswith("skypilot")
    ]
    (wanted,) = [
        line
        for line in (ROOT / "tools/skypilot/requirements.in").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert [text.partition("==")[2].split()[0] for text in (extra, wanted, *named)] == [VERSION] * 3
