"""The daemon killed, stopped, started twice: nodes outlive it, the gateway serves, nothing is done twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

BOOT_DELAY = 1.0  # long enough to be killed in the middle of a swap


async def test_killed_in_the_middle_of_a_swap(stack: Any) -> None:
    """kill -9 at three points of a swap, each followed by a new daemon; the load never notices."""
    for point in ("notice", "intent", "drain"):
        before = await stack.settled()
        epoch = (await stack.status())["daemon"]["epoch"]
        counted = (await stack.statistics())["launches"]
        noticed = (await stack.a_node("spot"))["id"]
        last = (await stack.events())[-1]["seq"]
        async with stack.traffic() as traffic:
            await stack.admin("reclaim", node=noticed)
            await _reach(stack, noticed, point, after=last)
            await stack.kill("daemon")
            await traffic.answers(30)  # the gateway serves without a daemon
            await stack.start("daemon")
            adopted = await stack.until_pool("the daemon is back", lambda pool: pool["nodes"])
            after = await stack.settled()
            await traffic.answers(10)
        assert traffic.report.failures == {}
        assert traffic.report.streams_cut == 0
        assert (await stack.status())["daemon"]["epoch"] > epoch

        tokens = {n["id"]: n["token"] for n in before["nodes"]}
        kept = {n["id"]: n["token"] for n in adopted["nodes"]}
        others = set(tokens) - {noticed}
        assert {name: kept.get(name) for name in others} == {name: tokens[name] for name in others}
        assert noticed not in {n["id"] for n in after["nodes"]}
        await _nothing_twice(stack, launched=(await stack.statistics())["launches"] - counted)


async def _reach(stack: Any, noticed: str, point: str, *, after: int) -> None:
    """Wait for one point of the swap, of all that was journalled `after` it began. `notice` is the earliest
    that can be: as soon as it was given.
    """
    if point == "notice":
        return

    async def reached() -> bool:
        opened = [e for e in await stack.events() if e["seq"] > after and e["kind"] == "IntentOpened"]
        # one may be told to replace a node that went before and whose own replacement was not needed
        replacing = [e for e in opened if e["data"]["kind"] == "launch"]
        if point == "intent":
            return bool(replacing)
        nodes = await stack.nodes()
        incoming = [n for n in nodes.values() if any(n["token"] == e["data"]["token"] for e in replacing)]
        return any(n["phase"] in ("pending", "starting") for n in incoming) and (
            noticed not in nodes or not nodes[noticed]["attached"]
        )

    await stack.until(f"the swap of {noticed} is at {point}", reached)


async def _nothing_twice(stack: Any, launched: int) -> None:
    """Every machine was asked for by one intent, and one swap took no more than cover and a new spot node."""
    seen = await stack.statistics()
    done = stack.launch_intents(await stack.events())
    assert seen["launches"] == len(done), "the cloud launched something that the journal does not know"
    assert set(done.values()) <= {1}
    assert 1 <= launched <= 2
    nodes = await stack.nodes()
    assert len({n["token"] for n in nodes.values()}) == len(nodes)
    assert set(nodes) == set(seen["live"])
    assert seen["orphans"] == []


async def test_stopped_and_started_it_touches_nothing(stack: Any) -> None:
    def seen(pool: Any) -> bool:
        return all(n["target"] == "healthy" for n in pool["nodes"])

    await stack.settled()
    before = await stack.until_pool("the balancer was read", seen)
    statistics = await stack.statistics()
    groups, launches = statistics["groups"], statistics["launches"]
    epoch = (await stack.status())["daemon"]["epoch"]
    async with stack.traffic() as traffic:
        assert await stack.stop("daemon") == 0
        await traffic.answers(15)
        assert (await stack.statistics())["groups"] == groups
        assert not (stack.sockets / "daemon").exists()
        await stack.start("daemon")
        after = await stack.settled()
        await traffic.answers(15)
    assert (await stack.status())["daemon"]["epoch"] > epoch
    statistics = await stack.statistics()
    assert (statistics["groups"], statistics["launches"]) == (groups, launches), "a node was ended or started"
    unchanged = ("id", "token", "address", "launched_at", "attached", "phase", "target")
    assert [[n[k] for k in unchanged] for n in after["nodes"]] == [
        [n[k] for k in unchanged] for n in before["nodes"]
    ]
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0


async def test_a_second_daemon_refuses_and_names_the_first(stack: Any) -> None:
    first = (await stack.status())["daemon"]
    done = await stack.cli("run")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert f"another daemon holds the lease: pid {first['pid']} on " in done.err
    assert "stop it first" in done.err
    again = (await stack.status())["daemon"]
    assert (again["pid"], again["epoch"], again["leading"]) == (first["pid"], first["epoch"], True)


async def test_of_three_daemons_started_at_the_same_moment_one_leads(stack: Any) -> None:
    launches = (await stack.statistics())["launches"]
    assert await stack.stop("daemon") == 0
    rivals = [stack.part("daemon") for _ in range(3)]
    await asyncio.gather(*(rival.start() for rival in rivals))
    try:
        ends = [asyncio.create_task(rival.ended()) for rival in rivals]
        async with asyncio.timeout(60):
            while sum(end.done() for end in ends) < 2:  # noqa: ASYNC110 - two of three, no matter which
                await asyncio.sleep(0.05)
        leaders = [rival for rival, end in zip(rivals, ends, strict=True) if not end.done()]
        assert [end.result() for end in ends if end.done()] == [1, 1]
        (stack.parts["daemon"],) = leaders
        await stack.settled()
        assert (await stack.status())["daemon"]["pid"] == leaders[0].pid
    finally:
        for rival in rivals:
            if rival is not stack.parts["daemon"]:
                await rival.stop()
    assert (await stack.statistics())["launches"] == launches


async def test_stopping_waits_for_no_follower(stack: Any) -> None:
    """`events -f` asks with a long poll; the daemon ends all the same, and the follower comes back."""
    follower = await asyncio.create_subprocess_exec(
        *stack.command("events", "-f", "-n", "1", "-o", "json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=stack.full_environment,
    )
    try:
        async with asyncio.timeout(60):
            await follower.stdout.readline()
            # 0, where -9 would mean that it had to be killed after many seconds
            assert await stack.stop("daemon") == 0
            assert b"waiting for it" in await follower.stderr.readline()
            await stack.start("daemon")
            kind = b""
            while b"DaemonStarted" not in kind:
                kind = await follower.stdout.readline()
    finally:
        follower.kill()
        await follower.wait()


async def test_started_with_other_replicas_the_pool_follows(stack: Any) -> None:
    """Up to six and back to four, under load: nodes go only once they are drained."""
    async with stack.traffic() as traffic:
        for replicas in (6, 4):
            before = {n["id"] for n in (await stack.settled())["nodes"]}
            assert await stack.stop("daemon") == 0
            stack.configure({"pool.test": {"replicas": replicas}})
            await stack.start("daemon")
            await stack.until_pool("it is known", lambda pool, wanted=replicas: pool["wanted"] == wanted)
            pool = await stack.settled()
            after = {n["id"] for n in pool["nodes"]}
            assert len(after) == replicas
            assert after > before or after < before
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0
