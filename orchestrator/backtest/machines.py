"""The simulated cloud of a replay: machines, launches that a full zone refuses, reclaims with their notices.

World rules:

* A spot launch succeeds if fewer nodes are held in the zone than its capacity at that instant. A refusal is
  known at once and is free. On-demand launches always succeed and on-demand nodes never go away.
* A node costs money from launch to its end and is ready after the start time of its kind.
* When a zone's capacity falls below the nodes held there, the surplus goes. Victims are drawn by the seed.
  They get a notice `notice` seconds before, or as soon as they exist if that is later. A share of notices
  comes late, a share never.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from orchestrator.backtest.scenario import Scenario, Tape
from policies.model import (
    Confidence,
    Instance,
    InstanceState,
    Market,
    Notice,
    NoticeKind,
    Placement,
    StandbyKind,
)

PROVIDER = "replay"

_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long things take in the replayed world, in seconds; shares of notices that fail.

    `standby_start`: from starting a stopped standby to ready. `storage`: USD/h of a stopped standby, as a
    share of its running price.
    """

    spot_start: float = 180.0
    on_demand_start: float = 180.0
    standby_start: float = 75.0
    storage: float = 0.0
    notice: float = 120.0
    late_share: float = 0.0
    late_notice: float = 30.0
    missing_share: float = 0.0
    youngest_noticed: float = 60.0  # age below which a machine gets no notice: it is not up yet


@dataclass(slots=True)
class Machine:
    """One simulated machine. `taken_at`: when the cloud takes it; `noticed`: a notice was sent."""

    id: str
    token: str
    placement: Placement
    tape: Tape
    launched_at: float
    ready_at: float
    billed_from: float
    standby: StandbyKind | None
    taken_at: float = math.inf
    state: InstanceState = InstanceState.RUNNING
    row: Instance | None = field(default=None)

    @property
    def spot(self) -> bool:
        """Bought on the spot market."""
        return self.placement.market is Market.SPOT

    @property
    def running(self) -> bool:
        """The machine runs and costs money."""
        return self.state is InstanceState.RUNNING


