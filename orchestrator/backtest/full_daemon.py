"""The whole daemon on a recorded market: loop, observer, actuator, inbox and journal, on virtual time.

Slower than the replay of the decision code (`replay.py`) by a factor of some hundred, and nearer to what
runs: lists are polled and late, engines are probed, drains wait for requests, calls take time, the journal is
on disk, and the checker of the simulation watches every second. The market and its reclaims follow the rules
of `machines.py`, the score those of `score.py`, looked at once a second. What differs from the replay:

* a node is ready for the pool when a probe has seen it, up to a probe interval later than here;
* a drained node under notice is ended before the cloud takes it. It still counts as ready until then, as in
  the replay, but costs nothing any more.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cloud.logger import structlog
from cloud.sim.invariants import Broken
from cloud.sim.world import Machine, Pace, Sale, SimWorld
from orchestrator.backtest.machines import PROVIDER, Timings
from orchestrator.backtest.scenario import HOUR, Scenario, Tape
from orchestrator.backtest.score import WARM_UP, Score, Tally
from orchestrator.backtest.timeline import TimelineRecorder
from orchestrator.config.load import Config
from orchestrator.config.tables.daemon import DaemonConfig
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.simulation.simulate import Simulation
from policies.model import InstanceState, Market, Placement

_BOOT = 0.3
"""Share of a start until the machine runs; then its engine loads."""

_TELL_EVERY = 120  # ticks


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The parts of a configuration that the daemon runs on, in a form that goes to another process."""

    daemon: DaemonConfig
    name: str
    pool: PoolConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOutcome:
    """A finished run: the score, the share of wanted capacity that took new requests, broken invariants."""

    score: Score
    serving_availability: float
    broken: tuple[Broken, ...]


