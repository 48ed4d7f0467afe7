"""Where events wait for the next turn, and what wakes the loop.

Bounded: beyond `limit` the oldest waiting events are dropped and counted; correctness does not depend on
events, the next observation tells the same. Each event gets a ticket, so that whoever put it can wait until
it is on disk (a queue's message is deleted only then).
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
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.dropped = 0

    def put(self, event: Event) -> int:
        """Add an event and wake the loop, at once for a notice. Returns its ticket."""
        if len(self._events) == self._events.maxlen:
            self.dropped += 1
        self._events.append(event)
        self._tickets += 1
        self._wake.set()
        if isinstance(event, NoticeSeen):
            self._urgent.set()
        return self._tickets

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
        while self._waiting and self._waiting[0][0] <= self._written:
            future = self._waiting.popleft()[1]
            if not future.done():
                future.set_result(None)

    async def written(self, ticket: int) -> None:
        """Wait until the event with this ticket is on disk."""
        if ticket <= self._written:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((ticket, future))
        await future

    async def wait(self, seconds: float, *, debounce: float = 0.0) -> None:
        """Wait for a wake-up, at most `seconds`, then `debounce` longer unless a notice waits."""
        if await _within(self._wake, seconds) and debounce > 0:
            await _within(self._urgent, debounce)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
