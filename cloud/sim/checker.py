"""Watches a simulated world for what must never happen, at every effect and at every tick.

Each invariant looks at the truth of the world, not at what a daemon believes, and is as tight as the world's
pace allows: a bound that is too kind hides the bug that it was made for. `checked` counts how often each was
put to the test, so that a report can show that silence means something.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cloud.sim.balancer import TargetTable
from cloud.sim.books import Books
from cloud.sim.channels import Truth
from cloud.sim.counting import units
from cloud.sim.effects import Effect, Moment
from cloud.sim.invariants import Bounds, DaemonState
from cloud.sim.prompt import Prompt
from cloud.sim.replenished import Apart, Priceless, hidden
from cloud.sim.world import Machine, SimWorld
from policies.actions import ActionKind, Cause
from policies.events import DaemonStarted, Event, IntentOpened, NodeGone, NodeSeen
from policies.model import Pool, TargetPhase, TargetSpec
from policies.value import replace

_NEVER = (-math.inf, -math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a target set does: nodes that can answer and leave it empty, those that leave too few on-demand
    units (in words), and those that leave too few in all (how many). `at`: when this was so, `read_at`: when
    somebody had last read the set, and which targets were `shown`."""

    at: float
    read_at: float
    shown: frozenset[str]
    answering: frozenset[str]
    below_floor: dict[str, str]
    harmed: dict[str, int]


