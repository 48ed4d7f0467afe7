"""One pool of a daemon: its ports, its parts, and the root tasks that keep them going.

It can end and begin again while the daemon and its other pools go on. All that it needs for that comes from
its stream of the journal and from what the cloud shows, as at the start of a daemon; its inbox stays, so that
what was asked for meanwhile is not lost. Nothing here is shared with another pool but the journal's thread
and the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from cloud.agent_receiver import AgentReceiver
from cloud.logger import structlog
from cloud.ports import Clock, Lease, Notices
from cloud.serving.sockets import reason_of
from orchestrator.api import agents
from orchestrator.api.changes import emptied
from orchestrator.api.listeners import Listeners, StartError
from orchestrator.config.load import Config
from orchestrator.daemon.roots import Roots
from orchestrator.journal.store import Store, StoreUnavailable, Superseded, Totals
from orchestrator.loop.actuator import Actuator
from orchestrator.loop.gpu_watch import GpuWatch
from orchestrator.loop.inbox import Inbox
from orchestrator.loop.ledger import Ledger
from orchestrator.loop.loop import Loop, Snapshot
from orchestrator.loop.notices import hear
from orchestrator.loop.observer import Observer, Pace
from orchestrator.loop.recorder import Recorder
from orchestrator.loop.start_watch import StartWatch
from orchestrator.wiring.ports import Ports, engine_command
from policies.actions import ActionKind
from policies.budget import Shares, ask_of
from policies.events import DaemonStarted, Event
from policies.fleet import Fleet
from policies.grant import Ask
from policies.memory import Memory, reduce
from policies.model import Instance, Pool, World
from policies.resize import configured

log = structlog.get_logger("daemon")

SNAPSHOT_EVERY: Final = 900.0
"""Seconds between two snapshots of a pool's memory."""

STALLED_AFTER: Final = 60.0
"""Seconds without a completed turn after which a loop counts as one that does not turn."""

_CLOSES_WITHIN: Final = 10.0
"""Seconds that the ports of a run get to close their connections: a thread that hangs holds up no more."""

Connect = Callable[[Config, Clock], Ports]
"""Makes the ports of the only pool of a configuration; see `wiring.ports.connect`."""

Confirm = Callable[[Config, Memory, Callable[[], Awaitable[Sequence[Instance] | None]]], Awaitable[Config]]
"""What of a pool's configuration may be taken up at its start; see `Reloader.confirm`."""


