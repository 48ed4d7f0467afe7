"""The waiting room: gives each request a target, the most urgent first, or tells it why there is none."""

from __future__ import annotations

import asyncio
from bisect import insort
from operator import attrgetter

from orchestrator.gateway.request import Exchange
from orchestrator.gateway.targets import Entry, TargetTable
from policies.routing import Trouble

AGEING = 10.0
"""Seconds of waiting that one step of priority is worth: what waits long enough is as urgent as any."""


class Refused(Exception):
    """No target within the rules of the queue. `full` says that the queue had no place left."""

    def __init__(self, message: str, trouble: Trouble, *, full: bool = False) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.full = full


class _Place:
    """One waiting request. `since` is when it began to wait, `hopeless_since` since when in vain; the lowest
    `rank` goes first.
    """

    __slots__ = ("exchange", "hopeless_since", "rank", "since", "turn")

    def __init__(self, exchange: Exchange, turn: asyncio.Future[Entry], now: float) -> None:
        self.exchange = exchange
        self.turn = turn
        self.since = now
        self.hopeless_since: float | None = None
        came_back = exchange.came_back
        self.rank = (not came_back, 0.0 if came_back else now - AGEING * exchange.priority)


class Admission:
    """A bounded queue before the target table.

    The order is that of arrival, where a step of priority counts for `AGEING` seconds. It wakes by itself
    whenever the table changes; `look` ends the waiting of those whose time is over. A request that comes back
    for a retry waits before all new ones and needs no free place: it was let in before. The deadline counts
    all the waiting of a request together. While no target can be hoped for, the pool as a whole is down, and
    a request waits for `hopeless` seconds only. One that has somewhere else to go leaves at once on the
    troubles that it names.
    """

    def __init__(self, table: TargetTable, *, limit: int, deadline: float, hopeless: float) -> None:
        self._table = table
        self._limit = limit
        self._deadline = deadline
        self._hopeless = hopeless
        self._waiting: list[_Place] = []
        table.on_change.append(self._wake)

    def __len__(self) -> int:
        return len(self._waiting)

    async def acquire(self, exchange: Exchange, now: float) -> Entry:
        """Wait for a target and take it; the caller gives it back to the table.

        Raises Refused when the queue is full or the time is over; CancelledError when the client leaves.
        """
        wish = exchange.wish
        if Trouble.DOWN in exchange.leaves and self._table.down(wish):
            raise _no_hope()
        if not self._waiting and (entry := self._table.choose(wish)) is not None:
            self._table.take(entry, wish.tokens)
            return entry
        place = self._queue(exchange, now)
        self._wake()
        if Trouble.SATURATED in exchange.leaves and not place.turn.done():
            self._waiting.remove(place)
            raise Refused("every target is busy", Trouble.SATURATED)
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
            exchange = place.exchange
            wish = exchange.wish
            if self._table.hopeful(wish) if wish.choosy else hope:
                place.hopeless_since = None
            elif place.hopeless_since is None:
                place.hopeless_since = now
            here = now - place.since
            if now >= exchange.deadline:
                message = "no target took the request before its time was over"
                self._refuse(place, Refused(message, Trouble.SATURATED))
            elif exchange.waited + here >= self._deadline:
                message = f"no target took the request within {self._deadline:g} s"
                self._refuse(place, Refused(message, Trouble.WAITED))
            elif exchange.patience is not None and exchange.waited + here >= exchange.patience:
                message = f"no target took the request within {exchange.patience:g} s"
                self._refuse(place, Refused(message, Trouble.WAITED))
            elif place.hopeless_since is not None and (
                Trouble.DOWN in exchange.leaves or now - place.hopeless_since >= self._hopeless
            ):
                self._refuse(place, _no_hope())

    def _queue(self, exchange: Exchange, now: float) -> _Place:
        """A place in the queue. Raises Refused when there is none."""
        if not exchange.came_back and len(self._waiting) >= self._limit:
            trouble = Trouble.SATURATED if exchange.patience is None else Trouble.WAITED
            raise Refused(f"{len(self._waiting)} requests are waiting already", trouble, full=True)
        place = _Place(exchange, asyncio.get_running_loop().create_future(), now)
        insort(self._waiting, place, key=_RANK)
        return place

    def _refuse(self, place: _Place, refused: Refused) -> None:
        self._waiting.remove(place)
        place.turn.set_exception(refused)

    def _withdraw(self, place: _Place) -> None:
        """Leave the queue; give back a target that was handed over in the same instant."""
        turn = place.turn
        if turn.done() and not turn.cancelled():
            if turn.exception() is None:
                self._table.give(turn.result(), place.exchange.wish.tokens)
        elif place in self._waiting:
            self._waiting.remove(place)

    def _wake(self) -> None:
        """Serve the queue from the front as far as targets go.

        A request that may not use any free target (it failed there) lets those behind it pass.
        """
        if not self._waiting:
            return
        passed = 0
        held_back: list[_Place] = []
        for place in self._waiting:
            passed += 1
            if place.turn.done():
                continue
            wish = place.exchange.wish
            entry = self._table.choose(wish)
            if entry is not None:
                self._table.take(entry, wish.tokens)
                place.turn.set_result(entry)
                continue
            held_back.append(place)
            if not wish.choosy:
                break
        if passed > len(held_back):
            self._waiting[:passed] = held_back


def _no_hope() -> Refused:
    return Refused("no target is there that could take the request", Trouble.DOWN)


_RANK = attrgetter("rank")
