"""The waiting room: gives each request a target, the most urgent first, or tells it why there is none."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable
from operator import attrgetter
from typing import Protocol

from orchestrator.gateway.entry import Entry, Wish
from orchestrator.gateway.request import Exchange
from orchestrator.gateway.targets import TargetTable
from policies.routing import Trouble

AGEING = 10.0
"""Seconds of waiting that one step of priority is worth: what waits long enough is as urgent as any."""


class Missed(Protocol):
    """Is told of a request for an adapter that no target can take it for; `first`: it has just come."""

    def __call__(self, name: str, *, first: bool) -> None:
        """Take note."""


class Refused(Exception):
    """No target within the rules of the queue. `full` says that the queue had no place left."""

    def __init__(self, message: str, trouble: Trouble, *, full: bool = False) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.full = full


class _Place:
    """One waiting request. `since` is when it began to wait, `hopeless_since` since when in vain; the lowest
    `rank` goes first. `cold`: no target takes it, since none holds its adapter.
    """

    __slots__ = ("cold", "exchange", "hopeless_since", "rank", "since", "turn")

    def __init__(
        self, exchange: Exchange, turn: asyncio.Future[Entry], now: float, *, cold: bool = False
    ) -> None:
        self.cold = cold
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
    troubles that it names. One for an adapter that no target holds waits for that to be loaded, in at most
    half of the places; `missed` is told of it, and whether it has just come.
    """

    def __init__(
        self,
        table: TargetTable,
        *,
        limit: int,
        deadline: float,
        hopeless: float,
        missed: Missed | None = None,
    ) -> None:
        self._missed = missed
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
        leaves = Trouble.DOWN in exchange.leaves
        if leaves and self._down(wish, first=True):
            raise _no_hope(wish)
        if not self._waiting and (entry := self._table.choose(wish)) is not None:
            self._table.take(entry, wish)
            return entry
        cold = bool(wish.adapter) and not leaves and self._down(wish, first=True)
        place = self._queue(exchange, now, cold=cold)
        if Trouble.SATURATED in exchange.leaves and not place.turn.done():
            self._waiting.remove(place)
            raise Refused(f"every target is busy{_lacking(place)}", Trouble.SATURATED)
        try:
            return await place.turn
        except asyncio.CancelledError:
            self._withdraw(place)
            raise

    def look(self, now: float) -> None:
        """End the waiting of those whose time is over, or who may try a target whose quiet time is."""
        self._wake()
        hope, down = _Kept(self._table.hopeful), _Kept(self._down)
        for place in list(self._waiting):
            if place.turn.done():
                continue
            wish = place.exchange.wish
            place.cold = bool(wish.adapter) and down(wish)
            if hope(wish):
                place.hopeless_since = None
            elif place.hopeless_since is None:
                place.hopeless_since = now
            if (refused := self._over(place, now)) is not None:
                self._waiting.remove(place)
                place.turn.set_exception(refused)

    def _over(self, place: _Place, now: float) -> Refused | None:
        """Why a request waits no longer, None where it does."""
        exchange, hopeless_since = place.exchange, place.hopeless_since
        waited, patience = exchange.waited + now - place.since, exchange.patience
        if now >= exchange.deadline:
            return Refused("no target took the request before its time was over", Trouble.SATURATED)
        for longest in (self._deadline, patience):
            if longest is not None and waited >= longest:
                return _waited(place, longest)
        hopeless = hopeless_since is not None and now - hopeless_since >= self._hopeless
        leaves = Trouble.DOWN in exchange.leaves and (place.cold or hopeless_since is not None)
        return _no_hope(exchange.wish) if hopeless or leaves else None

    def _down(self, wish: Wish, *, first: bool = False) -> bool:
        """Whether no target takes it; notes the adapter that it is for."""
        down = self._table.down(wish)
        if down and wish.adapter and self._missed is not None:
            self._missed(wish.adapter, first=first)
        return down

    def _queue(self, exchange: Exchange, now: float, *, cold: bool) -> _Place:
        """A place in the queue, or at once a target. Raises Refused when there is no place."""
        place = _Place(exchange, asyncio.get_running_loop().create_future(), now, cold=cold)
        full = not exchange.came_back and self._full(cold=cold)
        insort(self._waiting, place, key=_RANK)
        self._wake()
        if full and not place.turn.done():
            self._waiting.remove(place)
            trouble = Trouble.SATURATED if exchange.patience is None else Trouble.WAITED
            raise Refused(f"{len(self._waiting)} requests are waiting already", trouble, full=True)
        return place

    def _full(self, *, cold: bool) -> bool:
        """Whether no more may wait."""
        if len(self._waiting) >= self._limit:
            return True
        most = self._limit // 2
        return cold and len(self._waiting) >= most and sum(place.cold for place in self._waiting) >= most

    def _withdraw(self, place: _Place) -> None:
        """Leave the queue; give back a target that was handed over in the same instant."""
        turn = place.turn
        if turn.done() and not turn.cancelled():
            if turn.exception() is None:
                self._table.give(turn.result(), place.exchange.wish)
        elif place in self._waiting:
            self._waiting.remove(place)

    def _wake(self) -> None:
        """Serve the queue from the front as far as targets go.

        A request that may not use any free target (it failed there) lets those behind it pass, and one for
        an adapter those that are not for the same.
        """
        if not self._waiting:
            return
        passed = 0
        held_back: list[_Place] = []
        nowhere: set[str] = set()  # adapters that no free target has
        for place in self._waiting:
            passed += 1
            if place.turn.done():
                continue
            wish = place.exchange.wish
            entry = None if wish.adapter in nowhere else self._table.choose(wish)
            if entry is not None:
                self._table.take(entry, wish)
                place.turn.set_result(entry)
                continue
            held_back.append(place)
            if not wish.choosy:
                if not wish.adapter:
                    break
                nowhere.add(wish.adapter)
        if passed > len(held_back):
            self._waiting[:passed] = held_back


class _Kept:
    """Answers of a function about wishes, asked once for those that differ in nothing. Good for one look."""

    def __init__(self, ask: Callable[[Wish], bool]) -> None:
        self._ask = ask
        self._known: dict[tuple[str, str], bool] = {}

    def __call__(self, wish: Wish) -> bool:
        """The answer."""
        if wish.choosy:
            return self._ask(wish)
        about = wish.adapter, wish.revision
        if about not in self._known:
            self._known[about] = self._ask(wish)
        return self._known[about]


def _no_hope(wish: Wish) -> Refused:
    with_it = f" and holds the adapter {wish.adapter!r}" if wish.adapter else ""
    return Refused(f"no target is there that could take the request{with_it}", Trouble.DOWN)


def _waited(place: _Place, seconds: float) -> Refused:
    return Refused(f"no target took the request within {seconds:g} s{_lacking(place)}", Trouble.WAITED)


def _lacking(place: _Place) -> str:
    return f", or lacks the adapter {place.exchange.wish.adapter!r}" if place.cold else ""


_RANK = attrgetter("rank")
