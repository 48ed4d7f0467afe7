"""Real processes: engines and gateways that are killed and stopped under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from cloud.balancers.gateway import GatewayBalancer
from cloud.clock import SystemClock
from cloud.errors import Uncertain
from policies.model import TargetPhase, TargetSpec

pytestmark = pytest.mark.slow

PATIENCE = 30.0
ENGINE = Path(__file__).with_name("upstream_process.py")


class Load:
    """Clients that ask without a pause, plain and streaming, and sort what they get."""

    def __init__(self, url: str, clients: int) -> None:
        self.url = url
        self.results: Counter[str] = Counter()
        self.errors: list[str] = []
        self._clients = clients
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE))
        self._tasks = [asyncio.create_task(self._run(number % 2 == 0)) for number in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._session.close()

    async def reach(self, count: int) -> None:
        """Wait until so many more answers came."""
        goal = sum(self.results.values()) + count
        async with asyncio.timeout(PATIENCE):
            while sum(self.results.values()) < goal:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def _run(self, stream: bool) -> None:
        while not self._stopping:
            try:
                kind = await self._ask(stream)
            except (aiohttp.ClientError, TimeoutError) as error:
                kind = "failed"
                self.errors.append(repr(error))
            self.results[kind] += 1

    async def _ask(self, stream: bool) -> str:
        body = {"stream": stream, "messages": []}
        async with self._session.post(self.url + "/v1/chat/completions", json=body) as answer:
            text = await answer.text()
        if answer.status != 200:
            self.errors.append(f"{answer.status} {text[:200]}")
            return "failed"
        if not stream:
            return "plain"
        if text.endswith("data: [DONE]\n\n") and '"finish_reason":"stop"' in text:
            return "stream"
        assert "stream_interrupted" in text
        return "cut"


@contextlib.asynccontextmanager
async def process(*argv: str):
    """A child that does not outlive the test."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


@contextlib.asynccontextmanager
async def engine():
    async with process(str(ENGINE)) as child:
        port = int(await asyncio.wait_for(child.stdout.readline(), PATIENCE))
        yield child, f"127.0.0.1:{port}"


class Site:
    """A gateway process's settings, and the daemon's view of it."""

    def __init__(self, directory: Path) -> None:
        self.settings = {
            "targets_file": str(directory / "targets.json"),
            "socket": str(directory / "gw.sock"),
            "port": 0,
            "poll_interval": 0.05,
            "health_interval": 0.1,
            "linger": 0.2,
        }
        self.socket = directory / "gw.sock"
        self.url = ""
        self.balancer = GatewayBalancer(
            socket=directory / "gw.sock",
            targets_file=directory / "targets.json",
            pool="test",
            clock=SystemClock(),
        )

    def gateway(self):
        return process("-m", "orchestrator.gateway", json.dumps(self.settings))

    async def healthy(self, *nodes: str) -> None:
        """Wait until the gateway runs and these nodes are healthy there; learn where it listens."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(Uncertain):
                    view = await self.balancer.observe()
                    states = {target.id: target.state.value for target in view.targets}
                    if all(states.get(node) == "healthy" for node in nodes):
                        break
                await asyncio.sleep(0.02)
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://gateway/v1/state") as answer,
        ):
            self.url = "http://" + (await answer.json())["listen"]

    async def socket_gone(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.socket.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
async def site(tmp_path):
    site = Site(tmp_path)
    yield site
    await site.balancer.close()


async def test_a_detached_node_costs_no_request(site):
    async with engine() as (_, a), engine() as (_, b), site.gateway():
        both = [TargetSpec(id="a", address=a), TargetSpec(id="b", address=b)]
        await site.healthy()
        await site.balancer.apply(both, 1)
        await site.healthy("a", "b")
        async with Load(site.url, 16) as load:
            await load.reach(50)
            for generation in range(2, 8):
                phase = TargetPhase.DRAINING if generation % 2 == 0 else TargetPhase.ACTIVE
                await site.balancer.apply([TargetSpec(id="a", address=a, phase=phase), both[1]], generation)
                await load.reach(30)
            await site.balancer.apply([both[1]], 8)
            await load.reach(30)
        assert load.errors == []
        assert set(load.results) == {"plain", "stream"}


async def test_a_node_killed_without_notice_costs_no_plain_request(site):
    async with engine() as (doomed, a), engine() as (_, b), site.gateway():
        await site.healthy()
        await site.balancer.apply([TargetSpec(id="a", address=a), TargetSpec(id="b", address=b)], 1)
        await site.healthy("a", "b")
        async with Load(site.url, 16) as load:
            await load.reach(50)
            doomed.kill()
            await load.reach(200)
            await site.balancer.apply([TargetSpec(id="b", address=b)], 2)
            await load.reach(50)
        assert load.errors == []
        assert load.results["cut"] <= 8
        async with aiohttp.ClientSession() as session, session.get(site.url + "/metrics") as answer:
            metrics = await answer.text()
        cut = sum(
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("orchestrator_gateway_streams_cut_total{")
        )
        assert cut == load.results["cut"]


async def test_a_restarted_gateway_serves_the_last_set_without_the_daemon(site):
    async with engine() as (_, a):
        async with site.gateway() as first:
            await site.healthy()
            await site.balancer.apply([TargetSpec(id="a", address=a)], 3)
            await site.balancer.flush()
            before = await site.balancer.observe()
            first.kill()
            await first.wait()
        async with site.gateway():
            await site.healthy("a")
            after = await site.balancer.observe()
            assert (before.generation, after.generation) == (3, 3)
            assert before.incarnation != after.incarnation
            async with Load(site.url, 4) as load:
                await load.reach(20)
            assert load.errors == []


async def test_sigterm_finishes_what_runs(site):
    async with engine() as (_, a), site.gateway() as gateway:
        await site.healthy()
        await site.balancer.apply([TargetSpec(id="a", address=a)], 1)
        await site.healthy("a")
        async with (
            aiohttp.ClientSession() as session,
            session.post(site.url + "/v1/chat/completions", json={"stream": True}) as answer,
        ):
            await answer.content.readany()
            gateway.send_signal(signal.SIGTERM)
            rest = await answer.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(gateway.wait(), PATIENCE) == 0
        assert not site.socket.exists()


async def test_a_second_signal_ends_at_once(site):
    site.settings["linger"] = 3600.0
    async with site.gateway() as gateway:
        await site.healthy()
        gateway.send_signal(signal.SIGTERM)
        await site.socket_gone()
        gateway.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(gateway.wait(), PATIENCE) == 0


async def test_a_gateway_that_cannot_start_says_why_on_one_line(site, tmp_path):
    site.settings["socket"] = str(tmp_path / "missing" / "gw.sock")
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "orchestrator.gateway",
        json.dumps(site.settings),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(child.communicate(), PATIENCE)
    assert child.returncode == 1
    assert errors.decode().count("\n") == 1
    assert "is its directory there" in errors.decode()
