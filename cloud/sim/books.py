"""What the daemon's journal says, as the checker follows it: which nodes it lets go, what it was asked.

Kept apart from the truth of the world, since it is lost as journals are: all of it, what could not be
written, or what came after a copy that somebody puts back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from policies.actions import ActionKind, Cause
from policies.call_memory import ATTEMPTS
from policies.events import (
    DaemonStarted,
    DrainEnded,
    DrainStarted,
    Event,
    IntentClosed,
    IntentOpened,
    NodeGone,
    NoticeSeen,
    OperatorDrained,
    OperatorUndrained,
    Outcome,
    Paused,
    Resumed,
)
from policies.model import Confidence, Notice, NoticeKind

_GIVEN_UP = (Outcome.FAILED, Outcome.DENIED, Outcome.MISCONFIGURED)
"""Answers after which a node is asked to end `ATTEMPTS` times and no more."""


@dataclass(slots=True, kw_only=True)
class Drain:
    """A drain by the journal. `disturbs`: by choice, of a node that worked and that nothing took away."""

    deadline: float  # by the world's clock
    cause: Cause
    disturbs: bool = False


@dataclass(slots=True)
class Books:
    """The journal's word on nodes, by their ids. Times are of the world's clock.

    `excused`: its drain began for a reason that may be over since. `drained`: until when the requests of a
    node may finish that has left a target set. `told`: what the cloud said of its end and did
    not take back. `paused_from`, `paused_until`: by the daemon's clock.
    """

    draining: dict[str, Drain] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)
    ending: dict[str, str] = field(default_factory=dict)  # token -> node
    ending_since: dict[str, float] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)  # to end a node, by token
    asked: dict[str, float] = field(default_factory=dict)
    taken_back: dict[str, float] = field(default_factory=dict)
    drained: dict[str, float] = field(default_factory=dict)
    told: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    paused_from: float = -math.inf
    paused_until: float = -math.inf

    @property
    def leaving(self) -> set[str]:
        """Nodes that the daemon lets go."""
        return self.draining.keys() | set(self.ending.values())

    def copy(self) -> Books:
        """What they say now, for later."""
        return Books(
            draining={node: replace(drain) for node, drain in self.draining.items()},
            excused=self.excused.copy(),
            ending=self.ending.copy(),
            ending_since=self.ending_since.copy(),
            attempts=self.attempts.copy(),
            asked=self.asked.copy(),
            taken_back=self.taken_back.copy(),
            drained=self.drained.copy(),
            told={node: notices.copy() for node, notices in self.told.items()},
            paused_from=self.paused_from,
            paused_until=self.paused_until,
        )

    def take(
        self,
        event: Event,
        now: float,
        *,
        ahead: float,
        excuses: Callable[[str], bool],
        disturbs: Callable[[str], bool],
    ) -> None:
        """Write one event down.

        `ahead`: how far the daemon's clock is ahead. `excuses` says whether a node may leave whatever stays,
        `disturbs` whether one works that a drain by choice would disturb.
        """
        if isinstance(event, DrainStarted):
            chosen = event.cause.by_choice and disturbs(event.node)
            self.draining[event.node] = Drain(
                deadline=event.deadline - ahead, cause=event.cause, disturbs=chosen
            )
            if excuses(event.node):
                self.excused.add(event.node)
        elif isinstance(event, DrainEnded):
            self._forget(event.node)
            for token in [t for t, node in self.ending.items() if node == event.node]:
                del self.ending[token], self.attempts[token]
            self.ending_since.pop(event.node, None)
            self.excused.discard(event.node)
            self.taken_back[event.node] = now
        elif isinstance(event, NodeGone):
            # As far as it could see. Should the node turn up again, it is another one to the daemon.
            self._forget(event.node)
        elif isinstance(event, NoticeSeen):
            self._notice(event.notice)
        elif isinstance(event, Paused):
            self.paused_from = event.at
            self.paused_until = math.inf if event.until is None else event.until
        elif isinstance(event, Resumed):
            self.paused_until = -math.inf
        elif isinstance(event, DaemonStarted) and event.at < self.paused_from:
            # By its clock the pause lies ahead: what was asked for was a length, which begins now.
            self.paused_until -= self.paused_from - event.at
            self.paused_from = event.at
        elif isinstance(event, OperatorDrained):
            self.asked[event.node] = now
        elif isinstance(event, OperatorUndrained):
            self.asked.pop(event.node, None)
        elif isinstance(event, IntentOpened) and event.kind is ActionKind.TERMINATE:
            self.ending[event.token] = event.node
            self.attempts[event.token] += 1
            self.ending_since.setdefault(event.node, now)
            if event.node in self.draining:
                self.draining[event.node].disturbs = False  # it is done
        elif isinstance(event, IntentClosed) and event.token in self.ending:
            if event.outcome is Outcome.THROTTLED:  # such a call uses up no attempt
                self.attempts[event.token] -= 1
            elif event.outcome in _GIVEN_UP and self.attempts[event.token] >= ATTEMPTS:
                self.ending_since.pop(self.ending.pop(event.token), None)
                del self.attempts[event.token]  # it may be asked for anew

    def _notice(self, notice: Notice) -> None:
        if notice.confidence is Confidence.CONFIRMED and notice.kind is not NoticeKind.REBALANCE:
            open_ones = self.told.setdefault(notice.node, set())
            (open_ones.discard if notice.cancelled else open_ones.add)((notice.source, notice.id))

    def _forget(self, node: str) -> None:
        self.draining.pop(node, None)
        self.drained.pop(node, None)
