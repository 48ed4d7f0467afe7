"""Drills: losses that the demo asks the local cloud for, so that even a calm market shows something.

The market plays by itself; where it has taken fewer nodes than the plan by now, a drill takes one more that
serves, with notice. Five vanish without a word, with all that they are answering. On request engines are
killed besides, on machines that stay: no notice comes of that either.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import orjson

from cloud.errors import CloudError, NotFound
from cloud.local.connection import LocalCloud
from cloud.logger import structlog
from orchestrator.views.api import NodeView, PoolView

log = structlog.get_logger("demo")

UNANNOUNCED = 5
"""Nodes that vanish without a notice in one demo."""

_FROM, _UNTIL = 0.08, 0.85
"""Shares of the demo's time between which drills happen; what is due and found nobody to take comes later."""


class Drills:
    """Decides by the demo's progress (0 to 1) what to take next.

    `noticed`: preemptions with notice in all, those of the market among them; `kills`: engines to kill.
    `asked`: nodes that were taken so far; `killed`: engines.
    """

    def __init__(self, cloud: LocalCloud, *, noticed: int, kills: int, seed: int) -> None:
        self._cloud, self._noticed, self._kills = cloud, noticed, kills
        self._rng = random.Random(seed)  # noqa: S311 - picks victims of a demo
        self._vanished = 0
        self._hit: set[str] = set()
        self.asked = self.killed = 0

    async def step(self, progress: float, pool: PoolView) -> None:
        """Take a node if the plan says so. A cloud that refuses is asked again at the next step."""
        share = min(1.0, (progress - _FROM) / (_UNTIL - _FROM))
        try:
            if self._vanished < _due(UNANNOUNCED, share):
                self._vanished += await self._reclaim(pool, notice_s=0)
            elif self.killed < _due(self._kills, share):
                self.killed += await self._kill(pool)
            elif 0.0 <= share < 1.0:
                seen = orjson.loads(await self._cloud.read("/admin/statistics"))
                if seen["preemptions_with_notice"] < self._noticed * share:
                    await self._reclaim(pool)
        except CloudError as error:
            log.warning("drill.refused", error=str(error))

    async def _reclaim(self, pool: PoolView, **how: int) -> bool:
        """Take a spot node that serves; False when there is none."""
        taken = await self._hits("reclaim", [n for n in _serving(pool) if n["market"] == "spot"], **how)
        self.asked += taken
        return taken

    async def _kill(self, pool: PoolView) -> bool:
        """Kill the engine of a node that serves, while others do as well; False when there is none."""
        serving = _serving(pool)
        return len(serving) > 1 and await self._hits("kill-engine", serving)

    async def _hits(self, order: str, nodes: Sequence[NodeView], **how: int) -> bool:
        """Have this done to one of the nodes; False when it is done to none."""
        node = self._busiest(nodes)
        if node is None:
            return False
        try:
            await self._cloud.admin(order, orjson.dumps({"node": node, **how}))
            done = True
        except NotFound:  # the market takes it already
            done = False
        self._hit.add(node)
        return done

    def _busiest(self, nodes: Sequence[NodeView]) -> str | None:
        """One of those with the most requests that no drill has hit, so that a loss means something."""
        left = [n for n in nodes if n["id"] not in self._hit]
        most = max((n["in_flight"] or 0 for n in left), default=0)
        busiest = sorted(n["id"] for n in left if (n["in_flight"] or 0) == most)
        return self._rng.choice(busiest) if busiest else None


def _serving(pool: PoolView) -> list[NodeView]:
    """Nodes that get requests and that nothing is known against."""
    return [n for n in pool["nodes"] if n["attached"] and n["healthy"] and "noticed" not in n["conditions"]]


def _due(count: int, share: float) -> int:
    """How many of `count`, evenly spread, have come by this share of the time."""
    return int(count * max(0.0, share) + 0.5)
