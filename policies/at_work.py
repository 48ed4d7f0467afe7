"""Who may be at work: whether a node may still get requests and answer them, as far as a daemon can be sure.

What it decides: whether a node may be ended or stopped, for all that it may hold or still be sent.
Why: what a daemon does not know is not "no". A balancer's acknowledgement may be forgotten; a set whose
answer was lost may have landed; what an earlier daemon wrote may land after its death, until this one's first
set was taken; a look at an engine that failed is no silence; and the journal may be lost or old, so that a
node that was never seen to be ready may have served for hours. So "it gets no requests" is a balancer's own
word, newer than the last set that it acknowledged to this daemon, with no set under way that says otherwise.
"It answers nobody" is a silence that this daemon listened to for as long as it takes to replace a node, and
that every balancer which has the node as a target found for as long. "It never served" holds of nodes that
this very daemon launched and never saw ready.
Never: a node counts as let go of, or as dead, on less.

Example: a daemon that has just started and found the balancer closed to reads ends nothing that may answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

from policies.actions import ActionKind
from policies.fleet import Node
from policies.model import InstanceState, Phase, Pool, Target, TargetPhase, TargetState, World
from policies.reach import BOOTING, vouched_for
from policies.records import Memory, intent_key
from policies.value import lazy


def gets_requests(target: Target) -> bool:
    """True for a target that its balancer sends new requests to, as long as it answers."""
    return target.state not in (TargetState.DRAINING, TargetState.UNUSED)


def shown_active(world: World) -> set[str]:
    """Nodes that some balancer was last seen to send requests to."""
    return {t.id for view in world.balancers.values() for t in view.value if gets_requests(t)}


def routed(world: World, memory: Memory) -> set[str]:
    """Nodes that some balancer may send requests to: by its own word, by what it took, or is being told."""
    found = shown_active(world)
    for name in world.balancers:
        found |= _took(memory, name)
        found.update(world.writing.get(name, ()))
    return found


def sends_to(world: World, memory: Memory) -> set[str]:
    """Nodes that some balancer sends requests to, by its newest word: an acknowledgement, or a view since.

    And those that it may send some to by a set whose answer is not there.
    """
    found: set[str] = set()
    for name in world.balancers:
        found |= sent_by(world, memory, name)
    return found


def sent_by(world: World, memory: Memory, balancer: str) -> set[str]:
    """The same of one balancer."""
    view = world.balancers[balancer]
    if view.at is not None and view.at > memory.applied_at.get(balancer, 0.0):
        found = {t.id for t in view.value if gets_requests(t)}
    else:
        found = _took(memory, balancer)
    return found | {*world.writing.get(balancer, ())}


def _took(memory: Memory, balancer: str) -> set[str]:
    """Nodes that get requests by the last set that a balancer acknowledged."""
    held = memory.targets.get(balancer, {})
    return {node for node, phase in held.items() if phase is TargetPhase.ACTIVE}


def confirmed(world: World, memory: Memory) -> bool:
    """True when every balancer has taken a set of this daemon, and was read since the last one, and awake."""
    applied = memory.applied_at
    return all(
        view.at is not None and name in applied and view.at >= max(applied[name], world.awake_since)
        for name, view in world.balancers.items()
    )


@dataclass(frozen=True)
class AtWork:
    """What one turn knows of who may be at work."""

    pool: Pool
    world: World
    memory: Memory

    @lazy
    def routed(self) -> Set[str]:
        """Nodes that some balancer may send requests to."""
        return routed(self.world, self.memory)

    @lazy
    def sent(self) -> Set[str]:
        """Nodes that some balancer sends requests to by its newest word, or by a set under way."""
        return sends_to(self.world, self.memory)

    @lazy
    def vouched(self) -> Set[str]:
        """Nodes that some balancer finds healthy."""
        return vouched_for(self.world)

    @lazy
    def confirmed(self) -> bool:
        """True when what balancers show is newer than what they were told."""
        return confirmed(self.world, self.memory)

    @lazy
    def _targets(self) -> Mapping[str, tuple[float, Mapping[str, Target]]]:
        """When each balancer was read last, minus infinity for never, and what it showed, by node."""
        return {
            name: (-math.inf if view.at is None else view.at, {t.id: t for t in view.value})
            for name, view in self.world.balancers.items()
        }

    def never_served(self, node: Node) -> bool:
        """True for a node that this very daemon launched and never saw ready."""
        pool, _, epoch = node.token.rpartition("/")[0].rpartition("/")
        return node.ready_at is None and bool(pool) and epoch == str(self.world.epoch)

    def cannot_tell(self, node: Node) -> bool:
        """True for a node of which only balancers could tell that were not heard: a journal may be lost."""
        return not (self.confirmed or self.never_served(node) or self.dead(node, 0.0))

    def dead(self, node: Node, times: float = 1.0) -> bool:
        """True for a node that has been silent for long: to this daemon, and to every balancer that has it.

        One that lost a target which it took, or shows it draining, or that is told of it or took it since it
        was read, does not tell. Long is `times` the time after which a silent node is replaced.
        """
        long = times * self.pool.health.replace_after
        reading = self.world.engines.get(node.id)
        if reading is None or reading.at < self.world.awake_since:
            return False
        if reading.failing_since is None or reading.at - reading.failing_since < long:
            return False
        for name, (read_at, shown) in self._targets.items():
            target = shown.get(node.id)
            held = self.memory.targets.get(name, {}).get(node.id) is TargetPhase.ACTIVE
            # It may send some since it was read.
            told = held and self.memory.applied_at.get(name, 0.0) > read_at
            told = told or node.id in self.world.writing.get(name, ())
            unheard = told and (target is None or target.state is not TargetState.UNHEALTHY)
            lost = unheard or (held and (target is None or not gets_requests(target)))
            heard = read_at >= reading.failing_since and not lost
            if not heard or (target is not None and not _silent(target, read_at, long)):
                return False
        return True

    def asked_in_vain(self, node: Node) -> bool:
        """True for a node whose end was asked for, and neither its call nor a list says that it ends."""
        intent = self.memory.intents.get(intent_key(node.id, ActionKind.TERMINATE))
        alive = (InstanceState.PENDING, InstanceState.RUNNING)
        ending = any(i.id == node.id and i.state not in alive for i in self.world.instances)
        return intent is not None and intent.accepted_at is None and not ending

    def let_go_lately(self, node: Node) -> bool:
        """True for a node that a balancer sent requests to until a moment ago: they may not be over.

        So it is as well where no journal tells that the node was ever ready, and only this host cannot reach
        it: of a node that it let go of a balancer says nothing.
        """
        if node.detached_at is None or self.never_served(node):
            return False
        return self.world.now - node.detached_at < self.pool.drain.budget

    def holds_nothing(self, node: Node) -> bool:
        """True for a node that surely has no requests, and gets none."""
        if node.phase in (Phase.STOPPED, Phase.GONE) or self.never_served(node):
            return True
        return self.dead(node) and not self.let_go_lately(node)

    def why_it_stays(self, node: Node) -> str:
        """Why a node may not be ended now; empty when it surely holds no requests.

        A dead one leaves the target sets first all the same: it may answer the next moment.
        """
        if self.never_served(node):
            return ""
        if node.id in self.routed and node.phase is not Phase.STOPPED:
            return "a balancer may still send it requests"
        if node.drain is None and node.phase is not Phase.STOPPED and self.let_go_lately(node):
            return "it may hold requests from before it left a target set"
        if not (self.holds_nothing(node) or self.confirmed):
            return "no balancer's word is newer than the set that it took"
        return ""


def _silent(target: Target, read_at: float, long: float) -> bool:
    """True for a target that its balancer has found unhealthy for long, or says nothing of as it drains."""
    if target.state is TargetState.UNHEALTHY:
        return target.failing_since is not None and read_at - target.failing_since >= long
    return not gets_requests(target)


def perhaps_at_work(pool: Pool, world: World, node: Node) -> bool:
    """True for a node that has not answered this daemon and may have been put to work by one before it.

    Its journal may be lost. One look that fails, or a list that is old, does not tell otherwise; a balancer
    that was restarted tells nothing.
    """
    if node.unknown or (node.phase in BOOTING and node.id in vouched_for(world)):
        return True
    reading = world.engines.get(node.id)
    if reading is None or reading.failing_since is None:
        return False
    briefly = reading.at - reading.failing_since < pool.health.unhealthy_after
    return briefly and node.phase in BOOTING and node.serving
