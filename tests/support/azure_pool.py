"""The adapters of a pool on the stand-in for Azure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from azure_stage import GROUP, IMAGE, REGION, SIZE, SSH_KEY, SUBSCRIPTION, AzureStandIn, subnet

from cloud.azure.clients import AzureAccount, AzureClients
from cloud.azure.instances import AzureInstances
from cloud.azure.offerings import AzureOfferings
from cloud.azure.places import AzureRegion, Image
from cloud.ports import Clock
from cloud.tombstones import Tombstones


def place(region: str = REGION, **changed: Any) -> AzureRegion:
    """A region of a pool, with what is changed of it."""
    values: dict[str, Any] = {
        "region": region,
        "resource_group": f"rg-{region}",
        "subnet": subnet(f"rg-{region}"),
        "zones": ("1", "2"),
        "instance_types": (SIZE,),
        "image": Image(text=IMAGE),
        "ssh_public_key": SSH_KEY,
    }
    return AzureRegion(**{**values, **changed})


class Adapters:
    """Instances and offerings of a pool, with a ledger in a directory. `places`: one region unless given."""

    def __init__(
        self,
        stand_in: AzureStandIn,
        clock: Clock,
        directory: Path,
        *places: AzureRegion,
        custom_data: bytes = b"#cloud-config\n",
        read_timeout: float = 10.0,
    ) -> None:
        self.account = AzureAccount(SUBSCRIPTION, endpoint=stand_in.url, read_timeout=read_timeout)
        self.regions = [
            (AzureClients(self.account, each.region, clock=clock), each) for each in places or (place(),)
        ]
        self.ledger = Tombstones(directory / "azure.ledger", clock)
        self.instances = AzureInstances(
            self.regions, clock=clock, ledger=self.ledger, custom_data=lambda _request, _name: custom_data
        )
        self.offerings = AzureOfferings(
            self.regions, clock=clock, endpoint=f"{stand_in.url}/api/retail/prices"
        )

    async def close(self) -> None:
        await self.instances.close()
        await self.offerings.close()


__all__ = ("GROUP", "Adapters", "place")
