"""What was spent at paid providers, in a SQLite file that several processes share.

A gateway and its heir write, the daemon and the command line read. Table `held` has an amount for each
request in flight, `spent` the sums of each UTC day by provider, route and model, and `spent_by_key` those of
them that are of a client's key, by key too. A cap is checked against what is held and spent in the
transaction that holds the amount, so together the writers never exceed it. What a dead process held
stays, counts in full for its day, and is shown as unsettled once it is older than any request lives. WAL with
synchronous=FULL: what was held survives a kill and a power loss.

A pool that is charged for is here as the provider `pool/NAME`: nobody bills for it.

A file without keys gets them when it is opened. Whoever knows nothing of them, as an old gateway does that
hands over, goes on reading and writing it: what it reads is right, and what it writes is of no key.

A file that cannot be read or written holds nothing back: its users must not send what has a cap. It is never
set aside by itself, which would begin the day's caps anew.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.gateway.accounts.shared_file import SharedFile, Unusable, reading
from policies.spend import PICO, Usage, day_of, refusal

__all__ = [
    "KEPT_DAYS", "VERSION", "CapReached", "Change", "Claim", "Line", "Settled", "SpendFile", "Ticket",
    "Totals", "Unusable", "read_totals", "spend_rows",
]  # fmt: skip

VERSION = 1
KEPT_DAYS = 400
"""Days whose sums stay in the file."""

_WHAT = "spend file"
_DAY = 86_400.0
_MOST = 2**61
"""More picodollars, 2.3 million dollars, than one row tells: two of them still fit a column."""

_SUMS = ("amount", "requests", "estimated", "unpriced", "fresh", "cached", "written", "output")
_COLUMNS = ", ".join(f"{name} INTEGER NOT NULL" for name in _SUMS)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS file (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS held (
    id INTEGER PRIMARY KEY AUTOINCREMENT, day TEXT NOT NULL, provider TEXT NOT NULL, route TEXT NOT NULL,
    model TEXT NOT NULL, amount INTEGER NOT NULL, until REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS held_day ON held (day);
CREATE TABLE IF NOT EXISTS spent (
    day TEXT NOT NULL, provider TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL,
    {_COLUMNS}, PRIMARY KEY (day, provider, route, model)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent_by_key (
    day TEXT NOT NULL, provider TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL, key TEXT NOT NULL,
    {_COLUMNS}, PRIMARY KEY (day, key, provider, route, model)
) WITHOUT ROWID
"""
_KEYED = "ALTER TABLE held ADD COLUMN key TEXT NOT NULL DEFAULT ''"
_HAS_KEYS = "SELECT 1 FROM pragma_table_info('held') WHERE name = 'key'"


def _booking(table: str, *names: str) -> str:
    columns = (*names, *_SUMS)
    sums = ", ".join(f"{name} = min({name} + excluded.{name}, {_MOST})" for name in _SUMS)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "  # noqa: S608
        f"ON CONFLICT DO UPDATE SET {sums}"
    )


def _reading(table: str, *names: str) -> str:
    return f"SELECT {', '.join((*names, *_SUMS))} FROM {table} WHERE day = ?"  # noqa: S608 - our own names


_WHOSE = ("provider", "route", "model")
_BOOK = _booking("spent", "day", *_WHOSE)
_BOOK_KEY = _booking("spent_by_key", "day", *_WHOSE, "key")
_SPENT = _reading("spent", *_WHOSE)
_SPENT_BY_KEY = _reading("spent_by_key", *_WHOSE, "key")
_HELD = "SELECT provider, route, model, '', amount, until FROM held WHERE day = ?"
_HELD_BY_KEY = "SELECT provider, route, model, key, amount, until FROM held WHERE day = ? AND key <> ''"
_HOLD = "INSERT INTO held (day, provider, route, model, amount, until, key) VALUES (?, ?, ?, ?, ?, ?, ?)"


