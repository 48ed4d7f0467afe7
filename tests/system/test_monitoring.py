"""A real Prometheus and a real Alertmanager on a running pool, with rules, examples and dashboard as shipped.

Only addresses and times are changed: every interval is a second, so that minutes become seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
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
from node_bench import SECRET, SELDOM, Machine, running_imds

from cloud.clock import SystemClock
from orchestrator.gateway.accounts.usage_file import read_usage
from orchestrator.journal.sqlite import SqliteStore
from policies.economics import BaselineHour, Charge
from policies.model import Market, Placement
from tests.support.certificates import Pair, pair
from tests.support.paid_provider import provider

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.debian("prometheus", package="prometheus"),
    pytest.mark.debian("prometheus-alertmanager", package="prometheus-alertmanager"),
]

BOOT_DELAY = 6.0  # a pool that lost a node is short for some scrapes
CHANGES: dict[str, dict[str, object]] = {  # the rest is filled in once there are directories and ports
    "cost": {"usd_per_month": 1000},
    "pool.test": {"adapters": {"law": "/l/law"}},
    "pool.test.cost": {"tokens_per_second": 500, "compare": "api/m"},
    "pool.test.limits": {"spend_per_hour": "100"},
    "pool.test.charge": {"input": "0.20", "output": "0.60"},
}
KEYS = {name: f"sk-orch-{name}" for name in ("busy", "small")}
KEYS_FILE = f"""
[key.busy]
sha256 = "{hashlib.sha256(KEYS["busy"].encode()).hexdigest()}"
requests_per_minute = 60000
tokens_per_minute = 10000000
in_flight = 100
usd_per_day = "100"
[key.small]
sha256 = "{hashlib.sha256(KEYS["small"].encode()).hexdigest()}"
requests_per_minute = 3
"""

XID = "4,1,2,-;NVRM: Xid (PCI:0000:00:1e): 31, pid=1, a fault of the application's own\n"


@pytest.fixture(scope="module", autouse=True)
def agents_may_report(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The pool takes reports of node agents, so that GPUs are shown."""
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    CHANGES["pool.test.agents"] = {"listen": f"127.0.0.1:{free_port()}", "secret_file": str(secret)}


