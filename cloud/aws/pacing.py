"""How fast EC2 may be asked to change machines: a token bucket for each operation in a region. Pure.

Source of the figures: the EC2 API reference, "Request throttling for the Amazon EC2 API": the buckets of an
account in a region, which every program in the account shares. So EC2 may still say RequestLimitExceeded;
then the rate is halved, and doubles again every `RECOVERY` seconds until it is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limit:
    """A bucket that holds `burst` tokens and gets `rate` a second; a call takes one."""

    burst: float
    rate: float


LIMITS: Final[Mapping[str, Limit]] = {
    "run_instances": Limit(5.0, 2.0),
    "start_instances": Limit(5.0, 2.0),
    "stop_instances": Limit(5.0, 2.0),
    "terminate_instances": Limit(100.0, 5.0),
}
"""By operation, as boto3 names it. What is not here is not paced."""

RECOVERY: Final = 20.0
"""Seconds in which a rate that was halved becomes whole again."""

_LEAST = 1 / 16  # of a rate
_ONE_REFUSAL = 1.0  # s in which several refusals are of one moment: calls run side by side


class Pace:
    """The turns of one operation in one region, in the order in which they are asked for.

    Times are seconds of one steady clock.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._tokens = limit.burst
        self._at: float | None = None
        self._share, self._slowed_at = 1.0, float("-inf")

    def turn(self, now: float, *, patience: float) -> float | None:
        """Take a turn: seconds to wait for it. None when that is more than `patience`; none is taken then."""
        rate = self._refilled(now)
        wait = max(0.0, (1.0 - self._tokens) / rate)
        if wait > patience:
            return None
        self._tokens -= 1.0
        return wait

    def give_back(self) -> None:
        """A turn that was taken is not used."""
        self._tokens = min(self._limit.burst, self._tokens + 1.0)

    def refused(self, now: float) -> None:
        """EC2 said that these were too many calls: its bucket is empty, and others take from it too."""
        self._refilled(now)
        self._tokens = min(self._tokens, 0.0)
        if now - self._slowed_at >= _ONE_REFUSAL:
            self._share = max(_LEAST, self._share_at(now) / 2)
            self._slowed_at = now

    def _refilled(self, now: float) -> float:
        """Put in what has come since the last look; the rate of now."""
        rate = self._limit.rate * self._share_at(now)
        if self._at is not None:
            self._tokens = min(self._limit.burst, self._tokens + (now - self._at) * rate)
        self._at = now
        return rate

    def _share_at(self, now: float) -> float:
        """Which share of the rate is used."""
        doublings = min(10.0, (now - self._slowed_at) / RECOVERY)  # from the least to the whole are four
        return float(min(1.0, self._share * 2.0**doublings))
