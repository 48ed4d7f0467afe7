"""What breaks around the daemon: gateway, cloud, engines, nodes, notices. Clients notice little of it."""

from __future__ import annotations

import contextlib
from typing import Any

import aiohttp
import pytest
from long_requests import gateway_state, long_requests

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

CHANGES = {
    "daemon": {"probe_timeout": "1s"},
    "pool.test.drain": {"budget": "2s", "margin": "500ms"},
    "pool.test.health": {"unhealthy_after": "1s", "replace_after": "4s"},
    "pool.test.gateway": {"health_timeout": "1s"},
    "pool.test.patience": {"stale_after": "3s"},
}


async def serves(stack: Any) -> bool:
    """The gateway accepts connections and has a target to send them to."""
    with contextlib.suppress(OSError):
        return " 200 " in (await stack.get(stack.gateway_port, "/readyz")).partition("\r\n")[0]
    return False


async def test_a_killed_gateway_has_its_set_from_the_file_at_once(stack: Any) -> None:
    """Even with no daemon to tell it."""
    before = await gateway_state(stack)
    assert await stack.stop("daemon") == 0
    await stack.kill("gateway")
    await stack.start("gateway")
    await stack.until("the gateway serves", lambda: serves(stack))
    async with stack.traffic() as traffic:
        await traffic.answers(20)
        after = await gateway_state(stack)
        assert after["incarnation"] != before["incarnation"]
        assert [t["id"] for t in after["targets"]] == [t["id"] for t in before["targets"]]
        assert after["generation"] == before["generation"] == after["file_generation"]
        await stack.start("daemon")
        await stack.settled()
    assert traffic.report.failures == {}


async def test_a_killed_gateway_gets_its_set_from_the_daemon_again(stack: Any) -> None:
    """Also when both files are lost; meanwhile the daemon says that it cannot reach the gateway."""
    before = await gateway_state(stack)
    await stack.kill("gateway")
    await stack.until_pool(
        "the status shows the fault", lambda pool: any("gateway" in p for p in pool["problems"])
    )
    for file in stack.state.glob("targets.json*"):
        file.unlink()
    await stack.start("gateway")

    async def told() -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            state = await gateway_state(stack)
            return {t["id"] for t in state["targets"]} == {t["id"] for t in before["targets"]}
        return False

    await stack.until("the daemon has told the gateway its targets", told)
    pool = await stack.settled()
    assert pool["problems"] == []
    async with stack.traffic() as traffic:
        await traffic.answers(20)
    assert traffic.report.failures == {}
    assert (stack.state / "targets.json").exists()


async def test_a_killed_cloud_is_shown_and_made_good(stack: Any) -> None:
    """kill -9 of the local cloud takes its nodes along, as a failed region would; the daemon starts over."""
    before = await stack.nodes()
    daemon = (await stack.status())["daemon"]
    await stack.kill("local-cloud")
    await stack.until_pool(
        "the status shows the fault",
        lambda pool: any("instances cannot be listed" in p for p in pool["problems"]),
    )
    await stack.until_pool("nobody is served", lambda pool: pool["state"] == "down")
    done = await stack.cli("status")
    assert done.code == 7
    assert "instances cannot be listed" in done.out
    await stack.start("local-cloud")
    pool = await stack.settled()
    assert (await stack.status())["daemon"]["pid"] == daemon["pid"]
    assert not {n["id"] for n in pool["nodes"]} & set(before)
    assert pool["problems"] == []
    async with stack.traffic() as traffic:
        await traffic.answers(20)
    assert traffic.report.failures == {}


async def test_a_cloud_that_cannot_be_listed_degrades_the_pool_and_nothing_else(stack: Any) -> None:
    """Every node works, so nothing is touched; but nothing could be replaced, and the status says so."""
    before = await stack.nodes()
    launches = (await stack.statistics())["launches"]
    await stack.admin("fail-list", times=1_000_000)
    async with stack.traffic() as traffic:
        pool = await stack.until_pool("the pool is degraded", lambda pool: pool["state"] == "degraded")
        assert any("instances cannot be listed" in problem for problem in pool["problems"])
        assert (await stack.cli("status")).code == 4
        assert pool["serving"] == 4
        await stack.admin("heal")
        await stack.until_pool("the pool is well", lambda pool: pool["state"] == "ok")
    assert traffic.report.failures == {}
    assert set(await stack.nodes()) == set(before)
    assert (await stack.statistics())["launches"] == launches


