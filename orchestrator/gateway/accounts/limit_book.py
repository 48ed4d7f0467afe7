"""The limits of keys from an event loop: requests are decided with those of all gateway processes.

Requests that come while others are being decided are decided together in the next transaction. While the
file cannot be written, or does not answer in time, this process goes by what it sent itself, nobody waits,
and what was decided so is added to the file once it can be written again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cloud.logger import structlog
from cloud.ports import Clock
from cloud.threads import WorkerThreads
from orchestrator.gateway.accounts.limit_file import BEAT, Add, Ask, Full, LimitFile, Settle, Unusable
from policies.client_limits import (
    WINDOW,
    Booking,
    History,
    Refused,
    Window,
    full,
    give_back,
    refusal,
    settle,
    take,
)
from policies.keys import KeyLimits
from policies.value import replace

log = structlog.get_logger("gateway")

_PATIENCE = 1.0
"""Seconds that a request waits for the file."""

_LAST = 3.0
"""Seconds that the end waits for the file."""


class LimitReached(Exception):
    """A limit does not allow the request."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.text)
        self.refused = refused


def _none() -> int:
    return 0


@dataclass(slots=True, eq=False)
class Place:
    """A request of a key that is under way, what was booked for it, and what tells the tokens of its answer
    that are here.
    """

    key: str
    limits: KeyLimits
    booked: Booking
    so_far: Callable[[], int] = _none


@dataclass(slots=True)
class _Own:
    """What this process knows of a key: what it sent itself."""

    window: Window = field(default_factory=Window)
    history: History = field(default_factory=History)
    in_flight: int = 0


_Waiting = tuple[Ask | Settle, "asyncio.Future[Booking | Full] | None", list[Booking]]


