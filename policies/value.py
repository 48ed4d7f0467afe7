"""Values that are made by the dozen in every turn, and properties that are worked out when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from dataclasses import replace as replace  # the same to the type checker, which knows the fields
else:

    def replace(one, /, **changes):
        """`dataclasses.replace`, several times as fast for a `value`."""
        copy = _copiers.get(type(one))
        return dataclasses.replace(one, **changes) if copy is None else copy(one, changes)


T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass with slots and keyword-only fields that nobody changes once it is made.

    The type checker enforces that. Python does not: a frozen dataclass, or a frozen class of attrs, takes
    about twice as long to make. tests/policies/test_value.py plays a pool with values that refuse changes.
    """
    made = dataclass(slots=True, kw_only=True, unsafe_hash=True, repr=False)(cls)
    if "__repr__" not in cls.__dict__:
        made.__repr__ = _shown  # type: ignore[method-assign]
    _copiers[made] = _first_copy
    return made


def values() -> tuple[type[Any], ...]:
    """Every class that is a `value`."""
    return tuple(_copiers)


def _shown(self: Any) -> str:
    """As a dataclass shows itself, which compiles that anew for each class: half of what it costs."""
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


Copy = Callable[[Any, dict[str, Any]], Any]

_copiers: dict[type[Any], Copy] = {}


def _first_copy(one: Any, changes: dict[str, Any]) -> Any:
    """Make what copies values of this class, and copy. Most classes are never copied."""
    _copiers[type(one)] = copy = _copier(type(one))
    return copy(one, changes)


def _copier(cls: type[Any]) -> Copy:
    """What copies values of a class: all slots at once, then what differs."""
    names = [each.name for each in fields(cls)]
    # A second name, so that what is read is a tuple also where there is only one field.
    read = attrgetter(*names, names[0])
    fill: Callable[..., None] = vars(make_dataclass(cls.__name__, names))["__init__"]
    follow = getattr(cls, "__post_init__", None)
    new = object.__new__

    def copy(one: Any, changes: dict[str, Any]) -> Any:
        made = new(cls)
        fill(made, *read(one)[:-1])
        for name in changes:
            setattr(made, name, changes[name])
        if follow is not None:
            follow(made)
        return made

    return copy


class lazy(Generic[T]):  # noqa: N801 - a decorator
    """A property that is worked out once: functools.cached_property without a lock, as Python 3.12 has it."""

    def __init__(self, work: Callable[[Any], T]) -> None:
        self._work, self._name, self.__doc__ = work, work.__name__, work.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> T:
        found = owner.__dict__[self._name] = self._work(owner)  # found there from now on
        return found
