"""`orchestrator plan-capacity`."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter, Token, validators

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, Duration, PoolName
from orchestrator.units import format_duration, parse_share
from orchestrator.words import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.config.load import Config
    from orchestrator.costs.capacity import Asked, Quota
    from orchestrator.views.capacity import CapacityPlanView

_DAY: Final = 86_400.0
_HOUR: Final = 3600.0
_MOST: Final = 9.0  # growth a week beyond which a number is a slip
_FARTHEST: Final = 364 * _DAY


def _share(_: type, tokens: Sequence[Token]) -> float:
    return parse_share(tokens[0].value)


def _price(_: type, tokens: Sequence[Token]) -> dict[str, float]:
    """TYPE=USD, given as often as wanted."""
    found = {}
    for token in tokens:
        name, equals, amount = token.value.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            equals = ""
        if not (name and equals and 0 < found[name] < float("inf")):
            raise ValueError(f"{token.value} is not TYPE=USD, such as p5.4xlarge=6.88")
    return found


Share = Annotated[float, Parameter(converter=_share, metavar="SHARE", allow_leading_hyphen=True)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What a plan goes by in place of what is known, or beside it."""

    ahead: Annotated[
        Duration,
        Parameter(
            help="Show the week that begins this long from now; limits are always counted from now.",
            show_default=format_duration,
        ),
    ] = 0.0
    headroom: Annotated[
        Share,
        Parameter(
            help="Share of a unit that stays free, for what happens within an hour.", show_default=percent
        ),
    ] = 0.3
    growth: Annotated[
        Share | None, Parameter(help="Growth a week in place of the measured one, such as 5% or -2%.")
    ] = None
    rate: Annotated[
        float | None,
        Parameter(
            help="Tokens a second, prompts and answers, of one full unit; else cost.tokens_per_second, else "
            "the most that was measured.",
            validator=validators.Number(gt=0, lt=1e9),
        ),
    ] = None
    price: Annotated[
        dict[str, float] | None,
        Parameter(
            converter=_price,
            negative="",
            help="TYPE=USD: what a node of another type costs an hour. May be given several times.",
        ),
    ] = None

    def asked(self) -> Asked:
        """As the plan takes them. Raises CommandError."""
        from orchestrator.costs.capacity import Asked

        if not 0.0 <= self.headroom < 1.0:
            text = f"--headroom {self.headroom:g} leaves nothing to plan with; write such as 30%"
            raise CommandError(text, shared.USAGE)
        if self.growth is not None and not -1.0 < self.growth <= _MOST:
            text = f"--growth {self.growth:g} is no growth of a week; write such as 5%"
            raise CommandError(text, shared.USAGE)
        if self.ahead > _FARTHEST:
            text = f"--ahead {format_duration(self.ahead)}: the forecast ends after a year"
            raise CommandError(text, shared.USAGE)
        return Asked(
            headroom=self.headroom,
            weekly=None if self.growth is None else 1.0 + self.growth,
            rate=self.rate,
            ahead=int(self.ahead // _HOUR),
            prices=self.price or {},
        )


def plan_capacity(
    *,
    config: Annotated[
        Path | None,
        Parameter(
            name=["--config", "-c"],
            help="The configuration; else that of the daemon on ORCHESTRATOR_SOCKET or ./state.",
        ),
    ] = None,
    pool: PoolName = None,
    since: Annotated[
        Duration,
        Parameter(
            help="How far back to look; growth is that of the newest four weeks.",
            show_default=format_duration,
        ),
    ] = 28 * _DAY,
    assumptions: Assumptions = Assumptions(),
    quotas: Annotated[
        bool, Parameter(negative="", help="Ask AWS for its quotas, with the daemon's credentials.")
    ] = False,
    output: Annotated[
        Literal["table", "wide", "json", "csv"],
        Parameter(
            name=["--output", "-o"],
            help="How to print; json follows `orchestrator schema capacity-plan`, csv has the hours of the "
            "week.",
        ),
    ] = "table",
) -> int:
    """Show how many nodes will be needed when, and which limit is too little first.

    It goes by what gateways and daemon counted, whether they run or not: tokens a second by hour of the week
    (95th percentile), and their growth. The exit code is 1 where no pool has a plan.

    For example:
      orchestrator plan-capacity --config pool.toml
      orchestrator plan-capacity --config pool.toml --ahead 28d --growth 5%
      orchestrator plan-capacity --config pool.toml --rate 1500 --price p5.4xlarge=6.88
      orchestrator plan-capacity --config pool.toml -o csv > week.csv
      orchestrator plan-capacity --config pool.toml -o json | jq '.limits[0]'
    """
    asked = assumptions.asked()
    view = _planned(shared.read_config(config or _file_in_force(), "client"), pool, since, asked, quotas)
    _print(view, output)
    return shared.ERROR if all(pool["why_not"] for pool in view["pools"]) else shared.OK


def _file_in_force() -> Path:
    """The configuration of the daemon that the usual socket leads to. Raises ClientError."""
    file = shared.Connection().client().status()["daemon"]["config"]["file"]
    if file is None:
        raise CommandError("the daemon has no configuration file; name one with --config")
    return Path(file)


def _planned(config: Config, pool: str | None, since: float, asked: Asked, quotas: bool) -> CapacityPlanView:
    from cloud.clock import SystemClock
    from orchestrator.config.errors import meant
    from orchestrator.costs.books import read_books
    from orchestrator.costs.capacity import plan
    from orchestrator.journal.file import JournalError

    if pool is not None and pool not in config.pools:
        raise CommandError(f"there is no pool {pool!r}{meant(pool, config.pools)}", shared.USAGE)
    if not config.pools:
        raise CommandError("there is no pool in the file, so there is no capacity to plan")
    now = SystemClock().now()
    until = int(now // _HOUR) + 1
    try:
        books, sentences = read_books(config, since=int((now - since) // _HOUR), until=until, now=now)
    except JournalError as error:
        raise CommandError(str(error), prefix="") from error
    view = plan(config, books, asked, _quotas(config) if quotas else (), pool)
    view["notes"] = [*sentences, *view["notes"]]
    return view


def _quotas(config: Config) -> list[Quota]:
    """What AWS grants for the types of each pool, by region. Raises CommandError."""
    import asyncio

    from cloud.errors import CloudError
    from orchestrator.doctor.quotas import granted

    try:
        return asyncio.run(granted(config))
    except CloudError as error:
        raise CommandError(f"the quotas cannot be read: {error}") from error


def _print(view: CapacityPlanView, output: str) -> None:
    if output == "json":
        shared.print_json(view)
    elif output == "csv":
        shared.print_text(_csv(view))
    else:
        from orchestrator.render.capacity import capacity_plan

        shared.print_text(capacity_plan(view, shared.look(output)))
    for one in view["pools"]:
        if one["why_not"] and output == "csv":
            print(f"{one['pool']}: no plan: {one['why_not']}", file=sys.stderr)


def _csv(view: CapacityPlanView) -> str:
    """The hours of the week, one a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pool", "day", "hour", "tokens_per_second", "units", "nodes"])
    for pool in view["pools"]:
        for hour in pool["week"]:
            day, of_day = divmod(hour["hour_of_week"], 24)
            name = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[day]
            rate = round(hour["tokens_per_second"], 3)
            writer.writerow([pool["pool"], name, of_day, rate, hour["units"], hour["nodes"]])
    return text.getvalue()
