"""The real daemon in a simulated world, on virtual time.

A `Simulation` joins a virtual-time loop, a simulated world with its checker, and daemons as simulated
processes. The daemon runs unchanged, on its real journal: a SQLite file in the state directory of the
configuration. `run` plays a script; with a `Point` the daemon is killed there and a new one starts on the
same state directory `RESTART_AFTER` seconds later. What comes out is an `Outcome`: what broke, what was
done, and a digest that is the same for the same seed in any process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from cloud.errors import CloudError
from cloud.ports import Clock
from cloud.sim.balancer import Traffic
from cloud.sim.books import Books
from cloud.sim.effects import Effect, Effects, Moment, Point
from cloud.sim.invariants import Bounds, Broken, DaemonState
from cloud.sim.limits import Together
from cloud.sim.notices import METADATA, QUEUE
from cloud.sim.world import Machine, Pace, Sale
from orchestrator.config.load import Config
from orchestrator.daemon.daemon import Daemon, StartError
from orchestrator.journal.file import JournalFile
from orchestrator.journal.replay import Selection, replay
from orchestrator.journal.store import StoreUnavailable, Superseded
from orchestrator.lease.file import FileLease
from orchestrator.lease.pair import Shared
from orchestrator.lease.shared import SharedLease
from orchestrator.simulation.absent import no_gateway, no_routes
from orchestrator.simulation.pair import SimDatabase, acting, on_host, state_of
from orchestrator.simulation.pool import SimPool
from orchestrator.simulation.recorded_store import Foresight, RecordedStore, SimProcess, untouched
from orchestrator.simulation.virtual_time import VirtualClock, VirtualTimeLoop, current_process
from orchestrator.wiring.ports import Ports
from policies.events import Event
from policies.memory import Memory
from policies.model import Market, Notice

RESTART_AFTER = 2.0
"""Seconds between the death of a daemon and the start of the next, as systemd has it."""

LANDS_AFTER = 3.0
"""Seconds that a call is on its way when it lands after its daemon's death: the next daemon runs by then."""

LONGEST = 4 * 3600.0
"""Virtual seconds after which a script is given up."""

REPLAYED = 200
"""Recorded turns that are decided again at the end of a run."""

Wrap = Callable[[Ports], Ports]
"""Replaces ports before a daemon gets them."""


class NotSettled(Exception):
    """The pool did not come to what is wanted in time. The message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to. `digest` is the hash of everything that happened, `happened` counts it by kind:
    "kill", "boot", "reclaim", "fault NAME" of a swarm, "call FAULT" for each call that met one, and so on.
    """

    digest: str
    broken: tuple[Broken, ...]
    checked: Counter[str]
    happened: Counter[str]
    effects: tuple[Effect, ...]
    points: tuple[Point, ...]
    killed_at: Effect | None
    launches: int
    boots: int
    seconds: float
    tail: tuple[str, ...]


