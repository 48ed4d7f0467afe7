"""The spend file from an event loop: what may be sent is held back first, and made good after.

Changes that come while others are being written are written together in the next transaction, so that one
wait for the disk serves all of them. A disk that hangs holds up only those who wait for it, and not for long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from functools import partial
from pathlib import Path

from cloud.logger import structlog
from cloud.ports import Clock
from cloud.threads import WorkerThreads
from orchestrator.gateway.spend_file import CapReached, Claim, Settled, SpendFile, Ticket, Totals, Unusable
from policies.spend import Usage, day_of

log = structlog.get_logger("gateway")

_PATIENCE = 3.0
"""Seconds that a request waits for the file."""

_MOST_OWED = 10_000
"""Settlements that are kept in memory while the file cannot be written."""

_Waiting = tuple[Claim | Settled, "asyncio.Future[Ticket] | None"]


class SpendBook:
    """Holds and settles for one process. Make it inside the running event loop.

    `trouble` says why the file could not be used the last time, empty when it could. What could not be
    written stays owed and is written with the next change.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._file = SpendFile(path)
        self._clock = clock
        self._threads = WorkerThreads("spend", 1)
        self._waiting: list[_Waiting] = []
        self._owed: deque[Settled] = deque(maxlen=_MOST_OWED)
        self._writer: asyncio.Task[None] | None = None
        self._frozen: asyncio.Task[None] | None = None  # the writer that somebody waited for in vain
        self.trouble = ""
        self._read = Totals(day_of(clock.now()))

    @property
    def today(self) -> Totals:
        """The day's sums as they were read last."""
        day = day_of(self._clock.now())
        return self._read if self._read.day == day else Totals(day)

    async def reserve(self, claim: Claim) -> Ticket:
        """Hold the most that the request may cost. Raises CapReached; Unusable when the file does not answer:
        then nothing is held, or what is counts until the day is over.
        """
        if self._frozen is not None and not self._frozen.done():
            raise Unusable(self.trouble)
        held: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        self._put(claim, held)
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._ticket(held)
        except TimeoutError:
            self._frozen = self._writer
            self.trouble = f"the spend file {self._file.path} does not answer"
            raise Unusable(self.trouble) from None

    async def _ticket(self, held: asyncio.Future[Ticket]) -> Ticket:
        """Wait for it. One that came in the instant in which its asker left is released."""
        try:
            return await held
        except asyncio.CancelledError:
            if not held.cancelled() and held.exception() is None:
                self.release(held.result())
            raise

    def unheld(self, claim: Claim) -> Ticket:
        """A ticket for a request without a cap that is sent although the file cannot be written."""
        return Ticket(claim, day_of(self._clock.now()))

    def settle(self, ticket: Ticket, *, amount: int | None, usage: Usage | None) -> None:
        """Book what the request cost. `usage` None: it is not known, and `amount` is the most; `amount` None:
        there is no price.
        """
        self._put(Settled(ticket=ticket, amount=amount, usage=usage, estimated=usage is None), None)

    def release(self, ticket: Ticket) -> None:
        """Nothing was sent: release what was held."""
        self._put(Settled(ticket=ticket), None)

    async def totals(self) -> Totals:
        """The day's sums, with those of other processes. Raises Unusable."""
        try:
            self._read = await self._threads.run(partial(self._file.totals, self._clock.now()))
        except Unusable as error:
            self._troubled(error)
            raise
        return self._read

    async def settled(self) -> None:
        """Wait until everything that was asked for is written, or failed to be."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait([self._writer])

    async def close(self) -> None:
        """Write what is owed, once more where that failed, and close the file."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self.settled()
                if self._owed:
                    self._begin()
                    await self.settled()
                await self._threads.run(self._file.close)
        self._threads.close()

    def _put(self, change: Claim | Settled, held: asyncio.Future[Ticket] | None) -> None:
        self._waiting.append((change, held))
        self._begin()

    def _begin(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        first = True
        while self._waiting or (first and self._owed):
            first = False
            batch: list[_Waiting] = [*((owed, None) for owed in self._owed), *self._waiting]
            self._owed.clear()
            self._waiting = []
            changes = [change for change, _ in batch]
            try:
                results = await self._threads.run(partial(self._apply, changes, self._clock.now()))
            except Unusable as error:
                self._failed(batch, error)
            else:
                self.trouble = ""
                for (_, held), result in zip(batch, results, strict=True):
                    self._told(held, result)

    def _apply(self, changes: list[Claim | Settled], now: float) -> list[Ticket | CapReached | None]:
        results = self._file.apply(changes, now)
        self._read = self._file.totals(now)
        return results

    def _failed(self, batch: list[_Waiting], error: Unusable) -> None:
        self._troubled(error)
        for change, held in batch:
            if isinstance(change, Settled):
                self._owed.append(change)
            elif held is not None and not held.done():
                held.set_exception(Unusable(str(error)))

    def _troubled(self, error: Unusable) -> None:
        if not self.trouble:
            log.error("spend_file.write_failed", reason=str(error))
        self.trouble = str(error)

    def _told(self, held: asyncio.Future[Ticket] | None, result: Ticket | CapReached | None) -> None:
        if held is None:
            return
        if isinstance(result, Ticket):
            if held.done():  # the asker left meanwhile
                self.release(result)
            else:
                held.set_result(result)
        elif result is not None and not held.done():
            held.set_exception(result)
