"""The tables [cost] and [pool.NAME.cost]: what the cost report adds to machines and holds them against."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from orchestrator.config.types import Factor, Section, share_key

_PEOPLE: Final = 0.4


class CostConfig(Section):
    """What `orchestrator cost` counts besides the machines."""

    people: Factor = share_key(
        _PEOPLE,
        "People's work on the pools as a share on top of what their machines cost: 30% to 50% is usual. It "
        "is shown apart, and counted where a pool is compared with an API, which needs none.",
    )
    usd_per_month: float | None = Field(
        default=None,
        gt=0,
        description="What machines and providers may cost in a calendar month (UTC). Nothing is held back "
        "for it: an alert says when the month will cost more. What holds back is limits.spend_per_hour of a "
        "pool, budget.spend_per_hour, and usd_per_day of providers, routes and keys.",
        examples=[25_000],
        json_schema_extra={"default": None},
    )


class PoolCostTable(Section):
    """How `orchestrator cost` sees this pool."""

    people: Factor | None = Field(
        default=None,
        description="The share of people's work for this pool. Default: cost.people.",
        examples=["30%"],
        json_schema_extra={"default": None},
    )
    tokens_per_second: float | None = Field(
        default=None,
        gt=0,
        description="Tokens a second, prompts and answers together, that one serving unit takes when it is "
        "saturated: utilisation is relative to this. Default: the most that an hour showed.",
        examples=[1500],
    )
    compare: str = Field(
        default="",
        pattern=r"^([^/\s]+/\S+)?$",
        description="The API that the pool is compared with, as PROVIDER/MODEL: a provider of this file, or "
        "one of the price list by its name there. Default: the first provider of a route with the pool.",
        examples=["claude/claude-sonnet-5"],
    )