class LimitBook:
    """Decides for one process. Make it inside the running event loop; without a `path` it goes by itself.

    `trouble` says why requests are decided by what this process sent alone; empty while it knows of others.
    """

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._file = None if path is None else LimitFile(path)
        self._clock = clock
        self._threads = WorkerThreads("limits", 1)
        self._keys: dict[str, _Own] = {}
        self._waiting: list[_Waiting] = []
        self._owed: dict[tuple[str, int], Booking] = {}
        self._running: set[Place] = set()  # whose tokens are limited
        self._changed: set[str] = set()  # keys whose requests in flight the file does not know
        self._writer: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self.trouble = ""

    def history(self, key: str) -> History:
        """What the requests of a key came to."""
        return self._own(key).history

    def in_flight(self, key: str) -> int:
        """Requests of a key that this process has under way."""
        return self._own(key).in_flight

    async def ask(self, key: str, limits: KeyLimits, tokens: int, so_far: Callable[[], int] = _none) -> Place:
        """Have a request sent that is taken for so many tokens; `so_far` tells those of its answer that are
        here. Raises LimitReached.
        """
        if self._beating is None and self._file is not None:
            self._beating = asyncio.create_task(self._beat(), name="limits")
        ask = Ask(key, limits, tokens)
        found = await self._shared(ask)
        if found is None:
            found = self._alone(ask)
        if isinstance(found, Booking):
            place = Place(key, limits, found, so_far)
            if limits.tokens_per_minute:
                self._running.add(place)
            return place
        raise LimitReached(
            refusal(
                key,
                limits,
                found.limit,
                found.window,
                tokens=tokens,
                now=self._clock.steady(),
                history=self.history(key),
            )
        )

    def done(self, place: Place, tokens: int | None) -> None:
        """A request is over, which used so many tokens; None: it was not served, and gives its place back."""
        self._own(place.key).in_flight -= 1
        self._running.discard(place)
        self._changed.add(place.key)
        self._settle(Settle(place.key, place.limits, place.booked, tokens))

    def _settle(self, change: Settle) -> None:
        """Make good here what was booked, and in the file."""
        window, now = self._own(change.key).window, self._clock.steady()
        if change.tokens is None:
            added = give_back(window, change.booked, now=now)
        else:
            added = settle(change.limits, window, change.booked, tokens=change.tokens, now=now)
        if self.trouble or self._file is None:
            self._owe(change.key, added)
        else:
            self._put(change, None, added)

    def _count_streams(self) -> None:
        """Book the tokens by which answers are longer than thought already, as a burst of them may be long
        before any of it ends.
        """
        over: dict[str, Settle] = {}
        second = int(self._clock.steady())
        for place in self._running:
            more = place.so_far() - place.booked.tokens
            if more > 0:
                place.booked = replace(place.booked, tokens=place.booked.tokens + more)
                found = over.get(place.key)
                before = 0 if found is None else found.tokens or 0
                over[place.key] = Settle(place.key, place.limits, Booking(second=second), before + more)
        for change in over.values():
            self._settle(change)

    async def settled(self) -> None:
        """Wait until everything that was asked for is written, or failed to be."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait([self._writer])

    async def close(self) -> None:
        """Write what is owed, and let go of the file. Requests must have ended."""
        if self._beating is None or self._file is None:
            return
        self._beating.cancel()
        await asyncio.wait([self._beating])
        with contextlib.suppress(TimeoutError, Unusable):
            async with asyncio.timeout(_LAST):
                await self.settled()
                if self._owed:
                    self._begin()
                    await self.settled()
                await self._threads.run(self._file.leave)
                await self._threads.run(self._file.close)
        self._threads.close()

    async def _shared(self, ask: Ask) -> Booking | Full | None:
        """What the file says; None where it does not."""
        if self.trouble or self._file is None:
            return None
        asked: asyncio.Future[Booking | Full] = asyncio.get_running_loop().create_future()
        self._put(ask, asked, [])
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._answer(ask, asked)
        except TimeoutError:
            self._troubled(f"the usage file {self._file.path} does not answer")
        except Unusable:
            pass
        return None

    async def _answer(self, ask: Ask, asked: asyncio.Future[Booking | Full]) -> Booking | Full:
        """Wait for it. A place that came in the instant in which its asker left is given back."""
        try:
            return await asked
        except asyncio.CancelledError:
            if not asked.cancelled() and asked.exception() is None:
                found = asked.result()
                if isinstance(found, Booking):
                    self.done(Place(ask.key, ask.limits, found), None)
            raise

    def _alone(self, ask: Ask) -> Booking | Full:
        """What this process knows by itself."""
        own, now = self._own(ask.key), self._clock.steady()
        own.window.forget(now)
        why = full(ask.limits, own.window, tokens=ask.tokens, in_flight=own.in_flight, now=now)
        if why is not None:
            return Full(why, own.window)
        booked = take(ask.limits, own.window, tokens=ask.tokens, now=now)
        own.in_flight += 1
        self._changed.add(ask.key)
        self._owe(ask.key, [booked])
        return booked

    def _own(self, key: str) -> _Own:
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = _Own()
        return found

    def _owe(self, key: str, bookings: list[Booking]) -> None:
        """Keep what is to be added to the file once that can be written."""
        if self._file is None:
            return
        for booking in bookings:
            at = key, booking.second
            before = self._owed.get(at, Booking(second=booking.second))
            self._owed[at] = Booking(
                second=booking.second,
                requests=before.requests + booking.requests,
                tokens=before.tokens + booking.tokens,
            )

    async def _beat(self) -> None:
        """Show that this process lives, and try a file that is in trouble."""
        while True:
            await self._clock.sleep(BEAT)
            self._count_streams()
            if self.trouble or self._changed or any(own.in_flight for own in self._keys.values()):
                self._changed.update(key for key, own in self._keys.items() if own.in_flight)
                self._begin()

    def _put(
        self, change: Ask | Settle, asked: asyncio.Future[Booking | Full] | None, added: list[Booking]
    ) -> None:
        self._waiting.append((change, asked, added))
        self._begin()

    def _begin(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        if self._file is None:
            return
        first = True
        while self._waiting or first:
            first = False
            batch, self._waiting = self._waiting, []
            owed, self._owed = self._owed, {}
            changed, self._changed = self._changed | {change.key for change, _, _ in batch}, set()
            now = self._clock.steady()
            changes: list[Add | Ask | Settle] = [
                Add(key, booking)
                for (key, second), booking in owed.items()
                if second >= int(now) - WINDOW  # what no minute touches any more is owed to nobody
            ]
            ahead = len(changes)
            changes += [change for change, _, _ in batch]
            in_flight = {key: self._own(key).in_flight for key in changed}
            try:
                results = await self._threads.run(partial(self._file.apply, changes, in_flight, now))
            except Unusable as error:
                self._changed |= changed
                for (key, _), booking in owed.items():
                    self._owe(key, [booking])
                self._failed(batch, error)
            else:
                if self.trouble:
                    log.info("limits.shared", file=str(self._file.path))
                self.trouble = ""
                for waiting, result in zip(batch, results[ahead:], strict=True):
                    self._told(waiting, result)

    def _failed(self, batch: list[_Waiting], error: Unusable) -> None:
        self._troubled(str(error))
        for change, asked, added in batch:
            self._owe(change.key, added)
            if asked is not None and not asked.done():
                asked.set_exception(Unusable(str(error)))

    def _troubled(self, why: str) -> None:
        if not self.trouble:
            log.error("limits.isolated", reason=why)
        self.trouble = why

    def _told(self, waiting: _Waiting, result: Booking | Full | None) -> None:
        change, asked, _ = waiting
        if asked is None or result is None:
            return
        if isinstance(result, Booking):
            own = self._own(change.key)
            own.window.forget(self._clock.steady())
            own.window.book(result)
            own.in_flight += 1
            if asked.done():  # whoever asked left meanwhile, or was decided without the file
                self.done(Place(change.key, change.limits, result), None)
                return
        if not asked.done():
            asked.set_result(result)