async def test_a_node_lost_without_notice_costs_no_request(stack: Any) -> None:
    """Plain requests are sent again, streams go on elsewhere."""
    node = (await stack.a_node("spot"))["id"]
    retries = (await gateway_state(stack))["totals"]["retries"]
    async with stack.traffic(longest=100) as traffic:
        async with long_requests(stack) as ends:
            await stack.admin("reclaim", node=node, notice_s=0)
        await traffic.answers(20)
    assert ends == ["whole"] * 12
    assert (traffic.report.failures, traffic.report.streams_cut) == ({}, 0)
    assert (await gateway_state(stack))["totals"]["retries"] > retries
    pool = await stack.settled()
    assert node not in {n["id"] for n in pool["nodes"]}
    seen = await stack.statistics()
    assert [p["noticed_at"] for p in seen["preemptions"] if p["node"] == node] == [None]
    (gone,) = [e for e in await stack.events() if e["kind"] == "NodeGone" and e["node"] == node]
    assert gone["data"]["cause"] == "unannounced"


async def test_a_frozen_engine_is_detached_and_replaced(stack: Any) -> None:
    """It accepts and stays silent: no request is lost. `test_real_engines_llamacpp.py` kills engines."""
    node = (await stack.a_node("spot"))["id"]
    async with stack.traffic() as traffic:
        async with long_requests(stack) as ends:
            await stack.admin("freeze", node=node)
            await stack.until_pool(
                "the sick node gets no new requests",
                lambda pool: all(n["target"] != "healthy" for n in pool["nodes"] if n["id"] == node),
            )
            await traffic.answers(20)
        await stack.until_pool(
            "the sick node is replaced", lambda pool: node not in {n["id"] for n in pool["nodes"]}
        )
        await stack.settled()
    assert ends == ["whole"] * 12
    assert (traffic.report.failures, traffic.report.streams_cut) == ({}, 0)
    assert traffic.report.sent == traffic.report.answered
    story = [e for e in await stack.events() if e["node"] == node]
    (drain,) = [e for e in story if e["kind"] == "DrainStarted"]
    assert drain["data"]["cause"] == "sick"


async def test_a_forged_notice_drains_at_most_its_node(stack: Any) -> None:
    """Metadata says so, the cloud does not confirm it: every node claims to be noticed, one is believed."""
    first = (await stack.events())[-1]["seq"]
    spot = [n["id"] for n in (await stack.nodes()).values() if n["market"] == "spot"]
    async with stack.traffic() as traffic:
        for node in spot:
            await stack.admin("forge", node=node, deadline_s=8.0)

        async def heard() -> bool:
            events = await stack.events()
            told = {e["node"] for e in events if e["kind"] == "NoticeSeen" and e["seq"] > first}
            return told >= set(spot)

        await stack.until("both forged notices are heard", heard)
        await stack.until_pool(
            "one of the nodes is replaced", lambda pool: len({n["id"] for n in pool["nodes"]} & set(spot)) < 2
        )
        await stack.admin("heal")
        await stack.settled()
    events = [e for e in await stack.events() if e["seq"] > first]
    assert _most_missing(events, set(spot)) == 1
    noticed = {e["node"] for e in events if e["kind"] == "DrainStarted" and e["data"]["cause"] == "notice"}
    assert noticed
    assert noticed <= set(spot), "a node that nobody spoke of was drained for a notice"
    assert traffic.report.failures == {}


def _most_missing(events: list[dict[str, Any]], nodes: set[str]) -> int:
    """Of these nodes, the most that were drained and not yet replaced by a new ready node, by the journal."""
    missing = most = 0
    for event in events:
        if event["kind"] == "DrainStarted" and event["node"] in nodes:
            missing += 1
        elif event["kind"] == "NodeReady":
            missing = max(0, missing - 1)
        most = max(most, missing)
    return most


async def test_a_notice_for_an_on_demand_node_is_ignored(stack: Any) -> None:
    node = (await stack.a_node("on-demand"))["id"]
    first = (await stack.events())[-1]["seq"]
    await stack.admin("forge", node=node, deadline_s=2.0)
    pool = await stack.until_pool("the forged notice is heard", lambda pool: pool["notices"])
    assert [(n["node"], n["stage"]) for n in pool["notices"]] == [(node, "not believed")]
    await stack.until_pool("time has proved it wrong", lambda pool: not pool["notices"])
    view = (await stack.nodes())[node]
    assert (view["phase"], view["attached"], view["target"]) == ("ready", True, "healthy")
    story = [e["kind"] for e in await stack.events() if e["node"] == node and e["seq"] > first]
    assert "DrainStarted" not in story
    await stack.admin("heal")
