"""Taking up a changed configuration while the daemon runs: what changed, is it possible, what follows.

A configuration is taken up whole or not at all. What the policies go by can change while the daemon runs.
What its connections, files and listeners were made from cannot: a daemon is restarted for that, which touches
no node. Keys of the gateway are the gateway's; the daemon passes over them.

A change of the pool's size that may well be a mistake asks for --force (policies.resize). A daemon that
starts meets the same question: the size in its journal stays in force until it is answered.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import structlog

from cloud.ports import Clock
from orchestrator.api.status import plan_view
from orchestrator.config.errors import Key, dotted
from orchestrator.config.load import Config, ConfigError, Problem, load_config
from orchestrator.config.reload import Effect, reload_at
from orchestrator.config.sockets import SERVICE_SOCKET
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.types import written
from orchestrator.config.values import settings
from orchestrator.loop.loop import Snapshot
from orchestrator.metrics import metrics
from orchestrator.redact import Redactor
from orchestrator.views import api as views
from orchestrator.words import rejection
from policies import resize
from policies.bill import Prices, prices_of, remembered_prices
from policies.decide import decide_for
from policies.events import ConfigRejected, Event
from policies.fleet import Fleet
from policies.memory import Memory, reduce
from policies.model import Instance, Pool

log = structlog.get_logger("reload")

Outcome = Literal["applied", "unchanged", "rejected", "checked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key that differs. `before` and `after` are as a file would have them."""

    path: Key
    before: str
    after: str

    @property
    def resizes(self) -> bool:
        """True for what may change how many nodes there are, or what they cost."""
        return reload_at(ConfigFile, self.path).resizes

    @property
    def effect(self) -> Effect:
        """What it takes for the change to count."""
        return reload_at(ConfigFile, self.path).effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A configuration that was looked at: `config` is None where it cannot even be read.

    `size` is both sizes of the pool and what they cost, empty where the size stays.
    """

    config: Config | None
    changes: tuple[Change, ...] = ()
    problems: tuple[Problem, ...] = ()
    size: str = ""

    @property
    def acceptable(self) -> bool:
        """True when it may be taken up."""
        return self.config is not None and not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What a change of size is held against: what the pool has, and today's prices."""

    has: resize.Has
    prices: Prices

    @staticmethod
    def of(pool: Pool, snapshot: Snapshot | None) -> Scale:
        """As the last turn saw it; before the first one the pool is taken to be whole."""
        if snapshot is None:
            return Scale(has=resize.Has.before(pool), prices=Prices())
        whole, ready = snapshot.memory.whole_with, snapshot.fleet.ready_units
        has = resize.Has(whole_with=whole, ready=ready, grows_from=whole)
        return Scale(has=has, prices=prices_of(pool, snapshot.fleet.prices.on_sale))


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
        tell: Callable[[Event], object],
    ) -> None:
        self.config = config
        self._tell = tell
        self._clock, self._threads, self._last, self._apply = clock, threads, last, apply
        self._loaded_at = clock.now()
        self._rejected: views.RejectedView | None = None
        self._one = asyncio.Lock()
        metrics.CONFIG_OK.set(1)
        metrics.CONFIG_LOADED.set(self._loaded_at)

    async def begin(
        self, memory: Memory, machines: Callable[[], Awaitable[Sequence[Instance] | None]]
    ) -> None:
        """Keep the size that the journal remembers where the file's would not be taken up unasked.

        `machines` lists what the cloud has, None when it cannot: asked only where the journal says no.
        """
        given = self.config
        if resize.unconfirmed_at_start(given.wanted, memory, None) and (
            why := resize.unconfirmed_at_start(given.wanted, memory, await machines())
        ):
            self.config = kept = with_size_of(given, memory)
            sizes = resize.sizes(kept.wanted, given.wanted, remembered_prices(given.wanted, memory))
            text = f"{why}: {sizes}; if that is meant, `{_command(given)}`"
            in_force = f"{kept.wanted.replicas} replicas stay wanted and all else in the file is in force"
            self._reject([given.problem(("pool", given.pool_name, "replicas"), text)], in_force)

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
            scale = Scale.of(self.config.wanted, self._last())
            load = load or partial(reread, self.config)
            judge = partial(examine, self.config, load, force=force, scale=scale)
            verdict = await asyncio.to_thread(judge) if self._threads else judge()
            verdict, plan = self._tried(verdict)
            outcome = self._outcome(verdict, dry_run)
            if not dry_run:
                await self._conclude(verdict, wait)
            return self._view(verdict, outcome, plan)

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
            self._reject(verdict.problems, "the one before is in force")
            return
        self._rejected, self._loaded_at = None, now
        metrics.CONFIG_LOADED.set(now)
        log.info(
            "config.applied", changes=[f"{dotted(c.path)}: {c.before} -> {c.after}" for c in verdict.changes]
        )
        self.config = verdict.config
        if verdict.changes:
            await self._apply(verdict.config, wait)

    def _reject(self, problems: Sequence[Problem], in_force: str) -> None:
        now, texts = self._clock.now(), [str(problem) for problem in problems]
        metrics.CONFIG_OK.set(False)
        self._rejected = views.RejectedView(at=now, problems=texts, in_force=in_force)
        log.error("config.rejected", problems=texts, effect=in_force)
        self._tell(ConfigRejected(at=now, problems=tuple(texts)))

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
            size=verdict.size or None,
            plan=plan,
            text=texts[outcome],
        )


