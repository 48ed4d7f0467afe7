"""Notices of a simulated world: a queue under the cloud's own credentials, and what nodes say themselves.

`NoticeBoard` is the world's side: it publishes, repeats, forges. `SimNotices` is a daemon's side.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from cloud.ports import Clock
from cloud.sim.faults import Faults
from cloud.sim.wire import Wire
from cloud.sim.world import SimWorld, Told
from policies.model import TAKES_SPOT, Confidence, Market, Notice, NoticeKind
from policies.value import replace

QUEUE = "sim-queue"
METADATA = "sim-metadata"

_CONFIDENCE = {QUEUE: Confidence.CONFIRMED, METADATA: Confidence.REPORTED}


@dataclass(slots=True, kw_only=True)
class _Message:
    """A notice in a source, until it is acknowledged (metadata: until its node is gone)."""

    number: int
    notice: Notice
    acknowledged: bool = False


class NoticeBoard:
    """What every source of a world holds. `sources`: those that there are; other words come by these."""

    def __init__(self, world: SimWorld, sources: Sequence[str] = (QUEUE, METADATA)) -> None:
        self._world, self._sources = world, tuple(sources)
        self._messages: dict[str, list[_Message]] = {QUEUE: [], METADATA: []}
        self._waiting: list[asyncio.Future[None]] = []
        self._published = 0
        self.on_acknowledged: list[Callable[[Notice], None]] = []

    def publish(
        self,
        node: str,
        *,
        kind: NoticeKind = NoticeKind.INTERRUPTION,
        deadline: float | None = None,
        sources: tuple[str, ...] = (QUEUE,),
        copies: int = 1,
        cancelled: bool = False,
        name: str = "",
    ) -> None:
        """Tell of a node, in each source, `copies` times, whether it is true or not."""
        now = self._world.clock.now()
        sources = tuple(s for s in sources if s in self._sources) or self._sources
        machine = self._world.machines.get(node)
        if machine is not None and not cancelled and kind is not NoticeKind.REBALANCE:
            machine.deadlines.append(deadline)
        ids = {source: name or f"{source}/{node}/{kind}" for source in sources}
        if machine is not None and cancelled:
            machine.told = [told for told in machine.told if ids.get(told.source) != told.notice]
            machine.cancelled_at = now
            machine.told_at = min((told.at for told in machine.told if told.sure), default=None)
        elif machine is not None and deadline is not None:
            takes_away = machine.placement.market is Market.SPOT or kind not in TAKES_SPOT
            for source in sources if takes_away else ():
                sure = _CONFIDENCE[source] is Confidence.CONFIRMED
                told = Told(source=source, notice=ids[source], at=now, ends=deadline, sure=sure)
                machine.told.append(told)
                if sure and machine.told_at is None:
                    machine.told_at = now
        for source in sources:
            notice = Notice(
                id=ids[source],
                kind=kind,
                node=node,
                deadline=deadline,
                source=source,
                confidence=_CONFIDENCE[source],
                seen_at=now,
                cancelled=cancelled,
            )
            for _ in range(copies):
                self._published += 1
                self._messages[source].append(_Message(number=self._published, notice=notice))
        self._world.trace.add("notice", node, kind, deadline, *sources, f"x{copies}")
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def reclaim(
        self,
        node: str,
        *,
        after: float,
        notice: float | None,
        sources: tuple[str, ...] = (QUEUE,),
        copies: int = 1,
    ) -> None:
        """Take a spot machine away in `after` seconds, told `notice` seconds before (None: never)."""
        deadline = self._world.reclaim(node, after=after)
        if notice is None:
            return

        def tell() -> None:
            self.publish(node, deadline=deadline, sources=sources, copies=copies)

        if after > notice:
            self._world.later(after - notice, tell)
        else:
            tell()

    def open(self, source: str) -> list[_Message]:
        """Messages that a new connection is told: not acknowledged, and in metadata only of live nodes."""
        self._messages[source] = [m for m in self._messages[source] if self._holds(source, m)]
        return self._messages[source]

    def acknowledge(self, source: str, notice: Notice) -> None:
        """Forget every copy of one notice; one of the same id that was published later is another."""
        for told in self.on_acknowledged:
            told(notice)
        for message in self._messages[source]:
            if message.notice == notice:
                message.acknowledged = True

    async def news(self) -> None:
        """Wait until something is published."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _holds(self, source: str, message: _Message) -> bool:
        if source != METADATA:
            return not message.acknowledged
        machine = self._world.machine(message.notice.node)
        return machine is not None and machine.live


class SimNotices:
    """`cloud.ports.Notices`: one source of a board. A queue repeats what was never acknowledged."""

    def __init__(
        self, world: SimWorld, board: NoticeBoard, source: str, *, clock: Clock | None = None
    ) -> None:
        self.name = source
        self._world, self._board, self._wire = world, board, Wire(world)
        self._clock = clock if clock is not None else world.clock  # that of the host which hears
        self._heard: dict[Notice, Notice] = {}  # as it was told here -> as the board has it

    async def stream(self) -> AsyncIterator[Notice]:
        """Yield notices for ever; a new stream begins with what is not acknowledged yet.

        Raises CloudError.
        """
        told = 0
        while True:
            fresh = [m for m in self._board.open(self.name) if m.number > told]
            if fresh:  # they come in one batch, which comes or does not
                await self._world.clock.sleep(self._world.rng.uniform(*self._world.pace.latency))
                Faults.check(self._world.faults.draw("stream", now=self._world.clock.now()), "stream")
            for message in fresh:
                told = message.number
                later = self._clock.now() - self._world.clock.now()
                notice = replace(message.notice, seen_at=message.notice.seen_at + later)
                if self.name != METADATA:
                    self._heard[notice] = message.notice
                yield notice
            if not any(m.number > told for m in self._board.open(self.name)):
                await self._board.news()

    async def acknowledge(self, notice: Notice) -> None:
        """A queue forgets the message; metadata is a state and forgets nothing. Raises CloudError."""
        if self.name != METADATA:
            await self._wire.change(
                "acknowledge",
                notice.node,
                lambda: self._board.acknowledge(self.name, self._heard.pop(notice, notice)),
            )

    def age(self) -> float:
        """Seconds since the oldest notice that waits for its acknowledgement was told."""
        now = self._clock.now()
        return max((max(0.0, now - notice.seen_at) for notice in self._heard), default=0.0)

    async def close(self) -> None:
        """Nothing to release."""
