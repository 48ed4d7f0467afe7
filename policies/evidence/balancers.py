"""What balancers say: the targets that they show, the sets that they took, and what is being written to them.

Each balancer has three words about a node, and the newest counts: a set that is being written, of which
nobody knows yet whether it landed; the last set that it acknowledged to this daemon; and what it showed when
it was read. A view is newer than an acknowledgement only if it was read after it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from operator import attrgetter

from policies.evidence.conditions import Question, Status, Witness, words
from policies.held import Held
from policies.model import USABLE, Observed, Target, TargetPhase, TargetState, Word, World
from policies.records import Memory
from policies.value import lazy

ROUTED = words(Witness.BALANCER, Question.ROUTED, Status.TRUE)
"""States of targets that a balancer sends new requests to, as long as they answer."""

TAKEN = words(Witness.JOURNAL, Question.ROUTED, Status.TRUE)
REACHED = words(Witness.BALANCER, Question.REACHABLE, Status.TRUE)
SILENT = words(Witness.BALANCER, Question.REACHABLE, Status.FALSE)


class Balancer:
    """One balancer's words in one turn."""

    def __init__(self, name: str, world: World, memory: Memory) -> None:
        self.name = name
        self._view: Observed[tuple[Target, ...]] = world.balancers[name]
        self._now, self._awake_since = world.now, world.awake_since
        self.targets: Sequence[Target] = self._view.value
        self.error = self._view.error
        self.read_at = self._view.at
        self.applied_at = memory.applied_at.get(name)
        self.held: Mapping[str, TargetPhase] = memory.targets.get(name, {})
        self.being_written: Set[str] = frozenset(world.writing.get(name, ()))

    @lazy
    def shown(self) -> Mapping[str, Target]:
        """By node, the target that it showed when it was read last."""
        return {target.id: target for target in self.targets}

    @property
    def read_again(self) -> bool:
        """It was read since the last set that it took."""
        return self.read_at is not None and self.read_at > (self.applied_at or 0.0)

    @property
    def confirmed(self) -> bool:
        """It has taken a set of this daemon, and was read since then, and since this daemon is awake."""
        if self.read_at is None or self.applied_at is None:
            return False
        return self.read_at >= max(self.applied_at, self._awake_since)

    def _in(self, states: Set[Word]) -> Set[str]:
        """Nodes that it shows in one of these states."""
        return {target.id for target in self.targets if target.state in states}

    @lazy
    def shows_active(self) -> Set[str]:
        """Nodes that it was last seen to send requests to."""
        return self._in(ROUTED)

    @lazy
    def took_active(self) -> Set[str]:
        """Nodes that get requests by the last set that it acknowledged."""
        return {node for node, phase in self.held.items() if phase in TAKEN}

    @lazy
    def sends_to(self) -> Set[str]:
        """Nodes that it sends requests to by its newest word, a set that is being written included."""
        return (self.shows_active if self.read_again else self.took_active) | self.being_written

    @lazy
    def usable(self) -> Set[str]:
        """Nodes that it reaches, or has not looked at yet, by its last word."""
        return self._in(USABLE)

    @lazy
    def finds_unhealthy(self) -> Set[str]:
        """Nodes that it has as targets and cannot reach, by its last word."""
        return self._in(SILENT)

    @lazy
    def finds_healthy(self) -> Set[str]:
        """Nodes that it reaches, by its last word."""
        return self._in(REACHED)

    @property
    def surely_healthy(self) -> Set[str]:
        """The same if its last read did not fail: else it could never give a node up."""
        return frozenset() if self.error else self.finds_healthy

    def fresh(self, within: float) -> bool:
        """It was read since this daemon is awake, and within so many seconds."""
        awake = self.read_at is not None and self.read_at >= self._awake_since
        return awake and self._view.age(self._now) <= within

    @property
    def silence(self) -> float:
        """Seconds since it last answered, or since this daemon could ask."""
        return self._now - max(self._awake_since, self.read_at or self._awake_since)

    def silence_of(self, node: str, since: float) -> float:
        """Seconds for which it has found a node silent that this daemon finds silent `since` then.

        Infinite where it says nothing of it: it does not have the node, or the node drains there. Negative
        where it may reach the node: it finds it well, it was not read since then, it lost a target that it
        took, or it may send it requests by a set of which its last read does not tell.
        """
        target = self.shown.get(node)
        state = None if target is None else target.state
        active = self.held.get(node) is TargetPhase.ACTIVE
        read_at = -math.inf if self.read_at is None else self.read_at
        newly_sent = node in self.being_written or (active and (self.applied_at or 0.0) > read_at)
        untold = state not in SILENT and newly_sent
        forgot = active and state not in ROUTED
        if untold or forgot or read_at < since:
            return -math.inf
        if target is None or state not in ROUTED:
            return math.inf
        failing = target.failing_since if state in SILENT else None
        return -math.inf if failing is None else read_at - failing


