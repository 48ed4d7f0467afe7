"""Values: made quickly, changed by copies."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest

from policies.model import Market
from policies.value import lazy, replace, value, values
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_pools import quick_pool


@value
class Box:
    """What follows from `width` is worked out anew in a copy."""

    width: int
    name: str = ""
    double: int = dataclasses.field(init=False, compare=False)

    def __post_init__(self) -> None:
        self.double = 2 * self.width  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class Plain:
    width: int


def test_a_copy_differs_in_what_is_named_and_the_original_stays() -> None:
    box = Box(width=1, name="a")
    other = replace(box, width=3)
    assert (other.width, other.name, other.double) == (3, "a", 6)
    assert (box.width, box.double) == (1, 2)
    assert other == dataclasses.replace(box, width=3) == Box(width=3, name="a")


def test_a_field_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(AttributeError, match="height"):
        replace(Box(width=1), height=2)  # type: ignore[call-arg]


def test_a_plain_dataclass_is_copied_as_ever() -> None:
    assert replace(Plain(1), width=2) == Plain(2)


def test_a_lazy_property_is_worked_out_once() -> None:
    worked = []

    class Owner:
        @lazy
        def answer(self) -> int:
            worked.append(1)
            return 42

    owner = Owner()
    assert (owner.answer, owner.answer, len(worked)) == (42, 42, 1)


def test_a_value_shows_its_fields_as_a_dataclass_does() -> None:
    @value
    class Lid:
        box: Box
        hidden: int = dataclasses.field(default=1, repr=False)

    assert repr(Lid(box=Box(width=2, name="a"))) == (
        "test_a_value_shows_its_fields_as_a_dataclass_does.<locals>.Lid(box=Box(width=2, name='a', double=4))"
    )


def test_a_value_may_show_itself_in_its_own_way() -> None:
    @value
    class Secret:
        key: str

        def __repr__(self) -> str:
            return "Secret"

    assert repr(Secret(key="k")) == "Secret"


@value
class Single:
    only: int


def test_a_value_of_one_field_is_copied_too() -> None:
    assert replace(Single(only=1), only=2) == Single(only=2)
    assert replace(Single(only=1)) == Single(only=1)


def _refuse_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every value refuse what is not part of making it."""
    making = {"__init__", "__post_init__", "copy"}

    def guard(one: Any, name: str, given: object) -> None:
        if sys._getframe(1).f_code.co_name not in making:
            raise dataclasses.FrozenInstanceError(f"{type(one).__name__}.{name} is changed")
        object.__setattr__(one, name, given)

    for kind in values():
        monkeypatch.setattr(kind, "__setattr__", guard, raising=False)


def test_no_value_is_changed_while_a_pool_loses_nodes_and_heals(monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse_changes(monkeypatch)
    box = Box(width=1)
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"Box\.width"):
        box.width = 2  # type: ignore[misc]
    toy = CheckedCloud(quick_pool(6))
    toy.run(60)
    for node in toy.alive(Market.SPOT)[:2]:
        toy.reclaim(node, 120.0)
    toy.run(5)
    toy.restart()
    toy.run(200)
    assert len(toy.alive()) == 6
