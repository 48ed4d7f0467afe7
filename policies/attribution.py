"""Who bears what of a pool's cost, and where its tokens were served.

What it decides: what the machines of a pool cost on a day (UTC) is borne by those who used the pool on that
day, each by what its tokens weigh: a token of the prompt, one out of the cache and one of the answer weigh as
the API that the pool is held against prices them, or `USUAL` where its prices are not known. A day on which
nobody asked is borne by nobody, and is a row of its own. What was served is spread over zones and markets by
the time for which their units were ready.
Why: machines are paid by the hour and used by the token, so that a rule is needed. An answer's token takes
several times the work of a prompt's, and an API's prices say how many. A whole day is the least that is
shared: by the hour, one question at night would bear a whole hour of the pool.
Never: a part is lost or counted twice: parts are whole numbers and add up to the whole.

Example:
    >>> split(100, [1, 1, 1])
    [33, 33, 34]
    >>> USUAL.of(UsageHour(hour=0, backend="pool/chat", fresh=100, cached=100, output=10))
    1500
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from policies.cost_rows import UsageHour
from policies.cost_sums import Sums
from policies.spend import Price, Rates
from policies.value import value

Group = tuple[str | None, ...]

MACHINE: Final = (
    "machines_usd", "people_usd", "on_demand_usd", "node_ms", "ready_ms", "unpriced_ms", "unpriced_unit_ms",
    "capacity", "unrated_ms",
)  # fmt: skip
USAGE: Final = (
    "requests", "estimated", "fresh", "cached", "written", "output", "served", "uncounted", "api_usd",
    "incomparable",
)  # fmt: skip
"""The sums that come with machines, and with use."""


@value
class Weights:
    """What a token of each kind weighs."""

    fresh: int
    cached: int
    written: int
    output: int

    def of(self, used: UsageHour) -> int:
        """The weight of all tokens of a row."""
        return (
            used.fresh * self.fresh
            + used.cached * self.cached
            + used.written * self.written
            + used.output * self.output
        )


USUAL: Final = Weights(fresh=10, cached=1, written=10, output=40)
"""Where no prices are known: an answer's token weighs as four of a prompt's, one of the cache as a tenth."""


def weights_at(rates: Rates) -> Weights:
    """What a token of a pool weighs is what it costs at an API, in picodollars.

    A token that an engine kept for later weighs as one that is read anew: only an API asks more to keep it.
    """
    return Weights(fresh=rates.input, cached=rates.cached, written=rates.input, output=rates.output)


def weights_of(price: Price | None) -> Weights:
    """The weights by an API's prices of short prompts, if they are known and anything costs anything."""
    return weights_at(price.rates) if price is not None and price.rates.input else USUAL


def split(whole: int, weights: Sequence[int]) -> list[int]:
    """A whole in parts by weight, which add up to it. Equal parts where nothing weighs anything.

    Less than nothing, as an account that is corrected may come to, weighs nothing.
    """
    weights = [max(0, weight) for weight in weights]
    weights = weights if any(weights) else [1] * len(weights)
    total, upto, given, parts = sum(weights), 0, 0, []
    for weight in weights:
        upto += weight
        parts.append(whole * upto // total - given)
        given += parts[-1]
    return parts


@value
class Part:
    """Sums of some machines, or of some use, of a pool on a day, and what they weigh when they are shared."""

    group: Group
    sums: Sums
    weight: int


def crossed(machines: Sequence[Part], used: Sequence[Part]) -> Iterable[tuple[Group, Group, Sums]]:
    """Every pair of machines and use, with its share of both.

    Machines' sums go over the use by its weight, those of use over the machines by theirs.
    """
    by_use = [_shares(part.sums, MACHINE, [u.weight for u in used]) for part in machines]
    by_machine = [_shares(part.sums, USAGE, [m.weight for m in machines]) for part in used]
    for m, machine in enumerate(machines):
        for u, use in enumerate(used):
            yield machine.group, use.group, Sums(**by_use[m][u], **by_machine[u][m])


def _shares(sums: Sums, names: Sequence[str], weights: Sequence[int]) -> list[dict[str, int]]:
    """The named sums in parts by weight."""
    columns = [split(getattr(sums, name), weights) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
