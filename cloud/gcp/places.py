"""Where a pool may launch on Google Cloud, and what its machines are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloud.cloud_init.user_data import NodeSetup

PROVIDER: Final = "gcp"

POOL_LABEL: Final = "orchestrator-pool"
STANDBY_LABEL: Final = "orchestrator-standby"
BUILD_LABEL: Final = "orchestrator-build"
TOKEN_KEY: Final = "orchestrator-token"  # noqa: S105 - a key of the machine's metadata
"""Labels take small letters and 63 characters, which tokens do not keep to."""
SHORTEST: Final = 30.0
"""Seconds from the record of a preemption to the end of the machine, at least (Google: best effort)."""
NOTICE_KEY: Final = "orchestrator-notice-seconds"
"""The key of the metadata by which the node's agent knows how long a notice is (`cloud.node_notices`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpRegion:
    """One region of a pool. Prices are the user's own, USD/h by machine type; they win over the catalogue."""

    region: str
    zones: tuple[str, ...]
    subnetwork: str  # its name in the region, or its path; empty: the default network's
    on_demand_prices: Mapping[str, float] = field(default_factory=dict)
    spot_prices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpMachines:
    """What the machines of a pool are made of, in every region."""

    instance_types: tuple[str, ...]
    engine_port: int
    image: str = ""  # path of an image or of a family; empty: the instance template's
    template: str = ""  # path of an instance template; empty: none
    disk_gib: int = 0  # of the boot disk; 0: as large as the image
    disk_type: str = ""  # such as pd-ssd; empty: Google's default
    service_account: str = ""  # e-mail; empty: none, so that a node has no rights
    network_tags: tuple[str, ...] = ()
    external_address: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)  # the user's own
    setup: NodeSetup | None = None
    """What the startup script makes of a machine, with the engine of its launch; None: the image or template
    starts the engine."""
