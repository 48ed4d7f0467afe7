"""What a plan takes from the books: tokens, prices and kinds of one pool, in the period alone."""

from __future__ import annotations

import pytest

from policies.capacity_past import past_of
from policies.cost_rows import RouteSettings
from policies.model import Market
from tests.support.cost_books import DAY0, baseline, books, machine, used


def test_tokens_are_those_of_the_pool_by_the_hour() -> None:
    rows = [
        used(fresh=700, cached=200, written=50, output=50),
        used(key="other", fresh=10, output=0),
        used(hour=DAY0 + 1, fresh=5, output=0),
        used(backend="pool/embed", fresh=9_999),
        used(backend="provider/claude", fresh=9_999),
        used(hour=DAY0 - 1, fresh=9_999),  # before the period
    ]
    assert past_of(books(usage=rows), "chat").tokens == {DAY0: 1010, DAY0 + 1: 5}


def test_prices_are_those_that_were_paid() -> None:
    rows = [
        machine(usd=1.0),
        machine(usd=5.0, market=Market.ON_DEMAND, instance_type="h", unit_seconds=7200.0),
        machine(usd=9.0, unpriced=1.0),  # not known in full
        machine(usd=9.0, pool="embed"),
        machine(hour=DAY0 - 1, usd=9.0),
    ]
    past = past_of(
        books(machines=rows, baseline=[baseline(usd=8.0), baseline(usd=1.0, unpriced=5.0)]), "chat"
    )
    assert past.mix == pytest.approx(6.0 / 3)  # USD over three unit hours
    assert past.on_demand == pytest.approx(8.0)
    assert past.on_demand_kinds == {"h": pytest.approx(5.0)}


def test_the_kind_that_ran_most_comes_first() -> None:
    rows = [
        machine(instance_type="b"),
        machine(instance_type="a"),
        machine(instance_type="c", unit_seconds=9e3),
    ]
    assert past_of(books(machines=rows), "chat").kinds == ("c", "a", "b")


def test_an_empty_past_knows_no_price() -> None:
    past = past_of(books(), "chat")
    assert (past.tokens, past.mix, past.on_demand, past.kinds, past.elsewhere) == ({}, None, None, (), 0.0)


def test_what_providers_answered_in_its_place_is_told_apart() -> None:
    routes = [
        RouteSettings(name="assistant", pools=("chat",), providers=("claude/m",)),
        RouteSettings(name="other", providers=("claude/m",)),
    ]
    rows = [
        used(fresh=600, output=0),
        used(backend="provider/claude", fresh=200, output=0),
        used(backend="provider/claude", route="other", fresh=9_999),
    ]
    assert past_of(books(usage=rows, routes=routes), "chat").elsewhere == pytest.approx(0.25)
