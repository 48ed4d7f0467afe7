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
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from cloud.errors import CloudError, Denied, InsufficientCapacity, NotFound, QuotaExceeded
from cloud.local.config import PROVIDER, LocalCloudConfig
from cloud.local.guard import Guard
from cloud.local.market import SpotMarket
from cloud.local.processes import MARK, dying_with_parent, kill_belonging, signal_group, start_time
from cloud.local.table import ENDED, Identity, Machine, Reclaim, Table
from cloud.ports import Clock, LaunchRequest
from policies.model import InstanceState, Market, Placement

log = structlog.get_logger(__name__)

_MOST_HOSTS = 254
_TOKEN_LENGTH = 64
_HOUR = 3600.0


class _Engine:
    """A running engine process. `exited` is set when its leader exits; the kernel says so through a pidfd."""

    def __init__(self, process: subprocess.Popen[bytes], on_exit: Callable[[int], None]) -> None:
        self.process = process
        self.exited = asyncio.Event()
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._descriptor: int | None = os.pidfd_open(process.pid)
        self._loop.add_reader(self._descriptor, self._reap)

    def forget(self) -> None:
        """Stop watching. The process must be dead; its exit is not told any more."""
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        self.process.wait()
        self.exited.set()

    def _reap(self) -> None:
        self.forget()
        self._on_exit(self.process.returncode)


