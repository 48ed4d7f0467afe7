"""GPUs in trouble, from what drivers say to a new node: agents, exporters, daemon, Prometheus, Alertmanager.

What drivers and exporters say is recorded, see tests/support/gpus/README: an nvidia-smi that prints files, a
library that answers as NVML does, expositions of the DCGM exporter. The engines are simulated.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from alerting import Monitoring, free_port, running_monitoring
from node_bench import RECORDED, SECRET, Machine, fake_nvml, running_imds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.debian("prometheus", package="prometheus"),
    pytest.mark.debian("prometheus-alertmanager", package="prometheus-alertmanager"),
]

BOOT_DELAY = 2.0
PORT = free_port()
DCGM = free_port()
CHANGES: dict[str, dict[str, object]] = {
    "pool.test.gpu": {
        "throttled_for": "6s",
        "slow_share": 0.5,
        "slow_for": "6s",
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
    """Prometheus and Alertmanager with the shipped rules; minutes are seconds."""

    def quick(text: str) -> str:
        text = re.sub(r"\b(for|interval|\w+_interval|group_wait): \w+", r"\1: 1s", text)
        return re.sub(r"(orchestrator_node_\w+_seconds\)) > 300", r"\1 > 2", text)

    async with running_monitoring(module_stack, tmp_path_factory.mktemp("monitoring"), quick) as found:
        yield found


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
        machine.start("--url", f"http://127.0.0.1:{PORT}", *more)
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
    await stack.settled()
    node = (await stack.a_node("spot"))["id"]
    machine = agent(node)
    await known(stack, node, "agent")
    assert await watched.numbers(f'orchestrator_node_gpus_ask{{node="{node}",remedy="reset"}}') in ([], [0.0])
    async with stack.traffic() as traffic:
        machine.record("xid48")
        events = await replaced(stack, watched, node, "OrchestratorGpuBroken")
    assert traffic.report.failed == 0, traffic.report
    reason, cause, orderly = course(events)
    assert reason.startswith("Xid 48: a double-bit error in GPU memory; it asks for a reset of the GPU")
    assert (cause, orderly) == ("gpu", True)
    assert await watched.numbers(f'{{__name__=~"orchestrator_.*gpu.*",node="{node}"}}') == []


async def test_memory_errors_that_nvml_counts_drain_and_replace_the_node(
    stack: Any, watched: Monitoring, agent: Any, library: Path
) -> None:
    await stack.settled()
    node = (await stack.a_node("on-demand"))["id"]
    machine = agent(node, library=library)
    assert (await known(stack, node, "agent"))["gpus"][0]["power_w"] == pytest.approx(512.34)
    async with stack.traffic() as traffic:
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
    node, said = found["id"], "dcgm_healthy"

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=(RECORDED / f"{said}.prom").read_text())

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, found["address"].rpartition(":")[0], DCGM).start()
        view = await known(stack, node, "dcgm")
        assert view["gpus"][0]["temperature_c"] == 61.0
        assert "exporter" in (await stack.cli("node", node)).out
        async with stack.traffic() as traffic:
            said = "dcgm_xid48"
            events = await replaced(stack, watched, node, "OrchestratorGpuBroken")
        assert traffic.report.failed == 0, traffic.report
    finally:
        await runner.cleanup()
    reason, cause, orderly = course(events)
    assert reason.startswith("Xid 48: a double-bit error in GPU memory")
    assert (cause, orderly) == ("gpu", True)


async def test_a_gpu_that_heat_throttles_is_replaced_once_another_node_is_ready(
    stack: Any, watched: Monitoring, agent: Any, library: Path
) -> None:
    await stack.settled()
    node = (await stack.a_node("spot"))["id"]
    machine = agent(node, library=library)
    await known(stack, node, "agent")
    async with stack.traffic() as traffic:
        machine.record("throttled")
        events = await replaced(stack, watched, node, "OrchestratorGpuThrottled")
    assert traffic.report.failed == 0, traffic.report
    reason, cause, orderly = course(events)
    assert re.match(r"throttled for \d+ s: thermal slowdown by hardware", reason), reason
    assert (cause, orderly) == ("gpu-doubt", True)
    drained = next(e["at"] for e in events if e["kind"] == "DrainStarted")
    ready = [e for e in await stack.events() if e["kind"] == "NodeReady" and e["at"] <= drained]
    gone = [e for e in await stack.events() if e["kind"] == "NodeGone" and e["at"] <= drained]
    assert len(ready) - len(gone) > 4, "one more than wanted was ready when it began to drain"


async def test_a_node_that_is_slower_than_its_peers_is_replaced(stack: Any, watched: Monitoring) -> None:
    """Its engine makes a tenth of the tokens; nothing else says so."""
    await stack.settled()
    found = await stack.a_node("spot")
    node = found["id"]
    async with stack.traffic(rate=10.0, longest=150) as traffic:
        await traffic.answers(40)
        url = f"http://{found['address']}/faults/slow"
        async with aiohttp.ClientSession() as http, http.post(url, json={"factor": 10.0}) as answer:
            assert answer.status == 200, await answer.text()
        events = await replaced(stack, watched, node, "OrchestratorNodeSlow")
    assert traffic.report.failed == 0, traffic.report
    reason, cause, orderly = course(events)
    assert re.match(r"slow for \d+ s: \d+% of the tokens a second of its peers", reason), reason
    assert (cause, orderly) == ("gpu-doubt", True)


async def test_an_error_that_a_program_made_is_told_and_replaces_nothing(
    stack: Any, watched: Monitoring, agent: Any
) -> None:
    await stack.settled()
    node = (await stack.a_node("spot"))["id"]
    machine = agent(node)
    await known(stack, node, "agent")
    machine.record("app")
    await told(stack, watched, "OrchestratorGpuErrors", "firing", node)
    view = await known(stack, node, "agent")
    assert [(x["code"], x["asks"], x["fatal"]) for x in view["xids"]] == [
        (31, "restart", False),
        (43, "nothing", False),
    ]
    await stack.turns(20)
    assert (await stack.nodes())[node]["phase"] == "ready"
    assert "GpuCondemned" not in {e["kind"] for e in await stack.events() if e["data"].get("node") == node}
    machine.close()
    await stack.admin("reclaim", node=node, notice_s=1)  # its errors go with it
    await stack.settled()
