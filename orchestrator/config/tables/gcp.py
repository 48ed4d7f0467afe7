"""The [pool.NAME.cloud.gcp] tables: what a pool may use of Google Cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from cloud.gcp.places import SHORTEST
from orchestrator.config.tables.machines import MachinesTable
from orchestrator.config.types import Duration, FilePath, Prices, Section, Strings, Texts, duration_key


class GcpRegionTable(Section):
    """One region that nodes may be launched in, named like the region, such as us-central1."""

    zones: Strings = Field(
        default=(), description="Zones that may be used.", examples=[["us-central1-a", "us-central1-b"]]
    )
    subnetwork: str = Field(
        default="",
        description="Subnetwork of the nodes, by its name, or by its path where another project shares it. "
        "Empty: that of the network named default.",
        examples=["nodes"],
    )
    on_demand_prices: Prices = Field(
        default={},
        description="Your own on-demand prices per machine type in US dollars per hour. They win over the "
        "billing catalogue, which is not asked then.",
        examples=[{"g2-standard-12": "1.00"}],
    )
    spot_prices: Prices = Field(
        default={},
        description="The same on spot.",
        examples=[{"g2-standard-12": "0.40"}],
    )


class GcpTable(MachinesTable):
    """Compute Engine as the source of machines, for `cloud.kind = "gcp"`. Credentials are found as Google's
    own tools find them, or are those of `credentials_file`."""

    project: str = Field(
        default="", description="Project of the machines, by its id.", examples=["ml-serving"]
    )
    instance_types: Strings = Field(
        default=(), description="Machine types that nodes may have.", examples=[["g2-standard-12"]]
    )
    engine_port: int = Field(
        default=8000, ge=1, le=65535, description="Port on which the engine of every node listens."
    )
    image: str = Field(
        default="",
        description="Image of the nodes, or its family, by its path: with drivers, and the engine or docker.",
        examples=["projects/ml-serving/global/images/family/vllm-node"],
    )
    instance_template: str = Field(
        default="",
        description="Instance template instead of `image`, by its path: image, disks, network, service "
        "account. Name, machine type, labels, scheduling and metadata are the launch's.",
        examples=["projects/ml-serving/global/instanceTemplates/vllm-node"],
    )
    start_engine: bool = Field(
        default=True,
        description="Whether each machine gets a startup script that starts the engine with the pool's "
        "flags. false: the image does.",
    )
    disk_gib: int = Field(
        default=0, ge=0, le=65536, description="Size of the boot disk in GiB. 0: as large as the image."
    )
    disk_type: str = Field(
        default="", description="Type of the boot disk. Empty: Google's default.", examples=["pd-ssd"]
    )
    service_account: str = Field(
        default="",
        description="Service account of the nodes, by its e-mail. Nodes prove with it who they are; it needs "
        "no role for that. Empty: none, and agents of nodes cannot fetch their keys.",
        examples=["node@ml-serving.iam.gserviceaccount.com"],
    )
    network_tags: Strings = Field(
        default=(), description="Network tags of the nodes, for firewall rules.", examples=[["llm-node"]]
    )
    external_address: bool = Field(
        default=False, description="Whether nodes get an external address. Without one they need Cloud NAT."
    )
    labels: Texts = Field(
        default={}, description="Labels of the machines beside the pool's own.", examples=[{"team": "ml"}]
    )
    credentials_file: FilePath | None = Field(
        default=None,
        description="Key file of a service account. Not set: application default credentials.",
        json_schema_extra={"default": None},
    )
    poll_operations: Duration = duration_key(
        5.0, "How often the operations of each zone are read for preemptions."
    )
    endpoint: str = Field(
        default="",
        description="URL where every service answers, for a stand-in of Google. Empty means Google.",
    )
    regions: dict[str, GcpRegionTable] = Field(default={}, description="Regions that may be used.")

    def kinds(self) -> Sequence[str]:
        """Machine types that nodes may have."""
        return self.instance_types

    def prices(self) -> Mapping[str, Mapping[str, float]]:
        """The prices of `on_demand_prices`, by region."""
        return {name: region.on_demand_prices for name, region in self.regions.items()}

    def zones(self) -> int:
        """Those of all regions."""
        return sum(len(region.zones) for region in self.regions.values())

    def sources(self, notice: float) -> Mapping[str, float]:  # noqa: ARG002 - for others
        """The record of operations, which is written when the machine is being taken."""
        return {"gcp-operations": SHORTEST - self.poll_operations}
