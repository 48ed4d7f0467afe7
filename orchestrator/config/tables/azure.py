"""The [pool.NAME.cloud.azure] tables: what a pool may use of Azure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from cloud.azure.places import Eviction
from orchestrator.config.tables.machines import MachinesTable
from orchestrator.config.types import FilePath, Money, Prices, Section, Strings, Texts, path_key


class AzureRegionTable(Section):
    """One region that nodes may be launched in, named like the region, such as eastus."""

    resource_group: str = Field(
        default="",
        description="Resource group of the nodes, their disks and their interfaces. It exists already.",
        examples=["llama-nodes"],
    )
    subnet: str = Field(
        default="",
        description="Id of the subnet that nodes join. The control host and the gateway reach it.",
        examples=[
            "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/llama-nodes/providers/"
            "Microsoft.Network/virtualNetworks/llama/subnets/nodes"
        ],
    )
    security_group: str = Field(
        default="",
        description="Id of a network security group for the nodes' interfaces. Empty: the subnet's alone.",
    )
    zones: Strings = Field(
        default=(),
        description="Availability zones that may be used. Empty: Azure places each node where it has room.",
        examples=[["1", "2", "3"]],
    )
    on_demand_prices: Prices = Field(
        default={},
        description="Your own on-demand prices per size in US dollars per hour. They win over the public "
        "price list.",
        examples=[{"Standard_NC24ads_A100_v4": "3.67"}],
    )


class AzureTable(MachinesTable):
    """Azure as the source of machines, for `cloud.kind = "azure"`.

    Credentials are found as azure-identity finds them: AZURE_ variables, the identity of the machine that the
    daemon runs on, or the login of `az`.
    """

    subscription: str = Field(
        default="",
        description="Id of the subscription.",
        examples=["11111111-2222-3333-4444-555555555555"],
    )
    instance_types: Strings = Field(
        default=(), description="Sizes that nodes may have.", examples=[["Standard_NC24ads_A100_v4"]]
    )
    image: str = Field(
        default="",
        description="What nodes boot, with drivers and the engine, or with docker for an engine in a "
        "container: publisher:offer:sku:version, or the id of a gallery's image version. The version is a "
        "number.",
        examples=["microsoft-dsvm:ubuntu-hpc:2204:22.04.2025041101"],
    )
    ssh_public_key: str = Field(
        default="",
        description="Public key of whoever may log in on nodes. Azure makes no machine without one.",
        examples=["ssh-ed25519 AAAA... ops"],
    )
    admin_user: str = Field(default="azureuser", description="User that this key is for.")
    identity: str = Field(
        default="",
        description="Id of a user-assigned managed identity that nodes get. Empty: none.",
    )
    disk_gb: int = Field(
        default=128, ge=30, le=4095, description="Size of a node's disk, which its weights are on too, in GB."
    )
    disk_type: str = Field(
        default="Premium_LRS", description="Kind of that disk.", examples=["StandardSSD_LRS"]
    )
    eviction: Eviction = Field(
        default="delete",
        description="What becomes of a spot node that Azure takes back: deleted, or deallocated, which keeps "
        "its disk, at the disk's price, as a stopped node.",
    )
    max_spot_price: Money | None = Field(
        default=None,
        description="The most that a spot node may cost, in US dollars per hour; it is taken back once it "
        "costs more. Left out: the on-demand price, so that no node is taken back for its price.",
        examples=["2.00"],
    )
    engine_port: int = Field(
        default=8000, ge=1, le=65535, description="Port on which the engine of every node listens."
    )
    weights: str = Field(
        default="",
        description="Where a node finds the weights: a path on its image. Empty: the engine downloads them "
        "by the model's name.",
        examples=["/opt/weights/llama-3.1-8b"],
    )
    tags: Texts = Field(
        default={}, description="Tags beside the pool's own on machines.", examples=[{"team": "ml"}]
    )
    ledger: FilePath = path_key(
        "{state_dir}/azure.launches",
        "File that remembers which launches made a machine, written before Azure is asked. Without it a "
        "launch that is asked for again after its machine's end could make another.",
    )
    endpoint: str = Field(
        default="",
        description="URL of a stand-in for Azure Resource Manager on this machine, which gets no "
        "credentials, or of a sovereign cloud. Empty: https://management.azure.com.",
    )
    prices_endpoint: str = Field(
        default="", description="URL of the list of retail prices, for a stand-in. Empty: Azure's."
    )
    regions: dict[str, AzureRegionTable] = Field(default={}, description="Regions that may be used.")

    def kinds(self) -> Sequence[str]:
        """Sizes that nodes may have."""
        return self.instance_types

    def prices(self) -> Mapping[str, Mapping[str, float]]:
        """The prices of `on_demand_prices`, by region."""
        return {name: region.on_demand_prices for name, region in self.regions.items()}

    def zones(self) -> int:
        """Those that are named; a region without any counts as one."""
        return sum(len(region.zones) or 1 for region in self.regions.values())

    def weights_aside(self) -> bool:
        """Whether `weights` is given."""
        return bool(self.weights)
