"""What may still be added in a turn: each limit, each refusal in its words, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from policies.grant import Share
from policies.limits import Budget, no_room, within_cap
from policies.model import Limits, Pool


def budget(pool: Pool, **more: Any) -> Budget:
    return Budget(pool, **{"living": 0, "launched_last_minute": 0, "spend": 0.0, **more})


def share_of(nodes: int | None = None, *, dollars: bool = False) -> Share:
    return Share(nodes=nodes, dollars=dollars, drains=9)


def capped(cap: float | None = 10.0, *, share: Share | None = None, **limits: Any) -> Pool:
    return Pool(name="p", replicas=4, limits=Limits(spend_per_hour=cap, surge=9, **limits), share=share)


@pytest.mark.parametrize(
    ("cap", "spend", "within"),
    [
        (None, 1e12, True),
        (3.3, 1.1 + 1.1 + 1.1, True),
        (3.3, 3.301, False),
        (0.0, 0.0, True),
        (0.0, 0.1, False),
    ],
)
def test_a_cap_holds_to_a_hair_and_none_holds_nothing(cap: float | None, spend: float, within: bool) -> None:
    assert within_cap(capped(cap), spend) is within


def test_the_room_ends_where_all_live_that_may() -> None:
    pool = Pool(name="p", replicas=4, limits=Limits(surge=1))
    assert no_room(pool, 4) == ""
    assert no_room(pool, 5) == "5 nodes live, and wanted + standby + surge is 5"


@pytest.mark.parametrize(("nodes", "full"), [(1, False), (2, True), (3, True)])
def test_a_share_of_a_budget_counts_machines(nodes: int, full: bool) -> None:
    """Whatever units they serve, and however many units may live."""
    found = budget(capped(None, share=share_of(nodes=2)), living=1, nodes=nodes)
    assert found.full is full
    assert found.refuses(None) == (f"{nodes} nodes live, and the share of the budget is 2" if full else "")


def test_a_share_of_dollars_alone_counts_no_machines() -> None:
    assert not budget(capped(share=share_of(dollars=True)), nodes=99).full


def test_what_is_taken_is_counted_as_units_machines_launches_and_dollars() -> None:
    found = budget(capped(share=share_of(nodes=3), launches_per_minute=2), nodes=1, living=1)
    found.take(4.0, units=4)
    assert found.living == 5
    assert (found.refuses(6.0), found.full) == ("", False)
    assert "leaves 6.00, this node costs 6.10" in found.refuses(6.1)
    found.take(1.0)
    assert found.full  # three machines
    assert found.living == 6
    other = budget(capped(launches_per_minute=2))
    for _ in range(2):
        assert other.refuses(0.1) == ""
        other.take(0.1)
    assert other.refuses(0.1) == "2 launches in the last minute, the limit is 2"
    assert other.refuses_cost(0.1) == ""  # a standby that starts is no launch


def test_a_node_that_is_put_back_is_no_launch_and_costs_nothing_more() -> None:
    found = budget(capped(1.0, share=share_of(nodes=9), launches_per_minute=1))
    found.take_node(3)
    assert found.living == 3
    assert found.refuses(1.0) == ""


@pytest.mark.parametrize(
    ("share", "name"),
    [(None, "spend cap"), (share_of(nodes=9), "spend cap"), (share_of(dollars=True), "share of the budget")],
)
def test_what_holds_the_money_back_has_its_name(share: Share | None, name: str) -> None:
    pool = capped(share=share)
    assert budget(pool, spend=9.0).refuses_cost(2.0) == (
        f"the {name} of 10.00 USD/h leaves 1.00, this node costs 2.00"
    )
    assert budget(pool, spend=9.0).refuses_cost(1.0) == "", "to the last cent"
    assert budget(pool).refuses_cost(None) == (
        f"the {name} of 10.00 USD/h needs the price of this node, which is not known"
    )
    assert budget(pool, unpriced=2).refuses_cost(1.0) == (
        f"the {name} of 10.00 USD/h needs the prices of 2 more nodes"
    )


def test_without_a_cap_no_price_has_to_be_known() -> None:
    found = budget(capped(None), unpriced=3)
    assert found.refuses(None) == ""
    assert found.affords(None)


def test_a_launch_without_a_known_price_keeps_the_next_one_until_it_is_known() -> None:
    found = budget(capped())
    found.take(None)
    assert "needs the prices of 1 more nodes" in found.refuses_cost(1.0)
    assert not found.affords(1.0)


@pytest.mark.parametrize(
    ("spend", "price", "words"),
    [
        (0.0, 7.0, ""),
        (0.0, 8.0, "leaves 10.00, this node costs 8.00 and 3.00 is for a spot node"),
        (8.0, 2.0, "leaves 2.00, this node costs 2.00 and 3.00 is for a spot node"),
        (8.0, 2.5, "leaves 2.00, this node costs 2.50"),
    ],
)
def test_what_is_kept_for_the_way_back_to_spot_is_said_where_it_decides(
    spend: float, price: float, words: str
) -> None:
    found = budget(capped(), spend=spend).refuses(price, leaving=3.0)
    assert found == (words and f"the spend cap of 10.00 USD/h {words}")