def reread(config: Config) -> Config:
    """The same file as it is now. Raises ConfigError."""
    if config.path is None:
        raise ConfigError([config.problem((), "was built in memory, so there is no file to read again")])
    return load_config(config.path, "daemon")


def examine(old: Config, load: Callable[[], Config], *, force: bool, scale: Scale | None = None) -> Verdict:
    """Read the new configuration and judge it against the one in force. Reads files, changes nothing.

    `force` permits a change of size that would have to be confirmed; `scale` is what that is judged by.
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
    resizing = next((change for change in changes if change.resizes), None)
    if resizing is None or old.pool_name != new.pool_name:
        return Verdict(config=new, changes=changes, problems=tuple(sorted(problems)))
    scale = scale or Scale.of(old.wanted, None)
    size = resize.sizes(old.wanted, new.wanted, scale.prices)
    why = "" if force else resize.unconfirmed(old.wanted, new.wanted, scale.has, scale.prices)
    if why:
        text = f"{why}: {size}; if that is meant, `{_command(new)}`"
        problems.append(new.problem(resizing.path, text))
    return Verdict(config=new, changes=changes, problems=tuple(sorted(problems)), size=size)


def with_size_of(config: Config, memory: Memory) -> Config:
    """The configuration with the size that the journal remembers, and everything else as it is."""
    name, pool = config.pool_name, config.pool
    changed: dict[str, object] = {"replicas": memory.replicas}
    if pool.on_demand_floor is not None:
        changed["on_demand_floor"] = min(pool.on_demand_floor, memory.replicas)
    kept = pool.model_copy(update=changed)
    wanted = kept.as_pool(name)
    remembered = resize.in_force(wanted, memory)
    if remembered is not None and remembered.standby != wanted.standby:
        standby = {"hot": remembered.standby.hot, "stopped": remembered.standby.stopped}
        kept = kept.model_copy(update={"standby": kept.standby.model_copy(update=standby)})
    return replace(config, pools=MappingProxyType({name: kept}))


def _command(config: Config) -> str:
    """What to type to have a change of size taken up all the same."""
    command = "orchestrator reload --force"
    if config.path is None or config.daemon.socket == SERVICE_SOCKET:
        return command
    return f"{command} --config {shlex.quote(str(config.path.absolute()))}"


def differences(old: Config, new: Config) -> Iterator[Change]:
    """Every key whose effective value differs, in the order of the file's reference; secrets are hidden."""
    before, after = dict(_values(old)), dict(_values(new))
    for identity in dict.fromkeys((*before, *after)):
        there = after.get(identity) or before[identity]
        nothing = _Value(there.path, "nothing", "nothing")
        was, becomes = before.get(identity, nothing), after.get(identity, nothing)
        if was.text != becomes.text:
            yield Change(path=there.path, before=was.shown, after=becomes.shown)


def gateway_changed(old: Config, new: Config) -> list[str]:
    """The keys that differ and that the gateway reads when it starts: a running one goes by them once its
    heir has taken over. Pure; what key files hold is not looked at."""
    return [dotted(change.path) for change in differences(old, new) if _read_by_gateway(change.path)]


def _read_by_gateway(path: Key) -> bool:
    whole_pool = path[0] == "pool" and len(path) == 2
    return whole_pool or reload_at(ConfigFile, path).gateway


def would_do(pool: Pool, snapshot: Snapshot) -> views.PoolPlanView:
    """What the next turn would do if `pool` were wanted and the world as it was in the last one."""
    now = snapshot.world.now
    memory = reduce(snapshot.memory, resize.configured(pool, at=now))
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


@dataclass(frozen=True, slots=True)
class _Value:
    """A key: where it stands, its value as a file would have it, and the same without secrets."""

    path: Key
    text: str
    shown: str


def _values(config: Config) -> Iterator[tuple[Key, _Value]]:
    """Every key by what it is known by in any file."""
    for name in config.pools:
        yield ("pool", name), _Value(("pool", name), "a pool", "a pool")
    redactor = Redactor()
    for setting in settings(config):
        shown = redactor.value(setting.value, str(setting.path[-1]))
        yield setting.identity, _Value(setting.path, setting.text, written(setting.field, shown))
