"""The targets of this gateway: what the daemon wants, what we see of each, and which one gets a request."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloud.balancers.targets import TargetSet
from orchestrator.gateway import affinity
from orchestrator.gateway.blame import Breaker
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.continuation import Capability, Way
from orchestrator.gateway.entry import ANYWHERE, Entry, Wish
from orchestrator.gateway.failure import Blame, Failure
from policies.held import Held
from policies.model import WEIGHT_OF_A_UNIT, TargetPhase, TargetSpec, TargetState

_SHUN = 2.0  # s for which a target is not asked for an adapter that it did not know


class StaleGeneration(Exception):
    """A set of a lower generation than the accepted one: another daemon leads, or the file is old."""

    def __init__(self, offered: int, accepted: int) -> None:
        super().__init__(f"generation {offered} is lower than the accepted {accepted}")
        self.accepted = accepted


class WrongPool(Exception):
    """A set that belongs to another pool than this gateway serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an accepted set changed: ids of targets."""

    added: tuple[str, ...]
    drained: tuple[str, ...]
    removed: tuple[str, ...]


class TargetTable:
    """All targets, the accepted generation, and the choice among them.

    `on_change` is called after everything that may let a waiting request go on: a new set, a finished
    request, a passed check.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        rng: random.Random,
        gate: PoolGate,
    ) -> None:
        self._now = now
        self._rng = rng
        self._gate = gate
        self.limits = gate.limits()
        self.only_pool = gate.name
        self._entries: dict[str, Entry] = {}
        self._leaving: list[Entry] = []
        self._active: tuple[Entry, ...] = ()
        self.accepted: TargetSet | None = None
        self.accepted_at: float | None = None
        self.on_change: list[Callable[[], None]] = []
        self.on_breaker_open: list[Callable[[Entry], None]] = []

    def __iter__(self) -> Iterator[Entry]:
        """Targets of the set, then those that left it but still answer requests."""
        yield from self._entries.values()
        yield from self._leaving

    @property
    def generation(self) -> int:
        """The accepted generation, zero before the first."""
        return 0 if self.accepted is None else self.accepted.generation

    def apply(self, document: TargetSet) -> Change:
        """Make this the target set, at once: a draining or removed target gets no request from here on.

        What is known of targets that stay is kept. Raises StaleGeneration, WrongPool; then nothing changed.
        """
        if document.generation < self.generation:
            raise StaleGeneration(document.generation, self.generation)
        if self.only_pool and document.pool != self.only_pool:
            raise WrongPool(f"this gateway serves pool {self.only_pool!r}, the set is of {document.pool!r}")
        added, drained = [], []
        before, self._entries = self._entries, {}
        for spec in document.targets:
            entry = before.pop(spec.id, None)
            if entry is not None and entry.spec.address != spec.address:
                self._leave(entry)  # same id elsewhere: what we know of it no longer holds
                entry = None
            if entry is None:
                entry = self._return(spec) or self._new(spec)
                added.append(spec.id)
            if spec.phase is TargetPhase.DRAINING and entry.spec.phase is TargetPhase.ACTIVE:
                drained.append(spec.id)
            entry.told(spec)
            self._entries[spec.id] = entry
        for entry in before.values():
            self._leave(entry)
        self._active = tuple(e for e in self._entries.values() if not e.draining and e.spec.weight > 0)
        self.accepted = document
        self.accepted_at = self._now()
        self._changed()
        return Change(added=tuple(added), drained=tuple(drained), removed=tuple(before))

    def choose(self, wish: Wish = ANYWHERE) -> Entry | None:
        """The target for a request, or None when it has to wait.

        The sound target with the fewest requests in flight for its weight; ties are broken at random. One
        that leaves a check unanswered is taken only where there is no other. When no active target passes
        its checks, one not checked yet, else the least bad of the others (fail open): a wrong health check
        must not take the whole pool down. A target that failed this request is left out until it passed
        another check, and taken then only where there is no other.
        """
        now = self._now()
        if wish.home is not None:
            return self._at_home(wish, now)
        if wish.key is not None and (kept := self._by_key(wish, wish.key, now)) is not None:
            return kept
        best: list[Entry] = []
        load = (True, True, 0.0)
        any_sound = False
        for entry in self._active:
            if entry.health is not TargetState.HEALTHY or not entry.breaker.allows(now):
                continue
            any_sound = True
            if self._full(entry, wish) or not wish.allows(entry):
                continue
            failed_it = entry in wish.tried
            weighted = (failed_it, entry.doubtful, self._held(entry) / entry.spec.weight)
            if not best or weighted < load:
                best, load = [entry], weighted
            elif weighted == load:
                best.append(entry)
        if best:
            return best[0] if len(best) == 1 else best[self._rng.randrange(len(best))]
        if any_sound:
            return None
        left = [
            entry
            for entry in self._active
            if entry.breaker.allows(now) and not self._full(entry, wish) and wish.allows(entry)
        ]
        return min(left, key=_badness, default=None)

    def _at_home(self, wish: Wish, now: float) -> Entry | None:
        """The one target that has what the request is about, if it can take it now."""
        entry = self._entries.get(wish.home or "")
        if entry is None or not entry.breaker.allows(now) or self._full(entry, wish):
            return None
        return entry if wish.allows(entry) else None

    def _by_key(self, wish: Wish, key: int, now: float) -> Entry | None:
        """The target that has the key, or the next that is not too busy for it; None where all are."""
        sound = [entry for entry in self._active if entry.sound(now) and wish.finds(entry)]
        held = sum(map(self._held, sound)) + self._share(wish)
        weights = sum(entry.spec.weight for entry in sound)
        ranked = sorted(
            sound, key=lambda entry: affinity.score(key, entry.salt, entry.spec.weight), reverse=True
        )
        for entry in ranked:
            most = affinity.bound(held, weights, entry.spec.weight)
            if self._full(entry, wish) or entry.doubtful or entry in wish.tried or not wish.allows(entry):
                continue
            if self._held(entry) + self._share(wish) <= max(most, self._share(wish)):
                return entry
        return None

    def _held(self, entry: Entry) -> int:
        """How busy it is: in requests, or in tokens where those are counted."""
        return entry.tokens if self._gate.tokens_in_flight else entry.in_flight

    def _share(self, wish: Wish) -> int:
        """What a request adds to that."""
        return wish.tokens if self._gate.tokens_in_flight else 1

    def _full(self, entry: Entry, wish: Wish) -> bool:
        """It holds as many requests, or tokens, as it may: so many for each serving unit that its weight
        tells of. One request is let in whatever it brings.

        One that lost its target was let in before; for those there is as much room again.
        """
        units = max(1, entry.spec.weight // WEIGHT_OF_A_UNIT) * (2 if wish.again else 1)
        if entry.in_flight >= self._gate.max_in_flight * units:
            return True
        tokens = self._gate.tokens_in_flight * units
        return tokens > 0 and entry.in_flight > 0 and entry.tokens + wish.tokens > tokens

    def knows(self, node: str) -> bool:
        """Whether the set has a target of this id."""
        return node in self._entries

    def able_by_build(self, entry: Entry) -> Capability | None:
        """What another target of the same build can do for broken streams: good for a target that has not
        been asked yet, so that its first streams are recorded too. None where nothing reports it."""
        build = entry.spec.build
        alike = (e.capability for e in self if build and e.spec.build == build)
        return next((can for can in alike if can is not None and can.way is not Way.NONE), None)

    def any_sound(self) -> bool:
        """Whether a request would go to a target that checks and requests both speak for."""
        now = self._now()
        return any(entry.sound(now) for entry in self._active)

    def has_room(self) -> bool:
        """Whether a new request would have to wait for no other."""
        now = self._now()
        return any(entry.sound(now) and not self._full(entry, ANYWHERE) for entry in self._active)

    def down(self, wish: Wish = ANYWHERE) -> bool:
        """Whether a request that could go elsewhere should: there is no set, or no target that takes it.

        It does not wait for one that refuses connections, however lately that brought something, nor for an
        adapter to be loaded.
        """
        now, limits = self._now(), self.limits
        return self.accepted is None or not any(
            wish.allows(entry) and not entry.refuses and entry.hopeful(now, limits) for entry in self._active
        )

    def hopeful(self, wish: Wish = ANYWHERE) -> bool:
        """Whether waiting makes sense: no set is here yet, or a target that it does not shun may take it.

        An adapter that no target holds may be loaded at any, unless another revision of it has been.
        """
        if self.accepted is None:
            return True
        if wish.revision and self._replaced(wish):
            return False
        now, limits = self._now(), self.limits
        among = self._active if wish.home is None else self._entries.values()
        return any(wish.could(entry) and entry.hopeful(now, limits) for entry in among)

    def _replaced(self, wish: Wish) -> bool:
        """Whether targets hold its adapter, and none in the revision that it needs."""
        held = [e.holds(wish.adapter, wish.revision) for e in self._active if e.holds(wish.adapter)]
        return bool(held) and not any(held)

    def take(self, entry: Entry, wish: Wish = ANYWHERE) -> None:
        """A request is given to the target. Every take is followed by exactly one give of the same wish."""
        entry.in_flight += 1
        entry.tokens += wish.tokens
        entry.breaker.begin(self._now())
        if wish.adapter:
            wish.held = entry.lend(wish.adapter, wish.revision)

    def good(self, entry: Entry) -> None:
        """The target brings an answer as it should."""
        entry.breaker.good()
        self._changed()

    def blame(self, entry: Entry, failure: Failure, retry_after: float | None = None) -> None:
        """The target failed a request; of a doubt, a peer has shown that it was the target's fault."""
        if failure.blames is Blame.NOTHING:
            return
        if entry.breaker.fail(self._now(), retry_after):
            for listener in self.on_breaker_open:
                listener(entry)
        if failure in (Failure.CONNECT, Failure.LOST):
            entry.refuses = failure is Failure.CONNECT
            self.lose(entry, "refuses connections" if entry.refuses else "is silent")
        entry.suspicion.set()

    def lacks(self, entry: Entry, held: Held) -> None:
        """The target does not know an adapter that it is said to hold: for a while it gets nothing for it."""
        entry.missing[held] = self._now() + _SHUN
        entry.suspicion.set()

    def look(self, now: float) -> None:
        """Judge the targets by their clocks."""
        for entry in self:
            entry.doubtful = entry.clock.doubtful(now, self.limits)
            if entry.clock.lost(now, self.limits):
                self.lose(entry, "is silent and leaves its check unanswered")
            for held in [each for each, until in entry.missing.items() if now >= until]:
                del entry.missing[held]

    def lose(self, entry: Entry, reason: str) -> None:
        """Nothing can be expected of it until it passes another check."""
        entry.health, entry.reason = TargetState.UNHEALTHY, reason

    def give(self, entry: Entry, wish: Wish = ANYWHERE) -> None:
        """A request left the target, however it ended."""
        entry.in_flight -= 1
        entry.tokens -= wish.tokens
        if wish.held is not None:
            entry.give_back(wish.held)
        if entry.in_flight == 0:
            entry.breaker.abandon()
        if not entry.present and entry.in_flight == 0:
            self._leaving.remove(entry)
        self._changed()

    def checked(self, entry: Entry, fault: str, fall: int, *, refused: bool = False) -> bool:
        """A health check ended; `fault` is empty when it passed, `refused`: there was no connection.

        True when the health changed.

        `fall` failures in a row make a target unhealthy, one pass makes it healthy.
        """
        before, entry.refuses = entry.health, refused
        if not fault:
            entry.passes += 1
            entry.fails = 0
            entry.health, entry.reason = TargetState.HEALTHY, ""
            self._changed()
        else:
            entry.fails += 1
            if entry.fails >= fall:
                entry.health, entry.reason = TargetState.UNHEALTHY, fault
        return entry.health is not before

    def _new(self, spec: TargetSpec) -> Entry:
        gate = self._gate
        breaker = Breaker(gate.breaker_failures, gate.breaker_open, gate.breaker_longest)
        return Entry(spec, breaker, self._now())

    def _return(self, spec: TargetSpec) -> Entry | None:
        """The entry of a target that left and comes back while its requests still run."""
        for entry in self._leaving:
            if entry.spec.id == spec.id and entry.spec.address == spec.address:
                self._leaving.remove(entry)
                entry.present = True
                return entry
        return None

    def _leave(self, entry: Entry) -> None:
        entry.present = False
        entry.suspicion.set()
        if entry.in_flight:
            self._leaving.append(entry)

    def _changed(self) -> None:
        for listener in self.on_change:
            listener()


def _badness(entry: Entry) -> tuple[bool, int, float]:
    unhealthy = entry.health is TargetState.UNHEALTHY
    return unhealthy, entry.fails + entry.breaker.failures, entry.in_flight / entry.spec.weight
