"""The [pool.NAME.cloud.skypilot] tables: what a pool may use of a cloud that SkyPilot launches on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from cloud.ports import ProviderTraits
from cloud.skypilot.clouds import CLOUDS
from orchestrator.config.tables.machines import MachinesTable
from orchestrator.config.types import FilePath, Section, Size, Strings, Texts, path_key, size_key


class SkyRegionTable(Section):
    """One region that nodes may be launched in, named as the cloud names it."""

    zones: Strings = Field(
        default=(),
        description="Zones that may be used. Empty for a cloud without zones.",
        examples=[["us-east-1a", "us-east-1b"]],
    )
    network: str = Field(
        default="",
        description="What decides who reaches the machines, made by you beforehand, so that SkyPilot opens "
        "no port: of aws a security group's id, of gcp a VPC's name, of nebius a security group's name, of "
        "oci a subnet's OCID.",
        examples=["sg-0123456789abcdef0"],
    )
    image: str = Field(
        default="",
        description="Image with the drivers and the engine, as SkyPilot takes it for this cloud, such as an "
        "AMI. Empty: SkyPilot's own, which has no engine.",
        examples=["ami-0123456789abcdef0"],
    )


class SkyPilotTable(MachinesTable):
    """Machines through SkyPilot, for `cloud.kind = "skypilot"`. It runs in an environment of its own."""

    python: FilePath = Field(
        default=Path("/opt/spot-orchestrator-skypilot/bin/python"),
        description="Python of the environment with SkyPilot: the Debian package's optional part, or what "
        "`make skypilot-env` makes.",
        examples=["/opt/spot-orchestrator-skypilot/bin/python"],
        json_schema_extra={"default": "/opt/spot-orchestrator-skypilot/bin/python"},
    )
    home: FilePath = path_key(
        "{state_dir}/skypilot",
        "The helper's own home directory, with SkyPilot's state and key. Pools with the same one share a "
        "helper.",
    )
    ledger: FilePath = path_key(
        "{state_dir}/skypilot-launches",
        "Where it is written down which token launched which machine. It must not be lost: SkyPilot lists "
        "no machines, so this file is what a list goes by.",
    )
    user_id: str = Field(
        default="",
        description="What SkyPilot puts into the names of machines to say whose they are: 4 to 16 of a-z and "
        "0-9. Never change it while machines live. Empty: made of the pool's name.",
        examples=["a1b2c3d4"],
    )
    cloud: str = Field(
        default="",
        description=f"The cloud, as SkyPilot names it: {', '.join(CLOUDS)}.",
        examples=["runpod"],
    )
    instance_types: Strings = Field(
        default=(),
        description="Instance types that nodes may have, as in SkyPilot's catalogue.",
        examples=[["g6.xlarge"]],
    )
    engine_port: int = Field(
        default=8000, ge=1, le=65535, description="Port on which the engine of every node listens."
    )
    private: bool = Field(
        default=True,
        description="Whether the gateway reaches nodes by their private addresses; else by public ones.",
    )
    public_ip: bool = Field(
        default=True,
        description="Whether machines get public addresses. Without, their subnets must be private ones.",
    )
    instance_profile: str = Field(
        default="",
        description="On aws, the instance profile of the nodes. Empty: they have no rights at all.",
    )
    disk: int = Field(default=0, ge=0, description="GB of the system's disk. 0: SkyPilot's own choice.")
    tags: Texts = Field(
        default={}, description="On aws, tags beside the pool's own.", examples=[{"team": "ml"}]
    )
    credentials: dict[str, FilePath] = Field(
        default={},
        description="Files with credentials that SkyPilot looks for in its home directory: the path there = "
        "where the file is. Those of aws are found as boto3 finds them.",
        examples=[{".runpod/config.toml": "/etc/spot-orchestrator/runpod.toml"}],
    )
    most_memory: Size = size_key(
        1 << 30, "Memory above which the helper is started anew, once nothing is under way."
    )
    endpoint: str = Field(
        default="", description="URL where every service answers, for a stand-in of AWS. Empty means AWS."
    )
    regions: dict[str, SkyRegionTable] = Field(default={}, description="Regions that may be used.")

    def user_of(self, pool: str) -> str:
        """The user id of a pool."""
        return self.user_id or hashlib.blake2b(pool.encode(), digest_size=4).hexdigest()

    def zones_of(self, region: str) -> tuple[str, ...]:
        """The zones of a region; itself, of a cloud that has none."""
        row = CLOUDS.get(self.cloud)
        return self.regions[region].zones if row is None or row.zones else (region,)

    def kinds(self) -> Sequence[str]:
        """See `MachinesTable`."""
        return self.instance_types

    def prices(self) -> Mapping[str, Mapping[str, float]]:
        """See `MachinesTable`."""
        return {name: {} for name in self.regions}

    def zones(self) -> int:
        """See `MachinesTable`."""
        return sum(len(self.zones_of(name)) for name in self.regions)

    def traits(self, usual: ProviderTraits) -> ProviderTraits:
        """See `MachinesTable`."""
        row = CLOUDS.get(self.cloud)
        stops = row is not None and row.stops
        fills = row is not None and row.starts_by == "user-data"
        return replace(usual, stops=stops, fills_gpus=fills)
