"""Watches a simulated world for what must never happen, at every effect and at every tick.

Each invariant looks at the truth of the world, not at what a daemon believes, and is as tight as the world's
pace allows: a bound that is too kind hides the bug that it was made for. `checked` counts how often each was
put to the test, so that a report can show that silence means something.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable

from cloud.sim.balancer import TargetTable
from cloud.sim.counting import enough, units
from cloud.sim.effects import Effect, Moment
from cloud.sim.invariants import Bounds, Broken, DaemonState
from cloud.sim.world import Machine, SimWorld
from policies.actions import ActionKind
from policies.events import (
    DrainEnded,
    DrainStarted,
    Event,
    IntentClosed,
    IntentOpened,
    NodeGone,
    NodeSeen,
    NoticeSeen,
    OperatorDrained,
    Outcome,
)
from policies.memory import ATTEMPTS
from policies.model import InstanceState, Market, Pool, TargetPhase


class Checker:
    """All invariants of one pool in one world. `daemon` tells of the running daemon, None when none runs.

    While `faults_on`, how soon the daemon does something does not count, only what it may never do.
    """

    def __init__(
        self,
        world: SimWorld,
        tables: Iterable[TargetTable],
        pool: Pool,
        *,
        daemon: Callable[[], DaemonState | None],
        bounds: Bounds | None = None,
    ) -> None:
        self._world, self._tables, self._pool, self._daemon = world, tuple(tables), pool, daemon
        self._bounds = bounds if bounds is not None else Bounds()
        self.broken: list[Broken] = []
        self.checked: Counter[str] = Counter()
        self.faults_on = False
        self._excused: set[str] = set()  # nodes whose drain began for a reason that may be over since
        self._draining: dict[str, float] = {}  # node -> its drain's deadline, by the world's clock
        self._ending: dict[str, str] = {}
        self._ending_since: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._asked: dict[str, float] = {}
        self._taken_back: dict[str, float] = {}
        self._unknowable: dict[str, float] = {}  # node that no daemon can know of -> until when
        self._may_go_since: dict[str, float] = {}
        self._heard: dict[str, float] = {}  # node -> when a daemon last journalled a notice of it
        self._said: set[tuple[str, str]] = set()
        self._before: dict[str, dict[str, TargetPhase]] = {}
        self._accepted: dict[str, int] = {}  # writes that each balancer took
        self._drained: dict[str, float] = {}  # node -> until when its requests may finish
        self._cuts_seen = 0
        self._active_since: dict[str, float] = {}  # node that gets requests -> since when
        self._deaf_at = 0.0  # when nobody could last read a source of notices
        self._written_at: deque[float] = deque(maxlen=100)  # when a balancer took a set
        world.effects.watchers.append(self._on_effect)
        world.on_tick.append(self._on_tick)

    def report(self, name: str, subject: str, text: str) -> None:
        """Note a violation, once per invariant and subject."""
        if (name, subject) not in self._said:
            self._said.add((name, subject))
            broken = Broken(name=name, at=self._world.clock.now(), text=text)
            self.broken.append(broken)
            self._world.trace.add("BROKEN", broken)

    def hear(self, events: Iterable[Event]) -> None:
        """What the daemon puts into its journal: which nodes it lets go, and which it takes back."""
        now = self._world.clock.now()
        for event in events:
            if isinstance(event, DrainStarted):
                self._draining[event.node] = event.deadline - self._ahead()
                machine = self._world.machines.get(event.node)
                if machine is not None and (self._may_go(machine, now) or self._quiet(machine, now)):
                    self._excused.add(event.node)
            elif isinstance(event, DrainEnded):
                self._draining.pop(event.node, None)
                self._drained.pop(event.node, None)
                self._excused.discard(event.node)
                self._taken_back[event.node] = now
            elif isinstance(event, NodeGone):
                # As far as it could see. Should the node turn up again, it is another one to the daemon.
                self._draining.pop(event.node, None)
                self._drained.pop(event.node, None)
                machine = self._world.machines.get(event.node)
                if machine is not None and machine.live and self._unlisted(machine, now):
                    self._unknowable[machine.id] = math.inf
            elif isinstance(event, NodeSeen):
                if event.node in self._unknowable:  # what was decided before may still be on its way
                    self._unknowable[event.node] = now + self._bounds.settle_calls
            elif isinstance(event, NoticeSeen):
                self._heard[event.notice.node] = now
            elif isinstance(event, OperatorDrained):
                self._asked[event.node] = now
            elif isinstance(event, IntentOpened) and event.kind is ActionKind.TERMINATE:
                self._ending[event.token] = event.node
                self._ending_since.setdefault(event.node, now)
            elif isinstance(event, IntentClosed) and event.token in self._ending:
                failed = event.outcome is Outcome.FAILED
                self._failures[event.token] = self._failures[event.token] + 1 if failed else 0
                if self._failures[event.token] >= ATTEMPTS:
                    self._ending_since.pop(self._ending.pop(event.token), None)

    def forget(self) -> None:
        """The daemon lost its memory: nobody knows any more what it promised and launched."""
        self._draining.clear()
        self._excused.clear()
        self._ending.clear()
        self._ending_since.clear()
        self._drained.clear()
        for machine in self._ours():
            machine.told_at = machine.started_at = None
            if machine.live:
                self._unknowable[machine.id] = math.inf

    # -- at effects --------------------------------------------------------------------------------

    def _on_effect(self, effect: Effect, moment: Moment) -> None:
        now = self._world.clock.now()
        if moment is Moment.BEFORE:
            if effect.kind in ("terminate", "stop"):
                self._own_only(effect)
                self._detached_first(effect.subject, now)
                self._drained_first(effect.subject, now)
                if effect.subject not in self._drained:
                    self._floor_kept(effect.subject, now)
            elif effect.kind == "apply":
                self._before = {t.name: {s.id: s.phase for s in t.targets.values()} for t in self._tables}
                self._accepted = {t.name: t.accepted for t in self._tables}
        elif effect.kind == "launch":
            self._once_per_token()
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
        for table in self._tables:
            spec = table.targets.get(node)
            active = spec is not None and spec.phase is TargetPhase.ACTIVE
            if machine is not None and machine.able(now) and active:
                self.report("detach-first", node, f"{node} is ended while {table.name} sends it requests")

    def _drained_first(self, node: str, now: float) -> None:
        """Requests in flight finish, or their deadline passed."""
        self.checked["drain-first"] += 1
        machine = self._world.machine(node)
        if machine is None or not machine.live or not machine.able(now):
            return
        held = machine.in_flight(now)
        deadline = self._drained.get(node, self._draining.get(node))
        if held and (deadline is None or now < deadline):
            left = "it never drained" if deadline is None else f"{deadline - now:.1f} s before its deadline"
            self.report("drain-first", node, f"{node} is ended with {held} requests in flight, {left}")

    def _floor_kept(self, node: str, now: float) -> None:
        """No action of ours takes the on-demand nodes below the floor."""
        self.checked["floor"] += 1
        machine = self._world.machine(node)
        if machine is None or not self._counts(machine, now) or machine.placement.market is Market.SPOT:
            return
        if self._may_leave(machine, now) or (node in self._asked and not machine.able(now)):
            return
        age = now + max(0.0, self._ahead()) - machine.launched_at  # as a daemon counts whose clock was set
        if not machine.able(now) and age > self._pool.health.boot_timeout:
            return
        if node in self._excused or now - self._ending_since.get(node, now) >= self._bounds.see_loss:
            return  # decided before, and asked for again: whether it ends already was not known
        pool = self._pool
        others = (m for m in self._ours() if m.placement.market is Market.ON_DEMAND and m.id != node)
        stay = [m for m in others if m.id not in self._leaving and self._counts(m, now, rumours=True)]
        left = units(pool, stay)
        if left < pool.on_demand_floor and self._was_whole():
            text = f"{node} leaves {left} on-demand {pool.noun()}, fewer than {pool.on_demand_floor}"
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
        out = self._leaving | {n for n, until in self._unknowable.items() if now < until}
        out |= {n for n, at in self._taken_back.items() if now - at < self._bounds.settle_calls}
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
        if units(self._pool, living) - last >= self._pool.most_units:
            names, most = ", ".join(m.id for m in living), self._pool.most_units
            self.report("bounded", names, f"{units(self._pool, living)} live, the most is {most}: {names}")

    def _set_written(self, table: TargetTable, now: float) -> None:
        """What a write of the target set may change."""
        if not self._world.faults.forgetful:
            self._written_at.append(now)
        before, told_before = self._before.get(table.name, {}), set(self._drained)
        after = {s.id: s.phase for s in table.targets.values()}
        for node, phase in after.items():
            machine = self._world.machine(node)
            if phase is TargetPhase.ACTIVE:
                alone = sum(p is TargetPhase.ACTIVE for p in after.values()) == 1  # the last that may answer
                self._may_enter(
                    node, machine, now, new=before.get(node) is not TargetPhase.ACTIVE, alone=alone
                )
            else:
                deadline = table.targets[node].drain_deadline
                if node in self._leaving and node not in self._drained and deadline is not None:
                    self._drained[node] = deadline - self._ahead()
        active_before = {n for n, phase in before.items() if phase is TargetPhase.ACTIVE}
        active_after = {n for n, phase in after.items() if phase is TargetPhase.ACTIVE}
        self._never_emptied(table, active_before, active_after, now)
        # Where a balancer forgot a set that it acknowledged, what left it then leaves it once more.
        self._enough_left(table, active_before - told_before, active_after, now)

    def _may_enter(self, node: str, machine: Machine | None, now: float, *, new: bool, alone: bool) -> None:
        """Only a ready node that does not drain gets requests, or the only one that is left."""
        self.checked["no-way-back"] += 1
        if node in self._drained and not alone:
            self.report("no-way-back", node, f"{node} drained and gets new requests")
        if new:
            self.checked["ready-first"] += 1
            if machine is None or now < machine.loaded_at:
                self.report("ready-first", node, f"{node} entered the target set before it was ready")

    def _never_emptied(self, table: TargetTable, before: set[str], after: set[str], now: float) -> None:
        """The last target that can answer is never taken out."""
        self.checked["last-target"] += 1
        if after:
            return
        daemon = self._daemon()
        answering = sorted(
            n
            for n in before
            if (m := self._world.machine(n)) is not None
            and m.able(now)
            and (daemon is None or n in daemon.known)  # what a lost journal forgot and a list lacks
        )
        if answering:
            text = f"{table.name} was emptied while {', '.join(answering)} could answer"
            self.report("last-target", table.name, text)

    def _enough_left(self, table: TargetTable, before: set[str], after: set[str], now: float) -> None:
        """A healthy node that no notice takes away leaves only when enough ready nodes stay."""
        self.checked["no-self-harm"] += 1
        chosen = []
        for node in sorted(before - after):
            machine = self._world.machine(node)
            if machine is not None and machine.able(now) and not self._may_go(machine, now):
                chosen.append(node)
                self._floor_kept(node, now)
        # A notice that only the node itself gave may be forged: it is believed of a few nodes at a time.
        rumoured = [n for n in chosen if self._world.machines[n].rumoured]
        doubtful = [
            m
            for m in self._ours()
            if m.id in self._leaving and m.id not in self._excused and m.id not in self._asked
            if m.live and m.rumoured and m.told_at is None and not self._quiet(m, now)
        ]
        few = len(doubtful) <= 1 or units(self._pool, doubtful) <= self._pool.disruption_budget
        if rumoured and few:
            chosen = [n for n in chosen if n not in rumoured]
        machines = [m for m in map(self._world.machine, sorted(after)) if m is not None]
        staying = units(self._pool, (m for m in machines if self._seems_able(m, now)))
        if chosen and staying < self._pool.replicas:
            text = f"{', '.join(chosen)} left {table.name}: {staying} stay, {self._pool.replicas} wanted"
            self.report("no-self-harm", ",".join(chosen), text)

    # -- at ticks ----------------------------------------------------------------------------------

    def _on_tick(self, now: float) -> None:
        if self._world.faults.out("stream") or self._daemon() is None:
            self._deaf_at = now
        self._requests_finish()
        daemon = self._daemon()
        if daemon is not None and not self.faults_on:
            self._tracked(daemon, now)
            self._dead_targets_go(daemon, now)
            self._noticed_leave(daemon, now)

    def _requests_finish(self) -> None:
        """A reclaim that was told in time cuts no request, unless nobody else could take them.

        A deadline is the cloud's time: a host whose clock is behind by more than a drain's margin believes
        that it has longer, and where too few others serve its node goes on serving until then.
        """
        self.checked["no-request-cut"] += 1
        now = self._world.clock.now()
        active = {s.id for t in self._tables for s in t.active()}
        self._active_since = {n: self._active_since.get(n, now) for n in active}
        for cut in self._world.cuts[self._cuts_seen :]:
            machine = self._world.machines[cut.node]
            heard_at = max(machine.told_at or 0.0, self._deaf_at)
            told = machine.told_at is not None and cut.at - heard_at >= self._bounds.told_early
            relief = any(
                m.able(now) and cut.at - since >= self._bounds.told_early
                for n, since in self._active_since.items()
                if n != cut.node and (m := self._world.machine(n)) is not None
            )
            told = told and -self._ahead() <= self._pool.drain.margin
            written = any(cut.at - self._bounds.told_early <= at <= cut.at for at in self._written_at)
            if cut.by == "reclaimed" and told and relief and (written or not self.faults_on):
                self.report(
                    "no-request-cut", cut.node, f"{cut.node}: {cut.requests} requests cut by a reclaim"
                )
        self._cuts_seen = len(self._world.cuts)

    def _tracked(self, daemon: DaemonState, now: float) -> None:
        """Every live machine of ours is known to the daemon."""
        self.checked["tracked"] += 1
        for machine in self._ours():
            since = max(daemon.up_since, machine.visible_at)
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

    def _noticed_leave(self, daemon: DaemonState, now: float) -> None:
        """A node that the cloud takes away leaves the active set at once, where enough others serve."""
        self.checked["prompt-detach"] += 1
        still: dict[str, float] = {}
        for table in self._tables:
            active = [m for m in (self._world.machine(s.id) for s in table.active()) if m is not None]
            others = units(self._pool, (m for m in active if m.able(now) and m.told_at is None))
            if others < self._pool.min_serving:
                continue
            for machine in active:
                if machine.told_at is not None and machine.live:
                    since = max(daemon.up_since, machine.told_at, self._may_go_since.get(machine.id, now))
                    still[machine.id] = since
                    if now - since > self._bounds.detach:
                        text = f"{machine.id} could have left {now - since:.1f} s ago and still gets requests"
                        self.report("prompt-detach", machine.id, text)
        self._may_go_since = still

    # -- at the end --------------------------------------------------------------------------------

    def unsettled(self, now: float) -> str:
        """What is not yet as the pool wants it, in words; empty when all is."""
        live = [m for m in self._ours() if m.live]
        standby = [m for m in live if self._aside(m)]
        working = [m for m in live if m not in standby]
        spot = [m for m in working if m.placement.market is Market.SPOT]
        others = [m for m in working if m.placement.market is Market.ON_DEMAND]
        pool, found = self._pool, []
        want = (pool.spot_wanted, pool.on_demand_floor + pool.standby.hot)
        if not (enough(pool, spot, want[0]) and enough(pool, others, want[1])):
            held = f"{units(pool, spot)} spot and {units(pool, others)} on-demand"
            found.append(f"{held} live, wanted {want[0]} and {want[1]}")
        stopped = [m for m in standby if m.state is InstanceState.STOPPED]
        if len(stopped) != len(standby) or not enough(pool, standby, pool.standby.stopped):
            found.append(f"{len(stopped)} of {len(standby)} standbys stopped, wanted {pool.standby.stopped}")
        found += [f"{m.id} is not ready" for m in working if not m.able(now)]
        names = {m.id for m in working}
        for table in self._tables:
            if set(table.targets) != names or len(table.active()) != len(names):
                held = " ".join(f"{s.id}={s.phase}" for s in table.targets.values())
                found.append(f"{table.name} holds {held or 'nothing'}")
        daemon = self._daemon()
        if daemon is None:
            found.append("no daemon runs")
        elif not {m.id for m in live} <= daemon.known:
            found.append("the daemon does not know all that lives")
        elif ended := sorted(daemon.known - {m.id for m in live}):
            found.append(f"the daemon still has {', '.join(ended)} on its books")
        return "; ".join(found)

    def _ahead(self) -> float:
        """How far ahead of the world the daemon's clock is; a daemon that is gone had the right time."""
        daemon = self._daemon()
        return 0.0 if daemon is None else daemon.ahead

    @property
    def _leaving(self) -> set[str]:
        """Nodes that the daemon lets go, by its journal."""
        return self._draining.keys() | set(self._ending.values())

    # -- helpers -----------------------------------------------------------------------------------

    def _ours(self) -> Iterable[Machine]:
        return (m for m in self._world.of(self._pool.name) if not m.foreign)

    def _unlisted(self, machine: Machine, now: float) -> bool:
        """No list has shown it for as long as a daemon is patient with a node that still answers."""
        return now - machine.listed_at >= 10.0 * self._pool.patience.vanish_grace

    def _aside(self, machine: Machine) -> bool:
        """A standby that waits. One that gets requests works, whatever its tag says."""
        return machine.set_aside and not any(machine.id in t.targets for t in self._tables)

    def _may_leave(self, machine: Machine, now: float) -> bool:
        """It will be taken away, or was to be until a moment ago."""
        if machine.doomed or machine.cancelled_at is None:
            return machine.doomed
        daemon = self._daemon()
        up_since = now if daemon is None else daemon.up_since
        return now - max(machine.cancelled_at, up_since, self._deaf_at) < self._bounds.see_loss

    def _may_go(self, machine: Machine, now: float) -> bool:
        """It may leave the set: it will be taken away, or an operator has waited for its drain for long."""
        asked = self._asked.get(machine.id)
        waited = asked is not None and now - asked >= self._pool.health.boot_timeout
        unseen = machine.unseen_since
        away = unseen is not None and now - unseen >= self._pool.health.unhealthy_after
        daemon = self._daemon()
        away = away or (daemon is not None and machine.id not in daemon.known)
        away = away or self._seen_just_now(machine, now) or machine.id in self._excused & self._leaving
        return waited or away or self._may_leave(machine, now)

    def _seen_just_now(self, machine: Machine, now: float) -> bool:
        """It answers again, and a daemon may not know yet."""
        return machine.seen_again_at is not None and now - machine.seen_again_at < self._bounds.see_loss

    def _quiet(self, machine: Machine, now: float) -> bool:
        """A daemon hears nothing of its engine, or did not until a moment ago."""
        silent = machine.silent_since is not None or machine.unseen_since is not None
        loading = now - machine.loaded_at < self._bounds.see_loss
        return silent or loading or self._seen_just_now(machine, now)

    def _seems_able(self, machine: Machine, now: float) -> bool:
        """Answers, as far as a daemon can know: what went away just now is not noticed yet."""
        if machine.able(now):
            return True
        for went_at in (machine.silent_since, machine.ended_at):
            if went_at is not None and machine.loaded_at < went_at and now - went_at < self._bounds.see_loss:
                return True
        return False

    def _counts(self, machine: Machine, now: float, *, rumours: bool = False) -> bool:
        """Counts towards the pool: it lives, answers or will, is not taken away and no standby set aside.

        `rumours`: one of which only the node itself says that it goes counts all the same.
        """
        gone_quiet = [at for at in (machine.silent_since, machine.unseen_since) if at is not None]
        silent = bool(gone_quiet) and now - min(gone_quiet) >= self._bounds.see_loss
        told = machine.told_at is not None and now - machine.told_at >= self._bounds.see_loss
        if told and self.faults_on:
            told = self._heard.get(machine.id, 0.0) >= (machine.told_at or 0.0)
        stays = not told and (rumours or not machine.rumoured) and not silent
        works = machine.state in (InstanceState.PENDING, InstanceState.RUNNING)
        return works and stays and not self._aside(machine)

    def _was_whole(self) -> bool:
        """On-demand units were launched up to the floor at least once."""
        launched = (m for m in self._ours() if m.placement.market is Market.ON_DEMAND)
        return units(self._pool, launched) >= self._pool.on_demand_floor
