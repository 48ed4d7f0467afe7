"""GPUs in trouble, from what drivers say to a new node: agents, exporters, daemon, Prometheus, Alertmanager.

What drivers and exporters say is recorded, see tests/support/gpus/README: an nvidia-smi that prints files, a
library that answers as NVML does, expositions of the DCGM exporter. The engines are simulated.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from alerting import Monitoring, free_port, running_monitoring
from node_bench import RECORDED, SECRET, SELDOM, Machine, fake_nvml, running_imds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.debian("prometheus", package="prometheus"),
    pytest.mark.debian("prometheus-alertmanager", package="prometheus-alertmanager"),
]

BOOT_DELAY = 1.0
ALERTS = ("OrchestratorGpu", "OrchestratorNodeSlow")
PORT = free_port()
DCGM = free_port()
CHANGES: dict[str, dict[str, object]] = {
    "daemon": dict.fromkeys(("tick", "poll_instances", "poll_targets", "probe_interval"), "500ms"),
    "pool.test.gpu": {
        "throttled_for": "4s",
        "slow_share": 0.6,
        "slow_for": "4s",
        "again_after": "1s",
        "dcgm_port": DCGM,
    },
    "pool.test.engine": {"args": ["--load-time", "0.2", "--tokens-per-second", "50", "--faults"]},
    # A node that goes is there for some scrapes, so that the alert of it is heard before it is taken back.
    "pool.test.drain": {"budget": "10s", "settle": "4s"},
}


@pytest.fixture(scope="module", autouse=True)
def agents_may_report(tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    CHANGES["pool.test.agents"] = {"listen": f"127.0.0.1:{PORT}", "secret_file": str(secret)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(module_stack: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Monitoring]:
    """Prometheus and Alertmanager with the shipped rules on GPUs; minutes are seconds."""

    def quick(text: str) -> str:
        if "groups:" in text:
            text = yaml.safe_dump(only_on_gpus(yaml.safe_load(text)), width=10_000)
        text = re.sub(r"\b(for|interval|\w+_interval|group_wait): \w+", r"\1: 1s", text)
        return re.sub(r"(orchestrator_node_\w+_seconds\)) > 300", r"\1 > 2", text)

    async with running_monitoring(module_stack, tmp_path_factory.mktemp("monitoring"), quick) as found:
        yield found


def only_on_gpus(rules: dict[str, Any]) -> dict[str, Any]:
    """Rules without those that nobody waits for here: each is asked of Prometheus every second."""
    for group in rules["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert", "").startswith(ALERTS)]
    return rules


@pytest.fixture(scope="module")
def imds() -> Iterator[Any]:
    with running_imds() as made:
        yield made


@pytest.fixture
def agent(imds: Any, tmp_path: Path) -> Iterator[Any]:
    """Starts an agent for a node: one whose GPUs nvidia-smi knows, or NVML."""
    machines: list[Machine] = []

    def start(node: str, *, library: Path | None = None) -> Machine:
        machine = Machine(imds, tmp_path, id=node)
        machines.append(machine)
        machine.record("healthy")
        more = ("--nvml", str(library)) if library is not None else ()
        machine.start("--url", f"http://127.0.0.1:{PORT}", *SELDOM, *more)
        return machine

    yield start
    for machine in machines:
        machine.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = fake_nvml(tmp_path_factory.mktemp("nvml"))
    if made is None:
        pytest.skip("there is no C compiler to make a library with")
    return made


async def known(stack: Any, node: str, source: str) -> Any:
    """What the daemon knows of a node's GPUs, once it has it from there."""

    async def read() -> Any:
        gpus = (await asyncio.to_thread(stack.client.node, node))["gpus"]
        return gpus if gpus is not None and gpus["source"] == source and gpus["gpus"] else None

    return await stack.until(f"the GPUs of {node} are read by its {source}", read)


async def told(stack: Any, watched: Monitoring, alert: str, status: str, node: str) -> dict[str, Any]:
    """The alert about a node, once Alertmanager has told the webhook of it."""

    async def heard() -> Any:
        return next(
            (
                found
                for _, said, found in watched.webhook.received
                if (found["labels"]["alertname"], found["labels"].get("node"), said) == (alert, node, status)
            ),
            None,
        )

    found: dict[str, Any] = await stack.until(f"{alert} is {status} for {node}", heard)
    return found


async def replaced(stack: Any, watched: Monitoring, node: str, alert: str) -> list[dict[str, Any]]:
    """The node is told of, drained, replaced, and the alert taken back; what the journal says of it."""
    fired = await told(stack, watched, alert, "firing", node)
    assert (fired["labels"]["pool"], fired["labels"]["severity"]) == ("test", "warning")
    assert fired["annotations"]["runbook_url"] == f"docs/runbooks/{alert}.md"

    async def gone() -> bool:
        return node not in await stack.nodes()

    await stack.until(f"{node} is gone", gone)
    await stack.settled()
    await told(stack, watched, alert, "resolved", node)
    await stack.until("nothing of it is left", lambda: watched.silent(alert))
    return [e for e in await stack.events() if node in (e["node"], e["data"].get("node"))]


def course(events: list[dict[str, Any]]) -> tuple[str, str, bool]:
    """Why a node was to go, why it drained, and that it was drained before it ended."""
    (condemned,) = [e["data"] for e in events if e["kind"] == "GpuCondemned"]
    (drain,) = [e["data"] for e in events if e["kind"] == "DrainStarted"]
    kinds = [e["kind"] for e in events]
    orderly = kinds.index("GpuCondemned") < kinds.index("DrainStarted") < kinds.index("NodeGone")
    assert drain["reason"] == condemned["reason"]
    return condemned["reason"], drain["cause"], orderly


