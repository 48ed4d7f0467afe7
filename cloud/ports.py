"""What the daemon needs from the world, as Protocols, with the contract every adapter keeps.

One contract suite per port (tests/cloud/contract) runs against every adapter. Times are seconds since the
epoch, durations seconds, prices US dollars per node-hour. Methods raise only `cloud.errors.CloudError`s
(and CancelledError); any other exception is a bug of the adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Protocol

from policies.gpu_readings import NodeGpus
from policies.held import AdapterCount
from policies.model import (
    EngineReading,
    Instance,
    Notice,
    Offering,
    Placement,
    StandbyKind,
    Target,
    TargetSpec,
)
from policies.plain_text import last_lines
from policies.service import ShownCertificate
from policies.starts import NodeStart
from policies.value import value


class Clock(Protocol):
    """The only way to read time and to wait, so that a simulator can replace both."""

    def now(self) -> float:
        """Seconds since the epoch; never runs backwards within one process."""
        ...

    def steady(self) -> float:
        """Seconds since some instant of the host, which no step of the time of day moves.

        They pass while the process is frozen and while the host is suspended.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait. Zero or less yields once."""
        ...


def digest(*parts: str) -> str:
    """A short text that is equal for equal parts, and for no others that anybody will meet."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()


VOUCHED = "same-"
"""How the build of an engine begins whose configuration vouches for all that machines have besides it."""


