"""What keys with limits have used of their minute, and what they have in flight, for all gateway processes.

Two tables of the usage file. `windows` has the counters of `policies.client_limits`: requests and tokens of a
key by second, of the host's steady clock, which all processes read alike and nobody sets. `open` has each
process's requests in flight by key, with the last second in which that process lived: rows of one that was
killed count no more `LAPSES` seconds later. Requests are decided one after the other, each in the sight of
what all processes used before it, and many in one transaction.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.gateway.accounts.shared_file import SharedFile, Unusable, reading
from orchestrator.gateway.accounts.usage_file import VERSION
from policies.client_limits import WINDOW, Booking, Limit, Window, full, give_back, settle, take
from policies.keys import KeyLimits

__all__ = ["BEAT", "LAPSES", "Add", "Ask", "Full", "KeyUse", "LimitFile", "Settle", "Unusable", "read_use"]

BEAT = 2.0
"""Seconds between two signs of life of a process with requests in flight."""

LAPSES = 8.0
"""Seconds after its last sign of life after which a process's requests in flight count no more."""

_WHAT = "usage file"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_TIDY = 10.0  # s between two clearings of what no minute touches any more
_SCHEMA = """
CREATE TABLE IF NOT EXISTS windows (
    key TEXT NOT NULL, second INTEGER NOT NULL, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (key, second)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS open (
    process TEXT NOT NULL, key TEXT NOT NULL, requests INTEGER NOT NULL, beat REAL NOT NULL,
    PRIMARY KEY (process, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS steady (boot TEXT NOT NULL)
"""
_ADD = """
INSERT INTO windows (key, second, requests, tokens) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, tokens = tokens + excluded.tokens
"""
_WINDOW = "SELECT second, requests, tokens FROM windows WHERE key = ? AND second >= ?"
_OTHERS = (
    "SELECT coalesce(sum(requests), 0) FROM open WHERE key = ? AND process <> ? AND beat BETWEEN ? AND ?"
)
_OPEN = "REPLACE INTO open (process, key, requests, beat) VALUES (?, ?, ?, ?)"
_TABLES = "SELECT count(*) FROM sqlite_master WHERE name IN ('windows', 'open', 'steady')"


@dataclass(frozen=True, slots=True)
class Ask:
    """May the key send one more request, of so many tokens as far as can be told?"""

    key: str
    limits: KeyLimits
    tokens: int


@dataclass(frozen=True, slots=True)
class Settle:
    """A request is over: it used so many tokens; None: it was not served, and its place is given back."""

    key: str
    limits: KeyLimits
    booked: Booking
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Add:
    """What the process decided while the file could not be written."""

    key: str
    booking: Booking


@dataclass(frozen=True, slots=True)
class Full:
    """The limit in the way of a request, and what all processes used of the minute."""

    limit: Limit
    window: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """What a key with limits used of the minute that ends now, and what it has in flight."""

    requests: int = 0
    tokens: int = 0
    in_flight: int = 0


Change = Ask | Settle | Add


