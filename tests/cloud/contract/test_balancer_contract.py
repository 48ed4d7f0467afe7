"""The contract of the LoadBalancer port, run against every adapter with a real balancer behind it.

A new adapter adds a harness to HARNESSES: something that starts, stops and restarts the balancer itself,
makes adapters for it (one for each daemon) and says where clients send their requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import boto3
import pytest
from aiohttp import web
from balancer_programs import PROGRAMS, BalancerProgram, RouterProgram, free_ports, need
from certificates import pair
from contract_sim import SimBalancerHarness

from cloud.aws.clients import AwsClients
from cloud.aws.load_balancer import AlbTargetGroup
from cloud.balancers.gateway import GatewayBalancer
from cloud.balancers.kinds import KINDS
from cloud.clock import SystemClock
from cloud.errors import CloudError, Denied, Uncertain
from cloud.ports import BalancerView, LoadBalancer
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.config import one_pool
from orchestrator.units import HostPort
from policies.model import TargetPhase, TargetSpec, TargetState

PATIENCE = 30.0
BETWEEN = 0.02  # s that each of the clients waits between two requests: they need not fill a processor
TOKEN = "0123456789abcdef"
CHAT = [{"role": "user", "content": "x"}]


class Harness(Protocol):
    """One real balancer."""

    @property
    def url(self) -> str:
        """Where clients send requests."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def adapter(self) -> LoadBalancer:
        """A new adapter, as another daemon would make it."""
        ...

    def know(self, name: str, address: str) -> None:
        """A node of ours serves there; for balancers whose targets carry no id."""
        ...


class GatewayHarness:
    """The embedded gateway, in this event loop."""

    def __init__(self, directory: Path, account: Any) -> None:
        self._config = one_pool(
            targets_file=directory / "targets.json",
            socket=directory / "gw.sock",
            port=0,
            health_interval=0.05,
            poll_interval=0.05,
        )
        self._gateway: Gateway | None = None

    @property
    def url(self) -> str:
        assert self._gateway is not None
        return f"http://127.0.0.1:{self._gateway.port}"

    async def start(self) -> None:
        self._gateway = Gateway(self._config, SystemClock())
        await self._gateway.start()

    async def stop(self) -> None:
        if self._gateway is not None:
            await self._gateway.stop(linger=0.0, drain_timeout=0.0)
            self._gateway = None

    def adapter(self) -> LoadBalancer:
        return GatewayBalancer(
            socket=self._config.socket,
            targets_file=self._config.pools[0].targets_file,
            pool="test",
            clock=SystemClock(),
        )

    def know(self, name: str, address: str) -> None:
        pass


class RemoteGatewayHarness(GatewayHarness):
    """A gateway on another host: reached over TCP, under TLS, with a token."""

    def __init__(self, directory: Path, account: Any) -> None:
        super().__init__(directory, account)
        (directory / "token").write_text(TOKEN)
        (self._at,) = free_ports(1)
        self._pair = pair(directory).write()
        self._config = one_pool(
            targets_file=directory / "targets.json",
            socket=directory / "gw.sock",
            port=0,
            health_interval=0.05,
            poll_interval=0.05,
            tls_cert_file=self._pair.certificate,
            tls_key_file=self._pair.key,
            control_listen=HostPort("127.0.0.1", self._at),
            control_token_file=directory / "token",
        )

    @property
    def url(self) -> str:
        return super().url.replace("http", "https")

    @property
    def trust(self) -> ssl.SSLContext:
        return self._pair.trust()

    async def start(self) -> None:
        await super().start()
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self._at)
                    writer.close()
                    return
                await asyncio.sleep(0.01)

    def adapter(self) -> LoadBalancer:
        return GatewayBalancer(
            url=f"https://127.0.0.1:{self._at}",
            token=TOKEN,
            tls=self._pair.trust(),
            pool="test",
            clock=SystemClock(),
            name="remote-gateway",
        )


@dataclass(frozen=True, kw_only=True)
class AwsAccount:
    """The stand-in for AWS with clients of it, made once."""

    shim: Any
    clients: AwsClients
    groups: Any
    vpc: str


@pytest.fixture(scope="module")
def aws_account(aws_shim_process: Any, aws_clients: AwsClients) -> AwsAccount:
    where = {"region_name": "us-east-1", "endpoint_url": aws_shim_process.url}
    ec2: Any = boto3.client("ec2", **where)
    return AwsAccount(
        shim=aws_shim_process,
        clients=aws_clients,
        groups=boto3.client("elbv2", **where),
        vpc=ec2.describe_vpcs()["Vpcs"][0]["VpcId"],
    )


