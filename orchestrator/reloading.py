"""Taking up a changed configuration while the daemon runs: what changed, is it possible, what follows.

A configuration is taken up whole or not at all. What the policies go by can change while the daemon runs.
What its connections, files and listeners were made from cannot: a daemon is restarted for that, which touches
no node. Keys of the gateway are the gateway's; the daemon passes over them.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import structlog

from cloud.ports import Clock
from orchestrator import metrics, views
from orchestrator.config import Config, ConfigError, Problem, load_config
from orchestrator.config_errors import dotted
from orchestrator.config_types import written
from orchestrator.config_values import Path, settings
from orchestrator.loop import Snapshot
from orchestrator.redact import Redactor
from orchestrator.status import plan_view
from policies.decide import decide_for
from policies.events import PoolConfigured
from policies.fleet import Fleet
from policies.memory import reduce
from policies.model import Pool

log = structlog.get_logger("reload")

Outcome = Literal["applied", "unchanged", "rejected", "checked"]

LARGEST_DROP: Final = 0.5
"""Share of the replicas that a reload may take away without being told that this is meant."""

_POLICY: Final = frozenset(
    {
        "replicas",
        "spot_share",
        "mix",
        "availability",
        "on_demand_floor",
        "drain",
        "back_to_spot",
        "health",
        "standby",
        "placement",
        "rebalance",
        "starts",
        "limits",
        "patience",
    }
)
_DAEMON: Final = frozenset({"log_level", "tick", "keep_events", "keep_turns", "keep_turns_size"})
_SHARED: Final = frozenset({"socket", "targets_file"})  # of the gateway's table, what the daemon uses too


class Effect(enum.StrEnum):
    """What a changed key asks for."""

    NOW = "now"
    GATEWAY = "gateway"
    RESTART = "restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key that differs. `before` and `after` are as a file would have them."""

    path: Path
    before: str
    after: str

    @property
    def effect(self) -> Effect:
        """What it takes for the change to count."""
        table, *rest = self.path
        if table == "daemon":
            return Effect.NOW if rest[0] in _DAEMON else Effect.RESTART
        if len(rest) < 2 or rest[1] in _POLICY:
            return Effect.NOW if len(rest) > 1 else Effect.RESTART
        if rest[1] == "gateway" and rest[2] not in _SHARED:
            return Effect.GATEWAY
        return Effect.RESTART


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A configuration that was looked at: `config` is None where it cannot even be read."""

    config: Config | None
    changes: tuple[Change, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def acceptable(self) -> bool:
        """True when it may be taken up."""
        return self.config is not None and not self.problems


Apply = Callable[[Config, bool], Awaitable[None]]
"""Puts a configuration into force; the flag asks to return only once a turn was made under it."""


class Reloader:
    """The configuration in force and the way to another one. `last` is the newest turn, if there was one."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock,
        threads: bool,
        last: Callable[[], Snapshot | None],
        apply: Apply,
    ) -> None:
        self.config = config
        self._clock, self._threads, self._last, self._apply = clock, threads, last, apply
        self._loaded_at = clock.now()
        self._rejected: views.RejectedView | None = None
        self._one = asyncio.Lock()
        metrics.CONFIG_OK.set(1)
        metrics.CONFIG_LOADED.set(self._loaded_at)

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
            judge = partial(examine, self.config, load or partial(reread, self.config), force=force)
            verdict = await asyncio.to_thread(judge) if self._threads else judge()
            verdict, plan = self._tried(verdict)
            outcome = self._outcome(verdict, dry_run)
            if not dry_run:
                await self._conclude(verdict, wait)
            return self._view(verdict, outcome, plan)

    @property
    def note(self) -> str:
        """That the file holds another configuration than the one in force, and why; empty otherwise."""
        if self._rejected is None:
            return ""
        return (
            f"the new configuration was rejected, the one before is in force: {self._rejected['problems'][0]}"
        )

    def state(self) -> views.ConfigStateView:
        """For status pages."""
        path = self.config.path
        return views.ConfigStateView(
            file=None if path is None else str(path), loaded_at=self._loaded_at, rejected=self._rejected
        )

    def _tried(self, verdict: Verdict) -> tuple[Verdict, views.PoolPlanView | None]:
        """Decide once under the new configuration: a decision that fails would end the daemon each time."""
        snapshot, config = self._last(), verdict.config
        if config is None or verdict.problems or snapshot is None:
            return verdict, None
        try:
            return verdict, would_do(config.wanted, snapshot)
        except Exception as error:
            log.exception("config.undecidable")
            text = f"no decision can be made under it ({type(error).__name__}: {error}); please report this"
            return replace(verdict, problems=(config.problem(("pool", config.pool_name), text),)), None

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
            texts = [str(problem) for problem in verdict.problems]
            self._rejected = views.RejectedView(at=now, problems=texts)
            log.error("config.rejected", problems=texts, effect="the one before stays in force")
            return
        self._rejected, self._loaded_at = None, now
        metrics.CONFIG_LOADED.set(now)
        log.info(
            "config.applied", changes=[f"{dotted(c.path)}: {c.before} -> {c.after}" for c in verdict.changes]
        )
        self.config = verdict.config
        if verdict.changes:
            await self._apply(verdict.config, wait)

    def _view(self, verdict: Verdict, outcome: Outcome, plan: views.PoolPlanView | None) -> views.ReloadView:
        config = verdict.config
        file = str(self.config.path or "configuration")
        texts = {
            "applied": f"{file} is in force.",
            "unchanged": f"{file} says what is in force already.",
            "checked": f"{file} can be taken up; nothing was changed.",
            "rejected": f"{file} was rejected; the configuration before it stays in force.",
        }
        return views.ReloadView(
            schema="reload/1",
            outcome=outcome,
            file=file,
            changes=[] if config is None else [change_view(change, config) for change in verdict.changes],
            problems=[problem.view() for problem in verdict.problems],
            warnings=[] if config is None else [warning.view() for warning in config.warnings],
            plan=plan,
            text=texts[outcome],
        )