class Simulation:
    """One run: one seed, one world for each pool of the configuration, one daemon after another.

    What is not said of a pool is the first one's: `pool`, `world`, `table`, `checker` and so on. `sales` is
    what each world sells. `wrap` replaces ports of every daemon, `store` its journal: that is how
    tests plant bugs. `crash` is where the first daemon dies. A script may take `longest` virtual seconds. A
    simulation is used once.
    """

    def __init__(
        self,
        config: Config,
        *,
        sales: Sequence[Sale],
        seed: int = 0,
        pace: Pace | None = None,
        traffic: Traffic | None = None,
        bounds: Bounds | None = None,
        sources: Sequence[str] = (QUEUE, METADATA),
        wrap: Wrap | None = None,
        store: type[RecordedStore] = RecordedStore,
        crash: Point | None = None,
        longest: float = LONGEST,
    ) -> None:
        self.config, self.seed = config, seed
        self.loop = VirtualTimeLoop(seed)
        self.clock = VirtualClock(self.loop)
        self.processes: list[SimProcess] = []
        self._started: list[SimProcess] = []
        self.pools: dict[str, SimPool] = {}
        together = Together(config.budget.shared)
        for name in config.pools:
            self.pools[name] = SimPool(
                config.only(name).wanted,
                self.clock,
                seed=seed,
                sales=sales,
                pace=pace,
                traffic=traffic,
                bounds=bounds,
                sources=sources,
                processes=self.processes,
                daemon=partial(self._state, name),
                nobody_leads_since=lambda: self.database.nobody_leads_since(config.daemon.lease),
                woke_at=partial(self._woke_at, name),
                together=together,
                on_disk=self._on_disk,
                beside=next(iter(self.pools.values()), None),
            )
        first = next(iter(self.pools.values()))
        self.pool, self.world, self.board, self.table = first.pool, first.world, first.board, first.table
        self.checker, self.limits, self.vain = first.checker, first.limits, first.vain
        self.sources = first.sources
        foreseen = Foresight(self.world, tuple(self.pools), lambda: self.running)
        self.world.effects.watchers.insert(0, lambda *_: foreseen.look())
        self.world.on_tick.insert(0, lambda _: foreseen.look())
        self.database = SimDatabase(self.world)
        if crash is not None:
            self.world.effects.hook = self._at_effect
        self._wrap, self._store, self._crash = wrap, store, crash
        self.ahead = 0.0  # seconds by which the clock of the daemons' host is ahead, at their next start
        self._begins, self._longest = 0, longest
        self._killed_at: Effect | None = None
        self._over = False
        self._broken: set[asyncio.Future[None]] = set()
        self.loop.set_exception_handler(self._unhandled)

    @property
    def effects(self) -> Effects:
        """Every effect so far, and the hook that they call."""
        return self.world.effects

    # -- running -----------------------------------------------------------------------------------

    def run(self, script: Callable[[Simulation], Awaitable[None]]) -> Outcome:
        """Play a script to its end. A script that raises `NotSettled` breaks the invariant "convergence"."""
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._main(script))
        finally:
            self._over = True
            for process in self.processes:
                self._release(process)
            asyncio.set_event_loop(None)
            self.loop.close()
        return self._outcome()

    def stop_once_broken(self) -> None:
        """Have the run end as soon as an invariant breaks: for who only asks whether one does, and when."""
        self._broken.add(self.loop.create_future())
        for pool in self.pools.values():
            pool.checker.on_broken.append(self._end)

    def _end(self) -> None:
        for broken in [future for future in self._broken if not future.done()]:
            broken.set_result(None)

    async def _main(self, script: Callable[[Simulation], Awaitable[None]]) -> None:
        natures = {asyncio.ensure_future(pool.world.run()) for pool in self.pools.values()}
        play = asyncio.ensure_future(script(self))
        ends = {*natures, play, *self._broken}
        await asyncio.wait(ends, timeout=self._longest, return_when=asyncio.FIRST_COMPLETED)
        for nature in natures:
            if nature.done():
                nature.result()
        if any(broken.done() for broken in self._broken):
            return
        if not play.done():
            self.checker.report(
                "convergence", "script", f"the script did not end within {self._longest:.0f} s"
            )
            return
        try:
            play.result()
        except NotSettled as error:
            self.checker.report("convergence", "pool", str(error))
            return
        self.checker.checked["convergence"] += 1
        for name in self.pools:
            await self._journal_tells_all(name)
            await self._plans_come_again(name)

    async def _journal_tells_all(self, pool: str) -> None:
        """Reading the journal gives exactly the memory that the running daemon has."""
        process = self.running
        loop = process.loop(pool) if process is not None else None
        if process is None or loop is None:
            return
        self.checker.checked["journal"] += 1
        stored, held = await process.stores[-1].load(pool), loop.memory
        if stored != held:
            names = [f.name for f in fields(Memory)]
            different = [n for n in names if getattr(stored, n) != getattr(held, n)]
            self.checker.report("journal", "memory", f"the journal tells another {', '.join(different)}")

    async def _plans_come_again(self, pool: str) -> None:
        """The newest turns that the running daemon recorded give the same plans again, byte for byte."""
        process = self.running
        if process is None or process.frozen:
            return
        store = process.stores[-1]
        with contextlib.suppress(StoreUnavailable):
            await store.flush(pool)
        wanted = Selection(pool=pool, epoch=store.epoch, newest=REPLAYED)
        with JournalFile.open(store.path) as journal:
            for turn in replay(journal, wanted):
                self.checker.checked["replay"] += 1
                if not turn.identical:
                    said = turn.unreadable or "; ".join(turn.differences)
                    self.checker.report("replay", "plan", f"turn {turn.number} is decided otherwise: {said}")

    def _outcome(self) -> Outcome:
        log, pools = tuple(self.effects.log), [*self.pools.values()]
        return Outcome(
            digest=self.world.trace.digest,
            broken=tuple(broken for pool in pools for broken in pool.checker.broken),
            checked=sum((pool.checker.checked for pool in pools), Counter()),
            happened=self.world.trace.counts
            + Counter({f"call {fault}": n for p in pools for fault, n in p.world.faults.met.items()}),
            effects=log,
            points=tuple(p for p in self.effects.points() if p.effect > self._begins),
            killed_at=self._killed_at,
            launches=sum(pool.world.launches for pool in pools),
            boots=len(self.processes),
            seconds=self.loop.time(),
            tail=tuple(self.world.trace.tail),
        )

    # -- daemons -----------------------------------------------------------------------------------

    @property
    def running(self) -> SimProcess | None:
        """The daemon that is up, if one is; of a pair the one that leads, or did last."""
        return acting(self._living())

    def _living(self) -> list[SimProcess]:
        """Daemons that have not ended, oldest first."""
        self._started = [process for process in self._started if not process.ended]
        return self._started

    def boot(self, *, supervised: bool = False, host: str = "") -> SimProcess:
        """Start one more daemon on the state directory, as a service manager does or by hand.

        With a `host` it is one of a pair: its state directory is its own, journal and lease are shared.
        """
        name = f"daemon-{len(self.processes) + 1}"
        leases: list[FileLease | SharedLease] = []
        config = self.config if not host else on_host(self.config, host)
        stores: list[RecordedStore] = []

        def open_store(path: Path, *, now: float, inline: bool = False) -> RecordedStore:
            store = self._store.open(path, now=now, inline=inline)
            store.effects, store.hear = self.effects, self._hear
            store.slow = lambda: self.world.faults.slow_disk
            stores.append(store)
            return store

        def make_lease(path: Path, *, now: float) -> FileLease:
            lease = FileLease(path, now=now)
            leases.append(lease)
            return lease

        def open_shared(config: Config, *, clock: Clock, seat: str) -> Shared:
            store = open_store(self.config.daemon.state_dir / "journal.db", now=clock.now(), inline=True)
            shared = self.database.shared(store, config, clock=clock, seat=seat, host=host)
            leases.append(shared.lease)
            return shared

        clock = VirtualClock(self.loop, epoch=self.clock.epoch + self.ahead)
        daemon = Daemon(
            config,
            clock=clock,
            connect=lambda config, _: self._ports(config.pool_name, clock),
            threads=False,
            listen=False,
            open_store=open_store,
            make_lease=make_lease,
            open_shared=open_shared,
            replace=no_gateway,
            ask=no_routes,
        )
        process = SimProcess(
            name=name,
            daemon=daemon,
            leases=leases,
            stores=stores,
            ahead=self.ahead,
            supervised=supervised,
            paired=bool(host),
        )
        self.processes.append(process)
        self._started.append(process)
        self.world.trace.add("boot", name)
        self.loop.spawn(name, self._live(process), name=name)
        return process

    def kill(self, process: SimProcess) -> None:
        """Kill -9. The kernel gives its lock back; its disk stays."""
        self.world.trace.add("kill", process.name)
        self._forget_unwritten(process)
        process.ended = "killed"
        self.loop.kill(process.name)
        self._release(process)

    def freeze(self, process: SimProcess) -> None:
        """SIGSTOP: it keeps its lock and does nothing."""
        self.world.trace.add("freeze", process.name)
        process.frozen = True
        self.loop.freeze(process.name)

    def thaw(self, process: SimProcess) -> None:
        """SIGCONT: it goes on where it was."""
        self.world.trace.add("thaw", process.name)
        process.frozen, process.woke_at = False, self.clock.now()
        if process.up_since is not None:
            process.up_since = self.clock.now()
        self.loop.thaw(process.name)

    def lose_journal(self, older: Books | None = None) -> None:
        """Somebody deletes the journal, or puts back an `older` copy. No daemon may run."""
        if self.running is not None:
            raise ValueError("a daemon holds the journal: kill it first")
        for part in self.config.daemon.state_dir.glob("journal.db*"):
            part.unlink()
        self.world.trace.add("journal lost")
        self.forget(older)

    def restart_later(self) -> None:
        """What the service manager does after a death: it has one daemon, and starts no second one."""

        def boot() -> None:
            if not any(process.supervised for process in self._living()):
                self.boot(supervised=True)

        self.loop.call_later(RESTART_AFTER, boot, context=Context())

    async def stop(self, process: SimProcess) -> None:
        """Stop a daemon in good order."""
        self._forget_unwritten(process)
        task = self.loop.spawn(process.name, process.daemon.stop())
        process.ended = "stopped"
        await task

    async def _live(self, process: SimProcess) -> None:
        try:
            await process.daemon.start()
        except StartError as error:
            process.ended = str(error)
            self.world.trace.add("no start", process.name)
            if process.supervised:
                self.restart_later()
            return
        while process.loop(self.pool.name) is None:  # it stands by
            await self.clock.sleep(0.1)
        process.up_since = self.clock.now()
        process.ended = await process.daemon.wait()
        superseded = Superseded.__name__ in process.ended
        why = self._anywhere(process.ended)
        if not superseded:
            self.checker.report("daemon-lives", process.name, f"{process.name} ended: {why}")
        self.world.trace.add("end", process.name, why)
        await process.daemon.stop()
        if process.supervised:  # a supervisor starts none while the one that took over is up
            self.restart_later()

    def _release(self, process: SimProcess) -> None:
        """What the kernel does when a process ends: locks and files are closed, the disk stays as it is.

        Where another daemon has the journal open, this one closes its own connection and nothing else.
        """
        for lease in process.leases:
            lease.close()
        shared = any(p.stores for p in self._living() if p is not process)
        for store in process.stores:
            with contextlib.nullcontext() if shared else untouched(store.path):
                store.close()
        process.stores.clear()

    def _ports(self, pool: str, clock: VirtualClock) -> Ports:
        ports = self.pools[pool].ports(clock)
        return ports if self._wrap is None else self._wrap(ports)

    def _state(self, pool: str) -> DaemonState | None:
        return state_of(self._living(), self.database, pool, now=self.clock.now())

    def _woke_at(self, pool: str) -> float | None:
        process = self.running
        return process.woke_at if process is not None and self._state(pool) else None

    async def _at_effect(self, effect: Effect, moment: Moment, land: Callable[[], object] | None) -> None:
        """Kill the daemon whose effect this is, if this is the point."""
        point = self._crash
        if point is None or point.effect != effect.number:
            return
        wanted = Moment.BEFORE if point.moment is Moment.LATE else point.moment
        process = next((p for p in self.processes if p.name == current_process()), None)
        if moment is not wanted or process is None:
            return
        self._crash, self._killed_at = None, effect
        if point.moment is Moment.LATE and land is not None:
            self.loop.call_later(LANDS_AFTER, _land, land, context=Context())
        self.kill(process)
        self.restart_later()
        await self.loop.halted()

    def _forget_unwritten(self, process: SimProcess) -> None:
        """A daemon ends, and with it what it could not write; a standby has nothing to write."""
        if not process.paired or process is self.running:
            for pool in self.pools.values():
                pool.forget_unwritten()

    def _hear(self, pool: str, events: Sequence[Event], written: bool, on_disk: Sequence[Event]) -> None:
        name = current_process()
        if any(p.paired and p.leads and p.name != name for p in self._living()):
            return  # it leads no more, and does not know
        self.pools[pool].hear(events, written, on_disk)

    def forget(self, books: Books | None = None) -> None:
        """The journal is lost, or an older one is back, which said what these books say."""
        for pool in self.pools.values():
            pool.forget(books)

    def _on_disk(self, pool: str, notice: Notice) -> bool:
        """The journal tells of a notice; also one that nobody could read now might."""
        process = self.running
        if process is None or not process.stores:
            return True
        told = process.stores[-1].notices(pool)
        return told is None or (notice.source, notice.id, notice.node) in told

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self._over:
            text = self._anywhere(f"{context.get('message')}: {context.get('exception')!r}")
            self.checker.report("nothing-unhandled", text, text)

    def _anywhere(self, text: str) -> str:
        """A text without the place of the state directory: a run is the same wherever it is played."""
        return text.replace(str(self.config.daemon.state_dir), "STATE")

    # -- for scripts -------------------------------------------------------------------------------

    def begin(self) -> None:
        """What comes from here on is what the script is about: points of a crash lie after this."""
        self._begins = len(self.effects.log)

    def furnish(self) -> None:
        """Machines of an earlier daemon, ready to be adopted: the wanted mix, loaded."""
        for pool in self.pools.values():
            pool.furnish()

    def live(self, market: Market | None = None) -> list[Machine]:
        """Live machines of the pool, oldest first."""
        found = [m for m in self.world.of(self.pool.name) if m.live and not m.foreign]
        return found if market is None else [m for m in found if m.placement.market is market]

    async def settle(self, *, within: float = 900.0, steady: float = 5.0) -> None:
        """Wait until every pool is as wanted and stays so for `steady` seconds. Raises NotSettled."""
        deadline = self.clock.now() + within
        quiet = 0.0
        why = ""
        while self.clock.now() < deadline:
            await self.clock.sleep(1.0)
            now = self.clock.now()
            why = next((found for pool in self.pools.values() if (found := pool.unsettled(now))), "")
            quiet = quiet + 1.0 if not why else 0.0
            if quiet >= steady:
                return
        raise NotSettled(f"not as wanted after {within:.0f} s: {why or 'it keeps changing'}")

    async def operate(self, request: Callable[[float], Event], pool: str = "") -> None:
        """An operator's request of a pool, else the first, repeated until a daemon has it in its journal."""
        while True:
            process = self.running
            if process is None or process.frozen:
                await self.clock.sleep(0.5)
                continue
            run = process.daemon.runs[pool or self.pool.name]
            task = self.loop.spawn(process.name, run.tell(request(self.clock.now() + process.ahead)))
            while not task.done() and not process.ended:
                await self.clock.sleep(0.1)
            if task.done():
                return task.result()


def _land(land: Callable[[], object]) -> None:
    with contextlib.suppress(CloudError):
        land()
