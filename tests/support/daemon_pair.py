"""Two daemons on one database, one cloud and one gateway, for tests that fail one of them.

Each daemon reaches the cloud, the gateway and the database over wires of its own, on which the test listens:
what a daemon asks for is on record with its name, and a wire can fall silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from orchestrator.api.client import ClientError, ControlClient
from orchestrator.demo.processes import Process

LEASE = 5.0  # seconds
ACTS = re.compile(rb"(?:POST (/v1/instances(?:/\S+)?)|PUT (/v1/targets)) HTTP")


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
    """Two control hosts; `record` is what their daemons asked of cloud and gateway, in order."""

    def __init__(self, stack: Any, toml: Callable[..., None], url: Callable[[str], str]) -> None:
        self.stack = stack
        self.record: list[tuple[str, str]] = []
        self.a, self.b = (self._host(name, toml, url) for name in "ab")

    def _host(self, name: str, toml: Callable[..., None], url: Callable[[str], str]) -> Host:
        stack, sockets = self.stack, self.stack.sockets / name
        state = stack.directory / f"state-{name}"
        for directory in (sockets, state):
            directory.mkdir()
        tables = stack.tables
        pools = [
            table.split(".")[1] for table in tables if table.startswith("pool.") and table.count(".") == 1
        ]
        config = stack.directory / f"{name}.toml"
        changes: dict[str, dict[str, str]] = {
            "daemon": {
                "state_dir": str(state),
                "socket": str(sockets / "daemon"),
                "listen": "off",
                "store": url(str(sockets)),
                "lease": f"{LEASE:g}s",
            },
        }
        for number, pool in enumerate(pools):
            changes[f"pool.{pool}.cloud"] = {"socket": str(sockets / "cloud")}
            file = stack.state / (f"targets-{pool}.json" if number else "targets.json")
            changes[f"pool.{pool}.gateway"] = {"targets_file": str(file)}
        own = "gateway" if "gateway" in tables else f"pool.{pools[0]}.gateway"
        changes.setdefault(own, {})["socket"] = str(sockets / "gateway")
        toml(config, tables, changes)
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
        """Both run, the pools are as wanted, nothing is on record: the one that leads and the standby."""
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
        """Wait until a daemon leads and the pools are as wanted; the seconds until it led."""
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

    async def gateway(self, pool: str) -> Any:
        """What the gateway holds of a pool."""
        connector = aiohttp.UnixConnector(str(self.stack.sockets / "gateway"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://gateway/v1/state", params={"pool": pool}) as answer,
        ):
            return await answer.json()

    async def obeyed(self, by: Host) -> None:
        """The gateway holds what the leader wrote last, of every pool."""
        status = await by.status()
        for pool in status["pools"]:
            generation = (await self.gateway(pool["name"]))["generation"]
            assert generation >> 20 == status["daemon"]["epoch"]

    async def drains(self, node: str, pool: str = "test") -> bool:
        """The gateway sends the node no new requests."""
        targets = (await self.gateway(pool))["targets"]
        return not any(t["id"] == node and t["phase"] == "active" for t in targets)

    async def swap_begun(self, noticed: str) -> None:
        """Wait until a machine was asked for since the notice of a node, whichever it is said to replace."""

        async def begun() -> bool:
            heard = False
            for event in await self.stack.events():
                data = event["data"]
                heard = heard or (event["kind"] == "NoticeSeen" and data["notice"]["node"] == noticed)
                if heard and event["kind"] == "IntentOpened" and data["kind"] == "launch":
                    return True
            return False

        await self.stack.until(f"the swap of {noticed} has begun", begun)

    async def nothing_twice(self) -> None:
        """Every machine was asked for by one intent of the journal, and lives or is gone for good."""
        seen = await self.stack.statistics()
        done = self.stack.launch_intents(await self.stack.events())
        assert seen["launches"] == len(done), "the cloud launched something that the journal does not know"
        nodes = await self.stack.nodes()
        assert len({n["token"] for n in nodes.values()}) == len(nodes)
        assert set(nodes) == set(seen["live"])
        assert seen["orphans"] == []


@contextlib.asynccontextmanager
async def pair_on(stack: Any, toml_writer: Callable[..., None], postgres: Any) -> AsyncIterator[Pair]:
    """Two daemons beside the cloud and the gateway of a stack, on a database of their own."""
    name = postgres.database().partition("?")[0].rpartition("/")[2]
    pair = Pair(stack, toml_writer, lambda host: postgres.url(name, host))
    await pair.open(postgres.socket())
    try:
        yield pair
    finally:
        await pair.close()
