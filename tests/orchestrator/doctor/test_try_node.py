"""`orchestrator doctor --try-node` as a process, on the stand-in for AWS with engines on its machines."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import sys
from typing import Any

import pytest
from aws_stage import MODEL, EnginesHere, free_port, kept

from orchestrator.__main__ import main
from orchestrator.doctor.findings import State

STEPS = ["accepted", "running", "address", "port open", "healthy", "model listed", "first token", "ended"]
DYING = ("shutting-down", "terminated")


@pytest.fixture
def trying(account: Any) -> Any:
    """The account with an engine port of its own, and a pool of the model that its engines serve."""
    account.settings["engine_port"] = free_port("127.79.0.0")
    account.pool["model"] = MODEL
    return account


def machines(account: Any) -> list[str]:
    """The states of the machines that were launched."""
    return [machine["state"] for machine in account.shim.order("machines")["machines"]]


@contextlib.asynccontextmanager
async def process(account: Any, *words: str) -> Any:
    """The command, which is gone afterwards."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator", "doctor", "--config", str(account.config())),
        *("--try-node", "on-demand", "--yes", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()


async def line_with(running: Any, text: str) -> str:
    """The first line of its standard error with this text."""
    while line := (await running.stderr.readline()).decode():
        if text in line:
            return line
    raise AssertionError(f"it never said {text!r}")


async def test_one_node_is_launched_followed_and_ended(trying):
    async with (
        kept(EnginesHere(trying.shim, trying.settings["engine_port"])),
        process(trying, "-o", "json") as running,
    ):
        out, error = await running.communicate()
    view = json.loads(out)
    found = [(row["subject"], row["state"]) for row in view["findings"]]
    assert found == [(step, "ok") for step in STEPS], error.decode()
    assert (running.returncode, view["schema"], view["ok"]) == (0, "doctor/1", True)
    assert {(row["group"], row["check"]) for row in view["findings"]} == {("launch", "try-node")}
    seconds = [row["seconds"] for row in view["findings"]]
    assert seconds == sorted(seconds)
    assert [state in DYING for state in machines(trying)] == [True]
    assert trying.shim.order("machines")["machines"][0]["pool"] == "llama"
    assert "first token" in error.decode()


async def test_a_node_that_cannot_start_says_why_and_exits_1(trying):
    fault = {"code": "Client.InternalError", "message": "Client error on launch", "after": 0.05}
    trying.shim.order("set", launch_faults={"*": fault}, console={"*": "no key, no disk"})
    async with process(trying, "-o", "json") as running:
        out, _ = await running.communicate()
    rows = {row["subject"]: row for row in json.loads(out)["findings"]}
    assert running.returncode == 1
    assert "Client.InternalError" in rows["running"]["text"]
    assert "no key, no disk" in rows["console"]["text"]
    assert rows["ended"]["state"] == "ok"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_node_before_the_command(trying, number):
    trying.shim.order("set", end=30.0)
    async with process(trying) as running:
        await line_with(running, "ok       address")
        running.send_signal(number)
        await line_with(running, "the node is being ended")
        running.send_signal(number)  # impatience changes nothing
        out, _ = await running.communicate()
    assert running.returncode == 1
    assert "interrupted" in out.decode()
    assert machines(trying) == ["shutting-down"]


def run(account: Any, *words: str) -> int:
    return main(["doctor", "--config", str(account.config()), "--try-node", "on-demand", *words])


@pytest.mark.parametrize("answer", ["no\n", "\n", ""])
def test_it_asks_with_the_price_and_launches_nothing_without_a_yes(trying, capsys, monkeypatch, answer):
    trying.region_settings["on_demand_prices"] = {"g6e.12xlarge": "10.50", "p5.4xlarge": "6.88"}
    answers = io.StringIO(answer)
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answers)
    assert run(trying) == 1
    asked = capsys.readouterr().err
    assert "Launch one p5.4xlarge on-demand in us-east-1a for up to 15m, at $6.88 an hour, $1.72 at" in asked
    assert "up to $10.50 an hour" in asked
    assert not machines(trying)


def test_where_nobody_can_answer_it_wants_yes(trying, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run(trying) == 1
    assert "--yes" in capsys.readouterr().err
    assert not machines(trying)


def test_it_does_not_go_beyond_the_spend_cap(trying, capsys):
    trying.region_settings["on_demand_prices"] = {"g6e.12xlarge": "10.50", "p5.4xlarge": "6.88"}
    trying.pool.update(replicas=1, on_demand_floor=0)
    trying.limits["spend_per_hour"] = "3.00"
    assert run(trying, "--yes") == 1
    assert "nothing was launched: the spend cap of 3.00 USD/h" in capsys.readouterr().err
    assert not machines(trying)


@pytest.mark.parametrize("words", [("--fix",), ("--only", "aws")])
def test_it_runs_by_itself(trying, words):
    assert run(trying, *words) == 2


def test_it_needs_to_know_what_to_launch():
    assert main(["doctor", "--try-node", "spot"]) == 2


# -- a node that runs already --------------------------------------------------------------------------------


def machine_of_the_pool(account: Any) -> str:
    """A running machine with the pool's tag; its id."""
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "orchestrator:pool", "Value": "llama"}]}]
    subnet = next(iter(account.network.subnets.values()))
    made = account.client("ec2").run_instances(
        ImageId=account.network.image, SubnetId=subnet, MinCount=1, MaxCount=1, TagSpecifications=tags
    )
    return str(made["Instances"][0]["InstanceId"])


async def test_a_running_node_is_looked_at(trying):
    node = machine_of_the_pool(trying)
    while machines(trying) != ["running"]:
        pass  # the stand-in is another process
    (found,) = (await trying.findings("aws", "launch"))["launch/node"]
    assert (found.state, "connection refused" in found.text) == (State.WARN, True)
    async with kept(EnginesHere(trying.shim, trying.settings["engine_port"])):
        while found.state is not State.OK:
            (found,) = (await trying.findings("aws", "launch"))["launch/node"]
    assert node in found.text


async def test_without_a_node_nobody_says_that_all_is_well(trying, capsys):
    (found,) = (await trying.findings("aws", "launch"))["launch/node"]
    assert (found.state, "--try-node on-demand" in found.advice) == (State.SKIPPED, True)
    assert await asyncio.to_thread(
        main, ["doctor", "--config", str(trying.config()), "--only", "aws", "launch"]
    ) in (0, 1)
    last = " ".join(capsys.readouterr().out.split()).rpartition(" skipped. ")[2]
    assert last.startswith("No node runs, so nobody has seen one boot")
    assert last.endswith("--try-node on-demand` launches one node and tells.")
