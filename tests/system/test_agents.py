"""Node agents as processes that report to a daemon's listener: the third source of notices."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from node_bench import SECRET, Machine, make_certificate, running_imds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

XID = "4,1,2,-;NVRM: Xid (PCI:0000:00:1e): 79, pid='<unknown>', GPU has fallen off the bus.\n"


async def test_a_node_speaks_for_itself_and_is_replaced(new_stack: Any, tmp_path: Path) -> None:
    """Over TLS: what it says of its GPUs is shown; its notice, then a fatal GPU error, replace it."""
    nodes_directory = tmp_path / "nodes"
    nodes_directory.mkdir()
    certificate, private = make_certificate(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET + b"\n")
    secret.chmod(0o600)
    port = free_port()
    agents = {
        "listen": f"127.0.0.1:{port}",
        "secret_file": str(secret),
        "tls_cert_file": str(certificate),
        "tls_key_file": str(private),
    }
    health = {"unhealthy_after": "1s", "replace_after": "2s"}
    changes = {"pool.test.agents": agents, "pool.test.health": health}
    with running_imds() as imds:
        machines: list[Machine] = []
        try:
            async with new_stack(changes) as stack:
                await stack.settled()

                def run_agent(node: str) -> Machine:
                    machine = Machine(imds, nodes_directory, id=node)
                    machines.append(machine)
                    machine.start("--url", f"https://127.0.0.1:{port}", "--ca-file", str(certificate))
                    return machine

                async def heard(node: str) -> Any:
                    agent = (await asyncio.to_thread(stack.client.node, node))["agent"]
                    return agent if agent is not None and agent["errors"] == [] else None

                async def replaced(node: str) -> None:
                    await stack.until(f"{node} is gone", lambda: gone(stack, node))
                    await stack.settled()

                spot = (await stack.a_node("spot"))["id"]
                first = run_agent(spot)
                said = await stack.until("its agent is heard", lambda: heard(spot))
                assert said["gpus"][0]["name"] == "NVIDIA L40S"
                shown = (await stack.cli("node", spot)).out
                assert "0 NVIDIA L40S, 37 % busy, 40.0 of 45.0 GiB, 61 °C" in shown
                metrics = await stack.get(stack.monitoring_port, "/metrics")
                assert 'orchestrator_pool_agents_heard{pool="test"} 1.0' in metrics
                async with stack.traffic() as traffic:
                    first.order("interrupt", after=10)
                    await replaced(spot)
                    told = [e["data"]["notice"] for e in await stack.events() if e["kind"] == "NoticeSeen"]
                    assert {(n["node"], n["source"]) for n in told} == {(spot, "node-agent")}

                    sick = (await stack.a_node("on-demand"))["id"]
                    second = run_agent(sick)
                    await stack.until("its agent is heard", lambda: heard(sick))
                    with second.log.open("a") as log:
                        log.write(XID)
                    await replaced(sick)
                assert traffic.report.failed == 0, traffic.report
                reasons = [e["data"]["reason"] for e in await stack.events() if e["kind"] == "DrainStarted"]
                assert any("Xid 79: the GPU has fallen off the bus" in reason for reason in reasons)

                # The first node's agent goes on, with a key that was right: nobody listens to the dead.
                await stack.until("it is refused", lambda: refused(stack))
        finally:
            for machine in machines:
                machine.close()


async def gone(stack: Any, node: str) -> bool:
    return node not in await stack.nodes()


async def refused(stack: Any) -> bool:
    metrics = await stack.get(stack.monitoring_port, "/metrics")
    return 'orchestrator_pool_agent_reports_refused{pool="test",why="unknown-node"}' in metrics


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
