"""Drills: reclaims that the demo asks the local cloud for, so that even a calm market shows something.

The market plays by itself; where it has taken fewer nodes than the plan by now, a drill takes one more that
serves, with notice, and once in the middle of the demo one without any.
"""

from __future__ import annotations

import random

import orjson
import structlog

from cloud.errors import CloudError
from cloud.local.connection import LocalCloud
from orchestrator.views import PoolView

log = structlog.get_logger("demo")

_FROM, _UNTIL = 0.08, 0.85
"""Shares of the demo's time between which drills happen."""


class Drills:
    """Decides by the demo's progress (0 to 1) what to take next; `wanted` preemptions with notice in all."""

    def __init__(self, cloud: LocalCloud, *, wanted: int, seed: int) -> None:
        self._cloud, self._wanted = cloud, wanted
        self._rng = random.Random(seed)  # noqa: S311 - picks victims of a demo
        self._unannounced_done = False
        self.asked = 0

    async def step(self, progress: float, pool: PoolView) -> None:
        """Take a node if the plan says so. A cloud that refuses is asked again at the next step."""
        if not _FROM <= progress <= _UNTIL:
            return
        try:
            if progress >= 0.5 and not self._unannounced_done:
                self._unannounced_done = await self._reclaim(pool, notice=False)
                return
            seen = orjson.loads(await self._cloud.read("/admin/statistics"))
            due = self._wanted * (progress - _FROM) / (_UNTIL - _FROM)
            if seen["preemptions_with_notice"] < due:
                await self._reclaim(pool, notice=True)
        except CloudError as error:
            log.warning("drill.refused", error=str(error))

    async def _reclaim(self, pool: PoolView, *, notice: bool) -> bool:
        """Take a spot node that serves and was not taken yet; False when there is none."""
        spot = sorted(
            n["id"]
            for n in pool["nodes"]
            if n["market"] == "spot" and n["attached"] and "noticed" not in n["conditions"]
        )
        if not spot:
            return False
        order: dict[str, object] = {"node": self._rng.choice(spot)}
        if not notice:
            order["notice_s"] = 0
        await self._cloud.admin("reclaim", orjson.dumps(order))
        self.asked += 1
        return True
