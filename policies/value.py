"""Values that are made by the dozen in every turn, and properties that are worked out when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass with slots and keyword-only fields that the type checker holds to be frozen.

    At run time it is not: a frozen class takes four times as long to make an object.
    """
    return dataclass(slots=True, kw_only=True, unsafe_hash=True)(cls)


class lazy(Generic[T]):  # noqa: N801 - a decorator
    """A property that is worked out once: functools.cached_property without a lock, as Python 3.12 has it."""

    def __init__(self, work: Callable[[Any], T]) -> None:
        self._work, self._name, self.__doc__ = work, work.__name__, work.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> T:
        found = owner.__dict__[self._name] = self._work(owner)  # found there from now on
        return found
