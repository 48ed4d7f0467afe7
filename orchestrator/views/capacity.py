"""The JSON of `orchestrator plan-capacity`, as types; rules: `orchestrator.views.api`.

Hours of the week count from Monday 0:00 UTC. Money is USD and not rounded. What is not known is null.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

Days = Literal["Mon-Fri", "Sat-Sun"]


class HistoryView(TypedDict):
    """What a pool's plan is made from."""

    hours: Annotated[int, "from the first request that is known to now"]
    active_hours: Annotated[int, "hours with requests among them"]
    weeks: Annotated[int, "most samples behind an hour of the week"]
    elsewhere_share: Annotated[
        float, "share of its routes' tokens that providers answered: not in the demand"
    ]


class GrowthView(TypedDict):
    """How demand changes from week to week."""

    weekly_share: Annotated[float, "0.05: 5 % more each week"]
    low_share: Annotated[float, "eight of ten comparisons lie between low and high"]
    high_share: float
    comparisons: Annotated[int, "of days that are whole weeks apart; 0 where it is not measured"]
    source: Literal["measured", "given", "unknown"]


class SpikeView(TypedDict):
    """One hour alone that sets the peak."""

    at: float
    tokens_per_second: float
    without_tokens_per_second: Annotated[float, "the highest without it"]
    without_units: int


class HourView(TypedDict):
    """An hour of the week."""

    hour_of_week: int
    tokens_per_second: Annotated[float, "p95 of the weeks, at the level of the week that is shown"]
    units: int
    nodes: int


class OutlookView(TypedDict):
    """The highest hour of a week to come."""

    weeks: Annotated[int, "from now"]
    at: float
    tokens_per_second: float
    units: int
    nodes: int
    usd_per_hour: Annotated[float | None, "of that hour, at the price of the mix; null: not known"]


class StretchView(TypedDict):
    """Units from one hour of the day to another."""

    days: Days
    begin: int
    end: Annotated[int, "24: midnight"]
    units: int


class AlternativeView(TypedDict):
    """Nodes of another kind at the peak of the week that is shown."""

    instance_type: str
    gpus: Annotated[str, "empty where they are not known"]
    tokens_per_second: Annotated[float, "of one node, full"]
    source: Annotated[
        Literal["present", "units", "bandwidth"],
        "present: what runs; units: as the file counts it; bandwidth: estimated by the GPUs' memory",
    ]
    nodes: int
    usd_per_node_hour: Annotated[float | None, "on demand; null: not known here"]
    usd_per_hour: float | None


class PoolCapacityView(TypedDict):
    """The plan of one pool; where `why_not` says why there is none, lists are empty."""

    pool: str
    why_not: Annotated[str, "empty where there is a plan"]
    replicas: int
    history: HistoryView | None
    growth: GrowthView | None
    tokens_per_second: Annotated[float | None, "of one unit, full"]
    rate_source: Literal["given", "configured", "measured", "unknown"]
    headroom_share: Annotated[float, "of a unit, kept free"]
    units_per_node: int
    usd_per_unit_hour: Annotated[float | None, "as the mix was paid in the period; null: not known"]
    on_demand_usd_per_unit_hour: float | None
    spike: SpikeView | None
    week: list[HourView]
    outlook: list[OutlookView]
    schedule: list[StretchView]
    schedule_unit_hours: Annotated[int | None, "of a week under the schedule"]
    alternatives: list[AlternativeView]
    notes: Annotated[list[str], "what is assumed, and how sure it is"]


class LimitView(TypedDict):
    """A limit, with the hour in which it is too little for the first time."""

    limit: Annotated[str, "the key of the file, or the quota"]
    counted: Literal["units", "nodes", "usd", "vcpus"]
    allows: float
    needs: Annotated[float, "in the highest hour of the week from now"]
    binds_at: Annotated[float | None, "at the growth as it is; null: not within a year"]
    earliest_at: Annotated[float | None, "at the upper end of what is likely"]
    latest_at: Annotated[float | None, "at the lower end"]
    hours_above: Annotated[int, "of the week from now"]
    why: Annotated[str, "at which prices it is counted"]


class CapacityPlanView(TypedDict):
    """The answer of `orchestrator plan-capacity`."""

    schema: Literal["capacity-plan/1"]
    at: float
    since: Annotated[float, "begin of the history that was read"]
    week_from: Annotated[float, "begin of the week that `week`, `schedule` and `alternatives` are of"]
    pools: list[PoolCapacityView]
    limits: Annotated[list[LimitView], "the first to bind first"]
    notes: list[str]
