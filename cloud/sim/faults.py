"""What goes wrong between a daemon and the simulated world. All of it is here.

Three ways, which add up: a script arms a fault for the next calls of a kind, begins an outage that lasts
until it is ended, or `rates` draws faults for every call from the seeded generator. Calls are named "launch",
"terminate", "stop", "start", "list", "console", "offerings", "observe", "apply", "acknowledge" and
"stream"; "any" stands for all of them. `within` names those in one region, `buying` launches on one market.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    QuotaExceeded,
    Throttled,
    Uncertain,
)

CLOUD = ("launch", "terminate", "stop", "start", "list", "console", "offerings")
"""Calls on the provider's own interface."""

BALANCER = ("observe", "apply")
"""Calls on a balancer."""

MUTATIONS = ("launch", "terminate", "stop", "start", "apply", "acknowledge")
"""Calls that change something."""


def within(calls: Iterable[str], region: str) -> tuple[str, ...]:
    """The names of calls in one region."""
    return tuple(f"{call}@{region}" for call in calls)


def buying(market: str) -> str:
    """The name of launches on one market."""
    return f"launch/{market}"


class Fault(StrEnum):
    """One way in which a call goes wrong."""

    LOST = "lost"  # it takes effect, its answer never comes (Uncertain)
    REFUSED = "refused"  # InsufficientCapacity, nothing done
    QUOTA = "quota"  # QuotaExceeded, nothing done
    THROTTLED = "throttled"  # Throttled, nothing done
    DENIED = "denied"  # Denied, nothing done
    MISCONFIGURED = "misconfigured"  # Misconfigured, nothing done
    FAILED = "failed"  # a plain CloudError, nothing done
    SLOW = "slow"  # answers after `Faults.slow_for` seconds


_ERRORS: dict[Fault, type[CloudError]] = {
    Fault.REFUSED: InsufficientCapacity,
    Fault.QUOTA: QuotaExceeded,
    Fault.THROTTLED: Throttled,
    Fault.DENIED: Denied,
    Fault.MISCONFIGURED: Misconfigured,
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


_NO_RATES = Rates()


@dataclass(slots=True)
class Faults:
    """Faults to come. All fields may be changed at any time.

    `stale_lists`: lists show the machines as they were when this was switched on, `stale_share` of them (0 to
    1) where only some of the provider's replicas stand still. `lost_pages`: the share of lists that lack a
    page without saying so. `hidden`: nodes that no list shows. `lost_probes`: the share of looks at an engine
    that do not get through. `unreachable`: nodes whose engines none does. `forgetful`: balancers acknowledge
    a set and go on with the one that they have. `broken_adapters`: sources that no engine can load.
    `slow_disk`: seconds that a write of the journal takes. `met` counts the calls that met each fault,
    `until` says for each name of a call until when the last one that met a fault was held up by it.
    """

    rng: random.Random
    rates: Rates = field(default_factory=Rates)
    slow_for: float = 30.0
    stale_lists: bool = False
    stale_share: float = 1.0
    lost_pages: float = 0.0
    hidden: set[str] = field(default_factory=set)
    lost_probes: float = 0.0
    unreachable: set[str] = field(default_factory=set)
    forgetful: bool = False
    broken_adapters: set[str] = field(default_factory=set)
    slow_disk: float = 0.0
    calls: int = 0  # calls that were begun so far
    met: Counter[Fault] = field(default_factory=Counter)
    until: dict[str, float] = field(default_factory=dict)
    _armed: dict[str, list[Fault]] = field(default_factory=dict)
    _outages: dict[str, list[Fault]] = field(default_factory=dict)

    def arm(self, call: str, fault: Fault, times: int = 1) -> None:
        """Let the next `times` calls of this name meet the fault."""
        self._armed.setdefault(call, []).extend([fault] * times)

    def disarm(self, call: str) -> None:
        """Forget what is still armed for calls of this name."""
        self._armed.pop(call, None)

    def begin(self, calls: Iterable[str], fault: Fault) -> Callable[[], None]:
        """Let every call of these names meet the fault, until what is returned is called."""
        names = tuple(calls)
        for name in names:
            self._outages.setdefault(name, []).append(fault)

        def end() -> None:
            for name in names:
                self._outages[name].remove(fault)

        return end

    def out(self, call: str) -> bool:
        """True while an outage of these calls lasts."""
        return bool(self._outages.get(call))

    def chance(self, share: float) -> bool:
        """True in this share of all cases; nothing is drawn where there is no chance."""
        return share > 0.0 and (share >= 1.0 or self.rng.random() < share)

    def draw(self, call: str, region: str = "", market: str = "", *, now: float) -> Fault | None:
        """The fault of a call that begins `now`."""
        self.calls += call not in ("stream", "acknowledge", "load", "unload")  # engines are ours
        fault = self._next(call, region, market)
        if fault is not None:
            self.met[fault] += 1
            self.until[call] = now + (self.slow_for if fault is Fault.SLOW else 0.0)
        return fault

    def troubled(self, call: str, now: float) -> float:
        """Until when calls of this name went wrong, or hung: `now` while an outage of them lasts."""
        if self.out(call) or self.out("any") or self._armed.get(call) or self._armed.get("any"):
            return now
        return min(now, self.until.get(call, -math.inf))

    def _next(self, call: str, region: str, market: str) -> Fault | None:
        there = (*(within((call,), region) if region else ()), *((buying(market),) if market else ()))
        for name in (call, "any", *there):
            if self._armed.get(name):
                return self._armed[name].pop(0)
            if self._outages.get(name):
                return self._outages[name][0]
        if self.rates == _NO_RATES:
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