def reread(config: Config) -> Config:
    """The same file as it is now. Raises ConfigError."""
    if config.path is None:
        raise ConfigError([config.problem((), "was built in memory, so there is no file to read again")])
    return load_config(config.path, "daemon")


def examine(old: Config, load: Callable[[], Config], *, force: bool) -> Verdict:
    """Read the new configuration and judge it against the one in force. Reads files, changes nothing.

    `force` permits what would take most of a pool away.
    """
    try:
        new = load()
    except ConfigError as error:
        return Verdict(config=None, problems=error.problems)
    changes = tuple(differences(old, new))
    problems = [
        new.problem(
            change.path,
            f"{change.before} -> {change.after} cannot be taken up by a running daemon; restart it, which "
            "touches no node (systemctl restart spot-orchestrator)",
        )
        for change in changes
        if change.effect is Effect.RESTART
    ]
    before, after = old.pool.replicas, new.pool.replicas
    if not force and old.pool_name == new.pool_name and after < before * LARGEST_DROP:
        problems.append(
            new.problem(
                ("pool", new.pool_name, "replicas"),
                f"{before} -> {after} would end most nodes of the pool; if that is meant, "
                "`orchestrator reload --force`",
            )
        )
    return Verdict(config=new, changes=changes, problems=tuple(sorted(problems)))


def differences(old: Config, new: Config) -> Iterator[Change]:
    """Every key whose effective value differs, in the order of the file's reference; secrets are hidden."""
    before, after = dict(_values(old)), dict(_values(new))
    nothing = ("nothing", "nothing")
    for path in dict.fromkeys((*before, *after)):
        (was, shown_before), (becomes, shown_after) = before.get(path, nothing), after.get(path, nothing)
        if was != becomes:
            yield Change(path=path, before=shown_before, after=shown_after)


def would_do(pool: Pool, snapshot: Snapshot) -> views.PoolPlanView:
    """What the next turn would do if `pool` were wanted and the world as it was in the last one."""
    now = snapshot.world.now
    memory = reduce(snapshot.memory, PoolConfigured(at=now, replicas=pool.replicas))
    fleet = Fleet.of(pool, snapshot.world, memory)
    plan = decide_for(fleet, snapshot.world, memory)
    return plan_view(Snapshot(fleet=fleet, world=snapshot.world, memory=memory, plan=plan, at=now))


def change_view(change: Change, new: Config) -> views.ChangeView:
    """A change as JSON, with its line in the new file."""
    place = new.problem(change.path, "")
    return {
        "key": place.key,
        "line": place.line,
        "before": change.before,
        "after": change.after,
        "effect": change.effect.value,
    }


def _values(config: Config) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Every key: its value as a file would have it, and the same without secrets."""
    for name in config.pools:
        yield ("pool", name), ("a pool", "a pool")
    redactor = Redactor()
    for setting in settings(config):
        shown = redactor.value(setting.value, setting.path[-1])
        yield setting.path, (setting.text, written(setting.field, shown))
