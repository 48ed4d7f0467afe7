"""Takes spot machines back when a zone's capacity falls under what is held, with notice as configured.

The market decides how many, a seeded generator which. Every reclaim runs the same course: it is decided,
its notice shows (in time, late or never) and at the deadline the machine vanishes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence

from cloud.local.config import LocalCloudConfig
from cloud.local.feed import Feed
from cloud.local.machines import Machines
from cloud.local.market import SpotMarket
from cloud.local.sales import Sales
from cloud.local.table import Machine, Reclaim
from cloud.logger import structlog
from cloud.ports import Clock
from policies.model import Market, NoticeKind

log = structlog.get_logger("local")

_LONGEST_NAP = 3600.0  # real seconds; the market is looked at again at least this often


def choose_victims(held: Sequence[Machine], capacity: int, rng: random.Random) -> tuple[Machine, ...]:
    """Which machines go when only `capacity` of `held` may stay. Pure but for the generator.

    Machines that rebalancing was recommended for go first, so that a recommendation means something.
    """
    surplus = len(held) - capacity
    if surplus <= 0:
        return ()
    order = sorted(held, key=lambda machine: machine.serial)
    rng.shuffle(order)
    order.sort(key=lambda machine: machine.recommended_at is None)
    return tuple(order[:surplus])


class Reclaims:
    """Watches the market and runs reclaims. `channels` may be changed while it runs."""

    def __init__(
        self,
        *,
        config: LocalCloudConfig,
        market: SpotMarket,
        sales: Sales,
        machines: Machines,
        feed: Feed,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._market = market
        self._sales = sales
        self._machines = machines
        self._feed = feed
        self._clock = clock
        self._rng = rng
        self._courses: set[asyncio.Task[None]] = set()
        self.channels = config.channels

    async def run(self) -> None:
        """Follow the market for ever."""
        while True:
            now = self._sales.market_now()
            self.enforce(now)
            lead = self._config.reclaiming.rebalance_lead
            wake = self._market.next_change(now)
            if lead > 0:
                wake = min(wake, self._market.next_change(now + lead) - lead)
            nap = min(_LONGEST_NAP, (wake - self._sales.market_now()) / self._config.speed)
            await self._clock.sleep(max(nap, 0.0))

    def enforce(self, now: float | None = None) -> None:
        """Compare what is held with what the market allows, for every spot offering, once."""
        at = self._sales.market_now() if now is None else now
        for series in self._market.zones:
            for kind in self._config.instance_types:
                self._enforce(series.zone, kind.name, at)

    def reclaim(self, node: str, notice: float | None = None, cause: str = "asked for") -> Machine:
        """Reclaim one machine with `notice` market seconds (None: as configured; 0: none at all).

        Raises NotFound when the machine is gone or already being reclaimed.
        """
        if notice is None:
            lead, shown = self._draw()
        else:
            lead, shown = notice, notice
        return self._decide(node, lead=lead, shown=shown, cause=cause)

    def recommend(self, node: str) -> Machine:
        """Recommend rebalancing away from one machine, once. Raises NotFound when it is gone."""
        machine = self._machines.mark(node)
        if machine.recommended_at is not None:
            return machine
        machine = self._machines.mark(node, recommended_at=self._clock.now())
        self._publish(NoticeKind.REBALANCE, node, None)
        return machine

    async def close(self) -> None:
        """Stop all courses; the machines are ended elsewhere."""
        for task in self._courses:
            task.cancel()
        await asyncio.gather(*self._courses, return_exceptions=True)

    def _enforce(self, zone: str, kind: str, at: float) -> None:
        held = self._machines.held(zone, kind, Market.SPOT)
        capacity = self._sales.capacity(zone, kind, Market.SPOT, at)
        if capacity is not None:
            for machine in choose_victims(held, capacity, self._rng):
                self.reclaim(machine.id, cause=f"spot capacity in {zone} fell to {capacity}")
        lead = self._config.reclaiming.rebalance_lead
        soon = self._sales.capacity(zone, kind, Market.SPOT, at + lead)
        if lead > 0 and soon is not None:
            for machine in choose_victims(self._machines.held(zone, kind, Market.SPOT), soon, self._rng):
                self.recommend(machine.id)

    def _draw(self) -> tuple[float, float | None]:
        """Market seconds from now to the deadline, and how long before it the notice shows (None: never)."""
        rules = self._config.reclaiming
        draw = self._rng.random()
        if draw < rules.missing_share:
            return rules.notice, None
        if draw < rules.missing_share + rules.late_share:
            return rules.notice, rules.late_notice
        return rules.notice, rules.notice

    def _decide(self, node: str, *, lead: float, shown: float | None, cause: str) -> Machine:
        now = self._clock.now()
        deadline = round(now + lead / self._config.speed, 3)  # as exact as the metadata tells it
        noticed = None if not shown else max(now, deadline - shown / self._config.speed)
        reclaim = Reclaim(cause=cause, decided_at=now, noticed_at=noticed, deadline=deadline)
        machine = self._machines.mark(node, reclaim=reclaim)
        log.info("reclaim.scheduled", node=node, cause=cause, deadline=deadline, noticed_at=noticed)
        if noticed is not None and noticed <= now:
            self._show(machine, reclaim)  # no detour over a task: the notice is out before anything else runs
        self._begin(self._course(machine, reclaim))
        return machine

    async def _course(self, machine: Machine, reclaim: Reclaim) -> None:
        if reclaim.noticed_at is not None and reclaim.noticed_at > reclaim.decided_at:
            await self._clock.sleep(reclaim.noticed_at - self._clock.now())
            self._show(machine, reclaim)
        await self._clock.sleep(reclaim.deadline - self._clock.now())
        gone = self._machines.vanish(machine.id, f"reclaimed: {reclaim.cause}", reclaimed=True)
        if gone is not None and self.channels.state_changes:
            self._publish(NoticeKind.STATE_CHANGE, machine.id, self._clock.now())

    def _begin(self, course: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(course)
        self._courses.add(task)
        task.add_done_callback(self._courses.discard)

    def _show(self, machine: Machine, reclaim: Reclaim) -> None:
        self._publish(NoticeKind.INTERRUPTION, machine.id, reclaim.deadline)

    def _publish(self, kind: NoticeKind, node: str, deadline: float | None) -> None:
        if not self.channels.feed:
            return
        delay = self.channels.feed_delay / self._config.speed
        if delay <= 0:
            self._feed.publish(kind, node, deadline)
        else:
            self._begin(self._publish_later(delay, kind, node, deadline))

    async def _publish_later(self, delay: float, kind: NoticeKind, node: str, deadline: float | None) -> None:
        await self._clock.sleep(delay)
        self._feed.publish(kind, node, deadline)
