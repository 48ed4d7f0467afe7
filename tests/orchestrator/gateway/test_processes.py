"""Real processes: engines and gateways that are killed and stopped under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from gateway_rig import LAUNCH

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
async def process(*argv: str, pipe: int | None = asyncio.subprocess.PIPE, **more):
    """A child that does not outlive the test."""
    child = await asyncio.create_subprocess_exec(sys.executable, *argv, stdin=pipe, stdout=pipe, **more)
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


@contextlib.asynccontextmanager
async def engine(gap: str = "0.002"):
    async with process(str(ENGINE), gap) as child:
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

    def gateway(self, **more):
        return process("-m", "orchestrator.gateway", json.dumps(self.settings), **more)

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
    async with engine() as (noticed, a), engine() as (_, b), site.gateway():
        await site.healthy()
        await site.balancer.apply([TargetSpec(id="a", address=a), TargetSpec(id="b", address=b)], 1)
        await site.healthy("a", "b")
        async with Load(site.url, 16) as load:
            await load.reach(50)
            noticed.kill()
            await load.reach(200)
            await site.balancer.apply([TargetSpec(id="b", address=b)], 2)
            await load.reach(50)
        assert load.errors == []
        assert load.results["cut"] <= 8
        connector = aiohttp.UnixConnector(str(site.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://gateway/metrics") as answer,
        ):
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


# -- sockets that outlive a process ----------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class RefusedHeir(Exception):
    """The new gateway could not serve."""


async def replace(site) -> int:
    """Have the gateway hand over; the number of the process that serves now."""
    connector = aiohttp.UnixConnector(str(site.socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post("http://gateway/v1/replace", json={}) as answer,
    ):
        body = await answer.json()
    if answer.status != 200:
        raise RefusedHeir(body["error"])
    return body["pid"]


async def gone(pid: int) -> None:
    """Wait until a process that is nobody's child here has ended."""

    def lives() -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    async with asyncio.timeout(PATIENCE):
        while lives():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def handed_on(site):
    """A running gateway and the list of its heirs, which are ended afterwards."""
    heirs: list[int] = []
    async with site.gateway(pipe=None) as first:  # heirs would hold the pipe's other end
        await site.healthy()
        try:
            yield first, heirs
        finally:
            for pid in heirs:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            for pid in heirs:
                await gone(pid)


async def test_handing_over_again_and_again_costs_no_request(site):
    async with engine() as (_, a), handed_on(site) as (first, heirs):
        await site.balancer.apply([TargetSpec(id="a", address=a)], 1)
        await site.balancer.flush()
        await site.healthy("a")
        async with Load(site.url, 8) as load:
            await load.reach(40)
            for _ in range(3):
                heirs.append(await replace(site))
                await load.reach(40)
        assert load.errors == []
        assert load.results["cut"] == 0
        assert load.results["stream"] > 20
        assert await asyncio.wait_for(first.wait(), PATIENCE) == 0, "the first has ended by itself"
        for pid in heirs[:-1]:
            await gone(pid)
        await site.healthy("a")
    assert not site.socket.exists(), "the last one takes the socket away"


async def test_the_heir_shows_the_metrics(site):
    port = free_port()
    site.settings["metrics_listen"] = f"127.0.0.1:{port}"

    async def started() -> str:
        """When the process that shows its metrics was started; empty while none does."""
        with contextlib.suppress(aiohttp.ClientConnectionError):
            async with aiohttp.request("GET", f"http://127.0.0.1:{port}/metrics") as answer:
                return (await answer.text()).partition("\nprocess_start_time_seconds ")[2].partition("\n")[0]
        return ""

    async def other_than(before: str) -> str:
        async with asyncio.timeout(PATIENCE):
            while (now := await started()) in ("", before):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return now

    async with handed_on(site) as (_, heirs):
        first = await other_than("")
        heirs.append(await replace(site))
        await other_than(first)


async def test_a_deleted_control_socket_comes_back_and_is_handed_on(site):
    """With the gateway that opened it and with its heir; who hands over does not take the file away."""

    async def back():
        async with asyncio.timeout(PATIENCE):
            while not site.socket.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await site.healthy()

    async with engine() as (_, a), handed_on(site) as (first, heirs):
        for _ in range(2):
            site.socket.unlink()
            await back()
            heirs.append(await replace(site))
        assert await asyncio.wait_for(first.wait(), PATIENCE) == 0
        await gone(heirs[0])
        site.socket.unlink()
        await back()
        await site.balancer.apply([TargetSpec(id="a", address=a)], 1)
        await site.healthy("a")
    assert not site.socket.exists()


