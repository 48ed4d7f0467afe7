"""Which tokens have launched a machine, under which name: for providers that forget what is gone.

A name that is made of a token keeps a provider from making two machines of one token only for as long as the
first exists. After its end the name is free, and the same request would launch another. The ledger remembers:
a line is on disk before the provider is called, so a process that is killed at any instant, or a host that
loses its power, finds the token again.

A file of lines, each with its digest. Only whole lines count: what a crash left of a last line is cut off by
the next writer. A damaged line is passed over and counted; it hides one step of one token, and the provider
is asked for the name before any launch. Several processes may use one file: each line is written under a
lock, after what others wrote was read. A file that is removed or emptied under a process
is written anew by it. Lines older than `KEPT` go when the file is written anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import orjson

from cloud.durable import sync_directory
from cloud.errors import Denied
from cloud.ports import Clock, LaunchRequest
from policies.model import Instance, InstanceState, Market, Placement, StandbyKind

KEPT: Final = 30 * 86_400.0
"""Seconds for which a token is remembered. Nobody asks for one so late: intents are given up within hours."""

_LARGE: Final = 4 << 20
"""Bytes from which the file is written anew without what is forgotten."""
_DIGEST: Final = 8  # hexadecimal digits before each line


class Stage(StrEnum):
    """How far a token has come."""

    ASKED = "asked"  # the provider is being called, or was: it may have launched a machine
    MADE = "made"  # it has launched one, `Entry.machine`
    REFUSED = "refused"  # it has certainly launched none so far
    ENDED = "ended"  # it had launched one, which is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of one token. `attempt` counts from 0 how often it was asked anew; `at` is when the last
    step was written, `first` when the first of this attempt was."""

    token: str
    name: str
    pool: str
    placement: Placement
    standby: StandbyKind | None
    stage: Stage
    attempt: int
    first: float
    at: float
    machine: str = ""  # the provider's id of it, empty where its name is all
    build: str = ""  # `EngineCommand.build` of what it was launched to run

    def gone(self) -> Instance:
        """The machine of that name once it is no more, as far as the ledger tells: not why, nor when."""
        return Instance(
            id=self.name,
            pool=self.pool,
            token=self.token,
            placement=self.placement,
            state=InstanceState.TERMINATED,
            launched_at=self.first,
            price=None,
            standby=self.standby,
        )


