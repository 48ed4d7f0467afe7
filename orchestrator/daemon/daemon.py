"""The daemon as a process: the lease, the journal, the sockets and the configuration of all its pools.

Embeddable: tests and the demo run it in their own event loop. Stopping it touches no node; killing it at any
instant loses nothing that was journalled. What is done for one pool alone is in `pool_run`, and how one that
fails is kept from the others in `pools`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from cloud.balancers.routes import read_routes
from cloud.clock import SystemClock
from cloud.errors import Denied
from cloud.logger import structlog
from cloud.ports import Clock, Lease, LeaseHolder
from orchestrator import __version__
from orchestrator.api.api import Api
from orchestrator.api.gauges import Gauges
from orchestrator.api.listeners import Listeners
from orchestrator.api.listeners import StartError as StartError  # what a start raises
from orchestrator.api.reloading import Reloader
from orchestrator.api.status import status_line
from orchestrator.config.load import Config
from orchestrator.config.sockets import reading_socket
from orchestrator.config.types import SQLITE
from orchestrator.daemon.heir import Heirs, Replace, replace_gateway
from orchestrator.daemon.outside import Ask, Outside
from orchestrator.daemon.pool_run import Connect, Footing, PoolRun
from orchestrator.daemon.pools import Pools
from orchestrator.daemon.roots import Roots
from orchestrator.daemon.standby import Standby
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import Store, StoreUnavailable
from orchestrator.lease.file import FileLease
from orchestrator.lease.pair import OpenShared, Shared, open_shared
from orchestrator.loop.loop import Snapshot
from orchestrator.supervision import Supervisor
from orchestrator.views import api as views
from orchestrator.wiring.ports import connect
from policies.budget import Shares
from policies.events import Event
from policies.grant import SharedBudget

log = structlog.get_logger("daemon")


_IDLE: Final = 10.0
"""Seconds between two looks at whether there is a pool."""


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
    """One daemon on one state directory. `start`, then `wait`, then `stop`. `runs` are its pools by name.

    `connect` replaces the world outside, `clock` the time, `open_store` and `make_lease` what is kept in the
    state directory, `open_shared` what a pair of daemons shares, `replace` what begins another gateway.
    `supervisor` hears of every completed turn.
    `threads=False` runs the journal in place, and `listen=False` opens no socket, for event loops that permit
    neither.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock | None = None,
        connect: Connect = connect,
        threads: bool = True,
        listen: bool = True,
        open_store: OpenStore = SqliteStore.open,
        make_lease: MakeLease = FileLease,
        open_shared: OpenShared = open_shared,
        replace: Replace = replace_gateway,
        ask: Ask = read_routes,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._threads, self._listen, self._connect = threads, listen, connect
        self._make_store, self._make_lease, self._make_shared = open_store, make_lease, open_shared
        self._clock = clock if clock is not None else SystemClock()
        self.reloader = Reloader(
            config,
            clock=self._clock,
            threads=threads,
            last=lambda name: self.runs[name].last if name in self.runs else None,
            apply=self._reconfigure,
            tell=self._put,
        )
        self._heirs = Heirs(
            replace,
            held_up=lambda: any(run.leaving for run in self.runs.values()),
            failed=lambda why: self.reloader.complain([why], "the gateway goes by the one before"),
        )
        self._supervisor = supervisor if supervisor is not None else Supervisor({})
        self._roots = Roots(lambda text, _: self._fail(text))
        self._listeners = Listeners()
        self._place: FileLease | None = None  # of the state directory
        self._lease: Lease | None = None  # the right to act
        self._standby: Standby | None = None
        self._store: Store | None = None
        self._pools: Pools | None = None
        self._outside: Outside | None = None
        self._ask = ask
        self._started_at = 0.0
        self._failed: asyncio.Future[str] | None = None

    @property
    def runs(self) -> Mapping[str, PoolRun]:
        """The pools by name; none before the daemon leads."""
        return self._pools.runs if self._pools is not None else {}

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
        await self._begin(store, place, epoch)

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
                pools=tuple(self._config.pools),
                clock=self._clock,
                seconds=seconds,
                supervisor=supervisor,
                daemon=self.describe,
            )
            if self._listen:
                await self._serve(standby)
            self._roots.start("stand by", self._stand_by(standby, shared), may_end=True)
        else:
            await self._take_over(holder, shared)

    async def _stand_by(self, standby: Standby, shared: Shared) -> None:
        holder = await standby.wait()
        self._standby = None
        await self._take_over(holder, shared)

    async def _take_over(self, holder: LeaseHolder, shared: Shared) -> None:
        self._roots.start("hold the lease", shared.lease.keep())
        shared.store.begin_epoch(holder.epoch)
        await self._begin(shared.store, shared.lease, holder.epoch)

    async def _begin(self, store: Store, lease: Lease, epoch: int) -> None:
        """Read the journal and start to work."""
        if self._place is not None:
            self._place.record(epoch)
        self._keep_turns(store)
        compacting = asyncio.Lock()
        outside = self._outside = Outside(
            lambda: self._config,
            clock=self._clock,
            store=store,
            ask=self._ask,
            compacting=compacting,
            threads=self._threads,
        )
        footing = Footing(
            clock=self._clock,
            store=store,
            lease=lease,
            epoch=epoch,
            connect=self._connect,
            confirm=self.reloader.confirm,
            pace=self._supervisor.pace,
            listen=self._listen,
            turned=self._after_turn,
            shares=Shares(SharedBudget(), self._config.pools),
            compacting=compacting,
        )
        pools = self._pools = Pools(footing, give_up=self._fail, gone=self._heirs.look)
        wrong = await pools.begin(self._config)
        if wrong:
            self.reloader.complain(wrong, "everything else in the file is in force")
        if self._listen:
            api = self._api(pools, store, outside)
            await self._serve(api)
            self._roots.start("look at routes and providers", outside.run())
            self._roots.start("look at costs", api.cost_watch.run())
        pools.start()
        self._roots.start("show signs of life", self._live())
        log.info(
            "daemon.started",
            epoch=epoch,
            pools=list(pools.runs),
            state_dir=str(self._config.daemon.state_dir),
        )

    def _open_store(self) -> Store:
        path = self._config.daemon.state_dir / "journal.db"
        store = self._make_store(path, now=self._started_at, inline=not self._threads)
        if store.set_aside is not None:
            log.error(
                "journal.set_aside",
                set_aside=str(store.set_aside),
                effect="memory is rebuilt from what the cloud shows; nothing is ended before that",
            )
        return store

    def _keep_turns(self, store: Store) -> None:
        settings = self._config.daemon
        store.keep_turns_for, store.keep_turns_bytes = settings.keep_turns, settings.keep_turns_size

    def _api(self, pools: Pools, store: Store, outside: Outside) -> Api:
        clock = self._clock
        return Api(
            runs=pools.runs,
            store=store,
            clock=clock,
            daemon=self.describe,
            gauges=Gauges(
                runs=pools.runs,
                state_dir=self._config.daemon.state_dir,
                clock_step=clock.step if isinstance(clock, SystemClock) else lambda: 0.0,
            ),
            reloader=self.reloader,
            outside=outside,
        )

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

    async def _reconfigure(self, config: Config, wait: bool, changed: Sequence[str]) -> None:
        """Put a changed configuration into force, all of it in one turn of each pool.

        `changed`: the keys that the gateway reads.
        """
        logging.getLogger().setLevel(config.daemon.log_level.upper())
        if self._standby is not None:
            return  # it begins with what is in force when it takes over
        if self._store is None or self._pools is None:
            raise StartError("the daemon was not started")
        self._keep_turns(self._store)
        reconfigured = self._pools.reconfigure(config, wait=wait)
        self._heirs.want(config.gateway.socket, changed)
        await reconfigured
        if self._outside is not None:
            self._outside.poke()

    def _put(self, event: Event, pools: Collection[str]) -> None:
        """Have these pools hear of something that concerns them."""
        for name in pools:
            if name in self.runs:
                self.runs[name].inbox.put(event)

    async def wait(self) -> str:
        """Until the daemon has to end, which it never should; returns why."""
        if self._failed is None:
            raise StartError("the daemon was not started")
        return await self._failed

    async def stop(self) -> None:
        """Stop everything; touches no node and no target set. Idempotent."""
        await self._listeners.close()
        await self._roots.stop()
        await self._heirs.stop()
        if self._pools is not None:
            await self._pools.stop()
        if self._store is not None:
            self._store.close()
        for lease in (self._lease, self._place):
            if lease is not None:
                await lease.release()

    def describe(self) -> views.DaemonView:
        """The daemon itself, for status pages."""
        now, runs = self._clock.now(), self.runs.values()
        turns = [run.last for run in runs if run.last is not None]
        paused = [turn.memory.pause for turn in turns if turn.memory.pause and turn.memory.pause.holds(now)]
        pause = paused[0] if paused and len(paused) == len(self.runs) else None
        return views.DaemonView(
            version=__version__,
            pid=os.getpid(),
            epoch=self._store.epoch if self._store is not None else 0,
            uptime_s=now - self._started_at,
            leading=self._lease is not None and self._lease.valid(),
            database_silent_s=self._lease.unanswered() if self._lease is not None else None,
            leader=self._standby.leader if self._standby is not None else None,
            paused=views.PausedView(by=pause.by, reason=pause.reason, until=pause.until) if pause else None,
            journal_ok=all(turn.world.durable for turn in turns),
            last_turn_s=now - min((turn.at for turn in turns), default=self._started_at),
            turns=sum(run.turns for run in runs),
            config=self.reloader.state(),
        )

    # -- root tasks --------------------------------------------------------------------------------

    def _fail(self, text: str) -> None:
        """A root task of the process that fails or ends takes the daemon down."""
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(text)

    async def _live(self) -> None:
        """Tell the service manager that the process works while there is no pool whose turns say so."""
        while True:
            if not self.runs:
                self._supervisor.works(self._clock.now(), lambda: "no pool: the gateway serves routes alone")
            await self._clock.sleep(self._supervisor.pace or _IDLE)

    def _after_turn(self, snapshot: Snapshot) -> None:
        self._supervisor.works(snapshot.at, self._line)

    def _line(self) -> str:
        """The daemon in one line."""
        found = []
        for run in self.runs.values():
            down = run.why_down()
            if down:
                found.append(f"{run.name}: down, {down}")
            elif run.last is not None:
                found.append(status_line(run.last))
        return "; ".join([*found, *filter(None, (self.reloader.note,))])
