"""Two clocks tell a busy target from a sick one, and a slow answer from a lost one. Pure: time is data.

Per target: when its last byte came. A target that moves is busy, whatever one request thinks of it; one that
says nothing and leaves a health check unanswered is lost, and so is all that it holds. Per request: when its
own last byte came. One that is silent for a multiple of the gaps that its target has otherwise is stalled,
even if the target moves. And no request takes longer than its deadline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.gateway.failure import Failure

_WEIGHT = 0.05  # of a new gap in the mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds, and a multiple. See GatewayConfig for their meaning to a user."""

    health_timeout: float
    first_token_timeout: float
    idle_timeout: float
    stall_factor: float
    stall_least: float


class TargetClock:
    """When a target last said something, and how it answers its checks. Times are seconds of one clock.

    `moved_at`: the last byte of an answer to a client; `heard_at`: of any kind, passed health checks
    included; `spoke_at`: failed ones included that were answered at all. `asked_at`: when the check that is
    on its way was sent, None when none is; `failing`: the last check failed. `gap`: mean time between two
    pieces of one stream, 0 before the first; `newest`: when the newest of the requests was sent whose
    answers have begun.
    """

    __slots__ = ("asked_at", "failing", "gap", "heard_at", "moved_at", "newest", "spoke_at")

    def __init__(self, now: float) -> None:
        self.moved_at = -math.inf
        self.heard_at = self.spoke_at = now
        self.asked_at: float | None = None
        self.failing = False
        self.gap = 0.0
        self.newest = now

    def began(self, sent_at: float) -> None:
        """The answer to a request of this age began."""
        self.newest = max(self.newest, sent_at)

    def moved(self, now: float, gap: float | None) -> None:
        """A byte of an answer came, in a stream `gap` seconds after the one before it."""
        self.moved_at = self.heard_at = self.spoke_at = now
        if gap is not None:
            self.gap += (gap - self.gap) * _WEIGHT if self.gap else gap

    def asked(self, now: float) -> None:
        """A health check is sent."""
        self.asked_at = now

    def answered(self, now: float, *, passed: bool, spoke: bool = False) -> None:
        """The health check ended. `spoke`: with an answer, if not the one that passes."""
        self.asked_at = None
        self.failing = not passed
        if passed:
            self.heard_at = now
        if passed or spoke:
            self.spoke_at = now

    def moves(self, now: float, limits: Limits) -> bool:
        """Whether it brings answers."""
        return now - self.moved_at < limits.health_timeout

    def doubtful(self, now: float, limits: Limits) -> bool:
        """Whether a request is better sent elsewhere: a check is not answered and nothing else comes."""
        patience = limits.health_timeout / 4
        waits = self.asked_at is not None and now - self.asked_at >= patience
        return (waits or self.failing) and now - self.heard_at >= patience

    def lost(self, now: float, limits: Limits) -> bool:
        """Whether it is silent and fails its checks."""
        silent = now - self.heard_at >= limits.health_timeout
        unanswered = self.asked_at is not None and now - self.asked_at >= limits.health_timeout / 2
        return silent and (unanswered or self.failing)


class RequestClock:
    """When a request was sent, when its last byte came (at first: was sent), and what it waits for.

    `begun`: the client has a part; `streams`: it asked for a stream; `deadline`: when it ends at the latest.
    `at_client`: it waits for its client to read, and for nothing of its target.
    """

    __slots__ = ("at_client", "begun", "deadline", "moved_at", "sent_at", "streams")

    def __init__(self, now: float, *, streams: bool, deadline: float) -> None:
        self.sent_at = self.moved_at = now
        self.streams = streams
        self.begun = self.at_client = False
        self.deadline = deadline


@dataclass(frozen=True, slots=True)
class Verdict:
    """A request should leave its target. `final`: also if there is nowhere to go."""

    failure: Failure
    final: bool


def judge(now: float, request: RequestClock, target: TargetClock, limits: Limits) -> Verdict | None:
    """Whether a request should wait no longer at its target."""
    silence = now - request.moved_at
    if now >= request.deadline:
        return Verdict(Failure.DEADLINE, final=True)
    if target.lost(now, limits):
        return Verdict(Failure.LOST, final=now - target.spoke_at >= limits.idle_timeout)
    if request.begun:
        patience = min(max(limits.stall_factor * target.gap, limits.stall_least), limits.idle_timeout)
        if silence >= patience:
            return Verdict(Failure.STALLED, final=silence >= limits.idle_timeout)
    elif request.streams and silence >= limits.first_token_timeout:
        if not target.moves(now, limits):
            return Verdict(Failure.FIRST_TOKEN_TIMEOUT, final=True)
        if target.newest - request.sent_at >= limits.stall_least:  # engines begin in order of arrival
            return Verdict(Failure.STALLED, final=False)
    return None
