"""A user's own pool on spot markets, beside what others do: the runs of `orchestrator simulate`.

A study is rows (policies) times scenarios (markets). Runs are independent of each other, so they go to
several processes; their results come back in the order asked for, whatever finished first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from orchestrator.backtest.baselines import standard
from orchestrator.backtest.full_daemon import Settings, play
from orchestrator.backtest.machines import Timings
from orchestrator.backtest.omniscient import SolverMissing, Unsolved, bound
from orchestrator.backtest.replay import Decide, Policy, Replay, ReplayError
from orchestrator.backtest.scenario import HOUR, Scenario
from orchestrator.backtest.score import WARM_UP, Score
from orchestrator.backtest.timeline import Shortfall, Timeline, TimelineRecorder
from orchestrator.config.load import Config
from orchestrator.config.tables.pool import PoolConfig
from policies.model import Pool

Mix = Literal["70/30", "adaptive"]

POOL = "pool"
"""The row of the user's own configuration."""

WHOLE = "pool, whole daemon"
"""The same pool, run by the whole daemon."""

BOUND = "omniscient bound"

VARIANTS: dict[str, Mix] = {"70/30": "70/30", "adaptive": "adaptive"}
"""Rows that are the user's pool with another mix: name and `mix`."""

STORAGE = 0.01
"""Cost of a stopped standby (its disk) as a share of its running price: an assumption."""

_POLL = 0.25  # s between two looks at how far the runs are

Kind = Literal["config", "config-variant", "baseline", "bound"]
Driver = Literal["decisions", "daemon", "solver"]


class UnknownPolicy(Exception):
    """A name that fits no row; the message lists those that there are."""


class RunsLost(Exception):
    """A process that ran simulations died; the message says what to do."""


class Failed(Exception):
    """A run that could not be finished: which policy, which market, what happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a policy, and the pool that it keeps. `settings` only for the whole daemon."""

    name: str
    kind: Kind
    pool: Pool
    driver: Driver = "decisions"
    settings: Settings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run."""

    row: Row
    scenario: Scenario
    timings: Timings
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One finished run. Without a score (the bound) there are only costs and the spot share."""

    row: Row
    cost_ratio: float
    mean_spot_share: float
    hours: float
    on_demand_dollars: float
    score: Score | None = None
    serving_availability: float | None = None
    shortfalls: tuple[Shortfall, ...] = ()
    timeline: Timeline | None = None
    broken: tuple[str, ...] = ()

    @property
    def dollars(self) -> float:
        """What it cost, USD."""
        return self.cost_ratio * self.on_demand_dollars

    @property
    def availability(self) -> float:
        """Share of the wanted capacity that was ready; the bound has all of it."""
        return 1.0 if self.score is None else self.score.capacity_availability


def pool_of(config: Config, *, mix: Mix | None = None, starts: dict[str, float] | None = None) -> Pool:
    """The pool of a configuration as the policies take it, with nodes of one unit: a market sells one type.

    `mix`: with this mix and its usual share of spot, whatever the file says of them. `starts`: start times
    instead of the file's (keys of [pool.NAME.starts]).
    """
    settings = _settings_of(config, starts or {})
    if mix is not None:
        kept = settings.model_fields_set - {"spot_share", "on_demand_floor", "mix"}
        written = {name: getattr(settings, name) for name in type(settings).model_fields if name in kept}
        settings = type(settings).model_construct(_fields_set=set(kept), **written, mix=mix)
    return settings.as_pool(config.pool_name)


def _settings_of(config: Config, starts: dict[str, float]) -> PoolConfig:
    settings = config.pool
    return settings.model_copy(update={"starts": settings.starts.model_copy(update=starts), "units": {}})


