"""The gateway's own health checks: dead targets leave and new ones join without the daemon."""

from __future__ import annotations

import asyncio
import random

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict

from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.continuation import Capability, probe
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.metrics import LaneMetrics
from orchestrator.gateway.targets import TargetTable
from orchestrator.gateway.upstream import target_url
from policies.model import TargetState

log = structlog.get_logger("gateway")

_HEALTHY_STATUS = 200
_SHORTEST_GAP = 0.05  # s between two checks of one target, however many requests fail meanwhile
KNOWN_WITHIN = 1.0
"""Seconds that a target's requests, and a new target's streams, wait for what it can do: a probe takes
milliseconds where the engine is not busy."""

_AT_EASE = 3  # intervals between two checks of a target that brings answers, or owes none


class HealthChecker:
    """Checks every target of the set, each on its own beat, and at once when a request to it failed.

    One that left the set is checked as long as it holds requests, which would otherwise not be known as lost.
    One that owes answers and says nothing is checked at every interval, any other at every third. A target
    that becomes healthy is asked what it can do for streams that broke elsewhere, until it answers that; a
    new one gets its requests a little later if it takes its time to say so. Each check opens its own
    connection: a pooled one would still work on a server that no longer listens. A refused connection counts
    at once, other faults after `health_fall` in a row.
    """

    def __init__(
        self,
        *,
        gate: PoolGate,
        table: TargetTable,
        metrics: LaneMetrics,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._gate = gate
        self._table = table
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._headers: CIMultiDict[str] = CIMultiDict()
        if gate.api_key is not None:
            self._headers[hdrs.AUTHORIZATION] = f"Bearer {gate.api_key}"
        self._watches: dict[Entry, asyncio.Task[None]] = {}
        self._probes: dict[Entry, asyncio.Task[None]] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=gate.health_timeout, sock_connect=gate.connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def sync(self) -> None:
        """Watch the targets of the set as it is now; a new one is checked at once."""
        for entry in self._table:
            if entry.present and entry not in self._watches:
                task = asyncio.create_task(self._watch(entry), name=f"health-{entry.spec.id}")
                self._watches[entry] = task
                task.add_done_callback(lambda _, gone=entry: self._watches.pop(gone, None))  # type: ignore[misc]

    async def close(self) -> None:
        """Stop checking."""
        watches = [*self._watches.values(), *self._probes.values()]
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await self._session.close()

    async def _watch(self, entry: Entry) -> None:
        """Check one target until it has left the set and holds no request."""
        interval = self._gate.health_interval
        wait = interval * self._rng.uniform(0.5, 1.0)  # spreads targets that came together
        while entry.watched:
            entry.suspicion.clear()
            try:
                await self._check(entry)
            except Exception:
                log.exception("health_check.crashed", node=entry.spec.id)
            for _ in range(_AT_EASE):
                if await self._suspected(entry, wait) or self._owes(entry, interval):
                    break
                wait = interval
            wait = interval

    async def _suspected(self, entry: Entry, seconds: float) -> bool:
        """Wait; True as soon as a request failed there."""
        try:
            async with asyncio.timeout(seconds):
                await entry.suspicion.wait()
        except TimeoutError:
            return False
        await self._clock.sleep(_SHORTEST_GAP)
        return True

    def _owes(self, entry: Entry, interval: float) -> bool:
        """Whether it holds requests and is silent, or is not known to be well."""
        if entry.health is not TargetState.HEALTHY:
            return True
        return entry.in_flight > 0 and self._clock.now() - entry.clock.heard_at >= interval

    async def _ask_what_it_can(self, entry: Entry) -> None:
        """Probe it: it may be another engine by now. One that takes its time answers beside the checks."""
        if entry not in self._probes:
            entry.capability = self._table.able_by_build(entry)
            if entry.health is not TargetState.HEALTHY:
                entry.takes_usage = None
            if entry.capability is None and entry.health is not TargetState.HEALTHY:
                entry.known.clear()
            else:
                entry.known.set()
            task = asyncio.create_task(self._probe(entry), name=f"probe-{entry.spec.id}")
            self._probes[entry] = task
            task.add_done_callback(lambda _: self._probes.pop(entry, None))
        if not entry.known.is_set():
            await asyncio.wait([self._probes[entry]], timeout=KNOWN_WITHIN)

    async def _probe(self, entry: Entry) -> None:
        if self._gate.tells_ids:
            can = await probe(self._session, entry.spec.address, self._headers)
        else:
            can = Capability(why="its streams do not tell the ids of all tokens")
        if can.answered or entry.capability is None:
            entry.capability = can
        entry.known.set()
        log.info("target.probed", node=entry.spec.id, way=can.way.value, reason=can.why)

    async def _check(self, entry: Entry) -> None:
        fault, fall, spoke, refused = "", self._gate.health_fall, False, False
        entry.clock.asked(self._clock.now())
        try:
            async with self._session.get(target_url(entry.spec.address, self._gate.health_path)) as answer:
                spoke = True
                if answer.status != _HEALTHY_STATUS:
                    fault = f"health check answered {answer.status}"
        except aiohttp.ClientConnectorError as error:
            fault, fall, refused = f"health check cannot connect: {error.strerror or error}", 1, True
        except TimeoutError:
            fault = f"health check got no answer within {self._gate.health_timeout:g} s"
        except (aiohttp.ClientError, OSError) as error:
            fault = f"health check failed: {error}"
        finally:
            entry.clock.answered(self._clock.now(), passed=not fault, spoke=spoke)
        self._metrics.health_checked(not fault)
        if fault:
            entry.known.set()
        elif entry.health is not TargetState.HEALTHY or not (entry.capability and entry.capability.answered):
            await self._ask_what_it_can(entry)
        if self._table.checked(entry, fault, fall, refused=refused) and entry.present:
            log.info("target.health_changed", node=entry.spec.id, health=entry.health.value, reason=fault)