@pytest.fixture(scope="module", autouse=True)
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Clients of the gateway come over TLS, and each shows a key."""
    directory = tmp_path_factory.mktemp("clients")
    made = pair(directory).write()
    (directory / "keys.toml").write_text(KEYS_FILE)
    CHANGES["gateway"] = {"keys_file": str(directory / "keys.toml")}
    CHANGES["pool.test.gateway"] = {
        "tls_cert_file": str(made.certificate),
        "tls_key_file": str(made.key),
    }
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def paid_for() -> AsyncIterator[None]:
    """A route to a provider, for which another stands in, so that there is something to show of both."""
    async with provider() as api:
        for name in ("api", "spare"):
            url = f"http://127.0.0.1:{api.port}"
            CHANGES[f"provider.{name}"] = {"kind": "openai", "url": url, "usd_per_day": "5"}
            CHANGES[f"provider.{name}.price.m"] = {"input": "3", "output": "15"}
        backends = [{"provider": name, "model": "m"} for name in ("api", "spare")]
        CHANGES["[route]"] = {"models": ["paid"], "to": backends, "usd_per_day": "5"}
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
    noticed = await stack.a_node("spot")
    labels = f'pool="test",node="{noticed["id"]}",market="spot",zone="{noticed["zone"]}"'
    assert await watched.numbers(f"vllm:num_requests_running{{{labels}}}") == [0.0]
    await stack.admin("reclaim", node=noticed["id"], notice_s=3)
    await stack.until_pool("it is gone", lambda pool: noticed["id"] not in {n["id"] for n in pool["nodes"]})
    await stack.settled()
    await stack.until("the new one is scraped instead", scraped)
    for name in ("orchestrator_node_info", "orchestrator_engine_ready", "vllm:num_requests_running"):
        assert await watched.numbers(f'{name}{{node="{noticed["id"]}"}}') == [], f"{name} outlived its node"
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


# Metrics that a pool which is well may have no value of, and why.
_AWS = "a pool on AWS"
_SKYPILOT = "a pool on SkyPilot"
_BROKEN = "a stream that broke, or a target that was lost in the middle of a request"
_PROVIDER = "a provider that fails, counts otherwise than it should, or is at a cap"
NO_VALUE = {
    "orchestrator_alarm": "an alarm",
    "orchestrator_aws_calls_total": _AWS,
    "orchestrator_aws_call_seconds": _AWS,
    "orchestrator_pool_node_key_requests": _AWS,
    "orchestrator_skypilot_helper_ends_total": _SKYPILOT,
    "orchestrator_skypilot_helper_memory_bytes": _SKYPILOT,
    "orchestrator_skypilot_helper_up": _SKYPILOT,
    "orchestrator_boots_failed_total": "a machine that ended before it was ready",
    "orchestrator_late_drains_total": "a pool that is short when a node is reclaimed",
    "orchestrator_drains_cut_total": "a node gone with requests in flight",
    "orchestrator_notices_unknown_node_total": "a notice for a machine that is not known",
    "orchestrator_swap_failures_total": "a replacement that did not come",
    "orchestrator_pool_market_paused": "a market in which nothing can be launched",
    "orchestrator_pool_failures": "a pool that was begun again",
    "orchestrator_turns_unrecorded_total": "a disk that is too slow",
    "orchestrator_journal_failures_total": "a disk that cannot be written",
    "orchestrator_gateway_attempt_failures_total": _BROKEN,
    "orchestrator_gateway_retries_total": _BROKEN,
    "orchestrator_gateway_moved_total": _BROKEN,
    "orchestrator_gateway_streams_cut_total": _BROKEN,
    "orchestrator_gateway_continuations_total": _BROKEN,
    "orchestrator_gateway_continuations_refused_total": _BROKEN,
    "orchestrator_gateway_tokens_wasted_total": _BROKEN,
    "orchestrator_gateway_provider_failures_total": _PROVIDER,
    "orchestrator_gateway_provider_cap_reached_total": _PROVIDER,
    "orchestrator_gateway_provider_estimated_total": _PROVIDER,
    "orchestrator_gateway_provider_unpriced_total": _PROVIDER,
    "orchestrator_gateway_provider_over_bound_total": _PROVIDER,
}

QUIET = ("orchestrator-keys", "orchestrator-money", "orchestrator-objectives")
"""Groups of which no alert fires while clients are served and nodes go with notice."""


@contextlib.asynccontextmanager
async def clients(stack: Any, certificate: Pair) -> AsyncIterator[None]:
    """Some that ask while the body runs: the pool, its adapter and a provider, for streams and whole answers,
    by two keys of which one may ask seldom. What they are answered does not matter here.
    """
    stop, clock = asyncio.Event(), SystemClock()
    url = f"https://127.0.0.1:{stack.gateway_port}/v1/chat/completions"

    async def ask(session: aiohttp.ClientSession, key: str, model: str, *, stream: bool) -> None:
        body = {"model": model, "max_tokens": 9, "stream": stream}
        body["messages"] = [{"role": "user", "content": "hello"}]
        if model == "simulated":
            body["ignore_eos"] = True
        head = {"Authorization": f"Bearer {KEYS[key]}"}
        with contextlib.suppress(aiohttp.ClientError):
            async with session.post(url, json=body, headers=head) as answer:
                await answer.read()

    async def one(session: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            for stream in (True, False):
                await ask(session, "busy", "simulated", stream=stream)
            for model in ("law", "paid"):
                await ask(session, "busy", model, stream=False)
            await ask(session, "small", "simulated", stream=False)
            await clock.sleep(0.2)

    connector = aiohttp.TCPConnector(ssl=certificate.trust())
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(one(session))
        try:
            yield
        finally:
            stop.set()


async def costs_are_known(stack: Any) -> None:
    """Costs are worked out when the daemon begins, and then seldom: it begins once more when there is
    something to tell, of this hour and of the one before.
    """

    def served() -> bool:
        rows = read_usage(stack.state / "usage.db", 0, 10**9)
        return {row.backend for row in rows if row.output} >= {"pool/test", "provider/api"}

    await stack.until("usage of pool and provider is written", lambda: asyncio.to_thread(served))
    await stack.stop("daemon")
    now = SystemClock().now()
    hour = int(now // 3600) - 1
    place = Placement("sim", "r", "a", "gpu", Market.SPOT)
    with contextlib.closing(SqliteStore.open(stack.state / "journal.db", now=now, inline=True)) as store:
        charge = Charge(node="before", placement=place, hour=hour, seconds=60.0, usd=0.01)
        await store.charge("test", [charge], baseline=[BaselineHour(pool="test", hour=hour)], until=now)
    await stack.start("daemon")
    await stack.settled()


async def without_answer(watched: Monitoring) -> set[str]:
    """The queries of panels that give nothing now."""
    return {
        f"{panel['title']}: {target['expr']}"
        for panel in dashboard.build()["panels"]
        for target in panel.get("targets", ())
        if not await watched.numbers(target["expr"].replace("$pool", ".*").replace("$__rate_interval", "5m"))
    }


async def shown(watched: Monitoring) -> dict[str, set[str]]:
    """The metrics of daemon and gateway that have a value, with the labels that are their own."""
    found: dict[str, set[str]] = {}
    for series in (await watched.ask("query", query='{__name__=~"orchestrator_.+"}'))["result"]:
        if not math.isnan(float(series["value"][1])):
            name = re.sub(r"_(bucket|sum|count)$", "", series["metric"]["__name__"])
            if not name.endswith("_created"):
                own = series["metric"].keys() - {"__name__", "job", "instance", "le"}
                found.setdefault(name, set()).update(own)
    return found


def documented() -> dict[str, set[str]]:
    """The metrics of the reference with their labels."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `(orchestrator_\w+)` \| \w+ \| ([^|]*) \|", page)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


