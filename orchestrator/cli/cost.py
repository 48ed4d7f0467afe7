"""`orchestrator cost`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter

from orchestrator.api.client import NotKnown, Unreachable
from orchestrator.cli import shared, traffic
from orchestrator.cli.shared import CommandError, Connection, PoolName, Texts
from orchestrator.units import parse_duration

if TYPE_CHECKING:
    from orchestrator.config.load import Config
    from orchestrator.views.cost import CostView

_HOUR: Final = 3600.0

Output = Annotated[
    Literal["table", "wide", "json", "csv"],
    Parameter(name=["--output", "-o"], help="How to print; json follows `orchestrator schema`."),
]


def cost(
    *,
    since: Annotated[
        str, Parameter(help="Begin: so long ago, such as 7d or 12h, or a date such as 2026-11-01 (UTC).")
    ] = "7d",
    until: Annotated[str, Parameter(help="End, in the same way; now if it is not given.")] = "",
    by: Annotated[
        Texts,
        Parameter(help="What to group by: any of pool, day, zone, market, model, adapter, key, route."),
    ] = ("pool",),
    pool: PoolName = None,
    output: Output = "table",
    picture: Annotated[
        Path | None,
        Parameter(help="Also draw the days into this PNG, SVG or PDF file. Needs the extra `plot`."),
    ] = None,
    before: traffic.Before = traffic.Before(),  # noqa: B008
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Show what was spent, for whom, for a million tokens, and what an API would ask.

    SAVED is relative to on-demand, USED is what was served of what ready units
    could serve, $/MTOK what a million tokens cost, without and with people's work,
    API what it asks for the same tokens, EVEN AT the utilisation above which the
    pool is cheaper. What is not known is `?`.

    For example:
      orchestrator cost
      orchestrator cost --since 30d --by day market -o wide
      orchestrator cost --by key model --pool chat
      orchestrator cost --since 2026-11-01 --by key -o csv
      orchestrator cost --since 30d --picture month.png
      orchestrator cost --config pool.toml
      orchestrator cost --usage export.csv --machine h100=3.00/500
      orchestrator cost --usage 50M/day --api openai/gpt-4.1-mini

    With --config it works without a daemon, too, from its files.
    """
    if picture is not None:
        shared.need_picture("--picture", picture)
    if before.usage is not None:
        return traffic.weigh(before.usage, before, connection, output)
    grouping = _grouping(by)
    since_hour, until_hour = _period(since, until)
    source = _Source(connection, since_hour, until_hour, pool)
    view = source.view(grouping)
    if picture is not None:
        _draw(picture, source)
    if output == "json":
        shared.print_json(view)
        return shared.OK
    from orchestrator.render import cost as render

    if output == "csv":
        shared.print_text(render.as_csv(view))
    else:
        shared.print_text(render.report(view, shared.look(output)))
    return shared.OK


def _grouping(by: Sequence[str]) -> list[str]:
    """The dimensions that are named. Raises CommandError."""
    from policies.cost_report import check_grouping

    grouping = [name for text in by for name in text.split(",") if name]
    try:
        check_grouping(grouping)
    except ValueError as error:
        raise CommandError(f"--by {error}", shared.USAGE) from error
    return grouping


# -- the period --------------------------------------------------------------------------------------


def _period(since: str, until: str) -> tuple[int, int]:
    """The hours from the begin up to the end. Raises CommandError."""
    from cloud.clock import SystemClock

    now = SystemClock().now()
    begin = int(_instant("--since", since, now) // _HOUR)
    end = math.ceil(_instant("--until", until, now) / _HOUR) if until else int(now // _HOUR) + 1
    if not 0 <= begin < end:
        raise CommandError("--since: there is no time between it and --until", shared.USAGE)
    return begin, end


def _instant(flag: str, text: str, now: float) -> float:
    """Seconds since the epoch of a date, or of so long ago."""
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
        return (found.replace(tzinfo=UTC) if found.tzinfo is None else found).timestamp()
    except (ValueError, OverflowError):
        raise CommandError(
            f'{flag} {text}: write how long ago, such as "7d", or a date, such as "2026-11-01"', shared.USAGE
        ) from None


# -- what is asked -----------------------------------------------------------------------------------


class _Source:
    """Who knows the figures: the daemon, or its files where it does not answer."""

    def __init__(self, connection: Connection, since: int, until: int, pool: str | None) -> None:
        self._connection, self._since, self._until, self._pool = connection, since, until, pool
        self._config: Config | None = None

    def view(self, by: Sequence[str]) -> CostView:
        """The report. Raises CommandError, ClientError."""
        if self._config is None:
            try:
                return self._connection.client().cost(
                    since=self._since * _HOUR, until=self._until * _HOUR, by=by, pool=self._pool
                )
            except NotKnown as error:  # as where the file knows no such pool
                raise CommandError(str(error), shared.USAGE) from error
            except Unreachable:
                if self._connection.config is None:
                    raise
                self._config = shared.read_config(self._connection.config, "client")
                print("the daemon does not answer: read from its files", file=sys.stderr)
        return self._from_files(self._config, by)

    def _from_files(self, config: Config, by: Sequence[str]) -> CostView:
        from cloud.clock import SystemClock
        from orchestrator.costs.books import read_books
        from orchestrator.costs.view import view_of
        from orchestrator.journal.file import JournalError

        try:
            books, missing = read_books(
                config, since=self._since, until=self._until, now=SystemClock().now(), pool=self._pool or ""
            )
        except JournalError as error:
            raise CommandError(str(error)) from error
        if self._pool is not None and not books.machines:  # one that left no trace must be in the file
            shared.one_pool(config, self._pool)
        return view_of(books, by, missing)


def _draw(picture: Path, source: _Source) -> None:
    from orchestrator.costs.picture import BY, draw

    try:
        draw(picture, source.view(BY))
    except OSError as error:
        raise CommandError(f"--picture {picture}: cannot be written: {error.strerror}") from error
    print(f"Wrote {picture}", file=sys.stderr)
