"""Where events wait for the next turn, and what wakes the loop.

Bounded: beyond `limit` the oldest waiting events are dropped and counted; correctness does not depend on
events, the next observation shows the same. Each event gets a ticket, so that its sender can wait until
it is on disk (a queue's message is deleted only then); who waits for a dropped one is cancelled, and the
queue tells the message again.
"""

from __future__ import annotations

import asyncio
from collections import deque

from policies.events import Event, NoticeSeen

_LOOKS = 60.0
"""Seconds between two looks at what wakes up by itself."""


class Inbox:
    """Events from ports, operators and the actuator, in order of arrival."""

    def __init__(self, limit: int = 100_000) -> None:
        self._events: deque[Event] = deque(maxlen=limit)
        self._wake = _Signal()
        self._urgent = _Signal()
        self._tickets = 0
        self._written = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._lost: set[int] = set()  # tickets of dropped events that are not passed over yet
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Events for the next turn."""
        return len(self._events)

    def put(self, event: Event) -> int:
        """Add an event and wake the loop, at once for a notice. Returns its ticket."""
        if len(self._events) == self._events.maxlen:
            self._drop(self._tickets - len(self._events) + 1)
        self._events.append(event)
        self._tickets += 1
        self._wake.set()
        if isinstance(event, NoticeSeen):
            self._urgent.set()
        return self._tickets

    def _drop(self, ticket: int) -> None:
        """The oldest waiting event makes room; nobody may believe that it was written."""
        self.dropped += 1
        self._lost.add(ticket)
        future = self._waiting.pop(ticket, None)
        if future is not None:
            future.cancel()

    def poke(self) -> None:
        """Wake the loop without an event: something was observed."""
        self._wake.set()

    def take_all(self) -> tuple[tuple[Event, ...], int]:
        """Everything that waits, and the ticket of the last one; the inbox is empty afterwards."""
        self._wake.clear()
        self._urgent.clear()
        taken = tuple(self._events)
        self._events.clear()
        return taken, self._tickets

    def mark_written(self, ticket: int) -> None:
        """Events up to this ticket are on disk."""
        self._written = max(self._written, ticket)
        if self._lost and self._written - min(self._lost) > 2 * (self._events.maxlen or 0):
            self._lost = {t for t in self._lost if self._written - t <= (self._events.maxlen or 0)}
        for waiting in [t for t in self._waiting if t <= self._written]:
            future = self._waiting.pop(waiting)
            if not future.done():
                future.set_result(None)

    async def written(self, ticket: int) -> None:
        """Wait until the event with this ticket is on disk. Raises CancelledError when it was dropped."""
        if ticket in self._lost:
            raise asyncio.CancelledError
        if ticket <= self._written:
            return
        future = self._waiting.setdefault(ticket, asyncio.get_running_loop().create_future())
        await asyncio.shield(future)

    async def notice(self) -> None:
        """Wait until a notice waits for the next turn."""
        while not await self._urgent.within(_LOOKS):
            pass

    async def wait(self, seconds: float, *, debounce: float = 0.0) -> bool:
        """Wait for a wake-up, at most `seconds`, then `debounce` longer unless a notice waits.

        True when there was a wake-up.
        """
        woken = await self._wake.within(seconds)
        if woken and debounce > 0:
            await self._urgent.within(debounce)
        return woken


class _Signal:
    """An event for one waiter that waits a limited time. Every turn ends with one, so it makes no detours."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[bool] | None = None

    def set(self) -> None:
        """Wake who waits, or let the next one not wait at all."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def clear(self) -> None:
        """Let the next one wait again."""
        self._is_set = False

    async def within(self, seconds: float) -> bool:
        """Wait until it is set, at most `seconds`; False when it was not."""
        if self._is_set:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        timer = loop.call_later(seconds, _give_up, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiter = None


def _give_up(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
