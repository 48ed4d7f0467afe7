"""A field test of each kind of cloud, on its stand-in: what is done, heard and reported, and what is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aws_stage import free_port
from azure_stage import (
    GROUP,
    IMAGE,
    REGION,
    SIZE,
    SSH_KEY,
    SUBSCRIPTION,
    AzureStandIn,
    running_stand_in,
    subnet,
)
from node_bench import SECRET
from played_sky import PlayedCloud
from sky_stage import PLAYED

from cloud.clock import SystemClock
from cloud.kinds import KINDS
from cloud.node_agent import SCHEMA, node_key, signature
from orchestrator.config.load import Config, build_config, load_config
from orchestrator.doctor import field, field_steps, short_lived
from orchestrator.doctor.field_kinds import FIELD
from orchestrator.doctor.findings import State
from orchestrator.doctor.try_node import offer
from orchestrator.doctor.unfinished import Notebook
from orchestrator.wiring import skypilot as wiring_of_skypilot
from orchestrator.wiring.clouds import WIRING
from policies.model import Market
from tests.support.gcp_stand_in import GcpStandIn

LIFE = ["accepted", "replayed", "listed", "running"]
END = ["ended", "gone", "replayed after the end", "report"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins are quick, so looks at them are."""
    monkeypatch.setattr(short_lived, "PAUSE", 0.05)
    monkeypatch.setattr(field_steps, "PAUSE", 0.05)
    monkeypatch.setattr(field_steps, "_LATE", 3.0)


class Run:
    """A field test that has run."""

    def __init__(self, config: Config, tested: field.Tested) -> None:
        self.steps = [(one.finding.subject, one.finding.state) for one in tested.steps]
        self.texts = {one.finding.subject: one.finding for one in tested.steps}
        self.report = json.loads(tested.files[0].read_text())
        self.text = tested.files[1].read_text()
        self.left = Notebook(config.daemon.state_dir).read()


async def run_on(kind: Any, config: Config, market: Market = Market.SPOT) -> Run:
    clock = SystemClock()
    one = field.subject(config, kind)
    offered = await offer(config, clock, market)
    assert not offered.refusal
    notebook = Notebook(config.daemon.state_dir)
    return Run(config, await field.test(one, clock, offered, notebook, lambda _text: None))


def well(*steps: str) -> list[tuple[str, State]]:
    return [(step, State.OK) for step in steps]


def skipped(step: str) -> tuple[str, State]:
    return step, State.SKIPPED


def pool(
    directory: Path, cloud: dict[str, Any], daemon: dict[str, Any] | None = None, **tables: Any
) -> Config:
    """A pool on a cloud, with a state directory of its own."""
    llama = {
        "replicas": 2,
        "model": "m",
        "engine": {"kind": "vllm"},
        "limits": {"spend_per_hour": 99},
        "cloud": cloud,
        **tables,
    }
    return build_config({"daemon": {"state_dir": str(directory), **(daemon or {})}, "pool": {"llama": llama}})


def test_every_kind_that_takes_machines_says_how_and_has_somebody_who_does_it() -> None:
    for kind, row in KINDS.items():
        assert (row.preemption is None) == (WIRING[kind].preempt is None)
        assert (FIELD[kind] is None) == row.here


# -- Google Cloud --------------------------------------------------------------------------------------------


@pytest.fixture
async def google() -> AsyncIterator[GcpStandIn]:
    stand_in = GcpStandIn(project="ppppppp")
    await stand_in.open()
    yield stand_in
    await stand_in.close()


def on_gcp(google: GcpStandIn, directory: Path) -> Config:
    gcp = {
        "project": google.project,
        "instance_types": ["g2-standard-4"],
        "image": "projects/ppppppp/global/images/i",
        "endpoint": google.url,
        "poll_operations": "0.2s",
        "regions": {"us-central1": {"zones": list(google.zones)}},
    }
    return pool(directory, {"kind": "gcp", "gcp": gcp})


async def test_google_cloud(google: GcpStandIn, tmp_path: Path) -> None:
    found = await run_on("gcp", on_gcp(google, tmp_path))
    assert found.steps == [
        *well(*LIFE),
        skipped("stopped"),  # a spot machine
        *well("preempted", "noticed", "taken", *END),
    ]
    assert [notice["source"] for notice in found.report["notices"]] == ["gcp-operations"]
    assert any(call.endswith("/simulateMaintenanceEvent") for call in google.calls)
    assert (google.launched, google.machines, found.left) == (1, {}, None)
    assert (found.report["proof"], found.report["provider"]) == ("stand-in", "gcp")
    assert "ppppppp" not in json.dumps(found.report) + found.text


async def test_google_cloud_on_demand(google: GcpStandIn, tmp_path: Path) -> None:
    found = await run_on("gcp", on_gcp(google, tmp_path), Market.ON_DEMAND)
    assert found.steps == [*well(*LIFE, "stopped", "started"), skipped("preempted"), *well(*END)]
    assert google.machines == {}


async def test_a_maintenance_that_google_refuses(google: GcpStandIn, tmp_path: Path) -> None:
    google.fault("simulateMaintenanceEvent", status=403, reason="forbidden")
    found = await run_on("gcp", on_gcp(google, tmp_path))
    assert found.steps == [*well(*LIFE), skipped("stopped"), skipped("preempted"), *well(*END)]
    assert "compute.instances.simulateMaintenanceEvent" in found.texts["preempted"].advice


# -- Azure ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def azure_process() -> Iterator[AzureStandIn]:
    pytest.importorskip("azure.mgmt.compute", reason="the extra [azure] is not installed")
    with running_stand_in() as stand_in:
        yield stand_in


