"""A gateway that is killed, and one that hangs: everything says so within seconds, and takes it back.

The daemon and its pool have the default settings, and Prometheus has the shipped rules; only scrapes
are every second. What must be quick is judged by the times that the daemon and Alertmanager wrote down.
"""

from __future__ import annotations

import calendar
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from alerting import Monitoring, running_monitoring

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.debian("prometheus", package="prometheus"),
    pytest.mark.debian("prometheus-alertmanager", package="prometheus-alertmanager"),
]

DEFAULT = ("tick", "poll_instances", "poll_targets", "poll_offerings", "probe_interval", "probe_timeout")
CHANGES: dict[str, dict[str, object]] = {
    "daemon": dict.fromkeys(DEFAULT),
    "pool.test.gateway": {"health_interval": None},
    **{
        f"pool.test.{table}": dict.fromkeys(keys)
        for table, keys in (
            ("drain", ("budget", "margin", "settle")),
            ("back_to_spot", ("hold", "stable")),
            ("placement", ("refusal_half_life", "reclaim_half_life")),
            ("health", ("unhealthy_after", "replace_after", "boot_timeout")),
            ("patience", ("stale_after", "vanish_grace", "effect_timeout")),
            ("limits", ("surge", "launches_per_minute")),
        )
    },
}

WITHIN = 10.0 + 5.0
"""Seconds in which it must be known, and what a busy machine may add: bench/gateway_lost.py measures it."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(module_stack: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Monitoring]:
    def quick(text: str) -> str:
        return re.sub(
            r"\b(scrape_interval|evaluation_interval|group_wait|group_interval): \w+", r"\1: 1s", text
        )

    async with running_monitoring(module_stack, tmp_path_factory.mktemp("monitoring"), quick) as found:
        yield found


async def lose(stack: Any, how: str) -> float:
    """Kill or freeze the gateway; when."""
    at = time.time()
    if how == "killed":
        await stack.kill("gateway")
    else:
        os.kill(stack.parts["gateway"].pid, signal.SIGSTOP)
    return at


async def give_back(stack: Any, how: str) -> None:
    if how == "killed":
        await stack.start("gateway")
    else:
        os.kill(stack.parts["gateway"].pid, signal.SIGCONT)


async def readiness(stack: Any) -> str:
    head: str = (await stack.get(stack.monitoring_port, "/readyz")).partition("\r\n")[0]
    return head.split()[1]


def first(events: list[Any], event: str, **data: str) -> Any:
    """The first event of a kind with such values; None while there is none."""
    return next((e for e in events if e["kind"] == event and data.items() <= e["data"].items()), None)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_gateway_that_serves_nobody_is_known_everywhere_and_taken_back(
    stack: Any, watched: Monitoring, how: str
) -> None:
    async def quiet() -> bool:
        return await watched.held() == []

    await stack.until("no alert is left", quiet)
    watched.webhook.received.clear()
    before = await stack.events()
    known = len(before)
    states = [e["data"]["state"] for e in before if e["kind"] == "StateChanged"]
    assert "down" not in states[: states.index("ok")], "the pool was down while it started"
    gone_at = await lose(stack, how)
    try:

        async def news() -> Any:
            events = (await stack.events())[known:]
            found = (
                first(events, "PartLost", kind="balancer", part="gateway"),
                first(events, "StateChanged", state="down"),
            )
            return found if all(found) else None

        lost, down = await stack.until("the events have it", news)

        async def down_everywhere() -> bool:
            status = await stack.cli("status")
            headline = "DOWN" in status.out and "0/4 serving" in status.out
            return headline and status.code == 7 and await readiness(stack) == "503"

        await stack.until("status and readiness have it", down_everywhere)
        await _looks_down(stack)

        async def paged() -> Any:
            return watched.webhook.heard("OrchestratorPoolDown", "firing") and await watched.held()

        (alert,) = await stack.until("Alertmanager has told of an alert", paged)
        assert alert["labels"] == {
            "alertname": "OrchestratorPoolDown", "pool": "test", "severity": "page"
        }  # fmt: skip
        assert alert["status"]["state"] == "active"
        starts_at = _seconds(alert["startsAt"])
        assert gone_at < lost["at"] <= down["at"] < starts_at < gone_at + WITHIN
        assert lost["text"].startswith("the gateway has not answered for ")
        assert down["text"].startswith("the pool is down, and was ok: ")
    finally:
        await give_back(stack, how)

    async def back() -> bool:
        events = (await stack.events())[known:]
        news = first(events, "PartBack", part="gateway"), first(events, "StateChanged", state="ok")
        status = await stack.cli("status")
        well = "OK" in status.out and "4/4 serving" in status.out and status.code == 0
        return all(news) and well and await readiness(stack) == "200"

    await stack.until("all of it is back", back)
    await stack.until_pool(
        "its gateway has checked every target",
        lambda pool: {n["target"] for n in pool["nodes"]} == {"healthy"},
    )
    await stack.until("the alert is taken back", lambda: watched.silent("OrchestratorPoolDown"))
    assert {a["labels"]["alertname"] for _, _, a in watched.webhook.received} == {"OrchestratorPoolDown"}
    log = stack.parts["daemon"].log.read_text()
    for event in ("part.lost", "part.recovered", "state.changed"):
        assert f'"event":"{event}"' in log


async def _looks_down(stack: Any) -> None:
    """What commands and metrics say of it; a pause takes nothing back."""
    done = await stack.cli("status")
    assert done.out.startswith("test  DOWN  0/4 serving  4 ready")
    assert "! gateway has not answered for" in done.out
    nodes = await stack.cli("nodes", "-o", "json")
    assert [n["target"] for n in json.loads(nodes.out)["nodes"]] == ["unknown"] * 4
    page = await stack.get(stack.monitoring_port, "/metrics")
    assert 'orchestrator_pool_state{pool="test",state="down"} 1.0' in page
    assert 'orchestrator_pool_serving_nodes{pool="test"} 0.0' in page
    await stack.cli("pause", "--reason", "to look at it")
    await stack.turns(2)
    done = await stack.cli("status")
    assert (done.code, "paused by" in done.out) == (7, True)
    await stack.cli("resume")


def _seconds(instant: str) -> float:
    """An instant as Alertmanager writes it, in seconds since the epoch."""
    whole, _, fraction = instant.rstrip("Z").partition(".")
    return float(calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))) + float(f"0.{fraction or 0}")
