"""Whether a daemon may decide what it decides: judged by what it journals, in the truth of the world.

A part of the checker, which hears each event before its books do.
"""

from __future__ import annotations

import math

from cloud.sim.channels import Truth
from cloud.sim.counting import units
from cloud.sim.settled import Settled
from cloud.sim.world import Machine
from policies.actions import Cause
from policies.events import DrainStarted, Event, IntentOpened, Paused

_SLACK = 2.0
"""Seconds between a decision and its journal, and between the answer of a list and when it was made."""

_CALLS = ("launch", "start", "stop", "terminate")


class Decisions(Settled):
    """`pause`, `clear-sight` and `serves-on`."""

    def decided(self, event: Event, now: float) -> None:
        """One event that the daemon journals, or acts on without that."""
        if isinstance(event, IntentOpened):
            self._hands_off(event, event.node or event.token, str(event.kind))
            self._sees(event, now)
        elif isinstance(event, DrainStarted):
            if event.cause is not Cause.NOTICE:
                self._hands_off(event, event.node, f"drain ({event.cause})")
            elif event.node not in self.books.draining:
                self._serves_on(event.node, now)
        elif isinstance(event, Paused):
            self.checked["pause"] += 1

    def _hands_off(self, event: IntentOpened | DrainStarted, subject: str, what: str) -> None:
        """While an operator wants hands off, only noticed nodes drain."""
        left = self.books.paused_until - event.at
        if left > 0.0:
            self.report("pause", subject, f"{what} of {subject} is begun, and the pool is paused")

    def _sees(self, event: IntentOpened, now: float) -> None:
        """What costs money or ends a node is decided on a list that is not older than the pool's patience.

        Of a daemon that was frozen in its turn, what it asks for is judged: see `_calls_in_sight`.
        """
        machine = self._world.machines.get(event.node)
        place = event.placement if machine is None else machine.placement
        if place is None:
            return
        self.checked["clear-sight"] += 1
        daemon, slack = self._daemon(), _SLACK + self._world.faults.slow_disk
        decided_at = min(now, event.at - self._ahead())
        age = decided_at - self._listed_at(place.region)
        in_turn = daemon is not None and 0.0 <= decided_at - daemon.woke_at <= slack
        if age > self._pool.patience.stale_after + slack and not in_turn:
            text = f"{event.kind} of {event.node or event.token}: {place.region} was listed {age:.0f} s ago"
            self.report("clear-sight", event.node or event.token, text)

    def _calls_in_sight(self, call: str, subject: str, region: str) -> None:
        """No call is sent on a list that is older than that, however long ago it was decided."""
        if call not in _CALLS or not region:
            return  # it looks, or is about a machine that there never was
        self.checked["clear-sight"] += 1
        age = self._world.clock.now() - self._listed_at(region)
        if age > self._pool.patience.stale_after:
            text = f"{call} of {subject} is sent: {region} was listed {age:.0f} s ago"
            self.report("clear-sight", f"{call} {subject}", text)

    def _listed_at(self, region: str) -> float:
        return self._world.listed_at.get((self._pool.name, region), -math.inf)

    def _serves_on(self, node: str, now: float) -> None:
        """A noticed node whose requests have time yet leaves only where enough others serve."""
        self.checked["serves-on"] += 1
        machine, daemon = self._world.machine(node), self._daemon()
        if machine is None or daemon is None or not self._is_needed(machine, now):
            return
        if now - daemon.up_since < self._bounds.see_loss:
            return  # what it saw before may be over
        rules = self._pool.drain
        times = [math.nan if at is None else at for at in machine.deadlines]
        begins = min(times, default=math.nan) - rules.margin - rules.budget - self._ahead()
        if not all(map(math.isfinite, times)) or not now < begins - _SLACK:
            return
        others = units(self._pool, (m for m in self._ours() if m.id != node and self._stays(m, now)))
        if others < self._numbers.serving:
            text = f"{node} leaves {begins - now:.0f} s before it must, {others} others serve"
            self.report("serves-on", node, f"{text}, fewer than {self._numbers.serving}")

    def _is_needed(self, machine: Machine, now: float) -> bool:
        """It works, as far as a daemon can know, and nobody but the cloud wants it to go."""
        if machine.id in self.books.asked or not machine.able(now) or self._quiet(machine, now):
            return False
        since = self._active_since.get(machine.id)
        return since is not None and not self.channels.young(Truth.ROUTED, since, now)

    def _stays(self, machine: Machine, now: float) -> bool:
        """It serves beside a node that goes, or did so far as a daemon can know."""
        held = any(s.id == machine.id for table in self._tables for s in table.active())
        held = held or self.channels.young(Truth.UNROUTED, self._held_at.get(machine.id), now)
        held = held or self._seemed_to_work(machine, now)
        return held and machine.id not in self.books.draining and self._seems_able(machine, now)
