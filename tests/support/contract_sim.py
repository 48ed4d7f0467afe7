"""The simulated world for the contract suites: short and real times, and a front that routes real requests.

What holds in simulations means something because its adapters keep the contracts that the others keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from contract_world import WARNS, ToldBy, World

from cloud.clock import SystemClock
from cloud.ports import LoadBalancer
from cloud.sim.balancer import SimBalancer, TargetTable, Traffic
from cloud.sim.cloud import SimInstances, SimOfferings
from cloud.sim.faults import BALANCER, Fault
from cloud.sim.notices import METADATA, QUEUE, NoticeBoard, SimNotices
from cloud.sim.world import Machine, Pace, Sale, SimWorld
from policies.model import Confidence, InstanceState, Market, NoticeKind, Placement, TargetSpec

SHORT = (0.02, 0.04)
PACE = Pace(
    boot=SHORT, load=SHORT, start=SHORT, reload=SHORT, stop=0.02, end=0.02, list_lag=(0.0, 0.0),
    latency=(0.0, 0.002), tick=0.02,
)  # fmt: skip
SPEED = 600.0
"""Seconds of a notice that pass in one."""

SALES = [
    Sale(placement=Placement("sim", "region", zone, kind, market), price=price * size)
    for zone in ("a", "b")
    for kind, size in (("small", 1.0), ("large", 3.6))
    for market, price in ((Market.SPOT, 1.0), (Market.ON_DEMAND, 3.0))
]


class SimCloudWorld(World):
    """The simulated provider and its adapters."""

    keeps_consoles = False

    def __init__(self) -> None:
        self.clock = SystemClock()
        self._world = SimWorld(self.clock, sales=SALES, rng=random.Random(1), pace=PACE)
        self._board = NoticeBoard(self._world)
        self.instances, self.offerings = SimInstances(self._world), SimOfferings(self._world)
        queue, metadata = [SimNotices(self._world, self._board, name) for name in (QUEUE, METADATA)]
        self.sources = (
            ToldBy(source=queue, confidence=Confidence.CONFIRMED, tells=WARNS, queues=True),
            ToldBy(source=metadata, confidence=Confidence.REPORTED, tells=WARNS),
        )

    def open(self) -> None:
        """Let nature take its course."""
        self._nature = asyncio.create_task(self._world.run())

    async def close(self) -> None:
        self._nature.cancel()
        await asyncio.gather(self._nature, return_exceptions=True)

    async def refuse_launches(self, times: int) -> None:
        for call in ("launch", "start"):
            self._world.faults.arm(call, Fault.REFUSED, times)

    async def lose_answer(self, call: str) -> None:
        self._world.faults.arm(call, Fault.LOST)

    async def fail_list(self) -> None:
        self._world.faults.arm("list", Fault.FAILED)

    async def throttle(self, calls: int) -> None:
        self._world.faults.arm("any", Fault.THROTTLED, calls)

    async def reclaim(self, node: str, notice_s: float) -> None:
        after = notice_s / SPEED
        self._board.reclaim(node, after=after, notice=after, sources=(QUEUE, METADATA))

    async def take(self, node: str) -> None:
        self._world.reclaim(node)

    async def recommend(self, node: str) -> None:
        self._board.publish(node, kind=NoticeKind.REBALANCE, sources=(QUEUE, METADATA))

    async def maintain(self, node: str) -> float:
        at = self.clock.now() + 3600.0
        self._board.publish(node, kind=NoticeKind.MAINTENANCE, deadline=at, sources=(QUEUE, METADATA))
        return 3600.0


class SimBalancerHarness:
    """A simulated balancer, and a front that sends each request to a target which the balancer routes to.

    Every id that is ever in the set is a machine of the simulated world; it is silent while its target says
    that it is not well. Stopped means that no call is answered; started again, the set is lost.
    """

    def __init__(self, directory: Path, account: Any) -> None:
        self._world = SimWorld(SystemClock(), sales=SALES, rng=random.Random(1), pace=PACE)
        self._table = TargetTable("sim", self._world, rng=random.Random(2), traffic=Traffic(per_second=0.0))
        self._table.on_sent.append(self._meet)
        self._rng = random.Random(3)
        self._end_outage: Callable[[], None] | None = None
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where clients send their requests."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Answer, with an empty set."""
        if self._end_outage is not None:
            self._end_outage()
            self._end_outage = None
            self._table.restart()
        self._client = aiohttp.ClientSession()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        self._looks = asyncio.create_task(self._look_for_ever())

    async def stop(self) -> None:
        """Answer nothing."""
        if self._runner is None:
            return
        self._end_outage = self._world.faults.begin(BALANCER, Fault.LOST)
        self._looks.cancel()
        await asyncio.gather(self._looks, return_exceptions=True)
        await self._client.close()
        await self._runner.cleanup()
        self._runner = None

    def adapter(self) -> LoadBalancer:
        """A new adapter, as another daemon would make it."""
        return SimBalancer(self._table, self._world)

    def know(self, name: str, address: str) -> None:
        """Its targets carry their ids."""

    def _meet(self, _table: TargetTable, desired: Sequence[TargetSpec], _generation: int) -> None:
        for spec in desired:
            self._world.machines.setdefault(
                spec.id,
                Machine(
                    id=spec.id,
                    pool="test",
                    token=spec.id,
                    placement=SALES[0].placement,
                    standby=None,
                    address=spec.address,
                    launched_at=0.0,
                    visible_at=0.0,
                    state=InstanceState.RUNNING,
                ),
            )

    async def _look_for_ever(self) -> None:
        while True:
            for spec in list(self._table.targets.values()):
                well = False
                with contextlib.suppress(aiohttp.ClientError):
                    async with self._client.get(f"http://{spec.address}/health") as answer:
                        well = answer.status == 200
                silent = self._world.machines[spec.id].silent_since is not None
                if well and silent:
                    self._world.revive(spec.id)
                elif not well and not silent:
                    self._world.silence(spec.id)
            await asyncio.sleep(0.02)

    async def _pass_on(self, request: web.Request) -> web.Response:
        now = self._world.clock.now()
        routed = [self._world.machines[name] for name in self._table.routed(now)]
        able = [machine for machine in routed if machine.able(now)]
        if not able:
            return web.Response(status=503)
        machine = self._rng.choice(able)
        target = f"http://{self._table.targets[machine.id].address}{request.path}"
        machine.requests.append(math.inf)
        try:
            async with self._client.request(request.method, target, data=await request.read()) as answer:
                return web.Response(
                    status=answer.status, body=await answer.read(), content_type=answer.content_type
                )
        finally:
            with contextlib.suppress(ValueError):  # one that fell silent holds none
                machine.requests.remove(math.inf)
