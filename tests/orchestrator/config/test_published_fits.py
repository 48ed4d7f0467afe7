"""The fit check against what others have published."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.orchestrator.config.published import Fact, facts

FACTS = facts()


@pytest.mark.parametrize(
    "fact", FACTS, ids=lambda fact: f"{fact.model} {fact.gpus.count} {' '.join(fact.args)}"
)
def test_the_check_agrees_or_says_that_it_is_close(fact: Fact) -> None:
    verdict = fact.verdict
    assert verdict.fits == fact.fits or verdict.tight, verdict.text


def test_it_is_right_nine_times_of_ten() -> None:
    right = sum(fact.verdict.fits == fact.fits for fact in FACTS)
    assert right >= 0.9 * len(FACTS)


def test_saying_always_the_same_would_be_right_half_of_the_time() -> None:
    """So agreement means something: facts of both kinds, and pairs that differ in one thing alone."""
    fits = Counter(fact.fits for fact in FACTS)
    assert min(fits.values()) >= 15
    decided = Counter(fact.decides for fact in FACTS)
    assert decided["context"] >= 6
    assert {"adapters", "parallelism", "quantisation", "weights"} <= set(decided)


def test_every_fact_says_where_it_stands() -> None:
    for fact in FACTS:
        assert fact.source.startswith("https://"), fact
        assert fact.says, fact
        assert fact.on.year >= 2023, fact