async def test_a_stream_stays_with_the_gateway_that_began_it(site):
    async with engine("0.2") as (_, a), handed_on(site) as (first, heirs):
        await site.balancer.apply([TargetSpec(id="a", address=a)], 1)
        await site.balancer.flush()
        await site.healthy("a")
        async with (
            aiohttp.ClientSession() as session,
            session.post(site.url + "/v1/chat/completions", json={"stream": True}) as answer,
        ):
            await answer.content.readany()
            heirs.append(await replace(site))
            first.send_signal(signal.SIGTERM)  # as at the shutdown of the host
            rest = await answer.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(first.wait(), PATIENCE) == 0


async def test_a_heir_that_cannot_serve_leaves_everything_as_it_was(site, tmp_path):
    """And says why, as it would have said it in a terminal."""
    config = tmp_path / "pool.toml"
    lines = [
        f'[daemon]\nstate_dir = "{tmp_path}"',
        "[pool.test]\nreplicas = 1",
        f'[pool.test.gateway]\nlisten = "127.0.0.1:{free_port()}"\nsocket = "{site.socket}"',
    ]
    config.write_text("\n".join(lines), encoding="utf-8")
    command = ("-m", "orchestrator", "gateway", "--config", str(config))
    async with process(*command) as serving:
        await site.healthy()
        config.write_text("\n".join(lines) + '\nqueue_limit = "many"\n', encoding="utf-8")
        with pytest.raises(RefusedHeir, match=r"pool\.toml:8: pool\.test\.gateway\.queue_limit"):
            await replace(site)
        config.write_text("\n".join(lines).replace(str(site.socket), str(tmp_path / "b")), encoding="utf-8")
        with pytest.raises(RefusedHeir, match=r"gateway\.socket is .*/b; change one of them"):
            await replace(site)
        await site.healthy()
        assert serving.returncode is None
        done = await asyncio.create_subprocess_exec(
            sys.executable, *command, "--replace", stderr=asyncio.subprocess.PIPE
        )
        _, said = await asyncio.wait_for(done.communicate(), PATIENCE)
        assert (done.returncode, b"no gateway answers on" in said) == (3, True)


async def test_sockets_of_the_service_manager_outlive_a_killed_gateway(site, tmp_path):
    """A connection that is made while no gateway runs waits for the next one."""
    async with engine() as (_, a):
        with socket.create_server(("127.0.0.1", 0)) as public, socket.socket(socket.AF_UNIX) as control:
            control.bind(str(site.socket))
            control.listen()
            site.settings["port"] = public.getsockname()[1]
            site.url = f"http://127.0.0.1:{site.settings['port']}"
            given = (public.fileno(), control.fileno())

            async def start():
                words = (sys.executable, "-c", LAUNCH, ",".join(map(str, given)), json.dumps(site.settings))
                return await asyncio.create_subprocess_exec(*words, pass_fds=given)

            first = await start()
            await site.healthy()
            await site.balancer.apply([TargetSpec(id="a", address=a)], 1)
            await site.balancer.flush()
            await site.healthy("a")
            first.kill()
            await first.wait()
            async with aiohttp.ClientSession() as session:
                asking = asyncio.create_task(session.post(site.url + "/v1/chat/completions", json={}))
                second = await start()
                answer = await asyncio.wait_for(asking, PATIENCE)
                assert answer.status == 200
                await answer.read()
            second.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(second.wait(), PATIENCE) == 0
            assert site.socket.exists(), "it belongs to the service manager"


async def test_a_socket_of_the_service_manager_must_be_the_configured_one(site):
    with socket.create_server(("127.0.0.1", 0)) as public:
        port = public.getsockname()[1]
        site.settings["port"] = 9
        words = (sys.executable, "-c", LAUNCH, str(public.fileno()), json.dumps(site.settings))
        child = await asyncio.create_subprocess_exec(
            *words, pass_fds=[public.fileno()], stderr=asyncio.subprocess.PIPE
        )
        _, errors = await asyncio.wait_for(child.communicate(), PATIENCE)
    assert child.returncode == 1
    assert f"listens on 127.0.0.1:{port}, and gateway.listen is 127.0.0.1:9" in errors.decode()


async def test_a_gateway_that_can_accept_nobody_serves_on_and_does_not_flood_the_log(site, tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as written, contextlib.ExitStack() as callers:
        async with site.gateway(stderr=written) as child, aiohttp.ClientSession() as client:

            async def asks(times: int) -> None:
                """On one connection, which is there already: a new one would not be accepted."""
                for _ in range(times):
                    async with client.get(site.url + "/healthz") as answer:
                        assert (answer.status, await answer.text()) == (200, "ok\n")

            await site.healthy()
            await asks(1)
            open_files = len(os.listdir(f"/proc/{child.pid}/fd"))
            resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (open_files + 20, open_files + 20))
            host, port = site.url.removeprefix("http://").split(":")
            for _ in range(200):
                callers.enter_context(socket.create_connection((host, int(port)), PATIENCE))
            async with asyncio.timeout(PATIENCE):
                while b"out of system resource" not in log.read_bytes():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asks(50)
            assert log.read_bytes().count(b"out of system resource") < 4000
