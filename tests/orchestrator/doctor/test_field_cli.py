"""`orchestrator doctor --field-test` as a command: what it asks and refuses, and what a killed one leaves."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from cloud.errors import Uncertain
from cloud.gcp.instances import GcpInstances
from cloud.ports import EngineCommand
from orchestrator.__main__ import main
from orchestrator.config.load import Config, load_config
from orchestrator.doctor import field, short_lived
from orchestrator.doctor.findings import State
from orchestrator.doctor.unfinished import Busy, Notebook, Unfinished
from orchestrator.wiring.ports import connect
from policies.model import Market, Placement
from tests.support.gcp_stand_in import GcpStandIn

PLACE = Placement("gcp", "us-central1", "us-central1-a", "g2-standard-4", Market.SPOT)


@pytest.fixture
async def google() -> AsyncIterator[GcpStandIn]:
    stand_in = GcpStandIn(project="ppppppp")
    await stand_in.open()
    yield stand_in
    await stand_in.close()


def file_of(directory: Path, endpoint: str = "http://127.0.0.1:9") -> Path:
    """A configuration of a pool on Google Cloud."""
    file = directory / "pool.toml"
    file.write_text(
        f"""
[daemon]
state_dir = "{directory}/state"
[pool.llama]
replicas = 1
model = "m"
[pool.llama.engine]
kind = "vllm"
[pool.llama.limits]
spend_per_hour = 99
[pool.llama.cloud]
kind = "gcp"
[pool.llama.cloud.gcp]
project = "ppppppp"
instance_types = ["g2-standard-4"]
image = "projects/p/global/images/i"
endpoint = "{endpoint}"
[pool.llama.cloud.gcp.regions.us-central1]
zones = ["us-central1-a", "us-central1-b"]
"""
    )
    return file


def run(*words: str) -> int:
    return main(["doctor", *words])


# -- what it refuses -----------------------------------------------------------------------------------------


def test_the_local_cloud_is_nothing_to_test_in_the_field(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "pool.toml"
    file.write_text("[pool.llama]\nreplicas = 1\n[pool.llama.engine]\nallow_simulated = true\n")
    assert run("--config", str(file), "--field-test", "local") == 2
    assert "its machines are processes on this machine" in capsys.readouterr().err


def test_a_pool_on_another_cloud(tmp_path: Path, capsys: Any) -> None:
    assert run("--config", str(file_of(tmp_path)), "--field-test", "aws") == 2
    assert "the pool llama runs on gcp" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--fix",), ("--only", "gcp"), ("--try-node", "spot")])
def test_it_runs_by_itself(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert run("--config", str(file_of(tmp_path)), "--field-test", "gcp", *words) == 2


def test_it_needs_to_know_what_to_launch() -> None:
    assert run("--field-test", "gcp") == 2


def test_a_market_without_a_field_test_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert run("--config", str(file_of(tmp_path)), "--market", "spot") == 2
    assert "--market goes with --field-test" in capsys.readouterr().err


def test_one_test_at_a_time(tmp_path: Path, capsys: Any) -> None:
    notebook = Notebook(tmp_path / "state")
    with notebook.held():
        assert run("--config", str(file_of(tmp_path)), "--field-test", "gcp", "--yes") == 1
        assert "another field test runs" in capsys.readouterr().err
        with pytest.raises(Busy), Notebook(tmp_path / "state").held():
            pass
    with notebook.held():
        assert notebook.read() is None


def test_it_asks_with_the_price_of_the_longest_time_and_launches_nothing_without_a_yes(
    account: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.region_settings["on_demand_prices"] = {"g6e.12xlarge": "10.00", "p5.4xlarge": "6.00"}
    answers = io.StringIO("no\n")
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answers)
    words = ("--config", str(account.config()), "--field-test", "aws", "--market", "on-demand")
    assert run(*words) == 1
    asked = capsys.readouterr().err
    one = field.subject(load_config(account.config()), "aws")
    assert f"at $6.00 an hour, ${6.0 * one.longest / 3600.0:.2f} at most" in asked
    assert 2000.0 < one.longest < 4000.0
    assert account.shim.order("machines")["machines"] == []


# -- what a killed test leaves -------------------------------------------------------------------------------


def left(node: str = "", **changes: Any) -> Unfinished:
    given = {"kind": "gcp", "pool": "llama", "token": "field-test/1-0", "placement": PLACE, "node": node}
    return Unfinished(**{**given, **changes})


def test_what_is_unfinished_is_read_as_it_was_written(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / "made" / "state")
    notebook.write(left("so-1"))
    assert Notebook(tmp_path / "made" / "state").read() == left("so-1")
    notebook.forget()
    assert notebook.read() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "gcp"}', '{"placement": {}}'])
def test_a_file_that_cannot_be_read_stops_the_next_test(tmp_path: Path, capsys: Any, text: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "field-test.json").write_text(text)
    assert run("--config", str(file_of(tmp_path)), "--field-test", "gcp", "--yes") == 1
    assert "field-test.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"kind": "aws", "node": "i-1"}, {"pool": "other", "node": "i-1"}])
def test_what_another_configuration_left_is_for_people(
    tmp_path: Path, capsys: Any, changes: dict[str, Any]
) -> None:
    Notebook(tmp_path / "state").write(left(**changes))
    assert run("--config", str(file_of(tmp_path)), "--field-test", "gcp", "--yes") == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "i-1" in told
    assert "nothing was launched" in told
    assert Notebook(tmp_path / "state").read() is not None


async def launched(config: Config) -> str:
    """A machine of a test that was killed; its id."""
    ports = connect(config, SystemClock())
    command = ports.command.at(PLACE.instance_type)
    try:
        return (await ports.instances.launch(left().request(command))).id
    finally:
        await ports.close()


async def finished(config: Config, notebook: Notebook) -> list[tuple[str, State, str]]:
    found = notebook.read()
    assert found is not None
    one, _ = field.left_over(config, found)
    assert one is not None
    steps = await field.finish(one, SystemClock(), found, notebook, lambda _text: None)
    return [(each.finding.subject, each.finding.state, each.finding.advice) for each in steps]


@pytest.mark.parametrize("known", [True, False])
async def test_the_next_test_ends_what_was_left(google: GcpStandIn, tmp_path: Path, known: bool) -> None:
    config = load_config(file_of(tmp_path, google.url))
    notebook = Notebook(config.daemon.state_dir)
    node = await launched(config)
    notebook.write(left(node if known else ""))
    assert await finished(config, notebook) == [("ended", State.OK, "")]
    assert notebook.read() is None
    assert {machine["status"] for machine in google.machines.values()} <= {"STOPPING"}
    assert google.launched == 1


async def test_what_cannot_be_ended_stays_in_the_file(
    google: GcpStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_lived, "PAUSE", 0.0)
    config = load_config(file_of(tmp_path, google.url))
    notebook = Notebook(config.daemon.state_dir)
    node = await launched(config)
    notebook.write(left(node))

    async def refuse(_self: GcpInstances, _node: str) -> None:
        raise Uncertain("no answer")

    monkeypatch.setattr(GcpInstances, "terminate", refuse)
    ((step, state, advice),) = await finished(config, notebook)
    assert (step, state, f"gcloud compute instances delete {node}" in advice) == ("ended", State.FAIL, True)
    assert notebook.read() == left(node)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_a_test_that_is_killed_or_interrupted(
    google: GcpStandIn, tmp_path: Path, number: signal.Signals
) -> None:
    config = load_config(file_of(tmp_path, google.url))
    notebook = Notebook(config.daemon.state_dir)
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator", "doctor", "--config", str(tmp_path / "pool.toml")),
        *("--field-test", "gcp", "--yes", "-o", "json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert running.stderr is not None
        while "accepted" not in (line := (await running.stderr.readline()).decode()):
            assert line, "it ended before it launched anything"
        (name,) = [name for _, name in google.machines]
        found = notebook.read()
        assert found is not None
        assert (found.kind, found.token.startswith("field-test/"), found.node) == ("gcp", True, name)
        running.send_signal(number)
        out, _ = await running.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()
    if number is signal.SIGKILL:
        assert len(google.machines) == 1
        assert await finished(config, notebook) == [("ended", State.OK, "")]
    else:
        rows = {row["subject"]: row["state"] for row in json.loads(out)["findings"]}
        assert (running.returncode, rows["interrupted"], rows["ended"]) == (1, "fail", "ok")
        (report,) = (config.daemon.state_dir / "field-tests").glob("gcp-*.json")
        assert json.loads(report.read_text())["proof"] == "none"
    assert {machine["status"] for machine in google.machines.values()} <= {"STOPPING"}
    assert (google.launched, notebook.read()) == (1, None)


# -- with a daemon beside it ---------------------------------------------------------------------------------


async def test_what_the_daemon_listens_to_is_left_to_it(
    account: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(field, "_answers", lambda _config: True)
    one = field.subject(load_config(account.config()), "aws")
    async with field._ports(one, SystemClock()) as (_, cloud):
        assert set(cloud.unheard) == {"aws-queue"}
        assert {source.name for source in cloud.sources} == {"aws-spot-requests", "aws-instance-status"}


def test_the_request_of_a_test_is_the_one_that_was_written_down() -> None:
    command = EngineCommand(argv=("x",))
    request = left().request(command)
    assert (request.token, request.pool, request.placement) == ("field-test/1-0", "llama", PLACE)
    assert request.command == command
