"""Where a pool may launch on Azure, and what its machines are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

PROVIDER: Final = "azure"

POOL_TAG: Final = "orchestrator:pool"
TOKEN_TAG: Final = "orchestrator:token"  # noqa: S105 - the name of a tag
STANDBY_TAG: Final = "orchestrator:standby"
BUILD_TAG: Final = "orchestrator:build"
OWN_TAGS: Final = frozenset({POOL_TAG, TOKEN_TAG, STANDBY_TAG, BUILD_TAG})

Eviction = Literal["delete", "deallocate"]

_SUBNET: Final = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Network/virtualNetworks/[^/]+/subnets/[^/]+",
    re.IGNORECASE,
)
_ZONES: Final = ("1", "2", "3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a machine boots: one of the marketplace or of a gallery. Raises ValueError with what to write.

    A version is a number: with "latest" two machines of one configuration could be different ones.
    """

    text: str

    def __post_init__(self) -> None:
        if self.text.startswith("/"):
            if "/versions/" not in self.text and "/images/" not in self.text:
                raise ValueError(f"{self.text}: write the id of an image, or of one version of a gallery's")
            return
        parts = self.text.split(":")
        if len(parts) != 4 or not all(parts):
            raise ValueError(f"{self.text!r}: write publisher:offer:sku:version, or the id of an image")
        if not parts[3][0].isdigit():
            raise ValueError(f"{self.text}: the version is {parts[3]!r}; pin a number")

    def reference(self) -> dict[str, str]:
        """The imageReference of a virtual machine."""
        if self.text.startswith("/"):
            return {"id": self.text}
        publisher, offer, sku, version = self.text.split(":")
        return {"publisher": publisher, "offer": offer, "sku": sku, "version": version}


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureRegion:
    """One region of a pool, with what its machines are made of. Raises ValueError with what to write."""

    region: str  # such as "eastus"
    resource_group: str
    subnet: str  # its id
    zones: tuple[str, ...]  # "1" to "3"; none: wherever the region has room
    instance_types: tuple[str, ...]
    image: Image
    ssh_public_key: str  # Azure makes no Linux machine without one or a password
    admin_user: str = "orchestrator"
    security_group: str = ""  # the id of one, for the interfaces; empty: the subnet's alone
    identity: str = ""  # the id of a user-assigned identity that machines have
    disk_gb: int = 128
    disk_type: str = "Premium_LRS"
    eviction: Eviction = "delete"
    max_price: float | None = None  # USD/h for spot; None: up to the on-demand price, never evicted for it
    engine_port: int = 8000
    on_demand_prices: Mapping[str, float] = field(default_factory=dict)
    """The user's own USD/h per size; they win over the public list."""
    tags: Mapping[str, str] = field(default_factory=dict)  # the user's own, on machines, disks, interfaces

    def __post_init__(self) -> None:
        if not self.instance_types:
            raise ValueError(f"{self.region}: no instance type is given")
        if not _SUBNET.fullmatch(self.subnet):
            raise ValueError(
                f"{self.region}: {self.subnet!r} is no id of a subnet, which is /subscriptions/.../"
                "resourceGroups/.../providers/Microsoft.Network/virtualNetworks/.../subnets/..."
            )
        foreign = [zone for zone in self.zones if zone not in _ZONES]
        if foreign:
            raise ValueError(f"{self.region}: the zone {foreign[0]!r} is none of {', '.join(_ZONES)}")

    def places(self) -> tuple[str, ...]:
        """The zones as placements name them: "eastus-1", or the region itself where none is named."""
        return tuple(f"{self.region}-{zone}" for zone in self.zones) or (self.region,)

    def zone_of(self, place: str) -> str:
        """Azure's name of a placement's zone; empty for the region itself. Raises ValueError for others."""
        if place not in self.places():
            raise ValueError(place)
        return place.removeprefix(self.region).removeprefix("-")
