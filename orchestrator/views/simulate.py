"""The JSON of `orchestrator simulate` and `orchestrator trace`, as types; rules: `orchestrator.views.api`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict


class SetZoneView(TypedDict):
    """One zone of a market."""

    zone: str
    region: str
    available_share: Annotated[float, "share of the time in which at least one node can be had"]
    mean_nodes: Annotated[float, "nodes that can be had, mean over time"]
    most_nodes: int
    losses_per_day: Annotated[float, "how often a day the capacity falls to none"]
    dips_per_day: Annotated[float, "how often a day the capacity falls and some is left"]
    spot_price: Annotated[float, "USD per hour, mean over time"]
    lowest_spot_price: float
    highest_spot_price: float
    on_demand_price: float


class SetView(TypedDict):
    """One market on disk."""

    name: str
    days: float
    gap_seconds: Annotated[float, "length of a tick"]
    ticks: int
    start_time: Annotated[str | None, "when the recording began, as the set says it"]
    instance_type: str | None
    notes: Annotated[list[str], "further keys of set.json, such as what was assumed"]
    zones: list[SetZoneView]


class TraceView(TypedDict):
    """The answer of `orchestrator trace show`."""

    schema: Annotated[str, "trace/1"]
    sets: list[SetView]


class ShortfallView(TypedDict):
    """An unbroken time with fewer ready nodes than wanted."""

    begin_s: Annotated[float, "seconds since the begin of what is played"]
    at: Annotated[str, "the same as a date if the market has one, else as a day and a time of day"]
    seconds: float
    most_missing: Annotated[int, "nodes missing at its worst instant"]
    node_hours: Annotated[float, "nodes missing, integrated over time"]
    why: Annotated[str, "what the cloud did to the pool, in words"]


class ResultView(TypedDict):
    """One policy on one market. What the bound does not tell is null."""

    policy: str
    kind: Annotated[
        Literal["config", "config-variant", "baseline", "bound"],
        "config: the pool of the file; config-variant: the same with another mix",
    ]
    driver: Annotated[
        Literal["decisions", "daemon", "solver"],
        "decisions: the decision code on the market; daemon: the whole daemon on virtual time",
    ]
    cost_ratio: Annotated[float, "cost as a share of all on-demand in the cheapest zone"]
    capacity_availability: Annotated[
        float | None, "ready node-seconds up to wanted, as a share of the wanted ones"
    ]
    time_availability: Annotated[
        float | None, "share of the time with at least as many ready nodes as wanted"
    ]
    serving_availability: Annotated[float | None, "as capacity_availability, without nodes that drain"]
    mean_spot_share: Annotated[float, "ready spot node-seconds as a share of all ready ones"]
    preemptions: Annotated[int | None, "spot nodes that the cloud took"]
    spot_launches: int | None
    on_demand_launches: int | None
    worst_shortfall_s: Annotated[float | None, "longest unbroken time with fewer ready nodes than wanted"]
    shortfall_node_hours: Annotated[float | None, "nodes missing, integrated over time"]
    shortfalls: Annotated[int | None, "how often the pool was short"]
    worst_shortfalls: Annotated[list[ShortfallView], "the ten with the most node-hours, worst first"]
    cost_usd: Annotated[float, "every node from launch to end, starting time included"]
    cost_usd_per_hour: float
    on_demand_usd: Annotated[float, "the wanted nodes on demand in the cheapest zone, for the same time"]
    saved_usd: Annotated[float, "on_demand_usd - cost_usd"]
    broken_invariants: Annotated[list[str], "what the checker of the whole daemon found; empty when all held"]
    steps_simulated: int | None
    trace_hash: Annotated[str | None, "hash of everything that happened: equal for equal input, anywhere"]


class MarketView(TypedDict):
    """All policies on one market, the pool of the file first."""

    name: str
    days: Annotated[float, "length of what was played"]
    measured_hours: Annotated[float, "without the first two hours, in which the pool starts"]
    zones: list[str]
    on_demand_price: Annotated[float, "in the cheapest zone, USD per node-hour"]
    best_baseline: Annotated[
        str | None,
        "the cheapest baseline with at least the pool's capacity_availability; null if none was run",
    ]
    results: list[ResultView]
    summary: Annotated[list[str], "what it would have cost and what would have gone wrong, in sentences"]


class MeanView(TypedDict):
    """One policy over all markets: shares are means, money and counts are sums."""

    policy: str
    cost_ratio: float
    capacity_availability: float | None
    lowest_capacity_availability: float | None
    lowest_market: Annotated[str | None, "where that was"]
    time_availability: float | None
    mean_spot_share: float
    preemptions: int | None
    worst_shortfall_s: Annotated[float | None, "the longest over all markets"]
    shortfall_node_hours: float | None
    cost_usd: float
    on_demand_usd: float


class SimulateView(TypedDict):
    """The answer of `orchestrator simulate`."""

    schema: Annotated[str, "simulate/1"]
    config: Annotated[str, "the file"]
    pool: str
    replicas: int
    spot_start_s: Annotated[float, "from launch to ready"]
    on_demand_start_s: float
    standby_start_s: Annotated[float, "from starting a stopped standby to ready"]
    notice_s: Annotated[float, "from a notice to its deadline"]
    seed: int
    markets: list[MarketView]
    mean: Annotated[list[MeanView], "empty with one market"]
    notes: Annotated[list[str], "settings and facts that a replay does not show"]
