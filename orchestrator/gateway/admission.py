"""The waiting room: gives each request a target, in order of arrival, or tells it why there is none."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import takewhile

from orchestrator.gateway.request import Exchange
from orchestrator.gateway.targets import Entry, TargetTable


class Refused(Exception):
    """No target within the rules of the queue. `full` says that the queue had no place left."""

    def __init__(self, message: str, *, full: bool) -> None:
        super().__init__(message)
        self.full = full


class _Place:
    """One waiting request. `since` is when it began to wait, `hopeless_since` since when in vain."""

    __slots__ = ("exchange", "hopeless_since", "since", "turn")

    def __init__(self, exchange: Exchange, turn: asyncio.Future[Entry], now: float) -> None:
        self.exchange = exchange
        self.turn = turn
        self.since = now
        self.hopeless_since: float | None = None


class Admission:
    """A bounded first-in-first-out queue before the target table.

    It wakes by itself whenever the table changes; `look` ends the waiting of those whose time is over. A
    request that comes back for a retry waits before all new ones and needs no free place: it was let in
    before. The deadline counts all the waiting of a request together. While no target can be hoped for, the
    pool as a whole is down, and a request waits for `hopeless` seconds only.
    """

    def __init__(self, table: TargetTable, *, limit: int, deadline: float, hopeless: float) -> None:
        self._table = table
        self._limit = limit
        self._deadline = deadline
        self._hopeless = hopeless
        self._waiting: deque[_Place] = deque()
        table.on_change.append(self._wake)

    def __len__(self) -> int:
        return len(self._waiting)

    async def acquire(self, exchange: Exchange, now: float) -> Entry:
        """Wait for a target and take it; the caller gives it back to the table.

        Raises Refused when the queue is full or the time is over; CancelledError when the client leaves.
        """
        if not self._waiting and (entry := self._table.choose(exchange.wish)) is not None:
            self._table.take(entry)
            return entry
        if not exchange.came_back and len(self._waiting) >= self._limit:
            raise Refused(f"{len(self._waiting)} requests are waiting already", full=True)
        place = _Place(exchange, asyncio.get_running_loop().create_future(), now)
        if exchange.came_back:
            ahead = takewhile(lambda other: other.exchange.came_back, self._waiting)
            self._waiting.insert(sum(1 for _ in ahead), place)
        else:
            self._waiting.append(place)
        self._wake()
        try:
            return await place.turn
        except asyncio.CancelledError:
            self._withdraw(place)
            raise

    def look(self, now: float) -> None:
        """End the waiting of those whose time is over, or who may try a target whose quiet time is."""
        self._wake()
        hope = self._table.hopeful()
        for place in list(self._waiting):
            if place.turn.done():
                continue
            wish = place.exchange.wish
            if self._table.hopeful(wish) if wish.choosy else hope:
                place.hopeless_since = None
            elif place.hopeless_since is None:
                place.hopeless_since = now
            waited = place.exchange.waited + now - place.since
            if now >= place.exchange.deadline:
                self._refuse(place, "no target took the request before its time was over")
            elif waited >= self._deadline:
                self._refuse(place, f"no target took the request within {self._deadline:g} s")
            elif place.hopeless_since is not None and now - place.hopeless_since >= self._hopeless:
                self._refuse(place, "no target is there that could take the request")

    def _refuse(self, place: _Place, message: str) -> None:
        self._waiting.remove(place)
        place.turn.set_exception(Refused(message, full=False))

    def _withdraw(self, place: _Place) -> None:
        """Leave the queue; give back a target that was handed over in the same instant."""
        turn = place.turn
        if turn.done() and not turn.cancelled():
            if turn.exception() is None:
                self._table.give(turn.result())
        elif place in self._waiting:
            self._waiting.remove(place)

    def _wake(self) -> None:
        """Serve the queue from the front as far as targets go.

        A request that may not use any free target (it failed there) lets those behind it pass.
        """
        if not self._waiting:
            return
        held_back: list[_Place] = []
        while self._waiting:
            place = self._waiting.popleft()
            if place.turn.done():
                continue
            wish = place.exchange.wish
            entry = self._table.choose(wish)
            if entry is not None:
                self._table.take(entry)
                place.turn.set_result(entry)
                continue
            held_back.append(place)
            if not wish.choosy:
                break
        self._waiting.extendleft(reversed(held_back))
