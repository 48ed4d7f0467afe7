"""The books of a cost report: settings from the configuration, rows from where they are kept."""

from __future__ import annotations

from orchestrator.config.load import Config
from orchestrator.config.types import SQLITE
from orchestrator.costs.gather import Machines, Span, Used, from_database, from_gateway, from_journal
from orchestrator.costs.settings import CostSettings, settings_of
from policies.cost_rows import Books


def books_of(
    settings: CostSettings, machines: Machines, used: Used, *, since: int, until: int, now: float
) -> Books:
    """Books of the hours from `since` up to `until`."""
    return Books(
        since=since,
        until=until,
        now=now,
        machines=machines.spent,
        baseline=machines.baseline,
        usage=used.usage,
        unread=used.unread,
        providers=used.providers,
        pools=settings.pools,
        people=settings.people,
        routes=settings.routes,
        prices=settings.prices,
    )


def read_books(
    config: Config, *, since: int, until: int, now: float, pool: str = ""
) -> tuple[Books, list[str]]:
    """The books as the files hold them, and what is not in them, in sentences. Without a daemon: it blocks.

    `pool` names the pool whose books are meant, empty for all. Raises JournalError.
    """
    span = Span.wide(since, until, now)
    machines, used = (
        _journal(config, span),
        from_gateway(config.gateway.usage_file, config.gateway.spend_file, span),
    )
    settings = settings_of(config, now=now)
    if pool:
        machines, used, settings = machines.of(pool), used.of(pool), settings.of(pool)
    books = books_of(settings, machines, used, since=since, until=until, now=now)
    return books, [*machines.unknown(since), *used.missing]


def _journal(config: Config, span: Span) -> Machines:
    if config.daemon.store != SQLITE:
        return from_database(config.daemon.store, span)
    return from_journal(config.daemon.state_dir, span)
