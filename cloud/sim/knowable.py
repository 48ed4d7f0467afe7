"""What a daemon can know of a simulated world: the truth less what is too new, or hidden from any daemon.

The base of the checker, which demands nothing that no daemon could do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

from cloud.sim.balancer import TargetTable
from cloud.sim.books import Books
from cloud.sim.channels import Channels, Truth
from cloud.sim.counting import units
from cloud.sim.invariants import Bounds, Broken, DaemonState
from cloud.sim.numbers import Numbers
from cloud.sim.world import Machine, SimWorld
from policies.model import InstanceState, Market, Pool


class Knowable:
    """One pool in one world, as the daemon that runs can know it. `daemon` tells of it, None when none runs.

    `books` say what its journal says. While `faults_on`, how soon it does something does not count, only what
    it may never do.
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
        self._numbers = Numbers.of(pool)
        self.channels = Channels(world, self._tables, self._bounds, daemon=daemon)
        self.broken: list[Broken] = []
        self.checked: Counter[str] = Counter()
        self.on_broken: list[Callable[[], object]] = []
        self._said: set[tuple[str, str]] = set()
        self.faults_on = False
        self.books = Books()
        self._forgot_at = -math.inf  # when a journal was last lost
        self._deaf_at = 0.0  # when nobody could last read a source of notices
        self._active_since: dict[str, float] = {}  # node that gets requests -> since when
        self._held_at: dict[str, float] = {}  # node that got requests -> when it last did
        self._acknowledged_at: dict[str, float] = {}  # node -> when a balancer last took it

    def report(self, name: str, subject: str, text: str) -> None:
        """Note a violation, once per invariant and subject."""
        if (name, subject) not in self._said:
            self._said.add((name, subject))
            broken = Broken(name=name, at=self._world.clock.now(), text=text)
            self.broken.append(broken)
            self._world.trace.add("BROKEN", broken)
            for told in self.on_broken:
                told()

    def _ahead(self) -> float:
        """How far ahead of the world the daemon's clock is; a daemon that is gone had the right time."""
        daemon = self._daemon()
        return 0.0 if daemon is None else daemon.ahead

    def _ours(self) -> Iterable[Machine]:
        return (m for m in self._world.of(self._pool.name) if not m.foreign)

    def _unlisted(self, machine: Machine, now: float) -> bool:
        """No list has shown it for as long as a daemon is patient: less where no look was answered.

        What has answered again just now may have been given up just before.
        """
        grace = self._pool.patience.vanish_grace
        quiet = self._quiet(machine, now) and now - machine.answered_at >= grace
        return now - machine.listed_at >= (grace if quiet else 10.0 * grace)

    def _aside(self, machine: Machine, now: float) -> bool:
        """A standby that waits. One that gets requests, or did just now, works, whatever its tag says."""
        held = self.channels.young(Truth.ROUTED, self._held_at.get(machine.id), now)
        return machine.set_aside and not (held or any(machine.id in t.targets for t in self._tables))

    def _told(self, machine: Machine) -> float | None:
        """When the cloud told of its end; None where it told nothing, or only what a lost journal knew."""
        times = [machine.told_at, *(told.at for told in machine.told if told.sure)]
        return min((at for at in times if at is not None and at >= self._forgot_at), default=None)

    def _excuses(self, node: str) -> bool:
        """It may leave whatever stays, or no daemon can know that it could serve."""
        machine, now = self._world.machines.get(node), self._world.clock.now()
        return machine is not None and (self._may_go(machine, now) or self._quiet(machine, now))

    def _disturbed(self, node: str) -> bool:
        """It works and nothing takes it away: a drain by choice disturbs it.

        One that came back to life just now was dead, as far as anybody knows.
        """
        machine, now = self._world.machine(node), self._world.clock.now()
        if machine is None or machine.going or not self._answers(machine, now):
            return False
        return any(s.id == node for t in self._tables for s in t.active())

    def _answers(self, machine: Machine, now: float) -> bool:
        """It can answer, and did not come back to life just now."""
        return machine.able(now) and not self.channels.young(Truth.ANSWERS_AGAIN, machine.revived_at, now)

    def _may_leave(self, machine: Machine, now: float) -> bool:
        """It will be taken away, or was to be until a moment ago."""
        if machine.going or machine.cancelled_at is None:
            return machine.going
        if self.faults_on and self.books.told.get(machine.id):
            return True  # that it was taken back waits in a source
        return self.channels.unknown(Truth.TAKEN_BACK, machine.cancelled_at, now)

    def _may_go(self, machine: Machine, now: float) -> bool:
        """It may leave the set: it will be taken away, or an operator has waited for its drain for long."""
        unseen = machine.unseen_since
        away = unseen is not None and now - unseen >= self._pool.health.unhealthy_after
        away = away or self._unheard_of(machine, now) or self._seen_just_now(machine, now)
        away = away or machine.id in self.books.excused & self.books.leaving
        return self._waited_for(machine, now) or away or self._may_leave(machine, now)

    def _unheard_of(self, machine: Machine, now: float) -> bool:
        """The daemon does not know it, and no list has told it for long enough that it lives."""
        daemon = self._daemon()
        if daemon is None or machine.id in daemon.known:
            return False
        unlisted = now - machine.listed_at > self._pool.patience.vanish_grace
        return unlisted or self.channels.unknown(Truth.LIVES, machine.visible_at, now)

    def _waited_for(self, machine: Machine, now: float) -> bool:
        """An operator has waited for its drain for as long as a replacement may take, and gets it."""
        asked = self.books.asked.get(machine.id)
        return asked is not None and now - asked >= self._pool.health.boot_timeout

    def _seen_just_now(self, machine: Machine, now: float) -> bool:
        """It answers again, and a daemon may not know yet."""
        return self.channels.young(Truth.ANSWERS_AGAIN, machine.seen_again_at, now)

    def _quiet(self, machine: Machine, now: float) -> bool:
        """A daemon hears nothing of its engine, or did not until a moment ago."""
        silent = machine.silent_since is not None or machine.unseen_since is not None
        looked_at = math.inf if machine.addressed_at is None else machine.addressed_at
        loading = self.channels.young(Truth.ANSWERS, max(machine.loaded_at, looked_at), now)
        return silent or loading or self._seen_just_now(machine, now)

    def _seems_able(self, machine: Machine, now: float) -> bool:
        """Answers, as far as a daemon can know: what went away just now is not noticed yet."""
        went = self.channels.young(Truth.SILENT, machine.quiet_from, now)
        return (went and machine.loaded_at < machine.quiet_from) or machine.able(now)

    def _counts(self, machine: Machine, now: float, *, in_doubt: bool = False) -> bool:
        """Counts towards the pool: it lives, answers or will, is not taken away and no standby set aside.

        `in_doubt`: so does one of which only the node itself says that it goes, or that went away just now,
        and a standby of which a balancer said just now, or when anybody could last read it, that it gets
        requests, though it forgot that.
        """
        gone_quiet = [at for at in (machine.silent_since, machine.unseen_since) if at is not None]
        silent = bool(gone_quiet) and not self.channels.young(Truth.SILENT, min(gone_quiet), now)
        told_at = self._told(machine)
        told = told_at is not None and not self.channels.young(Truth.NOTICED, told_at, now)
        if told and self.faults_on:
            known = self.books.told.get(machine.id, set())
            told = any((notice.source, notice.notice) in known for notice in machine.told)
        stays = not told and (in_doubt or not machine.rumoured) and not silent
        works = machine.state in (InstanceState.PENDING, InstanceState.RUNNING)
        works = works or (in_doubt and self.channels.young(Truth.SILENT, machine.quiet_from, now))
        aside = self._aside(machine, now) and not (in_doubt and self._seemed_to_work(machine, now))
        return works and stays and not aside

    def _seemed_to_work(self, machine: Machine, now: float) -> bool:
        """A balancer acknowledged it just now, or had it when somebody last read its set."""
        young, held_at = self.channels.young, self._held_at.get(machine.id)
        as_read = any(young(Truth.UNROUTED, held_at, table.read_at) for table in self._tables)
        return as_read or young(Truth.ROUTED, self._acknowledged_at.get(machine.id), now)

    def _was_whole(self) -> bool:
        """On-demand units were launched up to the floor at least once."""
        launched = (m for m in self._ours() if m.placement.market is Market.ON_DEMAND)
        return units(self._pool, launched) >= self._numbers.floor

    def _below_floor(self, node: str, now: float) -> str:
        """Says that too few on-demand units stay without a node, or nothing."""
        machine = self._world.machine(node)
        if machine is None or not self._counts(machine, now) or machine.placement.market is Market.SPOT:
            return ""
        if self._may_leave(machine, now) or self._waited_for(machine, now):
            return ""
        if node in self.books.asked and not machine.able(now):
            return ""
        if not machine.able(now) and now - machine.launched_at > self._pool.health.boot_timeout:
            return ""
        asked_at = self.books.ending_since.get(node, now)
        if node in self.books.excused or not self.channels.young(Truth.ASKED_TO_END, asked_at, now):
            return ""  # decided before, and asked for again: whether it ends already was not known
        others = (m for m in self._ours() if m.placement.market is Market.ON_DEMAND and m.id != node)
        stay = [m for m in others if m.id not in self.books.leaving and self._counts(m, now, in_doubt=True)]
        if machine.able(now):  # what still boots does not stand in for a node that works
            stay = [m for m in stay if self._seems_able(m, now)]
        left, floor = units(self._pool, stay), self._numbers.floor
        if left < floor and self._was_whole():
            return f"{node} leaves {left} on-demand {self._pool.noun()}, fewer than {floor}"
        return ""
