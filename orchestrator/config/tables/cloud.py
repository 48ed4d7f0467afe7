"""The [pool.NAME.cloud] table: where the machines come from."""

from __future__ import annotations

from pydantic import Field

from cloud.kinds import KINDS, CloudKind, CloudName
from cloud.ports import ProviderTraits
from orchestrator.config.tables.aws import AwsTable
from orchestrator.config.tables.azure import AzureTable
from orchestrator.config.tables.gcp import GcpTable
from orchestrator.config.tables.machines import MachinesTable
from orchestrator.config.tables.skypilot import SkyPilotTable
from orchestrator.config.types import FilePath, Section, path_key


class CloudConfig(Section):
    """Where the machines come from."""

    kind: CloudName = Field(
        default="local",
        description="local: nodes are processes on this machine, run by `local-cloud`. aws: nodes are EC2 "
        "instances, see the aws table. gcp: nodes are machines of Compute Engine, see the gcp table. "
        "azure: nodes are virtual machines of Azure, see the azure table. "
        "skypilot: nodes are machines that SkyPilot launches on any of its clouds, see the skypilot table.",
        examples=["aws", "gcp", "azure"],
    )
    state_dir: FilePath = path_key("{state_dir}/cloud", "Directory of the local cloud's own state.")
    socket: FilePath = path_key("{state_dir}/cloud/cloud.sock", "Unix socket of the local cloud.")
    aws: AwsTable = Field(default=AwsTable(), description="EC2.")
    gcp: GcpTable = Field(default=GcpTable(), description="Compute Engine.")
    azure: AzureTable = Field(default=AzureTable(), description="Azure.")
    skypilot: SkyPilotTable = Field(default=SkyPilotTable(), description="A cloud through SkyPilot.")

    @property
    def row(self) -> CloudKind:
        """What is known of its kind."""
        return KINDS[self.kind]

    @property
    def table(self) -> MachinesTable:
        """The table of its kind; an empty one for the local cloud, which has a file of its own."""
        return MachinesTable() if self.kind == "local" else getattr(self, self.kind)

    @property
    def traits(self) -> ProviderTraits:
        """What it can do, as it is configured."""
        return self.table.traits(self.row.traits)

    @property
    def bills(self) -> str:
        """Who bills for the machines, by name; empty where they cost nothing."""
        return self.row.bills

    @property
    def here(self) -> bool:
        """Whether nodes are processes of this machine."""
        return self.row.here

    @property
    def target_group(self) -> str:
        """The target group of AWS that gets the requests instead of the gateway; empty for none."""
        return self.aws.target_group if self.kind == "aws" else ""
