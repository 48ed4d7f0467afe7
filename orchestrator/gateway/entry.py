"""One target as this gateway knows it, and what a request needs of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.gateway import affinity
from orchestrator.gateway.blame import Breaker, BreakerState, Tab
from orchestrator.gateway.clocks import Limits, TargetClock
from orchestrator.gateway.continuation import Capability
from policies.held import Held
from policies.model import TargetPhase, TargetSpec, TargetState

Nature = tuple[str, str]
"""Build and identity: equal for targets of the same model, revision, engine and number format."""


class Entry:
    """One target and what this gateway knows of it.

    `present` is False once the daemon no longer lists it; it then lives on until its last request ends.
    `passes` counts health checks passed, `fails` those failed since the last pass. `suspicion` is set when
    a request failed, so that the next check happens now. `doubtful`: a request is better sent elsewhere.
    `capability` is what it can do for a stream that broke elsewhere, None until it was probed; `known` is set
    once that is so, or there is no telling when it will be. `tokens`: a rough count of those that its
    requests have and may bring; `salt` stands for it where requests are kept together. `refuses`: the last
    connection to it was not made. `takes_usage`: whether its engine may be asked for the usage of a stream,
    None until that was tried. `lent` counts the requests in flight by the adapter that they use, whether it
    is still said to hold that or not; `missing`: until when it is not asked for an adapter that it did not
    know.
    """

    __slots__ = (
        "_held", "breaker", "capability", "clock", "doubtful", "fails", "health", "in_flight", "known",
        "lent", "missing", "passes", "present", "reason", "refuses", "salt", "spec", "suspicion", "tab",
        "takes_usage", "tokens",
    )  # fmt: skip

    def __init__(self, spec: TargetSpec, breaker: Breaker, now: float) -> None:
        self.lent: dict[Held, int] = {}
        self.told(spec)
        self.breaker = breaker
        self.clock = TargetClock(now)
        self.tab = Tab()
        self.capability: Capability | None = None
        self.known = asyncio.Event()
        self.doubtful = False
        self.present = True
        self.in_flight = 0
        self.tokens = 0
        self.salt = affinity.key_of(spec.id)
        self.health = TargetState.INITIAL
        self.reason = "not checked yet"
        self.refuses = False
        self.takes_usage: bool | None = None
        self.passes = 0
        self.fails = 0
        self.suspicion = asyncio.Event()

    def told(self, spec: TargetSpec) -> None:
        """The daemon says what it is."""
        self.spec = spec
        self.missing: dict[Held, float] = {}
        self._held: dict[tuple[str, str], Held] = {}
        for held in spec.adapters:
            self._held.setdefault((held.name, ""), held)
            self._held[held.name, held.revision] = held

    def holds(self, name: str, revision: str = "") -> Held | None:
        """The adapter of this name, of any revision where that is empty; None where it has none."""
        held = self._held.get((name, revision))
        return None if held in self.missing else held

    def lend(self, name: str, revision: str) -> Held | None:
        """A request begins to use an adapter."""
        held = self.holds(name, revision)
        if held is not None:
            self.lent[held] = self.lent.get(held, 0) + 1
        return held

    def give_back(self, held: Held) -> None:
        """A request does not use an adapter any more."""
        self.lent[held] -= 1
        if not self.lent[held]:
            del self.lent[held]

    @property
    def draining(self) -> bool:
        """Whether it gets no new requests because the daemon says so."""
        return not self.present or self.spec.phase is TargetPhase.DRAINING

    def sound(self, now: float) -> bool:
        """Whether checks and requests both speak for it."""
        return self.health is TargetState.HEALTHY and self.breaker.allows(now)

    def hopeful(self, now: float, limits: Limits) -> bool:
        """Whether waiting for it makes sense: it is not known to be ill, or busy with others."""
        if self.health is TargetState.INITIAL:
            return True
        if self.breaker.state(now) is not BreakerState.CLOSED:
            return self.sound(now)  # a request may try it; while one does, the others know no more
        return self.health is TargetState.HEALTHY or self.clock.moves(now, limits)

    @property
    def watched(self) -> bool:
        """Whether its checks are of use: it is in the set, or left it with requests that it still holds."""
        return self.present or self.in_flight > 0

    @property
    def nature(self) -> Nature | None:
        """What it serves; None until it was probed."""
        return None if self.capability is None else (self.spec.build, self.capability.identity)

    def state(self, now: float) -> tuple[TargetState, str]:
        """The state as a load balancer reports it, and the reason in words."""
        if not self.present:
            return TargetState.DRAINING, "removed; its last requests are running"
        if self.spec.phase is TargetPhase.DRAINING:
            return TargetState.DRAINING, "draining"
        if self.health is TargetState.HEALTHY and not self.breaker.allows(now):
            return TargetState.UNHEALTHY, f"circuit breaker {self.breaker.state(now)}"
        return self.health, self.reason


class Wish:
    """What one request needs of a target.

    `tried` maps targets that failed it to the health checks that they had passed then: it shuns them until
    they passed another. `fits` says which can serve it at all, as when a broken stream needs the same
    model. `again`: it lost its target and has been let in before. `home` is the only target that will do,
    draining or not, as it has what the request is about. `key`: those with the same one go to the same target
    as long as that is not busier than most. `tokens`: a rough count of those it has and may bring. `adapter`:
    the target has to hold it, in this `revision` if that is not empty; `held` is what its present target has.
    """

    __slots__ = ("adapter", "again", "fits", "held", "home", "key", "revision", "tokens", "tried")

    def __init__(self, key: int | None = None, tokens: int = 0, adapter: str = "") -> None:
        self.key = key
        self.tokens = tokens
        self.tried: dict[Entry, int] = {}
        self.fits: Callable[[Entry], bool] = _any
        self.again = False
        self.home: str | None = None
        self.adapter = adapter
        self.revision = ""
        self.held: Held | None = None

    def allows(self, entry: Entry) -> bool:
        """Whether it may go there now."""
        return self.could(entry) and self.finds(entry)

    def finds(self, entry: Entry) -> bool:
        """Whether it holds the adapter, if one is asked for."""
        return not self.adapter or entry.holds(self.adapter, self.revision) is not None

    def could(self, entry: Entry) -> bool:
        """The same, once it holds the adapter."""
        return not self.shuns(entry) and self.fits(entry) and self.home in (None, entry.spec.id)

    def shuns(self, entry: Entry) -> bool:
        """Whether it failed there and no check was passed since."""
        passes = self.tried.get(entry)
        return passes is not None and entry.passes <= passes

    @property
    def choosy(self) -> bool:
        """Whether a target that would do for others of the same adapter may not do for it."""
        return bool(self.tried) or self.fits is not _any or self.home is not None

    def failed_at(self, entry: Entry) -> None:
        """It failed there."""
        self.tried[entry] = entry.passes

    def but(self, entry: Entry, fits: Callable[[Entry], bool], revision: str = "") -> Wish:
        """The wish to go on at any other target that fits."""
        wish = Wish(self.key, self.tokens, self.adapter)
        wish.tried = self.tried | {entry: entry.passes}
        wish.fits, wish.again, wish.home, wish.revision = fits, True, self.home, revision
        return wish


def _any(_: Entry) -> bool:
    return True


ANYWHERE = Wish()
