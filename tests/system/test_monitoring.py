"""A real Prometheus and a real Alertmanager on a running pool, with rules, examples and dashboard as shipped.

Only addresses and times are changed: every interval is a second, so that minutes become seconds.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shlex
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from orchestrator import monitoring
from orchestrator.monitoring import dashboard

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from node_bench import SECRET, Machine, running_imds

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


class Webhook:
    """What Alertmanager tells a pager and a chat: (receiver, status, alert) in order of arrival."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self._runner: web.AppRunner | None = None

    async def open(self) -> int:
        app = web.Application()
        app.router.add_post("/{receiver}", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        for alert in (await request.json())["alerts"]:
            self.told.append((request.match_info["receiver"], alert["status"], alert))
        return web.Response()

    def heard(self, name: str, status: str) -> tuple[str, dict[str, Any]] | None:
        """The newest word of this kind about an alert, and who was told."""
        for receiver, said, alert in reversed(self.told):
            if (alert["labels"]["alertname"], said) == (name, status):
                return receiver, alert
        return None


class Monitoring:
    """Prometheus, Alertmanager and the webhook of one stack."""

    def __init__(self, port: int, alertmanager: int, webhook: Webhook) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.alertmanager = f"http://127.0.0.1:{alertmanager}"
        self.webhook = webhook

    async def ask(self, path: str, **query: str) -> Any:
        """The data of one call of Prometheus' API; None while it does not answer."""

        def get() -> Any:
            url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
            try:
                with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                if error.code == 503:  # it still starts
                    return None
                raise AssertionError(f"{query or path}: {error.read().decode()}") from None
            except OSError:
                return None

        return await asyncio.to_thread(get)

    async def silent(self, alert: str) -> bool:
        """Prometheus and Alertmanager hold no such alert, and its last firing was taken back."""

        def held() -> Any:
            url = f"{self.alertmanager}/api/v2/alerts?filter=alertname%3D{alert}"
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
                return json.load(answer)

        told = [status for _, status, a in self.webhook.told if a["labels"]["alertname"] == alert]
        return (
            told[-1:] in ([], ["resolved"])
            and await self.numbers(f'ALERTS{{alertname="{alert}"}}') == []
            and await asyncio.to_thread(held) == []
        )

    async def numbers(self, expression: str) -> list[float]:
        """What an expression gives now, without what is no number."""
        found = await self.ask("query", query=expression)
        values = [float(series["value"][1]) for series in found["result"]]
        return [value for value in values if not math.isnan(value)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(module_stack: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Monitoring]:
    """Both programs on the module's stack; they end with the module."""
    folder = tmp_path_factory.mktemp("monitoring")
    webhook = Webhook()
    hook = await webhook.open()
    prometheus, alertmanager = free_port(), free_port()
    addresses = {
        "127.0.0.1:9477": f"127.0.0.1:{module_stack.monitoring_port}",
        "127.0.0.1:8000": f"127.0.0.1:{module_stack.gateway_port}",
        "127.0.0.1:9093": f"127.0.0.1:{alertmanager}",
        "127.0.0.1:9500": f"127.0.0.1:{hook}",
    }
    for name in monitoring.FILES:
        text = monitoring.read(name)
        for shipped, here in addresses.items():
            text = text.replace(shipped, here)
        text = re.sub(r"\b(for|\w+_interval|group_wait): \w+", r"\1: 1s", text)
        (folder / name).write_text(text, encoding="utf-8")
    commands = (
        [
            "prometheus-alertmanager",
            "--config.file=alertmanager.yaml",
            "--storage.path=alerts",
            f"--web.listen-address=127.0.0.1:{alertmanager}",
            "--cluster.listen-address=",  # else it opens a port for gossip to everybody
        ],
        [
            "prometheus",
            "--config.file=prometheus.yaml",
            "--storage.tsdb.path=series",
            f"--web.listen-address=127.0.0.1:{prometheus}",
        ],
    )
    running: list[asyncio.subprocess.Process] = []
    found = Monitoring(prometheus, alertmanager, webhook)
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("wb") as log:
                running.append(
                    await asyncio.create_subprocess_exec(
                        *command, cwd=folder, stdout=log, stderr=log, env=module_stack.full_environment
                    )
                )

        async def scraped() -> bool:
            return bool(await found.ask("query", query="up")) and await found.numbers(
                'up{job=~"orchestrator|orchestrator-gateway"} == 1'
            ) == [1.0, 1.0]

        await module_stack.until("Prometheus scrapes daemon and gateway", scraped)
        yield found
    finally:
        for process in running:
            process.terminate()
        for process in running:
            async with asyncio.timeout(30):
                await process.wait()
        await webhook.close()
        for log in folder.glob("*.log"):
            sys.stdout.write(f"--- {log.name}\n{log.read_text()[-2000:]}\n")


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
    watched.webhook.told.clear()
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
    watched.webhook.told.clear()
    await stack.kill("daemon")

    async def heard(status: str) -> Any:
        return watched.webhook.heard("OrchestratorDaemonDown", status)

    receiver, _ = await stack.until("the pager hears of it", lambda: heard("firing"))
    assert receiver == "page"
    await stack.start("daemon")
    await stack.until("it is taken back", lambda: heard("resolved"))


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
            for _ in range(2):  # a series has a rate from its second value on
                reclaimed = next(n for n in (await stack.nodes()) if n not in {a.id for a in agents})
                await stack.admin("reclaim", node=reclaimed, notice_s=3)
                await stack.until_pool(
                    "it is gone", lambda pool, gone=reclaimed: gone not in {n["id"] for n in pool["nodes"]}
                )
                await stack.settled()
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
