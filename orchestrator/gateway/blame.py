"""How long a target that fails is left alone, and how many attempts may be made again. Pure: time is data.

Failing fast must be no invitation: a target with few requests in flight looks idle, so one that answers
errors at once would draw the traffic of the whole pool.
"""

from __future__ import annotations

from enum import StrEnum


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"  # requests pass
    OPEN = "open"  # no requests pass
    HALF_OPEN = "half-open"  # one request passes as a probe


class Breaker:
    """Opens for `quiet` seconds after `threshold` failures in a row, then lets one request through to probe.

    A probe that tells nothing within `quiet` seconds, as its answer takes long, its client left or what came
    says nothing of the target, is followed by another.
    Each time that it opens again doubles the quiet time, up to `longest`; each good answer halves it. The
    first good progress of any request closes it. A target that asks to be left alone (Retry-After) is, at
    once and for as long as it says, up to `longest`.
    """

    __slots__ = ("_level", "_longest", "_probed_at", "_quiet", "_threshold", "_until", "failures")

    def __init__(self, threshold: int, quiet: float, longest: float) -> None:
        self._threshold = threshold
        self._quiet = quiet
        self._longest = longest
        self._level = 0
        self._until: float | None = None
        self._probed_at: float | None = None
        self.failures = 0

    def state(self, now: float) -> BreakerState:
        """The state at `now`."""
        if self._until is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if now >= self._until else BreakerState.OPEN

    def allows(self, now: float) -> bool:
        """Whether a request may be sent at `now`."""
        if self._until is None:
            return True
        probed = self._probed_at is not None and now - self._probed_at < self._quiet
        return not probed and now >= self._until

    def begin(self, now: float) -> None:
        """A request is on its way. While the breaker is not closed it is the probe."""
        if self._until is not None:
            self._probed_at = now

    def good(self) -> None:
        """The target does what it should: close."""
        self.failures = 0
        self._level = max(0, self._level - 1)
        self._until = self._probed_at = None

    def fail(self, now: float, retry_after: float | None = None) -> bool:
        """The target failed a request, and perhaps says when to come again. True when this opened it."""
        self.failures += 1
        was_closed = self._until is None
        if retry_after is not None:
            self._until = max(self._until or now, now + min(retry_after, self._longest))
        elif self._probed_at is not None or (was_closed and self.failures >= self._threshold):
            self._until = now + min(self._quiet * 2**self._level, self._longest)
            self._level = min(self._level + 1, 30)
        self._probed_at = None
        return was_closed and self._until is not None

    def abandon(self) -> None:
        """No request is left there that could tell anything: let another one probe."""
        self._probed_at = None


class RetryBudget:
    """Bounds retries to a share of the traffic, so that a bad day is not made worse by resending it all.

    Each request served pays in `ratio`, each retry takes one out; up to `reserve` can be saved up, and it
    starts full. What one target held when it failed is paid for once, however much it was (`Tab`). What may
    be the requests' own fault takes half of the reserve at most: the rest is for targets that are lost.
    """

    __slots__ = ("_balance", "_ratio", "_reserve")

    def __init__(self, ratio: float, reserve: int) -> None:
        self._ratio = ratio
        self._reserve = float(reserve)
        self._balance = self._reserve

    def deposit(self) -> None:
        """A request arrived."""
        self._balance = min(self._reserve, self._balance + self._ratio)

    def withdraw(self, tab: Tab, sent_at: float, now: float, *, doubt: bool = False) -> bool:
        """Whether a request that a target got at `sent_at` and failed may be sent again; takes payment.

        `doubt`: the failure may be the request's own fault.
        """
        if tab.paid_at is not None and sent_at <= tab.paid_at:
            return True
        if self._balance - 1.0 < (self._reserve / 2 if doubt else 0.0):
            return False
        self._balance -= 1.0
        tab.paid_at = now
        return True

    def refund(self) -> None:
        """A stream that broke was finished elsewhere: sending on its rest did what it was paid for."""
        self._balance = min(self._reserve, self._balance + 1.0)


class Tab:
    """One target's account: everything that it held at `paid_at` is paid for."""

    __slots__ = ("paid_at",)

    def __init__(self) -> None:
        self.paid_at: float | None = None
