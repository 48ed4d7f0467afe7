"""The daemon: one list of named root tasks, started and stopped together.

Embeddable: tests and the demo run it in their own event loop. Stopping it touches no node; killing it at any
instant loses nothing that was journalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import structlog

from cloud.clock import SystemClock
from cloud.errors import Denied
from cloud.ports import Clock, Lease, LeaseHolder
from cloud.serving.sockets import reason_of
from orchestrator import __version__
from orchestrator.api import agents
from orchestrator.api.api import Api
from orchestrator.api.gauges import Gauges
from orchestrator.api.listeners import Listeners
from orchestrator.api.listeners import StartError as StartError  # what a start raises
from orchestrator.api.reloading import Reloader
from orchestrator.api.status import status_line
from orchestrator.config.load import Config
from orchestrator.config.sockets import reading_socket
from orchestrator.config.types import SQLITE
from orchestrator.daemon.standby import Standby
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import Store, StoreUnavailable, Superseded
from orchestrator.lease.file import FileLease
from orchestrator.lease.pair import OpenShared, Shared, open_shared
from orchestrator.loop.actuator import Actuator
from orchestrator.loop.hearing import hear
from orchestrator.loop.inbox import Inbox
from orchestrator.loop.ledger import Ledger
from orchestrator.loop.loop import Loop, Snapshot
from orchestrator.loop.observer import Observer, Pace
from orchestrator.loop.recorder import Recorder
from orchestrator.supervision import Supervisor
from orchestrator.views import api as views
from orchestrator.wiring.ports import Ports, connect, engine_spec
from policies.events import DaemonStarted, Event
from policies.memory import Memory, reduce
from policies.resize import configured

log = structlog.get_logger("daemon")

SNAPSHOT_EVERY = 900.0
_STALLED_AFTER = 60.0


class OpenStore(Protocol):
    """Opens the journal; see `SqliteStore.open`."""

    def __call__(self, path: Path, *, now: float, inline: bool = False) -> SqliteStore:
        """The journal at `path`. Raises StoreUnavailable."""
        ...


class MakeLease(Protocol):
    """Makes the lease of a state directory, not acquired yet; see `FileLease`."""

    def __call__(self, path: Path, *, now: float) -> FileLease:
        """The lease at `path`."""
        ...


class Daemon:
    """One daemon on one state directory. `start`, then `wait`, then `stop`.

    `ports` replaces the world outside, `clock` the time, `open_store` and `make_lease` what is kept in the
    state directory, `open_shared` what a pair of daemons shares. `supervisor` hears of every completed turn.
    `threads=False` runs the journal in place, and `listen=False` opens no socket, for event loops that permit
    neither.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock | None = None,
        ports: Ports | None = None,
        threads: bool = True,
        listen: bool = True,
        open_store: OpenStore = SqliteStore.open,
        make_lease: MakeLease = FileLease,
        open_shared: OpenShared = open_shared,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._threads, self._listen = threads, listen
        self._make_store, self._make_lease, self._make_shared = open_store, make_lease, open_shared
        self._clock = clock if clock is not None else SystemClock()
        self._inbox = Inbox()
        self.reloader = Reloader(
            config,
            clock=self._clock,
            threads=threads,
            last=lambda: self.loop.last if self.loop is not None else None,
            apply=self._reconfigure,
            tell=self._inbox.put,
        )
        self._ports = ports
        self._supervisor = supervisor if supervisor is not None else Supervisor({})
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._roots: dict[str, Coroutine[Any, Any, None]] = {}
        self._listeners = Listeners()
        self._place: FileLease | None = None  # of the state directory
        self._lease: Lease | None = None  # the right to act
        self._standby: Standby | None = None
        self._store: Store | None = None
        self._started_at = self._led_at = 0.0
        self._epoch = 0
        self._failed: asyncio.Future[str] | None = None
        self.loop: Loop | None = None
        self._ledger: Ledger | None = None

    @property
    def _config(self) -> Config:
        """The configuration in force."""
        return self.reloader.config

    async def start(self) -> None:
        """Take the lease, read the journal, open the sockets, start the tasks. Raises StartError."""
        settings = self._config.daemon
        self._started_at = self._clock.now()
        self._failed = asyncio.get_running_loop().create_future()
        try:
            settings.state_dir.mkdir(parents=False, exist_ok=True)
        except OSError as error:
            raise StartError(
                f"{settings.state_dir}: the state directory cannot be made ({error.strerror}); "
                "make it, or set daemon.state_dir"
            ) from error
        place = self._make_lease(settings.state_dir / "lease", now=self._started_at)
        try:
            last = await place.acquire()
        except Denied as error:
            raise StartError(str(error)) from error
        self._place = place
        try:
            if settings.store == SQLITE:
                await self._lead_alone(place, after=last.epoch)
            else:
                await self._join(place)
        except StoreUnavailable as error:
            await self.stop()
            meanwhile = "; no notice is acted on until this daemon runs" if settings.store == SQLITE else ""
            raise StartError(f"{error}{meanwhile}") from error
        except BaseException:
            await self.stop()
            raise

    async def _lead_alone(self, place: FileLease, *, after: int) -> None:
        """The lock of the state directory is the right to act; its last holder had the epoch `after`."""
        self._lease = place
        store = self._store = self._open_store()
        epoch = await store.next_epoch(self._started_at, after=after)
        await self._begin(store, place, epoch, at=self._started_at)

    async def _join(self, place: FileLease) -> None:
        """Lead, or stand by while the other daemon of the pair does."""
        shared = self._make_shared(self._config, clock=self._clock, seat=place.seat)
        self._store, self._lease = shared.store, shared.lease
        try:
            holder = await shared.lease.acquire()
        except Denied:
            seconds, supervisor = self._config.daemon.lease, self._supervisor
            standby = self._standby = Standby(
                shared.lease,
                pool=self._config.pool_name,
                clock=self._clock,
                seconds=seconds,
                supervisor=supervisor,
                daemon=self.describe,
            )
            if self._listen:
                await self._serve(standby)
            self._spawn("stand by", self._stand_by(standby, shared), may_end=True)
        else:
            await self._take_over(holder, shared)

    async def _stand_by(self, standby: Standby, shared: Shared) -> None:
        holder = await standby.wait()
        self._standby = None
        await self._take_over(holder, shared)

    async def _take_over(self, holder: LeaseHolder, shared: Shared) -> None:
        self._spawn("hold the lease", shared.lease.keep())
        shared.store.begin_epoch(holder.epoch)
        await self._begin(shared.store, shared.lease, holder.epoch, at=self._clock.now())

    async def _begin(self, store: Store, lease: Lease, epoch: int, *, at: float) -> None:
        """Read the journal and start to work."""
        settings, name = self._config.daemon, self._config.pool_name
        self._epoch, self._led_at = epoch, at
        if self._place is not None:
            self._place.record(epoch)
        memory = await store.load(name)
        ports = self._ports = self._ports if self._ports is not None else self._connect()
        await self.reloader.begin(memory, partial(ports.machines, name, settings.call_timeout))
        news = (DaemonStarted(at=at, epoch=epoch), configured(self._config.wanted, at=at))
        await store.append(name, news)
        totals = await store.totals(name)
        store.keep_turns_for, store.keep_turns_bytes = settings.keep_turns, settings.keep_turns_size
        self._assemble(store, lease, ports, reduce(memory, *news), Ledger(name, store, totals))
        if self._listen:
            await self._open_sockets(store, ports)
        self._start_tasks(ports, store)
        log.info("started", epoch=self._epoch, pool=name, state_dir=str(settings.state_dir))

    def _connect(self) -> Ports:
        try:
            return connect(self._config, self._clock)
        except OSError as error:
            raise StartError(f"{error.filename}: cannot be read ({reason_of(error)})") from error
        except ValueError as error:
            raise StartError(str(error)) from error

    def _open_store(self) -> Store:
        path = self._config.daemon.state_dir / "journal.db"
        store = self._make_store(path, now=self._started_at, inline=not self._threads)
        if store.set_aside is not None:
            log.error(
                "journal.corrupt",
                set_aside=str(store.set_aside),
                effect="memory is rebuilt from what the cloud shows; nothing is ended before that",
            )
        return store

    def _assemble(self, store: Store, lease: Lease, ports: Ports, memory: Memory, ledger: Ledger) -> None:
        """Build the parts; nothing runs yet."""
        settings, name = self._config.daemon, self._config.pool_name
        inbox = self._inbox
        observer = Observer(
            pool=name,
            clock=self._clock,
            instances=ports.instances,
            offerings=ports.offerings,
            balancers=ports.balancers,
            engine=ports.engine,
            pace=Pace(
                instances=settings.poll_instances,
                offerings=settings.poll_offerings,
                targets=settings.poll_targets,
                engines=settings.probe_interval,
                hurry=min(settings.tick, settings.poll_instances, settings.poll_targets),
                call_timeout=settings.call_timeout,
                probe_concurrency=settings.probe_concurrency,
            ),
            wake=inbox.poke,
            condemned=partial(agents.verdict, ports.agents) if ports.agents is not None else lambda _: "",
            sources=ports.notices,
        )
        actuator = Actuator(
            pool=name,
            clock=self._clock,
            instances=ports.instances,
            balancers=ports.balancers,
            command=ports.command,
            call_timeout=settings.call_timeout,
            emit=inbox.put,
            leading=lease.valid,
            failsafe=lambda: lease.unanswered() is not None,
            node_says=partial(agents.boot_words, ports.agents) if ports.agents is not None else lambda _: "",
        )
        self._observer, self._actuator, self._ledger = observer, actuator, ledger
        quiet = settings.record_turns
        self.loop = Loop(
            pool=self._config.wanted,
            memory=memory,
            clock=self._clock,
            lease=lease,
            epoch=self._epoch,
            journal=store,
            ledger=ledger,
            inbox=inbox,
            observer=observer,
            actuator=actuator,
            tick=self._tick(settings.tick),
            recorder=Recorder(store.turns(name), quiet=quiet) if quiet is not None else None,
            on_turn=self._after_turn,
        )

    def _start_tasks(self, ports: Ports, store: Store) -> None:
        """Start one task for each root of work: last, so that a start that is refused has done nothing."""
        if self.loop is None:
            raise StartError("the loop was not built")
        roots = {
            "loop": self.loop.run(),
            "keep journal small": self._compact(store),
            **self._observer.tasks(),
            **{f"write {n}": writer.run() for n, writer in self._actuator.writers.items()},
            **{f"hear {source.name}": hear(source, self._inbox, self._clock) for source in ports.notices},
        }
        for name, work in roots.items():
            self._spawn(name, work)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None], *, may_end: bool = False) -> None:
        self._roots[name] = work
        self._tasks[name] = asyncio.create_task(self._guard(name, work, may_end=may_end), name=name)

    async def _open_sockets(self, store: Store, ports: Ports) -> None:
        """Open the listeners, in the place of those of the standby."""
        if self.loop is None or self._ledger is None:
            raise StartError("the loop was not built")
        api = Api(
            loop=self.loop,
            inbox=self._inbox,
            ledger=self._ledger,
            store=store,
            clock=self._clock,
            daemon=self.describe,
            alive=self.alive,
            gauges=self._gauges(self.loop, self._ledger),
            reloader=self.reloader,
            agents=ports.agents,
        )
        await self._serve(api)
        if ports.agents is not None:
            ports.agents.owned = self._knows
            name, names = self._config.pool_name, self._config.daemon.allowed_hosts
            await self._listeners.open_agents(name, self._config.pool.agents, names, ports.agents)

    async def _serve(self, api: Api | Standby) -> None:
        """Open the sockets, in the place of those that were served before."""
        settings, listeners = self._config.daemon, self._listeners
        await listeners.close()
        await listeners.open_unix(settings.socket, "control", api.control_app(), 0o660)
        if settings.readers == "all":
            await listeners.open_unix(reading_socket(settings.socket), "reading", api.reading_app(), 0o666)
        if settings.listen is not None:
            app, names = api.monitoring_app(), settings.allowed_hosts
            await listeners.open_tcp(settings.listen, "monitoring", "daemon.listen", app, names)

    def _knows(self, node: str) -> bool:
        """False of what is certainly no node of ours. Before the first turn anybody may be one."""
        last = self.loop.last if self.loop is not None else None
        return last is None or bool(last.world.unlisted) or node in last.fleet.by_id

    def _gauges(self, loop: Loop, ledger: Ledger) -> Gauges:
        clock = self._clock
        return Gauges(
            loop=loop,
            totals=lambda: ledger.totals,
            state_dir=self._config.daemon.state_dir,
            sources=self._ports.notices if self._ports is not None else (),
            inbox=self._inbox,
            clock_step=clock.step if isinstance(clock, SystemClock) else lambda: 0.0,
            agents=self._ports.agents if self._ports is not None else None,
        )

    def _tick(self, wanted: float) -> float:
        """The longest pause between two turns: the watchdog is fed by them."""
        pace = self._supervisor.pace
        return wanted if pace is None else min(wanted, pace)

    async def _reconfigure(self, config: Config, wait: bool) -> None:
        """Put a changed configuration into force, all of it in one turn."""
        logging.getLogger().setLevel(config.daemon.log_level.upper())
        if self._standby is not None:
            return  # it begins with what is in force when it takes over
        if self.loop is None or self._store is None or self._ports is None:
            raise StartError("the loop was not built")
        settings, store = config.daemon, self._store
        store.keep_turns_for, store.keep_turns_bytes = settings.keep_turns, settings.keep_turns_size
        self._actuator.command = self._ports.engine.command(engine_spec(config.pool))
        self.loop.reconfigure(config.wanted, tick=self._tick(settings.tick))
        ticket = self._inbox.put(configured(config.wanted, at=self._clock.now()))
        if wait:
            await self._inbox.written(ticket)

    async def tell(self, event: Event) -> None:
        """Hand an operator's request to the loop; returns once it is in the journal. Call after `start`."""
        await self._inbox.written(self._inbox.put(event))

    async def wait(self) -> str:
        """Until a root task ends, which none should; returns its name and how."""
        if self._failed is None:
            raise StartError("the daemon was not started")
        return await self._failed

    async def stop(self) -> None:
        """Stop everything; touches no node and no target set. Idempotent."""
        await self._listeners.close()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        for work in self._roots.values():
            work.close()  # one whose task never got to run
        self._roots.clear()
        if self.loop is not None:
            await self._actuator.stop()
            await self._observer.stop()
        if self._ledger is not None and self._store is not None:
            with contextlib.suppress(Superseded):
                await self._ledger.write()
        if self._ports is not None:
            await self._ports.close()
        if self._store is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._store.flush(self._config.pool_name)
            self._store.close()
        for lease in (self._lease, self._place):
            if lease is not None:
                await lease.release()

    def describe(self) -> views.DaemonView:
        """The daemon itself, for status pages."""
        now = self._clock.now()
        last = self.loop.last if self.loop is not None else None
        pause = last.memory.pause if last is not None else None
        held = pause is not None and pause.holds(now)
        return views.DaemonView(
            version=__version__,
            pid=os.getpid(),
            epoch=self._epoch,
            uptime_s=now - self._started_at,
            leading=self._lease is not None and self._lease.valid(),
            database_silent_s=self._lease.unanswered() if self._lease is not None else None,
            leader=self._standby.leader if self._standby is not None else None,
            paused=views.PausedView(by=pause.by, reason=pause.reason, until=pause.until)
            if pause is not None and held
            else None,
            journal_ok=last.world.durable if last is not None else True,
            last_turn_s=now - last.at if last is not None else now - self._started_at,
            turns=self.loop.turns if self.loop is not None else 0,
            config=self.reloader.state(),
        )

    def alive(self) -> bool:
        """True while the loop turns."""
        last = self.loop.last if self.loop is not None else None
        since = last.at if last is not None else self._led_at
        return self._clock.now() - since < _STALLED_AFTER

    # -- root tasks --------------------------------------------------------------------------------

    async def _guard(self, name: str, work: Coroutine[Any, Any, None], *, may_end: bool) -> None:
        """A root task that fails or ends takes the daemon down: half a daemon is worse than a restart."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("task.failed", task=name)
            self._fail(f"{name} failed: {type(error).__name__}: {error}")
        else:
            if not may_end:
                self._fail(f"{name} ended")

    def _fail(self, text: str) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(text)

    async def _compact(self, store: Store) -> None:
        """Snapshot memory now and then, so that a restart reads little and the file stays small."""
        while True:
            await self._clock.sleep(SNAPSHOT_EVERY)
            while self.loop is None or not self.loop.settled:
                await self._clock.sleep(self._config.daemon.tick)
            try:
                keep_after = self._clock.now() - self._config.daemon.keep_events
                await store.snapshot(self._config.pool_name, self.loop.memory, keep_after=keep_after)
            except Superseded:
                raise
            except StoreUnavailable as error:
                log.warning("journal.no_snapshot", error=str(error))

    def _after_turn(self, snapshot: Snapshot) -> None:
        note = self.reloader.note
        self._supervisor.works(snapshot.at, lambda: status_line(snapshot) + (f"; {note}" if note else ""))
        if self._ports is not None and self._ports.metadata is not None:
            self._ports.metadata.watch(snapshot.world.instances)
        if self._ports is not None and self._ports.agents is not None:
            self._ports.agents.keep(snapshot.fleet.by_id)
