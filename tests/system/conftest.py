"""A whole system of real processes: local cloud, gateway, daemon, engines, made for one module or one test.

A stack ends with everything that it started, whatever a test does, and the end is checked: every process of a
stack carries a mark in its environment, and none with that mark may be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aws_stage import STRICT, AwsShim

from cloud.clock import SystemClock
from cloud.errors import CloudError
from cloud.local.config import LocalCloudConfig, Reclaiming, dump_config
from cloud.local.connection import LocalCloud
from orchestrator.api.client import ClientError, ControlClient
from orchestrator.demo.load import Load, LoadReport
from orchestrator.demo.play import journal
from orchestrator.demo.processes import Process
from orchestrator.views.api import EventView, NodeView, PoolView, StatusView

PATIENCE = 60.0
"""Seconds for anything that is expected to happen; two busy cores make much slow."""

MARK = "ORCHESTRATOR_TEST_STACK"
POOL = "test"
ORDER = ("local-cloud", "gateway", "daemon")
MOVING = ("pending", "starting", "draining", "terminating")

Table = Mapping[str, object]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now, and that the system gives to no connection on its way out."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


def marked(mark: str) -> dict[int, str]:
    """Living processes with this mark in their environment, and their command lines."""
    found = {}
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found[int(entry.name)] = b" ".join(words).decode(errors="replace")
    return found


def toml(tables: Mapping[str, Table]) -> str:
    """Tables as TOML; strings and numbers are written as JSON writes them. `[name]` is one of a list."""
    lines = []
    for name, values in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_written(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _written(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_written(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def merged(base: Mapping[str, Table], changes: Mapping[str, Table]) -> dict[str, dict[str, object]]:
    """Tables with some keys changed or added; a table or key that is None goes."""
    made = {name: dict(values) for name, values in base.items()}
    for name, values in changes.items():
        made.setdefault(name, {}).update(values)
    return {
        name: {key: value for key, value in values.items() if value is not None}
        for name, values in made.items()
    }


@dataclass
class Traffic:
    """A load that runs while a test does something."""

    report: LoadReport
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def answers(self, more: int = 20) -> None:
        """Wait until so many more requests were answered: the path through the gateway works now."""
        goal = self.report.answered + more
        async with asyncio.timeout(PATIENCE):
            while self.report.answered < goal:  # noqa: ASYNC110 - the load tells nobody
                await asyncio.sleep(0.02)


class Stack:
    """The processes of one pool and short ways to what tests ask of them."""

    def __init__(
        self, directory: Path, sockets: Path, changes: Mapping[str, Table], boot_delay: float
    ) -> None:
        self.directory, self.sockets = directory, sockets
        self.mark = uuid.uuid4().hex
        self.state = directory / "state"
        self.state.mkdir()
        (self.state / "cloud").mkdir()
        self.gateway_port, self.gateway_metrics_port, self.monitoring_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.gateway_port}"
        self.config = directory / "pool.toml"
        self.market = directory / "market.json"
        self._tables = merged(self._defaults(), changes)
        self.configure({})
        dump_config(
            LocalCloudConfig(
                state_dir=self.state / "cloud",
                boot_delay=boot_delay,
                boot_jitter=0.0,
                reclaiming=Reclaiming(notice=30.0),
            ),
            self.market,
        )
        self.client = ControlClient(self.sockets / "daemon")
        self.cloud = LocalCloud(self.sockets / "cloud")
        self.parts: dict[str, Process] = {}

    def configure(self, changes: Mapping[str, Table]) -> None:
        """Change the configuration; a part heeds it when it is started next."""
        self._tables = merged(self._tables, changes)
        self.config.write_text(toml(self._tables), encoding="utf-8")

    @property
    def tables(self) -> dict[str, dict[str, object]]:
        """A copy of the configuration, table by table."""
        return merged(self._tables, {})

    def write(self, tables: Mapping[str, Table], text: str = "") -> None:
        """Another configuration: these tables, and more TOML after them."""
        self._tables = merged(tables, {})
        self.config.write_text(toml(self._tables) + text, encoding="utf-8")

    def _defaults(self) -> dict[str, Table]:
        return {
            "daemon": {
                "state_dir": str(self.state),
                "socket": str(self.sockets / "daemon"),
                "listen": f"127.0.0.1:{self.monitoring_port}",
                "log_format": "json",
                "tick": "250ms",
                "poll_instances": "250ms",
                "poll_targets": "250ms",
                "poll_offerings": "5s",
                "probe_interval": "250ms",
                "probe_timeout": "3s",
            },
            f"pool.{POOL}": {"replicas": 4, "model": "simulated"},
            f"pool.{POOL}.engine": {
                "kind": "simulated",
                "args": ["--load-time", "0.2", "--tokens-per-second", "50"],
            },
            f"pool.{POOL}.drain": {"budget": "5s", "margin": "1s", "settle": "100ms"},
            f"pool.{POOL}.back_to_spot": {"hold": "1s", "stable": "500ms"},
            f"pool.{POOL}.placement": {"refusal_half_life": "2s", "reclaim_half_life": "2s"},
            # Slow enough that a busy machine is not taken for a sick node.
            f"pool.{POOL}.health": {"unhealthy_after": "5s", "replace_after": "20s", "boot_timeout": "60s"},
            f"pool.{POOL}.patience": {"stale_after": "15s", "vanish_grace": "3s", "effect_timeout": "15s"},
            f"pool.{POOL}.limits": {"surge": 2, "launches_per_minute": 100},
            f"pool.{POOL}.cloud": {
                "state_dir": str(self.state / "cloud"),
                "socket": str(self.sockets / "cloud"),
            },
            f"pool.{POOL}.gateway": {
                "listen": f"127.0.0.1:{self.gateway_port}",
                "metrics_listen": f"127.0.0.1:{self.gateway_metrics_port}",
                "drain_margin": "1s",
                "socket": str(self.sockets / "gateway"),
                "health_interval": "500ms",
            },
        }

    # -- processes --------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """What is added to the environment of everything that belongs to this stack."""
        return {MARK: self.mark}

    @property
    def full_environment(self) -> dict[str, str]:
        """The environment for a process that a test starts itself."""
        return {**os.environ, **self.environment}

    def command(self, *arguments: str, config: Path | None = None) -> tuple[str, ...]:
        """The words of one command that reaches this stack's daemon, or the one of another file."""
        return (sys.executable, "-m", "orchestrator", *arguments, "--config", str(config or self.config))

    async def start(self, *names: str) -> None:
        """Start parts, the ones named or all; a part that has ended is started anew."""
        for name in names or ORDER:
            part = self.part(name)
            await part.start()
            self.parts[name] = part

    def part(self, name: str) -> Process:
        """One more process of a kind, not started and not among the parts."""
        config = ("--config", str(self.config))
        arguments = {
            "local-cloud": ("local-cloud", *config, "--market", str(self.market)),
            "gateway": ("gateway", *config),
            "daemon": ("run", *config),
        }
        return Process(name, *arguments[name], directory=self.directory, environment=self.environment)

    async def kill(self, name: str) -> None:
        """kill -9 of one part; its children are left to their own devices."""
        assert await self.parts[name].kill() == -signal.SIGKILL

    async def stop(self, name: str) -> int | None:
        """SIGTERM to one part; its exit code."""
        return await self.parts[name].stop()

    async def end(self) -> list[str]:
        """End everything; what was left over and had to be killed, by command line."""
        for name in reversed(ORDER):
            if name in self.parts:
                await self.parts[name].stop()
        await self.cloud.close()
        return await asyncio.to_thread(MarkedProcesses().after, self.mark, patience=20.0)

    def end_heirs(self) -> None:
        """SIGTERM to the gateways that others have handed over to: they are nobody's children."""
        for pid, line in self.command_lines().items():
            if " gateway " in line:
                os.kill(pid, signal.SIGTERM)

    def command_lines(self) -> dict[int, str]:
        """Every living process of this stack with its command line."""
        return marked(self.mark)

    async def cli(self, *arguments: str, config: Path | None = None) -> Done:
        """Run one command of the command line on this stack's daemon, to its end."""
        child = await asyncio.create_subprocess_exec(
            *self.command(*arguments, config=config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.full_environment,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                out, err = await child.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            raise
        return Done(child.returncode or 0, out.decode(), err.decode())

    async def healed(self) -> None:
        """Take back every fault that a test asked the cloud for, and a pause."""

        async def answered() -> bool:
            try:
                await self.admin("heal")
                await asyncio.to_thread(self.client.post, "/v1/resume")
            except (CloudError, ClientError):
                return False
            return True

        await self.until("cloud and daemon answer", answered)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One raw request to the control API: status and body."""
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(str(self.sockets / "daemon"))
        try:
            connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    # -- looking ----------------------------------------------------------------------------------

    async def status(self) -> StatusView | None:
        """The daemon's status; None while it does not answer."""
        try:
            return await asyncio.to_thread(self.client.status)
        except ClientError:
            return None

    async def pool(self) -> PoolView | None:
        """The pool's part of the status."""
        view = await self.status()
        return None if view is None else view["pools"][0]

    async def nodes(self) -> dict[str, NodeView]:
        """The nodes that the daemon shows, of every pool, by id."""
        view = await self.status()
        assert view is not None, "the daemon does not answer"
        return {node["id"]: node for pool in view["pools"] for node in pool["nodes"]}

    async def events(self) -> list[EventView]:
        """The whole journal."""
        return await journal(self.client)

    async def statistics(self) -> dict[str, Any]:
        """What the cloud has seen."""
        answer: dict[str, Any] = json.loads(await self.cloud.read("/admin/statistics"))
        return answer

    async def admin(self, order: str, **values: object) -> dict[str, Any]:
        """An order to the local cloud."""
        answer: dict[str, Any] = json.loads(await self.cloud.admin(order, json.dumps(values).encode()))
        return answer

    async def until(
        self, what: str, holds: Callable[[], Awaitable[Any]], *, patience: float = PATIENCE
    ) -> Any:
        """Wait until `holds()` is true and return it; on failure the parts' last words are shown."""
        try:
            async with asyncio.timeout(patience):
                while not (found := await holds()):  # noqa: ASYNC110 - a process is asked
                    await asyncio.sleep(0.1)
                return found
        except TimeoutError:
            pool = await self.pool()
            words = "\n".join(f"--- {name}\n{part.last_words(8)}" for name, part in self.parts.items())
            pytest.fail(f"{what}: not within {patience:.0f} s\n{json.dumps(pool)}\n{words}")

    async def until_pool(self, what: str, holds: Callable[[PoolView], Any]) -> PoolView:
        """Wait until the pool's status fits and return it."""

        async def look() -> PoolView | None:
            pool = await self.pool()
            return pool if pool is not None and holds(pool) else None

        found: PoolView = await self.until(what, look)
        return found

    async def settled(self, *, patience: float = PATIENCE) -> PoolView:
        """Wait until every pool is as wanted: the mix exact, every node in service, nothing on its way.

        And then that cloud and daemon agree: no node that the daemon does not know, no orphan process.
        The first pool is returned.
        """

        async def wanted() -> list[PoolView]:
            view = await self.status()
            return view["pools"] if view is not None and all(map(_as_wanted, view["pools"])) else []

        async def agreed() -> list[PoolView]:
            try:
                pools, seen = await wanted(), await self.statistics()
            except CloudError:
                return []
            shown = {node["id"] for pool in pools for node in pool["nodes"]}
            return pools if shown == set(seen["live"]) and not seen["orphans"] else []

        await self.until("the pools are as wanted", wanted, patience=patience)
        found: list[PoolView] = await self.until("cloud and daemon agree on the nodes", agreed)
        return found[0]

    async def turns(self, count: int) -> None:
        """Wait until the loop has turned so many times more."""

        async def total() -> int:
            view = await self.status()
            return 0 if view is None else view["daemon"]["turns"]

        goal = await total() + count

        async def turned() -> bool:
            return await total() >= goal

        await self.until(f"{count} more turns", turned)

    async def a_node(self, market: str) -> NodeView:
        """One ready node of a market that serves."""
        nodes = await self.nodes()
        return next(
            n for n in nodes.values() if n["market"] == market and n["phase"] == "ready" and n["attached"]
        )

    async def get(self, port: int, path: str) -> str:
        """One GET on a port of this machine; head and body as they come. Raises OSError."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return (await reader.read()).decode()
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def traffic(
        self,
        rate: float = 15.0,
        *,
        shortest: int = 5,
        longest: int = 30,
        seed: int = 1,
        model: str = "simulated",
    ) -> AsyncIterator[Traffic]:
        """Plain and streamed requests through the gateway while the body runs, and until all are answered."""
        load = Load(
            url=self.url, model=model, rate=rate, tokens=(shortest, longest), seed=seed, clock=SystemClock()
        )
        traffic = Traffic(load.report)
        sending = asyncio.create_task(load.run(traffic.stop))
        try:
            await traffic.answers(5)
            yield traffic
        finally:
            traffic.stop.set()
            async with asyncio.timeout(PATIENCE):
                await sending

    def launch_intents(self, events: list[EventView]) -> Counter[str]:
        """Tokens of launches that took effect by the journal, with how often each was closed as done.

        Where the answer was lost with its daemon, the next one may see the machine before it asks again.
        """
        opened = {
            e["data"]["token"]
            for e in events
            if e["kind"] == "IntentOpened" and e["data"]["kind"] == "launch"
        }
        done = Counter(
            e["data"]["token"]
            for e in events
            if e["kind"] == "IntentClosed" and e["data"]["outcome"] == "done" and e["data"]["token"] in opened
        )
        seen = {e["data"]["token"] for e in events if e["kind"] == "NodeSeen"}
        return done + Counter((seen & opened) - set(done))


def _as_wanted(pool: PoolView) -> bool:
    return (
        len(pool["nodes"]) == pool["wanted"] == pool["ready"] == pool["serving"]
        and pool["spot_ready"] == pool["spot_wanted"]
        and not any(n["phase"] in MOVING or "noticed" in n["conditions"] for n in pool["nodes"])
    )


@contextlib.asynccontextmanager
async def running_stack(
    directory: Path, changes: Mapping[str, Table], boot_delay: float, parts: tuple[str, ...]
) -> AsyncIterator[Stack]:
    """A stack whose parts were started; afterwards nothing of it is left."""
    sockets = Path(tempfile.mkdtemp(prefix="orch-"))  # short: a unix socket's path has 107 bytes
    try:
        stack = Stack(directory, sockets, changes, boot_delay)
        left = []
        try:
            await stack.start(*parts)
            yield stack
        finally:
            left = await stack.end()
        assert left == [], "processes outlived their stack"
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


NewStack = Callable[..., contextlib.AbstractAsyncContextManager[Stack]]


class MarkedProcesses:
    """Finds what a test has left running, by the mark in its environment."""

    variable = MARK

    def after(self, mark: str, *, patience: float) -> list[str]:
        """Command lines of what still lives after `patience` seconds; it is killed then."""
        until = time.monotonic() + patience
        while (left := marked(mark)) and time.monotonic() < until:
            time.sleep(0.05)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return list(left.values())


@pytest.fixture
def aws_shim(aws_shim: AwsShim) -> AwsShim:
    """The stand-in for AWS at its strictest."""
    aws_shim.order("set", **STRICT)
    return aws_shim


@pytest.fixture
def free_port() -> int:
    """A port that nobody uses now."""
    return free_ports(1)[0]


@pytest.fixture(scope="session")
def port_finder() -> Callable[[int], list[int]]:
    """Finds so many ports that nobody uses now."""
    return free_ports


@pytest.fixture(scope="session")
def marked_processes() -> MarkedProcesses:
    """For tests that start whole systems by other means than a stack."""
    return MarkedProcesses()


@pytest.fixture(scope="session")
def toml_writer() -> Callable[[Path, Mapping[str, Table], Mapping[str, Table]], None]:
    """Writes tables, with changes to them, into a file."""

    def write(file: Path, tables: Mapping[str, Table], changes: Mapping[str, Table]) -> None:
        file.write_text(toml(merged(tables, changes)), encoding="utf-8")

    return write


@pytest.fixture(scope="session")
def stack_in() -> Callable[..., contextlib.AbstractAsyncContextManager[Stack]]:
    """Makes a stack in a directory: `async with stack_in(directory, changes, boot_delay, parts) as stack`."""
    return running_stack


@pytest.fixture
def new_stack(tmp_path: Path) -> NewStack:
    """Makes a stack with settings of a test's own: `async with new_stack({"daemon": {...}}) as stack`."""

    def make(
        changes: Mapping[str, Table] | None = None,
        *,
        boot_delay: float = 0.3,
        parts: tuple[str, ...] = ORDER,
    ) -> contextlib.AbstractAsyncContextManager[Stack]:
        return running_stack(tmp_path, changes or {}, boot_delay, parts)

    return make


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """One running stack for all tests of a module, with the module's CHANGES and BOOT_DELAY."""
    changes = getattr(request.module, "CHANGES", {})
    boot_delay = getattr(request.module, "BOOT_DELAY", 0.3)
    async with running_stack(tmp_path_factory.mktemp("stack"), changes, boot_delay, ORDER) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stack(module_stack: Stack) -> Stack:
    """The module's stack, whole: everything runs, no fault is left, the pool is as wanted."""
    for name, part in module_stack.parts.items():
        if not part.running:
            await module_stack.start(name)
    await module_stack.healed()
    await module_stack.settled()
    return module_stack
