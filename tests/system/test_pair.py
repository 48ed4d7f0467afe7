"""Two daemons on one database, one cloud and one gateway: one acts, and when it fails the other does.

Each daemon reaches the cloud, the gateway and the database over wires of its own, on which the test listens:
what a daemon asks for is on record with its name, and a wire can fall silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from orchestrator.api.client import ClientError, ControlClient
from orchestrator.demo.processes import Process

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

BOOT_DELAY = 1.0  # long enough to fail in the middle of a swap
LEASE = 5.0
ACTS = re.compile(rb"(?:POST (/v1/instances(?:/\S+)?)|PUT (/v1/targets)) HTTP")
LAUNCH = b"POST /v1/instances HTTP"


class Wire:
    """A unix socket that carries what comes to another one, and writes down who asked for what."""

    def __init__(self, who: str, near: Path, far: Path, record: list[tuple[str, str]]) -> None:
        self._who, self._near, self._far, self._record = who, near, far, record
        self._flows, self.held = asyncio.Event(), asyncio.Event()
        self._flows.set()
        self._hold_at = b""
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._carry, str(self._near))

    def fall_silent(self) -> None:
        """Nothing arrives any more; connections stay open."""
        self._flows.clear()

    def hold_at(self, words: bytes) -> None:
        """Fall silent right before something is delivered."""
        self.held.clear()
        self._hold_at = words

    def speak(self) -> None:
        """Deliver what was held up, and all that follows."""
        self._hold_at = b""
        self._flows.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._far))
        except OSError:
            writer.close()
            return
        for source, sink, out in ((reader, far_writer, True), (far_reader, writer, False)):
            pump = asyncio.create_task(self._pump(source, sink, out))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, out: bool) -> None:
        try:
            while data := await source.read(65536):
                if out:
                    self._record += [(self._who, (a or b).decode()) for a, b in ACTS.findall(data)]
                if out and self._hold_at and self._hold_at in data:
                    self._flows.clear()
                    self.held.set()
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


@dataclass
class Host:
    """One control host: its daemon and its wires."""

    name: str
    daemon: Process
    client: ControlClient
    config: Path
    wires: dict[str, Wire] = field(default_factory=dict)

    async def status(self) -> Any:
        """The daemon's status; None while it does not answer."""
        with contextlib.suppress(ClientError):
            return await asyncio.to_thread(self.client.status)

    async def leads(self) -> bool:
        status = await self.status()
        return bool(status and status["daemon"]["leading"] and status["pools"])


