"""`orchestrator simulate`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, Duration, PlainOutput

if TYPE_CHECKING:
    from orchestrator.backtest.scenario import Scenario
    from orchestrator.backtest.study import Result, Row
    from orchestrator.config.load import Config
    from orchestrator.views.simulate import SimulateView

_Above0 = validators.Number(gt=0)
Start = Annotated[Duration | None, Parameter(validator=validators.Number(gte=0))]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """What is played: a market, or a part of it, and how long things take there."""

    trace: Annotated[
        Path | None,
        Parameter(
            name=["--trace", "-t"],
            help="A recorded market: a directory with set.json, or one with several such directories. "
            "Without it the synthetic market of --seed.",
        ),
    ] = None
    zones: Annotated[
        tuple[str, ...],
        Parameter(
            name="--zones",
            consume_multiple=True,
            negative="",
            show_default=False,
            help="Only zones whose names begin like this.",
        ),
    ] = ()
    days: Annotated[float | None, Parameter(help="Play only so many days.", validator=_Above0)] = None
    skip_days: Annotated[
        float, Parameter(help="Begin so many days into the market.", validator=validators.Number(gte=0))
    ] = 0.0
    cold_start: Annotated[
        Start,
        Parameter(help="From launch to ready, on both markets; else starts.spot and starts.on_demand."),
    ] = None
    notice: Annotated[
        Start, Parameter(help="From a notice to its deadline; else starts.notice of the file.")
    ] = None
    seed: Annotated[int, Parameter(help="Draws who is taken, and the synthetic market.")] = 1

    @property
    def starts(self) -> dict[str, float]:
        """What the command line says instead of the file's [pool.NAME.starts]."""
        cold = {} if self.cold_start is None else {"spot": self.cold_start, "on_demand": self.cold_start}
        return cold if self.notice is None else {**cold, "notice": self.notice}


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Which rows there are."""

    policy: Annotated[
        tuple[str, ...],
        Parameter(
            name=["--policy", "-p"],
            consume_multiple=True,
            negative="",
            show_default=False,
            help="Only these rows, by name or by the beginning of it: pool (the file's own), 70/30, "
            "adaptive, a baseline, or the bound.",
        ),
    ] = ()
    baselines: Annotated[
        bool, Parameter(help="Also run what others do, other mixes of the pool, and the bound.")
    ] = True
    whole_daemon: Annotated[
        bool,
        Parameter(
            negative="",
            help="Also run the pool with the whole daemon (loop, observer, actuator, journal) on virtual "
            "time: some seconds for an hour.",
        ),
    ] = False


def simulate(
    *,
    config: Annotated[Path, Parameter(name=["--config", "-c"], help="The configuration file with the pool.")],
    play: Play = Play(),
    compare: Compare = Compare(),
    plot: Annotated[
        Path | None,
        Parameter(
            help="Draw what happened into this PNG, SVG or PDF file; with several markets one file each, "
            "NAME-MARKET.png. Needs the extra `plot`."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        Parameter(
            name=["--jobs", "-j"], help="Processes; else one per core.", validator=validators.Number(gte=1)
        ),
    ] = None,
    pool: shared.WhichPool = None,
    output: PlainOutput = "table",
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", help="Show no progress.")] = False,
) -> int:
    """Play your pool on a spot market, beside what others do: what it would have cost, what had gone wrong.

    The real decision code runs on virtual time against recorded capacity and prices.
    A month takes seconds to minutes. Nothing outside this machine is used.

    For example:
      orchestrator simulate -c pool.toml
      orchestrator simulate -c pool.toml --trace traces/v100-2023 --plot out.png
      orchestrator simulate -c pool.toml --trace traces --zones us-west us-east
      orchestrator simulate -c pool.toml --policy pool SpotHedge --cold-start 600s
      orchestrator simulate -c pool.toml -o json | jq '.markets[0].summary'
    """
    from orchestrator.backtest import tables

    settings = shared.one_pool(shared.read_config(config), pool)
    if plot is not None:
        _check_plot(plot)
    rows = _rows(settings, play, compare)
    found = _markets(settings, play)
    results = _run(rows, [scenario for scenario, _ in found], settings, play, jobs, quiet)
    view = _view(config, settings, found, rows, results, play)
    if plot is not None:
        _draw(plot, found, results, quiet)
    if output == "json":
        shared.print_json(view)
    else:
        shared.print_text(tables.simulation(view, shared.look(output)))
    return shared.OK


def _rows(settings: Config, play: Play, compare: Compare) -> list[Row]:
    from orchestrator.backtest import study

    try:
        return study.rows_of(
            settings,
            starts=play.starts,
            names=compare.policy,
            baselines=compare.baselines,
            solver=_has_solver(),
            whole_daemon=compare.whole_daemon,
        )
    except study.UnknownPolicy as error:
        raise CommandError(str(error), shared.USAGE) from error


def _markets(settings: Config, play: Play) -> list[tuple[Scenario, str | None]]:
    """What is played, each with the date at which it begins, if that is known."""
    from orchestrator.backtest import markets

    try:
        if play.trace is None:
            length = None if play.days is None else play.days + play.skip_days
            sets = [markets.synthetic(play.seed, length)]
        else:
            sets = [found for _, found in markets.read_sets(play.trace)]
        found, left_out = [], []
        for spotset in sets:
            try:
                scenario = markets.scenario_of(
                    spotset,
                    replicas=settings.pool.replicas,
                    zones=play.zones,
                    days=play.days,
                    skip_days=play.skip_days,
                )
            except markets.NoZone as error:
                left_out.append(error)
            else:
                found.append((scenario, markets.begin_of(spotset, play.skip_days)))
        if not found:
            raise left_out[0]
    except markets.MarketError as error:
        raise CommandError(str(error), prefix="") from error
    for fault in left_out:
        print(f"left out: {fault}", file=sys.stderr)
    return found


def _run(
    rows: list[Row],
    scenarios: list[Scenario],
    settings: Config,
    play: Play,
    jobs: int | None,
    quiet: bool,
) -> list[Result]:
    from orchestrator.backtest import study
    from orchestrator.backtest.progress import showing

    timings = study.timings_of(settings, starts=play.starts)
    work = [
        study.Job(row=row, scenario=scenario, timings=timings, seed=play.seed)
        for scenario in scenarios
        for row in rows
    ]
    try:
        with showing(len(work), quiet=quiet) as progress:
            return study.run_all(work, workers=jobs or study.cores(), progress=progress)
    except (study.RunsLost, study.Failed) as error:
        raise CommandError(str(error)) from error


def _view(
    file: Path,
    settings: Config,
    found: list[tuple[Scenario, str | None]],
    rows: list[Row],
    results: list[Result],
    play: Play,
) -> SimulateView:
    from orchestrator.backtest import report, study

    timings = study.timings_of(settings, starts=play.starts)
    made = [
        report.market_view(scenario, results[place * len(rows) : (place + 1) * len(rows)], begin)
        for place, (scenario, begin) in enumerate(found)
    ]
    pool = study.pool_of(settings, starts=play.starts)
    return {
        "schema": "simulate/1",
        "config": str(file),
        "pool": settings.pool_name,
        "replicas": pool.replicas,
        "spot_start_s": timings.spot_start,
        "on_demand_start_s": timings.on_demand_start,
        "standby_start_s": timings.standby_start,
        "notice_s": timings.notice,
        "seed": play.seed,
        "markets": made,
        "mean": report.mean_views(made),
        "notes": report.notes_of(
            pool,
            [scenario for scenario, _ in found],
            timings,
            solver=_has_solver(),
            whole_daemon=any(row.driver == "daemon" for row in rows),
            weighted=settings.wanted.weighted,
        ),
    }


def _has_solver() -> bool:
    from importlib.util import find_spec

    return find_spec("highspy") is not None


def _check_plot(file: Path) -> None:
    """Before the runs: a picture that cannot be drawn is said at once."""
    shared.need_picture("--plot", file)


def _draw(plot: Path, found: list[tuple[Scenario, str | None]], results: list[Result], quiet: bool) -> None:
    from orchestrator.backtest.picture import draw

    each = len(results) // len(found)
    for place, (scenario, begin) in enumerate(found):
        file = plot if len(found) == 1 else plot.with_stem(f"{plot.stem}-{scenario.name}")
        try:
            draw(file, scenario, results[place * each : (place + 1) * each], begin)
        except OSError as error:
            raise CommandError(f"--plot {file}: cannot be written: {error.strerror}") from error
        if not quiet:
            print(f"Wrote {file}", file=sys.stderr)
