"""A real Prometheus and a real Alertmanager on a running pool, with rules, examples and dashboard as shipped.

Only addresses and times are changed: every interval is a second, so that minutes become seconds.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from orchestrator.monitoring import dashboard

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from alerting import Monitoring, free_port, running_monitoring
from node_bench import SECRET, Machine, running_imds

from tests.support.paid_provider import provider

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.debian("prometheus", package="prometheus"),
    pytest.mark.debian("prometheus-alertmanager", package="prometheus-alertmanager"),
]

BOOT_DELAY = 6.0  # a pool that lost a node is short for some scrapes
CHANGES: dict[str, dict[str, object]] = {}  # filled once there is a directory for the secret

XID = "4,1,2,-;NVRM: Xid (PCI:0000:00:1e): 31, pid=1, a fault of the application's own\n"


@pytest.fixture(scope="module", autouse=True)
def agents_may_report(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The pool takes reports of node agents, so that GPUs are shown."""
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    CHANGES["pool.test.agents"] = {"listen": f"127.0.0.1:{free_port()}", "secret_file": str(secret)}


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def paid_for() -> AsyncIterator[None]:
    """A route to a provider, for which another stands in, so that there is something to show of both."""
    async with provider() as api:
        for name in ("api", "spare"):
            url = f"http://127.0.0.1:{api.port}"
            CHANGES[f"provider.{name}"] = {"kind": "openai", "url": url, "usd_per_day": "5"}
            CHANGES[f"provider.{name}.price.m"] = {"input": "3", "output": "15"}
        backends = [{"provider": name, "model": "m"} for name in ("api", "spare")]
        CHANGES["[route]"] = {"models": ["paid"], "to": backends}
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(module_stack: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Monitoring]:
    """Both programs on the module's stack; they end with the module."""

    def quick(text: str) -> str:
        return re.sub(r"\b(for|interval|\w+_interval|group_wait): \w+", r"\1: 1s", text)

    async with running_monitoring(module_stack, tmp_path_factory.mktemp("monitoring"), quick) as found:
        yield found


@pytest.fixture(scope="module")
def imds() -> Iterator[Any]:
    with running_imds() as made:
        yield made


async def test_the_engines_are_found_through_the_daemon(stack: Any, watched: Monitoring) -> None:
    """Prometheus scrapes the nodes that there are, and after a swap the new one instead of the old."""

    async def scraped() -> bool:
        targets = (await watched.ask("targets", state="active"))["activeTargets"]
        engines = [t for t in targets if t["labels"]["job"] == "orchestrator-engines"]
        nodes = await stack.nodes()
        return {t["labels"]["node"]: t["health"] for t in engines} == dict.fromkeys(nodes, "up")

    await stack.until("all engines are scraped", scraped)
    doomed = await stack.a_node("spot")
    labels = f'pool="test",node="{doomed["id"]}",market="spot",zone="{doomed["zone"]}"'
    assert await watched.numbers(f"vllm:num_requests_running{{{labels}}}") == [0.0]
    await stack.admin("reclaim", node=doomed["id"], notice_s=3)
    await stack.until_pool("it is gone", lambda pool: doomed["id"] not in {n["id"] for n in pool["nodes"]})
    await stack.settled()
    await stack.until("the new one is scraped instead", scraped)
    for name in ("orchestrator_node_info", "orchestrator_engine_ready", "vllm:num_requests_running"):
        assert await watched.numbers(f'{name}{{node="{doomed["id"]}"}}') == [], f"{name} outlived its node"
    exporters = json.loads(
        (await stack.get(stack.monitoring_port, "/v1/sd?port=9400")).partition("\r\n\r\n")[2]
    )
    assert {group["labels"]["node"] for group in exporters} == set(await stack.nodes())
    assert all(group["targets"][0].endswith(":9400") for group in exporters)
    assert " 400 " in (await stack.get(stack.monitoring_port, "/v1/sd?port=x")).partition("\r\n")[0]


