"""What a provider's model costs: the operator's own table, then a public price list, else unknown.

The list is `genai-prices` (extra `providers`): data in a package, read without a network. It is found by the
provider's URL, so that a model's name at somebody else's address has no price; `listed_as` names another
provider of the list for an address that it does not know. A list price that a count of tokens cannot tell
(by request, by character, by second) is unknown, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from policies.spend import Price, Rates, Tier

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice, TieredPrices

_MINUTE = 60
_READ = ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok")
_ELSEWHERE = frozenset({
    "web_searches_kcount", "storage_searches_kcount", "input_audio_mtok", "output_audio_mtok",
    "cache_audio_read_mtok", "input_audio_hours",
})  # fmt: skip
"""Prices of what `policies.spend_bound` refuses by name: searches and sound."""


@dataclass(frozen=True, slots=True)
class OwnRates:
    """Prices in USD per million tokens, as text so that they are exact; empty: not given."""

    input: str = ""
    output: str = ""
    cached: str = ""
    cache_write: str = ""
    cache_write_1h: str = ""

    def rates(self) -> Rates:
        """As the policies count. Raises ValueError for what is no amount."""
        return Rates.of(
            input=self.input,
            output=self.output or "0",
            cached=self.cached,
            cache_write=self.cache_write,
            cache_write_1h=self.cache_write_1h,
        )


@dataclass(frozen=True, slots=True)
class OwnTier:
    """The prices of requests whose prompt has more than `above` tokens."""

    above: int
    rates: OwnRates


@dataclass(frozen=True, slots=True)
class OwnPrice:
    """What the operator writes of a model. Without `rates.input` only its limits hold: `most_output` and
    `context`, in tokens, 0 for not given.
    """

    rates: OwnRates = OwnRates()
    tiers: tuple[OwnTier, ...] = ()
    most_output: int = 0
    context: int = 0


def price_of(own: OwnPrice | None, *, url: str, model: str, at: float, listed_as: str = "") -> Price | None:
    """The price of a model at an instant (seconds since the epoch), None when it is not known.

    `url` is where the provider is; `listed_as` its name in the list where the URL does not tell. Raises
    ValueError where the own table has what is no amount.
    """
    own = own or OwnPrice()
    if own.rates.input:
        tiers = sorted((Tier(tier.above, tier.rates.rates()) for tier in own.tiers), key=lambda t: t.above)
        return Price(own.rates.rates(), tuple(tiers), own.most_output, own.context)
    found = _listed(url, model, int(at // _MINUTE), listed_as)
    if found is None:
        return None
    return replace(found, most_output=own.most_output, context=own.context or found.context)


@cache
def _listing() -> ModuleType | None:
    """The package, None where it is not installed. Loading it takes half a second."""
    try:
        return import_module("genai_prices")
    except ImportError:
        return None


@lru_cache(256)
def _listed(url: str, model: str, minute: int, listed_as: str) -> Price | None:
    """The price on the list in a minute since the epoch: some change with the hour of the day."""
    if (listing := _listing()) is None:
        return None
    when = datetime.fromtimestamp(minute * _MINUTE, UTC)
    nothing = listing.Usage(input_tokens=0, output_tokens=0)
    where = {"provider_id": listed_as} if listed_as else {"provider_api_url": url}
    try:
        found = listing.calc_price(nothing, model, genai_request_timestamp=when, **where)
    except (LookupError, ValueError):
        return None
    return _read(found.model_price, found.model.context_window or 0)


def _read(listed: ModelPrice, context: int) -> Price | None:
    """A price of the list as ours; None where it is more than a price of tokens of text."""
    known = {key: value for key, value in vars(listed).items() if value is not None}
    if "input_mtok" not in known or known.keys() - _ELSEWHERE - set(_READ):
        return None
    starts = sorted({tier.start for value in known.values() for tier in getattr(value, "tiers", ())})
    return Price(
        _rates(known, 0), tuple(Tier(start, _rates(known, start + 1)) for start in starts), context=context
    )


def _rates(known: dict[str, Decimal | TieredPrices], prompt: int) -> Rates:
    """The list's rates of a prompt of so many tokens: a tier holds for prompts longer than its start."""
    texts = dict.fromkeys(_READ, "")
    for key in _READ:
        value = known.get(key)
        if isinstance(value, Decimal):
            texts[key] = str(value)
        elif value is not None:
            reached = [tier.price for tier in value.tiers if prompt > tier.start]
            texts[key] = str(reached[-1] if reached else value.base)
    return OwnRates(*(texts[key] for key in _READ)).rates()
