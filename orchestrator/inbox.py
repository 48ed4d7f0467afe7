"""Where events wait for the next turn, and what wakes the loop.

Bounded: beyond `limit` the oldest waiting events are dropped and counted; correctness does not depend on
events, the next observation tells the same.
"""

from __future__ import annotations

import asyncio
from collections import deque

from policies.events import Event


class Inbox:
    """Events from ports, operators and the actuator, in order of arrival."""

    def __init__(self, limit: int = 100_000) -> None:
        self._events: deque[Event] = deque(maxlen=limit)
        self._wake = asyncio.Event()
        self.dropped = 0

    def put(self, event: Event) -> None:
        """Add an event and wake the loop."""
        if len(self._events) == self._events.maxlen:
            self.dropped += 1
        self._events.append(event)
        self._wake.set()

    def poke(self) -> None:
        """Wake the loop without an event: something was observed."""
        self._wake.set()

    def take_all(self) -> tuple[Event, ...]:
        """Everything that waits; the inbox is empty afterwards."""
        self._wake.clear()
        taken = tuple(self._events)
        self._events.clear()
        return taken

    async def wait(self, seconds: float) -> None:
        """Wait for a wake-up, at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
