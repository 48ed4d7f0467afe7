"""Prices: the own table first, then the list, else unknown; never another's, never zero."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.providers.prices import OwnPrice, OwnRates, OwnTier, price_of
from policies.spend import PICO, Rates, Usage, cost, per_million

genai_prices = pytest.importorskip("genai_prices", reason="the extra `providers` is not installed")

AT = datetime(2026, 11, 30, tzinfo=UTC).timestamp()
ANTHROPIC, OPENAI = "https://api.anthropic.com", "https://api.openai.com/v1"
OWN = OwnPrice(OwnRates(input="3", output="15", cached="0.30", cache_write="3.75"), most_output=64_000)


def test_the_own_table_comes_first() -> None:
    found = price_of(OWN, url=ANTHROPIC, model="claude-opus-4-7", at=AT)
    assert found is not None
    assert found.rates == Rates.of(input="3", output="15", cached="0.30", cache_write="3.75")
    assert found.most_output == 64_000


def test_own_tiers_are_in_order() -> None:
    own = OwnPrice(
        OwnRates(input="1"), tiers=(OwnTier(200, OwnRates(input="4")), OwnTier(100, OwnRates(input="2")))
    )
    found = price_of(own, url="http://127.0.0.1", model="m", at=AT)
    assert found is not None
    assert [found.rates_for(n).input for n in (100, 101, 201)] == [per_million(n) for n in ("1", "2", "4")]


def test_a_table_of_limits_alone_leaves_the_listed_prices() -> None:
    found = price_of(OwnPrice(most_output=100), url=ANTHROPIC, model="claude-opus-4-7", at=AT)
    assert found is not None
    assert (found.rates.input, found.most_output) == (per_million("5"), 100)
    assert found.context == 1_000_000


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("https://llm.example.com/v1", "gpt-5"),
        ("http://127.0.0.1:8080", "claude-opus-4-7"),
        (OPENAI, "no-such-model"),
        (ANTHROPIC, "gpt-5"),
    ],
)
def test_what_is_not_on_the_list_is_unknown(url: str, model: str) -> None:
    assert price_of(None, url=url, model=model, at=AT) is None


def test_a_private_address_may_be_listed_as_another() -> None:
    found = price_of(None, url="https://llm.example.com", model="gpt-5", at=AT, listed_as="openai")
    assert found is not None
    assert found.rates.input == per_million("1.25")
    assert price_of(None, url="https://x", model="gpt-5", at=AT, listed_as="nobody") is None


def test_a_price_that_tokens_do_not_tell_is_unknown() -> None:
    for model in ("sonar-deep-research", "sonar"):  # by request, by citation
        assert price_of(None, url="https://api.perplexity.ai", model=model, at=AT) is None
    assert price_of(None, url=OPENAI, model="whisper-1", at=AT) is None


def test_prices_have_dates() -> None:
    then = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    prompt = 300_000
    old = price_of(None, url=ANTHROPIC, model="claude-sonnet-4-6", at=then)
    new = price_of(None, url=ANTHROPIC, model="claude-sonnet-4-6", at=AT)
    assert old is not None
    assert new is not None
    assert old.rates_for(prompt).input == 2 * new.rates_for(prompt).input


MODELS = [
    (ANTHROPIC, "claude-opus-4-7"), (ANTHROPIC, "claude-sonnet-4-5"), (OPENAI, "gpt-5"), (OPENAI, "gpt-5.4"),
    (OPENAI, "text-embedding-3-small"), ("https://api.deepseek.com", "deepseek-chat"),
    ("https://api.mistral.ai", "mistral-large-latest"), ("https://api.groq.com", "llama-3.3-70b-versatile"),
]  # fmt: skip
counts = st.integers(0, 300_000)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODELS), counts, counts, counts, counts, counts)
def test_a_cost_is_what_the_list_itself_counts(
    where: tuple[str, str], fresh: int, cached: int, write: int, hour: int, output: int
) -> None:
    url, model = where
    price = price_of(None, url=url, model=model, at=AT)
    assert price is not None
    if price.rates.cache_write == price.rates.input:  # the list has no price for writing
        write = hour = 0
    elif price.rates.cache_write_1h == price.rates.cache_write:
        hour = 0
    used = Usage(fresh, cached, write, output, hour)
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=used.prompt,
            cache_read_tokens=cached,
            cache_write_tokens=write + hour,
            cache_write_1h_tokens=hour,
            output_tokens=output,
        ),
        model,
        provider_api_url=url,
        genai_request_timestamp=datetime.fromtimestamp(AT, UTC),
    ).total_price
    assert Decimal(cost(price, used)) / PICO == theirs


def test_every_listed_price_is_read_or_unknown() -> None:
    from genai_prices.data import providers

    read = 0
    for provider in providers:
        for model in provider.models:
            found = price_of(None, url="", model=model.id, at=AT, listed_as=provider.id)
            read += found is not None
    assert read > 1_500


def test_the_list_is_loaded_only_when_asked_for() -> None:
    words = "import cloud.providers.prices, sys; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], env=os.environ, check=False).returncode == 0
