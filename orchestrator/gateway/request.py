"""The life of one client request as a state machine, and the decision what a failed attempt leads to.

    QUEUED -> SENT -> STREAMING -> DONE | FAILED
      ^        |---------------> DONE | FAILED
      |--------|  retry: only here, before the client got a byte

STREAMING begins with the first byte to the client. From there no attempt can be repeated.
"""

from __future__ import annotations

from enum import StrEnum

from orchestrator.gateway.breaker import RetryBudget
from orchestrator.gateway.failure import Failure


class Stage(StrEnum):
    """Where a request is."""

    QUEUED = "queued"  # waits for a target
    SENT = "sent"  # a target has it; the client has nothing
    STREAMING = "streaming"  # the client has a part of the answer
    DONE = "done"  # the client has the whole answer
    FAILED = "failed"  # the client has an error, or left


_NEXT: dict[Stage, frozenset[Stage]] = {
    Stage.QUEUED: frozenset({Stage.SENT, Stage.FAILED}),
    Stage.SENT: frozenset({Stage.QUEUED, Stage.STREAMING, Stage.DONE, Stage.FAILED}),
    Stage.STREAMING: frozenset({Stage.DONE, Stage.FAILED}),
    Stage.DONE: frozenset(),
    Stage.FAILED: frozenset(),
}


class Exchange:
    """One client request. `tried` maps a target that failed it to the health checks that target had passed.

    The map is what keeps a retry off the same target until a later check says that it is well again.
    `retries` counts attempts that followed a failed one, `waited` the seconds spent in the queue so far.
    """

    __slots__ = ("id", "retries", "sent_again", "stage", "started", "tried", "waited")

    def __init__(self, request_id: str, started: float) -> None:
        self.id = request_id
        self.started = started
        self.stage = Stage.QUEUED
        self.tried: dict[str, int] = {}
        self.retries = 0
        self.sent_again = 0
        self.waited = 0.0

    def move(self, stage: Stage) -> None:
        """Go on to the next stage. Raises AssertionError on a step that the machine does not have."""
        if stage not in _NEXT[self.stage]:
            raise AssertionError(f"request {self.id}: no way from {self.stage} to {stage}")
        self.stage = stage

    @property
    def over(self) -> bool:
        """Whether the request reached its end."""
        return self.stage is Stage.DONE or self.stage is Stage.FAILED

    def may_retry(self, failure: Failure, *, max_retries: int, budget: RetryBudget) -> bool:
        """Whether the failed attempt is followed by another; if so it is counted.

        Only before the first byte to the client. A failed connect costs nothing, as no target worked on
        the request: it is bounded by the number of targets, each is tried once between two passed checks.
        Anything else takes one of `max_retries` and one out of the budget.
        """
        if self.stage is not Stage.SENT:
            return False
        if failure.reached_target:
            if self.sent_again >= max_retries or not budget.withdraw():
                return False
            self.sent_again += 1
        self.retries += 1
        return True
