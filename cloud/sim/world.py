"""The simulated cloud itself: machines with their lives, what is sold where, and what nature does to both.

The truth lives here. Adapters (`cloud.sim.cloud` and its neighbours) show a daemon a late and partial view of
it. Machines change by the clock: what is due is settled whenever somebody looks, and at least at every tick
of `run`. Times are seconds since the epoch, durations seconds, prices USD per hour.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cloud.errors import InsufficientCapacity, NotFound
from cloud.ports import Clock, LaunchRequest
from cloud.sim.effects import Effects
from cloud.sim.faults import Faults
from cloud.sim.trace import Trace
from policies.model import Ending, Instance, InstanceState, Market, Offering, Placement, StandbyKind

LIVE = (InstanceState.PENDING, InstanceState.RUNNING, InstanceState.STOPPING, InstanceState.STOPPED)
"""States of a machine that has not ended."""

_WORDS = {
    Ending.UNKNOWN: "",
    Ending.RECLAIM: "Server.SpotInstanceTermination: reclaimed (simulated)",
    Ending.REQUEST: "Client.UserInitiatedShutdown: somebody asked for it (simulated)",
    Ending.CAPACITY: "Server.InsufficientInstanceCapacity: not there after all (simulated)",
    Ending.FAULT: "Client.InternalError: the key of its volume may not be used (simulated)",
}
"""How a provider tells why a machine ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """What is sold at a placement: the price, and how many machines there are at most."""

    placement: Placement
    price: float
    capacity: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long things take in this world; pairs are the least and the most, drawn evenly."""

    boot: tuple[float, float] = (15.0, 25.0)  # launch to running
    load: tuple[float, float] = (20.0, 40.0)  # running to the engine's first token
    start: tuple[float, float] = (5.0, 8.0)  # stopped to running
    reload: tuple[float, float] = (8.0, 12.0)  # started to the engine's first token
    stop: float = 3.0
    end: float = 3.0  # terminate to terminated
    list_lag: tuple[float, float] = (0.2, 2.0)  # launch to the first list that shows the machine
    listed_after_end: float = 120.0
    latency: tuple[float, float] = (0.01, 0.1)  # one way of one call
    adapter: tuple[float, float] = (0.2, 1.0)  # an engine loads an adapter
    tick: float = 1.0  # s between two looks of nature
    duds: float = 0.0  # share of machines whose engine never comes up
    slow_loads: float = 0.0  # share of machines that load `slower` times as long
    slower: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A notice that a machine goes away: when it came, and the end that it named. `sure`: from the cloud."""

    source: str
    notice: str
    at: float
    ends: float
    sure: bool