async def test_xid_48_in_the_kernel_log_drains_and_replaces_the_node(
    stack: Any, watched: Monitoring, agent: Any
) -> None:
    """On another node a program made errors: that is told, and replaces nothing."""
    await stack.settled()
    node, other = (await stack.a_node("spot"))["id"], (await stack.a_node("on-demand"))["id"]
    machine, beside = agent(node), agent(other)
    for each in (node, other):
        await known(stack, each, "agent")
    assert await watched.numbers(f'orchestrator_node_gpus_ask{{node="{node}",remedy="reset"}}') in ([], [0.0])
    async with stack.traffic(rate=5.0) as traffic:
        beside.record("app")
        machine.record("xid48")
        events = await replaced(stack, watched, node, "OrchestratorGpuBroken")
    assert traffic.report.failed == 0, traffic.report
    reason, cause, orderly = course(events)
    assert reason.startswith("Xid 48: a double-bit error in GPU memory; it asks for a reset of the GPU")
    assert (cause, orderly) == ("gpu", True)
    assert await watched.numbers(f'{{__name__=~"orchestrator_.*gpu.*",node="{node}"}}') == []

    await told(stack, watched, "OrchestratorGpuErrors", "firing", other)
    view = await known(stack, other, "agent")
    assert [(x["code"], x["asks"], x["fatal"]) for x in view["xids"]] == [
        (31, "restart", False),
        (43, "nothing", False),
    ]
    assert (await stack.nodes())[other]["phase"] == "ready"
    assert "GpuCondemned" not in {e["kind"] for e in await stack.events() if e["data"].get("node") == other}


async def test_memory_errors_that_nvml_counts_drain_and_replace_the_node(
    stack: Any, watched: Monitoring, agent: Any, library: Path
) -> None:
    await stack.settled()
    node = (await stack.a_node("spot"))["id"]
    machine = agent(node, library=library)
    assert (await known(stack, node, "agent"))["gpus"][0]["power_w"] == pytest.approx(512.34)
    async with stack.traffic(rate=5.0) as traffic:
        machine.record("ecc")
        events = await replaced(stack, watched, node, "OrchestratorGpuBroken")
    assert traffic.report.failed == 0, traffic.report
    reason, cause, orderly = course(events)
    assert reason.startswith("GPU 0: 2 uncorrected memory errors; it asks for a reset of the GPU")
    assert (cause, orderly) == ("gpu", True)


async def test_an_xid_that_only_an_exporter_tells_of_drains_and_replaces_the_node(
    stack: Any, watched: Monitoring
) -> None:
    """No agent runs on the node; the daemon reads the DCGM exporter there."""
    await stack.settled()
    found = await stack.a_node("spot")
    node, exposition = found["id"], (RECORDED / "dcgm_xid48.prom").read_text()

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=exposition)

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        async with stack.traffic(rate=5.0) as traffic:
            await web.TCPSite(runner, found["address"].rpartition(":")[0], DCGM).start()
            view = await known(stack, node, "dcgm")
            assert view["gpus"][0]["temperature_c"] == 61.0
            events = await replaced(stack, watched, node, "OrchestratorGpuBroken")
        assert traffic.report.failed == 0, traffic.report
    finally:
        await runner.cleanup()
    reason, cause, orderly = course(events)
    assert reason.startswith("Xid 48: a double-bit error in GPU memory")
    assert (cause, orderly) == ("gpu", True)


async def test_throttled_and_slow_nodes_are_replaced_one_by_one_once_another_is_ready(
    stack: Any, watched: Monitoring, agent: Any, library: Path
) -> None:
    """One tells of heat. The engine of the other makes a tenth of the tokens, and nothing else says so."""
    await stack.settled()
    hot = (await stack.a_node("spot"))["id"]
    found = next(n for n in (await stack.nodes()).values() if n["id"] != hot)
    machine = agent(hot, library=library)
    await known(stack, hot, "agent")
    async with stack.traffic(rate=8.0, longest=150) as traffic:
        await traffic.answers(40)
        url = f"http://{found['address']}/faults/slow"
        async with aiohttp.ClientSession() as http, http.post(url, json={"factor": 10.0}) as answer:
            assert answer.status == 200, await answer.text()
        machine.record("throttled")
        throttled, slow = await asyncio.gather(
            replaced(stack, watched, hot, "OrchestratorGpuThrottled"),
            replaced(stack, watched, found["id"], "OrchestratorNodeSlow"),
        )
    assert traffic.report.failed == 0, traffic.report
    for events, pattern in (
        (throttled, r"throttled for \d+ s: thermal slowdown by hardware"),
        (slow, r"slow for \d+ s: \d+% of the tokens a second of its peers"),
    ):
        reason, cause, orderly = course(events)
        assert re.match(pattern, reason), reason
        assert (cause, orderly) == ("gpu-doubt", True)
        drained = next(e["at"] for e in events if e["kind"] == "DrainStarted")
        until = Counter(e["kind"] for e in await stack.events() if e["at"] <= drained)
        assert until["NodeReady"] - until["NodeGone"] > 4, (
            "one more than wanted was ready when it began to drain"
        )