class Tombstones:
    """The ledger in one file. Blocks on the disk, so it is called in a thread; any number may call it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.damaged = 0  # lines that could not be read, since the file was last read from its start
        self._path, self._clock = path, clock
        self._entries: dict[str, Entry] = {}
        self._names: dict[str, str] = {}
        self._machines: dict[str, str] = {}
        self._read_to = 0  # bytes of the file that were read, all of them whole lines
        self._inode = -1
        self._lock = threading.Lock()

    def find(self, token: str) -> Entry | None:
        """What is known of a token. Raises Denied for a file that cannot be read."""
        with self._held():
            return self._entries.get(token)

    def named(self, name: str) -> Entry | None:
        """What is known of the token that a name was made of. Raises Denied as `find` does."""
        with self._held():
            return self._entries.get(self._names.get(name, ""))

    def of_machine(self, machine: str) -> Entry | None:
        """What is known of the token that launched a machine, by its id. Raises Denied as `find` does."""
        with self._held():
            return self._entries.get(self._machines.get(machine, ""))

    def entries(self, pool: str) -> tuple[Entry, ...]:
        """Every token of a pool. Raises Denied as `find` does."""
        with self._held():
            return tuple(entry for entry in self._entries.values() if entry.pool == pool)

    def ask(self, request: LaunchRequest, name: str) -> Entry:
        """Write down that the provider is about to be called for a request; what it says is true before.

        The entry that is there already, where the token was asked for before and not refused: then the
        provider may be asked only what became of it. After a refusal the next attempt is written. Raises
        Denied where it cannot be written; the provider must not be called then.
        """
        now = self._clock.now()
        with self._held():
            known = self._entries.get(request.token)
            if known is not None and known.stage is not Stage.REFUSED:
                return known
            if known is not None:
                entry = _again(known, now)
            else:
                entry = Entry(
                    token=request.token,
                    name=name,
                    pool=request.pool,
                    placement=request.placement,
                    standby=request.standby,
                    stage=Stage.ASKED,
                    attempt=0,
                    build=request.command.build,
                    first=now,
                    at=now,
                )
            self._write(entry)
            return entry

    def ask_again(self, token: str) -> Entry:
        """Write down that the provider is about to be called anew for a token of unknown outcome.

        For providers that may be called again once the last call would show. Raises Denied where it cannot be
        written, KeyError for a token that nobody asked for.
        """
        with self._held():
            entry = _again(self._entries[token], self._clock.now())
            self._write(entry)
            return entry

    def note(self, token: str, stage: Stage, machine: str = "") -> Entry:
        """Write down what became of a token that was asked for. What is known already costs nothing.

        A machine that was made is never refused afterwards, and one that ended never made again. Raises
        Denied where it cannot be written, KeyError for a token that nobody asked for.
        """
        with self._held():
            known = self._entries[token]
            if not _may_follow(known, stage, machine):
                return known
            entry = replace(known, stage=stage, machine=machine or known.machine, at=self._clock.now())
            self._write(entry)
            return entry

    def renew(self, token: str) -> None:
        """Remember a token for another `KEPT` seconds, where its machine has lived for long.

        For providers whose machines are known by this ledger alone. Costs nothing while half of them is left.
        Raises Denied where it cannot be written, KeyError for a token that nobody asked for.
        """
        with self._held():
            known = self._entries[token]
            if self._clock.now() - known.at > KEPT / 2:
                self._write(replace(known, at=self._clock.now()))

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The file alone, with all read that is in it."""
        with self._lock:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(
                    self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600
                )
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX)
                    self._catch_up()
                    yield
                finally:
                    os.close(handle)  # and gives the lock back
            except OSError as error:
                raise Denied(
                    f"the ledger of launches {self._path} cannot be used: {error.strerror or error}; nothing "
                    "is launched without it, since a token could then launch twice"
                ) from error

    def _catch_up(self) -> None:
        """Read what others wrote, and cut off what a crash left of a last line."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            found = os.fstat(handle)
            if found.st_size == 0 and self._entries:
                self._anew()
                return
            if found.st_ino != self._inode or found.st_size < self._read_to:
                self._entries, self._names, self._machines = {}, {}, {}
                self._read_to, self.damaged = 0, 0
                self._inode = found.st_ino
                sync_directory(self._path.parent)
            if found.st_size == self._read_to:
                return
            text = os.pread(handle, found.st_size - self._read_to, self._read_to)
            whole = text.rfind(b"\n") + 1
            for line in text[:whole].splitlines():
                self._take(line)
            self._read_to += whole
            if whole < len(text):
                os.ftruncate(handle, self._read_to)
        finally:
            os.close(handle)

    def _take(self, line: bytes) -> None:
        entry = _entry(line)
        if entry is None:
            self.damaged += 1
        else:
            self._entries[entry.token] = entry
            self._names[entry.name] = entry.token
            if entry.machine:
                self._machines[entry.machine] = entry.token

    def _write(self, entry: Entry) -> None:
        """Append a line and have it on disk; leave no part of it where that fails. Raises OSError."""
        if self._read_to > _LARGE:
            self._anew()
        line = _line(entry)
        handle = os.open(self._path, os.O_RDWR)
        try:
            try:
                done = os.pwrite(handle, line, self._read_to)
                if done < len(line):  # a disk that fills takes a part, and says so at the next call only
                    raise OSError(28, os.strerror(28))
                os.fsync(handle)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, self._read_to)
                raise
        finally:
            os.close(handle)
        self._read_to += len(line)
        self._take(line[:-1])

    def _anew(self) -> None:
        """Write the file without steps that others followed and tokens that are forgotten."""
        since = self._clock.now() - KEPT
        kept = {token: entry for token, entry in self._entries.items() if entry.at >= since}
        text = b"".join(map(_line, kept.values()))
        partial = self._path.with_name(f"{self._path.name}.new")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            view = memoryview(text)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
            inode = os.fstat(handle).st_ino
        finally:
            os.close(handle)
        os.replace(partial, self._path)
        sync_directory(self._path.parent)
        self._entries, self._names = kept, {entry.name: token for token, entry in kept.items()}
        self._machines = {entry.machine: token for token, entry in kept.items() if entry.machine}
        self._read_to, self._inode, self.damaged = len(text), inode, 0


def _again(known: Entry, now: float) -> Entry:
    return replace(known, stage=Stage.ASKED, attempt=known.attempt + 1, first=now, at=now)


def _may_follow(known: Entry, stage: Stage, machine: str) -> bool:
    if stage is Stage.MADE:
        return known.stage in (Stage.ASKED, Stage.REFUSED) or (
            known.stage is Stage.MADE and bool(machine) and machine != known.machine
        )
    if stage is Stage.REFUSED:
        return known.stage is Stage.ASKED
    return stage is Stage.ENDED and known.stage is not Stage.ENDED


def _line(entry: Entry) -> bytes:
    body = orjson.dumps(asdict(entry))
    return _digest(body) + b" " + body + b"\n"


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST // 2).hexdigest().encode()


def _entry(line: bytes) -> Entry | None:
    """None for a line that is damaged."""
    body = line[_DIGEST + 1 :]
    if line[:_DIGEST] != _digest(body):
        return None
    try:
        row: Any = orjson.loads(body)
        place = row.pop("placement")
        standby = row.pop("standby")
        return Entry(
            **{**row, "stage": Stage(row["stage"])},
            placement=Placement(**{**place, "market": Market(place["market"])}),
            standby=None if standby is None else StandbyKind(standby),
        )
    except (ValueError, KeyError, TypeError):
        return None
