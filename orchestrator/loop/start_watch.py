"""Measures starts: joins what the loop saw of one with what its node says, and reports it once it is over.

A start is over when requests are routed to its node, or PATIENCE seconds after its engine was ready where no
balancer acknowledges it. What the node says may arrive later: it is waited for as long. A daemon that was
started in between knows too little of a start, and does not measure it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from cloud.errors import CloudError
from cloud.logger import structlog
from cloud.ports import Clock, Starts
from orchestrator.metrics.calls import counted
from policies.actions import ActionKind
from policies.events import Event, NodeGone, NodeReady, NodeStopped, TargetsApplied
from policies.memory import Memory
from policies.model import Placement, TargetPhase
from policies.records import StartMeasured, intent_key
from policies.starts import NodeStart, Part, Seen, parts_of

log = structlog.get_logger("loop")

PATIENCE: Final = 60.0
"""Seconds after a node is ready for which a balancer's word and the node's own are waited for."""
_AGAIN: Final = 5.0
"""Seconds between two looks at what a node says."""
_MOST_WATCHED: Final = 1024


@dataclass(slots=True, kw_only=True)
class _Start:
    placement: Placement
    standby: bool
    began: float
    ready: float
    routed: float | None = None
    asked: float = -math.inf


class StartWatch:
    """The starts of one pool. `says`: None where nodes say nothing. `emit` must not block."""

    def __init__(
        self, pool: str, clock: Clock, *, says: Starts | None, emit: Callable[[Event], object]
    ) -> None:
        self._pool, self._clock, self._says, self._emit = pool, clock, says, emit
        self._since = clock.now()
        self._starts: dict[str, _Start] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def events(self, events: Sequence[Event], before: Memory, after: Memory) -> None:
        """Take in a turn's events; `before` and `after` are memory around them."""
        for event in events:
            match event:
                case NodeReady():
                    self._ready(event, before, after)
                case NodeGone() | NodeStopped():
                    self._starts.pop(event.node, None)
                case TargetsApplied():
                    for node, phase in event.changes:
                        start = self._starts.get(node)
                        if start is not None and start.routed is None and phase is TargetPhase.ACTIVE:
                            start.routed = event.at

    def _ready(self, event: NodeReady, before: Memory, after: Memory) -> None:
        """One that was adopted, or begun before this daemon was, may have been ready before: its start is not
        measured."""
        record = after.nodes.get(event.node)
        standby = intent_key(event.node, ActionKind.START) in before.intents
        if record is None or not (standby or record.started_at == record.launched_at):
            return
        if record.started_at < self._since:
            return
        self._starts[event.node] = _Start(
            placement=record.placement, standby=standby, began=record.started_at, ready=event.at
        )
        if len(self._starts) > _MOST_WATCHED:
            self._starts.pop(next(iter(self._starts)))

    def look(self) -> None:
        """Tell of starts that are over, or ask their nodes first. Call it every turn."""
        now = self._clock.now()
        for node, start in list(self._starts.items()):
            late = not 0.0 <= now - start.ready < PATIENCE
            if start.routed is None and not late:
                continue
            if self._says is None:
                self._tell(node, start, None)
            elif node not in self._asking and (late or now - start.asked >= _AGAIN):
                start.asked = now
                task = asyncio.create_task(self._ask_for(node, start, late=late), name=f"start {node}")
                self._asking[node] = task
                task.add_done_callback(partial(self._asked, node))

    def _asked(self, node: str, _: asyncio.Task[None]) -> None:
        self._asking.pop(node, None)

    async def _ask_for(self, node: str, start: _Start, *, late: bool) -> None:
        said = None
        try:
            with counted(self._pool, "instances", "started"):
                async with asyncio.timeout(_AGAIN):
                    said = await self._says.started(node) if self._says is not None else None
        except (TimeoutError, CloudError) as error:
            log.info("start.read_failed", node=node, error=str(error) or "no answer in time")
        except Exception:  # a fault of the adapter costs a measurement
            log.exception("start.read_crashed", node=node)
        if self._starts.get(node) is start and (late or (said is not None and said.serves)):
            self._tell(node, start, said)

    def _tell(self, node: str, start: _Start, said: NodeStart | None) -> None:
        del self._starts[node]
        seen = Seen(began=start.began, ready=start.ready, routed=start.routed)
        parts = parts_of(seen, said)
        log.info("start.measured", node=node, seconds=round(seen.seconds, 1), **_rounded(parts))
        self._emit(
            StartMeasured(
                at=self._clock.now(),
                node=node,
                placement=start.placement,
                standby=start.standby,
                began_at=start.began,
                seconds=seen.seconds,
                parts=tuple((str(part), seconds) for part, seconds in parts.items()),
            )
        )


def _rounded(parts: Mapping[Part, float]) -> dict[str, float]:
    return {f"{part}_s".replace("-", "_"): round(seconds, 1) for part, seconds in parts.items()}
