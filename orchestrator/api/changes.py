"""What a changed configuration changes: key by key, whether it may be taken up, and what would follow.

Pure but for reading files. What the policies go by can change while the daemon runs, and pools can come and
go. What connections, files and listeners were made from cannot: a daemon is restarted for that, which touches
no node. Keys of the gateway are the gateway's, which is replaced for them.

A change of a pool's size that may well be a mistake asks for --force (policies.resize), and so does a pool
that goes: all its nodes are drained and ended.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from orchestrator.api.status import plan_view
from orchestrator.config.errors import Key, dotted
from orchestrator.config.load import Config, ConfigError, Problem, load_config
from orchestrator.config.reload import Effect, reload_at
from orchestrator.config.sockets import SERVICE_SOCKET
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.types import written
from orchestrator.config.values import settings
from orchestrator.loop.loop import Snapshot
from orchestrator.redact import Redactor
from orchestrator.views import api as views
from orchestrator.words import plural
from policies import resize
from policies.bill import Prices, prices_of
from policies.budget import ask_of, in_effect, share
from policies.decide import decide_for
from policies.economics import rate
from policies.fleet import Fleet
from policies.grant import Ask, Grant
from policies.memory import Memory, reduce
from policies.model import Phase, Pool, StandbyRules, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key that differs. `before` and `after` are as a file would have them."""

    path: Key
    before: str
    after: str

    @property
    def pool(self) -> str:
        """The pool that it is about; empty for any other table."""
        return str(self.path[1]) if self.path[0] == "pool" else ""

    @property
    def resizes(self) -> bool:
        """True for what may change how many nodes there are, or what they cost."""
        return reload_at(ConfigFile, self.path).resizes

    @property
    def effect(self) -> Effect:
        """What it takes for the change to count."""
        if len(self.path) == 2 and self.pool:
            return Effect.NOW
        return reload_at(ConfigFile, self.path).effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A configuration that was looked at: `config` is None where it cannot even be read.

    `sizes` are both sizes of each pool whose size changes and what they cost, in words.
    """

    config: Config | None
    changes: tuple[Change, ...] = ()
    problems: tuple[Problem, ...] = ()
    sizes: Mapping[str, str] = field(default_factory=dict)

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


def _restart(change: Change, new: Config) -> str:
    """Why a running daemon cannot take up a change, and what to do."""
    keep = ""
    if (new.source.lines or {}).get(change.path) is None and change.path[-1] == "targets_file":
        # which file a pool has by default follows from its place among the pools
        keep = f"write targets_file = {change.before} in [{dotted(change.path[:-1])}] to keep it, or "
    return (
        f"{change.before} -> {change.after} cannot be taken up by a running daemon; {keep}restart it, which "
        "touches no node (systemctl restart spot-orchestrator)"
    )


def reread(config: Config) -> Config:
    """The same file as it is now. Raises ConfigError."""
    if config.path is None:
        raise ConfigError([config.problem((), "was built in memory, so there is no file to read again")])
    return load_config(config.path, "daemon")


Last = Mapping[str, Snapshot]
"""The newest turn of each pool that has turned."""


def examine(old: Config, load: Callable[[], Config], *, force: bool, last: Last) -> Verdict:
    """Read the new configuration and judge it against the one in force. Reads files, changes nothing.

    `force` permits what would have to be confirmed: a change of size, and the end of a pool.
    """
    try:
        new = load()
    except ConfigError as error:
        return Verdict(config=None, problems=error.problems)
    changes = tuple(differences(old, new))
    problems = [new.problem(c.path, _restart(c, new)) for c in changes if c.effect is Effect.RESTART]
    sizes: dict[str, str] = {}
    for name in dict.fromkeys((*old.pools, *new.pools)):
        resizing = next((c for c in changes if c.pool == name and c.resizes), None)
        if name not in new.pools:
            sizes[name], why = removal(last.get(name)), "it ends for good"
            resizing = Change(path=("pool", name), before="a pool", after="nothing")
        elif resizing is not None:
            sizes[name], why = _resized(old.only(name).wanted, new.only(name).wanted, last.get(name))
        if resizing is not None and why and not force:
            text = f"{why}: {sizes[name]}; if that is meant, `{confirming(new)}`"
            problems.append(new.problem(resizing.path, text))
    if not force and new.budget.bounded and old.budget != new.budget:
        problems += _starved(new, last)
    return Verdict(config=new, changes=changes, problems=tuple(sorted(problems)), sizes=sizes)


def _starved(new: Config, last: Last) -> Iterator[Problem]:
    """The pools that a budget would leave with so little that it may well be a mistake."""
    trials = {name: Trial.of(new.only(name).wanted, turn) for name, turn in last.items() if name in new.pools}
    grants = share((trial.ask for trial in trials.values()), new.budget.shared)
    for name, trial in trials.items():
        before, grant = in_effect(trial.fleet.pool, trial.world.grant), grants[name]
        after = in_effect(trial.fleet.pool, grant)
        if why := resize.unconfirmed_loss(before, after, Scale.of(before, last[name]).has):
            text = f"pool {name}: {why}: {grant.why}; if that is meant, `{confirming(new)}`"
            yield new.problem(("budget",), text)


def _resized(before: Pool, after: Pool, last: Snapshot | None) -> tuple[str, str]:
    """Both sizes in words, and why the change has to be confirmed, empty where it has not."""
    scale = Scale.of(before, last)
    sizes = resize.sizes(before, after, scale.prices)
    return sizes, resize.unconfirmed(before, after, scale.has, scale.prices)


def removal(last: Snapshot | None) -> str:
    """What the end of a pool ends, in words."""
    if last is None:
        return "its nodes drain and are ended (how many is not known yet)"
    nodes, money = [n for n in last.fleet.nodes if n.phase is not Phase.GONE], rate(last.fleet).cost
    price = "" if money is None or not nodes else f", ${money:,.2f} an hour"
    return f"its {plural(len(nodes), 'node')}{price}, drain and are ended" if nodes else "it has no nodes"


def with_size_of(config: Config, memory: Memory) -> Config:
    """The configuration of one pool with the size that the journal remembers, all else as it is."""
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


def confirming(config: Config) -> str:
    """What to type to have a change taken up that has to be confirmed."""
    command = "orchestrator reload --force"
    if config.path is None or config.daemon.socket == SERVICE_SOCKET:
        return command
    return f"{command} --config {shlex.quote(str(config.path.absolute()))}"


def differences(old: Config, new: Config) -> Iterator[Change]:
    """Every key whose effective value differs, in the order of the file's reference; secrets are hidden.

    Of a pool that comes or goes only that it does.
    """
    before, after = dict(_values(old)), dict(_values(new))
    both = old.pools.keys() & new.pools.keys()
    for identity in dict.fromkeys((*before, *after)):
        there = after.get(identity) or before[identity]
        if there.path[0] == "pool" and len(there.path) > 2 and there.path[1] not in both:
            continue
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


@dataclass(frozen=True, slots=True)
class Trial:
    """A pool as its next turn would find it if it were wanted so, and the world as it was in the last one."""

    fleet: Fleet
    world: World
    memory: Memory

    @classmethod
    def of(cls, pool: Pool, snapshot: Snapshot) -> Trial:
        """What the newest turn saw, under `pool`."""
        world = snapshot.world
        memory = reduce(snapshot.memory, resize.configured(pool, at=world.now))
        return cls(Fleet.of(pool, world, memory), world, memory)

    @property
    def ask(self) -> Ask:
        """What it asks of a shared budget."""
        return ask_of(self.fleet, self.world, self.memory)

    def plan(self, grant: Grant | None) -> views.PoolPlanView:
        """What the turn would do with its share of the budget, None where there is none."""
        world = replace(self.world, grant=grant)
        plan = decide_for(self.fleet, world, self.memory)
        return plan_view(
            Snapshot(fleet=self.fleet, world=world, memory=self.memory, plan=plan, at=self.world.now)
        )


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


def emptied(config: Config) -> Pool:
    """The only pool of a configuration as it is wanted while it is being removed."""
    return replace(config.wanted, replicas=0, adaptive=None, standby=StandbyRules())