async def test_every_panel_metric_and_rule_has_an_answer(
    stack: Any, watched: Monitoring, imds: Any, certificate: Pair, tmp_path: Path
) -> None:
    """On a pool under load that lost nodes with notice, with agents on its nodes: no query is empty, and
    every metric of the reference is there.
    """
    where = CHANGES["pool.test.agents"]["listen"]
    agents: list[Machine] = []
    try:
        async with clients(stack, certificate):
            await costs_are_known(stack)
            for market in ("spot", "on-demand"):
                machine = Machine(imds, tmp_path, id=(await stack.a_node(market))["id"])
                agents.append(machine)
                machine.log.write_text(XID)
                machine.start("--url", f"http://{where}", *SELDOM)
            for _ in range(2):  # a series has a rate from its second value on
                reclaimed = next(n for n in (await stack.nodes()) if n not in {a.id for a in agents})
                await stack.admin("reclaim", node=reclaimed, notice_s=3)
                await stack.until_pool(
                    "it is gone", lambda pool, gone=reclaimed: gone not in {n["id"] for n in pool["nodes"]}
                )
                await stack.settled()
            for node in (await stack.nodes()).keys() - {a.id for a in agents}:  # speeds are compared
                agents.append(Machine(imds, tmp_path, id=node))
                agents[-1].start("--url", f"http://{where}", *SELDOM)
            for machine in agents:
                machine.record("healthy")
            agents[-1].record("v100")
            assert await watched.numbers("orchestrator_pool_redy_nodes") == []  # so a typing error would show
            known, empty, missing = documented(), {""}, set(NO_VALUE)

            async def answered() -> bool:
                nonlocal empty, missing
                empty = await without_answer(watched)
                missing = known.keys() - NO_VALUE.keys() - (await shown(watched)).keys()
                return not empty and not missing

            try:
                await stack.until("every query has an answer, and every metric a value", answered)
            except pytest.fail.Exception:
                pytest.fail("\n".join(["without an answer:", *sorted(empty), *sorted(missing)]))
            for name, labels in (await shown(watched)).items():
                assert name in known, f"{name} is in no reference"
                assert labels | {"pool"} == known[name] | {"pool"}, (
                    name
                )  # a gateway of one pool does not name it
            assert NO_VALUE.keys() <= known.keys()
        groups = (await watched.ask("rules"))["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) > 30
        assert [r["name"] for r in rules if r["health"] != "ok"] == []
        for name in (r["name"] for r in rules if r["type"] == "recording"):
            assert await watched.numbers(name), f"{name} records nothing"
        of_clients = [rule for group in groups if group["name"] in QUIET for rule in group["rules"]]
        assert len(of_clients) > 10
        assert [rule["name"] for rule in of_clients if rule.get("state") == "firing"] == []
    finally:
        for machine in agents:
            machine.close()
