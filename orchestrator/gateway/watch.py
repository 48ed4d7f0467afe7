"""Looks at every request in flight a few times a second, and ends its wait at a target that will not answer.

One watch for all, so that a token that passes costs no timer. What it decides by is in `clocks`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from cloud.ports import Clock
from orchestrator.gateway.admission import Admission
from orchestrator.gateway.clocks import RequestClock, judge
from orchestrator.gateway.entry import Entry, Wish
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.targets import TargetTable

_BEAT = 0.1  # s between two looks
_LATE = 0.25  # s: what is seen so late says nothing of others, as the gateway itself was held up


class Movable(Protocol):
    """What the watch asks of a request."""

    @property
    def wish(self) -> Wish:
        """What it needs of a target."""

    def can_move(self) -> bool:
        """Whether it can go on at another target."""

    def can_leave(self) -> bool:
        """Whether another backend takes it while all targets are down."""

    def fits(self, entry: Entry) -> bool:
        """Whether a target can bring the rest of its stream."""

    @property
    def revision(self) -> str:
        """The revision of its adapter that can bring the rest of its stream; empty for any."""

    def seconds_left(self, entry: Entry) -> float | None:
        """How long its stream will take at this target, None where that is not known."""


class Leash:
    """One attempt at one target: its clock, and the means to end its wait.

    Enter it around everything that waits for the target. `pull` makes that raise TimeoutError, with
    `failure` set, as `asyncio.timeout` does at its time.
    """

    __slots__ = ("_cancels", "_held", "_now", "_task", "clock", "entry", "failure", "owner")

    def __init__(
        self,
        held: dict[Leash, None],
        owner: Movable,
        entry: Entry,
        clock: RequestClock,
        now: Callable[[], float],
    ) -> None:
        self._held = held
        self._now = now
        self._task: asyncio.Task[object] | None = None
        self._cancels = 0
        self.owner = owner
        self.entry = entry
        self.clock = clock
        self.failure: Failure | None = None

    def __enter__(self) -> Leash:
        self._task = task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a leash is entered in a task")
        self._cancels = task.cancelling()
        self._held[self] = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._held.pop(self, None)
        task, self._task = self._task, None
        if self.failure is None or task is None:
            return
        if task.uncancel() <= self._cancels and kind is asyncio.CancelledError:
            raise TimeoutError

    @property
    def heard(self) -> bool:
        """Whether anything came."""
        return self.clock.moved_at > self.clock.sent_at

    def moved(self, *, progress: bool = True) -> None:
        """Something came from the target; without `progress` it is a sign of life and no more."""
        now, clock = self._now(), self.clock
        if not progress:
            self.entry.clock.heard_at = now
            return
        self.entry.clock.moved(now, now - clock.moved_at if clock.begun else None)
        clock.moved_at = now

    def began(self) -> None:
        """The answer has begun."""
        self.entry.clock.began(self.clock.sent_at)
        self.clock.begun = True

    def pull(self, failure: Failure) -> None:
        """End the wait."""
        if self.failure is None and self._task is not None:
            self.failure = failure
            self._task.cancel()


class Watch:
    """All leashes, and the beat at which they are looked at."""

    def __init__(
        self, table: TargetTable, admission: Admission, clock: Clock, *, drain_margin: float
    ) -> None:
        self._table = table
        self._admission = admission
        self._clock = clock
        self._drain_margin = drain_margin
        self._held: dict[Leash, None] = {}  # the oldest first
        self._promised: list[Entry] = []  # who will get the requests that leave their targets in this look

    def hold(self, owner: Movable, entry: Entry, *, streams: bool, deadline: float) -> Leash:
        """A leash for an attempt that is sent at this moment."""
        now = self._clock.now
        return Leash(self._held, owner, entry, RequestClock(now(), streams=streams, deadline=deadline), now)

    async def run(self) -> None:
        """Look for ever."""
        before, waits = self._clock.now(), False
        while True:
            await self._clock.sleep(_BEAT)
            now = self._clock.now()
            waits = not waits and now - before >= _BEAT + _LATE  # for what has come meanwhile to be read
            if not waits:
                self.look(now)
            before = now

    def look(self, now: float) -> None:
        """Judge every target, every attempt and every waiting request."""
        self._table.look(now)
        for leash in list(self._held):
            self._judge(leash, now)
        while self._promised:
            self._promised.pop().in_flight -= 1
        self._admission.look(now)

    def _judge(self, leash: Leash, now: float) -> None:
        if leash.clock.at_client:
            leash.clock.moved_at = now
        verdict = judge(now, leash.clock, leash.entry.clock, self._table.limits)
        if verdict is None:
            if self._outlives(leash, now) and self._elsewhere(leash, now):
                leash.pull(Failure.MOVED)
        elif verdict.final or self._elsewhere(leash, now) or self._reloads(leash, verdict.failure):
            leash.pull(verdict.failure)

    def _outlives(self, leash: Leash, now: float) -> bool:
        """Whether its target will be gone before it is done. What will end in time stays."""
        spec = leash.entry.spec
        if spec.drain_deadline is None or now < spec.drain_deadline - self._drain_margin:
            return False
        left = leash.owner.seconds_left(leash.entry)
        return left is None or now + left > spec.drain_deadline - self._drain_margin / 2

    def _elsewhere(self, leash: Leash, now: float) -> bool:
        """Whether another target that is well can take it at once, beside those that leave in this look, or
        another backend where all targets are down.
        """
        owner = leash.owner
        if owner.can_leave() and self._table.down(owner.wish):
            return True
        if not owner.can_move():
            return False
        found = self._table.choose(self._rest(leash))
        if found is None or found.doubtful or not found.sound(now):
            return False
        found.in_flight += 1
        self._promised.append(found)
        return True

    def _reloads(self, leash: Leash, failure: Failure) -> bool:
        """Whether its target is lost that alone held its adapter, which others can be given."""
        wish = self._rest(leash)
        if failure is not Failure.LOST or not wish.adapter or not leash.owner.can_move():
            return False
        return self._table.down(wish) and self._table.hopeful(wish)

    def _rest(self, leash: Leash) -> Wish:
        """What it needs of another target."""
        owner = leash.owner
        if leash.clock.begun:
            return owner.wish.but(leash.entry, owner.fits, owner.revision)
        return owner.wish.but(leash.entry, owner.wish.fits)
