"""What is known of each node in one turn, from all witnesses.

`Evidence` is made once a turn and asked for one node at a time; what nobody asks for costs nothing. It is the
only place that reads what engines and balancers said, and that knows from when on this daemon is awake.
"""

from __future__ import annotations

import math

from policies.actions import ActionKind
from policies.evidence.balancers import Balancers
from policies.evidence.conditions import Condition, Look, Question, Status, Witness, says
from policies.model import EngineReading, Instance, InstanceState, Pool, World
from policies.records import Intent, Memory, NodeRecord, intent_key
from policies.value import lazy

_NOT_LOOKED_AT = Condition(status=Status.UNKNOWN, reason="nobody has looked at its engine yet")
_LOOKED_LONG_AGO = Condition(
    status=Status.UNKNOWN,
    reason="its engine was last looked at before this daemon woke up",
    witness=Witness.PROBE,
)
_ANSWERS = Condition(status=Status.TRUE, reason="its engine answers", witness=Witness.PROBE)


class Evidence:
    """The words of all witnesses in one turn."""

    def __init__(self, pool: Pool, world: World, memory: Memory) -> None:
        self.pool, self.memory, self.now = pool, memory, world.now
        self._world, self._engines, self._awake_since = world, world.engines, world.awake_since
        self.balancers = Balancers(pool, world, memory)

    @lazy
    def listed(self) -> dict[str, Instance]:
        """By id, the machines that the newest lists show."""
        return {instance.id: instance for instance in self._world.instances}

    # -- engines ---------------------------------------------------------------------------------------

    def look(self, node: str) -> EngineReading | None:
        """What the last look at an engine saw: what it counts and lists, if it answered."""
        return self._engines.get(node)

    def heard(self, node: str) -> Condition:
        """Whether its engine answers this daemon's probes. `since` is set while it does not.

        An answer may say that it still loads its model. Silence lasts to the last look: a daemon that hung
        for a while heard nothing from anybody meanwhile.
        """
        look = self._engines.get(node)
        if look is None:
            return _NOT_LOOKED_AT
        if look.failing_since is None:
            return _ANSWERS if look.at >= self._awake_since else _LOOKED_LONG_AGO
        word = Look.FAILED if look.at >= self._awake_since else Look.OLD
        return Condition(
            status=says(Witness.PROBE, word, Question.HEARD),
            since=look.failing_since,
            lasted=look.at - look.failing_since,
            reason=look.failure or "no answer",
            witness=Witness.PROBE,
        )

    def silent_for(self, node: str) -> float:
        """Seconds for which an engine had answered nothing when it was last looked at, however long ago."""
        look = self._engines.get(node)
        return 0.0 if look is None or look.failing_since is None else look.at - look.failing_since

    def is_up(self, node: str) -> bool:
        """Its engine answered the last look, and is ready."""
        look = self._engines.get(node)
        return look is not None and look.ready and look.ok

    # -- whether it may be reached, and by whom --------------------------------------------------------

    def reachable(self, node: str) -> Condition:
        """Whether anybody reaches its engine. It is silent only if all who may tell find it so."""
        heard = self.heard(node)
        if heard.holds:
            return heard
        if node in self.balancers.finds_healthy:
            return Condition(
                status=Status.TRUE, reason="a balancer finds it healthy", witness=Witness.BALANCER
            )
        if heard.open or heard.since is None:
            return heard
        silences = [balancer.silence_of(node, heard.since) for balancer in self.balancers]
        lasted = min(heard.lasted, *silences) if silences else heard.lasted
        if lasted < 0.0:
            return Condition(
                status=Status.UNKNOWN, reason="a balancer may reach it", witness=Witness.BALANCER
            )
        return Condition(
            status=Status.FALSE,
            since=heard.since,
            lasted=lasted,
            reason=heard.reason,
            witness=Witness.PROBE,
        )

    # -- whether it gets requests, and holds any -------------------------------------------------------

    def routed(self, node: str) -> Condition:
        """Whether some balancer sends it new requests, by each one's newest word.

        Unknown where an older word says so, and where some balancer was not read since it was last written
        to: then nobody knows (`Witness.NOBODY`).
        """
        balancers = self.balancers
        if node in balancers.sends_to:
            return Condition(
                status=Status.TRUE, reason="a balancer sends it requests", witness=Witness.BALANCER
            )
        if node in balancers.may_send_to:
            return Condition(
                status=Status.UNKNOWN,
                reason="a balancer may still send it requests",
                witness=Witness.BALANCER,
            )
        if not balancers.confirmed:
            return Condition(
                status=Status.UNKNOWN, reason="no balancer's word is newer than the set that it took"
            )
        return Condition(
            status=Status.FALSE, reason="no balancer sends it requests", witness=Witness.BALANCER
        )

    def never_served(self, token: str, ready_at: float | None) -> bool:
        """True for a node that this very daemon launched and never saw ready."""
        pool, _, epoch = token.rpartition("/")[0].rpartition("/")
        return ready_at is None and bool(pool) and epoch == str(self._world.epoch)

    def holds_requests(self, node: str) -> Condition:
        """Whether it has requests that are not answered yet.

        It has none where it never served or its machine is stopped; nor where every witness has found it
        silent for long, unless a balancer let go of it so lately that only this host may not reach it.
        """
        record = self.memory.nodes[node]
        if self.never_served(record.token, record.ready_at):
            return Condition(status=Status.FALSE, reason="it never served", witness=Witness.JOURNAL)
        silent = self.reachable(node).fails(self.pool.health.replace_after)
        if silent and not self.let_go_lately(record):
            return Condition(
                status=Status.FALSE, reason="it has answered nobody for long", witness=Witness.PROBE
            )
        if self.in_flight(node):
            return Condition(status=Status.TRUE, reason="it counts requests", witness=Witness.PROBE)
        return Condition(status=Status.UNKNOWN, reason="it may hold requests")

    def in_flight(self, node: str) -> int:
        """The most requests that its engine or balancers count for it."""
        look, counted = self._engines.get(node), self.balancers.in_flight.get(node, 0)
        return counted if look is None else max(counted, look.in_flight)

    def let_go_lately(self, record: NodeRecord) -> bool:
        """True for a node that a balancer sent requests to until a moment ago: they may not be over.

        Also where no journal says that it was ever ready: a balancer says nothing of what it let go of.
        """
        if record.detached_at is None or self.never_served(record.token, record.ready_at):
            return False
        return self.now - record.detached_at < self.pool.drain.budget

    def looked_at(self, node: str) -> float:
        """When all who may count the requests of a node were last looked at; minus infinity for never.

        Those are its engine and the balancers that can be read.
        """
        look = self._engines.get(node)
        at = -math.inf if look is None else look.at
        reads = [balancer.read_at for balancer in self.balancers if balancer.read_well]
        return min([at, *(-math.inf if read_at is None else read_at for read_at in reads)])

    def counted_at(self, node: str) -> float:
        """When the requests of a node were last counted; minus infinity where nobody counts them now."""
        look = self._engines.get(node)
        counted = (look is not None and look.ok) or node in self.balancers.targets
        return self.looked_at(node) if counted else -math.inf

    # -- what was asked for ----------------------------------------------------------------------------

    def end_asked_for(self, node: str) -> Intent | None:
        """The call that is to end a node, as long as it is open."""
        return self.memory.intents.get(intent_key(node, ActionKind.TERMINATE))

    def end_unconfirmed(self, node: str) -> bool:
        """True for a node whose end was asked for, and neither the call nor a list says that it ends."""
        intent = self.end_asked_for(node)
        if intent is None or intent.accepted_at is not None:
            return False
        instance = self.listed.get(node)
        return instance is None or instance.state in (InstanceState.PENDING, InstanceState.RUNNING)

    # -- how long this daemon has watched --------------------------------------------------------------

    def awake_for(self, since: float) -> float:
        """Seconds since then in which this daemon was awake. Of the time before nobody knows how long it was:
        this host's clock may have been set."""
        return self.now - max(since, self._awake_since)
