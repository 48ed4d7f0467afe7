"""A local cloud under a clock that only the test moves, and clouds as processes of their own."""

import asyncio
import contextlib
import heapq
import itertools
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud.local.config import ConstantSource, LocalCloudConfig, TraceSource, ZoneConfig, dump_config
from cloud.local.connection import LocalCloud
from cloud.local.instances import LocalInstances
from cloud.local.notices import LocalEventFeed, LocalMetadata
from cloud.local.offerings import LocalOfferings
from cloud.local.processes import kill_belonging
from cloud.local.server import LocalCloudServer, run_local_cloud
from cloud.local.spotset import SpotSet, SpotZone, write_spotset
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import InstanceState, Market, Placement

PATIENCE = 30.0
START = 1_000_000.0


class ManualClock:
    """Time that stands still until the test moves it."""

    def __init__(self) -> None:
        self._now = START
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move time on, waking sleepers in order, each at its own time."""
        end = self._now + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            if not future.done():
                future.set_result(None)
                await self._settle()
        self._now = end
        await self._settle()

    async def _settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


class Bench:
    """A running cloud, its adapters and short ways to the things that tests do."""

    def __init__(self, server: LocalCloudServer, clock: ManualClock) -> None:
        self.server = server
        self.clock = clock
        self.config = server.config
        self.connection = LocalCloud(server.config.socket_path)
        self.instances = LocalInstances(self.connection)
        self.offerings = LocalOfferings(self.connection)
        self.feed = LocalEventFeed(self.connection, clock, pool="pool")
        self._serial = itertools.count(1)

    def metadata(self) -> LocalMetadata:
        return LocalMetadata(self.clock, port=self.config.metadata_port, interval=1.0)

    def request(self, zone: str = "a", market: Market = Market.SPOT, **command: Any) -> LaunchRequest:
        return LaunchRequest(
            token=f"token-{next(self._serial)}",
            pool="pool",
            placement=Placement(
                provider="local", region="r", zone=zone, instance_type="local.gpu", market=market
            ),
            command=EngineCommand(**{"argv": ("sleep", "600"), "stop_grace": 5.0, **command}),
        )

    async def launch(self, zone: str = "a", market: Market = Market.SPOT, **command: Any):
        return await self.instances.launch(self.request(zone, market, **command))

    async def up(self, zone: str = "a", market: Market = Market.SPOT, **command: Any):
        """Launch and boot one machine."""
        launched = await self.launch(zone, market, **command)
        await self.clock.advance(self.config.boot_delay * 2 / self.config.speed)
        running = await self.get(launched.id)
        assert running.state is InstanceState.RUNNING
        return running

    async def get(self, node: str):
        return next(instance for instance in await self.instances.list("pool", "") if instance.id == node)

    async def states(self) -> dict[str, str]:
        return {instance.id: instance.state.value for instance in await self.instances.list("pool", "")}

    async def order(self, name: str, **values: object) -> dict[str, Any]:
        return json.loads(await self.connection.admin(name, json.dumps(values).encode()))

    async def statistics(self) -> dict[str, Any]:
        return json.loads(await self.connection.read("/admin/statistics"))

    async def events(self) -> list[dict[str, Any]]:
        """Everything in the feed that was not acknowledged."""
        return json.loads(await self.connection.read("/v1/notices"))["events"]

    async def until(self, condition) -> None:
        """Wait in real time until something outside the clock's reach (a process) has happened."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 (what is awaited has no event)
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for adapter in (self.instances, self.offerings, self.feed):
            await adapter.close()
        await self.connection.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a path short enough for a unix socket."""
    directory = Path(tempfile.mkdtemp(prefix="cloud-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


@pytest.fixture
def cloud_config(short_path: Path, free_ports: tuple[int, int]) -> LocalCloudConfig:
    """Two zones, a and b, with four spot nodes each; no jitter, so that times are exact."""
    return LocalCloudConfig(
        state_dir=short_path / "state",
        engine_port=free_ports[0],
        metadata_port=free_ports[1],
        boot_jitter=0.0,
        market=ConstantSource(
            region="r", zones=(ZoneConfig(zone="a", capacity=4), ZoneConfig(zone="b", capacity=4))
        ),
    )


@pytest.fixture
def run_bench(cloud_config: LocalCloudConfig):
    """Run a cloud under a manual clock: `async with run_bench(field=value, ...) as bench`."""

    @asynccontextmanager
    async def run(clock: ManualClock | None = None, **changes: Any) -> AsyncIterator[Bench]:
        clock = clock or ManualClock()
        async with run_local_cloud(replace(cloud_config, **changes), clock) as server:
            bench = Bench(server, clock)
            try:
                yield bench
            finally:
                await bench.close()

    return run


@pytest.fixture
async def bench(run_bench) -> AsyncIterator[Bench]:
    async with run_bench() as running:
        yield running


@pytest.fixture
def manual_clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def recorded(short_path: Path):
    """Write a set with ticks of ten minutes: `recorded(a=[4, 1], b=[4, 4])` gives its market source."""

    def write(prices: Mapping[str, list[float]] | None = None, **counts: list[int]) -> TraceSource:
        ticks = len(next(iter(counts.values())))
        zones = tuple(
            SpotZone(
                zone=zone,
                region="r",
                spot_price=1.0,
                on_demand_price=4.0,
                data=tuple(data),
                prices=tuple((prices or {}).get(zone, ())),
            )
            for zone, data in counts.items()
        )
        write_spotset(SpotSet(name="test", gap_seconds=600.0, ticks=ticks, zones=zones), short_path / "set")
        return TraceSource(directory=short_path / "set")

    return write


@pytest.fixture
def start_process(cloud_config: LocalCloudConfig, short_path: Path):
    """Start a cloud as a process of its own; all are killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**changes: Any) -> tuple[subprocess.Popen[bytes], LocalCloudConfig]:
        config = replace(cloud_config, **{"speed": 600.0, **changes})
        file = short_path / "cloud.json"
        dump_config(config, file)
        process = subprocess.Popen([sys.executable, "-m", "cloud.local", "--config", str(file)])
        started.append(process)
        return process, config

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=PATIENCE)
            process.kill()
        process.wait()
    database = cloud_config.state_dir / "cloud.db"
    if database.exists():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            [identity] = connection.execute("select record from identity").fetchone()
        kill_belonging((json.loads(identity)["cloud"],))
