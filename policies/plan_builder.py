"""One decision in the making: what the policies see, and where they put what they decide.

A `Turn` lives for one call of `decide`. Policies read the fleet, the world and memory from it and add
actions, deferrals and notes; counts that depend on what was already decided in this turn (nodes leaving,
nodes coming) are asked of the turn, not of the fleet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from policies import bars, disruption, trials
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
    Undrain,
)
from policies.adapter_set import AdapterSet
from policies.disruption import Act
from policies.evidence import Evidence
from policies.fleet import Fleet
from policies.headroom import Headroom
from policies.interruption import recommended
from policies.limits import Budget, no_room
from policies.model import (
    Market,
    Offering,
    Phase,
    Placement,
    Pool,
    StandbyKind,
    TargetPhase,
    TargetSpec,
    World,
    kept_aside,
)
from policies.node import Node
from policies.placement import Scorer
from policies.records import Intent, Memory, intent_key
from policies.value import lazy

_AGAIN = " (asked again with the same token)"

_KINDS = {
    Act.DRAIN: ActionKind.DRAIN,
    Act.UNDRAIN: ActionKind.UNDRAIN,
    Act.STOP: ActionKind.STOP,
    Act.END: ActionKind.TERMINATE,
}

_PAIRED_WITHIN = 120.0
"""Seconds after a node is gone within which a launch still counts as its replacement."""


class Turn(Headroom):
    """Collects the actions of one decision and keeps the counts true while it grows."""

    def __init__(self, pool: Pool, world: World, memory: Memory, fleet: Fleet) -> None:
        super().__init__(pool, fleet)
        self.world, self.memory = world, memory
        self.now = world.now
        self.actions: list[Action] = []
        self.deferred: dict[Deferred, None] = {}  # in order, each once
        self.notes: dict[str, None] = {}
        self._serves: dict[str, tuple[str, str]] = {}  # of notes that a node serves on: see `note_serving`
        self.asked_again: set[bars.Key] = set()  # markets where a launch is asked for once more
        self.undecided: set[str] = set()  # to end by memory alone: targets stay what they are
        self.given_up: set[str] = set()  # nodes that end since they never became ready
        self.starting: set[str] = set()
        self.hastened = False
        self._serial = memory.serial

    # Most turns launch nothing: what only launches need is worked out when the first one asks.

    @property
    def evidence(self) -> Evidence:
        """What witnesses say of the nodes."""
        return self.fleet.evidence

    @lazy
    def adapters(self) -> AdapterSet:
        """What becomes of adapters. Asked for once all that leaves in this turn is known."""
        return AdapterSet(self.world, self.fleet, frozenset(self.leaving))

    @lazy
    def scorer(self) -> Scorer:
        """Hands out placements."""
        sold, held, sight = self.fleet.prices.on_sale, _held(self.fleet), self.fleet.sight
        trying = trials.under_way(self.fleet, self.memory)
        return Scorer(
            self.pool, self.memory, now=self.now, offerings=sold, held=held, sight=sight, trying=trying
        )

    @lazy
    def budget(self) -> Budget:
        """What may still be launched or put back to work."""
        recent = sum(self.now - t < 60.0 for t in self.memory.launches)
        spend, unpriced = _spend(self.fleet)
        return Budget(
            self.pool,
            living=self.fleet.living,
            nodes=self.fleet.living_nodes,
            launched_last_minute=recent,
            spend=spend,
            unpriced=unpriced,
        )

    @lazy
    def _unpaired(self) -> deque[str]:
        return _unpaired(self.fleet, self.memory, self.now)

    @lazy
    def _recommended(self) -> tuple[Node, ...]:
        """Working nodes under a rebalance recommendation that holds, the oldest first."""
        found = []
        for node in self.fleet.nodes:
            if node.notices and node.capacity and node.phase is Phase.READY:
                notice = recommended(self.pool, self.memory.nodes[node.id], self.now)
                if notice is not None:
                    found.append((notice.seen_at, node.id, node))
        return tuple(node for _, _, node in sorted(found, key=lambda entry: entry[:2]))

    # -- what is known, with this turn's decisions counted in --------------------------------------

    def frozen(self, region: str) -> str:
        """Why nothing that costs money or ends a node may be done in a region now; empty when all is well."""
        if self.world.failsafe_since is not None:
            return "the database does not answer, and the lease has run out"
        if not self.world.leading:
            return "this daemon does not hold the lease"
        if not self.world.durable:
            return "the journal cannot be written"
        if unseen := self.fleet.sight.unaccounted or self.fleet.sight.hidden(region):
            return unseen
        if self.memory.pause is not None and self.memory.pause.holds(self.now):
            return f"paused by {self.memory.pause.by}: {self.memory.pause.reason}"
        return ""

    @lazy
    def kept(self) -> int | None:
        """Units in all up to which on-demand nodes stand in for spot, None where they do for all of it.

        Until the pool was whole, what was never there is not missed while spot is paused wherever it is sold.
        """
        sold = bars.on_sale(self.fleet.prices.on_sale)
        if self.memory.whole_at is not None or not bars.spot_paused(self.pool, self.memory, sold):
            return None
        return min(self.memory.reached, self.pool.replicas)

    @property
    def launched(self) -> bool:
        """True when this turn launches something new."""
        return self._serial > self.memory.serial

    @property
    def advised(self) -> tuple[Node, ...]:
        """Nodes that should make way for a successor: no more at once than may drain by choice."""
        found, going = [], self.by_choice
        for node in self._recommended:
            if self.fits(going, node.units) and node.id not in self.leaving:
                found.append(node)
                going += node.units
        return tuple(found)

    # -- what is decided ---------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Say in words why the pool is as it is."""
        self.notes[text] = None

    def note_serving(self, node: Node, text: str, *, otherwise: str) -> None:
        """Say that a node serves on; `otherwise`: what is said where this turn's target set is without it."""
        self.note(text)
        self._serves[text] = node.id, otherwise

    def notes_with(self, targets: Iterable[TargetSpec]) -> tuple[str, ...]:
        """All notes, in order, once the target set is known."""
        active = {t.id for t in targets if t.phase is TargetPhase.ACTIVE}
        told = {text: text if node in active else other for text, (node, other) in self._serves.items()}
        return tuple(dict.fromkeys(told.get(text, text) for text in self.notes))

    def defer(
        self, kind: ActionKind, reason: str, *, node: str = "", placement: Placement | None = None
    ) -> None:
        """Record what should happen and may not yet."""
        self.deferred[Deferred(kind=kind, node=node, placement=placement, reason=reason)] = None

    def offer(self, market: Market, units: int, *, quiet_for: float = 0.0) -> Offering | None:
        """Where the next node for so many missing units should go; None when nowhere."""
        for region in self.world.regions:
            if why := self.fleet.sight.avoided(region):
                self.note(f"{region} is passed over: {why}")
        return self.scorer.take(market, units=units, quiet_for=quiet_for, affordable=self.budget.affords)

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
        leaving = self._way_back(offering.placement.market)
        refusal = self._holds(offering.placement) or self.budget.refuses(offering.price, leaving=leaving)
        if refusal:
            self.defer(ActionKind.LAUNCH, refusal, placement=offering.placement)
            return False
        self._serial += 1
        self.scorer.tries(offering.placement)
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
        units = self.pool.units_of(offering.placement)
        self.budget.take(offering.price, units)
        if not kept_aside(standby):
            self._counted[offering.placement.market] += units
        return True

    def launch_again(self, intent: Intent, *, living: int) -> None:
        """Ask for a launch once more, with the same token: its outcome is not known.

        Not while the `living` units beside it leave no room: should it be there, a list will show it.
        """
        if intent.placement is None or not intent.due(self.now, self.pool.patience.effect_timeout):
            return
        refusal = (
            self.frozen(intent.placement.region) or no_room(self.pool, living) or self._holds_again(intent)
        )
        if refusal:
            self.defer(ActionKind.LAUNCH, refusal, placement=intent.placement)
            return
        self.actions.append(
            Launch(
                token=intent.token,
                placement=intent.placement,
                price=intent.price,
                cause=intent.cause or Cause.SHORT,
                reason=intent.reason.removesuffix(_AGAIN) + _AGAIN,
                standby=intent.standby,
                replaces=intent.replaces,
            )
        )

    def _way_back(self, market: Market) -> float:
        """USD/h that a launch leaves free: on-demand nodes beyond the floor may stand in for spot."""
        beyond = market is Market.ON_DEMAND and self.count(market) >= self.pool.on_demand_floor
        return self.pool.share.way_back if beyond and self.pool.share is not None else 0.0

    def _holds(self, placement: Placement) -> str:
        """Why nothing new may be launched there now, whatever it costs; empty when it may."""
        planned = self._serial - self.memory.serial
        first = trials.first_starts(self.fleet, self.world, self.memory, planned, self.given_up)
        return self.frozen(placement.region) or first or self.scorer.paused(placement)

    def _holds_again(self, intent: Intent) -> str:
        """Why a launch that surely did nothing may not be asked for again; empty when it may.

        In a market that was paused they are asked for one after another.
        """
        if intent.placement is None or intent.landed:
            return ""
        stopped = bars.never_started(self.pool, self.memory, self.given_up)
        key = bars.key_of(intent.placement)
        if stopped or key not in self.memory.bars or key not in self.scorer.pauses:
            return stopped
        if self.scorer.pauses[key] > self.now:
            return self.scorer.paused(intent.placement)
        if key in self.asked_again | trials.asking(self.fleet.launching):
            return f"{bars.words(key)} was paused, and one launch tries it"
        self.asked_again.add(key)
        return ""

    def start(self, node: Node, reason: str) -> bool:
        """Put a standby to work; True when it was planned."""
        if self._held_back(ActionKind.START, node):
            return False
        refusal = "" if node.phase is not Phase.STOPPED else self.budget.refuses_cost(node.price)
        if refusal:
            self.defer(ActionKind.START, refusal, node=node.id)
            return False
        replaces = self.next_outgoing()
        self._start(node, f"{reason}; replaces {replaces}" if replaces else reason, replaces)
        if node.phase is Phase.STOPPED:
            self.budget.take_cost(node.price)
        self._counted[node.placement.market] += node.units
        return True

    def start_again(self, node: Node, intent: Intent) -> None:
        """Ask for a start once more: it shows no effect."""
        if not self._held_back(ActionKind.START, node):
            self._start(node, intent.reason.removesuffix(_AGAIN) + _AGAIN, intent.replaces)

    def _start(self, node: Node, reason: str, replaces: str) -> None:
        self.starting.add(node.id)
        token = intent_key(node.id, ActionKind.START)
        self.actions.append(Start(token=token, node=node.id, reason=reason, replaces=replaces))

    def stop(self, node: Node, reason: str) -> None:
        """Stop a warm standby, once it is sure that it does not work."""
        if not (self._under_way(ActionKind.STOP, node) or self._refused(Act.STOP, node, Cause.STANDBY)):
            token = intent_key(node.id, ActionKind.STOP)
            self.actions.append(Stop(token=token, node=node.id, reason=reason))

    def drain(self, node: Node, deadline: float, cause: Cause, reason: str) -> bool:
        """Take a node out of service; True when it was planned."""
        if node.id in self.leaving or node.drain is not None or self._refused(Act.DRAIN, node, cause):
            return False
        self.leave(node)
        if cause.by_choice and (node.phase is Phase.READY or node.serving) and not node.aside:
            self.by_choice += node.units
        self.actions.append(Drain(node=node.id, deadline=deadline, cause=cause, reason=reason))
        return True

    def hasten(self, node: Node, deadline: float, reason: str) -> None:
        """Give a draining node an earlier deadline: a notice has overtaken its drain."""
        self.hastened = True
        self.actions.append(Drain(node=node.id, deadline=deadline, cause=Cause.NOTICE, reason=reason))

    def undrain(self, node: Node, reason: str) -> bool:
        """Put a node that drains, or was to end, back to work; True when it was planned."""
        cause = Cause.EXCESS if node.drain is None else node.drain.cause
        if self._refused(Act.UNDRAIN, node, cause):
            return False
        self.come_back(node)
        self.budget.take_node(node.units)
        self.actions.append(Undrain(node=node.id, reason=reason))
        return True

    def allows(self, act: Act, node: Node, cause: Cause = Cause.EXCESS) -> bool:
        """The gate says yes to what might be proposed."""
        return not disruption.may(self, act, node, cause)

    def terminate(self, node: Node, cause: Cause, reason: str) -> bool:
        """End a node, once it is sure that it does not work any more; True when it was planned."""
        if self._under_way(ActionKind.TERMINATE, node) or self._refused(Act.END, node, cause):
            return False
        self.leave(node)
        if cause is Cause.BOOT:
            self.given_up.add(node.id)
        token = intent_key(node.id, ActionKind.TERMINATE)
        self.actions.append(Terminate(token=token, node=node.id, cause=cause, reason=reason))
        return True

    def next_outgoing(self) -> str:
        """The longest-waiting outgoing node that nothing replaces yet; empty when there is none."""
        return self._unpaired.popleft() if self._unpaired else ""

    def _refused(self, act: Act, node: Node, cause: Cause) -> bool:
        """True when the gate says no. It is said why: what waits for a clear view is put off."""
        why = disruption.may(self, act, node, cause)
        if not why:
            return False
        blind = why == self.frozen(node.placement.region)
        if blind or act is not Act.DRAIN or cause is Cause.NOTICE:
            self.defer(_KINDS[act], why, node=node.id)
        if not blind:
            text, otherwise = disruption.refusal(act, node, cause, why)
            self.note_serving(node, text, otherwise=otherwise)
        return True

    def _under_way(self, kind: ActionKind, node: Node) -> bool:
        """True when the same call is under way."""
        intent = self.memory.intents.get(intent_key(node.id, kind))
        return intent is not None and not intent.due(self.now, self.pool.patience.effect_timeout)

    def _held_back(self, kind: ActionKind, node: Node) -> bool:
        """True when the view is not clear enough, or the same call is already under way."""
        if self._under_way(kind, node):
            return True
        refusal = self.frozen(node.placement.region)
        if refusal:
            self.defer(kind, refusal, node=node.id)
        return bool(refusal)


