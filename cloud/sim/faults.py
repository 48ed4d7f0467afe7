"""What goes wrong between a daemon and the simulated world. All of it is here.

Two ways, which add up: a script arms a fault for the next calls of a kind, or `rates` draws faults for every
call from the seeded generator. Calls are named "launch", "terminate", "stop", "start", "list", "offerings",
"observe", "apply" and "acknowledge"; "any" stands for all of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum

from cloud.errors import CloudError, Denied, InsufficientCapacity, QuotaExceeded, Throttled, Uncertain


class Fault(StrEnum):
    """One way in which a call goes wrong."""

    LOST = "lost"  # it takes effect, its answer never comes (Uncertain)
    REFUSED = "refused"  # InsufficientCapacity, nothing done
    QUOTA = "quota"  # QuotaExceeded, nothing done
    THROTTLED = "throttled"  # Throttled, nothing done
    DENIED = "denied"  # Denied, nothing done
    FAILED = "failed"  # a plain CloudError, nothing done
    SLOW = "slow"  # answers after `Faults.slow_for` seconds


_ERRORS: dict[Fault, type[CloudError]] = {
    Fault.REFUSED: InsufficientCapacity,
    Fault.QUOTA: QuotaExceeded,
    Fault.THROTTLED: Throttled,
    Fault.DENIED: Denied,
    Fault.FAILED: CloudError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The share of all calls that each fault hits, 0 to 1."""

    lost: float = 0.0
    throttled: float = 0.0
    failed: float = 0.0
    slow: float = 0.0

    def pick(self, draw: float) -> Fault | None:
        """The fault that a draw from [0, 1) falls on."""
        for fault, share in (
            (Fault.LOST, self.lost),
            (Fault.THROTTLED, self.throttled),
            (Fault.FAILED, self.failed),
            (Fault.SLOW, self.slow),
        ):
            if draw < share:
                return fault
            draw -= share
        return None


@dataclass(slots=True)
class Faults:
    """Faults to come. `arm` is for scripts; `rates` may be changed at any time."""

    rng: random.Random
    rates: Rates = field(default_factory=Rates)
    slow_for: float = 30.0
    stale_lists: bool = False  # lists show the machines as they were when this was switched on
    _armed: dict[str, list[Fault]] = field(default_factory=dict)

    def arm(self, call: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` calls of this name meet the fault."""
        self._armed.setdefault(call, []).extend([fault] * times)

    def disarm(self, call: str) -> None:
        """Forget what is still armed for calls of this name."""
        self._armed.pop(call, None)

    def draw(self, call: str) -> Fault | None:
        """The fault of a call that begins now."""
        for name in (call, "any"):
            if self._armed.get(name):
                return self._armed[name].pop(0)
        if self.rates == Rates():
            return None
        return self.rates.pick(self.rng.random())

    @staticmethod
    def check(fault: Fault | None, call: str) -> None:
        """Raise the error of a fault that keeps a call from having any effect."""
        if fault in _ERRORS:
            raise _ERRORS[fault](f"{call}: {fault} (simulated)")

    @staticmethod
    def check_answer(fault: Fault | None, call: str) -> None:
        """Raise Uncertain for a call whose answer is lost."""
        if fault is Fault.LOST:
            raise Uncertain(f"{call}: no answer came (simulated)")