def timings_of(config: Config, *, starts: dict[str, float]) -> Timings:
    """How long things take in the replayed world: as the configuration expects them, but for `starts`."""
    known = config.pool.starts.model_copy(update=starts)
    return Timings(
        spot_start=known.spot,
        on_demand_start=known.on_demand,
        standby_start=known.standby,
        notice=known.notice,
        storage=STORAGE,
    )


def rows_of(
    config: Config,
    *,
    starts: dict[str, float],
    names: Sequence[str],
    baselines: bool,
    solver: bool,
    whole_daemon: bool,
) -> list[Row]:
    """The rows to run. `names` are names or beginnings of names; none means all. Raises UnknownPolicy."""
    pool = pool_of(config, starts=starts)
    all_rows = [Row(name=POOL, kind="config", pool=pool)]
    for name, mix in VARIANTS.items():
        all_rows.append(Row(name=name, kind="config-variant", pool=pool_of(config, mix=mix, starts=starts)))
    all_rows += [Row(name=name, kind="baseline", pool=pool) for name in standard()]
    all_rows.append(Row(name=BOUND, kind="bound", pool=pool, driver="solver"))
    if names:
        chosen = [row for row in all_rows if row.name in _named(names, [r.name for r in all_rows])]
    else:
        # A variant that is the pool itself would be the same line twice.
        chosen = [r for r in all_rows if r.kind != "config-variant" or (baselines and r.pool != pool)]
        chosen = [r for r in chosen if baselines or r.kind not in ("baseline", "bound")]
        chosen = [r for r in chosen if solver or r.kind != "bound"]
    if whole_daemon:
        settings = Settings(daemon=config.daemon, name=config.pool_name, pool=_settings_of(config, starts))
        whole = Row(name=WHOLE, kind="config", pool=pool, driver="daemon", settings=settings)
        chosen.insert(sum(row.kind == "config" for row in chosen), whole)
    return chosen


def _named(names: Sequence[str], known: Sequence[str]) -> set[str]:
    """The known names that are asked for: exactly, else by their beginning; case does not matter."""
    found: set[str] = set()
    for name in names:
        exact = [k for k in known if k.lower() == name.lower()]
        fitting = exact or [k for k in known if k.lower().startswith(name.lower())]
        if not name or not fitting:
            raise UnknownPolicy(f"there is no policy {name!r}; there are {', '.join(known)}")
        found.update(fitting)
    return found


def perform(job: Job, progress: Callable[[float], None] = lambda _: None) -> Result:
    """One run, in this process. `progress` gets the share that is done."""
    row, scenario = job.row, job.scenario
    begin = min(WARM_UP, scenario.seconds)
    hours = (scenario.seconds - begin) / HOUR
    common: dict[str, Any] = {
        "row": row,
        "hours": hours,
        "on_demand_dollars": scenario.on_demand_price * scenario.replicas * hours,
    }
    if row.driver == "solver":
        try:
            least = bound(scenario, job.timings)
        except (SolverMissing, Unsolved) as error:
            raise Failed(f"{row.name}: {error}") from None
        return Result(cost_ratio=least.cost_ratio, mean_spot_share=least.mean_spot_share, **common)
    recorder = TimelineRecorder(
        wanted=scenario.replicas,
        spot_start=job.timings.spot_start,
        on_demand_start=job.timings.on_demand_start,
    )
    if row.settings is not None:
        played = play(
            scenario, row.settings, timings=job.timings, seed=job.seed, recorder=recorder, progress=progress
        )
        found = _result(common, played.score, played.serving_availability, recorder)
        return replace(found, broken=tuple(str(broken) for broken in played.broken))
    policy: Policy = standard()[row.name]() if row.kind == "baseline" else Decide(row.name)
    run = Replay(
        scenario,
        row.pool,
        policy,
        timings=job.timings,
        seed=job.seed,
        watch=lambda now, *_: progress(now / scenario.seconds),
        recorder=recorder,
    )
    try:
        outcome = run.run()
    except ReplayError as error:
        raise Failed(f"{scenario.name}: {error}") from None
    return _result(common, outcome.score, outcome.serving_availability, recorder)