@dataclass(frozen=True, kw_only=True)
class Footing:
    """What a daemon gives to each of its pools.

    `pace`: the longest pause between two turns that the service manager permits, None where it does not ask.
    `compacting`: held by the pool that tidies its journal, so that no write of another waits for two.
    """

    clock: Clock
    store: Store
    lease: Lease
    epoch: int
    connect: Connect
    confirm: Confirm
    pace: float | None
    listen: bool
    turned: Callable[[Snapshot], None]
    shares: Shares
    compacting: asyncio.Lock


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a pool does not run any more.

    `superseded`: another daemon has taken over. `emptied`: it was being removed, and has no nodes any more.
    """

    text: str
    superseded: bool = False
    emptied: bool = False


class PoolRun:
    """One pool: `begin`, then `start`, then `wait`, then `stop`; and again.

    `config` is the configuration of the daemon with this pool alone. `trouble` says in a sentence why the
    pool does not run now, empty while it does. `last` is its newest turn and `turns` counts them, also those
    before it was begun again. `failures` counts those of its root tasks.
    `leaving`: it is being removed, and drains and ends its nodes. `began_at`: when it was begun last.
    """

    def __init__(self, config: Config, footing: Footing) -> None:
        self.name = config.pool_name
        self.config = config
        self.inbox = Inbox()
        self.trouble = ""
        self.leaving = False
        self.last: Snapshot | None = None
        self.turns = 0
        self.failures = 0
        self.loop: Loop | None = None
        self.ports: Ports | None = None
        self.ledger: Ledger | None = None
        self._footing = footing
        self.began_at = footing.clock.now()
        self._actuator: Actuator | None = None
        self._observer: Observer | None = None
        self._listeners = Listeners()
        self._memory = Memory()  # as it was when the pool was begun last
        self._generations: dict[str, int] = {}  # of the newest target set, by balancer
        self._roots = Roots(self._root_ended, pool=self.name)
        self._failed: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()

    # -- what others ask of it -----------------------------------------------------------------------

    @property
    def wanted(self) -> Pool:
        """What the pool is to be: nothing, while it is being removed."""
        return emptied(self.config) if self.leaving else self.config.wanted

    @property
    def agents(self) -> AgentReceiver | None:
        """What takes the reports of its nodes; None where they do not report."""
        return self.ports.agents if self.ports is not None else None

    @property
    def gpus(self) -> GpuWatch | None:
        """What is known of the GPUs of its nodes; None before it was begun."""
        return self._observer.gpus if self._observer is not None else None

    @property
    def sources(self) -> Sequence[Notices]:
        """Its sources of notices."""
        return self.ports.notices if self.ports is not None else ()

    @property
    def totals(self) -> Totals:
        """Money since its journal began."""
        return self.ledger.totals if self.ledger is not None else Totals()

    @property
    def turned_at(self) -> float:
        """When its loop last turned, or was begun since."""
        return self.began_at if self.last is None else max(self.began_at, self.last.at)

    @property
    def patience(self) -> float:
        """Seconds without a turn after which its loop counts as one that does not turn."""
        return max(STALLED_AFTER, 3.0 * self._tick())

    def turning(self) -> bool:
        """True while its loop turns."""
        return not self.why_down()

    def why_down(self) -> str:
        """Why nothing is decided for this pool now; empty while its loop turns."""
        still = self._footing.clock.now() - self.turned_at
        return self.trouble or ("" if still < self.patience else f"its loop has not turned for {still:.0f} s")

    def ask(self) -> Ask:
        """What the pool asks of a shared budget, by its newest turn or its journal."""
        now = self._footing.clock.now()
        world = self.last.world if self.last is not None else World(now=now, regions={})
        memory = self.last.memory if self.last is not None else self._memory
        return ask_of(Fleet.of(self.wanted, world, memory), world, memory)

    async def tell(self, event: Event) -> None:
        """Hand an operator's request to the loop; returns once it is in the journal."""
        await self.inbox.written(self.inbox.put(event))

    # -- life ----------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Read the journal, connect, build the parts. Raises StartError, StoreUnavailable."""
        footing, settings = self._footing, self.config.daemon
        store, at = footing.store, footing.clock.now()
        memory = self._memory = await store.load(self.name)
        ports = self.ports = self._connect()
        if self.leaving:
            ports.leave()
        else:
            machines = partial(ports.machines, self.name, settings.call_timeout)
            self.config = await footing.confirm(self.config, memory, machines)
        news = (DaemonStarted(at=at, epoch=footing.epoch), configured(self.wanted, at=at))
        await store.append(self.name, news)
        self.ledger = Ledger(self.name, store, await store.totals(self.name), await store.counted(self.name))
        self._assemble(ports, reduce(memory, *news), self.ledger)
        ports.owned.judge = self._belongs
        if footing.listen and ports.agents is not None:
            table, names = self.config.pool.agents, settings.allowed_hosts
            await self._listeners.open_agents(self.name, table, names, ports.agents)

    def start(self) -> None:
        """Start one task for each root of work: last, so that a start that is refused has done nothing."""
        loop, observer, actuator, ports = self.loop, self._observer, self._actuator, self.ports
        if loop is None or observer is None or actuator is None or ports is None:
            raise StartError(f"pool {self.name} was not begun")
        self.trouble, self.began_at = "", self._footing.clock.now()
        self._failed = asyncio.get_running_loop().create_future()
        roots = {
            "loop": loop.run(),
            "keep journal small": self._compact(loop),
            **observer.tasks(),
            **{f"write {n}": writer.run() for n, writer in actuator.writers.items()},
            **{f"hear {s.name}": hear(s, self.inbox, self._footing.clock) for s in ports.notices},
        }
        for name, work in roots.items():
            self._roots.start(name, work)

    async def wait(self) -> Failure:
        """Until a root task ends, which none should."""
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """Stop everything; touches no node and no target set. Idempotent."""
        await self._listeners.close()
        await self._roots.stop()
        if self._actuator is not None:
            await self._actuator.stop()
            self._generations = {n: w.generation for n, w in self._actuator.writers.items()}
        if self._observer is not None:
            await self._observer.stop()
        if self.ledger is not None and self.loop is not None:
            with contextlib.suppress(Superseded):
                await self.ledger.write()
        if self.ports is not None:
            await self._close(self.ports)
        if self.loop is not None:
            with contextlib.suppress(StoreUnavailable):
                await self._footing.store.flush(self.name)
        self._actuator = self._observer = self.loop = self.ports = None

    async def reconfigure(self, config: Config, *, wait: bool) -> None:
        """Put a changed configuration into force, all of it in one turn. One that is down begins with it."""
        self.config = config
        if self.loop is None or self._actuator is None or self.ports is None:
            return
        if self.leaving:
            self.ports.leave()
        self._actuator.command = engine_command(self.ports.engine, config.pool)
        self.loop.reconfigure(self.wanted, tick=self._tick())
        ticket = self.inbox.put(configured(self.wanted, at=self._footing.clock.now()))
        if wait:
            await self.inbox.written(ticket)

    # -- parts ---------------------------------------------------------------------------------------

    def _connect(self) -> Ports:
        try:
            return self._footing.connect(self.config, self._footing.clock)
        except OSError as error:
            raise StartError(f"{error.filename}: cannot be read ({reason_of(error)})") from error
        except ValueError as error:
            raise StartError(str(error)) from error

    def _assemble(self, ports: Ports, memory: Memory, ledger: Ledger) -> None:
        footing, settings, inbox = self._footing, self.config.daemon, self.inbox
        observer = self._observer = Observer(
            pool=self.name,
            clock=footing.clock,
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
            gpus=GpuWatch(
                footing.clock,
                reported=ports.agents.gpus if ports.agents is not None else lambda _: None,
                exporter=ports.exporter,
                rules=lambda: self.wanted.gpu,
            ),
            sources=ports.notices,
        )
        actuator = self._actuator = Actuator(
            pool=self.name,
            clock=footing.clock,
            instances=ports.instances,
            balancers=ports.balancers,
            engine=ports.engine,
            command=ports.command,
            call_timeout=settings.call_timeout,
            emit=inbox.put,
            leading=footing.lease.valid,
            failsafe=lambda: footing.lease.unanswered() is not None,
            sees=lambda region: observer.age(region) <= self.wanted.patience.stale_after,
            node_says=partial(agents.boot_words, ports.agents) if ports.agents is not None else lambda _: "",
            generations=self._generations,
        )
        quiet, turns = settings.record_turns, footing.store.turns(self.name)
        turns.forget_unplaced()
        self.loop = Loop(
            pool=self.wanted,
            memory=memory,
            clock=footing.clock,
            lease=footing.lease,
            epoch=footing.epoch,
            journal=footing.store,
            ledger=ledger,
            inbox=inbox,
            observer=observer,
            actuator=actuator,
            tick=self._tick(),
            recorder=Recorder(turns, quiet=quiet) if quiet is not None else None,
            on_turn=self._after_turn,
            shares=footing.shares,
            starts=StartWatch(self.name, footing.clock, says=ports.starts, emit=inbox.put),
        )

    def _tick(self) -> float:
        """The longest pause between two turns: the watchdog is fed by them."""
        wanted, pace = self.config.daemon.tick, self._footing.pace
        return wanted if pace is None else min(wanted, pace)

    def _belongs(self, node: str) -> bool | None:
        """Whether a machine is a node of ours.

        That is not known before the first turn, while a region is not listed, and while a machine is launched
        that no list shows yet.
        """
        last, loop = self.last, self.loop
        if loop is None:
            return None
        memory = loop.memory  # of the turn that is under way, which may have launched already
        if node in memory.nodes or (last is not None and node in last.fleet.by_id):
            return True
        launching = any(intent.kind is ActionKind.LAUNCH for intent in memory.intents.values())
        return None if last is None or last.world.unlisted or launching else False

    def _after_turn(self, snapshot: Snapshot) -> None:
        self.last = snapshot
        self.turns += 1
        if self.ports is not None and self.ports.metadata is not None:
            self.ports.metadata.watch(snapshot.world.instances)
        if self.ports is not None and self.ports.agents is not None:
            self.ports.agents.keep(snapshot.fleet.by_id)
        self._footing.turned(snapshot)
        if self.leaving and self._is_empty(snapshot):
            self._fail(Failure("it has no nodes any more", emptied=True))

    def _is_empty(self, snapshot: Snapshot) -> bool:
        """True once all that the pool had is gone, as far as can be seen, and no balancer names it."""
        world, memory, plan = snapshot.world, snapshot.memory, snapshot.plan
        seen = world.listed and not snapshot.fleet.sight.unaccounted and world.durable and world.leading
        left = memory.nodes or memory.intents or plan.targets or plan.write or world.writing
        return seen and not left and self.loop is not None and self.loop.settled

    async def _close(self, ports: Ports) -> None:
        try:
            async with asyncio.timeout(_CLOSES_WITHIN):
                await ports.close()
        except TimeoutError:
            log.error("ports.close_failed", pool=self.name, seconds=_CLOSES_WITHIN)

    # -- root tasks ----------------------------------------------------------------------------------

    def _root_ended(self, text: str, error: Exception | None) -> None:
        """A root task that fails or ends takes its pool down: half a pool is worse than a restart."""
        self._fail(Failure(text, superseded=isinstance(error, Superseded)))

    def _fail(self, failure: Failure) -> None:
        if not self._failed.done():
            self._failed.set_result(failure)

    async def _compact(self, loop: Loop) -> None:
        """Snapshot memory now and then, so that a restart reads little and the file stays small."""
        while True:
            await self._footing.clock.sleep(SNAPSHOT_EVERY)
            while not await self._snapshot(loop):
                await self._footing.clock.sleep(self.config.daemon.tick)

    async def _snapshot(self, loop: Loop) -> bool:
        """Write one; False where memory holds what is not on disk, which no snapshot may tell."""
        async with self._footing.compacting:
            if not loop.settled:
                return False
            keep_after = self._footing.clock.now() - self.config.daemon.keep_events
            try:
                await self._footing.store.snapshot(self.name, loop.memory, keep_after=keep_after)
            except Superseded:
                raise
            except StoreUnavailable as error:
                log.warning("journal.snapshot_failed", pool=self.name, error=str(error))
            return True