class CapReached(Exception):
    """A cap does not allow the request; the message says which, and why. `of_key`: it is that of its key, and
    the message says why alone; `never`: the request may cost more than the cap of a whole day.
    """

    def __init__(self, why: str, *, of_key: bool = False, never: bool = False) -> None:
        super().__init__(why)
        self.of_key = of_key
        self.never = never


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A request that is to be sent.

    `amount`: the most that it may cost, in picodollars, None where no price is known; caps in picodollars a
    day, None for none; `until`: when it is over at the latest, in seconds since the epoch. `key` names whose
    key it came with, empty for nobody's. Raises ValueError where there is a cap and no amount to hold it
    against.
    """

    provider: str
    route: str
    model: str
    amount: int | None
    provider_cap: int | None = None
    route_cap: int | None = None
    until: float
    key: str = ""
    key_cap: int | None = None

    def __post_init__(self) -> None:
        if self.amount is None and self.capped:
            raise ValueError("an unknown amount fits under no cap")

    @property
    def capped(self) -> bool:
        """Whether it is sent only if a cap allows it."""
        return not (self.provider_cap is None and self.route_cap is None and self.key_cap is None)


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

    `estimated`: the provider reported no usage, and `amount` is what the request may have cost at most. An
    `amount` of None: the price is not known. Neither amount, nor usage, nor estimated: nothing was sent, and
    what was held is released.
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
    """A day's sums for one provider, route and model: picodollars, requests, tokens."""

    provider: str
    route: str
    model: str
    amount: int = 0
    requests: int = 0
    estimated: int = 0  # requests settled at their most
    unpriced: int = 0  # requests without a known price
    fresh: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0
    held: int = 0  # for requests in flight
    unsettled: int = 0  # part of `held`: requests that are over, whose gateway died
    key: str = ""  # empty: of all keys


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums of a UTC day; in `by_key` those of them that are of a key, by key too, where they were asked
    for.
    """

    day: str
    lines: tuple[Line, ...] = field(default=())
    by_key: tuple[Line, ...] = field(default=())

    def amount(self, *, provider: str | None = None, route: str | None = None) -> int:
        """Picodollars spent, of all or of one."""
        return sum(line.amount for line in self._of(provider, route))

    def of_key(self, key: str) -> int:
        """Picodollars that a key spent or has held."""
        return sum(line.amount + line.held for line in self.by_key if line.key == key)

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
        self._file = SharedFile(path, what=_WHAT, schema=_SCHEMA, version=VERSION, lasting=True, adapt=_adapt)
        self._day = ""

    def apply(self, changes: Sequence[Change], now: float) -> list[Ticket | CapReached | None]:
        """Make all changes in one transaction.

        Returns a ticket, or the cap in its way, for each claim. Raises Unusable: then none of them was made.
        """
        with self._file.writing() as db:
            self._forget(db, now)
            (which,) = db.execute("SELECT id FROM file").fetchone()
            return [_change(db, change, now, which) for change in changes]

    def totals(self, now: float) -> Totals:
        """The day's sums. Raises Unusable."""
        with self._file.opened() as db:
            return _totals(db, day_of(now), now)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _forget(self, db: sqlite3.Connection, now: float) -> None:
        """Drop days that are long over, once a day and two at a time: a clock that is far ahead for a while
        must not empty the file.
        """
        if self._day != (today := day_of(now)):
            oldest = day_of(now - KEPT_DAYS * _DAY)
            for table in ("spent", "spent_by_key", "held"):
                first = f"SELECT date(min(day), '+1 day') FROM {table}"  # noqa: S608 - our own names
                db.execute(f"DELETE FROM {table} WHERE day < ? AND day <= ({first})", (oldest,))  # noqa: S608
            self._day = today


def read_totals(path: Path, now: float, *, days: int = 1) -> list[Totals]:
    """The sums of the last so many days, today first, of a file that others may be writing.

    Nothing where there is no file. Raises Unusable.
    """
    days_back = [day_of(now - back * _DAY) for back in range(days)]
    with reading(path, what=_WHAT, version=VERSION) as db:
        if db is None:
            return [Totals(day) for day in days_back]
        keys = db.execute(_HAS_KEYS).fetchone() is not None
        return [_totals(db, day, now, keys=keys) for day in days_back]


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


def _adapt(db: sqlite3.Connection) -> None:
    """Give keys to a file that has none, and an id to a new one."""
    if db.execute(_HAS_KEYS).fetchone() is None:
        db.execute(_KEYED)
    if db.execute("SELECT 1 FROM file").fetchone() is None:
        db.execute("INSERT INTO file VALUES (?)", (secrets.token_hex(8),))


