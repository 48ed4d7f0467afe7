"""The [provider.NAME] tables: APIs outside that answer for money, and what their models cost."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field

from cloud.providers.prices import OwnPrice, OwnRates, OwnTier, price_of
from orchestrator.config.types import (
    UNLIMITED,
    Dollars,
    DollarsOrUnlimited,
    Duration,
    FilePath,
    Listed,
    Section,
    duration_key,
)
from policies.spend import Price

ANTHROPIC: Final = "anthropic"
HOME: Final = {ANTHROPIC: "https://api.anthropic.com", "openai": "https://api.openai.com"}
"""The API of the maker of each wire format, which is asked where no url is written."""


class _Rates(Section):
    """US dollars per million tokens, by kind."""

    input: Dollars | None = Field(
        default=None, description="Prompt tokens. Default: the price list.", examples=["3"]
    )
    output: Dollars | None = Field(
        default=None, description="Tokens of the answer, thinking included. Default: 0.", examples=["15"]
    )
    cached: Dollars | None = Field(
        default=None,
        description="Prompt tokens that the provider had in its cache. Default: as `input`.",
        examples=["0.30"],
    )
    cache_write: Dollars | None = Field(
        default=None,
        description="Prompt tokens that the provider puts into its cache. Default: as `input`.",
        examples=["3.75"],
    )
    cache_write_1h: Dollars | None = Field(
        default=None, description="The same for an hour. Default: as `cache_write`.", examples=["6"]
    )

    def rates(self) -> OwnRates:
        """As the price list takes them."""
        kinds = (self.input, self.output, self.cached, self.cache_write, self.cache_write_1h)
        return OwnRates(*("" if amount is None else str(amount) for amount in kinds))


class TierTable(_Rates):
    """What all tokens of a request cost whose prompt is longer than `above`."""

    above: int = Field(ge=1, description="Tokens of the prompt above which it holds.", examples=[200_000])
    input: Dollars = Field(description="Prompt tokens.", examples=["6"])


class PriceTable(_Rates):
    """What one model of a provider costs, in US dollars per million tokens, and how much it may answer. With
    `input` it takes the place of the price list; without, the list's prices hold beside its limits."""

    tier: Listed[TierTable] = Field(default=(), description="Prices of long prompts.")
    most_output: int = Field(
        default=0,
        ge=0,
        description="Most tokens of one answer: what is reserved for a request that names no limit. 0: not "
        "known.",
        examples=[64_000],
    )
    context: int = Field(
        default=0, ge=0, description="Most tokens of a prompt. 0: as the price list says.", examples=[200_000]
    )

    def own(self) -> OwnPrice:
        """As the price list takes it."""
        tiers = tuple(OwnTier(tier.above, tier.rates()) for tier in self.tier)
        return OwnPrice(self.rates(), tiers, self.most_output, self.context)


class ProviderConfig(Section):
    """An API outside that serves models for money: the fallback of a route, or all of it."""

    kind: Literal["anthropic", "openai"] = Field(
        description="The provider's wire format. openai: any server that speaks OpenAI's API. anthropic: "
        "requests of OpenAI's form are translated; those of Anthropic's form go there as they are.",
        examples=["anthropic"],
    )
    url: str = Field(
        default="",
        description="Base address, with or without /v1. Default: the API of the maker of `kind`.",
        examples=["https://llm.internal/v1"],
    )
    api_key_file: FilePath | None = Field(
        default=None,
        description="File with the key that the gateway shows to the provider.",
        examples=["{credentials}/claude-key"],
    )
    api_version: str = Field(
        default="2023-06-01",
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="Version of Anthropic's API, for kind = anthropic.",
        examples=["2023-06-01"],
    )
    sampling: bool = Field(
        default=False,
        description="Whether temperature, top_p and top_k are sent, for kind = anthropic: its newer models "
        "refuse them. false: they are left out.",
    )
    usd_per_day: DollarsOrUnlimited = Field(
        default=None,
        description="Most US dollars of a day (UTC), or unlimited. Must be written, but for an address on "
        "this machine. The most that a request may cost is reserved before it is sent, so that the cap "
        "is never passed; what it did cost is booked after.",
        examples=["50", UNLIMITED],
        json_schema_extra={"default": UNLIMITED},
    )
    in_flight: int = Field(default=64, ge=1, description="Requests that may be open at the provider at once.")
    connect_timeout: Duration = duration_key(3.0, "How long opening a connection may take, TLS included.")
    first_token_timeout: Duration = duration_key(
        30.0, "Longest wait for the first token of a streaming request."
    )
    answer_timeout: Duration = duration_key(600.0, "Longest life of one request.")
    retries: int = Field(
        default=2,
        ge=0,
        description="How often a request is sent again after 429, 5xx or 529, as Retry-After says.",
    )
    ca_file: FilePath | None = Field(
        default=None,
        description="File with certificates (PEM) that are trusted beside the system's.",
    )
    allow_http: bool = Field(
        default=False,
        description="Whether an http:// address that is not on this machine may be used: prompts, answers "
        "and the key cross the network in the clear.",
    )
    listed_as: str = Field(
        default="",
        description="The provider's name in the price list of genai-prices, where its address does not tell: "
        "that of a proxy in front of it.",
        examples=["anthropic"],
    )
    price: dict[str, PriceTable] = Field(
        default={},
        description="Prices, one table for each model: [provider.NAME.price.MODEL]. Quote a name with a dot.",
    )

    @property
    def address(self) -> str:
        """The base address that is asked, without a slash at its end."""
        return (self.url or HOME[self.kind]).rstrip("/")

    @property
    def local(self) -> bool:
        """Whether it is on this machine, where nobody is paid and nobody else listens."""
        host = urlsplit(self.address).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")

    def price_of(self, model: str, *, at: float) -> Price | None:
        """What a model costs at an instant (seconds since the epoch), None where it is not known."""
        own = self.price[model].own() if model in self.price else None
        return price_of(own, url=self.address, model=model, at=at, listed_as=self.listed_as)

    def price_source(self, model: str, *, at: float) -> str:
        """Where the price of a model is from, empty where it is not known."""
        if model in self.price and self.price[model].input is not None:
            return "the file's own price"
        known = self.price_of(model, at=at) is not None
        return f"genai-prices {version('genai-prices')}" if known else ""
