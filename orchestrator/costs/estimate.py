"""What a traffic costs at APIs and would cost on machines, before anything runs: `orchestrator cost --usage`.

The traffic is a provider's export, or a pace such as "50M/day" with a ratio of prompts to answers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from orchestrator.costs.exports import Export, Used
from orchestrator.views.cost import ApiCostView, CostEstimateView, MachineCostView
from policies.estimate import Machine, Traffic, Weighed, weigh
from policies.spend import PICO, Price
from policies.unit_cost import HOURS_OF_MONTH

AS_USED: Final = "as it was used"
"""The name of an export's own models together."""

_PACE = re.compile(
    r"(\d+(?:\.\d+)?)\s*([kMGB]?)\s*(?:tokens?)?\s*(?:/|an?\s+|per\s+)\s*(hour|day|week|month)"
)
_SIZES: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_HOURS: Final = {"hour": 1.0, "day": 24.0, "week": 168.0, "month": HOURS_OF_MONTH}
_MTOK: Final = 1e6
_MOST: Final = 1e18  # tokens a month
_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Tokens a month by kind, and how they came."""

    fresh: float
    output: float
    cached: float = 0.0
    written: float = 0.0
    written_1h: float = 0.0
    peak: float = 1.0

    @property
    def prompt(self) -> float:
        """All tokens of prompts."""
        return self.fresh + self.cached + self.written + self.written_1h

    @property
    def task(self) -> str:
        """What a pool has to do for it: a traffic without answers is one of embeddings."""
        return "generate" if self.output else "embed"

    @property
    def traffic(self) -> Traffic:
        """As the policy takes it."""
        return Traffic(tokens=self.prompt + self.output, peak=self.peak)

    def usd(self, price: Price) -> float:
        """What an API asks a month. Prices of long prompts do not count: how long each was is not known."""
        rates = price.rates
        pico = self.fresh * rates.input + self.cached * rates.cached + self.output * rates.output
        return (pico + self.written * rates.cache_write + self.written_1h * rates.cache_write_1h) / PICO


def of_pace(text: str, *, ratio: float, cached: float) -> Asked:
    """The traffic of a text such as "50M/day": `ratio` tokens of prompts to one of answers (infinite for
    embeddings), a share `cached` of the prompts out of a cache. Raises ValueError.

    >>> round(of_pace("50M/day", ratio=4.0, cached=0.25).output / 1e6)
    304
    """
    match = _PACE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text!r} is no file, and no pace: write tokens and a time, such as "50M/day"')
    number, size, time = match.groups()
    tokens = float(number) * _SIZES[size] / _HOURS[time] * HOURS_OF_MONTH
    if not 0 < tokens <= _MOST:
        raise ValueError(f"{text!r} is no traffic that anybody has")
    prompt = tokens if ratio == float("inf") else tokens * ratio / (ratio + 1.0)
    return Asked(fresh=prompt * (1.0 - cached), cached=prompt * cached, output=tokens - prompt)


def of_export(export: Export) -> Asked:
    """A month at the pace of an export."""
    months = (export.end - export.begin) / _HOUR / HOURS_OF_MONTH

    def of(name: str) -> float:
        return float(sum(getattr(row, name) for row in export.used)) / months

    return Asked(
        fresh=of("fresh"),
        cached=of("cached"),
        written=of("written"),
        written_1h=of("written_1h"),
        output=of("output"),
        peak=_peak(export),
    )


def _peak(export: Export) -> float:
    """The pace of the busiest bucket over the mean one."""
    tokens: defaultdict[tuple[float, float], int] = defaultdict(int)
    for row in export.used:
        tokens[row.begin.timestamp(), row.end.timestamp()] += row.tokens
    paces = [count / (end - begin) for (begin, end), count in tokens.items()]
    mean = sum(tokens.values()) / (export.end - export.begin).total_seconds()
    return max(1.0, max(paces) / mean)


def used_models(export: Export) -> list[str]:
    """The models of an export with tokens, as `provider/model`."""
    return sorted({f"{export.provider}/{row.model}" for row in export.used if row.tokens})


def as_used(export: Export, prices: Mapping[str, Price | None]) -> float | None:
    """What a month of an export's own models costs, None where a price is not known."""
    months = (export.end - export.begin) / _HOUR / HOURS_OF_MONTH
    total = 0.0
    for row in export.used:
        price = prices.get(f"{export.provider}/{row.model}")
        if row.tokens and price is None:
            return None
        total += 0.0 if price is None else _asked(row).usd(price)
    return total / months


