"""The whole file: its tables, and who reads it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.reload import GATEWAY, NOW
from orchestrator.config.tables.budget import BudgetConfig
from orchestrator.config.tables.cost import CostConfig
from orchestrator.config.tables.daemon import DaemonConfig
from orchestrator.config.tables.gateway import SharedGatewayTable
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.tables.provider import ProviderConfig
from orchestrator.config.tables.route import RouteConfig
from orchestrator.config.types import Listed, Section

Role = Literal["daemon", "gateway", "client", "any"]
"""Who reads a configuration: each process needs only its own files to be there, and its client needs none.
"any" checks all of them."""


class ConfigFile(Section):
    """The whole file."""

    daemon: DaemonConfig = Field(default=DaemonConfig(), description="The daemon itself.")
    gateway: Annotated[SharedGatewayTable, GATEWAY] = Field(
        default=SharedGatewayTable(), description="The gateway of all pools."
    )
    pool: dict[str, PoolConfig] = Field(
        default={}, description="One table for each pool, named [pool.NAME], with at least replicas."
    )
    provider: Annotated[dict[str, ProviderConfig], GATEWAY] = Field(
        default={}, description="One table for each API outside, named [provider.NAME]."
    )
    route: Annotated[Listed[RouteConfig], GATEWAY] = Field(
        default=(), description="Names that clients ask for, and where their requests go."
    )
    budget: Annotated[BudgetConfig, NOW] = Field(
        default=BudgetConfig(), description="What all pools together may have."
    )
    cost: Annotated[CostConfig, NOW] = Field(default=CostConfig(), description="The cost report.")