class Pair:
    """Two control hosts of one pool. `record` is what their daemons asked of cloud and gateway, in order."""

    def __init__(self, stack: Any, toml: Callable[..., None], url: Callable[[str], str]) -> None:
        self.stack = stack
        self.record: list[tuple[str, str]] = []
        self.a, self.b = (self._host(name, toml, url) for name in "ab")

    def _host(self, name: str, toml: Callable[..., None], url: Callable[[str], str]) -> Host:
        stack, sockets = self.stack, self.stack.sockets / name
        state = stack.directory / f"state-{name}"
        for directory in (sockets, state):
            directory.mkdir()
        pool = "pool.test"
        config = stack.directory / f"{name}.toml"
        changes = {
            "daemon": {
                "state_dir": str(state),
                "socket": str(sockets / "daemon"),
                "listen": "off",
                "store": url(str(sockets)),
                "lease": f"{LEASE:g}s",
            },
            f"{pool}.cloud": {"socket": str(sockets / "cloud")},
            f"{pool}.gateway": {
                "socket": str(sockets / "gateway"),
                "targets_file": str(stack.state / "targets.json"),
            },
        }
        toml(config, stack._tables, changes)
        daemon = Process(
            f"daemon-{name}",
            "run",
            "--config",
            str(config),
            directory=stack.directory,
            environment=stack.environment,
        )
        return Host(name, daemon, ControlClient(sockets / "daemon"), config)

    async def open(self, database: Path) -> None:
        """Lay the wires."""
        for host in (self.a, self.b):
            near = self.stack.sockets / host.name
            for what, file, far in (
                ("cloud", "cloud", self.stack.sockets / "cloud"),
                ("gateway", "gateway", self.stack.sockets / "gateway"),
                ("database", database.name, database),
            ):
                wire = host.wires[what] = Wire(host.name, near / file, far, self.record)
                await wire.open()

    async def close(self) -> None:
        for host in (self.a, self.b):
            with contextlib.suppress(ProcessLookupError):
                os.kill(host.daemon.pid, signal.SIGCONT) if host.daemon.running else None
            for wire in host.wires.values():
                wire.speak()
            await host.daemon.stop()
        for host in (self.a, self.b):
            for wire in host.wires.values():
                await wire.close()

    async def ready(self) -> tuple[Host, Host]:
        """Both run, the pool is as wanted, nothing is on record: the one that leads and the standby."""
        found: list[Host] = []

        async def formed() -> bool:
            for host in (self.a, self.b):
                if not host.daemon.running:  # one that lost its lease may still have been ending
                    await host.daemon.start()
            leading = [await host.leads() for host in (self.a, self.b)]
            found[:] = [self.a, self.b] if leading[0] else [self.b, self.a]
            return sum(leading) == 1 and await found[1].status() is not None

        await self.stack.until("one daemon leads and one stands by", formed)
        leader, standby = found
        self.stack.client = leader.client
        await self.stack.settled()
        self.record.clear()
        return leader, standby

    async def taken_over(self, by: Host) -> float:
        """Wait until a daemon leads and the pool is as wanted; the seconds until it led."""
        began = asyncio.get_running_loop().time()
        await self.stack.until(f"{by.name} leads", by.leads)
        seconds = asyncio.get_running_loop().time() - began
        self.stack.client = by.client
        await self.stack.settled()
        return seconds

    def late(self, old: Host, new: Host) -> list[str]:
        """What one daemon asked for after another had begun to act."""
        first = next((n for n, (who, _) in enumerate(self.record) if who == new.name), len(self.record))
        return [what for who, what in self.record[first:] if who == old.name]

    async def gateway(self) -> Any:
        """What the gateway holds."""
        connector = aiohttp.UnixConnector(str(self.stack.sockets / "gateway"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://gateway/v1/state") as answer,
        ):
            return await answer.json()

    async def obeyed(self, by: Host) -> None:
        """The gateway holds what the leader wrote last."""
        generation = (await self.gateway())["generation"]
        assert generation >> 20 == (await by.status())["daemon"]["epoch"]

    async def drains(self, node: str) -> bool:
        """The gateway sends the node no new requests."""
        targets = (await self.gateway())["targets"]
        return not any(t["id"] == node and t["phase"] == "active" for t in targets)

    async def nothing_twice(self) -> None:
        """Every machine was asked for by one intent of the journal, and lives or is gone for good."""
        seen = await self.stack.statistics()
        done = self.stack.launch_intents(await self.stack.events())
        assert seen["launches"] == len(done), "the cloud launched something that the journal does not know"
        nodes = await self.stack.nodes()
        assert len({n["token"] for n in nodes.values()}) == len(nodes)
        assert set(nodes) == set(seen["live"])
        assert seen["orphans"] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_pair(
    postgres: Any,
    tmp_path_factory: pytest.TempPathFactory,
    toml_writer: Callable[..., None],
    stack_in: Callable[..., Any],
) -> AsyncIterator[Pair]:
    name = postgres.database().partition("?")[0].rpartition("/")[2]
    async with stack_in(tmp_path_factory.mktemp("pair"), {}, BOOT_DELAY, ("local-cloud", "gateway")) as stack:
        pair = Pair(stack, toml_writer, lambda host: postgres.url(name, host))
        await pair.open(postgres.socket())
        try:
            yield pair
        finally:
            await pair.close()


@pytest_asyncio.fixture(loop_scope="module")
async def pair(module_pair: Pair) -> Pair:
    """The pair, whole: one leads, the other stands by, the pool is as wanted."""
    await module_pair.ready()
    return module_pair


async def _swap_begun(pair: Pair, noticed: str) -> None:
    """Wait until the replacement of a node was asked for."""

    async def begun() -> bool:
        events = await pair.stack.events()
        return any(e["kind"] == "IntentOpened" and e["data"]["replaces"] == noticed for e in events)

    await pair.stack.until(f"the swap of {noticed} has begun", begun)


@pytest.mark.parametrize("failure", ["kill", "freeze", "partition"])
async def test_a_leader_that_fails_in_the_middle_of_a_swap(
    pair: Pair, failure: str, record_property: Callable[[str, object], None]
) -> None:
    """kill -9, SIGSTOP until the other leads, no way to the database: at any time one daemon acts."""
    old, new = await pair.ready()
    noticed = (await pair.stack.a_node("spot"))["id"]
    async with pair.stack.traffic() as traffic:
        await pair.stack.admin("reclaim", node=noticed)
        await _swap_begun(pair, noticed)
        match failure:
            case "kill":
                await old.daemon.kill()
            case "freeze":
                os.kill(old.daemon.pid, signal.SIGSTOP)
            case "partition":
                old.wires["database"].fall_silent()
        seconds = await pair.taken_over(new)
        match failure:
            case "freeze":
                os.kill(old.daemon.pid, signal.SIGCONT)
            case "partition":
                old.wires["database"].speak()
        if failure != "kill":
            async with asyncio.timeout(60):
                assert await old.daemon.ended() == 1, "the one that was superseded ends"
            assert "took over" in old.daemon.last_words(30)
        await pair.stack.settled()
        await traffic.answers(10)
    record_property("takeover_s", round(seconds, 2))
    print(f"{failure}: taken over after {seconds:.1f} s, lease {LEASE:g} s")
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0
    late = pair.late(old, new)
    if failure == "freeze":
        # What was between its look at the lease and the wire: a launch by a token that is in the journal, a
        # target set of an older generation. Neither has an effect of its own.
        assert set(late) <= {"/v1/instances", "/v1/targets"}
        assert len(late) <= 3
    else:
        assert late == [], "two daemons acted by turns"
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
            assert await old.daemon.ended() == 1
        await pair.stack.settled()
        await traffic.answers(10)
    assert traffic.report.failures == {}
    events = await pair.stack.events()
    asked = [
        e["data"]["token"] for e in events if e["kind"] == "IntentOpened" and e["data"]["replaces"] == noticed
    ]
    assert len(set(asked)) == 1, "the new leader went on with the intent of the old one"
    assert (old.name, "/v1/instances") in pair.record
    assert (new.name, "/v1/instances") in pair.record
    assert set(pair.late(old, new)) <= {"/v1/instances", "/v1/targets"}
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
