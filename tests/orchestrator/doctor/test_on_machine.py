"""The checks of a configuration on this machine without a daemon, broken one thing at a time."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from orchestrator.api.client import ControlClient
from orchestrator.doctor.assembly import examine
from orchestrator.doctor.findings import Finding, State
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import SCHEMA_VERSION

LOCAL = ("host", "config", "state", "daemon", "pool")


async def findings(file: Path | None, *only: str) -> dict[str, list[Finding]]:
    results = await examine(file, only or LOCAL, SystemClock(), lambda _done, _waiting: None)
    return {result.check.title: list(result.findings) for result in results}


def configured(directory: Path, text: str = "") -> Path:
    file = directory / "pool.toml"
    file.write_text(f'[daemon]\nlisten = "off"\n[pool.llama]\nreplicas = 4\n{text}')
    return file


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


async def test_a_sound_machine_before_the_first_start(tmp_path):
    found = await findings(
        configured(tmp_path, "[pool.llama.gateway]\nmax_in_flight = 16\nqueue_limit = 16\n")
    )
    states = {title: {f.state for f in rows} for title, rows in found.items()}
    failed = {title for title, seen in states.items() if State.FAIL in seen}
    assert failed - {"daemon/ports"} == set(), found  # port 8000 may be anybody's here
    assert states["state/journal"] == states["state/lease"] == states["pool/drain"] == {State.OK}
    assert states["daemon/process"] == states["daemon/gateway"] == {State.WARN}
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("targets", "state", "text"),
    [
        ([{"continuation": {"way": "none", "why": "no ids", "identity": ""}}], State.WARN, "no ids"),
        ([{"continuation": {"way": "derender", "why": "", "identity": "m"}}], State.OK, "1 node"),
        ([{"continuation": None}], State.SKIPPED, "no target has been asked yet"),
        ([{}], State.SKIPPED, "no gateway answers that says"),
        ([{"continuation": 7}], State.SKIPPED, "no gateway answers that says"),
        ([], State.SKIPPED, "no target has been asked yet"),
    ],
    ids=str,
)
async def test_the_gateway_is_asked_whose_answers_others_can_finish(
    tmp_path, monkeypatch, targets, state, text
):
    """A gateway of an older version does not say it; that is no fault of the nodes."""
    rows = [{"id": "i-1", "phase": "active"} | row for row in targets]
    answer = {"targets": rows, "file_fault": ""}
    monkeypatch.setattr(ControlClient, "get", lambda _self, _path: answer)
    found = only((await findings(configured(tmp_path)))["daemon/continuation"])
    assert (found.state, text in found.text) == (state, True), found


async def test_without_a_configuration_the_machine_is_looked_at_and_the_rest_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_SOCKET", str(tmp_path / "none"))
    found = await findings(None)
    assert found["host/python"][0].state is State.OK
    assert {found[f"{group}/all"][0].state for group in ("state", "daemon", "pool")} == {State.SKIPPED}


async def test_a_journal_is_checked_without_being_changed(tmp_path):
    file, state = configured(tmp_path), tmp_path / "state"
    state.mkdir()
    store = SqliteStore.open(state / "journal.db", now=1.0, inline=True)
    await store.next_epoch(1.0)
    store.close()
    before = {p.name: p.read_bytes() for p in state.iterdir()}
    assert only((await findings(file, "state"))["state/journal"]).text == f"whole; of schema {SCHEMA_VERSION}"
    assert {p.name: p.read_bytes() for p in state.iterdir()} == before


@pytest.mark.parametrize(
    ("breaking", "text"),
    [
        (lambda journal: journal.write_bytes(b"not a database at all" * 100), "is not a journal"),
        (lambda journal: _set_schema(journal, SCHEMA_VERSION + 1), "newer version"),
        (lambda journal: _scribble(journal), ""),
    ],
)
async def test_a_journal_that_cannot_be_used(tmp_path, breaking, text):
    file, state = configured(tmp_path), tmp_path / "state"
    state.mkdir()
    SqliteStore.open(state / "journal.db", now=1.0, inline=True).close()
    breaking(state / "journal.db")
    found = only((await findings(file, "state"))["state/journal"])
    assert (found.state, text in found.text) == (State.FAIL, True)
    assert found.advice


def _set_schema(journal: Path, version: int) -> None:
    with sqlite3.connect(journal) as db:
        db.execute("UPDATE meta SET value=? WHERE key='schema'", (str(version),))
    db.close()


def _scribble(journal: Path) -> None:
    """Damage the pages behind the first, where the tables are."""
    data = bytearray(journal.read_bytes())
    data[4096 : 4096 * 3] = b"\xff" * 8192
    journal.write_bytes(data)


async def test_a_lease_that_nobody_holds_any_more(tmp_path):
    file, state = configured(tmp_path), tmp_path / "state"
    state.mkdir()
    (state / "lease").write_text(json.dumps({"who": "pid 4711 on host", "epoch": 3, "since": 1.0}))
    assert only((await findings(file, "state"))["state/lease"]).text == "free; pid 4711 on host held it last"
    (state / "lease").write_text("")
    assert "did not write its name" in only((await findings(file, "state"))["state/lease"]).text


async def test_a_port_that_somebody_else_holds(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        file = configured(
            tmp_path, f'[pool.llama.gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "off"\n'
        )
        monkeypatch.setattr("orchestrator.doctor.running._OURS", ("nobody",))
        found = only((await findings(file, "daemon"))["daemon/ports"])
        assert (found.state, f"127.0.0.1:{port} is held by pid" in found.text) == (State.FAIL, True)
        assert "gateway.listen" in found.advice


async def test_sources_of_notices_on_aws_and_their_time(tmp_path):
    aws: dict[str, Any] = {
        "pool.llama.engine": {"allow_simulated": True},
        "pool.llama.limits": {"spend_per_hour": "unlimited"},
        "pool.llama.cloud": {"kind": "aws"},
        "pool.llama.cloud.aws": {"instance_types": ["p5.4xlarge"], "poll_spot_requests": "20s"},
        "pool.llama.cloud.aws.regions.us-east-1": {
            "launch_template": "node",
            "notice_queue": "https://sqs.us-east-1.amazonaws.com/123456789012/notices",
        },
        "pool.llama.cloud.aws.regions.us-east-1.subnets": {
            "us-east-1a": "subnet-1",
            "us-east-1b": "subnet-2",
        },
        "pool.llama.drain": {"budget": "105s"},
    }
    lines = []
    for title, table in aws.items():
        lines.append(f"[{title}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    found = await findings(configured(tmp_path, "\n".join(lines) + "\n"), "pool")
    drains = {f.subject: f.state for f in found["pool/drain"]}
    assert drains == {"aws-spot-requests": State.FAIL, "aws-queue": State.OK}
    losses = {f.subject: f.text for f in found["pool/capacity"]}
    assert losses["one of 2 zones lost"].startswith("leaves 3 of 4 nodes")
    assert found["pool/engine"][0].state is State.SKIPPED