def play(
    scenario: Scenario,
    settings: Settings,
    *,
    timings: Timings,
    seed: int,
    recorder: TimelineRecorder,
    progress: Callable[[float], None] = lambda _: None,
) -> DaemonOutcome:
    """Run the daemon against a scenario and score it. The same arguments give the same result anywhere."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-simulate-") as folder:
        state = Path(folder)
        daemon = settings.daemon.model_copy(
            update={"state_dir": state, "socket": state / "daemon.sock", "listen": None}
        )
        config = Config(daemon=daemon, pools=MappingProxyType({settings.name: settings.pool}))
        with _silent():
            return _Run(scenario, config, timings, seed, recorder, progress).run()


@contextmanager
def _silent() -> Iterator[None]:
    """The daemon logs to nowhere: its lines would be of another time and place."""
    kept = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**kept)


class _Run:
    """One run. It hears every tick of the simulated world: the market acts, then is counted."""

    def __init__(
        self,
        scenario: Scenario,
        config: Config,
        timings: Timings,
        seed: int,
        recorder: TimelineRecorder,
        progress: Callable[[float], None],
    ) -> None:
        self._scenario, self._timings, self._recorder, self._progress = scenario, timings, recorder, progress
        self._random = random.Random(f"market/{seed}")  # noqa: S311 - a seeded draw of victims
        self._sim = Simulation(
            config,
            sales=[_sale(scenario, tape, market) for tape in scenario.tapes for market in Market],
            seed=seed,
            pace=_pace(timings),
            longest=scenario.seconds + HOUR,
        )
        self._tapes = {tape.zone: tape for tape in scenario.tapes}
        self._places = {t.zone: _placement(scenario, t, Market.SPOT) for t in scenario.tapes}
        self._wanted = config.wanted.replicas
        self._began = self._sim.clock.now()
        self._begin = min(WARM_UP, scenario.seconds)
        self._tally = Tally(begin=self._begin, base_price=scenario.on_demand_price)
        self._last = 0.0  # when it was counted last
        self._ready: dict[str, bool] = {}  # ready nodes since then, and whether they take new requests
        self._reclaimed: dict[str, bool] = {}  # by node: whether it is ready, or was when it ended
        self._seen: set[str] = set()
        self._ticks = 0

    def run(self) -> DaemonOutcome:
        """Play the whole scenario."""
        self._sim.world.on_tick.append(self._tick)
        outcome = self._sim.run(self._script)
        return DaemonOutcome(
            score=dataclasses.replace(self._tally.score(), trace_hash=outcome.digest),
            serving_availability=self._tally.serving_availability,
            broken=outcome.broken,
        )

    async def _script(self, sim: Simulation) -> None:
        process = sim.boot()
        await sim.clock.sleep(self._scenario.seconds)
        self._count(self._scenario.seconds)
        loop = process.loop(sim.pool.name)
        self._tally.steps = loop.turns if loop is not None else 0

    # -- every tick ------------------------------------------------------------------------------------

    @property
    def _world(self) -> SimWorld:
        return self._sim.world

    def _tick(self, clock: float) -> None:
        now = min(clock - self._began, self._scenario.seconds)
        self._count(now)
        in_zone = self._held()
        for tape in self._scenario.tapes:
            self._sell(now, tape)
            held = in_zone.get(tape.zone, [])
            if held and tape.first_below(len(held), now) <= now + self._timings.notice:
                self._draw_losses(now, tape, held)
            if len(held) > tape.capacity(now):
                self._take(now, tape, held)
        self._look(now)
        self._ticks += 1
        if self._ticks % _TELL_EVERY == 0:
            self._progress(now / self._scenario.seconds)

    def _sell(self, now: float, tape: Tape) -> None:
        place = self._places[tape.zone]
        self._world.prices[place] = tape.price(now)
        if self._world.capacity[place] != tape.capacity(now):
            self._world.set_capacity(place, tape.capacity(now))

    def _held(self) -> dict[str, list[Machine]]:
        """Spot machines that take room in each zone."""
        found: dict[str, list[Machine]] = {}
        for machine in self._world.of(self._sim.pool.name):
            if machine.live and machine.placement.market is Market.SPOT:
                found.setdefault(machine.placement.zone, []).append(machine)
        return found

    def _draw_losses(self, now: float, tape: Tape, held: list[Machine]) -> None:
        """Draw the victims of every loss in the coming notice time, as `Machines.draw_losses` does."""
        for at, capacity in tape.changes(now, now + self._timings.notice):
            over = sum(self._until(m) > at for m in held) - capacity
            if over <= 0:
                continue
            up = self._began + now - self._timings.youngest_noticed
            free = [m for m in held if m.reclaim_at is None and m.launched_at <= up]
            self._random.shuffle(free)
            for machine in free[:over]:
                self._sim.board.reclaim(
                    machine.id, after=at - now, notice=at - now, sources=self._sim.sources
                )
                self._recorder.noticed(now, machine.id)

    def _take(self, now: float, tape: Tape, held: list[Machine]) -> None:
        """The newest go where no notice could be given."""
        staying = [m for m in held if self._until(m) > now]
        staying.sort(key=lambda m: (m.reclaim_at is None, m.launched_at))
        over = len(staying) - tape.capacity(now)
        for machine in staying[len(staying) - over :] if over > 0 else ():
            self._world.reclaim(machine.id)

    def _until(self, machine: Machine) -> float:
        """When the cloud takes a machine; infinite while it does not mean to."""
        return math.inf if machine.reclaim_at is None else machine.reclaim_at - self._began

    # -- counting --------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Who is ready from now on."""
        clock = self._began + now
        process = self._sim.running
        loop = process.loop(self._sim.pool.name) if process is not None else None
        records = loop.memory.nodes if loop is not None else {}
        ready: dict[str, bool] = {}
        for machine in self._world.of(self._sim.pool.name):
            if machine.id not in self._seen:
                self._launched(now, machine)
            able = machine.able(clock) and not machine.set_aside
            record = records.get(machine.id)
            draining = record is not None and record.drain is not None
            if machine.reclaim_at is not None and clock < machine.reclaim_at:
                # Ended early for its notice: it counts until the cloud would have taken it.
                self._reclaimed[machine.id] = able or (
                    self._reclaimed.get(machine.id, False) and not machine.live
                )
                able = self._reclaimed[machine.id]
            elif machine.id in self._reclaimed:
                del self._reclaimed[machine.id]
                self._tally.preempted(now)
                self._recorder.lost(now, machine.id, machine.placement.zone)
            elif draining:
                continue
            if able:
                ready[machine.id] = not draining and machine.live
        self._ready = ready

    def _launched(self, now: float, machine: Machine) -> None:
        self._seen.add(machine.id)
        spot = machine.placement.market is Market.SPOT
        self._tally.launched(now, spot=spot)
        if not spot:  # the pace of the world is that of spot
            start = self._timings.on_demand_start
            machine.until, machine.loaded_at = (
                machine.launched_at + _BOOT * start,
                machine.launched_at + start,
            )

    def _count(self, now: float) -> None:
        """Count what was so since the last tick."""
        begin, self._last = self._last, now
        spots = sum(self._world.machines[node].placement.market is Market.SPOT for node in self._ready)
        others = len(self._ready) - spots
        serving = sum(self._ready.values())
        self._tally.ready(begin, now, spot=spots, on_demand=others, wanted=self._wanted, serving=serving)
        begin = max(begin, self._begin)
        if now <= begin:
            return
        dollars = sum(
            self._dollars(m, begin, now) for m in self._world.machines.values() if self._paid(m, begin)
        )
        self._tally.charge(dollars)
        self._recorder.span(begin, now, spot=spots, on_demand=others, dollars=dollars)

    def _paid(self, machine: Machine, begin: float) -> bool:
        return machine.ended_at is None or machine.ended_at - self._began > begin

    def _dollars(self, machine: Machine, begin: float, end: float) -> float:
        begin = max(begin, machine.launched_at - self._began)
        if machine.ended_at is not None:
            end = min(end, machine.ended_at - self._began)
        tape = self._tapes[machine.placement.zone]
        if machine.placement.market is Market.SPOT:
            return tape.dollars(begin, end)
        stopped = machine.state in (InstanceState.STOPPED, InstanceState.STOPPING)
        share = self._timings.storage if stopped else 1.0
        return share * tape.on_demand_price * max(0.0, end - begin) / HOUR


def _placement(scenario: Scenario, tape: Tape, market: Market) -> Placement:
    return Placement(PROVIDER, tape.region, tape.zone, scenario.instance_type, market)


def _sale(scenario: Scenario, tape: Tape, market: Market) -> Sale:
    place = _placement(scenario, tape, market)
    if market is Market.SPOT:
        return Sale(placement=place, price=tape.price(0.0), capacity=tape.capacity(0.0))
    return Sale(placement=place, price=tape.on_demand_price)


def _pace(timings: Timings) -> Pace:
    """The pace of a world in which starts always take equally long."""
    boot, start = _BOOT * timings.spot_start, _BOOT * timings.standby_start
    load, reload = timings.spot_start - boot, timings.standby_start - start
    return Pace(boot=(boot, boot), load=(load, load), start=(start, start), reload=(reload, reload))
