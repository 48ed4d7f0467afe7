"""What leaves for providers, looked at beside the pools' loops: routes, providers, and what they cost.

The gateway is asked every two seconds where requests go now, and the spend file read; nothing else of the
daemon waits for either. What of it is news (`policies.fallback`) is journalled in a stream of its own, since
routes are of several pools or of none, and remembered from there over a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cloud.balancers.routes import Document
from cloud.errors import Uncertain
from cloud.logger import structlog
from cloud.ports import Clock
from cloud.threads import WorkerThreads
from orchestrator.api import routes
from orchestrator.api.routes import Sight
from orchestrator.config.checks.routes import by_name
from orchestrator.config.load import Config
from orchestrator.daemon.pool_run import SNAPSHOT_EVERY
from orchestrator.gateway.spend_file import KEPT_DAYS, Totals, Unusable, read_totals
from orchestrator.journal.store import GATEWAY, Store, StoreUnavailable, Superseded
from orchestrator.wiring.gateway import routes_of
from policies.event_text import sentence
from policies.events import FallbackEnded, ProviderBack
from policies.fallback import Watch, news
from policies.memory import Memory, reduce

log = structlog.get_logger("daemon")

EVERY: Final = 2.0
"""Seconds between two looks."""

_DAY: Final = 86_400.0
_GOOD: Final = (FallbackEnded, ProviderBack)

Ask = Callable[[Path], Awaitable[Document]]
"""Asks the gateway at a control socket; see `read_routes`."""


class Outside:
    """`run` is its root task. `sight` is the newest look, None where names of models are not looked
    at. `config` tells the configuration in force; without
    `threads` the spend file is read in place.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        *,
        clock: Clock,
        store: Store,
        ask: Ask,
        compacting: asyncio.Lock,
        threads: bool = True,
    ) -> None:
        self._config, self._clock, self._store, self._ask = config, clock, store, ask
        self._compacting = compacting
        self._threads = WorkerThreads("spend", 1) if threads else None
        self._changed = asyncio.Event()
        self._watch = Watch()
        self._tidied_at = clock.now()
        self._seen_at: float | None = None
        self.memory = Memory()
        self.sight: Sight | None = None
        self._begin(config())

    def poke(self) -> None:
        """The configuration is another: there may be something to look at."""
        self._changed.set()

    async def run(self) -> None:
        """Look for ever. Raises Superseded when another daemon has taken over."""
        begun = False
        try:
            while True:
                config = self._config()
                self._begin(config)
                if self.sight is None:
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                try:
                    if not begun:
                        self.memory, begun = await self._store.load(GATEWAY), True
                    await self.look(config)
                except Superseded:
                    raise
                except StoreUnavailable as error:
                    log.warning("routes.record_failed", error=str(error))
                await self._clock.sleep(EVERY)
        finally:
            if self._threads is not None:
                self._threads.close()

    def _begin(self, config: Config) -> None:
        """Nothing is seen yet, or there is nothing to see."""
        if not (by_name(config.pools, config.routes) or config.providers):
            self.sight = None
        elif self.sight is None:
            self.sight = Sight(
                at=self._clock.now(),
                routes=routes_of(config),
                providers=config.providers,
                document=None,
                error="the gateway has not been asked yet",
                seen_at=None,
                days=None,
                spend_error="the spend file has not been read yet",
            )

    async def look(self, config: Config) -> None:
        """Look once, and journal what is news. Raises StoreUnavailable: it is news again at the next look."""
        self.sight = sight = await self._see(config)
        watch, found = news(routes.look(sight), self._watch, self.memory)
        await self._store.append(GATEWAY, found)
        self._watch, self.memory = watch, reduce(self.memory, *found)
        for event in found:
            log.log(
                logging.INFO if isinstance(event, _GOOD) else logging.WARNING,
                "routes.changed",
                kind=type(event).__name__,
                text=sentence(event),
            )
        await self._tidy(config)

    async def _see(self, config: Config) -> Sight:
        document, error = None, ""
        try:
            document = await self._ask(config.gateway.socket)
        except Uncertain as refused:
            error = str(refused)
        now = self._clock.now()
        if document is not None:
            self._seen_at = now
        days, spend_error = await self._days(config, now)
        return Sight(
            at=now,
            routes=routes_of(config),
            providers=config.providers,
            document=document,
            error=error,
            seen_at=self._seen_at,
            days=days,
            spend_error=spend_error,
        )

    async def _days(self, config: Config, now: float) -> tuple[Sequence[Totals] | None, str]:
        """The sums of the days that are shown, and of those since the oldest fallback that is not over."""
        oldest = min((record.since for record in self.memory.fallbacks.values()), default=now)
        days = min(KEPT_DAYS, max(routes.DAYS, int((now - oldest) // _DAY) + 2))
        read = partial(read_totals, config.gateway.spend_file, now, days=days)
        try:
            return await self._threads.run(read) if self._threads is not None else read(), ""
        except Unusable as error:
            return None if self.sight is None else self.sight.days, str(error)

    async def _tidy(self, config: Config) -> None:
        """Snapshot the stream's memory now and then, so that the journal stays small."""
        now = self._clock.now()
        if now - self._tidied_at < SNAPSHOT_EVERY:
            return
        async with self._compacting:
            self._tidied_at = now
            keep_after = now - config.daemon.keep_events
            await self._store.snapshot(GATEWAY, self.memory, keep_after=keep_after)
