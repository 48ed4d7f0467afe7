"""One turn after the other: a loop with a journal, a lease, eyes and hands that a test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from orchestrator.journal.store import StoreUnavailable, Totals
from orchestrator.loop.inbox import Inbox
from orchestrator.loop.ledger import Ledger
from orchestrator.loop.loop import Loop
from policies.budget import Shares
from policies.events import DaemonStarted, Event, NoticeSeen, PoolConfigured, TargetsApplied
from policies.gpu_readings import GpuState
from policies.memory import Memory, reduce
from policies.model import (
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Offering,
    Placement,
    Pool,
    Target,
    TargetPhase,
    TargetSpec,
    TargetState,
    World,
)

Play = Callable[[Callable[[Any], Awaitable[Any]]], Any]

START = 1_700_000_000.0


@dataclass
class Journal:
    """Keeps what is appended, unless it fails."""

    fails: bool = False
    fails_after: int | None = None
    written: list[Event] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    async def append(self, pool: str, events: Sequence[Event]) -> None:
        await asyncio.sleep(0)
        if self.fails_after is not None:
            self.fails = self.fails_after <= 0
            self.fails_after -= 1
        if self.fails:
            raise StoreUnavailable("the disk is full")
        self.written.extend(events)
        self.batches.append(len(events))
        self.order += ["journal"] * bool(events)

    async def charge(self, pool: str, charges: Any, *, baseline: Any, until: float) -> None:
        if self.fails:
            raise StoreUnavailable("the disk is full")


@dataclass
class Lease:
    """A lease that can be lost."""

    holds: bool = True
    lost_after: int | None = None
    silent: float | None = None

    def acquire(self) -> Any:
        raise AssertionError("the loop does not take leases")

    def valid(self) -> bool:
        if self.lost_after is not None:
            self.lost_after -= 1
            return self.lost_after >= 0
        return self.holds

    def unanswered(self) -> float | None:
        return self.silent

    def release(self) -> None:
        return


def place(market: Market) -> Placement:
    return Placement("sim", "r", "a", "gpu", market)


@dataclass
class Eyes:
    """An observer whose world the test writes down."""

    clock: Any
    machines: dict[str, Instance] = field(default_factory=dict)
    shown: tuple[Target, ...] = ()
    hurried: bool = False
    draining: Set[str] = frozenset()
    routes: bool = False
    followed: dict[str, str] = field(default_factory=dict)
    gpus: dict[str, GpuState] = field(default_factory=dict)

    def add(self, node: str, market: Market) -> None:
        self.machines[node] = Instance(
            id=node,
            pool="p",
            token=f"p/1/{int.from_bytes(node.encode(), 'big')}",
            placement=place(market),
            state=InstanceState.RUNNING,
            address=f"{node}:1",
            launched_at=START - 1000.0,
            price=1.0 if market is Market.SPOT else 3.0,
        )

    def world(self, *, durable: bool, leading: bool, epoch: int) -> World:
        now = self.clock.now()
        return World(
            now=now,
            regions={"": Observed(value=tuple(self.machines.values()), at=now)},
            engines={
                i: EngineReading(node=i, at=now, ready=True, ok=True)
                for i, m in self.machines.items()
                if m.state is InstanceState.RUNNING
            },
            balancers={"gw": Observed(value=self.shown, at=now)},
            offerings={
                f"r {m}": Observed(
                    value=(Offering(placement=place(m), price=1.0 + (m is Market.ON_DEMAND)),), at=now
                )
                for m in Market
            },
            gpus=dict(self.gpus),
            durable=durable,
            leading=leading,
            epoch=epoch,
        )

    def hurry(self, *, on: bool, draining: Set[str], routes: bool) -> None:
        self.hurried, self.draining, self.routes = on, draining, routes

    def follow(self, addresses: Mapping[str, str]) -> None:
        self.followed = dict(addresses)


@dataclass
class Hands:
    """An actuator that notes what it is asked to do; balancers acknowledge at once."""

    inbox: Inbox
    clock: Any
    order: list[str]
    eyes: Eyes
    performed: list[Any] = field(default_factory=list)
    writes: list[tuple[TargetSpec, ...]] = field(default_factory=list)
    held: dict[str, TargetPhase] = field(default_factory=dict)
    leading: list[bool] = field(default_factory=list)
    writing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    let_go: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    unready: list[tuple[str, Placement, str]] = field(default_factory=list)

    def take_out(self, balancers: Sequence[str], leaving: Sequence[TargetSpec], epoch: int) -> None:
        self.let_go.append((tuple(balancers), tuple(t.id for t in leaving)))

    def perform(self, actions: Sequence[Any], *, place_of: Callable[[str], Placement | None]) -> None:
        calls = [a for a in actions if hasattr(a, "token")]
        self.performed += calls
        self.order += [str(a.kind) for a in calls]

    def ended_unready(self, node: str, place: Placement, why: str) -> None:
        self.unready.append((node, place, why))

    def write(
        self, balancers: Sequence[str], targets: Sequence[TargetSpec], epoch: int, *, leading: bool
    ) -> None:
        self.leading.append(leading)
        if not balancers:
            return
        self.order.append("targets")
        self.writes.append(tuple(targets))
        want = {t.id: t.phase for t in targets}
        changes: list[tuple[str, TargetPhase | None]] = [
            (n, p) for n, p in want.items() if self.held.get(n) != p
        ]
        changes += [(n, None) for n in self.held if n not in want]
        self.held = want
        self.eyes.shown = tuple(
            Target(
                id=t.id,
                address=t.address,
                state=TargetState.HEALTHY if t.phase is TargetPhase.ACTIVE else TargetState.DRAINING,
                in_flight=0,
            )
            for t in targets
        )
        self.inbox.put(
            TargetsApplied(at=self.clock.now(), balancer="gw", generation=1, changes=tuple(changes))
        )


class Rig:
    """A loop over a pool of four ready nodes that serve: s1, s2 on spot, o1, o2 on demand.

    `parts` go to the loop as they are.
    """

    def __init__(
        self, clock: Any, pool: Pool | None = None, shares: Shares | None = None, **parts: Any
    ) -> None:
        self.clock, self.shares = clock, shares
        self.pool = pool if pool is not None else Pool(name="p", replicas=4)
        self.journal, self.lease, self.inbox = Journal(), Lease(), Inbox()
        self.eyes = Eyes(clock)
        for node in ("s1", "s2", "o1", "o2"):
            self.eyes.add(node, Market.SPOT if node.startswith("s") else Market.ON_DEMAND)
        self.hands = Hands(self.inbox, clock, self.journal.order, self.eyes)
        self.first: list[Event] = [
            DaemonStarted(at=clock.now(), epoch=5),
            PoolConfigured(at=clock.now(), replicas=4),
        ]
        self.snapshots: list[Any] = []
        self.loop = Loop(
            pool=self.pool,
            memory=reduce(Memory(), *self.first),
            clock=clock,
            lease=self.lease,
            epoch=5,
            journal=self.journal,
            ledger=Ledger("p", self.journal, Totals()),
            inbox=self.inbox,
            observer=self.eyes,  # type: ignore[arg-type]
            actuator=self.hands,  # type: ignore[arg-type]
            tick=1.0,
            on_turn=self.snapshots.append,
            shares=self.shares,
            **parts,
        )

    async def turns(self, count: int = 1) -> None:
        for _ in range(count):
            await self.loop.turn()
            await self.clock.sleep(1.0)

    def notice(self, node: str, lead: float = 120.0, **more: Any) -> int:
        said = Notice(
            **{
                "id": f"n-{node}",
                "kind": NoticeKind.INTERRUPTION,
                "node": node,
                "deadline": self.clock.now() + lead,
                "source": "feed",
                "confidence": Confidence.CONFIRMED,
                "seen_at": self.clock.now(),
                **more,
            }
        )
        return self.inbox.put(NoticeSeen(at=self.clock.now(), notice=said))

    def kinds(self) -> list[str]:
        return [type(e).__name__ for e in self.journal.written]


def rig(
    play: Play,
    work: Callable[[Rig], Awaitable[None]],
    pool: Pool | None = None,
    shares: Shares | None = None,
    **parts: Any,
) -> None:
    async def whole(clock: Any) -> None:
        await work(Rig(clock, pool, shares, **parts))

    play(whole)
