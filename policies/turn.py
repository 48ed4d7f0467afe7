"""One decision in the making: what the policies see, and where they put what they decide.

A `Turn` lives for one call of `decide`. Policies read the fleet, the world and memory from it and add
actions, deferrals and notes; counts that depend on what was already decided in this turn (nodes leaving,
nodes coming) are asked of the turn, not of the fleet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from policies.actions import (
    Action,
    ActionKind,
    Cause,
    Deferred,
    Drain,
    Launch,
    Start,
    Stop,
    Terminate,
)
from policies.fleet import Fleet, Node
from policies.limits import Budget
from policies.memory import Memory, intent_key
from policies.model import Market, Offering, Phase, Placement, Pool, StandbyKind, World
from policies.placement import Scorer

_PAIRED_WITHIN = 120.0
"""Seconds after a node is gone within which a launch still counts as its replacement."""


class Turn:
    """Collects the actions of one decision and keeps the counts true while it grows."""

    def __init__(self, pool: Pool, world: World, memory: Memory, fleet: Fleet) -> None:
        self.pool, self.world, self.memory, self.fleet = pool, world, memory, fleet
        self.now = world.now
        self.actions: list[Action] = []
        self.deferred: list[Deferred] = []
        self.notes: list[str] = []
        self.leaving: set[str] = set()
        self._coming = dict.fromkeys(Market, 0)
        self._left = dict.fromkeys(Market, 0)
        self._left_ready = dict.fromkeys(Market, 0)
        self._serial = memory.serial
        self.scorer = Scorer(pool, memory, now=world.now, offerings=world.offerings.value, held=_held(fleet))
        recent = sum(world.now - t < 60.0 for t in memory.launches)
        self.budget = Budget(pool, living=fleet.living, launched_last_minute=recent, spend=_spend(fleet))
        self._unpaired = _unpaired(fleet, memory, world.now)

    # -- what is known, with this turn's decisions counted in --------------------------------------

    def frozen(self) -> str:
        """Why nothing that costs money or ends a node may be done now; empty when all is well."""
        instances, patience = self.world.instances, self.pool.patience
        if not self.world.leading:
            return "this daemon does not hold the lease"
        if not self.world.durable:
            return "the journal cannot be written"
        if instances.at is None:
            return "the cloud has not been seen whole yet"
        if instances.age(self.now) > patience.stale_after:
            return f"the last complete list of instances is {instances.age(self.now):.0f} s old"
        if self.memory.pause is not None and self.memory.pause.holds(self.now):
            return f"paused by {self.memory.pause.by}: {self.memory.pause.reason}"
        return ""

    def count(self, market: Market) -> int:
        """Nodes of a market, ready or coming, after this turn's decisions."""
        return self.fleet.counted_by_market[market] + self._coming[market] - self._left[market]

    def ready(self, market: Market) -> int:
        """Ready nodes of a market after this turn's decisions."""
        return self.fleet.ready_by_market[market] - self._left_ready[market]

    def coming(self, market: Market) -> int:
        """Nodes of a market that count towards wanted and are not ready yet."""
        return self.count(market) - self.ready(market)

    def leave(self, node: Node) -> None:
        """Count a node out for the rest of this turn."""
        if node.id not in self.leaving:
            self.leaving.add(node.id)
            self._left[node.placement.market] += node.capacity
            self._left_ready[node.placement.market] += node.ready

    # -- what is decided ---------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Say in words why the pool is as it is."""
        self.notes.append(text)

    def defer(
        self, kind: ActionKind, reason: str, *, node: str = "", placement: Placement | None = None
    ) -> None:
        """Record what should happen and may not yet."""
        self.deferred.append(Deferred(kind=kind, node=node, placement=placement, reason=reason))

    def launch(
        self,
        offering: Offering,
        cause: Cause,
        reason: str,
        *,
        standby: StandbyKind | None = None,
        swap: bool = True,
    ) -> bool:
        """Launch a node there unless a limit forbids it; True when it was planned.

        `swap`: it takes the place of the outgoing node that has waited longest, if there is one.
        """
        refusal = self.frozen() or self.budget.refuses(offering.price)
        if refusal:
            self.defer(ActionKind.LAUNCH, refusal, placement=offering.placement)
            return False
        self._serial += 1
        replaces = self.next_outgoing() if swap else ""
        text = f"{reason}; replaces {replaces}" if replaces else reason
        self.actions.append(
            Launch(
                token=f"{self.pool.name}/{self.world.epoch}/{self._serial}",
                placement=offering.placement,
                price=offering.price,
                cause=cause,
                reason=text,
                standby=standby,
                replaces=replaces,
            )
        )
        self.budget.take(offering.price)
        if standby is not StandbyKind.STOPPED:
            self._coming[offering.placement.market] += 1
        return True

    def start(self, node: Node, reason: str) -> bool:
        """Put a standby to work."""
        if self._held_back(ActionKind.START, node):
            return False
        token = intent_key(node.id, ActionKind.START)
        replaces = self.next_outgoing()
        self.actions.append(Start(token=token, node=node.id, reason=reason, replaces=replaces))
        self._coming[node.placement.market] += 1
        return True

    def stop(self, node: Node, reason: str) -> None:
        """Stop a warm standby."""
        if not self._held_back(ActionKind.STOP, node):
            token = intent_key(node.id, ActionKind.STOP)
            self.actions.append(Stop(token=token, node=node.id, reason=reason))

    def drain(self, node: Node, deadline: float, cause: Cause, reason: str) -> None:
        """Take a node out of service. A doomed node may always be; anything else waits for a clear view."""
        if node.id in self.leaving or node.drain is not None:
            return
        if cause is not Cause.NOTICE:
            refusal = self.frozen()
            if refusal:
                self.defer(ActionKind.DRAIN, refusal, node=node.id)
                return
        self.leave(node)
        self.actions.append(Drain(node=node.id, deadline=deadline, cause=cause, reason=reason))

    def terminate(self, node: Node, cause: Cause, reason: str) -> None:
        """End a node."""
        if self._held_back(ActionKind.TERMINATE, node):
            return
        self.leave(node)
        token = intent_key(node.id, ActionKind.TERMINATE)
        self.actions.append(Terminate(token=token, node=node.id, cause=cause, reason=reason))

    def next_outgoing(self) -> str:
        """The longest-waiting outgoing node that nothing replaces yet; empty when there is none."""
        return self._unpaired.popleft() if self._unpaired else ""

    def _held_back(self, kind: ActionKind, node: Node) -> bool:
        """True when the view is not clear enough, or the same call is already under way."""
        intent = self.memory.intents.get(intent_key(node.id, kind))
        if intent is not None and not intent.due(self.now, self.pool.patience.effect_timeout):
            return True
        refusal = self.frozen()
        if refusal:
            self.defer(kind, refusal, node=node.id)
        return bool(refusal)


