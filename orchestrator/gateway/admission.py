"""The waiting room: gives each request a target, in order of arrival, or tells it why there is none."""

from __future__ import annotations

import asyncio
from collections import deque

from orchestrator.gateway.request import Exchange
from orchestrator.gateway.targets import Entry, TargetTable


class Refused(Exception):
    """No target within the rules of the queue. `full` says that the queue had no place left."""

    def __init__(self, message: str, *, full: bool) -> None:
        super().__init__(message)
        self.full = full


class Admission:
    """A bounded first-in-first-out queue before the target table.

    It wakes by itself whenever the table changes. A request that comes back for a retry waits in front and
    needs no free place: it was let in before. The deadline counts all the waiting of a request together.
    """

    def __init__(self, table: TargetTable, *, limit: int, deadline: float) -> None:
        self._table = table
        self._limit = limit
        self._deadline = deadline
        self._waiting: deque[tuple[Exchange, asyncio.Future[Entry]]] = deque()
        table.on_change.append(self._wake)

    def __len__(self) -> int:
        return len(self._waiting)

    async def acquire(self, exchange: Exchange) -> Entry:
        """Wait for a target and take it; the caller gives it back to the table.

        Raises Refused when the queue is full or the deadline passes; CancelledError when the client leaves.
        """
        if not self._waiting and (entry := self._table.choose(exchange.tried)) is not None:
            self._table.take(entry)
            return entry
        if not exchange.retries and len(self._waiting) >= self._limit:
            raise Refused(f"{len(self._waiting)} requests are waiting already", full=True)
        turn: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        place = (exchange, turn)
        if exchange.retries:
            self._waiting.appendleft(place)
        else:
            self._waiting.append(place)
        self._wake()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._deadline - exchange.waited):
                return await turn
        except TimeoutError:
            self._withdraw(place)
            raise Refused(f"no target took the request within {self._deadline:g} s", full=False) from None
        except asyncio.CancelledError:
            self._withdraw(place)
            raise
        finally:
            exchange.waited += loop.time() - began

    def _withdraw(self, place: tuple[Exchange, asyncio.Future[Entry]]) -> None:
        """Leave the queue; give back a target that was handed over in the same instant."""
        _, turn = place
        if turn.done() and not turn.cancelled():
            self._table.give(turn.result(), None, answered=False)
        elif place in self._waiting:
            self._waiting.remove(place)

    def _wake(self) -> None:
        """Serve the queue from the front as far as targets go.

        A request that may not use any free target (it failed there) lets those behind it pass.
        """
        if not self._waiting:
            return
        held_back: list[tuple[Exchange, asyncio.Future[Entry]]] = []
        while self._waiting:
            exchange, turn = place = self._waiting.popleft()
            if turn.done():
                continue
            entry = self._table.choose(exchange.tried)
            if entry is not None:
                self._table.take(entry)
                turn.set_result(entry)
                continue
            held_back.append(place)
            if not exchange.tried:
                break
        self._waiting.extendleft(reversed(held_back))
