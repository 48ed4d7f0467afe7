"""The JSON of `orchestrator cost` and GET /v1/cost, as types; rules: `orchestrator.views.api`.

Money is USD and not rounded. What is not known is null, never 0; sums leave it out and say so.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

Dimension = Literal["pool", "day", "zone", "market", "model", "adapter", "key", "route"]


class CostLineView(TypedDict):
    """Sums of a group, or of everything."""

    group: Annotated[
        dict[str, str | None],
        "the value of each dimension asked for; null where it does not apply: nobody asked that day, or it "
        "is a provider's. `pool` is `provider/NAME` there, and `market` is `api`",
    ]
    spent_usd: Annotated[float | None, "machines and providers; null when the price of a part is not known"]
    known_usd: Annotated[float, "the same without what has no known price"]
    usd_per_hour: Annotated[float | None, "spent_usd over the hours of the period"]
    machines_usd: Annotated[float | None, "nodes of pools, starting time included"]
    providers_usd: Annotated[float | None, "paid to APIs outside"]
    people_usd: Annotated[float | None, "the share of people's work on top of the machines"]
    on_demand_usd: Annotated[
        float | None, "what the wanted units would have cost on-demand; null when that price is not known"
    ]
    saved_usd: Annotated[float | None, "on_demand_usd - machines_usd"]
    saved_share: Annotated[float | None, "saved_usd as a share of on_demand_usd; negative where it cost more"]
    node_hours: Annotated[float, "hours that nodes were paid for"]
    unpriced_node_hours: Annotated[float, "those of them whose price is not known"]
    requests: Annotated[int | None, "null: the usage file could not be read; so with all figures of tokens"]
    estimated_requests: Annotated[int | None, "requests whose tokens are estimated: their engine tells none"]
    unpriced_requests: Annotated[int, "requests to providers whose price is not known"]
    tokens_fresh: Annotated[int | None, "prompt tokens that were read anew"]
    tokens_cached: Annotated[int | None, "prompt tokens that came from a prefix cache"]
    tokens_written: Annotated[int | None, "prompt tokens that were written to a provider's cache"]
    tokens_in: Annotated[int | None, "all prompt tokens"]
    tokens_out: Annotated[int | None, "tokens of answers"]
    utilisation: Annotated[
        float | None,
        "tokens that the pool served over what its ready units could have served; null: no rate is known, or "
        "several pools, whose tokens do not compare",
    ]
    usd_per_mtok: Annotated[
        float | None, "USD per million tokens, prompts and answers; null where none was served"
    ]
    usd_per_mtok_people: Annotated[float | None, "the same with people's work"]
    break_even_utilisation: Annotated[
        float | None, "utilisation above which the pool is cheaper than the API; above 1: never"
    ]
    api_usd: Annotated[
        float | None, "what the API would have cost for the tokens that pools served; null: no known price"
    ]
    api_usd_per_mtok: Annotated[float | None, "the same for a million of these tokens"]


class PoolCostView(TypedDict):
    """A pool held against the API that it could be replaced by."""

    pool: str
    compare: Annotated[str | None, "the API as provider/model; null where there is none"]
    people: Annotated[float, "share of people's work on top of the machines"]
    tokens_per_second: Annotated[float | None, "of one unit, saturated; null: not written and not measured"]
    rate_source: Annotated[
        Literal["configured", "measured", "unknown"],
        "measured: the most of any hour, so utilisation is at most this",
    ]
    usd_per_unit_hour: Annotated[float | None, "what a ready unit cost an hour in the period"]
    line: CostLineView
    cheaper: Annotated[
        Literal["pool", "api", "unknown"],
        "which of both is cheaper for the period's traffic, people's work included",
    ]
    advice: Annotated[str, "the same as one sentence, with the figures"]


class RouteCostView(TypedDict):
    """A route that providers alone serve, held against a pool that could."""

    route: str
    task: str
    providers: Annotated[list[str], "as provider/model"]
    line: CostLineView
    tokens_per_month: Annotated[float, "at the pace of the period"]
    offer: Annotated[
        str | None, "the pool that would pay soonest, by name; null where none has a known price"
    ]
    pays_from_tokens_per_month: Annotated[
        float | None, "traffic above which one unit of it is cheaper, people's work included"
    ]
    pays_from_utilisation: Annotated[float | None, "the same as its utilisation; above 1: it never pays"]
    advice: str


class ForecastView(TypedDict):
    """What the calendar month (UTC) will have cost, machines and providers."""

    month: Annotated[str, "such as 2026-11"]
    so_far_usd: Annotated[float, "counted since the month began, or since counting began"]
    counted_since: Annotated[float, "the begin of that"]
    expected_usd: Annotated[float | None, "null with less than an hour of data"]
    low_usd: Annotated[
        float | None, "19 of 20 months like it end above; null with less than three whole days"
    ]
    high_usd: Annotated[
        float | None, "19 of 20 months like it end below; null with less than three whole days"
    ]
    hours: Annotated[int, "hours that the pace is taken from"]
    text: Annotated[str, "the same as one sentence"]


class CostView(TypedDict):
    """The answer of GET /v1/cost and of `orchestrator cost`."""

    schema: Literal["cost/1"]
    since: Annotated[float, "begin of the period, a whole hour"]
    until: Annotated[float, "its end, a whole hour; the present one is in as far as it has come"]
    by: Annotated[list[Dimension], "the dimensions of rows"]
    rows: Annotated[list[CostLineView], "sorted by their groups; their sums are those of total"]
    total: CostLineView
    pools: list[PoolCostView]
    routes: Annotated[list[RouteCostView], "routes that providers alone serve"]
    forecast: ForecastView
    notes: Annotated[list[str], "what is missing or assumed in these figures"]


class ApiCostView(TypedDict):
    """What an API asks for a traffic."""

    api: Annotated[str, "provider/model; `as it was used` for the models of an export together"]
    usd_per_month: Annotated[float | None, "null where a price is not known"]
    usd_per_mtok: Annotated[float | None, "USD per million tokens of this traffic"]


class MachineCostView(TypedDict):
    """Machines of one kind that would serve the traffic instead, held against the first API."""

    machine: str
    usd_per_hour: Annotated[float | None, "of one unit"]
    tokens_per_second: Annotated[float | None, "of one unit, saturated"]
    people: Annotated[float, "share of people's work on top of the machines"]
    units: Annotated[int | None, "that take the busiest hour"]
    usd_per_month: Annotated[float | None, "of all of them, people's work included"]
    usd_per_mtok: float | None
    utilisation: Annotated[float | None, "mean of the month"]
    pays_from_tokens_per_month: Annotated[
        float | None, "traffic above which one unit is cheaper; null: never"
    ]
    break_even_utilisation: float | None
    needs_tokens_per_second: Annotated[
        float | None, "what a unit must take to be cheaper for this traffic, where its rate is not known"
    ]
    cheaper: Literal["pool", "api", "unknown"]
    advice: str


class CostEstimateView(TypedDict):
    """The answer of `orchestrator cost --usage`: what a traffic costs at an API, and what on machines."""

    schema: Literal["cost-estimate/1"]
    source: Annotated[str, "the file, or the pace as it was given"]
    days: Annotated[float | None, "length of the export; null for a pace"]
    tokens_per_month: float
    tokens_in_per_month: Annotated[float, "of prompts"]
    tokens_out_per_month: Annotated[float, "of answers"]
    cached_share: Annotated[float, "share of the prompts' tokens that comes out of a cache"]
    peak: Annotated[float, "tokens of the busiest hour over those of the mean one"]
    apis: list[ApiCostView]
    machines: list[MachineCostView]
    notes: list[str]
