"""A circuit breaker for one target, and a budget for retries. Pure: the time is handed in.

The breaker keeps requests away from a target that fails them although its health check passes, as a
stopping vLLM does. It opens after failures in a row, and after a while lets one request through as a probe.
"""

from __future__ import annotations

from enum import StrEnum


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"  # requests pass
    OPEN = "open"  # no requests pass
    HALF_OPEN = "half-open"  # one request passes as a probe


class Breaker:
    """Opens after `threshold` failures in a row; `open_for` seconds later one probe decides.

    Every request that `allows` let through must `begin` and then end in exactly one of `succeed`, `fail`
    and `abandon` (it ended without telling anything about the target, as when the client left).
    """

    __slots__ = ("_opened_at", "_probing", "_threshold", "failures", "open_for")

    def __init__(self, threshold: int, open_for: float) -> None:
        self._threshold = threshold
        self.open_for = open_for
        self.failures = 0
        self._opened_at: float | None = None
        self._probing = False

    def state(self, now: float) -> BreakerState:
        """The state at `now`."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if now - self._opened_at >= self.open_for else BreakerState.OPEN

    def allows(self, now: float) -> bool:
        """Whether a request may be sent at `now`."""
        if self._opened_at is None:
            return True
        return not self._probing and now - self._opened_at >= self.open_for

    def begin(self) -> None:
        """A request is on its way. While the breaker is not closed it is the probe."""
        if self._opened_at is not None:
            self._probing = True

    def succeed(self) -> None:
        """The target answered as it should: close."""
        self.failures = 0
        self._opened_at = None
        self._probing = False

    def fail(self, now: float) -> bool:
        """The target failed a request. True when this opened a closed breaker."""
        self.failures += 1
        opens = self._opened_at is None and self.failures >= self._threshold
        if opens or self._probing:
            self._opened_at = now
        self._probing = False
        return opens

    def abandon(self) -> None:
        """The request told nothing: let another one probe."""
        self._probing = False


class RetryBudget:
    """Bounds retries to a share of the traffic, so that a bad day is not made worse by resending it all.

    Each request served pays in `ratio`, each retry takes one out; up to `reserve` can be saved up, and it
    starts full.
    """

    __slots__ = ("_balance", "_ratio", "_reserve")

    def __init__(self, ratio: float, reserve: int) -> None:
        self._ratio = ratio
        self._reserve = float(reserve)
        self._balance = self._reserve

    def deposit(self) -> None:
        """A request arrived."""
        self._balance = min(self._reserve, self._balance + self._ratio)

    def withdraw(self) -> bool:
        """Take one retry; False when the budget is spent."""
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True
