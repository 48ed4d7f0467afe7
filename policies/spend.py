"""What a request to a paid provider costs, what it may cost at most, and whether a day's cap still allows it.

What it decides: whether a request may be sent, given what the day has cost, what is held for requests in
flight and the most that this one may cost. Amounts are whole picodollars (1e-12 USD), so that sums are exact:
a price of $3 per million tokens is 3,000,000 a token.
Why: a provider bills by the tokens it counts, which are known after the answer; who checks the cap by what
was billed goes over it by every request in flight. So the most is held before a request is sent, and made
good by its usage after.
Never: an amount is rounded down; a price that is not known counts as zero; `cost` exceeds `most` for a usage
within the bound; a usage that is no count of tokens is taken for one.

Example:
    >>> price = Price(Rates.of(input="3", output="15", cached="0.30"))
    >>> dollars(cost(price, Usage(fresh=1_000_000, cached=0, cache_write=0, output=10)))
    '$3.00015'
    >>> most(price, prompt=100, output=10) == 100 * 3_000_000 + 10 * 15_000_000
    True
    >>> refusal(spent=usd("9.99"), held=usd("0"), amount=usd("0.02"), cap=usd("10"))
    'of $10 a day $9.99 is spent; this request may cost $0.02'
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Self

PICO = 10**12
"""Picodollars in a dollar."""

_MTOK = 10**6
_MOST_TOKENS = 10**9
"""More tokens than any request has: what says so is wrong."""


def usd(text: str) -> int:
    """Picodollars of an amount in USD, rounded up. Raises ValueError for what is no amount.

    >>> usd("0.000000000001"), usd("2")
    (1, 2000000000000)
    """
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(f"{text!r} is no amount in dollars") from None
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{text!r} is no amount in dollars")
    return int((amount * PICO).to_integral_value(ROUND_CEILING))


def per_million(text: str) -> int:
    """Picodollars a token of a price in USD per million tokens, rounded up. Raises ValueError."""
    return -(-usd(text) // _MTOK)


def dollars(amount: int) -> str:
    """An amount in words, exact: `$0.0123`."""
    whole, rest = divmod(abs(amount), PICO)
    places = f"{rest:012d}".rstrip("0")
    if len(places) == 1:
        places += "0"
    return f"{'-' if amount < 0 else ''}${whole}{'.' if places else ''}{places}"


def cents(amount: int) -> str:
    """An amount in words, to the cent.

    >>> cents(1_234_567_000_000_000), cents(0)
    ('$1,234.57', '$0.00')
    """
    return f"${amount / PICO:,.2f}"


def counted(value: object) -> int:
    """A count of tokens as a provider tells it. Raises ValueError for anything that is none."""
    if type(value) is int and 0 <= value <= _MOST_TOKENS:  # a bool is none
        return value
    raise ValueError(f"{value!r:.40} is no count of tokens")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a provider counted: the prompt's, each in one of four kinds, and the answer's.

    `cached` were read from the provider's cache, `cache_write` written to it, `cache_write_1h` written for an
    hour (Anthropic's `ttl`), `fresh` are the rest; `output` counts thinking, too. Raises ValueError where one
    is no count.
    """

    fresh: int
    cached: int
    cache_write: int
    output: int
    cache_write_1h: int = 0

    def __post_init__(self) -> None:
        counted(self.fresh)
        counted(self.cached)
        counted(self.cache_write)
        counted(self.output)
        counted(self.cache_write_1h)

    @property
    def prompt(self) -> int:
        """All tokens of the prompt."""
        return self.fresh + self.cached + self.cache_write + self.cache_write_1h


@dataclass(frozen=True, slots=True)
class Rates:
    """Picodollars a token, by kind."""

    input: int
    output: int
    cached: int
    cache_write: int
    cache_write_1h: int

    @classmethod
    def of(
        cls,
        *,
        input: str,
        output: str = "0",
        cached: str = "",
        cache_write: str = "",
        cache_write_1h: str = "",
    ) -> Self:
        """From USD per million tokens. A kind without a price costs what the kind it is one of does:
        `cache_write_1h` a `cache_write`, these and `cached` an `input`. Raises ValueError.
        """
        fresh, write = per_million(input), cache_write or input
        return cls(
            input=fresh,
            output=per_million(output),
            cached=per_million(cached or input),
            cache_write=per_million(write),
            cache_write_1h=per_million(cache_write_1h or write),
        )

    @property
    def dearest(self) -> int:
        """The most that a token of the prompt may cost."""
        return max(self.input, self.cached, self.cache_write, self.cache_write_1h)


@dataclass(frozen=True, slots=True)
class Tier:
    """The rates of all tokens of a request whose prompt has more than `above` tokens."""

    above: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs. `tiers` by growing `above`. `most_output`: tokens that an answer has at most;
    `context`: tokens that a prompt has at most (the provider refuses more). 0: not known.
    """

    rates: Rates
    tiers: tuple[Tier, ...] = ()
    most_output: int = 0
    context: int = 0

    def rates_for(self, prompt: int) -> Rates:
        """The rates of a request whose prompt has so many tokens."""
        rates = self.rates
        for tier in self.tiers:
            if prompt > tier.above:
                rates = tier.rates
        return rates


def cost(price: Price, usage: Usage) -> int:
    """What the usage costs, exactly."""
    rates = price.rates_for(usage.prompt)
    return (
        usage.fresh * rates.input
        + usage.cached * rates.cached
        + usage.cache_write * rates.cache_write
        + usage.cache_write_1h * rates.cache_write_1h
        + usage.output * rates.output
    )


def most(price: Price, *, prompt: int, output: int) -> int:
    """The most that a request of at most so many tokens may cost: each at the dearest rate within reach."""
    reached = [price.rates, *(tier.rates for tier in price.tiers if prompt > tier.above)]
    return max(prompt * rates.dearest + output * rates.output for rates in reached)


def day_of(seconds: float) -> str:
    """The UTC day of an instant (seconds since the epoch), as `2026-11-30`: caps begin anew with it."""
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def refusal(*, spent: int, held: int, amount: int, cap: int) -> str:
    """Why a request that may cost `amount` is not sent under the cap of a day; empty when it may be.

    `spent`: what the day has cost; `held`: what is kept for requests whose cost is not known yet.
    """
    if spent + held + amount <= cap:
        return ""
    kept = f" and {dollars(held)} held for requests in flight" if held else ""
    return f"of {dollars(cap)} a day {dollars(spent)} is spent{kept}; this request may cost {dollars(amount)}"