class LimitFile:
    """The writing side of one process. Blocking: for a thread of its own, one call at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SharedFile(path, what=_WHAT, schema=_SCHEMA, version=VERSION)
        self._process = secrets.token_hex(8)
        self._boot = _boot()
        self._tidied = -_TIDY

    def apply(
        self, changes: Sequence[Change], in_flight: Mapping[str, int], now: float
    ) -> list[Booking | Full | None]:
        """Make all changes in one transaction; what was booked, or is in the way, for each Ask.

        `in_flight`: requests of this process under way, by key, of all those whose number may have changed:
        those of each Ask among them, without it. `now` is steady. Raises Unusable: then nothing was changed.
        """
        with self._file.writing() as db:
            if _boot_of(db) != self._boot:
                _begin_anew(db, self._boot)
            if tidies := now - self._tidied >= _TIDY:
                _tidy(db, now)
            turn = _Turn(db, self._process, in_flight, now)
            results = [turn.make(change) for change in changes]
            turn.write()
        self._tidied = now if tidies else self._tidied
        return results

    def leave(self) -> None:
        """The process ends, and has nothing in flight. Raises Unusable."""
        with self._file.writing() as db:
            db.execute("DELETE FROM open WHERE process = ?", (self._process,))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class _Turn:
    """One transaction."""

    def __init__(
        self, db: sqlite3.Connection, process: str, in_flight: Mapping[str, int], now: float
    ) -> None:
        self._db = db
        self._process = process
        self._own = dict(in_flight)
        self._now = now
        self._windows: dict[str, Window] = {}
        self._others: dict[str, int] = {}
        self._added: list[tuple[str, int, int, int]] = []

    def make(self, change: Change) -> Booking | Full | None:
        """One change, in the sight of those before it."""
        if isinstance(change, Add):
            self._add(change.key, [change.booking])
            return None
        window = self._window(change.key)
        if isinstance(change, Settle):
            booked, tokens = change.booked, change.tokens
            if tokens is None:
                self._add(change.key, give_back(window, booked, now=self._now))
            else:
                self._add(change.key, settle(change.limits, window, booked, tokens=tokens, now=self._now))
            return None
        under_way = self._own.get(change.key, 0) + self._elsewhere(change)
        why = full(change.limits, window, tokens=change.tokens, in_flight=under_way, now=self._now)
        if why is not None:
            return Full(why, window)
        booked = take(change.limits, window, tokens=change.tokens, now=self._now)
        self._add(change.key, [booked])
        self._own[change.key] = self._own.get(change.key, 0) + 1
        return booked

    def write(self) -> None:
        """Write what was added, and what this process has in flight."""
        if self._added:
            self._db.executemany(_ADD, self._added)
        here = [(self._process, key, count, self._now) for key, count in self._own.items() if count]
        gone = [(self._process, key) for key, count in self._own.items() if not count]
        if here:
            self._db.executemany(_OPEN, here)
        if gone:
            self._db.executemany("DELETE FROM open WHERE process = ? AND key = ?", gone)

    def _window(self, key: str) -> Window:
        if key not in self._windows:
            self._windows[key] = Window(self._db.execute(_WINDOW, (key, int(self._now) - WINDOW)))
        return self._windows[key]

    def _elsewhere(self, ask: Ask) -> int:
        """Requests of a key that other living processes have in flight."""
        if not ask.limits.in_flight:
            return 0
        if ask.key not in self._others:
            lives = (ask.key, self._process, self._now - LAPSES, self._now + LAPSES)
            self._others[ask.key] = int(self._db.execute(_OTHERS, lives).fetchone()[0])
        return self._others[ask.key]

    def _add(self, key: str, bookings: Iterable[Booking]) -> None:
        self._added += [(key, each.second, each.requests, each.tokens) for each in bookings]


def read_use(path: Path, now: float) -> dict[str, KeyUse]:
    """What each key with limits uses, by name; none where there is no file. `now` is of the host's steady
    clock. Raises Unusable.
    """
    with reading(path, what=_WHAT, version=VERSION) as db:
        if db is None or db.execute(_TABLES).fetchone()[0] < 3 or _boot_of(db) != _boot():
            return {}
        counts = db.execute(
            "SELECT key, sum(requests), sum(tokens) FROM windows WHERE second BETWEEN ? AND ? GROUP BY key",
            (int(now) - WINDOW, int(now)),
        ).fetchall()
        under_way = dict(
            db.execute(
                "SELECT key, sum(requests) FROM open WHERE beat BETWEEN ? AND ? GROUP BY key",
                (now - LAPSES, now + LAPSES),
            )
        )
    found = {
        key: KeyUse(requests=max(requests, 0), tokens=max(tokens, 0)) for key, requests, tokens in counts
    }
    for key, count in under_way.items():
        use = found.get(key, KeyUse())
        found[key] = KeyUse(requests=use.requests, tokens=use.tokens, in_flight=count)
    return found


def _begin_anew(db: sqlite3.Connection, boot: str) -> None:
    """After a start of the host its steady clock has begun anew, and nothing that was counted by it holds."""
    for table in ("windows", "open", "steady"):
        db.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
    db.execute("INSERT INTO steady VALUES (?)", (boot,))


def _tidy(db: sqlite3.Connection, now: float) -> None:
    """Clear what counts no more."""
    db.execute("DELETE FROM windows WHERE second < ?", (int(now) - WINDOW,))
    db.execute("DELETE FROM open WHERE beat NOT BETWEEN ? AND ?", (now - LAPSES, now + LAPSES))


def _boot_of(db: sqlite3.Connection) -> str | None:
    """The start of the host that the file's seconds belong to."""
    row = db.execute("SELECT boot FROM steady").fetchone()
    return None if row is None else str(row[0])


def _boot() -> str:
    """This start of the host."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
