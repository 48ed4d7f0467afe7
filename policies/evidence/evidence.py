"""What is known of each node in one turn, from all witnesses.

`Evidence` is made once a turn and asked for one node at a time; what nobody asks for costs nothing. Together
with what balancers say (`policies.evidence.balancers`) it is the only place that reads what was seen of
engines and targets, and that knows from when on this daemon is awake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from policies.actions import ActionKind, Cause
from policies.evidence.balancers import Routing
from policies.evidence.conditions import CONFIRMED, Condition, Look, Question, Status, Witness, says
from policies.evidence.sources import watched_since
from policies.model import (
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Phase,
    Pool,
    World,
    kept_aside,
)
from policies.records import Intent, Memory, NodeRecord, applies, intent_key
from policies.value import lazy

STOPPED = (InstanceState.STOPPED, InstanceState.STOPPING)
_NOT_ENDING = (InstanceState.PENDING, InstanceState.RUNNING)


def _true(witness: Witness, reason: str) -> Condition:
    return Condition(status=Status.TRUE, witness=witness, reason=reason)


def _false(witness: Witness, reason: str) -> Condition:
    return Condition(status=Status.FALSE, witness=witness, reason=reason)


def _unknown(witness: Witness, reason: str) -> Condition:
    return Condition(status=Status.UNKNOWN, witness=witness, reason=reason)


_ANSWERS = _true(Witness.PROBE, "its engine answers")
_NOT_LOOKED_AT = _unknown(Witness.NOBODY, "nobody has looked at its engine yet")
_LOOKED_LONG_AGO = _unknown(Witness.PROBE, "its engine was last looked at before this daemon woke up")
_FOUND_HEALTHY = _true(Witness.BALANCER, "a balancer finds it healthy")
_MAY_BE_REACHED = _unknown(Witness.BALANCER, "a balancer may reach it")
_SENT = _true(Witness.BALANCER, "a balancer sends it requests")
_MAY_BE_SENT = _unknown(Witness.BALANCER, "a balancer may still send it requests")
_NOBODY_TELLS = _unknown(Witness.NOBODY, "no balancer's word is newer than the set that it took")
_NOT_SENT = _false(Witness.BALANCER, "no balancer sends it requests")
_NEVER_SERVED = _false(Witness.JOURNAL, "it never served")
_SILENT_TO_ALL = _false(Witness.PROBE, "it has answered nobody for long")
_COUNTED = _true(Witness.PROBE, "requests are counted")
_MAY_HOLD = _unknown(Witness.NOBODY, "it may hold requests")
_LISTED = _true(Witness.LIST, "a list shows it")
_ENDED = _false(Witness.LIST, "a list shows it as ended")
_NOT_LISTED = _unknown(Witness.NOBODY, "no list could show it")
_LAUNCHED = _true(Witness.JOURNAL, "this pool launched it")
_TOKEN_IS_OURS = _true(Witness.LIST, "its token is one of this pool's")
_TOKEN_IS_NOT = _false(Witness.LIST, "no daemon of this pool made its token")
_NOBODY_LISTS = _true(Witness.NOBODY, "its region is listed no more, and it may answer")


def ours(pool: Pool, memory: Memory, instance: Instance) -> Condition:
    """Whether a daemon of this pool launched a machine that carries this pool's tag.

    Anybody who may tag can put our tag on a machine of theirs: what we never asked for is not ours to end.
    Our tokens are pool/epoch/serial.
    """
    if instance.token in memory.intents or instance.id in memory.nodes:
        return _LAUNCHED
    name, _, rest = instance.token.rpartition("/")[0].rpartition("/")
    serial = instance.token.rpartition("/")[2]
    made = name == pool.name and rest.isdecimal() and serial.isdecimal()
    return _TOKEN_IS_OURS if made else _TOKEN_IS_NOT


class Evidence:
    """The words of all witnesses in one turn."""

    def __init__(self, pool: Pool, world: World, memory: Memory) -> None:
        self.pool, self.memory, self.now = pool, memory, world.now
        self._world, self._engines, self._awake_since = world, world.engines, world.awake_since
        self._ends = memory.intents or {}
        self.routing = Routing(world, memory)

    # -- machines --------------------------------------------------------------------------------------

    @lazy
    def listed(self) -> Mapping[str, Instance]:
        """By id, the machines that the newest lists show."""
        return {instance.id: instance for instance in self._world.instances}

    def exists(self, record: NodeRecord) -> Condition:
        """Whether there is such a machine. `since`: when a list was first known to lack it.

        A list says nothing of what was launched after it was read, and an old or failed one says nothing at
        all. Of a region that is not configured any more no list will tell: there it is gone as soon as its
        engine is silent and no balancer finds it healthy.
        """
        instance, view = self.listed.get(record.id), self._world.region(record.placement.region)
        if instance is not None:
            found = says(Witness.LIST, instance.state, Question.EXISTS)
            return _LISTED if found is Status.TRUE else _ENDED
        since = record.missing_since
        if view is None:
            if not self.silent_to_most(record.id):
                return _NOBODY_LISTS
            lasted = 0.0 if since is None else self.now - self.watched_since(since)
        elif view.at is None or view.error or not self._world.seen(view) or record.launched_at >= view.at:
            return _NOT_LISTED
        else:
            # What an earlier list lacked counts from when this daemon has looked at lists without a gap.
            lasted = 0.0 if since is None else view.at - max(since, view.since or 0.0)
        reason, status = "lists lack it", Status.FALSE
        return Condition(status=status, since=since, lasted=lasted, reason=reason, witness=Witness.LIST)

    def unlisted(self, record: NodeRecord) -> bool:
        """Nobody lists its region: it is not configured any more."""
        return self._world.region(record.placement.region) is None

    def silent_to_most(self, node: str) -> bool:
        """Its engine has been silent for as long as a list may lack it, and no balancer finds it healthy."""
        silent = self.heard(node).fails(self.pool.patience.vanish_grace)
        return silent and node not in self.routing.finds_healthy

    def address(self, record: NodeRecord) -> str:
        """Where its engine listens. An old journal may not know, and a list may lack the node."""
        instance = self.listed.get(record.id)
        listed = instance.address if instance is not None else ""
        return listed or record.address or self.routing.address(record.id)

    def contradicts_stopped(self, record: NodeRecord) -> bool:
        """True for a node at work whose engine is not silent: a list that has it stopped is an old one.

        One look that failed is no silence. Where this daemon never saw it ready, a balancer's word counts.
        """
        if kept_aside(record.standby) or self.heard(record.id).fails(self.pool.health.unhealthy_after):
            return False
        looked_at = record.id in self._engines and record.ready_at is not None
        return looked_at or self.is_up(record.id) or record.id in self.routing.finds_healthy

    def phase(self, record: NodeRecord) -> Phase:
        """How far a node is, by the list of machines, its engine and the journal."""
        instance = self.listed.get(record.id)
        state = InstanceState.RUNNING if instance is None else instance.state
        if state is InstanceState.TERMINATED:
            return Phase.GONE
        if state is InstanceState.SHUTTING_DOWN or (self._ends and self.end_asked_for(record.id)):
            return Phase.TERMINATING
        if state in STOPPED and not self.contradicts_stopped(record):
            return Phase.STOPPED
        if record.drain is not None:
            return Phase.DRAINING
        if state is InstanceState.PENDING and record.ready_at is None:
            return Phase.PENDING  # one that was ready since its start is shown by an old list
        return Phase.READY if record.ready_at is not None or self.is_up(record.id) else Phase.STARTING

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

    def is_up(self, node: str) -> bool:
        """Its engine answered the last look, and is ready."""
        look = self._engines.get(node)
        return look is not None and look.ready and look.ok

    def reachable(self, node: str) -> Condition:
        """Whether anybody reaches its engine. It is silent only if all who may tell find it so."""
        heard = self.heard(node)
        if heard.status is Status.TRUE:
            return heard
        if node in self.routing.finds_healthy:
            return _FOUND_HEALTHY
        if heard.status is Status.UNKNOWN or heard.since is None:
            return heard
        lasted = min([heard.lasted, *(each.silence_of(node, heard.since) for each in self.routing)])
        if lasted < 0.0:
            return _MAY_BE_REACHED
        return Condition(
            status=Status.FALSE,
            since=heard.since,
            lasted=lasted,
            reason=heard.reason,
            witness=Witness.PROBE,
        )

    def mass_silence(self, passed_over: Callable[[str], str]) -> str:
        """That so many nodes which should answer are silent that the fault is more likely on this side.

        More than `max_unhealthy` of them, and more than one; empty when it is fewer. None in a region that is
        `passed_over` counts: it is silent itself, while another one can be seen.
        """
        if len(self._silent) < 2:
            return ""
        witnesses = [
            record.id
            for record in self.memory.nodes.values()
            if self._should_answer(record) and not passed_over(record.placement.region)
        ]
        silent = sum(node in self._silent for node in witnesses)
        most = max(1.0, self.pool.health.max_unhealthy * len(witnesses))
        return f"{silent} of {len(witnesses)} nodes are silent" if silent > most else ""

    @lazy
    def _silent(self) -> frozenset[str]:
        """Engines that were silent for as long as it takes to be unhealthy."""
        after = self.pool.health.unhealthy_after
        failing = (look for look in self._engines.values() if look.failing_since is not None)
        return frozenset(look.node for look in failing if self.heard(look.node).fails(after))

    def _should_answer(self, record: NodeRecord) -> bool:
        """True for a node that has booted, and whose silence would be no more than a silence.

        Not one that the cloud itself has said to take away by now, nor one that drains since it was silent.
        """
        phase, spot = self.phase(record), record.placement.market is Market.SPOT
        drains = phase is Phase.DRAINING and record.drain is not None and record.drain.cause is not Cause.SICK
        due = any(
            notice.confidence in CONFIRMED
            and applies(notice, spot=spot)
            and (notice.deadline is None or self.now >= notice.deadline)
            for notice in record.notices
        )
        return (phase is Phase.READY or (drains and record.ready_at is not None)) and not due

    # -- requests --------------------------------------------------------------------------------------

    def routed(self, node: str) -> Condition:
        """Whether some balancer sends it new requests, by each one's newest word.

        Unknown where an older word says so, and where some balancer was not read since it was last written
        to: then nobody knows.
        """
        routing = self.routing
        if node in routing.sends_to:
            return _SENT
        if node in routing.may_send_to:
            return _MAY_BE_SENT
        return _NOT_SENT if routing.confirmed else _NOBODY_TELLS

    def never_served(self, token: str, ready_at: float | None) -> bool:
        """True for a node that this very daemon launched and never saw ready."""
        pool, _, epoch = token.rpartition("/")[0].rpartition("/")
        return ready_at is None and bool(pool) and epoch == str(self._world.epoch)

    def let_go_lately(self, token: str, ready_at: float | None, detached_at: float | None) -> bool:
        """True for a node that a balancer sent requests to until a moment ago: they may not be over.

        Also where no journal says that it was ever ready: a balancer says nothing of what it let go of.
        """
        if detached_at is None or self.never_served(token, ready_at):
            return False
        return self.now - detached_at < self.pool.drain.budget

    def holds_requests(self, record: NodeRecord) -> Condition:
        """Whether it has requests that are not answered yet.

        It has none where it never served, nor where all who may tell have found it silent for long, unless a
        balancer let go of it so lately that only this host may not reach it.
        """
        if self.never_served(record.token, record.ready_at):
            return _NEVER_SERVED
        silent = self.reachable(record.id).fails(self.pool.health.replace_after)
        if silent and not self.let_go_lately(record.token, record.ready_at, record.detached_at):
            return _SILENT_TO_ALL
        return _COUNTED if self.in_flight(record.id) else _MAY_HOLD

    def in_flight(self, node: str) -> int:
        """The most requests that its engine, or the balancers together, count for it."""
        look, counted = self._engines.get(node), self.routing.in_flight.get(node, 0)
        return counted if look is None else max(counted, look.in_flight)

    def counted(self, node: str) -> int | None:
        """Requests that its engine and the balancers count now; None where nobody counts.

        An engine that did not answer counts none, and a balancer only what it shows.
        """
        look, load = self._engines.get(node), self.routing.in_flight.get(node)
        if look is None or not look.ok:
            return load
        return look.in_flight + (load or 0)

    def looked_at(self, node: str) -> float:
        """When all who may count the requests of a node were last looked at; minus infinity for never.

        Those are its engine and the balancers that can be read.
        """
        look = self._engines.get(node)
        reads = [None if look is None else look.at]
        reads += [balancer.read_at for balancer in self.routing if not balancer.error]
        return min(-math.inf if at is None else at for at in reads)

    def counted_at(self, node: str) -> float:
        """When the requests of a node were last counted; minus infinity where nobody counts them now."""
        return -math.inf if self.counted(node) is None else self.looked_at(node)

    # -- calls, and time -------------------------------------------------------------------------------

    def end_asked_for(self, node: str) -> Intent | None:
        """The call that is to end a node, as long as it is open."""
        return self._ends.get(intent_key(node, ActionKind.TERMINATE))

    def end_unconfirmed(self, node: str) -> bool:
        """True for a node whose end was asked for, and neither the call nor a list says that it ends."""
        intent = self.end_asked_for(node)
        if intent is None or intent.accepted_at is not None:
            return False
        instance = self.listed.get(node)
        return instance is None or instance.state in _NOT_ENDING

    def watched_since(self, since: float) -> float:
        """Since when this daemon has watched what began then: see `policies.evidence.sources`."""
        return watched_since(self._world, since)
