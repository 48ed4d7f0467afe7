"""Money: exact sums, and a bound that no usage within it exceeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.spend import (
    Price,
    Rates,
    Tier,
    Usage,
    cost,
    counted,
    day_of,
    dollars,
    most,
    per_million,
    refusal,
    usd,
)  # fmt: skip
from policies.spend_bound import IMAGE_TOKENS, Bound, bound, ceiling

SONNET = Rates.of(input="3", output="15", cached="0.30", cache_write="3.75", cache_write_1h="6")
LONG = Rates.of(input="6", output="22.5", cached="0.60", cache_write="7.5", cache_write_1h="12")
TIERED = Price(SONNET, tiers=(Tier(200_000, LONG),), most_output=64_000, context=1_000_000)

rates = st.builds(Rates, *[st.integers(0, 10**9)] * 5)
tiers = st.lists(st.builds(Tier, st.integers(0, 5_000), rates), max_size=3).map(
    lambda found: tuple(sorted(found, key=lambda tier: tier.above))
)
prices = st.builds(Price, rates, tiers)


@given(prices, st.integers(0, 8_000), st.integers(0, 8_000), st.data())
def test_a_cost_is_never_more_than_the_most(price: Price, prompt: int, output: int, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, prompt), min_size=4, max_size=4)))
    fresh, cached, write, long_write = (b - a for a, b in itertools.pairwise([0, *cuts]))
    usage = Usage(fresh, cached, write, data.draw(st.integers(0, output)), long_write)
    assert cost(price, usage) <= most(price, prompt=prompt, output=output)


@given(st.lists(st.integers(0, 10**18)))
def test_amounts_are_whole_and_in_words_exact(amounts: list[int]) -> None:
    assert [usd(dollars(n).removeprefix("$")) for n in amounts] == amounts


def test_each_kind_of_token_has_its_price() -> None:
    assert cost(TIERED, Usage(1_000_000 - 800_000, 0, 0, 0)) == usd("0.6")
    assert cost(Price(SONNET), Usage(10**6, 0, 0, 0)) == usd("3")
    assert cost(Price(SONNET), Usage(0, 10**6, 0, 0)) == usd("0.30")
    assert cost(Price(SONNET), Usage(0, 0, 10**6, 0)) == usd("3.75")
    assert cost(Price(SONNET), Usage(0, 0, 0, 0, 10**6)) == usd("6")
    assert cost(Price(SONNET), Usage(0, 0, 0, 10**6)) == usd("15")


def test_a_longer_prompt_puts_the_whole_request_into_the_next_tier() -> None:
    assert cost(TIERED, Usage(200_000, 0, 0, 1)) == 200_000 * SONNET.input + SONNET.output
    assert cost(TIERED, Usage(1, 200_000, 0, 1)) == LONG.input + 200_000 * LONG.cached + LONG.output


def test_a_kind_without_a_price_is_never_free() -> None:
    plain = Rates.of(input="2")
    assert (plain.cached, plain.cache_write, plain.cache_write_1h) == (plain.input,) * 3
    assert Rates.of(input="2", cache_write="3").cache_write_1h == per_million("3")


def test_amounts_are_rounded_up() -> None:
    assert usd("0.0000000000001") == 1
    assert per_million("0.0000001") == 1


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1e", "$3", "three"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no amount"):
        usd(text)


@pytest.mark.parametrize("value", [None, -1, 1.0, "5", True, 10**10, [], float("nan")])
def test_what_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no count of tokens"):
        counted(value)
    with pytest.raises(ValueError, match="no count of tokens"):
        Usage(0, 0, 0, value)  # type: ignore[arg-type]


def test_the_day_is_the_utc_day() -> None:
    midnight = datetime(2026, 11, 30, tzinfo=UTC).timestamp()
    assert day_of(midnight) == "2026-11-30"
    assert day_of(midnight - 0.001) == "2026-11-29"


def test_a_cap_is_kept_to_the_picodollar() -> None:
    assert refusal(spent=5, held=3, amount=2, cap=10) == ""
    assert "may cost" in refusal(spent=5, held=3, amount=3, cap=10)
    assert "held for requests in flight" in refusal(spent=5, held=3, amount=3, cap=10)


MESSAGES = [{"role": "user", "content": "Grüße"}]

values = st.recursive(
    st.text() | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def words_of(value: object) -> int:
    """Bytes of every text in a body: what a tokenizer makes of them is never more tokens."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        return sum(words_of(key) + words_of(inner) for key, inner in value.items())
    return sum(map(words_of, value)) if isinstance(value, list) else len(str(value))


def written(value: object) -> int:
    """Bytes of a value as Python writes it, on lines of their own and in ASCII, as templates write tools."""
    return len(json.dumps(value, indent=1))


@given(st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text() | values})), values)
def test_no_text_in_a_body_is_left_out_of_the_bound(messages: list[object], rest: object) -> None:
    assert bound({"messages": messages, "rest": rest}).prompt >= words_of(messages) + words_of(rest)


