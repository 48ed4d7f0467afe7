"""The clouds that SkyPilot launches on, and what of each this provider may rely on. Pure.

Source: SkyPilot 0.14.1, `sky/clouds` (what is unsupported), `sky/provision` (what each makes at a launch).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

VERSION: Final = "0.14.1"
"""Of SkyPilot, as skypilot.lock pins it: the helper uses names that another version may not have."""

CATALOGUE: Final = "v8"
"""The version of the catalogues' form, the folder that it keeps them in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyCloud:
    """One cloud, as SkyPilot names it."""

    zones: bool  # whether launches name a zone; else a region is all
    stops: bool = True
    stops_spot: bool = True
    token: bool = False  # the call that makes a machine takes our token: made twice, it makes one
    starts_by: Literal["user-data", "ssh"] = "ssh"
    network: str = (
        ""  # what `network` of a region must name, so that no port is opened for a launch; empty: nothing
    )
    maps_ports: bool = False  # the engine's port is reached through one that the cloud gives it at the launch
    ran: bool = False  # real SkyPilot was seen to work with a stand-in of it


CLOUDS: Final[Mapping[str, SkyCloud]] = MappingProxyType(
    {
        "aws": SkyCloud(
            zones=True,
            stops_spot=False,
            token=True,
            starts_by="user-data",
            network="the id of a security group (sg-...)",
            ran=True,
        ),
        "gcp": SkyCloud(zones=True, network="the name of a VPC with a subnet in the region"),
        "nebius": SkyCloud(zones=False, network="the name of a security group"),
        "oci": SkyCloud(zones=True, stops_spot=False, network="the OCID of a subnet"),
        "runpod": SkyCloud(zones=True, stops=False, maps_ports=True),
        "vast": SkyCloud(zones=False, maps_ports=True),
        "verda": SkyCloud(zones=False, stops=False),
    }
)

NOT_OFFERED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "azure": 'SkyPilot gives every node there a role and opens port 22 to the world; use kind = "azure"',
        "ibm": "SkyPilot has no provisioner of the kind that this needs for it",
        "lambda": "SkyPilot has no spot there",
        "kubernetes": "its nodes belong to the cluster; make them external targets of a balancer",
    }
)
"""Clouds that people ask for, and why this provider does not launch there."""
