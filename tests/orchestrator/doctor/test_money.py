"""The spend cap against the prices of today."""

from __future__ import annotations

import pytest

from orchestrator.doctor import money
from orchestrator.doctor.findings import State
from policies.bill import Prices
from policies.model import Limits, Pool

PRICES = Prices(on_demand=3.0, spot=1.0, dearest=4.0, dearest_spot=1.5)


def pool(cap: float | None) -> Pool:
    """Seven on spot and three on demand: 9 for the floor, 16 usually, 48 at most, 58.50 with spot taken."""
    return Pool(name="p", replicas=10, limits=Limits(spend_per_hour=cap))


@pytest.mark.parametrize(
    ("cap", "state", "words"),
    [
        (8.99, State.FAIL, "less than the on-demand floor of 3 nodes costs, $9.00"),
        (9.0, State.WARN, "less than the 10 nodes cost when all is well, $16.00"),
        (15.99, State.WARN, "less than the 10 nodes cost"),
        (16.0, State.OK, "the cap is $16.00"),
        (100.0, State.OK, "the cap is $100.00"),
        (None, State.OK, "unlimited"),
    ],
)
def test_a_cap_is_held_against_what_it_must_cover(cap: float | None, state: State, words: str) -> None:
    (found,) = money.cap(pool(cap), PRICES, "")
    assert found.state is state
    assert words in found.text
    assert "usually about $16.00 an hour, and at most $48.00" in found.text
    assert ('"58.50"' in found.advice) == (state in (State.FAIL, State.WARN))


def test_without_prices_there_is_no_judgement() -> None:
    (unread,) = money.cap(pool(1.0), PRICES, "no on-demand price of x")
    assert (unread.state, unread.text) == (State.SKIPPED, "no on-demand price of x")
    (none,) = money.cap(pool(1.0), Prices(), "")
    assert none.state is State.SKIPPED


def test_spot_of_no_known_price_condemns_no_cap() -> None:
    (found,) = money.cap(pool(10.0), Prices(on_demand=3.0, dearest=3.0), "")
    assert found.state is State.OK
