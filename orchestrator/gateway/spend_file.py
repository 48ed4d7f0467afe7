"""What was spent at paid providers, in a SQLite file that several processes share.

A gateway and its heir write, the daemon and the command line read. Table `held` has an amount for each
request in flight, `spent` the sums of each UTC day by provider, route and model. A cap is checked against
both in the transaction that holds the amount, so whoever writes, together they never go over it. What a dead
process held stays, counts in full for its day, and is told as unsettled once it is older than any request
lives. WAL with synchronous=FULL: what was held survives a kill and a power loss.

A file that cannot be read or written holds nothing back: its users must not send what has a cap. It is never
set aside by itself, which would begin the day's caps anew.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from policies.spend import PICO, Usage, day_of, refusal

VERSION = 1
KEPT_DAYS = 40
"""Days whose sums stay in the file."""

_BUSY_WAIT = 2.0
"""Seconds to wait for another process that writes."""

_DAY = 86_400.0
_MOST = 2**61
"""More picodollars, 2.3 million dollars, than one row tells: two of them still fit a column."""

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS file (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS held (
    id INTEGER PRIMARY KEY AUTOINCREMENT, day TEXT NOT NULL, provider TEXT NOT NULL, route TEXT NOT NULL,
    model TEXT NOT NULL, amount INTEGER NOT NULL, until REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS held_day ON held (day);
CREATE TABLE IF NOT EXISTS spent (
    day TEXT NOT NULL, provider TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL,
    amount INTEGER NOT NULL, requests INTEGER NOT NULL, estimated INTEGER NOT NULL, unpriced INTEGER NOT NULL,
    fresh INTEGER NOT NULL, cached INTEGER NOT NULL, written INTEGER NOT NULL, output INTEGER NOT NULL,
    PRIMARY KEY (day, provider, route, model)
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
_SUMS = ("amount", "requests", "estimated", "unpriced", "fresh", "cached", "written", "output")
_BOOK = f"""
INSERT INTO spent (day, provider, route, model, {", ".join(_SUMS)}) VALUES (?, ?, ?, ?{", ?" * len(_SUMS)})
ON CONFLICT DO UPDATE SET {", ".join(f"{name} = min({name} + excluded.{name}, {_MOST})" for name in _SUMS)}
"""  # noqa: S608 - our own names
_SPENT = f"SELECT provider, route, model, {', '.join(_SUMS)} FROM spent WHERE day = ?"  # noqa: S608 - the same
_HELD = "SELECT provider, route, model, amount, until FROM held WHERE day = ?"
_HOLD = "INSERT INTO held (day, provider, route, model, amount, until) VALUES (?, ?, ?, ?, ?, ?)"


class Unbooked(Exception):
    """The file could not be read or written; the message says why. As far as is known, nothing changed."""


class CapReached(Exception):
    """A cap does not allow the request; the message says which, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A request that is to be sent.

    `amount`: the most that it may cost, in picodollars, None where no price is known; caps in picodollars a
    day, None for none; `until`: when it is over at the latest, in seconds since the epoch. Raises ValueError
    where there is a cap and no amount to hold it against.
    """

    provider: str
    route: str
    model: str
    amount: int | None
    provider_cap: int | None = None
    route_cap: int | None = None
    until: float

    def __post_init__(self) -> None:
        if self.amount is None and self.capped:
            raise ValueError("an unknown amount fits under no cap")

    @property
    def capped(self) -> bool:
        """Whether it is sent only if a cap allows it."""
        return self.provider_cap is not None or self.route_cap is not None


@dataclass(frozen=True, slots=True)
class Ticket:
    """What is held for a claim: row `row` of the file `file`, on `day`. Without a file nothing is held."""

    claim: Claim
    day: str
    file: str = ""
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of a ticket.

    `estimated`: the provider told no usage, and `amount` is what the request may have cost at most. An
    `amount` of None: the price is not known. Neither amount, nor usage, nor estimated: nothing was sent, and
    what was held is let go.
    """

    ticket: Ticket
    amount: int | None = None
    usage: Usage | None = None
    estimated: bool = False

    @property
    def nothing(self) -> bool:
        """Whether nothing is owed."""
        return self.amount is None and self.usage is None and not self.estimated


