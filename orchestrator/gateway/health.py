"""The gateway's own health checks: dead targets leave and new ones join without the daemon."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import structlog

from cloud.ports import Clock
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.targets import Entry, TargetTable
from orchestrator.gateway.upstream import target_url

log = structlog.get_logger("orchestrator.gateway")

_HEALTHY_STATUS = 200
_SHORTEST_GAP = 0.05  # s between two checks of one target, however many requests fail meanwhile


class HealthChecker:
    """Checks every target of the set, each on its own beat, and at once when a request to it failed.

    Each check opens its own connection: a pooled one would still work on a server that no longer listens.
    A refused connection counts at once, other faults after `health_fall` in a row.
    """

    def __init__(
        self,
        *,
        config: GatewayConfig,
        table: TargetTable,
        metrics: GatewayMetrics,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._table = table
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._watches: dict[Entry, asyncio.Task[None]] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=config.health_timeout, sock_connect=config.connect_timeout),
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
        watches = list(self._watches.values())
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await self._session.close()

    async def _watch(self, entry: Entry) -> None:
        """Check one target until it leaves the set."""
        wait = self._config.health_interval * self._rng.uniform(
            0.5, 1.0
        )  # spreads targets that came together
        while entry.present:
            entry.suspicion.clear()
            await self._check(entry)
            try:
                async with asyncio.timeout(wait):
                    await entry.suspicion.wait()
                await self._clock.sleep(_SHORTEST_GAP)
            except TimeoutError:
                pass
            wait = self._config.health_interval

    async def _check(self, entry: Entry) -> None:
        fault, fall = "", self._config.health_fall
        try:
            async with self._session.get(target_url(entry.spec.address, self._config.health_path)) as answer:
                if answer.status != _HEALTHY_STATUS:
                    fault = f"health check answered {answer.status}"
        except aiohttp.ClientConnectorError as error:
            fault, fall = f"health check cannot connect: {error.strerror or error}", 1
        except TimeoutError:
            fault = f"health check got no answer within {self._config.health_timeout:g} s"
        except (aiohttp.ClientError, OSError) as error:
            fault = f"health check failed: {error}"
        self._metrics.health_checked(not fault)
        if self._table.checked(entry, fault, fall) and entry.present:
            log.info("target_health", node=entry.spec.id, health=entry.health.value, reason=fault)
