"""What the API, the gauges and status pages need of each pool of a daemon."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from cloud.agent_receiver import AgentReceiver
from cloud.ports import Notices
from orchestrator.journal.store import Totals
from orchestrator.loop.gpu_watch import GpuWatch
from orchestrator.loop.inbox import Inbox
from orchestrator.loop.loop import Loop, Snapshot
from policies.actions import Plan
from policies.fleet import Fleet
from policies.memory import Memory
from policies.model import Pool, World


class Run(Protocol):
    """One pool; see `orchestrator.daemon.pool_run.PoolRun`."""

    @property
    def name(self) -> str:
        """The pool's name."""
        ...

    @property
    def wanted(self) -> Pool:
        """What the pool is to be."""
        ...

    @property
    def inbox(self) -> Inbox:
        """Takes what is asked of the pool."""
        ...

    @property
    def loop(self) -> Loop | None:
        """None while the pool does not run."""
        ...

    @property
    def last(self) -> Snapshot | None:
        """The newest turn, None before the first."""
        ...

    @property
    def totals(self) -> Totals:
        """Money since the journal began."""
        ...

    @property
    def agents(self) -> AgentReceiver | None:
        """None where nodes do not report."""
        ...

    @property
    def gpus(self) -> GpuWatch | None:
        """None before it was begun."""
        ...

    @property
    def sources(self) -> Sequence[Notices]:
        """Of notices."""
        ...

    @property
    def failures(self) -> int:
        """How often it was begun again."""
        ...

    def why_down(self) -> str:
        """Why nothing is decided for the pool now; empty while its loop turns."""
        ...


Runs = Mapping[str, Run]
"""The pools of a daemon by name."""


def turned(runs: Iterable[Run]) -> Iterator[tuple[Run, Snapshot]]:
    """Those that have turned, with their newest turn."""
    for run in runs:
        if run.last is not None:
            yield run, run.last


def unseen(run: Run, *, now: float) -> Snapshot:
    """A turn in which nothing was known, for a pool that has not turned yet."""
    world, memory = World(now=now, regions={}), Memory()
    fleet = Fleet.of(run.wanted, world, memory)
    return Snapshot(fleet=fleet, world=world, memory=memory, plan=Plan(), at=now)


def alive(runs: Runs) -> bool:
    """True while the daemon does its work: a pool turns, or there is none."""
    return not runs or any(not run.why_down() for run in runs.values())
