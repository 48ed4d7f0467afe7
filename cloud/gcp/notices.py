"""Preemptions as Compute Engine records them: a source of notices beside the agents on the nodes.

The notice itself is given to the machine alone. What is seen from outside is the operation that takes it,
`compute.instances.preempted`: Google's own word, heard when the agent is not. It has no deadline: how long
the machine still has is not told, so what every spot machine has without asking is counted on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from cloud.errors import CloudError
from cloud.gcp.client import Body, GcpClient
from cloud.gcp.machines import PREEMPTED, when
from cloud.gcp.places import SHORTEST
from cloud.logger import structlog
from cloud.ports import Clock
from policies.model import Confidence, Notice, NoticeKind

log = structlog.get_logger("gcp")

_BACK: Final = 300.0  # s of records that are read each time: one that is late is not missed
_MOST_KNOWN: Final = 10_000


class OperationNotices:
    """Polls the operations of every zone. See `cloud.ports.Notices`."""

    def __init__(
        self,
        client: GcpClient,
        zones: Sequence[str],
        clock: Clock,
        *,
        owned: Callable[[str], bool],
        interval: float = 5.0,
        name: str = "gcp-operations",
    ) -> None:
        self.name = name
        self._client, self._zones, self._clock = client, tuple(zones), clock
        self._owned, self._interval = owned, interval
        self._read_at = float("-inf")

    async def stream(self) -> AsyncIterator[Notice]:
        """Every preemption of a machine that may be ours, once to each reader."""
        told: dict[str, None] = {}
        while True:
            begun = self._clock.steady()
            looks = [self._look(zone) for zone in self._zones]
            found = await asyncio.gather(*looks, return_exceptions=True)
            failed = [one for one in found if isinstance(one, BaseException)]
            for error in failed:
                if not isinstance(error, CloudError):
                    raise error
                log.warning("operations.read_failed", source=self.name, error=str(error))
            if not failed:
                self._read_at = begun
            for operations in found:
                for operation in () if isinstance(operations, BaseException) else operations:
                    notice = self._notice(operation)
                    if notice is not None and notice.id not in told:
                        told[notice.id] = None
                        yield notice
            while len(told) > _MOST_KNOWN:
                del told[next(iter(told))]
            await self._clock.sleep(self._interval)

    async def acknowledge(self, notice: Notice) -> None:
        """Nothing is queued."""

    def age(self) -> float:
        """Seconds since the last look at which every zone answered."""
        return self._clock.steady() - self._read_at

    async def close(self) -> None:
        """Release connections."""
        await self._client.close()

    async def _look(self, zone: str) -> list[Body]:
        since = datetime.fromtimestamp(self._clock.now() - _BACK, UTC).isoformat(timespec="seconds")
        wanted = f'(operationType = "{PREEMPTED}") (insertTime > "{since}")'
        return [op async for op in self._client.pages(f"zones/{zone}/operations", filter=wanted)]

    def _notice(self, operation: Body) -> Notice | None:
        node = str(operation.get("targetLink") or "").rpartition("/instances/")[2]
        at = when(operation.get("insertTime"))
        if not node or at is None or not self._owned(node):
            return None
        return Notice(
            id=f"{self.name}/{operation.get('id') or operation.get('name')}",
            kind=NoticeKind.INTERRUPTION,
            node=node,
            deadline=at + SHORTEST,
            source=self.name,
            confidence=Confidence.CONFIRMED,
            seen_at=self._clock.now(),
        )
