"""Adapters (LoRA) of a pool as its gateway sees them: how engines are told which to use, and how much each is
used.

Clients ask for an adapter by its name. Engines have names of their own, which tell revisions apart (vLLM), or
numbers (llama.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.gateway.asked import Asked
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.entry import Wish
from orchestrator.gateway.targets import TargetTable
from policies.held import Held

_COLD_FOR: Final = 10.0
"""Seconds after a request that no target could take in which an adapter counts as cold: a request that found
another backend waits for nobody, and the next may not be so lucky."""

_NONE: Final = ({"id": 0, "scale": 0.0},)
"""No adapter in llama.cpp: those that are not listed have the scale zero, and an empty list says nothing, so
that all of them are applied (ran: b11434)."""


def addressed(asked: Asked, held: Held | None, gate: PoolGate) -> Asked:
    """A request in the words of the target that gets it: `held` is its adapter there, None for the model."""
    if held is not None and held.number is None:
        return asked.named(held.served_as)
    if not gate.numbered:
        return asked
    if held is None:
        return asked.having({"lora": _NONE})
    return asked.named(gate.served).having({"lora": ({"id": held.number, "scale": 1.0},)})


@dataclass(slots=True)
class Use:
    """What was asked of one adapter since this process began."""

    asked: int = 0  # requests
    tokens: int = 0  # of their prompts and answers
    cold: int = 0  # requests that found it on no target
    lacking: int = 0  # requests that a target refused since it did not know it
    cold_at: float | None = None  # when a request last found it on no target


class Adapters:
    """The adapters of one pool that targets have or do not have; no others are counted."""

    def __init__(self, names: Iterable[str], table: TargetTable, now: Callable[[], float]) -> None:
        self._used = {name: Use() for name in names}
        self._table = table
        self._now = now

    def __contains__(self, name: str) -> bool:
        return name in self._used

    def of(self, name: str) -> Use | None:
        """The use of an adapter; None for what is none of these."""
        return self._used.get(name)

    def missed(self, name: str, *, first: bool) -> None:
        """A request asks for an adapter that no target could take it for; `first`: it has just come."""
        use = self._used[name]
        use.cold_at = self._now()
        use.cold += first

    def cold(self, name: str) -> bool:
        """Whether requests ask for it, and no target could take them."""
        at = self._used[name].cold_at
        return at is not None and self._now() - at < _COLD_FOR and self._table.down(Wish(adapter=name))

    def holders(self, name: str) -> int:
        """Targets that hold it and get new requests."""
        return sum(not entry.draining and entry.holds(name) is not None for entry in self._table)

    def describe(self) -> dict[str, Any]:
        """What GET /v1/state tells of them, by name."""
        return {
            name: {"asked": use.asked, "tokens": use.tokens, "cold": self.cold(name)}
            for name, use in self._used.items()
        }

    def __iter__(self) -> Iterator[tuple[str, Use]]:
        return iter(self._used.items())
