"""Whether a daemon does in time what it can do: judged at every tick, also while faults strike.

A part of the checker. Where faults strike, time runs from when the channels that it takes got through again.
"""

from __future__ import annotations

import math

from cloud.sim.balancer import TargetTable
from cloud.sim.channels import Channel, Truth
from cloud.sim.counting import units
from cloud.sim.decisions import Decisions
from cloud.sim.invariants import DaemonState
from cloud.sim.notices import METADATA
from cloud.sim.world import Machine
from policies.actions import Cause

_RETRY = 5.0
"""Seconds after which a write that failed is tried again at the latest."""


class Prompt(Decisions):
    """`prompt-detach`, `one-source` and `unserved`."""

    _could_leave: dict[str, float]  # noticed node that gets requests -> since when it need not
    _unserved: int  # requests so far that nobody took

    def _latency(self) -> float:
        """Seconds that a notice and a write are on their way at most."""
        return 3.0 * self._world.pace.latency[1]

    def _noticed_leave(self, daemon: DaemonState, now: float) -> None:
        """A node that is taken away leaves the active set at once, where enough others serve."""
        self.checked["prompt-detach"] += 1
        self.checked["one-source"] += 1
        before, self._could_leave = self._could_leave, {}
        if abs(daemon.ahead) > self._pool.drain.margin:
            return  # it takes a deadline for another one
        clear = self.channels.clear_since(Channel.NOTICES)
        if self.faults_on:
            writes = self.channels.clear_since(Channel.WRITES) + _RETRY
            clear = max(clear, writes, self.channels.clear_since(Channel.LOOKS))
        for table in self._tables:
            active = [m for m in (self._world.machine(s.id) for s in table.active()) if m is not None]
            others = units(self._pool, (m for m in active if self._surely_serves(m, now)))
            if others < self._numbers.serving:
                continue
            for machine in active:
                told_at, name = self._believed(machine, daemon)
                if told_at is None or not machine.live or not self._moves(table, machine, daemon, now):
                    continue
                since = max(clear, told_at, before.get(machine.id, now))
                self._could_leave[machine.id] = since
                if now - since > self._bounds.detach + self._latency():
                    text = f"{machine.id} could have left {now - since:.1f} s ago and still gets requests"
                    self.report(name, machine.id, text)

    def _surely_serves(self, machine: Machine, now: float) -> bool:
        """It serves, and where faults strike for so long that any daemon knows it."""
        if not machine.able(now) or machine.told_at is not None or machine.told_by:
            return False
        if not self.faults_on:
            return True
        quiet = machine.rumoured or self._quiet(machine, now) or machine.id in self.books.leaving
        return not (quiet or self.channels.young(Truth.ROUTED, self._active_since.get(machine.id, now), now))

    def _moves(self, table: TargetTable, machine: Machine, daemon: DaemonState, now: float) -> bool:
        """The daemon knows the node, and can have seen that it gets requests."""
        if not self.faults_on:
            return True
        put_back = machine.id not in table.told or self.channels.young(
            Truth.ROUTED, self._active_since.get(machine.id, now), now
        )
        return machine.id in daemon.known and machine.able(now) and not put_back

    def _believed(self, machine: Machine, daemon: DaemonState) -> tuple[float | None, str]:
        """When the cloud told of its end, or the node did as the only one: that is believed as well."""
        told_at = self._told(machine)
        if told_at is not None:
            return told_at, "prompt-detach" if len(machine.told_by) != 1 else "one-source"
        alone = machine.told_by.keys() == {METADATA} and not any(
            m.id != machine.id and (m.rumoured or self._drains_for_a_notice(m))
            for m in self._ours()
            if m.id in daemon.known
        )
        return machine.told_by[METADATA] if alone else None, "one-source"

    def _drains_for_a_notice(self, machine: Machine) -> bool:
        drain = self.books.draining.get(machine.id)
        return drain is not None and drain.cause is Cause.NOTICE

    def _nobody_waits_in_vain(self, daemon: DaemonState, now: float) -> None:
        """No request finds nobody while a node is ready that should have been a target for long."""
        unserved = sum(table.unserved for table in self._tables)
        lost, self._unserved = unserved - self._unserved, unserved
        self.checked["unserved"] += 1
        if not lost or daemon.failsafe:
            return
        clear = self.channels.clear_since(Channel.LISTS, Channel.LOOKS, Channel.SETS, Channel.WRITES)
        clear = max(clear + (_RETRY if self.faults_on else 0.0), self._forgot_at)
        late = now - self._bounds.see_loss - self._bounds.enter - self._latency()
        late -= max(table.propagation for table in self._tables)
        if clear > late:
            return
        idle = [m.id for m in self._ours() if m.id in daemon.known and self._ready_since(m, now) <= late]
        if idle:
            text = f"{lost} requests found nobody, and {', '.join(idle)} could have answered"
            self.report("unserved", ",".join(idle), text)

    def _ready_since(self, machine: Machine, now: float) -> float:
        """Since when it should be a target; infinite where it should not."""
        leaves = (
            machine.going or machine.rumoured or machine.id in self.books.leaving | self.books.asked.keys()
        )
        if leaves or machine.addressed_at is None or not machine.able(now) or machine.set_aside:
            return math.inf
        if machine.unseen_since is not None:
            return math.inf
        again = (machine.started_at, machine.seen_again_at, machine.revived_at, machine.cancelled_at)
        since = max(machine.loaded_at, machine.addressed_at, *(at for at in again if at is not None))
        back, held = self.books.taken_back.get(machine.id, since), self._held_at.get(machine.id, since)
        return max(since, back, held)
