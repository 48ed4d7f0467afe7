"""What a plan of capacity says of itself: why there is none, and how far it can be believed."""

from __future__ import annotations

from typing import Final

from orchestrator.words import instant, percent, plural
from policies.capacity_past import Past
from policies.demand import DAY, GROWTH_OVER, LEAST_FOR_GROWTH, Demand, TooLittle
from policies.economics import HOUR

_ALL: Final = 20  # samples of which the 95th percentile is not the highest
_SOME: Final = 0.01  # share of tokens that went elsewhere that is worth a word
_QUIET: Final = 0.05  # share of hours without a request that is worth a word

ESTIMATE: Final = (
    "what other GPUs do is estimated by the bandwidth of their memory: run one before you count on many"
)


def why_not(found: Demand | TooLittle, now: float, rate: float | None) -> str:
    """Why there is no plan, and what it takes; empty where there is one."""
    if isinstance(found, Demand):
        if rate is not None:
            return ""
        return "the rate of a unit is not known: write cost.tokens_per_second into the pool, or give --rate"
    if not found.hours:
        return "no hour that is over knows of a request to it (--since says how far back is looked)"
    return (
        f"there are {found.hours / DAY:.1f} days of history, and the pattern of a week needs "
        f"{found.needs // DAY}: ask again from {instant(now + (found.needs - found.hours) * HOUR)} on"
    )


def notes(found: Demand, past: Past, *, given: bool, source: str) -> list[str]:
    """What is assumed, and how sure it is."""
    said = [_growth(found, given), _samples(found)]
    if source == "measured":
        said.append(
            "what a unit does is the most that an hour showed: if none was full, it does more and fewer are "
            "needed; write cost.tokens_per_second into the pool, or give --rate"
        )
    if past.elsewhere > _SOME:
        said.append(
            f"providers answered {percent(past.elsewhere)} of the tokens of its routes, which are not in its "
            "demand"
        )
    quiet = found.hours - found.active
    if quiet > _QUIET * found.hours:
        said.append(
            f"in {quiet} of {found.hours} hours nobody asked, or no gateway ran: growth passes over them"
        )
    return [text for text in said if text]


def _growth(found: Demand, given: bool) -> str:
    growth = found.growth
    if given:
        return "growth is as it was given"
    if not growth.pairs:
        days = found.hours / DAY
        if found.hours < LEAST_FOR_GROWTH:
            return (
                f"growth needs {LEAST_FOR_GROWTH // DAY} days and there are {days:.1f}: none is taken, and "
                "dates are those of today's demand; --growth says another"
            )
        return "no two days a week apart had requests at the same hours: no growth is taken"
    if growth.capped:
        return (
            f"demand more than {'doubles' if growth.weekly > 1 else 'halves'} each week, which is a "
            "beginning or an end and no rate: it is held to that; --growth says another"
        )
    sure = f"{plural(growth.pairs, 'comparison')} of days that are weeks apart"
    if found.hours < GROWTH_OVER - DAY:
        return f"growth rests on {sure}, of {found.hours / DAY:.1f} days: one slow week looks like a trend"
    return "growth of four weeks is carried on for a year: the farther a date, the less is known of it"


def _samples(found: Demand) -> str:
    if found.weeks >= _ALL:
        return ""
    return (
        f"an hour of the week was seen {plural(found.weeks, 'time')}: its p95 is the highest of them; what "
        "happens within an hour is the headroom's"
    )