class AlbHarness:
    """A target group and a balancer in front of it, in the stand-in for AWS.

    Its targets are addresses: what serves in this suite are servers on the loopback, not machines. Stopped
    means that AWS does not answer; started again, the group is another one of the same name.
    """

    def __init__(self, directory: Path, account: AwsAccount | None) -> None:
        self._account = account
        self._addresses: dict[str, str] = {}

    @property
    def account(self) -> AwsAccount:
        assert self._account is not None
        return self._account

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.account.shim.order('front', group='pool')['port']}"

    async def start(self) -> None:
        shim, groups = self.account.shim, self.account.groups
        shim.order("outage", services=[])
        shim.order("set", health_checks=True, health_interval=0.02, propagation=0.1, idle_ends_draining=True)
        for group in groups.describe_target_groups()["TargetGroups"]:
            groups.delete_target_group(TargetGroupArn=group["TargetGroupArn"])
        groups.create_target_group(
            Name="pool",
            Protocol="HTTP",
            Port=8000,
            VpcId=self.account.vpc,
            TargetType="ip",
            HealthCheckPath="/health",
        )

    async def stop(self) -> None:
        self.account.shim.order("outage", services=["elasticloadbalancing"])

    def adapter(self) -> LoadBalancer:
        clients = self._account.clients if self._account is not None else AwsClients("us-east-1")
        return AlbTargetGroup(
            clients, group="pool", owners=self._owners, clock=SystemClock(), propagation=0.2
        )

    def know(self, name: str, address: str) -> None:
        self._addresses[address] = name

    async def _owners(self, targets: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        known = {(t, p): self._addresses.get(f"{t}:{p}") for t, p in targets}
        return {key: name for key, name in known.items() if name is not None}


HARNESSES: dict[str, Callable[[Path, Any], Harness]] = {
    "gateway": GatewayHarness,
    "remote-gateway": RemoteGatewayHarness,
    "alb": AlbHarness,
    "sim": SimBalancerHarness,
    **PROGRAMS,
}


class Backend:
    """A server that names itself; it answers a request to /v1/held only once it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = 0
        self.served = 0
        self.release = asyncio.Event()
        self.health = 200

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/name", self._name)
        app.router.add_get("/v1/held", self._held)
        app.router.add_post("/v1/chat/completions", self._name)
        app.router.add_post("/v1/completions", self._held)
        for path in ("/v1/models", "/server_info", "/get_server_info", "/model_info", "/get_model_info"):
            app.router.add_get(path, self._model)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    def spec(self, phase: TargetPhase = TargetPhase.ACTIVE) -> TargetSpec:
        return TargetSpec(id=self.name, address=self.address, phase=phase)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _name(self, _: web.Request) -> web.Response:
        self.served += 1
        return web.json_response({"name": self.name})

    async def _model(self, _: web.Request) -> web.Response:
        """What routers ask an engine that is new to them."""
        listed = [{"id": "m", "object": "model", "owned_by": "vllm"}]
        return web.json_response(
            {"object": "list", "data": listed, "model_path": "m", "served_model_name": "m"}
        )

    async def _held(self, _: web.Request) -> web.Response:
        self.held += 1
        try:
            await self.release.wait()
        finally:
            self.held -= 1
        return web.json_response({"name": self.name})


class Site:
    """A running balancer with one adapter, and clients."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.balancer = harness.adapter()
        connector = aiohttp.TCPConnector(ssl=getattr(harness, "trust", True))
        self.client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=PATIENCE), connector=connector
        )
        self.adapters = [self.balancer]
        self.backends: list[Backend] = []

    async def backend(self, name: str) -> Backend:
        backend = Backend(name)
        await backend.start()
        self.backends.append(backend)
        self.harness.know(name, backend.address)
        return backend

    def another_daemon(self) -> LoadBalancer:
        self.adapters.append(self.harness.adapter())
        return self.adapters[-1]

    async def ask(self, path: str = "/v1/name") -> str:
        # Routers of engines know an engine's paths alone.
        post = {"/v1/name": "/v1/chat/completions", "/v1/held": "/v1/completions"}[path]
        asked = (
            self.client.post(self.harness.url + post, json={"model": "m", "prompt": "x", "messages": CHAT})
            if isinstance(self.harness, RouterProgram)
            else self.client.get(self.harness.url + path)
        )
        async with asked as answer:
            assert answer.status == 200, await answer.text()
            return str((await answer.json())["name"])

    async def states(self) -> dict[str, TargetState]:
        return {target.id: target.state for target in (await self.balancer.observe()).targets}

    async def settled(self) -> None:
        """An acknowledged change reaches traffic within the time the adapter promises."""
        await asyncio.sleep(self.balancer.capabilities.propagation)

    async def until(self, **wanted: TargetState) -> None:
        """Wait until these targets, and no others, are in these states."""
        async with asyncio.timeout(PATIENCE):
            while (await self.states()) != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def view_where(self, holds: Callable[[BalancerView], bool]) -> BalancerView:
        async with asyncio.timeout(PATIENCE):
            while not holds(view := await self.balancer.observe()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return view


@pytest.fixture(params=sorted(HARNESSES))
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    account = None
    if request.param == "alb":
        account = request.getfixturevalue("aws_account")
        account.shim.order("reset")
    harness = HARNESSES[request.param](tmp_path, account)
    if isinstance(harness, BalancerProgram):
        need(*harness.programs)
    await harness.start()
    site = Site(harness)
    yield site
    await site.client.close()
    for adapter in site.adapters:
        await adapter.close()
    await harness.stop()
    if isinstance(harness, BalancerProgram):
        harness.remove()
    for backend in site.backends:
        await backend.stop()


HEALTHY, DRAINING = TargetState.HEALTHY, TargetState.DRAINING


async def test_a_set_is_taken_over_and_becomes_healthy(site):
    a, b = await site.backend("a"), await site.backend("b")
    assert (await site.balancer.observe()).targets == ()
    await site.balancer.apply([a.spec(), b.spec()], 1)
    view = await site.balancer.observe()
    assert view.generation == 1
    assert {(target.id, target.address) for target in view.targets} == {("a", a.address), ("b", b.address)}
    assert {target.state for target in view.targets} <= {TargetState.INITIAL, HEALTHY}
    await site.until(a=HEALTHY, b=HEALTHY)
    assert {await site.ask() for _ in range(40)} == {"a", "b"}


async def test_applying_again_changes_nothing(site):
    a = await site.backend("a")
    for generation in (1, 1, 2):
        await site.balancer.apply([a.spec()], generation)
    await site.until(a=HEALTHY)
    incarnation = (await site.balancer.observe()).incarnation
    await site.balancer.apply([a.spec()], 3)
    assert await site.states() == {"a": HEALTHY}
    assert (await site.balancer.observe()).incarnation == incarnation


async def test_a_draining_target_gets_no_new_requests_and_finishes_its_own(site):
    a, b = await site.backend("a"), await site.backend("b")
    await site.balancer.apply([a.spec()], 1)
    await site.until(a=HEALTHY)
    held = [asyncio.create_task(site.ask("/v1/held")) for _ in range(3)]
    async with asyncio.timeout(PATIENCE):
        while a.held < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await site.balancer.apply([a.spec(TargetPhase.DRAINING), b.spec()], 2)
    await site.settled()
    assert {await site.ask() for _ in range(20)} == {"b"}
    view = await site.view_where(lambda view: len(view.targets) == 2)
    leaving = next(target for target in view.targets if target.id == "a")
    if site.balancer.capabilities.drains:
        assert leaving.state is DRAINING
    if site.balancer.capabilities.counts_in_flight:
        assert leaving.in_flight == 3
    a.release.set()
    assert await asyncio.gather(*held) == ["a"] * 3
    if site.balancer.capabilities.counts_in_flight:
        await site.view_where(lambda view: all(not target.in_flight for target in view.targets))
    await site.balancer.apply([b.spec()], 3)
    await site.until(b=HEALTHY)
    assert a.served == 0


async def test_a_drain_can_be_taken_back(site):
    a, b = await site.backend("a"), await site.backend("b")
    await site.balancer.apply([a.spec(), b.spec()], 1)
    await site.balancer.apply([a.spec(TargetPhase.DRAINING), b.spec()], 2)
    await site.balancer.apply([a.spec(), b.spec()], 3)
    await site.until(a=HEALTHY, b=HEALTHY)
    assert {await site.ask() for _ in range(40)} == {"a", "b"}


async def test_adding_draining_and_removing_under_load_costs_no_request(site):
    a, b = await site.backend("a"), await site.backend("b")
    await site.balancer.apply([a.spec(), b.spec()], 1)
    await site.until(a=HEALTHY, b=HEALTHY)
    await site.settled()  # nobody may be asked any more who had no targets
    asked, going_on = 0, True

    async def client() -> None:
        nonlocal asked
        while going_on:
            await site.ask()
            asked += 1
            await asyncio.sleep(BETWEEN)

    async def reach(count: int) -> None:
        goal = asked + count
        async with asyncio.timeout(PATIENCE):
            while asked < goal:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    clients = [asyncio.create_task(client()) for _ in range(8)]
    leaving = a
    for generation in range(2, 14, 3):
        await reach(20)
        await site.balancer.apply([leaving.spec(TargetPhase.DRAINING), b.spec()], generation)
        await reach(20)
        await site.balancer.apply([b.spec()], generation + 1)
        await reach(20)
        # In the end one that comes back: a router has that wait until it has forgotten it.
        leaving = a if generation == 11 else await site.backend(f"c{generation}")
        await site.balancer.apply([leaving.spec(), b.spec()], generation + 2)
    going_on = False
    await asyncio.gather(*clients)
    assert asked >= 240


async def test_the_last_target_leaves_once_its_successor_takes_requests(site):
    """Every target that takes requests leaves as another one comes: nobody gets an error in between."""
    a = await site.backend("a")
    await site.balancer.apply([a.spec()], 1)
    await site.until(a=HEALTHY)
    await site.settled()  # nobody may be asked any more who had no targets
    asked, going_on = 0, True

    async def client() -> None:
        nonlocal asked
        while going_on:
            await site.ask()
            asked += 1
            await asyncio.sleep(BETWEEN)

    clients = [asyncio.create_task(client()) for _ in range(8)]
    new = a
    for turn in range(8):
        old, new = new, a if turn == 7 else await site.backend(f"b{turn}")
        await site.balancer.apply([old.spec(TargetPhase.DRAINING), new.spec()], 2 * turn + 2)
        await site.settled()
        goal = asked + 20
        async with asyncio.timeout(PATIENCE):
            while asked < goal and not any(task.done() for task in clients):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await site.balancer.apply([new.spec()], 2 * turn + 3)
    going_on = False
    await asyncio.gather(*clients)
    assert all(backend.served for backend in site.backends)


async def test_a_successor_that_never_answers_holds_a_drain_for_a_moment_only(site):
    a, b = await site.backend("a"), await site.backend("b")
    await site.balancer.apply([a.spec()], 1)
    await site.until(a=HEALTHY)
    b.health = 503
    with contextlib.suppress(CloudError):  # a router may refuse a worker that is not healthy
        await site.balancer.apply([a.spec(TargetPhase.DRAINING), b.spec()], 2)
    view = await site.balancer.observe()
    assert {t.state for t in view.targets if t.id == "a"} <= {DRAINING}


async def test_a_lower_generation_is_denied_and_changes_nothing(site):
    a, b = await site.backend("a"), await site.backend("b")
    await site.balancer.apply([a.spec()], 5)
    other = site.another_daemon()
    with pytest.raises(Denied):
        await other.apply([b.spec()], 4)
    with pytest.raises(Denied):
        await site.balancer.apply([b.spec()], 4)
    await site.until(a=HEALTHY)
    await other.apply([b.spec()], 6)
    await site.balancer.observe()  # as every turn of a daemon does: an adapter may trust what it last saw
    with pytest.raises(Denied):
        await site.balancer.apply([a.spec()], 5)
    await site.until(b=HEALTHY)


async def test_letting_go_changes_nothing_else(site):
    """Not even what another daemon added since this one looked, or targets that it never had."""
    a, b, c = [await site.backend(name) for name in "abc"]
    await site.balancer.apply([a.spec(), b.spec()], 1)
    await site.until(a=HEALTHY, b=HEALTHY)
    await site.another_daemon().apply([a.spec(), b.spec(), c.spec()], 2)
    gone = TargetSpec(id="x", address="127.0.0.1:9", phase=TargetPhase.DRAINING)
    for _ in range(2):
        await site.balancer.detach([a.spec(TargetPhase.DRAINING), gone], 2)
        await site.settled()
        view = await site.view_where(
            lambda view: {t.id for t in view.targets if t.state is HEALTHY} == {"b", "c"}
        )
        assert {t.id for t in view.targets} <= {"a", "b", "c"}
        assert {t.state for t in view.targets if t.id == "a"} <= {DRAINING}
        assert {await site.ask() for _ in range(20)} == {"b", "c"}
    assert view.generation == 2
    await site.balancer.apply([a.spec(), b.spec(), c.spec()], 3)
    await site.until(a=HEALTHY, b=HEALTHY, c=HEALTHY)


async def test_nothing_is_let_go_where_another_daemon_leads(site):
    a, b = await site.backend("a"), await site.backend("b")
    await site.balancer.apply([a.spec(), b.spec()], 5)
    await site.another_daemon().apply([a.spec()], 6)
    with pytest.raises(Denied):
        await site.balancer.detach([a.spec(TargetPhase.DRAINING)], 5)
    await site.view_where(lambda view: {t.id for t in view.targets if t.state is HEALTHY} == {"a"})


async def test_letting_go_without_a_balancer_is_uncertain(site):
    a, b = await site.backend("a"), await site.backend("b")
    await site.balancer.apply([a.spec(), b.spec()], 1)
    await site.harness.stop()
    with pytest.raises(Uncertain):
        await site.balancer.detach([a.spec(TargetPhase.DRAINING)], 2)


async def test_an_address_may_move_to_another_id(site):
    a = await site.backend("a")
    await site.balancer.apply([a.spec()], 1)
    await site.balancer.apply([TargetSpec(id="a2", address=a.address)], 2)
    await site.until(a2=HEALTHY)
    assert await site.ask() == "a"


async def test_an_id_may_move_to_another_address(site):
    a, b = await site.backend("a"), await site.backend("b")
    await site.balancer.apply([TargetSpec(id="n", address=a.address)], 1)
    await site.until(n=HEALTHY)
    await site.balancer.apply([TargetSpec(id="n", address=b.address)], 2)
    await site.settled()
    assert {await site.ask() for _ in range(10)} == {"b"}


async def test_a_sick_target_is_reported_and_left_out(site):
    a, b = await site.backend("a"), await site.backend("b")
    await site.balancer.apply([a.spec(), b.spec()], 1)
    a.health = 503
    if not site.balancer.capabilities.checks:
        assert await site.states() == {"a": HEALTHY, "b": HEALTHY}  # the daemon's own probes tell
        return
    await site.until(a=TargetState.UNHEALTHY, b=HEALTHY)
    assert {await site.ask() for _ in range(10)} == {"b"}
    a.health = 200
    await site.until(a=HEALTHY, b=HEALTHY)


async def test_a_restart_shows_and_the_set_can_be_applied_again(site):
    a = await site.backend("a")
    await site.balancer.apply([a.spec()], 1)
    await site.until(a=HEALTHY)
    before = (await site.balancer.observe()).incarnation
    await site.harness.stop()
    with pytest.raises(Uncertain):
        await site.balancer.observe()
    await site.harness.start()
    assert (await site.balancer.observe()).incarnation != before
    await site.balancer.apply([a.spec()], 1)
    await site.until(a=HEALTHY)
    assert await site.ask() == "a"


async def test_no_balancer_means_uncertain_and_a_later_call_makes_it_good(site):
    a = await site.backend("a")
    await site.harness.stop()
    with pytest.raises(Uncertain):
        await site.balancer.apply([a.spec()], 1)
    await site.harness.start()
    await site.balancer.apply([a.spec()], 1)
    await site.until(a=HEALTHY)


async def test_closing_an_adapter_leaves_the_targets(site):
    a = await site.backend("a")
    await site.balancer.apply([a.spec()], 1)
    await site.until(a=HEALTHY)
    other = site.another_daemon()
    await site.balancer.close()
    assert await site.ask() == "a"
    assert [target.id for target in (await other.observe()).targets] == ["a"]


async def test_calls_at_the_same_time_end_in_one_of_the_sets(site):
    a, b = await site.backend("a"), await site.backend("b")
    sets = [[a.spec()], [b.spec()], [a.spec(), b.spec()]]
    with contextlib.suppress(Denied):
        await asyncio.gather(*(site.balancer.apply(wanted, 1 + number) for number, wanted in enumerate(sets)))
    await site.balancer.apply(sets[-1], 9)
    await site.until(a=HEALTHY, b=HEALTHY)


def test_every_adapter_says_who_it_is_and_what_it_can(tmp_path):
    for name, harness in HARNESSES.items():
        made = harness(tmp_path, None)
        adapter = made.adapter()
        if isinstance(made, BalancerProgram):
            made.remove()
        assert adapter.name == name
        assert adapter.capabilities.propagation >= 0


def test_every_kind_of_balancer_is_in_this_suite():
    assert set(KINDS) <= set(HARNESSES)
