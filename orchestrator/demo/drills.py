"""Drills: reclaims that the demo asks the local cloud for, so that even a calm market shows something.

The market plays by itself; where it has taken fewer nodes than the plan by now, a drill takes one more, with
notice, and once in the middle of the demo one without any.
"""

from __future__ import annotations

import random

import orjson
import structlog

from cloud.errors import CloudError
from cloud.local.connection import LocalCloud
from policies.model import InstanceState, Market

log = structlog.get_logger("demo")

WANTED_WITH_NOTICE = 8
_FROM, _UNTIL = 0.08, 0.85
"""Shares of the demo's time between which drills happen."""


class Drills:
    """Decides by the demo's progress (0 to 1) what to take next."""

    def __init__(self, cloud: LocalCloud, *, pool: str, seed: int) -> None:
        self._cloud, self._pool = cloud, pool
        self._rng = random.Random(seed)  # noqa: S311 - picks victims of a demo
        self._unannounced_done = False
        self.asked = 0

    async def step(self, progress: float) -> None:
        """Take a node if the plan says so. A cloud that refuses is asked again at the next step."""
        if not _FROM <= progress <= _UNTIL:
            return
        try:
            seen = orjson.loads(await self._cloud.read("/admin/statistics"))
            if progress >= 0.5 and not self._unannounced_done:
                self._unannounced_done = await self._reclaim(notice=False)
                return
            due = WANTED_WITH_NOTICE * (progress - _FROM) / (_UNTIL - _FROM)
            if seen["preemptions_with_notice"] < due:
                await self._reclaim(notice=True)
        except CloudError as error:
            log.warning("drill.refused", error=str(error))

    async def _reclaim(self, *, notice: bool) -> bool:
        instances = orjson.loads(await self._cloud.read("/v1/instances", {"pool": self._pool}))
        taken = {p["node"] for p in orjson.loads(await self._cloud.read("/admin/statistics"))["preemptions"]}
        spot = [
            i["id"]
            for i in instances
            if i["placement"]["market"] == Market.SPOT
            and i["state"] == InstanceState.RUNNING
            and i["id"] not in taken
        ]
        if not spot:
            return False
        order: dict[str, object] = {"node": self._rng.choice(sorted(spot))}
        if not notice:
            order["notice_s"] = 0
        await self._cloud.admin("reclaim", orjson.dumps(order))
        self.asked += 1
        return True