class Machines:
    """All machines of one cloud. Runs on one event loop; every change is in the table before it is real."""

    def __init__(
        self,
        *,
        config: LocalCloudConfig,
        identity: Identity,
        table: Table,
        market: SpotMarket,
        clock: Clock,
        guard: Guard,
        on_up: Callable[[Machine], None],
        on_down: Callable[[Machine], None],
    ) -> None:
        """`on_up` and `on_down` are called when a machine comes up on its address and when it leaves it."""
        self._config = config
        self._identity = identity
        self._table = table
        self._market = market
        self._clock = clock
        self._guard = guard
        self._on_up = on_up
        self._on_down = on_down
        self._engines: dict[str, _Engine] = {}
        self._boots: dict[str, asyncio.Task[None]] = {}
        self._endings: dict[str, asyncio.Task[None]] = {}
        self._last_host = 0
        self.capacity_overrides: dict[tuple[str, Market], int] = {}

    # -- market -------------------------------------------------------------------------------------------

    def market_now(self) -> float:
        """Market time now."""
        return self.market_time(self._clock.now())

    def market_time(self, at: float) -> float:
        """Market time at an instant of the clock."""
        return (at - self._identity.origin) * self._config.speed

    def price(self, placement: Placement) -> float:
        """USD/h of a placement now."""
        factor = next(
            (
                kind.price_factor
                for kind in self._config.instance_types
                if kind.name == placement.instance_type
            ),
            1.0,
        )
        if placement.market is Market.ON_DEMAND:
            return factor * self._market.zone(placement.zone).on_demand_price
        return factor * self._market.spot_price(placement.zone, self.market_now())

    def capacity(self, zone: str, instance_type: str, market: Market, at: float) -> int | None:
        """Machines that an offering can hold at market time `at`; None without limit."""
        if (zone, market) in self.capacity_overrides:
            return self.capacity_overrides[zone, market]
        if market is Market.ON_DEMAND:
            return self._config.on_demand_capacity
        factor = next(k.capacity_factor for k in self._config.instance_types if k.name == instance_type)
        return int(self._market.capacity(zone, at) * factor)

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

    def dollars(self, machine: Machine, *, on_demand: bool = False) -> float:
        """What the machine has cost up to now in market time; `on_demand`: what it would have cost so."""
        kind = next(
            (k for k in self._config.instance_types if k.name == machine.placement.instance_type), None
        )
        factor = 1.0 if kind is None else kind.price_factor
        zone = machine.placement.zone
        total = 0.0
        for begin, end in machine.spells:
            until = self.market_now() if end is None else end
            if on_demand or machine.placement.market is Market.ON_DEMAND:
                total += self._market.zone(zone).on_demand_price * (until - begin) / _HOUR
            else:
                total += self._market.spot_dollars(zone, begin, until)
        return total * factor

    # -- what clients ask for -----------------------------------------------------------------------------

    def launch(self, request: LaunchRequest) -> Machine:
        """Launch, or give the machine that this token launched before.

        Raises Denied for a request that makes no sense here, InsufficientCapacity, QuotaExceeded.
        """
        self._check(request)
        known = self._table.by_token(request.token)
        if known is not None:
            if (known.pool, known.placement) != (request.pool, request.placement):
                raise Denied(
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
            spells=((self.market_now(), None),),
        )
        self._table.put(machine)
        self._begin_boot(machine.id)
        log.info("launched", node=machine.id, placement=str(machine.placement), host=machine.host)
        return machine

    def terminate(self, node: str) -> None:
        """Begin the end of a machine; nothing to do when it is ending, ended, or was never there."""
        machine = self._table.get(node)
        if machine is None or machine.state in ENDED:
            return
        self._table.put(replace(machine, state=InstanceState.SHUTTING_DOWN, reason="terminated"))
        self._begin_ending(node, InstanceState.TERMINATED)

    def stop(self, node: str) -> None:
        """Begin to stop a machine. Raises NotFound when it is gone, Denied for spot (EC2's one-time spot)."""
        machine = self._alive(node)
        if machine.state in (InstanceState.STOPPING, InstanceState.STOPPED):
            return
        if machine.placement.market is Market.SPOT:
            raise Denied(f"{node} is a spot instance, which cannot be stopped; terminate it")
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
                spells=(*machine.spells, (self.market_now(), None)),
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
        if machine.group is None or not signal_group(machine.group, number):
            raise NotFound(f"{node} has no engine process now")

    # -- the cloud's own life -----------------------------------------------------------------------------

    def recover(self) -> None:
        """After a restart: end what an earlier run left, go on booting what was about to boot.

        A machine whose engine the cloud can no longer answer for is lost, as if its host had failed.
        """
        for machine in self._table.machines():
            if machine.group is not None:
                # The leader's start time tells our group from a stranger that got the same number.
                ours = start_time(machine.group) == machine.leader_began
                kill_belonging(self._mark(machine), (machine.group,) if ours else ())
        kill_belonging(self._identity.cloud)
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
        for machine in self._table.machines():
            if machine.state is not InstanceState.STOPPED:
                self.vanish(machine.id, machine.reason or "the local cloud was stopped")
        await asyncio.gather(*tasks, return_exceptions=True)

    def groups(self) -> dict[str, int]:
        """The process groups that live now, by node."""
        return {node: engine.process.pid for node, engine in self._engines.items()}

    def tidy(self) -> None:
        """Keep logs and memory within bounds: call it every few seconds."""
        keeping = self._config.keeping
        for machine in self._table.machines():
            if machine.state is InstanceState.RUNNING:
                _bound_log(self.log_path(machine.id), keeping.log_bytes)
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
            raise Denied(f"token {token!r}: 1 to {_TOKEN_LENGTH} ASCII characters")
        if not request.command.argv:
            raise Denied("the engine command is empty")
        if request.command.stop_signal not in signal.Signals.__members__:
            raise Denied(f"stop_signal {request.command.stop_signal!r} is no signal; for example SIGTERM")
        regions = {series.zone: series.region for series in self._market.zones}
        kinds = {kind.name for kind in self._config.instance_types}
        if placement.provider != PROVIDER or placement.instance_type not in kinds:
            raise Denied(f"{placement.provider} {placement}: not sold here; list the offerings")
        if regions.get(placement.zone) != placement.region:
            raise Denied(f"{placement}: no zone {placement.zone!r} in region {placement.region!r} here")

    def _need_capacity(self, placement: Placement) -> None:
        zone, kind, market = placement.zone, placement.instance_type, placement.market
        most = self.capacity(zone, kind, market, self.market_now())
        if most is not None and len(self.held(zone, kind, market)) >= most:
            raise InsufficientCapacity(f"no capacity for {placement} now. Nothing was launched")

    def _delay(self, market_seconds: float, serial: int) -> float:
        """Real seconds of a delay, with the jitter that belongs to this machine."""
        jitter = random.Random(f"{self._config.seed}/boot/{serial}").uniform(-1.0, 1.0)  # noqa: S311
        return market_seconds * (1.0 + self._config.boot_jitter * jitter) / self._config.speed

    def _free_host(self) -> str:
        """An address that no machine has, the longest unused first. Raises QuotaExceeded."""
        taken = {m.host for m in self._table.machines() if m.state is not InstanceState.TERMINATED}
        for step in range(1, _MOST_HOSTS + 1):
            number = (self._last_host + step - 1) % _MOST_HOSTS + 1
            host = f"{self._identity.network}.{number}"
            if host not in taken and _free(host, self._config.engine_port, self._config.metadata_port):
                self._last_host = number
                return host
        raise QuotaExceeded(
            f"a local cloud has {_MOST_HOSTS} addresses and all are taken. Nothing was launched"
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
        machine = self._table.get(node)
        if machine is None or machine.state is not InstanceState.PENDING:
            return
        self._run_engine(machine)

    def _run_engine(self, machine: Machine) -> None:
        """Start the engine and show the machine as running. No await: nothing can come in between."""
        values = {"host": machine.host, "port": str(self._config.engine_port)}
        argv = [_fill(part, values) for part in machine.command.argv]
        metadata = f"http://{machine.host}:{self._config.metadata_port}"
        environment = {
            **os.environ,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata,
            **machine.command.env,
            MARK: self._mark(machine),
        }
        directory = self._directory(machine.id)
        directory.mkdir(parents=True, exist_ok=True)
        machine = replace(machine, state=InstanceState.RUNNING)
        with self.log_path(machine.id).open("ab") as output:
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=directory,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=dying_with_parent(),
                )
            except OSError as error:
                # As on a real machine: it is up, the service on it could not start.
                output.write(f"{argv[0]}: cannot be started: {error}\n".encode())
                self._table.put(replace(machine, engine_exit=127))
                log.warning("engine_not_started", node=machine.id, error=str(error))
            else:
                self._guard.began(process.pid)
                self._table.put(replace(machine, group=process.pid, leader_began=start_time(process.pid)))
                self._engines[machine.id] = _Engine(
                    process, lambda code: self._engine_exited(machine.id, code)
                )
        self._on_up(machine)

    def _engine_exited(self, node: str, code: int) -> None:
        machine = self._table.get(node)
        if machine is not None and machine.state is InstanceState.RUNNING:
            self._table.put(replace(machine, engine_exit=code))
            log.info("engine_exited", node=node, code=code)

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
            engine.process.send_signal(signal.Signals[machine.command.stop_signal])
            await self._wait(engine.exited, machine.command.stop_grace)
        self._kill(machine)
        self._ended(node, final, machine.reason)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._clock.sleep(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _kill(self, machine: Machine) -> None:
        """Kill every process of a machine, at once."""
        engine = self._engines.pop(machine.id, None)
        groups = () if engine is None else (engine.process.pid,)
        for group in groups:
            signal_group(group, signal.SIGKILL)
        # The leader may have exited before its helpers, and helpers may have left the group.
        if machine.group is not None or engine is not None:
            kill_belonging(self._mark(machine), groups)
        if engine is not None:
            engine.forget()
            self._guard.ended(engine.process.pid)

    def _ended(self, node: str, final: InstanceState, reason: str) -> Machine | None:
        machine = self._table.get(node)
        if machine is None:
            return None
        now = self._clock.now()
        spells = machine.spells
        if spells and spells[-1][1] is None:
            spells = (*spells[:-1], (spells[-1][0], self.market_now()))
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
        log.info("ended", node=node, state=str(final), reason=reason)
        return machine


def _fill(text: str, values: dict[str, str]) -> str:
    """Replace {host} and {port} and nothing else: an engine's own braces (JSON flags) stay."""
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _free(host: str, *ports: int) -> bool:
    """True when every port can be bound on a loopback address."""
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def _bound_log(path: Path, most: int) -> None:
    """Move output beyond `most` bytes aside. The engine appends, so emptying the file under it is safe."""
    try:
        if path.stat().st_size <= most:
            return
        with path.open("r+b") as file:
            file.seek(-most, os.SEEK_END)
            path.with_suffix(".log.1").write_bytes(file.read())
            file.truncate(0)
    except OSError as error:
        log.warning("log_not_bounded", path=str(path), error=str(error))