class Machines:
    """All machines of one replay. Times are seconds since the scenario's begin and only rise."""

    def __init__(self, scenario: Scenario, timings: Timings, *, pool: str, seed: int) -> None:
        self._scenario, self.timings, self._pool = scenario, timings, pool
        self._random = random.Random(seed)  # noqa: S311 - a seeded draw of victims
        self._count = 0
        self.alive: dict[str, Machine] = {}
        self.held: dict[str, int] = {tape.zone: 0 for tape in scenario.tapes}
        self._by_zone = {tape.zone: tape for tape in scenario.tapes}
        self._late: list[tuple[float, str]] = []  # notices decided on and not sent yet

    # -- what we do ------------------------------------------------------------------------------------

    def launch(
        self, now: float, token: str, placement: Placement, standby: StandbyKind | None
    ) -> Machine | None:
        """A new machine, or None when the zone has no room."""
        tape = self._by_zone[placement.zone]
        spot = placement.market is Market.SPOT
        if spot and self.held[tape.zone] >= tape.capacity(now):
            return None
        self._count += 1
        start = self.timings.spot_start if spot else self.timings.on_demand_start
        machine = Machine(
            id=f"n{self._count}",
            token=token,
            placement=placement,
            tape=tape,
            launched_at=now,
            ready_at=now + start,
            billed_from=now,
            standby=standby,
        )
        self.alive[machine.id] = machine
        self.held[tape.zone] += spot
        return machine

    def end(self, machine: Machine) -> None:
        """The machine exists no more. Charge it first."""
        machine.state, machine.row = InstanceState.TERMINATED, None
        del self.alive[machine.id]
        self.held[machine.placement.zone] -= machine.spot

    def stop(self, machine: Machine) -> None:
        """Stop a machine; it costs only storage from now on. Charge it first."""
        machine.state, machine.row, machine.ready_at = InstanceState.STOPPED, None, math.inf

    def start(self, now: float, machine: Machine) -> None:
        """Start a stopped machine. Charge it first."""
        machine.state, machine.row, machine.standby = InstanceState.RUNNING, None, None
        machine.ready_at = now + self.timings.standby_start

    def dollars(self, machine: Machine, begin: float, end: float) -> float:
        """What the machine costs from `begin` to `end` in the state that it is in."""
        if machine.spot:
            return machine.tape.dollars(begin, end)
        share = 1.0 if machine.running else self.timings.storage
        return share * machine.tape.on_demand_price * max(0.0, end - begin) / _HOUR

    # -- what the cloud does ---------------------------------------------------------------------------

    def due(self, now: float) -> list[Machine]:
        """Machines that the cloud takes now; the newest go where no notice could be given."""
        found = [m for m in self.alive.values() if m.taken_at <= now]
        for tape in self._scenario.tapes:
            if self.held[tape.zone] <= tape.capacity(now):
                continue
            staying = [m for m in self.alive.values() if m.spot and m.tape is tape and m.taken_at > now]
            over = len(staying) - tape.capacity(now)
            if over > 0:
                staying.sort(key=lambda m: (m.taken_at == math.inf, m.launched_at))
                found += staying[-over:]
        return found

    def draw_losses(self, now: float) -> list[Notice]:
        """Draw the victims of every loss of capacity in the coming notice time; the notices sent now."""
        found: list[Notice] = []
        for tape in self._scenario.tapes:
            held = self.held[tape.zone]
            if held == 0 or tape.first_below(held, now) > now + self.timings.notice:
                continue
            mine = [m for m in self.alive.values() if m.spot and m.tape is tape]
            for at, capacity in tape.changes(now, now + self.timings.notice):
                over = sum(m.taken_at > at for m in mine) - capacity
                if over <= 0:
                    continue
                free = [m for m in mine if m.taken_at == math.inf and self._up(now, m)]
                self._random.shuffle(free)
                for machine in free[:over]:
                    machine.taken_at = at
                    found += self._notices(now, machine)
        return found + self._sent_late(now)

    def _up(self, now: float, machine: Machine) -> bool:
        return now >= machine.launched_at + self.timings.youngest_noticed

    def _notices(self, now: float, machine: Machine) -> list[Notice]:
        timings = self.timings
        luck = self._random.random() if timings.missing_share + timings.late_share > 0 else 1.0
        if luck < timings.missing_share:
            return []
        if luck < timings.missing_share + timings.late_share:
            send = max(now, machine.taken_at - timings.late_notice)
            if send > now:
                self._late.append((send, machine.id))
                return []
        return [_notice(now, machine)]

    def _sent_late(self, now: float) -> list[Notice]:
        if not self._late:
            return []
        ripe = [(at, node) for at, node in self._late if at <= now]
        self._late = [(at, node) for at, node in self._late if at > now]
        return [_notice(now, self.alive[node]) for _, node in ripe if node in self.alive]

    def next_event(self, now: float) -> float:
        """When the cloud or a machine does something next: ready, reclaim, notice."""
        found = math.inf
        for machine in self.alive.values():
            if now < machine.ready_at < found:
                found = machine.ready_at
            if now < machine.taken_at < found:
                found = machine.taken_at
            up = machine.launched_at + self.timings.youngest_noticed
            if machine.spot and now < up < found:
                found = up
        for tape in self._scenario.tapes:
            held = self.held[tape.zone]
            if held:
                # Noticed machines are among the held: this may be too early, never too late.
                drop = tape.first_below(held, now + self.timings.notice)
                found = min(found, drop - self.timings.notice, tape.first_below(held, now))
        return min([found, *(at for at, _ in self._late)])

    def described(self, now: float, machine: Machine) -> Instance:
        """The machine as the cloud describes it."""
        price = machine.tape.price(now) if machine.spot else machine.tape.on_demand_price
        row = machine.row
        if row is None or row.price != price:
            row = machine.row = Instance(
                id=machine.id,
                pool=self._pool,
                token=machine.token,
                placement=machine.placement,
                state=machine.state,
                address=f"{machine.id}:1",
                launched_at=machine.launched_at,
                price=price,
                standby=machine.standby,
            )
        return row


def _notice(now: float, machine: Machine) -> Notice:
    return Notice(
        id=f"{machine.id}@{machine.taken_at:.0f}",
        kind=NoticeKind.INTERRUPTION,
        node=machine.id,
        deadline=machine.taken_at,
        source="replay",
        confidence=Confidence.CONFIRMED,
        seen_at=now,
    )