class Routing:
    """All balancers of a pool in one turn, and what they say together of each node."""

    def __init__(self, world: World, memory: Memory) -> None:
        self.by_name: Mapping[str, Balancer] = {
            name: Balancer(name, world, memory) for name in sorted(world.balancers)
        }

    def __iter__(self) -> Iterator[Balancer]:
        return iter(self.by_name.values())

    def __len__(self) -> int:
        return len(self.by_name)

    @lazy
    def targets(self) -> Mapping[str, Sequence[Target]]:
        """By node, the targets that show it."""
        found: dict[str, list[Target]] = {}
        for balancer in self:
            for target in balancer.targets:
                found.setdefault(target.id, []).append(target)
        return found

    @lazy
    def confirmed(self) -> bool:
        """What every balancer shows is newer than what it was told last."""
        return all(balancer.confirmed for balancer in self)

    def _all(self, word: str) -> Set[str]:
        """Nodes of which some balancer says that."""
        return set[str]().union(*map(attrgetter(word), self))

    @lazy
    def serving(self) -> Set[str]:
        """Nodes that some balancer took as an active target, by its last acknowledgement."""
        return self._all("took_active")

    @lazy
    def attached(self) -> Set[str]:
        """Nodes that some balancer took as a target, active or draining."""
        return self._all("held")

    @lazy
    def sends_to(self) -> Set[str]:
        """Nodes that some balancer sends requests to, by its newest word."""
        return self._all("sends_to")

    @lazy
    def shows_active(self) -> Set[str]:
        """Nodes that some balancer was last seen to send requests to."""
        return self._all("shows_active")

    @lazy
    def may_send_to(self) -> Set[str]:
        """Nodes that some balancer may send requests to, by any of its words."""
        return self.shows_active | self.serving | self._all("being_written")

    @lazy
    def finds_healthy(self) -> Set[str]:
        """Nodes that some balancer reaches. It may reach whom this host cannot."""
        return self._all("finds_healthy")

    @lazy
    def surely_healthy(self) -> Set[str]:
        """The same by balancers whose last read did not fail."""
        return self._all("surely_healthy")

    @lazy
    def in_flight(self) -> Mapping[str, int]:
        """Requests in flight by node as balancers count them, summed. Only nodes that some balancer shows."""
        found: Counter[str] = Counter()
        for balancer in self:
            for target in balancer.targets:
                found[target.id] += target.in_flight or 0
        return found

    def address(self, node: str) -> str:
        """Where balancers have a node; empty where none shows it."""
        return next((target.address for target in self.targets.get(node, ())), "")

    @lazy
    def adapters(self) -> Mapping[str, tuple[Held, ...]]:
        """By node, what they send it requests for. Only nodes that are sent some for adapters."""
        found: dict[str, dict[Held, None]] = {}
        for balancer in self:
            for target in balancer.targets:
                if target.adapters:
                    found.setdefault(target.id, {}).update(dict.fromkeys(target.adapters))
        return {node: tuple(rows) for node, rows in found.items()}

    def may_have_put_to_work(self, node: str) -> bool:
        """Some balancer may use a node: it shows it as a target, or was never read."""
        shown = (target.state is not TargetState.UNUSED for target in self.targets.get(node, ()))
        return any(shown) or any(balancer.read_at is None for balancer in self)

    @lazy
    def _sent_anew(self) -> Set[str]:
        return set[str]().union(*(each.shows_active - each.took_active for each in self if each.read_again))

    def sends_anew(self, node: str) -> bool:
        """Some balancer shows a node as active, by a look after the last set that it took, without it."""
        return node in self._sent_anew
