"""The life of every machine: launch, boot, engine process, stop, start, end, and what each costs.

A machine is up from the end of its boot to its end; its engine is a process (group) on it that may die by
itself, after which the machine stays up with nothing on it, as in a real cloud.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cloud.errors import CloudError, InsufficientCapacity, Misconfigured, NotFound
from cloud.local.config import LocalCloudConfig
from cloud.local.containers import Containers
from cloud.local.engine_process import (
    EngineProcess,
    bound_log,
    fill,
    length,
    read_beginning,
    read_end,
    start_engine,
)
from cloud.local.guard import Guard
from cloud.local.hosts import Hosts
from cloud.local.processes import (
    MARK,
    belonging,
    kill_belonging,
    kill_for_good,
    signal_all,
    signal_group,
    start_time,
)
from cloud.local.sales import Sales
from cloud.local.table import ENDED, TERMINATED, Identity, Machine, Reclaim, Table
from cloud.logger import structlog
from cloud.node_log import StartLog
from cloud.ports import Clock, LaunchRequest
from policies.model import InstanceState, Market, Placement
from policies.starts import NodeStart

log = structlog.get_logger("local")

_TOKEN_LENGTH = 64


class Machines:
    """All machines of one cloud. Runs on one event loop; every change is in the table before it is real."""

    def __init__(
        self,
        *,
        config: LocalCloudConfig,
        identity: Identity,
        table: Table,
        sales: Sales,
        clock: Clock,
        guard: Guard,
        on_up: Callable[[Machine], None],
        on_down: Callable[[Machine], None],
    ) -> None:
        """`on_up` and `on_down` are called when a machine comes up on its address and when it leaves it."""
        self._config = config
        self._identity = identity
        self._table = table
        self._sales = sales
        self._clock = clock
        self._guard = guard
        self._on_up = on_up
        self._on_down = on_down
        self._engines: dict[str, EngineProcess] = {}
        self._boots: dict[str, asyncio.Task[None]] = {}
        self._endings: dict[str, asyncio.Task[None]] = {}
        self._dying: dict[int, EngineProcess] = {}
        self._unswept: dict[str, int] = {}  # mark -> group
        self._containers = Containers(identity.cloud)
        self._hosts = Hosts(identity.network, (config.engine_port, config.metadata_port))

    # -- looking ------------------------------------------------------------------------------------------

    def all_held(self) -> tuple[Machine, ...]:
        """Machines that take up capacity anywhere, oldest first."""
        return tuple(machine for machine in self._table.machines() if machine.held)

    def held(self, zone: str, instance_type: str, market: Market) -> list[Machine]:
        """Machines that take up an offering's capacity now, oldest first."""
        return [
            machine
            for machine in self.all_held()
            if machine.placement.zone == zone
            and machine.placement.instance_type == instance_type
            and machine.placement.market is market
        ]

    def console(self, node: str) -> str:
        """The end of what the engine of a machine wrote, empty once that is not kept any more.

        Raises NotFound for a machine that is not remembered.
        """
        if self._table.get(node) is None:
            raise NotFound(f"no instance {node!r}")
        return read_end(self.log_path(node))

    def started(self, node: str) -> NodeStart | None:
        """What is known of the newest start of a machine's engine, None before it. Raises NotFound."""
        machine = self._table.get(node)
        if machine is None:
            raise NotFound(f"no instance {node!r}")
        if machine.engine_at is None:
            return None
        start = StartLog()
        for line in read_beginning(self.log_path(node), machine.log_from):
            start.take(line)
        told, stages = start.told(), [("start", machine.engine_at)]
        if machine.command.container is not None:
            own = self._containers.stages(self._directory(node), machine.engine_at)
            stages = [("checks", machine.engine_at), *own]
        return NodeStart(stages=tuple(stages), took=told["took"], serves=told["serves"])

    # -- what clients ask for -----------------------------------------------------------------------------

    def launch(self, request: LaunchRequest) -> Machine:
        """Launch, or give the machine that this token launched before.

        Raises Misconfigured for a request that makes no sense here, InsufficientCapacity, QuotaExceeded.
        """
        self._check(request)
        known = self._table.by_token(request.token)
        if known is not None:
            if (known.pool, known.placement) != (request.pool, request.placement):
                raise Misconfigured(
                    f"token {request.token!r} has launched {known.id}, {known.placement}; use a new token"
                )
            return known
        self._need_capacity(request.placement)
        serial = self._table.next_serial()
        now = self._clock.now()
        machine = Machine(
            id=self._table.new_id(),
            serial=serial,
            token=request.token,
            pool=request.pool,
            placement=request.placement,
            command=request.command,
            standby=request.standby,
            state=InstanceState.PENDING,
            host=self._free_host(),
            launched_at=now,
            boots_at=now + self._delay(self._config.boot_delay, serial),
            spells=((self._sales.market_now(), None),),
        )
        self._table.put(machine)
        self._begin_boot(machine.id)
        log.info("machine.launched", node=machine.id, placement=str(machine.placement), host=machine.host)
        return machine

    def terminate(self, node: str) -> None:
        """Begin the end of a machine; nothing to do when it is ending, ended, or was never there."""
        machine = self._table.get(node)
        if machine is None or machine.state in ENDED:
            return
        self._table.put(replace(machine, state=InstanceState.SHUTTING_DOWN, reason=TERMINATED))
        self._begin_ending(node, InstanceState.TERMINATED)

    def stop(self, node: str) -> None:
        """Begin to stop a machine. Raises NotFound when it is gone, Misconfigured for spot, as EC2 does."""
        machine = self._alive(node)
        if machine.state in (InstanceState.STOPPING, InstanceState.STOPPED):
            return
        if machine.placement.market is Market.SPOT:
            raise Misconfigured(f"{node} is a spot instance, which cannot be stopped; terminate it")
        self._table.put(replace(machine, state=InstanceState.STOPPING, reason="stopped"))
        self._begin_ending(node, InstanceState.STOPPED)

    def start(self, node: str) -> None:
        """Begin to start a stopped machine. Raises NotFound, InsufficientCapacity, CloudError (it stops)."""
        machine = self._alive(node)
        if machine.state in (InstanceState.PENDING, InstanceState.RUNNING):
            return
        if machine.state is InstanceState.STOPPING:
            raise CloudError(f"{node} is still stopping; start it once it is stopped. Nothing was done")
        self._need_capacity(machine.placement)
        now = self._clock.now()
        self._table.put(
            replace(
                machine,
                state=InstanceState.PENDING,
                boots_at=now + self._delay(self._config.stopped_start_delay, machine.serial),
                spells=(*machine.spells, (self._sales.market_now(), None)),
                reason="",
                engine_exit=None,
            )
        )
        self._begin_boot(node)

    # -- what the provider does ---------------------------------------------------------------------------

    def vanish(self, node: str, reason: str, *, reclaimed: bool = False) -> Machine | None:
        """Take a machine away at once, whatever it does. None when it is gone already."""
        machine = self._table.get(node)
        if machine is None or machine.state is InstanceState.TERMINATED:
            return None
        for tasks in (self._boots, self._endings):
            if (task := tasks.pop(node, None)) is not None:
                task.cancel()
        if reclaimed and machine.reclaim is not None:
            ended = replace(machine.reclaim, ended_at=self._clock.now())
            self._table.put(replace(machine, reclaim=ended))
        self._kill(machine)
        return self._ended(node, InstanceState.TERMINATED, reason)

    def mark(
        self, node: str, *, reclaim: Reclaim | None = None, recommended_at: float | None = None
    ) -> Machine:
        """Note what the provider has decided. Raises NotFound, also when a reclaim is decided already."""
        machine = self._alive(node)
        if reclaim is not None and machine.reclaim is not None:
            raise NotFound(f"{node} is already being reclaimed")
        machine = replace(
            machine,
            reclaim=machine.reclaim if reclaim is None else reclaim,
            recommended_at=machine.recommended_at if recommended_at is None else recommended_at,
        )
        self._table.put(machine)
        return machine

    def signal_engine(self, node: str, number: int) -> None:
        """Signal the whole process group of a machine's engine. Raises NotFound when nothing runs there."""
        machine = self._alive(node)
        engine = self._engines.get(machine.id)
        if engine is None or not engine.owns_group() or not signal_group(engine.group, number):
            raise NotFound(f"{node} has no engine process now")
        if machine.command.container is not None:  # its processes are in no group of ours
            signal_all(belonging((self._mark(machine),)), number)

    # -- the cloud's own life -----------------------------------------------------------------------------

    def recover(self) -> None:
        """After a restart: end what an earlier run left, go on booting what was about to boot.

        A machine whose engine the cloud can no longer answer for is lost, as if its host had failed.
        """
        groups: list[int] = []
        for machine in self._table.machines():
            if machine.group is not None:
                # The leader's start time tells our group from a stranger that got the same number.
                ours = start_time(machine.group) == machine.leader_began
                if ours:
                    groups.append(machine.group)
        kill_belonging((self._identity.cloud,), groups)
        self._containers.sweep(m.command.container for m in self._table.machines() if m.command.container)
        for machine in self._table.machines():
            if machine.state is InstanceState.PENDING and machine.reclaim is None:
                self._begin_boot(machine.id)
            elif machine.state is InstanceState.STOPPING:
                self._ended(machine.id, InstanceState.STOPPED, machine.reason)
            elif machine.state not in (InstanceState.STOPPED, InstanceState.TERMINATED):
                reason = machine.reason or "lost: the local cloud was killed"
                self._ended(machine.id, InstanceState.TERMINATED, reason)

    async def close(self) -> None:
        """End every machine that runs. Stopped ones stay stopped."""
        tasks = [*self._boots.values(), *self._endings.values()]
        for task in tasks:
            task.cancel()
        for machine in self._table.machines():
            if machine.state is InstanceState.STOPPING:
                self._kill(machine)
                self._ended(machine.id, InstanceState.STOPPED, machine.reason)
            elif machine.state is not InstanceState.STOPPED:
                self.vanish(machine.id, machine.reason or "the local cloud was stopped")
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sweep()
        for engine in tuple(self._dying.values()):
            await engine.exited.wait()
        kill_for_good((self._identity.cloud,))
        await self._containers.close()

    def groups(self) -> dict[str, int]:
        """The process groups that live now, by node."""
        return {node: engine.group for node, engine in self._engines.items() if engine.owns_group()}

    def all_groups(self) -> tuple[int, ...]:
        """The process groups that live or were just killed and are not gone yet."""
        return (*self.groups().values(), *self._dying)

    def tidy(self) -> None:
        """Keep logs and memory within bounds, and remove what was left: call it every few seconds."""
        self._containers.retry()
        keeping = self._config.keeping
        for machine in self._table.machines():
            if machine.state is InstanceState.RUNNING:
                bound_log(self.log_path(machine.id), keeping.log_bytes)
        ended = [m for m in self._table.machines() if m.state is InstanceState.TERMINATED]
        for machine in ended[: max(0, len(ended) - keeping.ended_logs)]:
            shutil.rmtree(self._directory(machine.id), ignore_errors=True)
        for machine in ended[: max(0, len(ended) - keeping.ended_remembered)]:
            self._table.forget(machine.id)

    def log_path(self, node: str) -> Path:
        """Where the engine's output goes."""
        return self._directory(node) / "engine.log"

    # -- inside -------------------------------------------------------------------------------------------

    def _directory(self, node: str) -> Path:
        return self._config.state_dir / "nodes" / node

    def _mark(self, machine: Machine) -> str:
        return f"{self._identity.cloud}/{machine.id}"

    def _alive(self, node: str) -> Machine:
        machine = self._table.get(node)
        if machine is None or machine.state in ENDED:
            raise NotFound(f"{node} is gone" if machine else f"no instance {node!r}")
        return machine

    def _check(self, request: LaunchRequest) -> None:
        token, placement = request.token, request.placement
        if not token or not token.isascii() or len(token) > _TOKEN_LENGTH:
            raise Misconfigured(f"token {token!r}: 1 to {_TOKEN_LENGTH} ASCII characters")
        if not request.command.argv:
            raise Misconfigured("the engine command is empty")
        if request.command.stop_signal not in signal.Signals.__members__:
            raise Misconfigured(
                f"stop_signal {request.command.stop_signal!r} is no signal; for example SIGTERM"
            )
        if not self._sales.sells(placement):
            raise Misconfigured(f"{placement.provider} {placement}: not sold here; see the offerings")

    def _need_capacity(self, placement: Placement) -> None:
        zone, kind, market = placement.zone, placement.instance_type, placement.market
        most = self._sales.capacity(zone, kind, market, self._sales.market_now())
        if most is not None and len(self.held(zone, kind, market)) >= most:
            raise InsufficientCapacity(f"no capacity for {placement} now. Nothing was launched")

    def _delay(self, market_seconds: float, serial: int) -> float:
        """Real seconds of a delay, with the jitter that belongs to this machine."""
        jitter = random.Random(f"{self._config.seed}/boot/{serial}").uniform(-1.0, 1.0)  # noqa: S311
        return market_seconds * (1.0 + self._config.boot_jitter * jitter) / self._config.speed

    def _free_host(self) -> str:
        return self._hosts.next(
            {m.host for m in self._table.machines() if m.state is not InstanceState.TERMINATED}
        )

    def _begin_boot(self, node: str) -> None:
        task = asyncio.get_running_loop().create_task(self._boot(node), name=f"boot {node}")
        self._boots[node] = task
        task.add_done_callback(
            lambda _: self._boots.pop(node, None) if self._boots.get(node) is task else None
        )

    async def _boot(self, node: str) -> None:
        machine = self._table.get(node)
        if machine is None:
            return
        await self._clock.sleep(machine.boots_at - self._clock.now())
        await self._containers.gone(node)
        machine = self._table.get(node)
        if machine is None or machine.state is not InstanceState.PENDING:
            return
        self._run_engine(machine)

    def _run_engine(self, machine: Machine) -> None:
        """Start the engine and show the machine as running. No await: nothing can come in between."""
        values = {"host": machine.host, "port": str(self._config.engine_port)}
        argv = [fill(part, values) for part in machine.command.argv]
        own = {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{machine.host}:{self._config.metadata_port}",
            **machine.command.env,
            MARK: self._mark(machine),
        }
        if machine.command.container is not None:
            argv = self._containers.command(machine.id, machine.command.container, argv, own)
        environment = {**os.environ, **own}
        machine = replace(
            machine,
            state=InstanceState.RUNNING,
            engine_at=self._clock.now(),
            log_from=length(self.log_path(machine.id)),
        )
        try:
            process = start_engine(argv, environment, self._directory(machine.id), self.log_path(machine.id))
        except OSError as error:
            # As on a real machine: it is up, the service on it could not start.
            self._table.put(replace(machine, engine_exit=127))
            log.warning("engine.start_failed", node=machine.id, error=str(error))
        else:
            self._guard.began(process.pid)
            self._table.put(replace(machine, group=process.pid, leader_began=start_time(process.pid)))
            self._engines[machine.id] = EngineProcess(
                process, lambda code: self._engine_exited(machine.id, process.pid, code)
            )
        self._on_up(machine)

    def _engine_exited(self, node: str, group: int, code: int) -> None:
        self._dying.pop(group, None)
        engine = self._engines.get(node)
        if engine is not None and engine.group == group and not engine.owns_group():
            self._guard.ended(group)
        machine = self._table.get(node)
        if machine is not None and machine.state is InstanceState.RUNNING and machine.group == group:
            self._table.put(replace(machine, engine_exit=code))
            self._containers.remove(node, machine.command.container)  # the process may have been killed
            log.info("engine.exited", node=node, code=code)

    def _begin_ending(self, node: str, final: InstanceState) -> None:
        if (boot := self._boots.pop(node, None)) is not None:
            boot.cancel()
        if (ending := self._endings.pop(node, None)) is not None:
            ending.cancel()
        task = asyncio.get_running_loop().create_task(self._end(node, final), name=f"end {node}")
        self._endings[node] = task
        task.add_done_callback(
            lambda _: self._endings.pop(node, None) if self._endings.get(node) is task else None
        )

    async def _end(self, node: str, final: InstanceState) -> None:
        """Ask the engine to stop, give it its grace, then kill what is left."""
        machine = self._table.get(node)
        if machine is None:
            return
        engine = self._engines.get(node)
        if engine is not None and not engine.exited.is_set():
            engine.signal(signal.Signals[machine.command.stop_signal])
            await self._wait(engine.exited, machine.command.stop_grace)
        self._kill(machine)
        await self._containers.gone(node)
        self._ended(node, final, machine.reason)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._clock.sleep(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _kill(self, machine: Machine) -> None:
        """Kill every process of a machine. Does not wait: big engines take a while to be torn down."""
        engine = self._engines.pop(machine.id, None)
        if engine is None:
            return
        self._containers.remove(machine.id, machine.command.container)
        if engine.owns_group():
            signal_group(engine.group, signal.SIGKILL)
        if not engine.exited.is_set():
            self._dying[engine.group] = engine
        # Helpers may have left the group; looking for them takes milliseconds, so once for all that go now.
        if not self._unswept:
            asyncio.get_running_loop().call_soon(self._sweep)
        self._unswept[self._mark(machine)] = engine.group

    def _sweep(self) -> None:
        """Kill what carries the mark of a machine that has gone."""
        if self._unswept:
            kill_belonging(tuple(self._unswept))
            for group in self._unswept.values():
                self._guard.ended(group)
            self._unswept.clear()

    def _ended(self, node: str, final: InstanceState, reason: str) -> Machine | None:
        machine = self._table.get(node)
        if machine is None:
            return None
        now = self._clock.now()
        spells = machine.spells
        if spells and spells[-1][1] is None:
            spells = (*spells[:-1], (spells[-1][0], self._sales.market_now()))
        over = final is InstanceState.TERMINATED
        machine = replace(
            machine,
            state=final,
            spells=spells,
            reason=reason,
            ended_at=now if over else None,
            group=None,
            leader_began=None,
        )
        self._table.put(machine)
        self._on_down(machine)
        log.info("machine.ended", node=node, state=str(final), reason=reason)
        return machine
