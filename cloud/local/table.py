"""The table of instances and the log of notices, in one SQLite file; written before anything is done.

Every change is on disk before the process that it speaks of starts or ends, so a cloud that is killed at
any instant finds all its processes again and answers an old token with the old instance. One cloud at a
time holds a state directory (a lock on `lock`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from cloud.local.config import SetupError
from cloud.local.wire import EVENT, FeedEvent
from cloud.ports import EngineCommand
from policies.model import Ending, Instance, InstanceState, NoticeKind, Placement, StandbyKind
from policies.plain_text import one_line

TERMINATED = "terminated"
"""The reason of an end that was asked for by the API."""

ENDED = frozenset({InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaim:
    """The provider takes a machine back. Times are seconds since the epoch.

    `noticed_at` is when the notice was given, None for a reclaim without notice. `ended_at` is when the
    machine vanished; None while it has not, or when it ended otherwise before.
    """

    cause: str
    decided_at: float
    noticed_at: float | None
    deadline: float
    ended_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine as the cloud knows it."""

    id: str
    serial: int
    token: str
    pool: str
    placement: Placement
    command: EngineCommand
    standby: StandbyKind | None
    state: InstanceState
    host: str
    launched_at: float
    boots_at: float  # when a pending machine comes up
    spells: tuple[tuple[float, float | None], ...]
    """Stretches of market time that are billed; the last one is open (None) unless it is stopped or ended."""
    ended_at: float | None = None
    reason: str = ""
    group: int | None = None  # process group of its engine
    leader_began: int | None = None  # the kernel's start time of its leader: a reused number has another
    engine_exit: int | None = None
    recommended_at: float | None = None  # when rebalancing was recommended
    reclaim: Reclaim | None = None
    engine_at: float | None = None  # when its engine was started
    log_from: int = 0  # bytes of its output that were there then

    @property
    def held(self) -> bool:
        """True while the machine takes up capacity: not stopped, not ending, not being reclaimed."""
        return self.state in (InstanceState.PENDING, InstanceState.RUNNING) and self.reclaim is None

    def describe(self, engine_port: int, price: float) -> Instance:
        """What clients see of it. The address is known once the machine runs, and kept while stopped."""
        known = self.state is not InstanceState.PENDING
        return Instance(
            id=self.id,
            pool=self.pool,
            token=self.token,
            placement=self.placement,
            state=self.state,
            address=f"{self.host}:{engine_port}" if known else "",
            launched_at=self.launched_at,
            price=price,
            standby=self.standby,
            build=self.command.build,
            ending=self._ending,
            ending_why=one_line(self.reason, 300) if self.state in ENDED else "",
            ended_at=self.ended_at,
        )

    @property
    def _ending(self) -> Ending:
        """Taken back, ended by the API, or neither: then nobody says why."""
        if self.reclaim is not None and self.reclaim.ended_at is not None:
            return Ending.RECLAIM
        return Ending.REQUEST if self.state in ENDED and self.reason == TERMINATED else Ending.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What stays the same over restarts of a cloud: its id, its /24 network, when market time was 0."""

    cloud: str
    network: str
    origin: float


_MACHINE = TypeAdapter(Machine)
_IDENTITY = TypeAdapter(Identity)

_SCHEMA = """
create table if not exists identity (one integer primary key check (one = 1), record text not null);
create table if not exists machines (id text primary key, serial integer not null, record text not null);
create table if not exists notices (seq integer primary key autoincrement, record text not null);
"""


class Table:
    """All machines and notices, in memory and on disk alike. Not for use from several threads."""

    def __init__(self, directory: Path) -> None:
        """Open or create the table. Raises SetupError: not writable, in use, or not a table."""
        path = directory / "cloud.db"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SetupError(
                f"state_dir: {directory}: {error.strerror}; give a directory that this user may write"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "another process"
            os.close(self._lock)
            raise SetupError(
                f"state_dir: {directory}: in use by a local cloud (process {holder}); stop it first"
            ) from None
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            # Only this process's death matters here: when the machine itself goes down, so do its nodes.
            self._database.execute("pragma synchronous = off")
            self._database.executescript(_SCHEMA)
            rows = self._database.execute("select record from machines order by serial").fetchall()
            machines = [_MACHINE.validate_json(record) for (record,) in rows]
            notices = self._database.execute("select record from notices order by seq").fetchall()
            events = [EVENT.validate_json(record) for (record,) in notices]
        except sqlite3.OperationalError as error:  # of the disk or its rights, not of what the file holds
            os.close(self._lock)
            raise SetupError(
                f"{path}: cannot be opened ({error}); is the disk full, and may this user write there?"
            ) from None
        except (sqlite3.Error, ValueError) as error:
            os.close(self._lock)
            raise SetupError(
                f"{path}: not a readable table of instances ({str(error).splitlines()[0]}); "
                "no node can be found again from it: end leftover engines, then remove the file"
            ) from None
        self._machines = {machine.id: machine for machine in machines}
        self._tokens = {machine.token: machine.id for machine in machines}
        self._events = {event.seq: event for event in events}

    def close(self) -> None:
        """Close the file and give up the lock."""
        self._database.close()
        with contextlib.suppress(OSError):
            os.close(self._lock)

    def identity(self, fresh: Identity) -> Identity:
        """The identity on disk; `fresh` becomes it when there is none yet."""
        row = self._database.execute("select record from identity").fetchone()
        if row is not None:
            return _IDENTITY.validate_json(row[0])
        self._database.execute("insert into identity values (1, ?)", (_IDENTITY.dump_json(fresh),))
        return fresh

    def machines(self) -> tuple[Machine, ...]:
        """All machines that are remembered, oldest first."""
        return tuple(self._machines.values())

    def get(self, node: str) -> Machine | None:
        """One machine by its id."""
        return self._machines.get(node)

    def by_token(self, token: str) -> Machine | None:
        """The machine that was launched with a token, whatever became of it."""
        node = self._tokens.get(token)
        return None if node is None else self._machines[node]

    def new_id(self) -> str:
        """An id that no machine of this table has or had while it is remembered."""
        while (node := f"i-{secrets.token_hex(4)}") in self._machines:
            pass
        return node

    def next_serial(self) -> int:
        """Machines are numbered in order of launch, from 1."""
        return max((machine.serial for machine in self._machines.values()), default=0) + 1

    def put(self, machine: Machine) -> None:
        """Remember a machine's new state. On disk when this returns."""
        self._database.execute(
            "insert into machines values (?, ?, ?) on conflict (id) do update set record = excluded.record",
            (machine.id, machine.serial, _MACHINE.dump_json(machine)),
        )
        self._machines[machine.id] = machine
        self._tokens[machine.token] = machine.id

    def forget(self, node: str) -> None:
        """Drop a machine that ended long ago, and with it its token."""
        machine = self._machines.pop(node)
        del self._tokens[machine.token]
        self._database.execute("delete from machines where id = ?", (node,))

    def publish(self, kind: NoticeKind, node: str, deadline: float | None, at: float) -> FeedEvent:
        """Append to the feed; numbers rise for ever, also over restarts."""
        self._database.execute("begin immediate")
        cursor = self._database.execute("insert into notices (record) values ('')")
        event = FeedEvent(seq=cursor.lastrowid or 0, kind=kind, node=node, deadline=deadline, at=at)
        self._database.execute(
            "update notices set record = ? where seq = ?", (EVENT.dump_json(event), event.seq)
        )
        self._database.execute("commit")
        self._events[event.seq] = event
        return event

    def events_after(self, seq: int, pool: str) -> tuple[FeedEvent, ...]:
        """Events with a higher number that nobody acknowledged, oldest first.

        With a pool's name none of the machines of other pools, but those of machines that nobody remembers.
        """
        return tuple(e for e in self._events.values() if e.seq > seq and self._concerns(pool, e.node))

    def _concerns(self, pool: str, node: str) -> bool:
        machine = self._machines.get(node)
        return not pool or machine is None or machine.pool == pool

    def acknowledge(self, seq: int) -> None:
        """Drop one event. Idempotent."""
        if self._events.pop(seq, None) is not None:
            self._database.execute("delete from notices where seq = ?", (seq,))

    def trim_events(self, most: int) -> None:
        """Drop the oldest events beyond `most`."""
        for seq in tuple(self._events)[: max(0, len(self._events) - most)]:
            self.acknowledge(seq)