def _held(fleet: Fleet) -> Mapping[Placement, int]:
    """Units at each placement, open launches included."""
    held: dict[Placement, int] = {}
    for node in fleet.nodes:
        if node.capacity:
            held[node.placement] = held.get(node.placement, 0) + node.units
    for intent in fleet.launching:
        if intent.placement is not None:
            units = fleet.pool.units_of(intent.placement)
            held[intent.placement] = held.get(intent.placement, 0) + units
    return held


def _spend(fleet: Fleet) -> tuple[float, int]:
    """USD/h of every node that bills, or will once its start shows effect, and every open launch; and how
    many of them there are whose price is not known."""
    prices = [
        n.price
        for n in fleet.nodes
        if n.phase is not Phase.GONE and not (n.phase is Phase.STOPPED and n.aside)
    ]
    prices += [i.price for i in fleet.launching]
    known = [price for price in prices if price is not None]
    return sum(known), len(prices) - len(known)


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
        (n.notice.seen_at if n.notice is not None else now, n.id)
        for n in fleet.nodes
        if not n.aside and n.id not in memory.swaps and (n.notice is not None or _taken(n, memory))
    ]
    return deque(outgoing for _, outgoing in sorted(waiting))


def _taken(node: Node, memory: Memory) -> bool:
    """The cloud is ending a node and we did not ask for it."""
    return (
        node.phase is Phase.TERMINATING
        and node.drain is None
        and intent_key(node.id, ActionKind.TERMINATE) not in memory.intents
    )