def _change(db: sqlite3.Connection, change: Change, now: float, which: str) -> Ticket | CapReached | None:
    """Make one change in the file of this id."""
    if isinstance(change, Claim):
        return _hold(db, change, now, which)
    ticket = change.ticket
    if ticket.file == which:
        gone = db.execute("DELETE FROM held WHERE id = ?", (ticket.row,)).rowcount == 0
        if gone:  # it was settled before, although that seemed to fail
            return None
    if not change.nothing:
        names, sums = _row(change)
        db.execute(_BOOK, (*names, *sums))
        if ticket.claim.key:
            db.execute(_BOOK_KEY, (*names, ticket.claim.key, *sums))
    return None


def _hold(db: sqlite3.Connection, claim: Claim, now: float, which: str) -> Ticket | CapReached:
    day, amount = day_of(now), claim.amount or 0
    if claim.capped and (reached := _in_the_way(db, day, claim, amount)) is not None:
        return reached
    values = (day, claim.provider, claim.route, claim.model, min(amount, _MOST), claim.until, claim.key)
    row = db.execute(_HOLD, values).lastrowid
    return Ticket(claim, day, which, row or 0)


def _row(change: Settled) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of a row of `spent`, and what is added to its sums."""
    claim, usage = change.ticket.claim, change.usage or Usage(0, 0, 0, 0)
    names = (change.ticket.day, claim.provider, claim.route, claim.model)
    return names, (
        min(change.amount or 0, _MOST),
        1,
        int(change.estimated),
        int(change.amount is None),
        usage.fresh,
        usage.cached,
        usage.cache_write + usage.cache_write_1h,
        usage.output,
    )


def _in_the_way(db: sqlite3.Connection, day: str, claim: Claim, amount: int) -> CapReached | None:
    """Which cap does not allow the amount, and why; None when all do."""
    for column, name, cap in (
        ("key", claim.key, claim.key_cap),
        ("provider", claim.provider, claim.provider_cap),
        ("route", claim.route, claim.route_cap),
    ):
        if cap is not None:
            spent = _sum(db, "spent_by_key" if column == "key" else "spent", column, day, name)
            held = _sum(db, "held", column, day, name)
            why = refusal(spent=spent, held=held, amount=amount, cap=cap)
            if why:
                of_key = column == "key"
                text = why if of_key else f"{column} {name}: {why}"
                return CapReached(text, of_key=of_key, never=amount > cap)
    return None


def _sum(db: sqlite3.Connection, table: str, column: str, day: str, name: str) -> int:
    """Picodollars of a day in the rows of one name: more, all together, than a column of the file tells."""
    asked = f"SELECT amount FROM {table} WHERE day = ? AND {column} = ?"  # noqa: S608 - our own names
    return sum(amount for (amount,) in db.execute(asked, (day, name)))


def _totals(db: sqlite3.Connection, day: str, now: float, *, keys: bool = False) -> Totals:
    """The sums of a day; `keys`: also those by key."""
    lines = _lines(db.execute(_SPENT, (day,)), db.execute(_HELD, (day,)), now)
    if not keys:
        return Totals(day, lines)
    return Totals(
        day, lines, _lines(db.execute(_SPENT_BY_KEY, (day,)), db.execute(_HELD_BY_KEY, (day,)), now)
    )


def _lines(spent: Iterable[Sequence[Any]], held: Iterable[Sequence[Any]], now: float) -> tuple[Line, ...]:
    lines: dict[tuple[str, str, str, str], Line] = {}
    for row in spent:
        (provider, route, model, *key), sums = row[: -len(_SUMS)], row[-len(_SUMS) :]
        named = dict(zip(_SUMS, sums, strict=True))
        whose = key[0] if key else ""
        lines[provider, route, model, whose] = Line(
            provider=provider, route=route, model=model, key=whose, **named
        )
    for provider, route, model, whose, amount, until in held:
        line = lines.setdefault(
            (provider, route, model, whose), Line(provider=provider, route=route, model=model, key=whose)
        )
        line.held += amount
        line.unsettled += amount if until < now else 0
    return tuple(lines[names] for names in sorted(lines))
