"""Values that are made by the dozen in every turn, and properties that are worked out when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from dataclasses import replace as replace  # the same to the type checker, which knows the fields
else:

    def replace(one, /, **changes):
        """`dataclasses.replace`, several times as fast for a `value`."""
        quick = getattr(one, "__replace__", None)
        return dataclasses.replace(one, **changes) if quick is None else quick(**changes)


T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass with slots and keyword-only fields that the type checker holds to be frozen.

    At run time it is not: a frozen class takes four times as long to make an object.
    """
    made = dataclass(slots=True, kw_only=True, unsafe_hash=True, repr=False)(cls)
    made.__replace__ = _replacer(made)  # type: ignore[attr-defined]
    if "__repr__" not in cls.__dict__:
        made.__repr__ = _shown  # type: ignore[method-assign]
    return made


def _shown(self: Any) -> str:
    """As a dataclass shows itself, which compiles that anew for each class: half of what it costs."""
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _replacer(cls: type[Any]) -> Callable[..., Any]:
    """What `copy.replace` of Python 3.13 looks for: each field by name, as dataclasses do __init__."""
    lines = ["def __replace__(self, /, **changes):", "  made = new(cls)"]
    lines += [f"  made.{f.name} = self.{f.name}" for f in fields(cls)]
    lines += ["  for name in changes:", "    setattr(made, name, changes[name])"]
    lines += ["  made.__post_init__()"] if hasattr(cls, "__post_init__") else []
    found: dict[str, Any] = {"new": object.__new__, "cls": cls}
    exec("\n".join([*lines, "  return made"]), found)  # noqa: S102 - names of fields, nothing from outside
    replacer: Callable[..., Any] = found["__replace__"]
    return replacer


class lazy(Generic[T]):  # noqa: N801 - a decorator
    """A property that is worked out once: functools.cached_property without a lock, as Python 3.12 has it."""

    def __init__(self, work: Callable[[Any], T]) -> None:
        self._work, self._name, self.__doc__ = work, work.__name__, work.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> T:
        found = owner.__dict__[self._name] = self._work(owner)  # found there from now on
        return found
