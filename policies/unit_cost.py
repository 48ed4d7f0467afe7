"""What a million tokens cost on machines of one's own, and when an API would be cheaper.

What it decides: nothing; it counts. A machine costs the same whether it is busy or not, so that what a token
costs goes by the utilisation: tokens served over what the machine could have served in the time it was paid
for. People's work is a share on top of the machines (0.3 to 0.5 is usual).
Why: "self-hosting is cheaper" is an assumption until price, rate and utilisation stand beside what an API
would ask for the same tokens.
Never: nothing served counts as free (its cost is infinite); a machine that an API undercuts even when it is
full counts as one that pays (its break-even is above 1).

Words: `price` in USD/h and `rate` in tokens/s are of the same machines; a rate counts the tokens of prompts
and of answers together, at saturation. `api` is USD per million tokens, blended as the traffic is.

Examples: a GPU at $2 an hour; 70B on an H100 at $3 against $3 an API asks, then on spot; 8B on an A100 that
is full, half full and a quarter full; two machines at $2.50 against an API in tokens a month:
    >>> [round(usd_per_mtok(price=2, rate=1111, utilisation=u), 2) for u in (1.0, 0.1)]
    [0.5, 5.0]
    >>> [round(break_even(price=3, rate=500, api=3, people=p), 2) for p in (0.3, 0.5)]
    [0.72, 0.83]
    >>> [round(break_even(price=1.50, rate=500, api=3, people=p), 2) for p in (0.3, 0.5)]
    [0.36, 0.42]
    >>> [round(usd_per_mtok(price=1.20, rate=3000, utilisation=u), 2) for u in (1.0, 0.5, 0.37)]
    [0.11, 0.22, 0.3]
    >>> round(break_even_tokens(price=2 * 2.50, api=3, people=0.4) / 1e9, 1)
    1.7
"""

from __future__ import annotations

import math
from collections.abc import Mapping

HOURS_OF_MONTH = 730.0
"""Hours of a mean month: a twelfth of 365 days."""

_SECONDS = 3600.0
_MTOK = 1e6


def usd_per_mtok(*, price: float, rate: float, utilisation: float = 1.0, people: float = 0.0) -> float:
    """USD per million tokens; infinite where nothing is served.

    >>> usd_per_mtok(price=2, rate=1000, utilisation=0)
    inf
    """
    served = rate * utilisation * _SECONDS / _MTOK
    return price * (1.0 + people) / served if served > 0 else math.inf


def break_even(*, price: float, rate: float, api: float, people: float = 0.0) -> float:
    """The utilisation above which the machines are cheaper than an API at `api`; above 1: never.

    It is where `usd_per_mtok` equals `api`. An API that costs nothing is never undercut.

    >>> break_even(price=2, rate=1000, api=0)
    inf
    """
    return usd_per_mtok(price=price, rate=rate, people=people) / api if api > 0 else math.inf


def break_even_tokens(
    *, price: float, api: float, people: float = 0.0, hours: float = HOURS_OF_MONTH
) -> float:
    """Tokens in so many hours above which machines at `price` (all of them) are cheaper than the API.

    Whether they can serve so many is another question: `break_even`.
    """
    return price * (1.0 + people) * hours / api * _MTOK if api > 0 else math.inf


def blended(prices: Mapping[str, float], tokens: Mapping[str, float]) -> float | None:
    """USD per million tokens of a traffic, by kind of token (fresh, cached, output, ...).

    None where there are no tokens; a kind with tokens and without a price raises KeyError.

    >>> blended({"fresh": 3.0, "output": 15.0}, {"fresh": 3, "output": 1})
    6.0
    """
    whole = sum(tokens.values())
    return sum(prices[kind] * count for kind, count in tokens.items() if count) / whole if whole else None