def _result(common: dict[str, Any], score: Score, serving: float, recorder: TimelineRecorder) -> Result:
    timeline = recorder.end()
    return Result(
        cost_ratio=score.cost_ratio,
        mean_spot_share=score.mean_spot_share,
        score=score,
        serving_availability=serving,
        shortfalls=tuple(recorder.shortfalls),
        timeline=timeline,
        **common,
    )


# -- many runs -------------------------------------------------------------------------------------

Progress = Callable[[Sequence[float], int], None]
"""Hears the share done of every job, and how many are finished, several times a second."""


def run_all(jobs: Sequence[Job], *, workers: int, progress: Progress = lambda *_: None) -> list[Result]:
    """All runs, in the order of `jobs`. One worker means this process. Raises RunsLost."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        return list(_here(jobs, progress))
    return _elsewhere(jobs, workers, progress)


def _here(jobs: Sequence[Job], progress: Progress) -> Iterator[Result]:
    shares = [0.0] * len(jobs)
    for number, job in enumerate(jobs):
        steps = 0

        def share_done(share: float, number: int = number) -> None:
            nonlocal steps
            steps += 1
            shares[number] = share
            if steps % 64 == 0:
                progress(shares, number)

        result = perform(job, share_done)
        shares[number] = 1.0
        progress(shares, number + 1)
        yield result


def _elsewhere(jobs: Sequence[Job], workers: int, progress: Progress) -> list[Result]:
    # "spawn": the parent may have threads (a progress bar), with which "fork" is not safe.
    context = multiprocessing.get_context("spawn")
    shares = context.Array("d", len(jobs), lock=False)
    with (
        tempfile.TemporaryDirectory(prefix="orchestrator-simulate-") as scratch,
        _ended_on_error(ProcessPoolExecutor(workers, context, _begin_worker, (shares, scratch))) as pool,
    ):
        # Long runs first, so that no core waits for one of them at the end. The order of results stays.
        order = sorted(range(len(jobs)), key=lambda n: -_weight(jobs[n]))
        with _deaf():
            futures: dict[int, Future[Result]] = {n: pool.submit(_in_worker, n, jobs[n]) for n in order}
        pending = set(futures.values())
        while pending:
            done, pending = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    future.result()
                except BrokenProcessPool:
                    raise RunsLost(
                        "a process that ran simulations was killed (out of memory?); try --jobs 1"
                    ) from None
            progress(list(shares), len(futures) - len(pending))
        return [futures[number].result() for number in range(len(jobs))]


def _weight(job: Job) -> float:
    """How long a run takes, roughly; only their order matters."""
    kinds = {"solver": 20.0, "daemon": 1000.0}
    ours = job.row.kind in ("config", "config-variant")
    each = kinds.get(job.row.driver, 4.0 if ours else 1.0) * (5.0 if ours and job.row.pool.adaptive else 1.0)
    return each * job.scenario.seconds * len(job.scenario.tapes)


@contextmanager
def _ended_on_error(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """The pool, whose processes are ended at once when something is raised, such as by Ctrl-C."""
    before = set(multiprocessing.active_children())
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C waits for a moment; processes started in it do not hear it from their first instant on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    kept = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what new processes inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, kept)
        if heard:
            signal.raise_signal(signal.SIGINT)


_shares: Any = None


def _begin_worker(shares: Any, scratch: str) -> None:
    """In a new process: Ctrl-C is the parent's to handle, and without a parent there is nothing to do.

    Temporary files go to `scratch`, which the parent removes, however the process ends.
    """
    global _shares
    _shares, tempfile.tempdir = shares, scratch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_worker(number: int, job: Job) -> Result:
    def share_done(share: float) -> None:
        _shares[number] = share

    result = perform(job, share_done)
    _shares[number] = 1.0
    return result


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))