def _held(fleet: Fleet) -> Mapping[Placement, int]:
    held: dict[Placement, int] = {}
    for node in fleet.nodes:
        if node.capacity:
            held[node.placement] = held.get(node.placement, 0) + 1
    for intent in fleet.launching:
        if intent.placement is not None:
            held[intent.placement] = held.get(intent.placement, 0) + 1
    return held


def _spend(fleet: Fleet) -> float:
    """USD/h of every node that bills and every open launch."""
    running = sum(n.price for n in fleet.nodes if n.phase not in (Phase.GONE, Phase.STOPPED))
    return running + sum(i.price for i in fleet.launching)


def _unpaired(fleet: Fleet, memory: Memory, now: float) -> deque[str]:
    """Outgoing nodes that nothing replaces yet, longest waiting first; long gone ones are let go."""
    waiting = [
        (s.opened_at, s.outgoing)
        for s in memory.swaps.values()
        if not s.incoming
        and s.replaced_at is None
        and (s.gone_at is None or now - s.gone_at < _PAIRED_WITHIN)
    ]
    waiting += [
        (n.doomed.seen_at, n.id)
        for n in fleet.nodes
        if n.doomed is not None and n.standby is None and n.id not in memory.swaps
    ]
    return deque(outgoing for _, outgoing in sorted(waiting))
