"""Where a pool may launch through SkyPilot, and what every machine of it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloud.skypilot.clouds import CLOUDS, SkyCloud

PROVIDER: Final = "skypilot"


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyRegion:
    """One region of a pool. Raises ValueError with what is wrong and what to write."""

    cloud: str
    region: str
    zones: tuple[str, ...]
    instance_types: tuple[str, ...]
    network: str = ""  # see `SkyCloud.network`
    image: str = ""  # empty: SkyPilot's own for the cloud
    profile: str = ""  # instance profile of AWS; empty: the machines have no rights at all
    disk: int = 0  # GB of the system's disk; 0: SkyPilot's own
    internal: bool = True  # whether the gateway reaches machines by their private addresses
    public: bool = True  # whether machines get a public address; without, subnets have to be private ones
    engine_port: int = 8000
    user_data: bytes = b""  # what starts the engine, where the cloud takes it at the launch
    script: str = ""  # what starts it over SSH, elsewhere
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cloud not in CLOUDS:
            raise ValueError(f"{self.cloud} is no cloud that is launched on through SkyPilot")
        if self.row.network and not self.network:
            raise ValueError(f"{self.region}: no network is given; name {self.row.network}")
        if not self.internal and not self.public:
            raise ValueError(
                f"{self.region}: without a public address, machines are reached by the private one"
            )
        if not self.instance_types:
            raise ValueError(f"{self.region}: no instance type is given")
        if not self.row.zones and self.zones != (self.region,):
            raise ValueError(f"{self.region}: {self.cloud} has no zones; the region is the only one")
        if not self.zones:
            raise ValueError(f"{self.region}: no zone is given")

    @property
    def row(self) -> SkyCloud:
        """What is known of its cloud."""
        return CLOUDS[self.cloud]


def sky_config(cloud: str, regions: Mapping[str, SkyRegion], ssh_proxy: str = "") -> dict[str, object]:
    """SkyPilot's own configuration for these regions: no role is made and no port opened. Pure.

    Raises ValueError where regions want what SkyPilot takes for a whole cloud only.
    """
    rows = list(regions.values())
    if not rows:
        return {}
    own: dict[str, object] = {}
    if cloud in ("aws", "gcp", "nebius"):
        own["use_internal_ips"] = not rows[0].public
        if not rows[0].public or ssh_proxy:  # else SkyPilot would go through AWS's session manager
            own["ssh_proxy_command"] = ssh_proxy or "nc %h %p"
    if cloud == "aws":
        own["remote_identity"] = "none"  # any name: what a launch has is set there
        own["security_group_name"] = "none"
    elif cloud in ("gcp", "nebius"):
        if len({row.network for row in rows}) > 1:
            raise ValueError(f"SkyPilot takes one network for all regions of {cloud}; name the same in each")
        own["vpc_name" if cloud == "gcp" else "security_group_name"] = rows[0].network
    elif cloud == "oci":
        own = {row.region: {"vcn_subnet": row.network} for row in rows}
    return {cloud: own} if own else {}