def on_azure(azure: AzureStandIn, directory: Path, **tables: Any) -> Config:
    table = {
        "subscription": SUBSCRIPTION,
        "instance_types": [SIZE],
        "image": IMAGE,
        "ssh_public_key": SSH_KEY,
        "endpoint": azure.url,
        "prices_endpoint": f"{azure.url}/api/retail/prices",
        "regions": {REGION: {"resource_group": GROUP, "subnet": subnet(), "zones": ["1", "2"]}},
    }
    return pool(directory, {"kind": "azure", "azure": table}, **tables)


async def _agent(azure: AzureStandIn, url: str) -> None:
    """The agent of the only machine: it reports, and tells of the preemption that its metadata shows."""
    sequence, session = 0, ""
    async with aiohttp.ClientSession() as http:
        while True:
            await asyncio.sleep(0.05)
            for node in await asyncio.to_thread(azure.living, "llama"):
                events = f"{azure.url}/_imds/{node}/metadata/scheduledevents"
                async with http.get(events, headers={"Metadata": "true"}) as answer:
                    told = (await answer.json())["Events"] if answer.status == 200 else []
                sequence += 1
                now = SystemClock().now()
                report = {
                    "schema": SCHEMA,
                    "node": node,
                    "session": session,
                    "sequence": sequence,
                    "at": now,
                    "notices": [
                        {"kind": "interruption", "event": one["EventId"], "deadline": now + 5} for one in told
                    ],
                }
                raw = orjson.dumps(report)
                headers = {
                    "Content-Type": "application/json",
                    "X-Node-Signature": signature(node_key(SECRET, node), node, raw),
                }
                with contextlib.suppress(aiohttp.ClientError):  # nobody listens yet, or any more
                    async with http.post(
                        f"{url}/v1/nodes/{node}/report", data=raw, headers=headers
                    ) as answer:
                        if answer.status == 409:
                            said = await answer.json()
                            session, sequence = said["session"], said["sequence"]


async def test_azure_with_an_agent_that_tells(azure_process: AzureStandIn, tmp_path: Path) -> None:
    azure_process.order("reset")
    azure_process.order("set", notice=2.0)
    secret, port = tmp_path / "secret", free_port()
    secret.write_bytes(SECRET + b"\n")
    secret.chmod(0o600)
    agents = {"listen": f"127.0.0.1:{port}", "secret_file": str(secret)}
    agent = asyncio.create_task(_agent(azure_process, f"http://127.0.0.1:{port}"))
    try:
        found = await run_on("azure", on_azure(azure_process, tmp_path, agents=agents))
    finally:
        agent.cancel()
    turn = ["agent heard", "stopped", "started", "preempted", "noticed"]
    assert [step for step, _ in found.steps] == [*LIFE, *turn, "taken", *END]
    assert {state for step, state in found.steps if step != "taken"} == {State.OK}
    assert [notice["source"] for notice in found.report["notices"]] == ["node-agent"]
    assert azure_process.order("left") == {"machines": [], "disks": [], "interfaces": []}
    assert SUBSCRIPTION not in json.dumps(found.report) + found.text
    assert GROUP not in found.text


async def test_azure_without_agents_hears_nothing_and_says_so(
    azure_process: AzureStandIn, tmp_path: Path
) -> None:
    azure_process.order("reset")
    azure_process.order("set", notice=0.2)
    found = await run_on("azure", on_azure(azure_process, tmp_path))
    assert skipped("noticed") in found.steps
    assert "agents.listen" in found.texts["noticed"].advice
    assert azure_process.order("left")["machines"] == []


# -- AWS -----------------------------------------------------------------------------------------------------


def states(account: Any) -> list[str]:
    return [machine["state"] for machine in account.shim.order("machines")["machines"]]


async def test_aws_with_an_experiment_of_fis(account: Any) -> None:
    account.shim.order("set", experiment_notice=1.0)
    account.settings["poll_spot_requests"] = "0.5s"
    before = account.client("fis").list_experiment_templates()["experimentTemplates"]
    found = await run_on("aws", load_config(account.config()))
    assert found.steps[:7] == [*well(*LIFE), skipped("stopped"), *well("preempted", "noticed")]
    assert found.steps[-5:] == well("taken", *END)
    heard = {notice["source"] for notice in found.report["notices"]}
    assert heard == {"aws-queue", "aws-spot-requests"}
    assert states(account) == ["terminated"]
    assert account.shim.order("calls").get("RunInstances") == 3  # the launch, and two replays
    assert account.client("fis").list_experiment_templates()["experimentTemplates"] == before
    assert "123456789012" not in json.dumps(found.report) + found.text


# -- SkyPilot ------------------------------------------------------------------------------------------------


async def test_skypilot_has_no_preemption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = wiring_of_skypilot.HelperSettings
    monkeypatch.setattr(wiring_of_skypilot, "HelperSettings", partial(settings, entry=(str(PLAYED),)))
    table = {
        "python": sys.executable,
        "cloud": "aws",
        "instance_types": ["g6.xlarge"],
        "endpoint": "http://127.0.0.1:9",
        "regions": {
            "us-east-1": {"zones": ["us-east-1a"], "network": "sg-12345678", "image": "ami-12345678"}
        },
    }
    seldom = {"call_timeout": "30s", "poll_instances": "30s"}
    patient = {"stale_after": "2m"}
    config = pool(tmp_path, {"kind": "skypilot", "skypilot": table}, seldom, patience=patient)
    found = await run_on("skypilot", config)
    played = PlayedCloud(config.pool.cloud.skypilot.home)
    try:
        assert [machine["state"] for machine in played.machines()] == ["terminated"]
    finally:
        played.close()
    assert found.steps == [*well(*LIFE), skipped("stopped"), skipped("preempted"), *well(*END)]
    assert (found.report["cloud"], found.report["proof"]) == ("aws", "stand-in")
