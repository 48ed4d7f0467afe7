"""The `Offerings` port on a local cloud."""

from __future__ import annotations

from collections.abc import Mapping

from cloud.local.connection import LocalCloud, parsed
from cloud.local.wire import OFFERINGS
from cloud.ports import Sold
from policies.model import Offering

_PART = "local"


class LocalOfferings:
    """What a local cloud sells: each zone and instance type, spot and on-demand.

    `available` only says that it is sold; whether there is capacity shows when launching, as elsewhere.
    """

    def __init__(self, cloud: LocalCloud) -> None:
        self._cloud = cloud
        self._share = cloud.share()

    def parts(self) -> Mapping[str, tuple[Offering, ...]]:
        """The whole cloud is one part; what it sells only it can tell."""
        return {_PART: ()}

    async def list(self, part: str) -> Sold:  # noqa: ARG002 - there is one
        """Every offering with its price now. Raises CloudError."""
        return Sold(offerings=parsed(OFFERINGS, await self._cloud.read("/v1/offerings"), "offerings"))

    async def close(self) -> None:
        """Give up this adapter's share of the connection. Idempotent."""
        await self._share.close()
