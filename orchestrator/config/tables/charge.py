"""The table [pool.NAME.charge]: what a pool's tokens cost the keys of clients inside the house."""

from __future__ import annotations

from pydantic import Field

from orchestrator.config.types import Dollars, Section
from policies.spend import Rates


class ChargeTable(Section):
    """What keys of clients with usd_per_day are charged for this pool's tokens, in US dollars per million.
    Nobody bills for it: it uses up their dollars of a day as what providers cost does. Without `input`
    nothing is charged."""

    input: Dollars | None = Field(default=None, description="Prompt tokens.", examples=["0.20"])
    output: Dollars | None = Field(
        default=None, description="Tokens of the answer. Default: 0.", examples=["0.60"]
    )
    cached: Dollars | None = Field(
        default=None,
        description="Prompt tokens that the engine had in its cache. Default: as `input`.",
        examples=["0.02"],
    )

    def rates(self) -> Rates | None:
        """As the gateway counts; None where nothing is charged."""
        if self.input is None:
            return None
        cached = "" if self.cached is None else str(self.cached)
        return Rates.of(input=str(self.input), output=str(self.output or 0), cached=cached)
