"""The [pool.NAME.cloud] table: where the machines come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

from cloud.kinds import KINDS, CloudKind, CloudName, traits_of_all
from cloud.ports import ProviderTraits
from orchestrator.config.errors import meant
from orchestrator.config.tables.aws import AwsTable
from orchestrator.config.tables.azure import AzureTable
from orchestrator.config.tables.gcp import GcpTable
from orchestrator.config.tables.machines import MachinesTable
from orchestrator.config.tables.skypilot import SkyPilotTable
from orchestrator.config.types import FilePath, Section, path_key, revised
from orchestrator.units import shown

_NAMES: Final = ", ".join(f"'{name}'" for name in KINDS)
_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string", "enum": [*KINDS]},
        {
            "type": "array",
            "items": {"type": "string", "enum": [name for name, row in KINDS.items() if not row.here]},
            "minItems": 1,
            "uniqueItems": True,
        },
    ]
}


def _kinds(value: object) -> object:
    """One kind, or several as a tuple; a list of one is that one."""
    several = isinstance(value, list | tuple)
    names = list(value) if isinstance(value, list | tuple) else [value]
    if not names:
        raise ValueError('names no cloud; write one such as "aws", or a list such as ["aws", "gcp"]')
    for name in names:
        if name not in KINDS:
            close = meant(str(name), KINDS)
            raise ValueError(f"{shown(name)} is not known{close}; write {_NAMES}, or a list of them")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{shown(twice[0])} stands there twice; write it once")
    here = [name for name, row in KINDS.items() if row.here and name in names]
    if here and len(names) > 1:
        raise ValueError(
            f"{shown(here[0])} cannot be one of several: its nodes are processes of this machine, which are "
            "started, reached and told of reclaims in other ways; write the others, or it alone"
        )
    return tuple(names) if several and len(names) > 1 else names[0]


Kinds = Annotated[CloudName | tuple[CloudName, ...], BeforeValidator(_kinds), WithJsonSchema(_SCHEMA)]


class CloudConfig(Section):
    """Where the machines come from."""

    kind: Kinds = Field(
        default="local",
        description="local: nodes are processes on this machine, run by `local-cloud`. aws: nodes are EC2 "
        "instances, see the aws table. gcp: nodes are machines of Compute Engine, see the gcp table. "
        "azure: nodes are virtual machines of Azure, see the azure table. "
        "skypilot: nodes are machines that SkyPilot launches on any of its clouds, see the skypilot table. "
        "A list means machines of all of these clouds at once, each with its table; regions of two clouds "
        "must have different names, and local cannot be among them.",
        examples=["aws", ["aws", "gcp"]],
    )
    state_dir: FilePath = path_key("{state_dir}/cloud", "Directory of the local cloud's own state.")
    socket: FilePath = path_key("{state_dir}/cloud/cloud.sock", "Unix socket of the local cloud.")
    aws: AwsTable = Field(default=AwsTable(), description="EC2.")
    gcp: GcpTable = Field(default=GcpTable(), description="Compute Engine.")
    azure: AzureTable = Field(default=AzureTable(), description="Azure.")
    skypilot: SkyPilotTable = Field(default=SkyPilotTable(), description="A cloud through SkyPilot.")

    @property
    def kinds(self) -> tuple[CloudName, ...]:
        """Every kind of cloud that machines come from."""
        return self.kind if isinstance(self.kind, tuple) else (self.kind,)

    def only(self, kind: CloudName) -> CloudConfig:
        """The same with one of its kinds alone."""
        return revised(self, {"kind": kind})

    @property
    def rows(self) -> tuple[CloudKind, ...]:
        """What is known of each kind."""
        return tuple(KINDS[kind] for kind in self.kinds)

    @property
    def tables(self) -> tuple[MachinesTable, ...]:
        """The table of each kind; an empty one for the local cloud, which has a file of its own."""
        return tuple(MachinesTable() if kind == "local" else getattr(self, kind) for kind in self.kinds)

    @property
    def title(self) -> str:
        """Its name for people."""
        return " and ".join(row.title for row in self.rows)

    @property
    def machines(self) -> str:
        """What its machines are called."""
        return " and ".join(row.machines for row in self.rows)

    @property
    def bills(self) -> str:
        """Who bills for the machines, by name; empty where they cost nothing."""
        return " and ".join(row.bills for row in self.rows)

    @property
    def here(self) -> bool:
        """Whether nodes are processes of this machine."""
        return all(row.here for row in self.rows)

    @property
    def traits(self) -> ProviderTraits:
        """What may be counted on of every machine, as the clouds are configured."""
        rows = zip(self.rows, self.tables, strict=True)
        return traits_of_all([table.traits(row.traits) for row, table in rows])

    def types(self) -> Sequence[str]:
        """Instance types that nodes may have, of any of its kinds; empty where the file names none."""
        return tuple(dict.fromkeys(kind for table in self.tables for kind in table.kinds()))

    def prices(self) -> Mapping[str, Mapping[str, float]]:
        """The on-demand prices that the file states; see `MachinesTable.prices`."""
        return {region: known for table in self.tables for region, known in table.prices().items()}

    def zones(self) -> int:
        """How many zones may be used; 0 where that is not known of each kind."""
        each = [table.zones() for table in self.tables]
        return sum(each) if all(each) else 0

    def sources(self) -> Mapping[str, float]:
        """What each source of notices leaves of a notice of its cloud at worst, in seconds; agents apart."""
        found: dict[str, float] = {}
        for row, table in zip(self.rows, self.tables, strict=True):
            found |= table.sources(table.traits(row.traits).notice)
        return found

    def weights_aside(self) -> bool:
        """Whether nodes find the weights elsewhere than under the model's name, on every kind."""
        return all(table.weights_aside() for table in self.tables)

    @property
    def target_group(self) -> str:
        """The target group of AWS that gets the requests instead of the gateway; empty for none."""
        return self.aws.target_group if self.kinds == ("aws",) else ""