Change = Claim | Settled


@dataclass(slots=True, kw_only=True)
class Line:
    """A day's sums for one provider, route and model: picodollars, requests, tokens.

    `held` for requests in flight, `unsettled` of it for those that are over and were never settled, since the
    gateway died; `estimated` counts requests settled at their most, `unpriced` those without a known price.
    """

    provider: str
    route: str
    model: str
    amount: int = 0
    requests: int = 0
    estimated: int = 0
    unpriced: int = 0
    fresh: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0
    held: int = 0
    unsettled: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums of a UTC day."""

    day: str
    lines: tuple[Line, ...] = field(default=())

    def amount(self, *, provider: str | None = None, route: str | None = None) -> int:
        """Picodollars spent, of all or of one."""
        return sum(line.amount for line in self._of(provider, route))

    def held(self, *, provider: str | None = None, route: str | None = None) -> int:
        """Picodollars held, the unsettled among them."""
        return sum(line.held for line in self._of(provider, route))

    def _of(self, provider: str | None, route: str | None) -> Iterator[Line]:
        for line in self.lines:
            if provider in (None, line.provider) and route in (None, line.route):
                yield line


class SpendFile:
    """The writing side. Blocking: for a thread of its own, one call at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None
        self._opened: tuple[int, int] = (0, 0)
        self._id = ""
        self._day = ""

    def apply(self, changes: Sequence[Change], now: float) -> list[Ticket | CapReached | None]:
        """Make all changes in one transaction.

        Returns a ticket, or the cap in its way, for each claim. Raises Unbooked: then none of them was made.
        """
        with self._named():
            db = self._connection()
            with _writing(db):
                self._forget(db, now)
                return [self._change(db, change, now) for change in changes]

    def totals(self, now: float) -> Totals:
        """The day's sums. Raises Unbooked."""
        with self._named():
            return _totals(self._connection(), day_of(now), now)

    def close(self) -> None:
        """Let go of the file."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError, OverflowError) as error:
            self.close()
            raise Unbooked(f"the spend file {self.path}: {error}") from error

    def _connection(self) -> sqlite3.Connection:
        """The open file: the one that is at its path, also when somebody put another there."""
        if self._db is not None and self._opened != _identity(self.path):
            self.close()
        if self._db is None:
            self._db = db = sqlite3.connect(
                self.path, timeout=_BUSY_WAIT, check_same_thread=False, isolation_level=None
            )
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            _prepare(db)
            self._id, self._day = str(db.execute("SELECT id FROM file").fetchone()[0]), ""
            self._opened = _identity(self.path)
        return self._db

    def _forget(self, db: sqlite3.Connection, now: float) -> None:
        """Drop the days that are long over, once a day."""
        if self._day != (today := day_of(now)):
            oldest = day_of(now - KEPT_DAYS * _DAY)
            db.execute("DELETE FROM spent WHERE day < ?", (oldest,))
            db.execute("DELETE FROM held WHERE day < ?", (oldest,))
            self._day = today

    def _change(self, db: sqlite3.Connection, change: Change, now: float) -> Ticket | CapReached | None:
        if isinstance(change, Claim):
            return self._hold(db, change, now)
        ticket = change.ticket
        if ticket.file == self._id:
            gone = db.execute("DELETE FROM held WHERE id = ?", (ticket.row,)).rowcount == 0
            if gone:  # it was settled before, although that seemed to fail
                return None
        if not change.nothing:
            db.execute(_BOOK, _row(change))
        return None

    def _hold(self, db: sqlite3.Connection, claim: Claim, now: float) -> Ticket | CapReached:
        day, amount = day_of(now), claim.amount or 0
        if claim.capped and (why := _in_the_way(_totals(db, day, now), claim, amount)):
            return CapReached(why)
        values = (day, claim.provider, claim.route, claim.model, min(amount, _MOST), claim.until)
        row = db.execute(_HOLD, values).lastrowid
        return Ticket(claim, day, self._id, row or 0)


def read_totals(path: Path, now: float, *, days: int = 1) -> list[Totals]:
    """The sums of the last so many days, today first, of a file that others may be writing.

    None where there is no file. Raises Unbooked.
    """
    nothing = [Totals(day_of(now - back * _DAY)) for back in range(days)]
    try:
        if not path.exists():
            return nothing
        # Without its companions the file is nobody's now, and may lie where this user cannot make them.
        alone = not path.with_name(f"{path.name}-wal").exists()
        how = "mode=ro&immutable=1" if alone else "mode=ro"
        db = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=_BUSY_WAIT)
        with contextlib.closing(db):
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:  # its first writer is at work
                return nothing
            return [_totals(db, day_of(now - back * _DAY), now) for back in range(days)]
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise Unbooked(f"the spend file {path}: {error}") from error


def spend_rows(totals: Totals, provider: str) -> list[dict[str, str | int | float]]:
    """A provider's sums of a day as documents show them, by route and model. Money is in US dollars."""
    return [
        {
            "route": line.route,
            "model": line.model,
            "requests": line.requests,
            "usd": line.amount / PICO,
            "held_usd": line.held / PICO,
            "unsettled_usd": line.unsettled / PICO,
            "estimated": line.estimated,
            "unpriced": line.unpriced,
            "tokens_fresh": line.fresh,
            "tokens_cached": line.cached,
            "tokens_cache_write": line.written,
            "tokens_output": line.output,
        }
        for line in totals.lines
        if line.provider == provider
    ]