async def test_a_lost_node_is_told_to_people_and_taken_back(stack: Any, watched: Monitoring) -> None:
    """A node goes without notice: the chat hears that the pool is short, and then that it is whole."""
    await stack.settled()
    await stack.until("no alert of before is left", lambda: watched.silent("OrchestratorPoolShort"))
    watched.webhook.received.clear()
    lost = (await stack.a_node("spot"))["id"]
    await stack.admin("reclaim", node=lost, notice_s=0)

    async def heard(status: str) -> Any:
        return watched.webhook.heard("OrchestratorPoolShort", status)

    receiver, alert = await stack.until("the alert fires at the webhook", lambda: heard("firing"))
    assert receiver == "chat"
    assert alert["labels"] == {"alertname": "OrchestratorPoolShort", "pool": "test", "severity": "warning"}
    assert alert["annotations"]["summary"] == "Pool test has only 3 ready nodes."
    assert alert["annotations"]["runbook_url"] == "docs/runbooks/OrchestratorPoolShort.md"
    await stack.settled()
    receiver, _ = await stack.until("it is taken back", lambda: heard("resolved"))
    assert receiver == "chat"


async def test_the_way_to_the_pager_can_be_tried(stack: Any, watched: Monitoring) -> None:
    """The command of docs/how-to/alerts.md, with this Alertmanager's address."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "alerts.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"(?m)^amtool alert add .*$", page)
    words = shlex.split(line.replace("http://127.0.0.1:9093", watched.alertmanager))
    done = await asyncio.create_subprocess_exec(*words, env=stack.full_environment)
    assert await done.wait() == 0

    async def heard() -> Any:
        return watched.webhook.heard("OrchestratorTest", "firing")

    receiver, alert = await stack.until("the pager hears of it", heard)
    assert (receiver, alert["annotations"]["summary"]) == ("page", "A test")


async def test_a_daemon_that_is_gone_is_told_to_the_pager(stack: Any, watched: Monitoring) -> None:
    watched.webhook.received.clear()
    await stack.kill("daemon")

    async def heard(status: str) -> Any:
        return watched.webhook.heard("OrchestratorDaemonDown", status)

    receiver, _ = await stack.until("the pager hears of it", lambda: heard("firing"))
    assert receiver == "page"
    await stack.start("daemon")
    await stack.until("it is taken back", lambda: heard("resolved"))


async def asked_of_providers(stack: Any) -> None:
    """Some requests that are paid for."""
    body = {"model": "paid", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.post(f"{stack.url}/v1/chat/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()


async def test_every_panel_and_every_rule_has_an_answer(
    stack: Any, watched: Monitoring, imds: Any, tmp_path: Path
) -> None:
    """On a pool under load that lost nodes with notice, with agents on its nodes: no query is empty."""
    where = CHANGES["pool.test.agents"]["listen"]
    agents: list[Machine] = []
    try:
        async with stack.traffic():
            for market in ("spot", "on-demand"):
                machine = Machine(imds, tmp_path, id=(await stack.a_node(market))["id"])
                agents.append(machine)
                machine.log.write_text(XID)
                machine.start("--url", f"http://{where}")
            await asked_of_providers(stack)
            for _ in range(2):  # a series has a rate from its second value on
                reclaimed = next(n for n in (await stack.nodes()) if n not in {a.id for a in agents})
                await stack.admin("reclaim", node=reclaimed, notice_s=3)
                await stack.until_pool(
                    "it is gone", lambda pool, gone=reclaimed: gone not in {n["id"] for n in pool["nodes"]}
                )
                await stack.settled()
            for node in (await stack.nodes()).keys() - {a.id for a in agents}:  # speeds are compared
                agents.append(Machine(imds, tmp_path, id=node))
                agents[-1].start("--url", f"http://{where}")
            for machine in agents:
                machine.record("healthy")
            assert await watched.numbers("orchestrator_pool_redy_nodes") == []  # so a typing error would show
            empty: set[str] = set()

            async def answered() -> bool:
                nonlocal empty
                empty = {
                    f"{panel['title']}: {target['expr']}"
                    for panel in dashboard.build()["panels"]
                    for target in panel.get("targets", ())
                    if not await watched.numbers(
                        target["expr"].replace("$pool", ".*").replace("$__rate_interval", "5m")
                    )
                }
                return not empty

            try:
                await stack.until("every query has an answer", answered)
            except pytest.fail.Exception:
                pytest.fail("queries without an answer:\n" + "\n".join(sorted(empty)))
        rules = [rule for group in (await watched.ask("rules"))["groups"] for rule in group["rules"]]
        assert len(rules) > 30
        assert [r["name"] for r in rules if r["health"] != "ok"] == []
        for name in (r["name"] for r in rules if r["type"] == "recording"):
            assert await watched.numbers(name), f"{name} records nothing"
    finally:
        for machine in agents:
            machine.close()
