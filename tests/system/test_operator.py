"""What an operator does to a live pool over the command line, and the exit codes that scripts rely on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


async def last_seq(stack: Any) -> int:
    """The number of the newest journal entry."""
    return int((await stack.events())[-1]["seq"])


async def test_reading_commands_tell_of_the_live_pool(stack: Any) -> None:
    nodes = await stack.nodes()
    status, as_json, table, plan, why = await asyncio.gather(
        stack.cli("status"),
        stack.cli("status", "-o", "json"),
        stack.cli("nodes"),
        stack.cli("plan", "-o", "json"),
        stack.cli("explain", "capacity"),
    )
    assert [done.code for done in (status, as_json, table, plan, why)] == [0] * 5
    assert "OK" in status.out
    assert "4/4 serving" in status.out
    view = json.loads(as_json.out)
    assert (view["schema"], view["pools"][0]["ready"]) == ("status/1", 4)
    assert all(node in table.out for node in nodes)
    (pool,) = json.loads(plan.out)["pools"]
    assert pool["actions"] == []
    assert {t["id"] for t in pool["targets"]} == set(nodes)
    assert why.out.strip()
    settled = await stack.cli("plan", "--detailed-exit-code")
    assert settled.code == 0


async def test_the_story_of_a_node_begins_with_its_launch(stack: Any) -> None:
    node = await stack.a_node("spot")
    for words in (("node", node["id"][:6]), ("explain", node["id"])):
        done = await stack.cli(*words)
        assert done.code == 0
        assert node["id"] in done.out
    story = json.loads((await stack.cli("node", node["id"], "-o", "json")).out)
    kinds = [event["kind"] for event in story["events"]]
    assert kinds[:1] == ["IntentClosed"] or kinds[0] == "NodeSeen"
    assert "NodeReady" in kinds
    assert story["node"]["token"] == node["token"]


@pytest.mark.parametrize(
    "words",
    [("node", "i-nobody"), ("drain", "i-nobody"), ("undrain", "i-nobody"), ("explain", "nothing-such")],
)
async def test_what_is_not_known_is_one_line_and_exit_code_1(stack: Any, words: tuple[str, ...]) -> None:
    done = await stack.cli(*words)
    assert done.code == 1
    assert done.out == ""
    assert len(done.err.splitlines()) == 1, done.err
    assert words[1] in done.err


async def test_drain_replaces_a_node_before_it_goes(stack: Any) -> None:
    node = (await stack.a_node("spot"))["id"]
    after = await last_seq(stack)
    async with stack.traffic() as traffic:
        done = await stack.cli("drain", node, "--reason", "kernel update", "--deadline", "20s", "--wait")
        assert done.code == 0, done.err
        assert f"{node} is cordoned" in done.out
        assert f"{node} is out of service." in done.err
        pool = await stack.settled()
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0
    assert node not in {n["id"] for n in pool["nodes"]}
    events = [e for e in await stack.events() if e["seq"] > after]
    first = {
        kind: next(e["seq"] for e in events if e["kind"] == kind) for kind in ("NodeReady", "DrainStarted")
    }
    assert first["NodeReady"] < first["DrainStarted"], "the node left before its replacement was ready"
    (asked,) = [e for e in events if e["kind"] == "OperatorDrained"]
    assert "kernel update" in asked["text"]


async def test_undrain_puts_a_cordoned_node_back_to_work(stack: Any) -> None:
    """Without capacity for a replacement the node stays in service, cordoned; then it is taken back."""
    node = (await stack.a_node("spot"))["id"]
    for zone in ("local-1a", "local-1b", "local-1c"):
        await stack.admin("capacity", zone=zone, count=0, market="on-demand")
    await stack.admin("refuse", times=1000)
    assert (await stack.cli("drain", node)).code == 0
    pool = await stack.until_pool(
        "the node is cordoned",
        lambda pool: any("cordoned" in n["conditions"] for n in pool["nodes"] if n["id"] == node),
    )
    assert [n["attached"] for n in pool["nodes"] if n["id"] == node] == [True]
    assert (await stack.cli("undrain", node)).code == 0
    await stack.admin("heal")
    pool = await stack.settled()
    (kept,) = [n for n in pool["nodes"] if n["id"] == node]
    assert kept["phase"] == "ready"
    assert "cordoned" not in kept["conditions"]


async def test_a_notice_during_a_pause_drains_and_nothing_is_launched(stack: Any) -> None:
    launches = (await stack.statistics())["launches"]
    node = (await stack.a_node("spot"))["id"]
    done = await stack.cli("pause", "--reason", "looking around")
    assert done.code == 0
    assert "Notices still drain" in done.out
    status = await stack.cli("status")
    assert status.code == 6
    assert "looking around" in status.out
    async with stack.traffic() as traffic:
        await stack.admin("reclaim", node=node, notice_s=4)
        await stack.until_pool(
            "the noticed node is out of service",
            lambda pool: all(n["target"] in (None, "draining") for n in pool["nodes"] if n["id"] == node),
        )
        await stack.until_pool("the node is gone", lambda pool: node not in {n["id"] for n in pool["nodes"]})
        assert (await stack.statistics())["launches"] == launches
        plan = json.loads((await stack.cli("plan", "-o", "json")).out)["pools"][0]
        assert not [a for a in plan["actions"] if a["kind"] in ("launch", "terminate")]
        assert any("paused" in d["reason"] for d in plan["deferred"])
        done = await stack.cli("resume")
        assert (done.code, done.out.splitlines()[0]) == (0, "Resumed.")
        await stack.settled()
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0
    assert (await stack.cli("status")).code == 0
    assert (await stack.statistics())["launches"] > launches


async def test_a_pause_ends_by_itself(stack: Any) -> None:
    assert (await stack.cli("pause", "--for", "1s")).code == 0
    await stack.until_pool("the pause is over", lambda pool: pool["state"] == "ok")
    wrong = await stack.cli("pause", "--for", "soon")
    assert wrong.code == 2
    assert len(wrong.err.splitlines()) == 1


async def test_a_pause_outlives_the_daemon(stack: Any) -> None:
    assert (await stack.cli("pause", "-m", "over night")).code == 0
    await stack.kill("daemon")
    await stack.start("daemon")
    pool = await stack.until_pool("the daemon is back", lambda pool: len(pool["nodes"]) == 4)
    assert pool["state"] == "paused"
    assert (await stack.status())["daemon"]["paused"]["reason"] == "over night"
    assert (await stack.cli("resume")).code == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/events?after=1e400", 400),
        ("/v1/events?after=nan", 400),
        (f"/v1/events?after={10**30}", 400),
        ("/v1/events?limit=0", 400),
        ("/v1/events?limit=-1", 400),
        ("/v1/events?limit=many", 400),
        ("/v1/events?wait=-5", 400),
        ("/v1/events?after=-1&limit=3", 200),
        ("/v1/explain?subject=" + "x" * 2000, 404),
        ("/v1/nodes/..%2f..%2fetc", 404),
        ("/v1/nothing", 404),
        ("/v1/pause", 405),
    ],
)
async def test_odd_requests_are_refused_in_words(stack: Any, path: str, status: int) -> None:
    code, body = await asyncio.to_thread(stack.ask, "GET", path)
    assert code == status, body
    assert status == 200 or set(json.loads(body)) == {"error"}


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"for_s": "long"}', "for_s must be a number of seconds"),
        (b'{"for_s": -1}', "for_s must be a number of seconds"),
        (b'{"reason": 5}', "reason must be text"),
        (b'{"reason": "' + b"x" * 600 + b'"}', "at most 500 characters"),
        (b'"' + b"x" * 100_000 + b'"', "Request Entity Too Large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_odd_bodies_are_refused_in_words(stack: Any, body: bytes, part: str) -> None:
    code, answer = await asyncio.to_thread(stack.ask, "POST", "/v1/pause", body)
    assert 400 <= code < 500
    assert part in json.loads(answer)["error"]
    assert (await stack.status())["daemon"]["paused"] is None


async def test_following_events_shows_what_happens_next(stack: Any) -> None:
    follower = await asyncio.create_subprocess_exec(
        *stack.command("events", "-f", "-n", "1", "-o", "json"),
        stdout=asyncio.subprocess.PIPE,
        env=stack.full_environment,
    )
    try:
        async with asyncio.timeout(60):
            first = json.loads(await follower.stdout.readline())
            assert (await stack.cli("pause", "-m", "for the follower")).code == 0
            seen = first
            while seen["kind"] != "Paused":
                seen = json.loads(await follower.stdout.readline())
            assert seen["seq"] > first["seq"]
            assert "for the follower" in seen["text"]
            follower.send_signal(2)
            assert await follower.wait() == 0
    finally:
        if follower.returncode is None:
            follower.kill()
            await follower.wait()


async def test_the_daemon_gone_is_exit_code_3_for_every_command(stack: Any) -> None:
    assert await stack.stop("daemon") == 0
    for words in (("status",), ("nodes",), ("pause",), ("drain", "i-1"), ("plan",)):
        done = await stack.cli(*words)
        assert (done.code, done.out) == (3, ""), words
        assert len(done.err.splitlines()) == 1
        assert "orchestrator run --config" in done.err


async def test_the_monitoring_listener_shows_and_changes_nothing(stack: Any) -> None:
    port = stack.monitoring_port
    metrics = await stack.get(port, "/metrics")
    assert 'orchestrator_pool_ready_nodes{market="spot",pool="test"} 2.0' in metrics
    assert "ok" in await stack.get(port, "/healthz")
    assert " 200 " in (await stack.get(port, "/readyz")).splitlines()[0]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/pause HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
    writer.close()
    assert (await stack.status())["daemon"]["paused"] is None


async def test_a_game_day_on_a_live_pool_and_its_history(stack: Any) -> None:
    async with stack.traffic() as traffic:
        done = await stack.cli("gameday", "--seed", "3", "--deadline", "20s", "--yes", "-o", "json")
        assert done.code == 0, done.err
        await stack.settled()
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0
    result = json.loads(done.out)
    assert result["passed"]
    view = json.loads((await stack.cli("history", "--node", result["node"], "-o", "json")).out)
    (swap,) = view["swaps"]
    assert (swap["cause"], swap["stage"]) == ("operator", "gone")
    seconds = swap["seconds"]
    assert 0 <= seconds["detached"] <= seconds["drained"] <= seconds["gone"]


async def test_the_start_of_every_node_is_told_in_its_parts(stack: Any) -> None:
    serving = {node["id"] for node in (await stack.settled())["nodes"]}

    async def measured() -> dict[str, Any]:
        starts = json.loads((await stack.cli("history", "-o", "json")).out)["starts"]
        found = {start["node"]: start for start in starts}
        return found if serving <= found.keys() else {}

    for start in (await stack.until("every start is measured", measured)).values():
        assert start["parts"].keys() == {"machine", "process", "load", "route"}
        assert sum(start["parts"].values()) == pytest.approx(start["seconds"])
    told = await stack.cli("history", "--starts")
    assert "launch of local.gpu: " in told.out
    assert "Its launch took " in (await stack.cli("node", min(serving))).out


async def test_replace_waits_for_the_new_node(stack: Any) -> None:
    node = (await stack.a_node("on-demand"))["id"]
    done = await stack.cli("replace", node, "--reason", "slow disk", "--deadline", "20s")
    assert done.code == 0, done.err
    assert "The wanted nodes are ready (test: 4/4)." in done.err
    assert node not in {n["id"] for n in (await stack.settled())["nodes"]}
