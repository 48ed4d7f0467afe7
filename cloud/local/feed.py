"""The event feed: notices with rising numbers, kept until acknowledged, waited for by long polls."""

from __future__ import annotations

import asyncio

from cloud.local.table import Table
from cloud.local.wire import FeedEvent
from cloud.ports import Clock
from policies.model import NoticeKind


class Feed:
    """Publishes into the table and wakes who waits. Nothing is lost over reconnects or restarts."""

    def __init__(self, table: Table, clock: Clock, most: int) -> None:
        self._table = table
        self._clock = clock
        self._most = most
        self._changed = asyncio.Event()
        self._open = True

    def publish(self, kind: NoticeKind, node: str, deadline: float | None) -> FeedEvent:
        """Append an event and answer every waiting poll."""
        event = self._table.publish(kind, node, deadline, self._clock.now())
        self._table.trim_events(self._most)
        self._wake()
        return event

    async def after(self, seq: int, pool: str, wait: float) -> tuple[FeedEvent, ...]:
        """Events numbered above `seq` for a pool (empty: all); waits up to `wait` seconds for the first."""
        try:
            async with asyncio.timeout(wait):
                while not (events := self._table.events_after(seq, pool)) and self._open:
                    await self._changed.wait()
        except TimeoutError:
            return ()
        return events

    def acknowledge(self, seq: int) -> None:
        """Drop an event. Idempotent."""
        self._table.acknowledge(seq)

    def close(self) -> None:
        """Answer every waiting poll with nothing."""
        self._open = False
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
