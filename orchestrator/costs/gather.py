"""The rows of a cost report, from where they are kept: the journal, the usage file and the spend file.

The daemon reads its journal through its store, the command line opens the file or asks the database of a
pair; the other two files are read alike. What cannot be read, or was counted by no hour, is named in
`missing` and is not 0. Rows are as late as their writers: the daemon writes every half minute, gateways every
second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from orchestrator.gateway.accounts.usage_file import Unusable, read_usage
from orchestrator.gateway.spend_file import KEPT_DAYS, Line, Totals, read_totals
from orchestrator.journal import hours
from orchestrator.journal.database import StoreUnavailable
from orchestrator.journal.file import JournalError, JournalFile, journal_at
from orchestrator.journal.postgres import PostgresDatabase
from orchestrator.journal.store import Store
from policies.cost_rows import POOL, ProviderDay, UsageHour
from policies.economics import HOUR, BaselineHour, SpendHour
from policies.spend import PICO

_DAY: Final = 24
"""Hours."""
_WEEK: Final = 7 * _DAY
_SUMS: Final = (
    "amount", "requests", "estimated", "unpriced", "fresh", "cached", "written", "output", "unsettled",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Hours since the epoch, from `since` up to `until`; `now` in seconds."""

    since: int
    until: int
    now: float

    @classmethod
    def wide(cls, since: int, until: int, now: float) -> Span:
        """What has to be read to report on some hours: their days in full, the month of `now`, its last week.

        >>> Span.wide(500_010, 500_020, now=500_020 * 3600.0)
        Span(since=499656, until=500040, now=1800072000.0)
        """
        today = datetime.fromtimestamp(now, UTC)
        month = datetime(today.year, today.month, 1, tzinfo=UTC).timestamp()
        first = min(since, int(month // HOUR), int(now // HOUR) - _WEEK)
        return cls(since=first // _DAY * _DAY, until=-(-until // _DAY) * _DAY, now=now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What the journal says. `known_since`: when the hours of pools begin whose account is older."""

    spent: tuple[SpendHour, ...] = ()
    baseline: tuple[BaselineHour, ...] = ()
    known_since: Mapping[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def of(self, pool: str) -> Machines:
        """The same of one pool."""
        return Machines(
            spent=tuple(row for row in self.spent if row.pool == pool),
            baseline=tuple(row for row in self.baseline if row.pool == pool),
            known_since={name: at for name, at in self.known_since.items() if name == pool},
            missing=self.missing,
        )

    def unknown(self, since: int) -> Iterator[str]:
        """What is not known of the hours from `since` on, in sentences."""
        for pool, at in sorted(self.known_since.items()):
            if since * HOUR < at:
                when = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
                yield (
                    f"what the nodes of {pool} cost before {when} is not known by the hour, and not in these "
                    "figures: the version before kept only its sum"
                )
        yield from self.missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What the gateways' files say: who used what, and what providers were paid.

    `unread`: `usage` is empty because the file could not be read.
    """

    usage: tuple[UsageHour, ...] = ()
    unread: bool = False
    providers: tuple[ProviderDay, ...] = ()
    missing: tuple[str, ...] = ()

    def of(self, pool: str) -> Used:
        """The same of one pool: nothing is paid to a provider there."""
        usage = tuple(row for row in self.usage if row.backend == POOL + pool)
        return Used(usage=usage, unread=self.unread, missing=self.missing)


async def from_store(store: Store, span: Span) -> Machines:
    """What the daemon's journal says. Raises StoreUnavailable."""
    return Machines(
        spent=tuple(await store.spend_hours(span.since, span.until)),
        baseline=tuple(await store.baseline_hours(span.since, span.until)),
        known_since=await store.hours_since(),
    )


def from_journal(path: Path, span: Span) -> Machines:
    """What the journal at a path says, or in a state directory. Without one no daemon ever counted anything.

    Raises JournalError.
    """
    if not journal_at(path)[1]:
        return Machines(missing=(f"{path}: there is no journal yet, so nothing is known of nodes",))
    with JournalFile.open(path) as journal:
        return Machines(
            spent=tuple(journal.spend_hours(span.since, span.until)),
            baseline=tuple(journal.baseline_hours(span.since, span.until)),
            known_since=journal.hours_since(),
        )


def from_database(url: str, span: Span) -> Machines:
    """What the journal of a pair says, on its server at `url`. Raises JournalError."""
    try:
        database = PostgresDatabase(url)
        try:
            with closing(database.connect()) as db, db.raw.transaction():
                db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                return Machines(
                    spent=tuple(hours.spend(db, since=span.since, until=span.until)),
                    baseline=tuple(hours.baseline(db, since=span.since, until=span.until)),
                    known_since=hours.since(db),
                )
        except database.errors as error:
            raise database.unavailable(error) from error
    except StoreUnavailable as error:
        raise JournalError(str(error)) from error


def from_gateway(usage_file: Path, spend_file: Path, span: Span) -> Used:
    """What the gateways' files say. Reads them in place: for a thread."""
    missing: list[str] = []
    usage: list[UsageHour] | None = None
    days: list[Totals] = []
    try:
        usage = read_usage(usage_file, span.since, span.until)
    except Unusable as error:
        missing.append(f"who used what is not known, nor any tokens: {error}")
    try:
        days = _days(spend_file, span)
    except Unusable as error:
        missing.append(f"what providers cost is not known: {error}")
    paid = [(day, line) for day in days for line in _by_key(day) if _counts(line)]
    providers = tuple(_paid(day, line) for day, line in paid)
    unsettled = sum(line.unsettled for _, line in paid)
    if unsettled:
        missing.append(
            f"{unsettled / PICO:.2f} USD of what providers cost are held for requests whose end nobody saw, "
            "and counted in full"
        )
    return Used(usage=tuple(usage or ()), unread=usage is None, providers=providers, missing=tuple(missing))


def _days(path: Path, span: Span) -> list[Totals]:
    """The days of a span, oldest first; those that are long over are not kept."""
    today = int(span.now // HOUR) // _DAY
    back = min(KEPT_DAYS, today - span.since // _DAY)
    if back < 0:
        return []
    found = read_totals(path, span.now, days=back + 1)
    last = (span.until - 1) // _DAY
    return found[max(0, today - last) :][::-1]


def _by_key(day: Totals) -> Iterator[Line]:
    """The lines of a day by key. What is of no key, or was booked by who knows none, has an empty one."""
    for line in day.lines:
        place = (line.provider, line.route, line.model)
        keyed = [one for one in day.by_key if (one.provider, one.route, one.model) == place]
        # Never less than nothing: a request may have been booked between both reads.
        rest = {name: max(0, getattr(line, name) - sum(getattr(k, name) for k in keyed)) for name in _SUMS}
        yield from (replace(line, **rest), *keyed)


def _counts(line: Line) -> bool:
    """Whether anything left the house: what a key is charged for a pool's tokens did not."""
    return not line.provider.startswith(POOL) and bool(line.requests or line.unsettled)


def _paid(day: Totals, line: Line) -> ProviderDay:
    return ProviderDay(
        day=day.day,
        provider=line.provider,
        route=line.route,
        model=line.model,
        key=line.key,
        usd=line.amount + line.unsettled,
        requests=line.requests,
        estimated=line.estimated,
        unpriced=line.unpriced,
        fresh=line.fresh,
        cached=line.cached,
        written=line.written,
        output=line.output,
    )
