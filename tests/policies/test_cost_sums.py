"""Sums of a cost report: each figure by hand, and unknown as soon as one part of it is."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from policies.cost_sums import NAMES, Sums
from policies.spend import PICO

FIGURES = (
    "machines", "people", "providers", "spent", "on_demand", "saved", "saved_share", "usd_per_mtok",
    "usd_per_mtok_people", "api", "api_per_mtok", "utilisation", "usd_per_unit_hour", "break_even",
)  # fmt: skip


def sums(**more: Any) -> Sums:
    """An hour of two ready units, at 3 USD with 1.20 for people, and 2 USD to a provider."""
    base = {
        "machines_usd": 3 * PICO, "people_usd": 12 * PICO // 10, "providers_usd": 2 * PICO,
        "on_demand_usd": 12 * PICO, "ready_ms": 2 * 3_600_000, "capacity": 10 * 10**9,
        "fresh": 1_000_000, "cached": 2_000_000, "written": 500_000, "output": 4_500_000,
        "served": 6_000_000, "api_usd": 9 * PICO,
    }  # fmt: skip
    return Sums(**{**base, **more})


def test_every_figure_by_hand() -> None:
    found = sums()
    assert (found.prompt, found.tokens) == (3_500_000, 8_000_000)
    assert (found.machines, found.people, found.providers) == (3.0, 1.2, 2.0)
    assert found.spent == found.known == 5.0
    assert (found.on_demand, found.saved, found.saved_share) == (12.0, 9.0, 0.75)
    assert found.usd_per_mtok == pytest.approx(5.0 / 8)
    assert found.usd_per_mtok_people == pytest.approx(6.2 / 8)
    assert (found.api, found.api_per_mtok) == (9.0, 1.5)
    assert found.utilisation == pytest.approx(0.6)
    assert found.usd_per_unit_hour == pytest.approx(1.5)
    # 10 M tokens in two unit-hours at 3 USD and 40 % for people: 0.42 USD a million; the API asks 1.50.
    assert found.break_even == pytest.approx(0.42 / 1.5)


@pytest.mark.parametrize(
    ("field", "unknown"),
    [
        (
            "unpriced_ms",
            {
                "machines", "people", "spent", "saved", "saved_share", "usd_per_mtok", "usd_per_mtok_people",
                "usd_per_unit_hour", "break_even",
            },
        ),
        ("unpriced_requests", {"providers", "spent", "usd_per_mtok", "usd_per_mtok_people"}),
        ("unpriced_unit_ms", {"on_demand", "saved", "saved_share"}),
        ("incomparable", {"api", "api_per_mtok", "break_even"}),
        ("unrated_ms", {"utilisation", "break_even"}),
    ],
)  # fmt: skip
def test_what_is_not_known_makes_unknown_what_follows_from_it_and_nothing_else(
    field: str, unknown: set[str]
) -> None:
    found = sums(**{field: 1})
    assert {name for name in FIGURES if getattr(found, name) is None} == unknown
    assert found.known == 5.0


def test_tokens_of_hours_without_a_machine_leave_the_machines_unknown_and_the_utilisation_alone() -> None:
    found = sums(uncounted=1_000_000)
    assert (found.machines, found.people, found.spent) == (None, None, None)
    assert found.utilisation == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "none"),
    [
        ({"fresh": 0, "cached": 0, "written": 0, "output": 0}, ("usd_per_mtok", "usd_per_mtok_people")),
        ({"served": 0}, ("api_per_mtok", "break_even")),
        ({"on_demand_usd": 0}, ("saved_share",)),
        ({"capacity": 0}, ("utilisation", "break_even")),
        ({"ready_ms": 0}, ("usd_per_unit_hour", "break_even")),
        ({"api_usd": 0}, ("break_even",)),  # no utilisation undercuts what costs nothing
    ],
    ids=str,
)
def test_nothing_is_divided_by_none(change: dict[str, int], none: tuple[str, ...]) -> None:
    found = sums(**change)
    assert {name for name in FIGURES if getattr(found, name) is None} == set(none)


def test_more_than_on_demand_is_less_than_nothing_saved() -> None:
    found = sums(on_demand_usd=2 * PICO)
    assert (found.saved, found.saved_share) == (-1.0, -0.5)


def test_without_machines_people_cost_nothing_beside_them() -> None:
    assert sums(machines_usd=0).break_even == 0.0


def test_parts_add_up_field_by_field() -> None:
    assert [field.name for field in fields(Sums)] == list(NAMES)
    one = Sums(**{name: 2**i for i, name in enumerate(NAMES)})
    other = Sums(**{name: 3 * 2**i for i, name in enumerate(NAMES)})
    kept = replace(other)
    one.add(other)
    assert one == Sums(**{name: 4 * 2**i for i, name in enumerate(NAMES)})
    assert other == kept
