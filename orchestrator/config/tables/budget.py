"""The [budget] table: what all pools together may cost."""

from __future__ import annotations

from pydantic import Field

from orchestrator.config.types import UNLIMITED, MoneyOrUnlimited, Section
from policies.grant import SharedBudget


class BudgetConfig(Section):
    """What all pools together may have. Every pool gets its on-demand floor first; what is left goes by
    `pool.NAME.priority`, the highest first. Each pool's own limits hold as well."""

    spend_per_hour: MoneyOrUnlimited = Field(
        default=None,
        description="Most US dollars per hour for the nodes of all pools at today's prices, or unlimited.",
        examples=["40", UNLIMITED],
        json_schema_extra={"default": UNLIMITED},
    )
    nodes: int | None = Field(
        default=None,
        ge=1,
        description="Most nodes of all pools together. Default: no bound.",
        examples=[100],
    )

    @property
    def bounded(self) -> bool:
        """Whether there is anything to share."""
        return self.spend_per_hour is not None or self.nodes is not None

    @property
    def shared(self) -> SharedBudget:
        """As the policy takes it."""
        return SharedBudget(spend_per_hour=self.spend_per_hour, nodes=self.nodes)
