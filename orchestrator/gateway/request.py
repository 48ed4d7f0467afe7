"""The life of one client request as a state machine, and the decision what a failed attempt leads to.

    QUEUED -> SENT -> STREAMING -> DONE | FAILED
      ^        |---------------> DONE | FAILED
      |--------|  again elsewhere, while the client has nothing; QUEUED -> DONE | FAILED where nobody is
                      STREAMING <-> CONTINUING  a broken stream goes on elsewhere; CONTINUING -> FAILED

STREAMING begins with the first byte to the client. From there the request cannot be sent again; only its
stream can be continued.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.gateway.blame import RetryBudget
from orchestrator.gateway.entry import Entry, Wish
from orchestrator.gateway.failure import Blame, Failure
from policies.routing import Trouble

MOST_CONTINUATIONS = 8
"""A stream that broke so often breaks its nodes."""

MOST_STALE = 16
"""Kept connections that a request may find closed: each target has one, after which none of its is used."""


class Stage(StrEnum):
    """Where a request is."""

    QUEUED = "queued"  # waits for a target
    SENT = "sent"  # a target has it; the client has nothing
    STREAMING = "streaming"  # the client has a part of the answer
    CONTINUING = "continuing"  # the client has a part, and another target is to bring the rest
    DONE = "done"  # the client has the whole answer
    FAILED = "failed"  # the client has an error, or left


BEGUN = frozenset({Stage.STREAMING, Stage.CONTINUING})
"""The client has a part of the answer."""

_NEXT: dict[Stage, frozenset[Stage]] = {
    Stage.QUEUED: frozenset({Stage.SENT, Stage.DONE, Stage.FAILED}),
    Stage.SENT: frozenset({Stage.QUEUED, Stage.STREAMING, Stage.DONE, Stage.FAILED}),
    Stage.STREAMING: frozenset({Stage.CONTINUING, Stage.DONE, Stage.FAILED}),
    Stage.CONTINUING: frozenset({Stage.STREAMING, Stage.FAILED}),
    Stage.DONE: frozenset(),
    Stage.FAILED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Suspect:
    """A target that failed this request in a way that may be the request's own fault."""

    entry: Entry
    failure: Failure


class Exchange:
    """One client request. `wish` is what it needs of its next target.

    `retries` counts attempts that followed a failed one, `sent_again` those of them after which a target may
    have worked on it in vain, `continued` how often its stream went on elsewhere, `waited` the seconds spent
    in the queue so far. `suspects` are blamed once the request succeeds at a peer. `deadline` is when the
    request ends at the latest, `held` the bytes of its body that are held for another attempt, `read_at` when
    all of it was there. `priority`: higher goes first in a queue. At its present backend it waits for
    `patience` seconds at most, and none on the troubles in `leaves`.
    """

    __slots__ = (
        "continued", "deadline", "held", "id", "leaves", "patience", "priority", "read_at", "retries",
        "sent_again", "stage", "stale", "started", "suspects", "waited", "wish",
    )  # fmt: skip

    def __init__(self, request_id: str, started: float) -> None:
        self.id = request_id
        self.started = self.read_at = started
        self.priority = 0
        self.patience: float | None = None
        self.leaves: frozenset[Trouble] = frozenset()
        self.deadline = math.inf
        self.stage = Stage.QUEUED
        self.wish = Wish()
        self.suspects: list[Suspect] = []
        self.retries = 0
        self.sent_again = 0
        self.stale = 0
        self.continued = 0
        self.waited = 0.0
        self.held = 0

    def move(self, stage: Stage) -> None:
        """Go on to the next stage. Raises AssertionError on a step that the machine does not have."""
        if stage not in _NEXT[self.stage]:
            raise AssertionError(f"request {self.id}: no way from {self.stage} to {stage}")
        self.stage = stage

    def anew(self) -> None:
        """Go to another backend, of whose targets none has failed it."""
        if self.stage is Stage.SENT:
            self.move(Stage.QUEUED)
        self.wish = Wish(self.wish.key, self.wish.tokens)
        self.suspects = []
        self.retries = self.sent_again = self.stale = 0
        self.waited = 0.0

    @property
    def over(self) -> bool:
        """Whether the request reached its end."""
        return self.stage is Stage.DONE or self.stage is Stage.FAILED

    @property
    def came_back(self) -> bool:
        """Whether it had a target before."""
        return self.retries > 0 or self.continued > 0

    def may_retry(
        self, failure: Failure, *, repeatable: bool, max_retries: int, paid: Payment, sought: bool = False
    ) -> bool:
        """Whether the failed attempt is followed by another; if so it is counted.

        Only before the first byte to the client. A refused request has cost nothing, as no target worked on
        it: it is bounded by the number of targets, each is tried once between two passed checks; but an
        answer that may be the request's own fault is checked at `max_retries` peers only, unless the request
        is `sought`: about something that one target has, which one is not known. A kept connection
        that had been closed is nobody's fault and costs nothing, but needs a request that may run twice.
        Anything else needs that too, takes one of `max_retries`, and is paid for.
        """
        if self.stage is not Stage.SENT or failure is Failure.DEADLINE:
            return False
        if failure.blames is Blame.DOUBT and not sought and len(self.suspects) > max_retries:
            return False
        if not failure.refused and not repeatable:
            return False
        if failure is Failure.STALE:
            self.stale += 1
            if self.stale > MOST_STALE:
                return False
        elif not failure.refused and failure is not Failure.MOVED:
            if self.sent_again >= max_retries or not paid():
                return False
            self.sent_again += 1
        self.retries += 1
        self.wish.again = self.wish.again or not failure.refused
        return True

    def may_continue(self, failure: Failure, paid: Payment) -> bool:
        """Whether the broken stream goes on elsewhere; if so it is counted."""
        if failure in (Failure.DEADLINE, Failure.GATEWAY_STOPPING):
            return False
        free = failure in (Failure.MOVED, Failure.NO_ADAPTER)
        if self.continued >= MOST_CONTINUATIONS or not (free or paid()):
            return False
        self.continued += 1
        self.wish.again = True
        return True


class Payment:
    """Takes a retry out of the budget, on the tab of the target that failed. True when it was granted."""

    __slots__ = ("_budget", "_doubt", "_entry", "_now", "_sent_at")

    def __init__(
        self, budget: RetryBudget, entry: Entry, failure: Failure, *, sent_at: float, now: float
    ) -> None:
        self._budget = budget
        self._entry = entry
        self._doubt = failure.blames is Blame.DOUBT
        self._sent_at = sent_at
        self._now = now

    def __call__(self) -> bool:
        """Pay."""
        return self._budget.withdraw(self._entry.tab, self._sent_at, self._now, doubt=self._doubt)
