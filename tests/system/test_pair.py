"""Two daemons on one database, one cloud and one gateway: one acts, and when it fails the other does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from daemon_pair import LEASE, Host, Pair, pair_on

from orchestrator.api.client import ClientError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
]

BOOT_DELAY = 1.0  # long enough to fail in the middle of a swap
LAUNCH = b"POST /v1/instances HTTP"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_pair(
    postgres: Any,
    tmp_path_factory: pytest.TempPathFactory,
    toml_writer: Callable[..., None],
    stack_in: Callable[..., Any],
) -> AsyncIterator[Pair]:
    parts = ("local-cloud", "gateway")
    async with (
        stack_in(tmp_path_factory.mktemp("pair"), {}, BOOT_DELAY, parts) as stack,
        pair_on(stack, toml_writer, postgres) as pair,
    ):
        yield pair


@pytest_asyncio.fixture(loop_scope="module")
async def pair(module_pair: Pair) -> Pair:
    """The pair, whole: one leads, the other stands by, the pool is as wanted."""
    await module_pair.ready()
    return module_pair


@pytest.mark.parametrize("failure", ["kill", "partition"])
async def test_a_leader_that_fails_in_the_middle_of_a_swap(
    pair: Pair, failure: str, record_property: Callable[[str, object], None]
) -> None:
    """kill -9, no way to the database: at any time one daemon acts. The next test freezes one."""
    old, new = await pair.ready()
    noticed = (await pair.stack.a_node("spot"))["id"]
    async with pair.stack.traffic() as traffic:
        await pair.stack.admin("reclaim", node=noticed)
        await pair.swap_begun(noticed)
        if failure == "kill":
            await old.daemon.kill()
        else:
            old.wires["database"].fall_silent()
        seconds = await pair.taken_over(new)
        if failure == "partition":
            old.wires["database"].speak()
            async with asyncio.timeout(60):
                assert await old.daemon.ended() == 1, "the one that was superseded ends"
            assert "took over" in old.daemon.last_words(30)
        await pair.stack.settled()
        await traffic.answers(10)
    record_property("takeover_s", round(seconds, 2))
    print(f"{failure}: taken over after {seconds:.1f} s, lease {LEASE:g} s")
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0
    assert pair.late(old, new) == [], "two daemons acted by turns"
    await pair.obeyed(new)
    await pair.nothing_twice()


async def test_a_launch_of_the_old_leader_that_arrives_late_launches_nothing_twice(pair: Pair) -> None:
    """It is under way when its daemon is frozen; the new leader asks again with the same token."""
    old, new = await pair.ready()
    noticed = (await pair.stack.a_node("spot"))["id"]
    wire = old.wires["cloud"]
    wire.hold_at(LAUNCH)
    async with pair.stack.traffic() as traffic:
        await pair.stack.admin("reclaim", node=noticed)
        async with asyncio.timeout(60):
            await wire.held.wait()
        os.kill(old.daemon.pid, signal.SIGSTOP)
        await pair.taken_over(new)
        wire.speak()
        os.kill(old.daemon.pid, signal.SIGCONT)
        async with asyncio.timeout(60):
            assert await old.daemon.ended() == 1, "the one that was superseded ends"
        assert "took over" in old.daemon.last_words(30)
        await pair.stack.settled()
        await traffic.answers(10)
    assert (traffic.report.failures, traffic.report.streams_cut) == ({}, 0)
    events = await pair.stack.events()
    asked = [
        e["data"]["token"] for e in events if e["kind"] == "IntentOpened" and e["data"]["replaces"] == noticed
    ]
    assert len(set(asked)) == 1, "the new leader went on with the intent of the old one"
    assert (old.name, "/v1/instances") in pair.record
    assert (new.name, "/v1/instances") in pair.record
    # What was between its look at the lease and the wire: a launch by a token that is in the journal, a
    # target set of an older generation. Neither has an effect of its own.
    late = pair.late(old, new)
    assert set(late) <= {"/v1/instances", "/v1/targets"}
    assert len(late) <= 3
    await pair.obeyed(new)
    await pair.nothing_twice()


async def test_a_leader_that_is_stopped_hands_over_at_once(pair: Pair) -> None:
    """Long before the lease would have run out; no node and no target is touched."""
    old, new = await pair.ready()
    before = await pair.stack.nodes()
    async with pair.stack.traffic() as traffic:
        assert await old.daemon.stop() == 0
        await pair.taken_over(new)
        await traffic.answers(10)
    assert traffic.report.failures == {}
    assert set(await pair.stack.nodes()) == set(before)
    assert all(path == "/v1/targets" for _, path in pair.record)


async def test_a_standby_says_who_leads(pair: Pair) -> None:
    leader, standby = await pair.ready()
    leading = (await leader.status())["daemon"]
    view = await standby.status()
    assert view["pools"] == []
    assert view["daemon"]["leading"] is False
    said = f"pid {leading['pid']} on "
    assert view["daemon"]["leader"].startswith(said)
    assert f"(epoch {leading['epoch']})" in view["daemon"]["leader"]
    assert await asyncio.to_thread(_get, standby, "/readyz") == (
        200,
        f"standby: {view['daemon']['leader']} leads\n",
    )
    assert (await asyncio.to_thread(_get, standby, "/healthz"))[0] == 200
    assert await asyncio.to_thread(_get, standby, "/v1/sd") == (200, "[]")
    code, text = await asyncio.to_thread(_get, standby, "/v1/events")
    assert code == 503
    assert f"this daemon is a standby: {said}" in json.loads(text)["error"]
    with pytest.raises(ClientError, match="this daemon is a standby"):
        await asyncio.to_thread(standby.client.post, "/v1/pause")
    assert 'orchestrator_leading{pool="test"} 0.0' in (await asyncio.to_thread(_get, standby, "/metrics"))[1]
    assert (await leader.status())["daemon"]["leader"] is None


async def test_a_standby_without_its_database_says_so_and_comes_back(pair: Pair) -> None:
    leader, standby = await pair.ready()
    wire = standby.wires["database"]
    wire.fall_silent()

    async def ready_is(code: int) -> bool:
        return (await asyncio.to_thread(_get, standby, "/readyz"))[0] == code

    await pair.stack.until("the standby is not ready", lambda: ready_is(503))
    wire.speak()
    await pair.stack.until("the standby is ready", lambda: ready_is(200))
    assert await leader.leads()
    assert standby.daemon.running


async def test_nobody_acts_while_no_database_answers(pair: Pair) -> None:
    """Neither daemon reaches it for longer than a lease: nobody acts, and then one goes on."""
    leader, standby = await pair.ready()
    launches = (await pair.stack.statistics())["launches"]
    epoch = (await leader.status())["daemon"]["epoch"]
    for host in (leader, standby):
        host.wires["database"].fall_silent()
    async with pair.stack.traffic() as traffic:

        async def nobody() -> bool:
            found = [await host.status() for host in (leader, standby)]
            return not any(f is None or f["daemon"]["leading"] for f in found)

        await pair.stack.until("nobody leads", nobody)
        pair.record.clear()
        await traffic.answers(20)
        assert pair.record == []
        assert (await pair.stack.statistics())["launches"] == launches
        for host in (leader, standby):
            host.wires["database"].speak()

        async def again() -> bool:
            return await leader.leads() or await standby.leads()

        await pair.stack.until("somebody leads again", again)
        winner = leader if await leader.leads() else standby
        pair.stack.client = winner.client
        await pair.stack.settled()
    assert traffic.report.failures == {}
    assert (await winner.status())["daemon"]["epoch"] >= epoch
    assert (await pair.stack.statistics())["launches"] == launches


async def test_a_notice_that_no_database_can_record_still_takes_its_node_out(pair: Pair) -> None:
    """It comes after the lease has run out: its node leaves the gateway, and nothing else is done."""
    leader, standby = await pair.ready()
    launches = (await pair.stack.statistics())["launches"]
    noticed = (await pair.stack.a_node("spot"))["id"]
    for host in (leader, standby):
        host.wires["database"].fall_silent()
    async with pair.stack.traffic() as traffic:

        async def lapsed() -> bool:
            status = await leader.status()
            return status is not None and not status["daemon"]["leading"]

        await pair.stack.until("the lease has run out", lapsed)
        pair.record.clear()
        await pair.stack.admin("reclaim", node=noticed)
        await pair.stack.until(f"{noticed} gets no new requests", lambda: pair.drains(noticed))
        await traffic.answers(20)
        status = await leader.status()
        assert status["daemon"]["leading"] is False
        assert status["daemon"]["database_silent_s"] > LEASE / 2
        said = " ".join(status["pools"][0]["problems"])
        assert "the database has not answered for " in said
        assert "noticed nodes are still taken out of the balancers; nothing is launched or ended" in said
        assert set(pair.record) == {(leader.name, "/v1/targets")}
        assert (await pair.stack.statistics())["launches"] == launches
        for host in (leader, standby):
            host.wires["database"].speak()

        async def again() -> bool:
            return await leader.leads() or await standby.leads()

        await pair.stack.until("somebody leads again", again)
        winner = leader if await leader.leads() else standby
        pair.stack.client = winner.client
        await pair.stack.settled()
        assert noticed not in await pair.stack.nodes()
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0
    await pair.obeyed(winner)
    await pair.nothing_twice()


async def test_a_daemon_that_only_its_own_host_cuts_off_is_refused_once_the_other_leads(pair: Pair) -> None:
    """It still hears a notice and would take the node out: the gateway has a newer set by then."""
    old, new = await pair.ready()
    old.wires["database"].fall_silent()
    async with pair.stack.traffic() as traffic:
        await pair.taken_over(new)
        noticed = (await pair.stack.a_node("spot"))["id"]
        await pair.stack.admin("reclaim", node=noticed)
        await pair.stack.until(f"{noticed} gets no new requests", lambda: pair.drains(noticed))
        await pair.stack.settled()
        await pair.obeyed(new)
        assert "/v1/instances" not in pair.late(old, new)
        old.wires["database"].speak()
        async with asyncio.timeout(60):
            assert await old.daemon.ended() == 1
        await traffic.answers(10)
    assert "took over" in old.daemon.last_words(30)
    assert traffic.report.failures == {}
    await pair.obeyed(new)
    await pair.nothing_twice()


def _get(host: Host, path: str) -> tuple[int, str]:
    """One GET on a daemon's control socket: status and body."""
    import http.client
    import socket

    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(host.client.socket_path))
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()