@dataclass(slots=True, kw_only=True)
class Machine:
    """One machine. `until` is when its present state ends by itself (None: not by itself).

    `listed_at`: when a list last showed it, `addressed_at`: when one first showed it running since its start,
    before which nobody can look at its engine.
    `loaded_at`: when its engine gives its first token. `reclaim_at`: when the provider takes it away.
    `told`: what says so and was not taken back, `told_at`: since when the cloud does, `cancelled_at`: when
    something was last taken back. `deadlines`: what anybody ever named. `silent_since`: its engine answers
    nothing since then though the machine runs. `unseen_since`: looks at its engine have not got through since
    then, `seen_again_at`: when the last such time ended, or its engine came back to life, which is
    `revived_at`. `quiet_from`: when it last fell silent or out of reach, or was stopped or ended.
    `answered_at`: when it last answered a look.
    `stillborn`: it ends for that reason when it should run. `ending`: why it ended.
    `started_at`: when it was last asked to start, unless it was stopped since. `foreign`: somebody else
    launched it and gave it our tags. `requests` are the ends of the requests that it holds. `adapters`: what
    its engine holds, by its own names, all of which it last forgot at `forgot_at`.
    """

    id: str
    pool: str
    token: str
    placement: Placement
    standby: StandbyKind | None
    address: str
    launched_at: float
    visible_at: float
    build: str = ""
    listed_at: float = 0.0
    addressed_at: float | None = None
    state: InstanceState = InstanceState.PENDING
    until: float | None = None
    loaded_at: float = 0.0
    reclaim_at: float | None = None
    told_at: float | None = None
    told: list[Told] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    cancelled_at: float | None = None
    silent_since: float | None = None
    unseen_since: float | None = None
    seen_again_at: float | None = None
    quiet_from: float = 0.0
    answered_at: float = 0.0
    revived_at: float | None = None
    foreign: bool = False
    stillborn: Ending = Ending.UNKNOWN
    ending: Ending = Ending.UNKNOWN
    started_at: float | None = None
    ended_at: float | None = None
    requests: list[float] = field(default_factory=list)
    adapters: set[str] = field(default_factory=set)
    forgot_at: float = -math.inf
    shown: Instance | None = None  # as it was last described

    @property
    def live(self) -> bool:
        """It has not ended and nobody asked for its end."""
        return self.state in LIVE

    @property
    def rumoured(self) -> bool:
        """The node itself tells that it goes away."""
        return any(not told.sure for told in self.told)

    @property
    def told_by(self) -> dict[str, float]:
        """Which sources tell that it goes away, each since when."""
        return {told.source: told.at for told in reversed(self.told)}

    @property
    def going(self) -> bool:
        """It will be taken away, or the cloud said so."""
        return self.told_at is not None or self.reclaim_at is not None

    @property
    def set_aside(self) -> bool:
        """A stopped standby that waits: its tag says so, and since it was last stopped nobody started it."""
        return self.standby is StandbyKind.STOPPED and self.started_at is None

    def able(self, now: float) -> bool:
        """Its engine answers requests."""
        running = self.state is InstanceState.RUNNING
        return running and now >= self.loaded_at and self.silent_since is None

    def in_flight(self, now: float) -> int:
        """Requests that its engine holds."""
        if self.requests and self.requests[0] <= now:
            while self.requests and self.requests[0] <= now:
                heapq.heappop(self.requests)
        return len(self.requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Requests that were lost because a machine went away under them."""

    node: str
    at: float
    requests: int
    by: str


class SimWorld:
    """One simulated provider. Scripts call the methods under "nature"; daemons go through adapters.

    One `beside` another shares its trace and the numbers of effects and machines.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        sales: Sequence[Sale],
        rng: random.Random,
        pace: Pace | None = None,
        beside: SimWorld | None = None,
    ) -> None:
        self.clock, self.rng = clock, rng
        self.pace = pace if pace is not None else Pace()
        self.trace: Trace = beside.trace if beside is not None else Trace(clock)
        self.effects: Effects = Effects(
            clock, self.trace, beside=beside.effects if beside is not None else None
        )
        self.faults = Faults(random.Random(rng.random()))  # noqa: S311 - faults, not secrets
        self._luck = random.Random(rng.random())  # noqa: S311 - which machines are duds
        self.prices = {s.placement: s.price for s in sales}
        self.capacity = {s.placement: s.capacity for s in sales}
        self.machines: dict[str, Machine] = {}
        self._present: list[Machine] = []  # those that lists may still show, oldest first
        self.stillborn: dict[Market, Ending] = {}  # what is launched there now ends so before it runs
        self.launches = 0
        self.cuts: list[Cut] = []
        self.on_tick: list[Callable[[float], None]] = []
        self.listed_at: dict[
            tuple[str, str], float
        ] = {}  # pool, region -> when a list of it was last answered
        self._numbers: Iterator[int] = beside._numbers if beside is not None else itertools.count(1)
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._agenda_numbers = itertools.count()
        self._stale: tuple[Instance, ...] | None = None

    # -- looking -----------------------------------------------------------------------------------

    def of(self, pool: str) -> Iterator[Machine]:
        """All machines of a pool, oldest first, settled."""
        now = self.clock.now()
        for machine in self.machines.values():
            if machine.pool == pool:
                self._settle(machine, now)
                yield machine

    def launched(self, request: LaunchRequest) -> Machine | None:
        """The machine of a token, settled; None where it has none yet."""
        for machine in self.machines.values():
            if machine.token == request.token and machine.pool == request.pool:
                self._settle(machine, self.clock.now())
                return machine
        return None

    def runs(self, node: str) -> bool:
        """True for a machine that runs, or is about to."""
        machine = self.machine(node)
        return machine is not None and machine.state in (InstanceState.PENDING, InstanceState.RUNNING)

    def machine(self, node: str) -> Machine | None:
        """One machine, settled."""
        found = self.machines.get(node)
        if found is not None:
            self._settle(found, self.clock.now())
        return found

    def at_address(self, node: str, address: str) -> Machine | None:
        """The running machine that answers at an address, if it is that node."""
        found = self.machine(node)
        if found is None or found.address != address or found.state is not InstanceState.RUNNING:
            return None
        return found

    @property
    def regions(self) -> tuple[str, ...]:
        """Where anything is sold."""
        return tuple(sorted({placement.region for placement in self.prices}))

    def listed(self, pool: str, region: str) -> tuple[Instance, ...]:
        """What a complete list of a region shows."""
        faults = self.faults
        now = self._listed(pool)
        if faults.stale_lists:
            self._stale = now if self._stale is None else self._stale
            if faults.chance(faults.stale_share):
                now = self._stale
        if now and faults.chance(faults.lost_pages):
            first = faults.rng.randrange(len(now))
            now = now[:first] + now[first + max(1, len(now) // 3) :]
        if faults.hidden:
            now = tuple(i for i in now if i.id not in faults.hidden)
        now = tuple(i for i in now if i.placement.region == region)
        at = self.clock.now()
        for shown in now:
            machine = self.machines[shown.id]
            machine.listed_at = at
            if shown.state is InstanceState.RUNNING and machine.addressed_at is None:
                machine.addressed_at = at
        return now

    def _listed(self, pool: str) -> tuple[Instance, ...]:
        now = self.clock.now()
        found = []
        for machine in self._present:
            if machine.pool == pool and machine.visible_at <= now:
                self._settle(machine, now)
                if not self._over(machine, now):
                    found.append(self.described(machine))
        return tuple(found)

    def _over(self, machine: Machine, now: float) -> bool:
        """It ended so long ago that no list shows it."""
        return machine.ended_at is not None and now - machine.ended_at >= self.pace.listed_after_end

    def described(self, machine: Machine) -> Instance:
        """A machine as the provider describes it."""
        price, shown = self.prices[machine.placement], machine.shown
        if shown is not None and shown.state is machine.state and shown.price == price:
            return shown
        running = machine.state is not InstanceState.PENDING
        machine.shown = Instance(
            id=machine.id,
            pool=machine.pool,
            token=machine.token,
            placement=machine.placement,
            state=machine.state,
            address=machine.address if running else "",
            launched_at=machine.launched_at,
            price=price,
            standby=machine.standby,
            build=machine.build,
            ending=machine.ending,
            ending_why=_WORDS[machine.ending],
            ended_at=machine.ended_at,
        )
        return machine.shown

    def offerings(self) -> tuple[Offering, ...]:
        """What is sold now."""
        return tuple(
            Offering(placement=p, price=price, available=self.capacity[p] > 0)
            for p, price in self.prices.items()
        )

    # -- what daemons do ---------------------------------------------------------------------------

    def launch(self, request: LaunchRequest) -> Instance:
        """Launch, once per token. Raises InsufficientCapacity."""
        return self.described(self.launched(request) or self.add(request))

    def add(self, request: LaunchRequest, *, foreign: bool = False) -> Machine:
        """A new machine, whatever its token. Raises InsufficientCapacity."""
        now, pace = self.clock.now(), self.pace
        self._take(request.placement)
        number = next(self._numbers)
        running_at = now + self.rng.uniform(*pace.boot)
        load = self.rng.uniform(*pace.load)
        if pace.slow_loads and self._luck.random() < pace.slow_loads:
            load *= pace.slower
        if pace.duds and self._luck.random() < pace.duds:
            load = math.inf
        machine = Machine(
            id=f"i-{number:04d}",
            pool=request.pool,
            token=request.token,
            placement=request.placement,
            standby=request.standby,
            build=request.command.build,
            address=f"10.0.{number // 250}.{number % 250}:8000",
            launched_at=now,
            visible_at=now + self.rng.uniform(*pace.list_lag),
            until=running_at,
            loaded_at=running_at + load,
            stillborn=Ending.UNKNOWN
            if foreign
            else self.stillborn.get(request.placement.market, Ending.UNKNOWN),
            foreign=foreign,
        )
        self.machines[machine.id] = machine
        self._present.append(machine)
        self.launches += not foreign
        return machine

    def terminate(self, node: str) -> None:
        """End a machine; one that is gone is success."""
        machine = self.machine(node)
        if machine is not None and machine.live:
            self._end(machine, InstanceState.SHUTTING_DOWN, Ending.REQUEST, "terminated by the daemon")
            machine.until = self.clock.now() + self.pace.end

    def stop(self, node: str) -> None:
        """Stop a machine. Raises NotFound."""
        machine = self._existing(node)
        if machine.state in (InstanceState.PENDING, InstanceState.RUNNING):
            self._cut(machine, "stopped by the daemon")
            machine.started_at, machine.quiet_from = None, self.clock.now()
            machine.state, machine.until = InstanceState.STOPPING, machine.quiet_from + self.pace.stop

    def start(self, node: str) -> None:
        """Start a stopped machine. Of one that runs it only says that it is to work.

        Raises NotFound, InsufficientCapacity.
        """
        machine, now = self._existing(node), self.clock.now()
        if machine.state in (InstanceState.STOPPED, InstanceState.STOPPING):
            self._take(machine.placement)
            machine.told_at = machine.addressed_at = None  # that was of its last life
            machine.told = [told for told in machine.told if not told.sure]
            machine.deadlines.clear()
            machine.state, machine.until = InstanceState.PENDING, now + self.rng.uniform(*self.pace.start)
            machine.loaded_at = machine.until + self.rng.uniform(*self.pace.reload)
            machine.adapters.clear()
        machine.started_at = now

    def _existing(self, node: str) -> Machine:
        machine = self.machine(node)
        if machine is None or not machine.live:
            raise NotFound(f"{node}: no such machine (simulated)")
        return machine

    def _take(self, placement: Placement) -> None:
        """Raise InsufficientCapacity unless one more machine may run there, whatever others have."""
        now, held = self.clock.now(), 0
        for machine in self.machines.values():
            if machine.placement == placement and not machine.foreign:
                self._settle(machine, now)
                held += machine.state in (InstanceState.PENDING, InstanceState.RUNNING)
        if held >= self.capacity.get(placement, 0):
            raise InsufficientCapacity(f"{placement}: no capacity (simulated)")

    # -- nature ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Nature, for ever: settle what is due, do what is on the agenda, tell who wants to know."""
        while True:
            now = self.clock.now()
            over = False
            for machine in self._present:
                self._settle(machine, now)
                over = over or self._over(machine, now)
            if over:
                self._present = [m for m in self._present if not self._over(m, now)]
            if not self.faults.stale_lists:
                self._stale = None
            while self._agenda and self._agenda[0][0] <= now:
                heapq.heappop(self._agenda)[2]()
            for told in self.on_tick:
                told(now)
            wait = self.pace.tick
            if self._agenda:
                wait = min(wait, max(0.001, self._agenda[0][0] - now))
            await self.clock.sleep(wait)

    def later(self, seconds: float, deed: Callable[[], object]) -> None:
        """Have `run` do something after some seconds (at its next tick, if that is sooner than it looks)."""
        when = self.clock.now() + seconds
        heapq.heappush(self._agenda, (when, next(self._agenda_numbers), deed))

    @property
    def idle(self) -> bool:
        """True when nature has nothing on its agenda and no machine is under a reclaim."""
        return not self._agenda and not any(m.live and m.reclaim_at for m in self.machines.values())

    def reclaim(self, node: str, *, after: float = 0.0) -> float:
        """The provider takes a spot machine away `after` seconds; returns when. Notices are not its work."""
        machine = self.machines[node]
        if machine.placement.market is not Market.SPOT:
            raise ValueError(f"{node} is on-demand: the provider does not reclaim it")
        machine.reclaim_at = self.clock.now() + after
        self.trace.add("reclaim", node, f"after {after:g}")
        return machine.reclaim_at

    def silence(self, node: str) -> None:
        """Its engine answers nothing from now on; what it held is lost."""
        machine = self.machines[node]
        self._cut(machine, "engine went silent")
        if machine.silent_since is None:
            machine.silent_since = machine.quiet_from = self.clock.now()
        self.trace.add("silence", node)

    def revive(self, node: str) -> None:
        """Its engine answers again."""
        machine = self.machines[node]
        machine.silent_since = None
        machine.revived_at = machine.seen_again_at = self.clock.now()
        self.trace.add("revive", node)

    def forget_adapters(self, node: str) -> None:
        """Its engine is started again behind our back, so fast that no look sees it away."""
        machine = self.machines[node]
        machine.adapters.clear()
        machine.forgot_at = self.clock.now()
        self.trace.add("forget adapters", node)

    def set_capacity(self, placement: Placement, capacity: int) -> None:
        """How many machines there may be at a placement; those that are there stay."""
        self.capacity[placement] = capacity
        self.trace.add("capacity", placement, capacity)

    def bury(self, *, before: float) -> None:
        """Forget the machines that ended before a time at which lists had long stopped to show them."""
        for machine in list(self.machines.values()):
            if machine.ended_at is not None and machine.ended_at < before:
                del self.machines[machine.id]

    def _settle(self, machine: Machine, now: float) -> None:
        """Bring one machine up to date."""
        if machine.reclaim_at is not None and machine.live and now >= machine.reclaim_at:
            self._end(machine, InstanceState.TERMINATED, Ending.RECLAIM, "reclaimed", at=machine.reclaim_at)
            machine.until = None
        if machine.until is None or now < machine.until:
            return
        if machine.state is InstanceState.PENDING and machine.stillborn:
            why, machine.stillborn = machine.stillborn, Ending.UNKNOWN
            self._end(machine, InstanceState.TERMINATED, why, f"never started: {why}", at=machine.until)
        elif machine.state is InstanceState.PENDING:
            machine.state = InstanceState.RUNNING
        elif machine.state is InstanceState.STOPPING:
            machine.state = InstanceState.STOPPED
        elif machine.state is InstanceState.SHUTTING_DOWN:
            machine.state = InstanceState.TERMINATED
        machine.until = None

    def _end(
        self, machine: Machine, state: InstanceState, why: Ending, by: str, *, at: float | None = None
    ) -> None:
        machine.ended_at = machine.quiet_from = self.clock.now() if at is None else at
        machine.state, machine.ending = state, why
        self._cut(machine, by, at=machine.ended_at)
        self.trace.add("end", machine.id, by)

    def _cut(self, machine: Machine, by: str, *, at: float | None = None) -> None:
        when = self.clock.now() if at is None else at
        lost = sum(end > when for end in machine.requests)
        machine.requests.clear()
        if lost:
            self.cuts.append(Cut(node=machine.id, at=when, requests=lost, by=by))
            self.trace.add("cut", machine.id, lost, by)