class Checker(Prompt):
    """All invariants of one pool in one world."""

    def __init__(
        self,
        world: SimWorld,
        tables: Iterable[TargetTable],
        pool: Pool,
        *,
        daemon: Callable[[], DaemonState | None],
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(world, tables, pool, daemon=daemon, bounds=bounds)
        self._kept: Books | None = None  # as they were before the journal could not be written
        self._unknowable: dict[str, float] = {}  # node that no daemon can know of -> until when
        self._sent: dict[tuple[str, int], Verdict] = {}  # of writes on their way, by table and generation
        self._could_leave = {}
        self._unserved = 0
        self._asked_below: dict[str, str] = {}  # node whose end was asked for -> how it was below the floor
        self._hidden_at: dict[str, float] = {}  # region -> when it could last not be listed
        self._before: dict[str, dict[str, TargetPhase]] = {}
        self._accepted: dict[str, int] = {}  # writes that each balancer took
        self._launched = 0  # machines, before the launch that lands now
        self._cuts_seen = 0
        self._entered_by: dict[str, int] = {}  # target that got requests anew -> the set's generation
        self._let_go: set[str] = set()  # nodes that left by the last set that a balancer acknowledged
        self._strayed: dict[str, tuple[float, float]] = {}  # node that got requests unasked -> since, until
        self._written: deque[tuple[float, float]] = deque(maxlen=100)  # sets: when sent, when taken
        for watch in (Priceless, Apart):
            watch(
                world,
                pool,
                daemon=daemon,
                faults_on=lambda: self.faults_on,
                bounds=self._bounds,
                checked=lambda name: self.checked.update((name,)),
                report=self.report,
            )
        world.effects.watchers.append(self._on_effect)
        world.effects.on_sent.append(self._calls_in_sight)
        world.on_tick.append(self._on_tick)
        for table in self._tables:
            table.on_sent.append(self._set_sent)

    def hear(self, events: Sequence[Event], *, written: bool, on_disk: Sequence[Event] = ()) -> None:
        """What the daemon puts into its journal: which nodes it lets go, and which it takes back.

        What was not `written` it acts on all the same, and a daemon that ends forgets it. One that starts
        beside it has read the journal without that. Where some that was heard before still waits for that,
        `on_disk` is what was written now.
        """
        if any(isinstance(event, DaemonStarted) for event in events):
            self.forget_unwritten()
        now = self._world.clock.now()
        if on_disk and self._kept is not None:
            for event in on_disk:
                self._take(self._kept, event, now)
        elif written:
            self._kept = None
        elif self._kept is None:
            self._kept = self.books.copy()
        for event in events:
            self.decided(event, now)
            self._take(self.books, event, now)
            if isinstance(event, NodeGone):
                machine = self._world.machines.get(event.node)
                if machine is not None and machine.live and self._unlisted(machine, now):
                    self._unknowable[machine.id] = math.inf
            elif isinstance(event, NodeSeen) and event.node in self._unknowable:
                # What was decided before may still be on its way.
                self._unknowable[event.node] = now + self._bounds.settle_calls
        for event in events:
            if isinstance(event, IntentOpened) and event.kind is ActionKind.TERMINATE:
                self._asked_below[event.node] = self._below_floor(event.node, now)

    def _take(self, books: Books, event: Event, now: float) -> None:
        books.take(event, now, ahead=self._ahead(), excuses=self._excuses, disturbs=self._disturbed)

    @property
    def written(self) -> Books:
        """What the journal says on disk, which is less than a daemon knows that cannot write it."""
        return (self.books if self._kept is None else self._kept).copy()

    def forget_unwritten(self) -> None:
        """The daemon ended: what never reached its journal is lost."""
        if self._kept is not None:
            # Who drains, or was put back to work, was a target set's word too, not the journal's alone.
            known = self.books.drained
            self.books, self._kept = self._kept, None
            kept = self.books.drained.keys() | self.books.leaving
            self.books.drained = {node: at for node, at in known.items() if node in kept}

    def forget(self, books: Books | None = None) -> None:
        """The journal is lost, or it is an older one again, which said no more than these `books`.

        That an operator waits, and that the end of a node was asked for, is so all the same, and a damaged
        journal may still tell of it.
        """
        asked, ending_since = self.books.asked, self.books.ending_since
        self.books = Books(asked=asked, ending_since=ending_since) if books is None else books.copy()
        self._kept, self._forgot_at = None, self._world.clock.now()
        self._let_go.clear()
        for machine in self._ours():
            machine.started_at = None
        self.nobody_knows()

    def nobody_knows(self) -> None:
        """No journal tells of the machines that there are: a list has to show each of them first."""
        self._unknowable |= {m.id: math.inf for m in self._ours() if m.live}

    def hidden(self) -> frozenset[str]:
        """Machines that no daemon can know of now."""
        return frozenset(n for n, until in self._unknowable.items() if until == math.inf)

    # -- at effects --------------------------------------------------------------------------------

    def _on_effect(self, effect: Effect, moment: Moment) -> None:
        now = self._world.clock.now()
        if moment is Moment.BEFORE:
            if effect.kind in ("terminate", "stop"):
                self._own_only(effect)
                self._detached_first(effect.subject, now)
                self._drained_first(effect.subject, now)
                if effect.subject not in self.books.drained:
                    self._floor_kept(effect.subject, now)
            elif effect.kind == "apply":
                self._before = {t.name: {s.id: s.phase for s in t.targets.values()} for t in self._tables}
                self._accepted = {t.name: t.accepted for t in self._tables}
                self._held_at |= {s.id: now for t in self._tables for s in t.active()}  # since the last tick
            elif effect.kind == "launch":
                self._launched = self._world.launches
        elif effect.kind == "launch":
            self._once_per_token()
            if self._world.launches > self._launched:  # else it was there, and was asked for again
                self._bounded(now)
        elif effect.kind == "apply":
            for table in self._tables:
                if table.name == effect.subject and table.accepted > self._accepted.get(table.name, 0):
                    self._set_written(table, now)

    def _own_only(self, effect: Effect) -> None:
        self.checked["own-only"] += 1
        machine = self._world.machine(effect.subject)
        if machine is not None and (machine.pool != self._pool.name or machine.foreign):
            self.report("own-only", effect.subject, f"{effect.kind} of {effect.subject}, which is not ours")

    def _detached_first(self, node: str, now: float) -> None:
        """Detach before terminate: a node that is ended and could answer gets no requests."""
        self.checked["detach-first"] += 1
        machine = self._world.machine(node)
        if machine is None or not machine.able(now):
            return
        for table in self._tables:
            if self._active(table, node) and not self._by_hand(table, node, now):
                self.report("detach-first", node, f"{node} is ended while {table.name} sends it requests")
            strayed = self._strayed.get(node, _NEVER)[1]
            if node in table.late(now) and now - strayed > self._bounds.see_loss + table.propagation:
                self.report(
                    "detach-first", node, f"{node} is ended while {table.name} still sends it requests"
                )

    def _active(self, table: TargetTable, node: str) -> bool:
        spec = table.targets.get(node)
        return spec is not None and spec.phase is TargetPhase.ACTIVE

    def _by_hand(self, table: TargetTable, node: str, now: float) -> bool:
        """Somebody has put it back by hand just now: no daemon can know that, nor the requests it got so."""
        lately = self.channels.young(Truth.ROUTED, self._active_since.get(node, now), now)
        return self._active(table, node) and node not in table.told and lately

    def _drained_first(self, node: str, now: float) -> None:
        """Requests in flight finish, or their deadline passed."""
        self.checked["drain-first"] += 1
        machine = self._world.machine(node)
        if machine is None or not machine.live or not machine.able(now):
            return
        held = machine.in_flight(now)
        drain = self.books.draining.get(node)
        deadline = self.books.drained.get(node, drain.deadline if drain is not None else None)
        by_hand = any(self._by_hand(table, node, now) for table in self._tables)
        by_hand = by_hand or self.channels.young(Truth.ROUTED, self._strayed.get(node, _NEVER)[0], now)
        if held and (deadline is None or (now < deadline and not by_hand)):
            left = "it never drained" if deadline is None else f"{deadline - now:.1f} s before its deadline"
            self.report("drain-first", node, f"{node} is ended with {held} requests in flight, {left}")

    def _floor_kept(self, node: str, now: float) -> None:
        """No action of ours takes the on-demand nodes below the floor, nor did when it was asked for."""
        self.checked["floor"] += 1
        text = self._below_floor(node, now)
        if text and self._asked_below.get(node, text):
            self.report("floor", node, text)

    def _once_per_token(self) -> None:
        self.checked["one-per-token"] += 1
        tokens = Counter(m.token for m in self._ours())
        for token, count in tokens.items():
            if count > 1:
                self.report("one-per-token", token, f"{count} machines were launched for {token}")

    def _bounded(self, now: float) -> None:
        """No launch makes more live than wanted, standby and surge together, but for the rest of its node.

        Nodes on their way out do not count, nor those that were until a moment ago.
        """
        self.checked["bounded"] += 1
        out = self.books.leaving | {n for n, until in self._unknowable.items() if now < until}
        out |= {n for n, at in self.books.taken_back.items() if now - at < self._bounds.settle_calls}
        living = [
            m
            for m in self._ours()
            if m.live
            and m.id not in out
            and not self._may_leave(m, now)
            and not m.rumoured
            and m.silent_since is None
        ]
        # Launches land in any order: whichever of those that start is the largest may have been the last.
        last = max((units(self._pool, [m]) for m in living if not m.able(now)), default=1)
        if units(self._pool, living) - last >= self._numbers.most:
            names, most = ", ".join(m.id for m in living), self._numbers.most
            self.report("bounded", names, f"{units(self._pool, living)} live, the most is {most}: {names}")

    def _set_written(self, table: TargetTable, now: float) -> None:
        """What a write of the target set may change."""
        sent = self._sent.get((table.name, table.generation))
        if not self._world.faults.forgetful:
            self._written.append((now if sent is None else sent.at, now))
        before, told_before = self._before.get(table.name, {}), self.books.drained.keys() | self._let_go
        after = {s.id: s.phase for s in table.targets.values()}
        for node, phase in after.items():
            machine = self._world.machine(node)
            if phase is TargetPhase.ACTIVE and node not in table.told:
                continue  # the balancer forgot this set
            if phase is TargetPhase.ACTIVE:
                alone = len(table.told) == 1  # the last that may answer
                new = before.get(node) is not TargetPhase.ACTIVE
                if new:
                    self._entered_by[node] = table.generation
                self._may_enter(node, machine, now, new=new, alone=alone, seen=sent or table)
            else:
                deadline = table.targets[node].drain_deadline
                if node in self.books.drained or deadline is None:
                    continue
                if node in self.books.leaving:
                    self.books.drained[node] = deadline - self._ahead()
                elif before.get(node) is TargetPhase.ACTIVE and node not in self.books.taken_back:
                    # The journal that told of its drain is lost; one taken back was on its way.
                    self.books.drained[node] = now + self._pool.drain.budget
        active_before = {n for n, phase in before.items() if phase is TargetPhase.ACTIVE}
        # Where a balancer forgets a set that it acknowledged, what leaves is judged by the acknowledgement:
        # that is when the daemon let it go. Later it leaves once more.
        landed = self._judge(table, active_before, told_before, set(table.told))
        if table.active():
            landed = replace(landed, answering=frozenset())
        self._departures(table, landed)
        self._acknowledged_at.update(dict.fromkeys(table.told, now))
        self._let_go = (self._let_go | (active_before - table.told)) - table.told

    def _may_enter(
        self,
        node: str,
        machine: Machine | None,
        now: float,
        *,
        new: bool,
        alone: bool,
        seen: Verdict | TargetTable,
    ) -> None:
        """Only a ready node that does not drain gets requests, or the only one that is left.

        What a balancer lost just now, or since it was last `seen`, may be put back as it was then, whoever
        had put it there; one that drained only where the daemon knows neither it nor its drain. One that it
        does not know, and was shown, may be sent as it was shown before. The last one may be put back
        whenever it got requests before.
        """
        self.checked["no-way-back"] += 1
        held = self.channels.young(Truth.UNROUTED, self._held_at.get(node), min(now, seen.read_at))
        daemon = self._daemon()
        unknown = daemon is not None and node not in daemon.known
        if node in self.books.drained and not (alone or (held and unknown)):
            self.report("no-way-back", node, f"{node} drained and gets new requests")
        before = node in self._held_at and (alone or (unknown and node in seen.shown))
        if new and not (held or before):
            self.checked["ready-first"] += 1
            if machine is None or now < machine.loaded_at:
                self.report("ready-first", node, f"{node} entered the target set before it was ready")

    def _set_sent(self, table: TargetTable, desired: Sequence[TargetSpec], generation: int) -> None:
        """A set is on its way: no daemon can call it back, so it is judged by what holds now as well.

        What an earlier daemon's set made a target, and nobody was shown since, is not known to be one.
        """
        active = {s.id for s in desired if s.phase is TargetPhase.ACTIVE}
        before = {s.id for s in table.active()}
        before -= {n for n in before - table.shown if self._entered_by.get(n, generation) < generation}
        self._sent[table.name, generation] = self._judge(
            table, before, self.books.drained.keys() | self._let_go, active
        )

    def _judge(self, table: TargetTable, before: set[str], drained: set[str], after: set[str]) -> Verdict:
        """What a set with `after` active does to the nodes that were so `before`.

        Where a balancer forgot a set that it acknowledged, what left it then, `drained`, leaves it once more.
        """
        now = self._world.clock.now()
        chosen = []
        for node in sorted(before - drained - after):
            machine = self._world.machine(node)
            if machine is not None and machine.able(now) and not self._may_go(machine, now):
                chosen.append(node)
        return Verdict(
            at=now,
            read_at=table.read_at,
            shown=table.shown,
            answering=frozenset() if after else self._answering(before, now),
            below_floor={n: text for n in chosen if (text := self._below_floor(n, now))},
            harmed=self._harmed(chosen, after, now),
        )

    def _answering(self, before: set[str], now: float) -> frozenset[str]:
        """Nodes that can answer, as far as a daemon can know that they can."""
        return frozenset(
            n
            for n in before
            if (m := self._world.machine(n)) is not None
            and self._answers(m, now)
            and not self._unheard_of(m, now)  # what a lost journal forgot and a list lacks
        )

    def _harmed(self, chosen: list[str], after: set[str], now: float) -> dict[str, int]:
        """Those of the `chosen` that leave too little, with what stays."""
        # A notice that only the node itself gave may be forged: it is believed of a few nodes at a time.
        rumoured = [n for n in chosen if self._world.machines[n].rumoured]
        doubtful = [
            m
            for m in self._ours()
            if (drain := self.books.draining.get(m.id)) is not None and drain.cause is Cause.NOTICE
            if m.id not in self.books.excused and m.id not in self.books.asked
            if m.able(now) and m.rumoured and not (self._may_leave(m, now) or self._quiet(m, now))
        ]
        few = len(doubtful) <= 1 or units(self._pool, doubtful) <= self._numbers.disturbed
        if rumoured and few:
            chosen = [n for n in chosen if n not in rumoured]
        machines = [m for m in map(self._world.machine, sorted(after)) if m is not None]
        staying = units(self._pool, (m for m in machines if self._seems_able(m, now)))
        return dict.fromkeys(chosen, staying) if staying < self._pool.replicas else {}

    def _departures(self, table: TargetTable, landed: Verdict) -> None:
        """Report what a write did that was harm when it was sent, and is when it lands."""
        sent = self._sent.pop((table.name, table.generation), landed)
        for name in ("last-target", "floor", "no-self-harm"):
            self.checked[name] += 1
        answering = sorted(landed.answering & sent.answering)
        if answering and self._pool.replicas:
            text = f"{table.name} was emptied while {', '.join(answering)} could answer"
            self.report("last-target", table.name, text)
        for node in sorted(landed.below_floor.keys() & sent.below_floor.keys()):
            self.report("floor", node, landed.below_floor[node])
        if harmed := sorted(landed.harmed.keys() & sent.harmed.keys()):
            stay = f"{landed.harmed[harmed[0]]} stay, {self._pool.replicas} wanted"
            self.report("no-self-harm", ",".join(harmed), f"{', '.join(harmed)} left {table.name}: {stay}")

    # -- at ticks ----------------------------------------------------------------------------------

    def _on_tick(self, now: float) -> None:
        daemon = self._daemon()
        if daemon is None or self._world.faults.out("stream"):
            self._deaf_at = now
        self._hidden_at.update(dict.fromkeys(hidden(self._world), now))
        self._requests_finish()
        if daemon is None:
            self._could_leave.clear()
            self._unserved = sum(table.unserved for table in self._tables)
            return
        self._noticed_leave(daemon, now)
        self._nobody_waits_in_vain(daemon, now)
        if not self.faults_on:
            self._tracked(daemon, now)
            if not daemon.failsafe:
                self._dead_targets_go(daemon, now)

    def _requests_finish(self) -> None:
        """A reclaim that was told in time cuts no request, unless nobody else could take them.

        A deadline is the cloud's time: a host whose clock is behind by more than a drain's margin believes
        that it has longer, and where too few others serve its node goes on serving until then. A set that was
        sent before a drain has to begin may keep the node.
        """
        self.checked["no-request-cut"] += 1
        now = self._world.clock.now()
        latest = min(self._bounds.told_early, self._pool.drain.budget + self._pool.drain.margin)
        active: set[str] = set()
        for table in self._tables:
            for spec in table.active():
                active.add(spec.id)
                self._held_at[spec.id] = now
                if spec.id not in table.told:
                    self._strayed[spec.id] = (self._active_since.get(spec.id, now), now)
        if active != self._active_since.keys():
            self._active_since = {n: self._active_since.get(n, now) for n in active}
        for cut in self._world.cuts[self._cuts_seen :]:
            machine = self._world.machines[cut.node]
            in_time = any(
                told.ends <= cut.at and told.at >= self._forgot_at
                for told in machine.told
                if told.sure and cut.at - max(told.at, self._deaf_at) >= self._bounds.told_early
            )
            relief = any(
                m.able(now) and cut.at - since >= self._bounds.told_early
                for n, since in self._active_since.items()
                if n != cut.node and (m := self._world.machine(n)) is not None
            )
            in_time = in_time and -self._ahead() <= self._pool.drain.margin
            in_time = in_time and cut.at >= self._unknowable.get(cut.node, -math.inf)
            drains, finishes = cut.at - latest, cut.at - self._bounds.finish
            written = any(drains <= sent and taken <= finishes for sent, taken in self._written)
            strayed = self._strayed.get(cut.node, _NEVER)[1] > cut.at - self._bounds.told_early
            avoidable = not self.faults_on or (written and not strayed)
            if cut.by == "reclaimed" and in_time and relief and avoidable:
                self.report(
                    "no-request-cut", cut.node, f"{cut.node}: {cut.requests} requests cut by a reclaim"
                )
        self._cuts_seen = len(self._world.cuts)

    def _tracked(self, daemon: DaemonState, now: float) -> None:
        """Every live machine of ours is known to the daemon."""
        self.checked["tracked"] += 1
        for machine in self._ours():
            unlisted_at = self._hidden_at.get(machine.placement.region, -math.inf)
            since = max(daemon.up_since, machine.visible_at, unlisted_at)
            if machine.live and machine.id not in daemon.known and now - since > self._bounds.track:
                self.report("tracked", machine.id, f"{machine.id} lives and the daemon does not know it")

    def _dead_targets_go(self, daemon: DaemonState, now: float) -> None:
        """No target points at an ended machine for long."""
        self.checked["dead-target"] += 1
        for table in self._tables:
            for node in table.targets:
                machine = self._world.machine(node)
                ended = machine.ended_at if machine is not None else daemon.up_since
                if ended is not None and now - max(daemon.up_since, ended) > self._bounds.forget_target:
                    self.report("dead-target", node, f"{table.name} still holds {node}, which has ended")
