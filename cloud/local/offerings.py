"""The `Offerings` port on a local cloud."""

from __future__ import annotations

from cloud.local.connection import LocalCloud, parsed
from cloud.local.wire import OFFERINGS
from policies.model import Offering


class LocalOfferings:
    """What a local cloud sells: each zone and instance type, spot and on-demand.

    `available` only says that it is sold; whether there is capacity shows when launching, as elsewhere.
    """

    def __init__(self, cloud: LocalCloud) -> None:
        self._cloud = cloud
        self._share = cloud.share()

    async def list(self) -> tuple[Offering, ...]:
        """Every offering with its price now."""
        return parsed(OFFERINGS, await self._cloud.read("/v1/offerings"), "offerings")

    async def close(self) -> None:
        """Give up this adapter's share of the connection. Idempotent."""
        await self._share.close()