def _identity(path: Path) -> tuple[int, int]:
    """Which file is at the path."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (-1, -1)
    return found.st_dev, found.st_ino


@contextmanager
def _writing(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that nobody else writes in."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _prepare(db: sqlite3.Connection) -> None:
    """Make the tables where there are none; refuse a file that is damaged or of a later version."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise sqlite3.DatabaseError(
            f"it was written by a later version ({version}; this one reads {VERSION})"
        )
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(f"it is damaged: {found}")
    if version < VERSION:
        with _writing(db):
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            if db.execute("SELECT count(*) FROM file").fetchone()[0] == 0:
                db.execute("INSERT INTO file VALUES (?)", (secrets.token_hex(8),))


def _row(change: Settled) -> tuple[str | int, ...]:
    claim, usage = change.ticket.claim, change.usage or Usage(0, 0, 0, 0)
    return (
        change.ticket.day,
        claim.provider,
        claim.route,
        claim.model,
        min(change.amount or 0, _MOST),
        1,
        int(change.estimated),
        int(change.amount is None),
        usage.fresh,
        usage.cached,
        usage.cache_write + usage.cache_write_1h,
        usage.output,
    )


def _in_the_way(sums: Totals, claim: Claim, amount: int) -> str:
    """Which cap does not allow the amount, and why; empty when both do."""
    for name, cap, of in (
        (f"provider {claim.provider}", claim.provider_cap, {"provider": claim.provider}),
        (f"route {claim.route}", claim.route_cap, {"route": claim.route}),
    ):
        if cap is not None:
            why = refusal(spent=sums.amount(**of), held=sums.held(**of), amount=amount, cap=cap)
            if why:
                return f"{name}: {why}"
    return ""


def _totals(db: sqlite3.Connection, day: str, now: float) -> Totals:
    lines: dict[tuple[str, str, str], Line] = {}
    for provider, route, model, *sums in db.execute(_SPENT, (day,)):
        named = dict(zip(_SUMS, sums, strict=True))
        lines[provider, route, model] = Line(provider=provider, route=route, model=model, **named)
    for provider, route, model, amount, until in db.execute(_HELD, (day,)):
        key = provider, route, model
        line = lines.setdefault(key, Line(provider=provider, route=route, model=model))
        line.held += amount
        line.unsettled += amount if until < now else 0
    return Totals(day, tuple(lines[key] for key in sorted(lines)))
