"""A loop's way to its journal: what cannot be written waits in order, and no notice waits for long.

A turn waits until its events are on disk. While a notice waits it does so for GRACE at most: what is under
way goes on beside the loop, and the turn goes on like one whose journal cannot be written. It drains nodes
and writes target sets, and launches and ends nothing. So neither a disk that hangs nor the much that another
pool writes keeps a noticed node in its balancer.

Slow is not broken: that the journal cannot be written is said of a write that failed, and of one that hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from cloud.logger import structlog
from orchestrator.journal.store import Journal, StoreUnavailable, Superseded
from orchestrator.loop.inbox import Inbox
from orchestrator.metrics import metrics
from policies.events import Event
from policies.model import PartKind
from policies.parts import LOST_AFTER

log = structlog.get_logger("loop")

UNWRITTEN_MOST: Final = 10_000
"""Events kept for the journal while it cannot be written; the oldest are dropped beyond."""

GRACE: Final = 0.025
"""Seconds for which a turn waits for the journal while a notice waits."""

HANGS_AFTER: Final = LOST_AFTER[PartKind.BALANCER]
"""Seconds from which on a write that is under way counts as one that failed, until it is done."""


class Writing:
    """Writes one pool's events.

    `durable`: the journal accepts writes; no write failed last, and none hangs. `lost`: some events will
    never be on disk.
    """

    def __init__(self, pool: str, journal: Journal, inbox: Inbox) -> None:
        self._pool, self._journal, self._inbox = pool, journal, inbox
        self._unwritten: list[Event] = []
        self._sent: list[Event] = []  # of the append that is under way
        self._append: asyncio.Task[None] | None = None
        self._charge: asyncio.Task[None] | None = None
        self._began = 0.0
        self._left = False  # a turn went on without the append that is under way
        self._busy = False
        self.durable = True
        self.lost = False

    @property
    def behind(self) -> int:
        """Events that wait for the journal to accept writes."""
        return len(self._sent) + len(self._unwritten)

    @property
    def waiting(self) -> Sequence[Event]:
        """These events, oldest first."""
        return (*self._sent, *self._unwritten)

    @property
    def under_way(self) -> bool:
        """True while an append is, which may be on disk or not."""
        return self._append is not None

    @property
    def settled(self) -> bool:
        """True while everything is on disk."""
        return self.durable and not self.behind and not self._busy

    async def write(self, events: Sequence[Event], *, urgent: bool | None = None) -> bool:
        """Write events, after those that could not be written before; True when all are on disk.

        `urgent`: this turn brings a notice. None: it waits for the journal whatever comes meanwhile. Raises
        Superseded.
        """
        self._unwritten += events
        self._busy = True
        try:
            while self._append is not None or self._unwritten or not self.durable:
                if self._append is None:
                    self._begin()
                if not await self._on_disk(urgent):
                    return False
            return True
        finally:
            self._busy = False
            metrics.JOURNAL_OK.set(self.durable)

    def void(self, events: Sequence[Event]) -> None:
        """Forget events that were not written: what they say will not be done."""
        void = {id(event) for event in events}
        self._unwritten = [event for event in self._unwritten if id(event) not in void]

    async def account(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the ledger's work, one at a time; it goes on beside the loop where a notice waits."""
        if self._charge is not None and not self._charge.done():
            work.close()
            return
        if self._charge is not None:
            self._charge.result()
        self._charge = asyncio.ensure_future(work)
        if await self._wait(self._charge, urgent=False, until=_now() + HANGS_AFTER):
            done, self._charge = self._charge, None
            done.result()

    async def stop(self) -> None:
        """Wait for nothing more."""
        left = [task for task in (self._append, self._charge) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # -- one append ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._sent, self._unwritten = self._unwritten, []
        self._began, self._left = _now(), False
        self._append = asyncio.ensure_future(self._journal.append(self._pool, self._sent))

    async def _on_disk(self, urgent: bool | None) -> bool:
        """Wait for the append that is under way; False where it failed, or the turn goes on without it."""
        append = self._append
        if append is None:
            return True
        if not await self._wait(append, urgent=urgent, until=self._began + HANGS_AFTER):
            self._leave(append)
            return False
        sent, self._sent, self._append = self._sent, [], None
        try:
            append.result()
        except Superseded:
            raise
        except StoreUnavailable as error:
            self._failed(sent, error)
            return False
        if not self.durable:
            log.info("journal.recovered", written=len(sent))
        self.durable = True
        metrics.JOURNAL_SECONDS.observe(_now() - self._began)
        return True

    def _leave(self, append: asyncio.Task[None]) -> None:
        """A turn goes on without the append, which wakes the loop once it is done."""
        if not self._left:
            self._left = True
            append.add_done_callback(lambda _: self._inbox.poke())
        if _now() - self._began >= HANGS_AFTER:
            self._unavailable(f"a write has been under way for {HANGS_AFTER:g} s")

    def _failed(self, sent: list[Event], error: StoreUnavailable) -> None:
        self._unavailable(str(error))
        metrics.JOURNAL_FAILURES.inc()
        waiting = [*sent, *self._unwritten]
        self.lost = self.lost or len(waiting) > UNWRITTEN_MOST
        self._unwritten = waiting[-UNWRITTEN_MOST:]

    def _unavailable(self, error: str) -> None:
        if self.durable:
            effect = "notices still drain nodes; nothing is launched or ended until it can be written"
            log.error("journal.write_failed", error=error, effect=effect)
        self.durable = False

    async def _wait(self, work: asyncio.Task[None], *, urgent: bool | None, until: float) -> bool:
        """Wait for work to be done, no longer than GRACE once a notice waits or it is `until`.

        True when it is done.
        """
        if urgent is None:
            await asyncio.wait({work})
        elif not urgent:
            notice = asyncio.ensure_future(self._inbox.notice())
            try:
                left = max(0.0, until - _now())
                await asyncio.wait({work, notice}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                notice.cancel()
                await asyncio.wait({notice})
        if not work.done():
            await asyncio.wait({work}, timeout=GRACE)
        return work.done()


def _now() -> float:
    return asyncio.get_running_loop().time()