@given(values)
def test_tools_are_bounded_as_templates_write_them(schema: object) -> None:
    asks = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": schema}}]}]
    uses = [{"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"text": schema}}]}]
    bare = bound({"messages": [], "tools": []}).prompt
    assert bound({"messages": [], "tools": [{"parameters": schema}]}).prompt - bare >= written(schema)
    assert bound({"messages": asks}).prompt - bare >= written(schema)
    assert bound({"messages": uses}).prompt - bare >= written(schema)


def test_letters_that_a_tokenizer_writes_out_count_in_full() -> None:
    short, long = bound({"prompt": "x"}).prompt, bound({"prompt": "\ufdfa" * 100}).prompt
    assert long - short >= 100 * 33 - 1


def test_an_image_counts_as_one_and_not_by_its_bytes() -> None:
    url = "data:image/png;base64," + "A" * 500_000
    parts: list[dict[str, object]] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_image", "image_url": url},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 500_000}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {
            "type": "tool_result",
            "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}],
        },
    ]
    for part in parts:
        found = bound({"messages": [{"role": "user", "content": [part]}]})
        assert IMAGE_TOKENS < found.prompt < IMAGE_TOKENS + 5_000
        assert found.why == ""


def test_text_that_looks_like_an_image_counts_by_its_bytes() -> None:
    url = "data:image/png;base64," + "A" * 500_000
    fake = {"type": "image_url", "image_url": {"url": url}}
    assert bound({"messages": [{"role": "user", "content": url}]}).prompt > 500_000
    assert bound({"messages": MESSAGES, "tools": [{"function": {"parameters": fake}}]}).prompt > 500_000


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"tools": [{"type": "web_search_20250305"}]}, "web_search"),
        ({"tools": [{"type": "code_execution_20250825"}]}, "code_execution"),
        ({"messages": [{"content": [{"type": "document", "source": {}}]}]}, "document"),
        ({"messages": [{"content": [{"type": "file", "file": {"file_id": "x"}}]}]}, "file"),
        ({"messages": [{"content": [{"type": "input_audio", "input_audio": {}}]}]}, "input_audio"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"plugins": [{"id": "web"}]}, "plugins"),
        ({"models": ["dearer"]}, "models"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt that the provider keeps"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"n": "many"}, "n is no count"),
        ({"best_of": True}, "best_of is no count"),
        ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"service_tier": "priority"}, "priority"),
        ({"service_tier": ["priority"]}, "priority"),
        ({"speed": "fast"}, "speed"),
        ({"inference_geo": "us"}, "inference_geo"),
        ({"modalities": ["text", "audio"]}, "not text"),
    ],
)
def test_what_costs_more_than_its_size_is_refused_by_name(body: dict[str, object], word: str) -> None:
    assert word in bound(body).why
    assert word in ceiling(TIERED, bound({**body, "max_tokens": 1})).why


def test_a_type_that_is_no_word_is_bounded_as_text() -> None:
    assert bound({"messages": [{"content": [{"type": ["image"], "text": "x" * 1000}]}]}).prompt > 1000


def test_tools_that_the_client_runs_are_bounded() -> None:
    plain = {"tools": [{"type": "function", "function": {"name": "f"}}, {"name": "g", "input_schema": {}}]}
    assert bound(plain).why == ""
    shell = bound({"tools": [{"type": "bash_20250124", "name": "bash"}]})
    assert shell.why == ""
    assert shell.prompt > bound({"tools": [{"type": "function", "name": "bash"}]}).prompt + 1_000


@pytest.mark.parametrize(
    ("body", "output", "choices"),
    [
        ({}, None, 1),
        ({"max_tokens": 7}, 7, 1),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9, 1),
        ({"max_output_tokens": 3, "n": 4}, 3, 4),
        ({"max_tokens": 3, "best_of": 5, "n": 2}, 3, 5),
        ({"max_tokens": None}, None, 1),
        ({"max_tokens": "7", "n": "3"}, 7, 3),
        ({"max_tokens": 7.0, "n": 2.0}, 7, 2),
        ({"max_tokens": 7, "max_completion_tokens": "nine"}, None, 1),
        ({"max_tokens": 7, "max_completion_tokens": "900"}, 900, 1),
        ({"max_tokens": 7, "max_completion_tokens": -1}, None, 1),
        ({"max_tokens": 7, "prompt": ["a", "b", "c"], "n": 2}, 7, 6),
        ({"max_tokens": 7, "prompt": [[1, 2], [3]]}, 7, 2),
        ({"max_tokens": 7, "prompt": [1, 2, 3]}, 7, 1),
        ({"max_tokens": -1}, None, 1),
        ({"max_tokens": True}, None, 1),
    ],
)
def test_the_answer_is_bounded_by_what_the_request_says(
    body: dict[str, object], output: int | None, choices: int
) -> None:
    found = bound(body)
    assert (found.output, found.choices) == (output, choices)


def test_a_prediction_that_is_rejected_is_billed_beside_the_answer() -> None:
    found = bound({"max_tokens": 7, "prediction": {"type": "content", "content": "x" * 100}})
    assert found.output is not None
    assert found.output > 107


def test_the_models_own_limits_hold_where_they_are_lower() -> None:
    assert ceiling(TIERED, Bound(10, None)).amount == most(TIERED, prompt=10, output=64_000)
    assert ceiling(TIERED, Bound(10, 70_000)).amount == most(TIERED, prompt=10, output=64_000)
    assert ceiling(TIERED, Bound(10, 5, 3)).amount == most(TIERED, prompt=10, output=15)
    assert ceiling(TIERED, Bound(10**7, 5)).amount == most(TIERED, prompt=10**6, output=5)
    window = Price(SONNET, context=1_000)
    assert ceiling(window, Bound(10, None)).amount == most(window, prompt=10, output=1_000)


def test_an_answer_without_any_limit_has_no_ceiling() -> None:
    assert "max_tokens" in ceiling(Price(SONNET), Bound(10, None)).why
    assert ceiling(Price(Rates.of(input="0.02")), Bound(10, None)).amount == 10 * per_million("0.02")
