"""A gateway and simulated engines in processes of their own, and what kills, stops and cuts them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import select
import signal
import socket
import statistics
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from cloud.balancers.gateway import GatewayBalancer
from cloud.clock import SystemClock
from cloud.engines.metrics_text import read_samples
from cloud.errors import Uncertain
from orchestrator.demo.processes import Process
from policies.model import TargetSpec

PATIENCE = 60.0
"""Seconds for anything that is expected to happen; two busy cores make much slow."""

_ANSWERS = aiohttp.ClientTimeout(total=10.0)  # one that is killed while it is asked answers nobody

MODEL = "simulated"

OFFERS = ("--enable-scale-out", "--enable-tokenizer-info-endpoint")
"""Words of every engine's command line: its streams can be continued."""

LAUNCH = """
import fcntl, os, sys
kept = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for place, number in enumerate(kept):
    os.dup2(number, 3 + place)
os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = str(len(kept)), str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "orchestrator.gateway", sys.argv[2]])
"""
"""Starts a gateway as systemd does: its sockets are descriptors 3 and on."""


class Engine:
    """One simulated engine, on a port that it keeps over its lives; `options` are of its command line."""

    def __init__(self, name: str, directory: Path, options: Sequence[str] = ()) -> None:
        self.name = name
        self._kept = _reserved()
        self.port: int = self._kept.getsockname()[1]
        words = ("--model", MODEL, "--port", str(self.port), *OFFERS, *options)
        self._process = Process(
            name,
            *words,
            directory=directory,
            program=(sys.executable, "-m", "cloud.engines.simulated_server"),
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process.running

    async def start(self) -> None:
        """Start it and wait until it accepts."""
        await self._process.start()
        await until(f"{self.name} accepts", self._accepts)

    def freeze(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    async def kill(self) -> None:
        """kill -9, also of one that is stopped."""
        await self._process.kill()

    async def close(self) -> None:
        await self.kill()
        self._kept.close()

    async def _accepts(self) -> bool:
        self._process.check()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


class Relay:
    """A cable to an engine that can be cut: every connection through it ends with a RST, later ones too."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._whole = True
        self._ends: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server
        self.address = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=4096)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self._whole = False
        for end in self._ends:
            _reset(end)

    async def close(self) -> None:
        self.cut()
        self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            _reset(writer)
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        ends = {writer, back}
        self._ends |= ends
        await asyncio.gather(_pump(reader, back), _pump(there, writer))
        self._ends -= ends


class RefusedHeir(Exception):
    """The gateway could not hand over; the message is its own."""


class GatewayRig:
    """One gateway with default settings but for `settings`, over all its processes.

    `kept`: its sockets are this process's, as systemd holds them, so that one that is killed refuses nobody.
    `pid` is of the process that serves, 0 before the first.
    """

    def __init__(
        self, directory: Path, settings: dict[str, Any] | None = None, *, kept: bool = False
    ) -> None:
        self._directory = directory
        self.socket = directory / "gw.sock"
        self._sockets = self._make_sockets() if kept else ()
        self._settings = {
            "targets_file": str(directory / "targets.json"),
            "socket": str(self.socket),
            "port": self._sockets[0].getsockname()[1] if kept else 0,
            **(settings or {}),
        }
        self._pids: dict[int, int] = {}
        self.balancer = self.new_balancer()
        self._generation = 0
        self.pid = 0
        self.url = ""

    def new_balancer(self) -> GatewayBalancer:
        """The daemon's side."""
        return GatewayBalancer(
            socket=self.socket,
            targets_file=self._directory / "targets.json",
            pool="rig",
            clock=SystemClock(),
        )

    async def start(self, *, environment: dict[str, str] | None = None, cwd: Path | None = None) -> None:
        """Start a process and wait until it answers."""
        words = [sys.executable, "-m", "orchestrator.gateway", json.dumps(self._settings)]
        if self._sockets:
            given = ",".join(str(each.fileno()) for each in self._sockets)
            words = [sys.executable, "-c", LAUNCH, given, json.dumps(self._settings)]
        with (self._directory / "gateway.log").open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[each.fileno() for each in self._sockets],
                env={**os.environ, **(environment or {})},
                cwd=cwd,
                start_new_session=True,
            )
        self._serves(child.pid)
        await until("the gateway answers", self._answers)

    async def apply(self, targets: Sequence[TargetSpec]) -> None:
        """Make these the targets, in its memory and in its file, and wait until all are healthy."""
        self._generation += 1
        await self.balancer.apply(targets, self._generation)
        await self.balancer.flush()
        await self.healthy(*(target.id for target in targets))

    async def healthy(self, *names: str) -> None:
        """Wait until these targets are."""

        async def all_are() -> bool:
            states = {row["id"]: row["state"] for row in (await self.state())["targets"]}
            return all(states.get(name) == "healthy" for name in names)

        await until(f"the gateway takes {', '.join(names)} for healthy", all_are)

    async def state(self) -> dict[str, Any]:
        """GET /v1/state. Raises OSError, aiohttp.ClientError."""
        answer: dict[str, Any] = json.loads(await self._ask("GET", "/v1/state"))
        return answer

    async def counted(self, *names: str) -> dict[str, int]:
        """Sums of counters, named without what all names begin and end with; 0 where there is none."""
        text = (await self._ask("GET", "/metrics")).decode()
        full = {f"orchestrator_gateway_{name}_total": name for name in names}
        found = read_samples(text, list(full))
        return {name: int(found.get(long, 0)) for long, name in full.items()}

    async def replace(self) -> None:
        """Hand over to a new process. Raises RefusedHeir."""

        async def heard() -> bool:
            try:
                told = json.loads(await self._ask("POST", "/v1/replace"))
            except (OSError, aiohttp.ClientError):
                return False
            if "pid" in told:
                self._serves(int(told["pid"]))
            elif "stopping already" not in str(told):
                raise RefusedHeir(str(told))
            return "pid" in told

        await until("the gateway hands over", heard)  # one that has handed over may still take the call

    async def kill(self) -> None:
        """kill -9 of the process that serves; returns once it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        await self._gone(self._pids[self.pid])

    async def stop(self) -> None:
        """Ask every process that it ever was to end, and wait until all have."""
        for handle in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGTERM)
        for handle in self._pids.values():
            await self._gone(handle)

    async def close(self) -> None:
        """End every process that it ever was."""
        await self.balancer.close()
        for handle in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            await self._gone(handle)
            os.close(handle)
        for each in self._sockets:
            each.close()

    def _make_sockets(self) -> tuple[socket.socket, socket.socket]:
        public = socket.create_server(("127.0.0.1", 0), backlog=4096)
        control = socket.socket(socket.AF_UNIX)
        control.bind(str(self.socket))
        control.listen()
        return public, control

    def _serves(self, pid: int) -> None:
        self.pid = pid
        self._pids[pid] = os.pidfd_open(pid)

    async def _gone(self, handle: int) -> None:
        async def ended() -> bool:
            return bool(select.select([handle], [], [], 0)[0])

        await until("the gateway's process has ended", ended)

    async def _answers(self) -> bool:
        if select.select([self._pids[self.pid]], [], [], 0)[0]:
            raise AssertionError((self._directory / "gateway.log").read_text(errors="replace")[-2000:])
        try:
            state = await self.state()
            self.url = f"{'https' if state.get('tls') else 'http'}://{state['listen']}"
        except (OSError, aiohttp.ClientError):
            return False
        return True

    async def _ask(self, method: str, path: str) -> bytes:
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_ANSWERS) as session,
            session.request(method, f"http://gateway{path}", json=None if method == "GET" else {}) as answer,
        ):
            return await answer.read()


@contextlib.asynccontextmanager
async def running(
    directory: Path, nodes: int, options: Sequence[str] = (), *, kept: bool = False
) -> AsyncIterator[tuple[GatewayRig, list[Engine]]]:
    """A gateway that holds so many engines for healthy. Nothing of it is left afterwards."""
    engines = [Engine(f"n{number}", directory, options) for number in range(nodes)]
    rig = GatewayRig(directory, kept=kept)
    try:
        await asyncio.gather(*(engine.start() for engine in engines))
        await rig.start()
        await rig.apply([TargetSpec(id=engine.name, address=engine.address) for engine in engines])
        yield rig, engines
    finally:
        await rig.close()
        for engine in engines:
            await engine.close()


@contextlib.asynccontextmanager
async def reference(directory: Path) -> AsyncIterator[str]:
    """The address of an engine that answers quickly and that nothing disturbs."""
    engine = Engine("reference", directory, ("--tokens-per-second", "5000", "--time-to-first-token", "0"))
    try:
        await engine.start()
        yield engine.address
    finally:
        await engine.close()


async def until(what: str, holds: Callable[[], Awaitable[bool]], *, step: float = 0.02) -> None:
    """Wait until `holds()` is true. Raises AssertionError after PATIENCE seconds."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not await holds():  # noqa: ASYNC110 - a process is asked
                await asyncio.sleep(step)
    except (TimeoutError, Uncertain) as error:
        raise AssertionError(f"{what}: not within {PATIENCE:.0f} s") from error


def progress(text: str) -> None:
    """One line for who waits, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """The machine that a measurement was made on, and how busy it is."""
    model = "unknown CPU"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies; not a number where there are fewer than two."""
    return statistics.quantiles(values, n=1000)[int(share * 1000) - 1] if len(values) > 1 else float("nan")


def _reserved() -> socket.socket:
    """A socket that keeps a port from everybody but who binds it with SO_REUSEADDR and listens."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