def machine_build(engine: str, *besides: str) -> str:
    """What a machine runs: the build of its engine with the image and template that it is made of, or the
    engine's alone where the configuration vouches for the rest."""
    return engine if engine.startswith(VOUCHED) else digest(*besides, engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The container that an engine runs in."""

    image: str
    runtime: Literal["", "docker", "podman"] = ""  # empty: the one that the node has
    args: tuple[str, ...] = ()  # flags of ``docker run``
    volumes: tuple[str, ...] = ()  # as ``--volume`` takes them, SOURCE:TARGET[:OPTIONS]
    entry: Literal["argv", "program", "own"] = "program"
    """What starts the engine: "argv" the image's entry point, with the whole command as its words; "program"
    the command's first word, in place of the entry point; "own" the entry point, in place of the command's
    first word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCommand:
    """How to start and stop an engine on a node. The engine runs in its own process group."""

    argv: tuple[str, ...]  # with the placeholders ``{host}``, ``{port}`` and, on EC2, ``{gpus}``
    env: Mapping[str, str] = field(default_factory=dict)  # added to the node's environment
    stop_signal: str = "SIGTERM"  # to the leader of the group, or the first process of the container
    stop_grace: float = 30.0  # seconds from the signal until the whole group is killed
    build: str = ""  # `EngineSpec.build` of what it starts
    on: Mapping[str, EngineCommand] = field(default_factory=dict)  # other commands, by instance type
    container: Container | None = None
    """Where `argv` runs; None: on the node itself. Nothing of it is left once the engine has ended."""

    def at(self, instance_type: str) -> EngineCommand:
        """How it is started on machines of that type, and on no others."""
        return replace(self.on.get(instance_type, self), on={})


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """One intent to have one node. `token` is the idempotency token: ASCII, at most 64 characters."""

    token: str
    pool: str
    placement: Placement
    command: EngineCommand
    standby: StandbyKind | None = None


CONSOLE_MOST = 16 * 1024
"""Bytes that an adapter gives of a machine's console at most."""


def console_end(text: str) -> str:
    """The end of what a machine wrote, as text that may be shown: printable lines, none of them empty.

    It is the word of a machine: nothing may be concluded from it.
    """
    return last_lines(text, lines=400, most=CONSOLE_MOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTraits:
    """What a provider of machines can do, whatever adapter asks it. `validate` refuses what it cannot."""

    stops: bool
    """A machine can be stopped, and started again sooner than launched: a stopped standby can be had."""
    notice: float
    """Seconds from a preemption notice to the end of the machine that may be counted on; 0: none comes."""
    lists_at_once: bool
    """One call lists all machines of a region; else each list costs a call for every machine."""
    fills_gpus: bool = False
    """Its machines put the number of their GPUs in the place of ``{gpus}`` in the engine's command."""


class Instances(Protocol):
    """Machines of one provider.

    `regions`: what is listed apart, by the regions of placements, or `policies.model.EVERYWHERE` alone where
    one list has all. Each fails alone: no call for one region waits for another.
    """

    regions: tuple[str, ...]

    async def launch(self, request: LaunchRequest) -> Instance:
        """Launch one machine.

        Idempotent by `request.token`: the same request again returns the same instance, also when it has
        been terminated since (its state then says so); it never launches a second one. So what a request has
        launched is not refused when it is asked for again.

        Raises InsufficientCapacity, QuotaExceeded, Throttled, Misconfigured, Denied, or Uncertain (resolve
        by calling again with the same request).
        """
        ...

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        """All machines in one of the `regions` tagged with the pool, and those that ended within minutes.

        Complete or an error: a failed page fails the whole call. May lag behind launches.
        """
        ...

    async def terminate(self, node: str) -> None:
        """Ask for the end of a machine. Idempotent; a machine already gone is success."""
        ...

    async def stop(self, node: str) -> None:
        """Stop a machine so that `start` brings it back sooner than a launch. Idempotent.

        Raises NotFound when the machine is gone.
        """
        ...

    async def start(self, node: str) -> None:
        """Start a stopped machine. Idempotent. Raises InsufficientCapacity, NotFound."""
        ...

    async def console(self, node: str) -> str:
        """The end of what a machine wrote on its console, also once it has ended: see `console_end`.

        Empty where it wrote nothing yet, or the provider keeps none. Raises CloudError.
        """
        ...

    async def close(self) -> None:
        """Release connections. Touches no machine."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sold:
    """One part of what a provider sells. `problem`: which prices could not be read, and why, in words."""

    offerings: tuple[Offering, ...]
    problem: str = ""


class Offerings(Protocol):
    """What a provider sells, in parts that fail alone: one region's prices, or one source of them."""

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        """The parts by name, each with what can be bought there as far as that is known without asking:
        offerings without a price. The same for as long as the adapter lives. Asks nobody."""
        ...

    async def list(self, part: str) -> Sold:
        """Everything that is sold in one part, with its price now.

        What was read in part is returned, with an offering without a price for what is missing, and why in
        `Sold.problem`. What a complete answer lacks is not sold. Raises CloudError when nothing was read.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class Notices(Protocol):
    """One source of notices. Sources are independent; the same reclaim may come from several."""

    name: str

    def stream(self) -> AsyncIterator[Notice]:
        """Yield notices for ever, each possibly more than once, from its own connection or poll.

        Reconnects by itself; raises only when it can never work again.
        """
        ...

    async def acknowledge(self, notice: Notice) -> None:
        """Say that the notice is journalled; a source with a queue deletes its message now."""
        ...

    def age(self) -> float:
        """Seconds for which a notice may have waited here unheard or unacknowledged.

        Not above the pace of its polls while all is well; infinite before the first good look.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a load balancer can do, for policies and `doctor`."""

    drains: bool  # knows a draining state: requests in flight finish, no new ones arrive
    counts_in_flight: bool  # reports requests in flight per target
    propagation: float  # s between an acknowledged change and the last request routed by the old set
    in_path: bool = False  # what answers `observe` carries the requests itself: its silence is theirs
    weights: bool = False  # sends targets requests in proportion to their weights; else all count alike
    checks: bool = True  # asks targets how they are; else one that is in the set counts as healthy


@value
class BalancerView:
    """What a load balancer holds. `incarnation` changes when the balancer lost its state (a restart).

    The rest is known of balancers that count requests; see `policies.service.Service`. `adapters`: what was
    asked of each adapter.
    """

    incarnation: str
    generation: int
    targets: tuple[Target, ...]
    refuses: str = ""
    answered: int = 0
    failed: int = 0
    held: int = 0
    certificate: ShownCertificate | None = None
    adapters: Mapping[str, AdapterCount] = field(default_factory=dict, hash=False)


class LoadBalancer(Protocol):
    """A set of targets, written whole (level-triggered)."""

    name: str
    capabilities: Capabilities

    async def observe(self) -> BalancerView:
        """Read the targets that carry our ids. Foreign targets are neither shown nor touched."""
        ...

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        """Make the target set equal to `desired`; return once the balancer has acknowledged it.

        Adds first. Where no target that stays takes requests, it waits until a new one does, for a few
        seconds at most (`cloud.handover`), and only then drains and removes.

        Idempotent. A lower generation than one already accepted raises Denied (another daemon leads).
        A set that equals what is there costs nothing. Raises Uncertain when no acknowledgement came.
        """
        ...

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        """Have these targets get no new requests, and change nothing else; return once it is acknowledged.

        For a daemon that cannot prove that it leads. It reads the balancer before it writes: what another
        daemon added stays, and targets that are not there are not added. Idempotent. Raises Denied where
        a higher generation was accepted, Uncertain.
        """
        ...

    async def close(self) -> None:
        """Release connections. The target set stays."""
        ...


Task = Literal["generate", "embed", "rerank"]
"""What a model does with a text: go on with it, turn it into numbers, or order texts by how well they fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCapabilities:
    """What an engine can do, for policies, the gateway and `doctor`."""

    tasks: frozenset[Task]
    token_ids: Literal["exact", "lossy", "none"] = "none"  # noqa: S105 - of texts
    """ "exact": a stream has the id of every token and a prompt may be ids; "lossy": some are left out;
    "none": neither."""
    adapters: Literal["runtime", "request", "start", "none"] = "none"
    """Changed while it runs ("runtime"), or those of its start, chosen by a field of each request ("request")
    or by the model's name ("start")."""
    drains: bool = False  # after the stop signal, requests in flight are answered to their end
    checks_names: bool = True  # it refuses a model that it does not have; others answer with their own
    besides: Mapping[Task, frozenset[Task]] = field(default_factory=lambda: MappingProxyType({}))
    """What one that is started for a task does as well."""
    ran: bool = False  # this was seen on the real engine, and not only read

    def does(self, task: Task) -> frozenset[Task]:
        """What one that is started for `task` may be asked for."""
        return self.besides.get(task, frozenset()) | {task}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine should serve."""

    model: str
    served_name: str
    task: Task = "generate"
    args: tuple[str, ...] = ()  # the engine's own flags, passed through
    env: Mapping[str, str] = field(default_factory=dict)
    executable: str = ""
    drain_budget: float = 30.0  # seconds that requests get to finish after a stop
    keep_alive: float = 75.0  # seconds that a connection without a request is kept open
    adapters: tuple[str, ...] = ()  # files of those that it starts with, in the order of their numbers
    adapter_room: int = 0  # how many it holds at once of those that are loaded while it runs
    container: Container | None = None
    vouched: str = ""  # a word for what machines have besides; empty where nobody vouches for it

    def build(self, engine: str) -> str:
        """A digest of all that may decide what the engine of that name answers, equal for equal specs.

        How long it drains and keeps connections does not. It holds no secret of `env` in a form that can be
        read back.
        """
        said = (engine, self.executable, self.model, self.served_name, self.args, sorted(self.env.items()))
        task = () if self.task == "generate" else (self.task,)  # the usual one is not said
        adapters = (("adapters", *self.adapters),) if self.adapters else ()
        room = ("room",) if self.adapter_room else ()
        container = () if self.container is None else (replace(self.container, runtime=""),)
        found = digest(*map(repr, (*said, *task, *adapters, *room, *container)))
        return f"{VOUCHED}{digest(self.vouched, found)}" if self.vouched else found


class Engine(Protocol):
    """An inference server behind its HTTP address."""

    name: str
    capabilities: EngineCapabilities

    def command(self, spec: EngineSpec) -> EngineCommand:
        """How to start it on a node. Pure."""
        ...

    async def probe(self, node: str, address: str, previous: EngineReading | None) -> EngineReading:
        """Look at one engine once. Never raises CloudError: a failed look is a reading with `ok` False.

        `previous` carries the run of failures and the token count. An engine is `ready` once it is
        healthy, lists its model and has produced one token, or one embedding or one ranking where that is
        its task; a ready engine that holds requests without producing anything must produce one for the
        probe or the probe fails (a frozen vLLM stays healthy).
        """
        ...

    async def load_adapter(self, address: str, served_as: str, source: str) -> None:
        """Have the engine load an adapter under a name of its own, and see that it works: one token of it.

        `source`: a folder or file of the node, or a repository. Idempotent: one that is loaded under this
        name is only tried. What was loaded and does not work is unloaded again. For engines whose
        capabilities say that adapters come and go at "runtime"; others raise Misconfigured. Raises NotFound
        where the source is none, Misconfigured where the engine cannot take it, Denied, Uncertain.
        """
        ...

    async def unload_adapter(self, address: str, served_as: str) -> None:
        """Have the engine let go of an adapter. Idempotent: one that is not there is success.

        Raises Misconfigured as `load_adapter` does, Denied, Uncertain.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class GpuExporter(Protocol):
    """What tells of the GPUs of every node, where nodes do not do so themselves."""

    async def read(self, node: str, address: str) -> NodeGpus:
        """The GPUs of the node whose engine listens at `address`. Raises CloudError."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class Starts(Protocol):
    """What tells how the newest start of a node went, as the node itself saw it."""

    async def started(self, node: str) -> NodeStart | None:
        """What is known of it so far, in this host's time; None for nothing. Raises CloudError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseHolder:
    """Who may act: `who` is for people, `epoch` rises with every change of holder."""

    who: str
    epoch: int


class Lease(Protocol):
    """The right to act. At most one process holds it."""

    async def acquire(self) -> LeaseHolder:
        """Take the lease or raise Denied, naming the holder."""
        ...

    def valid(self) -> bool:
        """True while this process surely still holds it. Asks nobody and costs nothing."""
        ...

    def unanswered(self) -> float | None:
        """Seconds for which nobody could say who holds it, once it has run out for that reason alone.

        None while it is held, once another has it, and until somebody was asked in vain since this process
        is awake. Asks nobody and costs nothing.
        """
        ...

    async def release(self) -> None:
        """Give it up. Idempotent."""
        ...
