"""Taking up a changed configuration while the daemon runs: whole, or not at all.

What a change asks for, and what follows from it, is judged in `changes`. A pool that starts meets the same
question about its size: the one in its journal stays in force until it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Literal

from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.api.changes import (
    Last,
    Trial,
    Verdict,
    change_view,
    confirming,
    emptied,
    examine,
    gateway_changed,
    reread,
    with_size_of,
)
from orchestrator.config.errors import Problem, dotted
from orchestrator.config.load import Config
from orchestrator.loop.loop import Snapshot
from orchestrator.metrics import metrics
from orchestrator.views import api as views
from orchestrator.words import rejection
from policies import resize
from policies.bill import remembered_prices
from policies.budget import share
from policies.events import ConfigRejected, Event
from policies.grant import Ask
from policies.memory import Memory
from policies.model import Instance

log = structlog.get_logger("api")

Outcome = Literal["applied", "unchanged", "rejected", "checked"]

Apply = Callable[[Config, bool, Sequence[str]], Awaitable[None]]
"""Puts a configuration into force. The flag asks to return only once a turn was made under it; the gateway
reads the keys, which differ."""


class Reloader:
    """The configuration in force and the way to another one.

    `last` is the newest turn of a pool, if there was one; `tell` has pools journal what concerns them.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock,
        threads: bool,
        last: Callable[[str], Snapshot | None],
        apply: Apply,
        tell: Callable[[Event, Collection[str]], object],
    ) -> None:
        self.config = config
        self._tell = tell
        self._clock, self._threads, self._last, self._apply = clock, threads, last, apply
        self._loaded_at = clock.now()
        self._rejected: views.RejectedView | None = None
        self._one = asyncio.Lock()
        metrics.CONFIG_OK.set(1)
        metrics.CONFIG_LOADED.set(self._loaded_at)

    async def confirm(
        self, given: Config, memory: Memory, machines: Callable[[], Awaitable[Sequence[Instance] | None]]
    ) -> Config:
        """What of a pool's configuration may be taken up at its start.

        The size that the journal remembers stays where the file's would not be taken up unasked. `machines`
        lists what the cloud has, None when it cannot: asked only where the journal says no.
        """
        if not resize.unconfirmed_at_start(given.wanted, memory, None) or not (
            why := resize.unconfirmed_at_start(given.wanted, memory, await machines())
        ):
            return given
        name, kept = given.pool_name, with_size_of(given, memory)
        self.config = replace(self.config, pools=MappingProxyType({**self.config.pools, name: kept.pool}))
        sizes = resize.sizes(kept.wanted, given.wanted, remembered_prices(given.wanted, memory))
        text = f"{why}: {sizes}; if that is meant, `{confirming(given)}`"
        in_force = f"{kept.wanted.replicas} replicas stay wanted and all else in the file is in force"
        self._reject([given.problem(("pool", name, "replicas"), text)], in_force, [name])
        return kept

    async def reload(
        self,
        load: Callable[[], Config] | None = None,
        *,
        dry_run: bool = False,
        force: bool = False,
        wait: bool = False,
    ) -> views.ReloadView:
        """Read the file again (or `load` a configuration) and take it up, or keep the one before.

        A `dry_run` judges and says what would follow. `wait` returns once a turn was made under it.
        """
        async with self._one:
            last = {name: turn for name in self.config.pools if (turn := self._last(name)) is not None}
            load = load or partial(reread, self.config)
            judge = partial(examine, self.config, load, force=force, last=last)
            verdict = await asyncio.to_thread(judge) if self._threads else judge()
            verdict, plans = self._tried(verdict, last)
            outcome = self._outcome(verdict, dry_run)
            if not dry_run:
                await self._conclude(verdict, wait)
            return self._view(verdict, outcome, plans)

    @property
    def note(self) -> str:
        """That the file holds another configuration than the one in force, and why; empty otherwise."""
        return "" if self._rejected is None else rejection(self._rejected)

    def state(self) -> views.ConfigStateView:
        """For status pages."""
        path = self.config.path
        return views.ConfigStateView(
            file=None if path is None else str(path), loaded_at=self._loaded_at, rejected=self._rejected
        )

    def _tried(self, verdict: Verdict, last: Last) -> tuple[Verdict, list[views.PoolPlanView]]:
        """Decide once under the new configuration: a decision that fails would end a pool each time."""
        config, plans, problems = verdict.config, list[views.PoolPlanView](), list[Problem]()
        if config is None or verdict.problems:
            return verdict, []
        trials: dict[str, Trial] = {}
        asks: list[Ask] = []
        for name, snapshot in last.items():
            wanted = config.only(name).wanted if name in config.pools else emptied(self.config.only(name))
            with _decidable(config, name, problems):
                trials[name] = Trial.of(wanted, snapshot)
                asks.append(trials[name].ask)
        grants = share(asks, config.budget.shared) if config.budget.bounded else {}
        everywhere = len(last) == 1 or any(not change.pool for change in verdict.changes)
        for name, trial in trials.items():
            if everywhere or any(change.pool == name for change in verdict.changes):
                with _decidable(config, name, problems):
                    plans.append(trial.plan(grants.get(name)))
        return replace(verdict, problems=tuple(problems)), plans

    def _outcome(self, verdict: Verdict, dry_run: bool) -> Outcome:
        if not verdict.acceptable:
            return "rejected"
        if not verdict.changes:
            return "unchanged"
        return "checked" if dry_run else "applied"

    async def _conclude(self, verdict: Verdict, wait: bool) -> None:
        now = self._clock.now()
        metrics.CONFIG_OK.set(verdict.acceptable)
        if not verdict.acceptable or verdict.config is None:
            concerned = [n for n in self.config.pools if any(_concerns(p, n) for p in verdict.problems)]
            pools = concerned or [*self.config.pools]
            self._reject(verdict.problems, "the one before is in force", pools)
            return
        self._rejected, self._loaded_at = None, now
        metrics.CONFIG_LOADED.set(now)
        log.info(
            "config.applied", changes=[f"{dotted(c.path)}: {c.before} -> {c.after}" for c in verdict.changes]
        )
        before, self.config = self.config, verdict.config
        if verdict.changes:
            await self._apply(verdict.config, wait, gateway_changed(before, verdict.config))

    def complain(self, problems: Sequence[str], in_force: str) -> None:
        """Say what is wrong about the configuration in force, of which the file says nothing."""
        found = [self.config.problem(("pool",), text) for text in problems]
        self._reject(found, in_force, [*self.config.pools])

    def _reject(self, problems: Sequence[Problem], in_force: str, pools: Collection[str]) -> None:
        now, texts = self._clock.now(), [str(problem) for problem in problems]
        metrics.CONFIG_OK.set(False)
        self._rejected = views.RejectedView(at=now, problems=texts, in_force=in_force)
        log.error("config.rejected", problems=texts, effect=in_force)
        self._tell(ConfigRejected(at=now, problems=tuple(texts)), pools)

    def _view(
        self, verdict: Verdict, outcome: Outcome, plans: Sequence[views.PoolPlanView]
    ) -> views.ReloadView:
        config = verdict.config
        file = str(self.config.path or "configuration")
        texts = {
            "applied": f"{file} is in force.",
            "unchanged": f"{file} says what is in force already.",
            "checked": f"{file} can be taken up; nothing was changed.",
            "rejected": f"{file} was rejected; the configuration before it stays in force.",
        }
        view = views.ReloadView(
            schema="reload/1",
            outcome=outcome,
            file=file,
            changes=[] if config is None else [change_view(change, config) for change in verdict.changes],
            problems=[problem.view() for problem in verdict.problems],
            warnings=[] if config is None else [warning.view() for warning in config.warnings],
            size=_sizes(verdict) or None,
            plan=plans[0] if len(plans) == 1 else None,
            text=texts[outcome],
        )
        if len(plans) > 1:
            view["plans"] = list(plans)
        return view


@contextlib.contextmanager
def _decidable(config: Config, pool: str, problems: list[Problem]) -> Iterator[None]:
    """Take it for a problem of the configuration when what is decided for the pool raises."""
    try:
        yield
    except Exception as error:
        log.exception("config.check_failed", pool=pool)
        text = f"no decision can be made under it ({type(error).__name__}: {error}); please report this"
        problems.append(config.problem(("pool", pool), text))


def _concerns(problem: Problem, pool: str) -> bool:
    return f"{problem.key}.".startswith(f"pool.{pool}.")


def _sizes(verdict: Verdict) -> str:
    """What becomes of the size of each pool, with the pools' names where there are several."""
    pools = verdict.config.pools if verdict.config is not None else {}
    alone = len(pools.keys() | verdict.sizes.keys()) == 1
    return "; ".join(text if alone else f"{name}: {text}" for name, text in verdict.sizes.items())