def _asked(row: Used) -> Asked:
    return Asked(
        fresh=row.fresh, cached=row.cached, written=row.written, written_1h=row.written_1h, output=row.output
    )


def view_of(
    *,
    source: str,
    asked: Asked,
    export: Export | None,
    apis: Sequence[str],
    prices: Mapping[str, Price | None],
    machines: Sequence[Machine],
) -> CostEstimateView:
    """The document. Machines are held against what is used now, else against the first of the APIs."""
    bills = [(AS_USED, as_used(export, prices))] if export is not None else []
    known = ((name, prices.get(name)) for name in apis)
    bills += [(name, None if price is None else asked.usd(price)) for name, price in known]
    tokens = asked.traffic.tokens
    api = bills[0][1] if bills else None
    per_mtok = None if api is None else api / tokens * _MTOK
    return {
        "schema": "cost-estimate/1",
        "source": source,
        "days": None if export is None else (export.end - export.begin) / timedelta(days=1),
        "tokens_per_month": tokens,
        "tokens_in_per_month": asked.prompt,
        "tokens_out_per_month": asked.output,
        "cached_share": asked.cached / asked.prompt if asked.prompt else 0.0,
        "peak": asked.peak,
        "apis": [_api(name, usd, tokens) for name, usd in bills],
        "machines": [_machine(weigh(asked.traffic, machine, api=per_mtok)) for machine in machines],
        "notes": list(_notes(export, prices, apis, machines)),
    }


def _api(name: str, usd: float | None, tokens: float) -> ApiCostView:
    return {
        "api": name,
        "usd_per_month": usd,
        "usd_per_mtok": None if usd is None else usd / tokens * _MTOK,
    }


def _machine(found: Weighed) -> MachineCostView:
    return {
        "machine": found.machine.name,
        "usd_per_hour": found.machine.price,
        "tokens_per_second": found.machine.rate,
        "people": found.machine.people,
        "units": found.units,
        "usd_per_month": found.usd_per_month,
        "usd_per_mtok": found.usd_per_mtok,
        "utilisation": found.utilisation,
        "pays_from_tokens_per_month": found.pays_from,
        "break_even_utilisation": found.break_even,
        "needs_tokens_per_second": found.needs_rate,
        "cheaper": found.cheaper,
        "advice": found.advice,
    }


def _notes(
    export: Export | None,
    prices: Mapping[str, Price | None],
    apis: Sequence[str],
    machines: Sequence[Machine],
) -> Iterator[str]:
    """What is missing or assumed."""
    named = [*(used_models(export) if export is not None else ()), *apis]
    for name in sorted({name for name in named if prices.get(name) is None}):
        yield f"what {name} asks is not known" if name.partition("/")[2] else "the export names no models"
    if export is None and not apis:
        yield "no API is named: name one with --api PROVIDER/MODEL, or a configuration that has one"
    if export is not None:
        yield from _export_notes(export)
    if any(tier for name in named if (price := prices.get(name)) for tier in price.tiers):
        yield "long prompts cost more at some of these APIs; all are counted as short, as no length is given"
    if not machines:
        yield (
            "no machine is named: name one with --machine NAME=USD/TOKENS_PER_SECOND, or a file with a pool "
            "that does the same (chat or embeddings)"
        )
    if any(machine.price is None for machine in machines):
        yield (
            "a pool's price is what its file states for all of its regions and types (on_demand_prices), on "
            "AWS alone; give another as --machine NAME=USD/TOKENS_PER_SECOND"
        )


def _export_notes(export: Export) -> Iterator[str]:
    if export.partial:
        yield "the export says that more pages follow: it is a part of what was used"
    batch = sum(row.tokens for row in export.used if row.batch)
    if batch:
        share = batch / sum(row.tokens for row in export.used)
        yield f"{share:.0%} of the tokens were batches, which cost less than what is counted here"
    if max(row.end - row.begin for row in export.used) > _HOUR:
        yield (
            "the export is by the day, which hides the busiest hour: give --peak if it is busier than the "
            "busiest day"
        )
