"""The `Instances` port on a local cloud."""

from __future__ import annotations

from cloud.errors import NotFound
from cloud.local.connection import LocalCloud, parsed
from cloud.local.wire import CONSOLE, INSTANCE, INSTANCES, LAUNCH, STARTED
from cloud.ports import LaunchRequest
from policies.model import EVERYWHERE, Instance
from policies.starts import NodeStart


class LocalInstances:
    """Machines of a local cloud, which lists all its regions at once. See `cloud.ports.Instances`."""

    regions: tuple[str, ...] = (EVERYWHERE,)

    def __init__(self, cloud: LocalCloud) -> None:
        self._cloud = cloud
        self._share = cloud.share()

    async def launch(self, request: LaunchRequest) -> Instance:
        """Launch one machine; the cloud remembers the token."""
        return parsed(INSTANCE, await self._cloud.write("/v1/instances", LAUNCH.dump_json(request)), "launch")

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:  # noqa: ARG002 - of all regions
        """All machines of the pool."""
        return parsed(INSTANCES, await self._cloud.read("/v1/instances", {"pool": pool}), "list")

    async def terminate(self, node: str) -> None:
        """Ask for the end of a machine."""
        try:
            await self._cloud.write(f"/v1/instances/{node}/terminate")
        except NotFound:
            return  # gone already, which is what was asked for

    async def stop(self, node: str) -> None:
        """Stop a machine."""
        await self._cloud.write(f"/v1/instances/{node}/stop")

    async def start(self, node: str) -> None:
        """Start a stopped machine."""
        await self._cloud.write(f"/v1/instances/{node}/start")

    async def console(self, node: str) -> str:
        """The end of its engine's log, which is kept a while after the machine ended."""
        return parsed(CONSOLE, await self._cloud.read(f"/v1/instances/{node}/console"), "console")

    async def started(self, node: str) -> NodeStart | None:
        """What the cloud knows of the newest start of a machine's engine. Raises CloudError."""
        return parsed(STARTED, await self._cloud.read(f"/v1/instances/{node}/started"), "started")

    async def close(self) -> None:
        """Give up this adapter's share of the connection. Idempotent."""
        await self._share.close()
