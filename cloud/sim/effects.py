"""The one place where anything that a daemon does to the world takes effect.

Each effect is numbered in order. A run with the same seed has the same effects with the same numbers, so a
point (effect, moment) names an instant at which a daemon can be killed: just before the effect, just after
it, or with the call on its way so that it lands when the daemon is long dead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from cloud.errors import CloudError
from cloud.ports import Clock
from cloud.sim.trace import Trace
from policies.value import value

T = TypeVar("T")


class Moment(StrEnum):
    """When a daemon is killed, relative to an effect."""

    BEFORE = "before"  # the effect never happens
    AFTER = "after"  # it happened and the daemon does not know
    LATE = "late"  # it happens after the daemon's death, when its call lands


@value
class Effect:
    """One thing done to the world. `subject` is a node, a token or a balancer; `detail` is for people."""

    number: int
    kind: str
    subject: str
    detail: str
    at: float
    travels: bool  # a call over the network, which may land late

    def __str__(self) -> str:
        return f"#{self.number} {self.kind} {self.subject} {self.detail}".rstrip()


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """An instant of a run. Written "17:after"."""

    effect: int
    moment: Moment

    def __str__(self) -> str:
        return f"{self.effect}:{self.moment}"

    @staticmethod
    def parse(text: str) -> Point:
        """The inverse of str. Raises ValueError."""
        number, _, moment = text.partition(":")
        return Point(int(number), Moment(moment))


Hook = Callable[[Effect, Moment, Callable[[], object] | None], Awaitable[None]]
"""Called at every effect, before (with what is about to happen) and after it. Need not return."""

Watcher = Callable[[Effect, Moment], None]
"""Told of every effect, before and after it."""


class Effects:
    """Numbers, traces and announces effects. `hook` may stop the daemon; `watchers` only look.

    The effects of worlds `beside` each other are numbered together and meet the same hook; each has watchers
    of its own. `on_sent` is told of each call that a daemon sends: its kind, its subject and the region.
    """

    def __init__(self, clock: Clock, trace: Trace, *, beside: Effects | None = None) -> None:
        self.clock, self._trace = clock, trace
        self.log: list[Effect] = [] if beside is None else beside.log
        self._hooks: list[Hook] = [] if beside is None else beside._hooks
        self.watchers: list[Watcher] = []
        self.on_sent: list[Callable[[str, str, str], object]] = []

    @property
    def hook(self) -> Hook | None:
        """Called at every effect; None for none."""
        return self._hooks[0] if self._hooks else None

    @hook.setter
    def hook(self, hook: Hook | None) -> None:
        self._hooks[:] = [] if hook is None else [hook]

    async def apply(self, kind: str, subject: str, change: Callable[[], T], *, detail: str = "") -> T:
        """Let a call take effect. A CloudError of `change` is an answer like any other."""
        effect = self._next(kind, subject, detail, travels=True)

        def land() -> T:
            self._tell(effect, Moment.BEFORE)
            try:
                result = change()
            except CloudError as error:
                self._trace.add(effect, "->", type(error).__name__)
                self._tell(effect, Moment.AFTER)
                raise
            self._trace.add(effect)
            self._tell(effect, Moment.AFTER)
            return result

        await self._reach(effect, Moment.BEFORE, land)
        try:
            return land()
        finally:
            await self._reach(effect, Moment.AFTER, None)

    async def record(
        self, kind: str, subject: str, change: Callable[[], Awaitable[T]], *, detail: str = ""
    ) -> T:
        """Let something on the daemon's own disk take effect: it cannot land late."""
        effect = self._next(kind, subject, detail, travels=False)
        self._tell(effect, Moment.BEFORE)
        await self._reach(effect, Moment.BEFORE, None)
        try:
            result = await change()
        except Exception as error:
            self._trace.add(effect, "->", type(error).__name__)
            self._tell(effect, Moment.AFTER)
            raise
        self._trace.add(effect)
        self._tell(effect, Moment.AFTER)
        await self._reach(effect, Moment.AFTER, None)
        return result

    def points(self) -> list[Point]:
        """Every instant of the run so far at which a daemon could be killed.

        "Before" is left out where the effect before this one was applied at the same instant: nothing has
        changed in the world or on the disk since "after" that one.
        """
        found = []
        since = -1.0
        for effect in self.log:
            if effect.at != since:
                found.append(Point(effect.number, Moment.BEFORE))
            found.append(Point(effect.number, Moment.AFTER))
            if effect.travels:
                found.append(Point(effect.number, Moment.LATE))
            since = effect.at
        return found

    def _next(self, kind: str, subject: str, detail: str, *, travels: bool) -> Effect:
        effect = Effect(
            number=len(self.log) + 1,
            kind=kind,
            subject=subject,
            detail=detail,
            at=self.clock.now(),
            travels=travels,
        )
        self.log.append(effect)
        return effect

    def _tell(self, effect: Effect, moment: Moment) -> None:
        for watcher in self.watchers:
            watcher(effect, moment)

    async def _reach(self, effect: Effect, moment: Moment, change: Callable[[], object] | None) -> None:
        for hook in self._hooks:
            await hook(effect, moment, change)
