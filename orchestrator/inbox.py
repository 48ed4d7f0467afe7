"""Where events wait for the next turn, and what wakes the loop.

Bounded: beyond `limit` the oldest waiting events are dropped and counted; correctness does not depend on
events, the next observation tells the same. Each event gets a ticket, so that whoever put it can wait until
it is on disk (a queue's message is deleted only then); who waits for a dropped one is cancelled, and the
queue tells the message again.
"""

from __future__ import annotations

import asyncio
from collections import deque

from policies.events import Event, NoticeSeen


class Inbox:
    """Events from ports, operators and the actuator, in order of arrival."""

    def __init__(self, limit: int = 100_000) -> None:
        self._events: deque[Event] = deque(maxlen=limit)
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
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

    async def wait(self, seconds: float, *, debounce: float = 0.0) -> bool:
        """Wait for a wake-up, at most `seconds`, then `debounce` longer unless a notice waits.

        True when there was a wake-up.
        """
        woken = await _within(self._wake, seconds)
        if woken and debounce > 0:
            await _within(self._urgent, debounce)
        return woken


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
