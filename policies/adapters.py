"""Which node should hold which adapters.

What it decides: for each node that can take some, the names of those that it should hold.
Why: where all fit, all nodes hold all, and any node can answer any request. Where they do not, a request for
one that no node holds waits until it is loaded, so as many different ones as fit are held, the most used
ones. One that is so much used that it would fill more than half of a node's share of the requests is held by
more than one node, so that they share its requests and none is alone in holding it. What a node holds stays
there unless something else is worth more: a request that waits, or twice the use.
Never: a node should hold more than it has room for; a node that has what it should is told otherwise while
what is used stays the same. Which of several is chosen never depends on the order of a mapping.

Use is in requests a minute.

Example: two nodes have room for one of three adapters; the one in use that no node holds is loaded, in place
of the one that is used least:
    >>> from policies.held import AdapterUse
    >>> use = {"a": AdapterUse(asked=9.0), "b": AdapterUse(asked=1.0), "c": AdapterUse(asked=4.0)}
    >>> found = assign(("a", "b", "c"), use, {"i-1": frozenset("a"), "i-2": frozenset("b")}, slots=1)
    >>> {node: sorted(held) for node, held in found.items()}
    {'i-1': ['a'], 'i-2': ['c']}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set

from policies.held import AdapterUse

_WORTH_IT = 2.0
"""So many times as much used as what makes way for it: each move costs a load, and counts of use waver."""

_ALONE = 4.0
"""So many times its use the only node of an adapter is worth: without it every request waits for a load."""

_GROWS = 1.25
"""So many times the use for which it needs one more node an adapter has before it gets that: counts waver."""

_SHARE_OF_A_NODE = 0.5
"""Part of a node's even share of the requests that one adapter may bring to it before another node helps."""

_UNUSED = AdapterUse()


def assign(
    wanted: Sequence[str],
    use: Mapping[str, AdapterUse],
    has: Mapping[str, Set[str]],
    *,
    slots: int | None,
    serving: Set[str] = frozenset(),
) -> dict[str, frozenset[str]]:
    """What each node should hold. `has`: what each holds or loads now. `slots`: how many a node holds.

    `serving`: nodes that get requests now. What a request waits for is loaded on one of them, if any does.
    """
    if slots is None or len(wanted) <= slots:
        return {node: frozenset(wanted) for node in sorted(has)}
    board = _Board(wanted, use, has, slots)
    board.trim()
    board.serve_waiting(serving & has.keys() or has.keys())
    board.fill()
    board.improve()
    return {node: frozenset(held) for node, held in board.held.items()}


class _Board:
    """Nodes and what they should hold, while it is worked out."""

    def __init__(
        self, wanted: Sequence[str], use: Mapping[str, AdapterUse], has: Mapping[str, Set[str]], slots: int
    ) -> None:
        self.slots, self._order = slots, {name: place for place, name in enumerate(wanted)}
        self._use = {name: use.get(name, _UNUSED) for name in wanted}
        self.held = {node: {name for name in has[node] if name in self._order} for node in sorted(has)}
        self._copies = dict.fromkeys(wanted, 0)
        for held in self.held.values():
            for name in held:
                self._copies[name] += 1
        total = sum(use.asked for use in self._use.values())
        share = _SHARE_OF_A_NODE * total / max(1, len(self.held))
        self._least_nodes = {
            name: self._nodes_for(use.asked / _GROWS, share) for name, use in self._use.items()
        }
        self._needs = {name: self._nodes_for(use.asked, share) for name, use in self._use.items()}

    def _nodes_for(self, asked: float, share: float) -> int:
        """On how many nodes none of them gets more than `share`."""
        return min(len(self.held), max(1, math.ceil(asked / share - 1e-9)) if share > 0.0 else 1)

    def trim(self) -> None:
        """Nodes hold no more than there is room for, and let go of what is worth least."""
        for node, held in self.held.items():
            while len(held) > self.slots:
                self._drop(node, self._least(node))

    def serve_waiting(self, serving: Set[str]) -> None:
        """What a request waits for, and no node has that serves, is loaded on one of those."""
        for name in self._by_worth(n for n, use in self._use.items() if use.waiting):
            if any(name in self.held[node] for node in serving):
                continue
            nodes = [n for n in serving if not self._full(n) or not self._waits(self._least(n))]
            if nodes:
                self._put(name, min(nodes, key=self._cost))

    def fill(self) -> None:
        """Room that is left is for what no node has, then for more of what is used most."""
        for name in self._by_worth(n for n, copies in self._copies.items() if not copies):
            free = [n for n in self.held if not self._full(n)]
            if not free:
                return
            self._put(name, min(free, key=self._cost))
        for node in self.held:
            others = self._by_worth(n for n in self._order if n not in self.held[node])
            for name in others[: self.slots - len(self.held[node])]:
                self._put(name, node)

    def improve(self) -> None:
        """What has too few nodes takes the place of what is worth much less: first what no node has."""
        for copies in range(len(self.held)):
            short = (n for n, least in self._least_nodes.items() if self._copies[n] == copies < least)
            for name in self._by_worth(short):
                nodes = [n for n in self.held if name not in self.held[n]]
                node = min(nodes, key=self._cost)
                if self._worth(name, copies + 1) > _WORTH_IT * self._loss(self._least(node)):
                    self._put(name, node)

    def _put(self, name: str, node: str) -> None:
        if self._full(node):
            self._drop(node, self._least(node))
        self.held[node].add(name)
        self._copies[name] += 1

    def _drop(self, node: str, name: str) -> None:
        self.held[node].remove(name)
        self._copies[name] -= 1

    def _full(self, node: str) -> bool:
        return len(self.held[node]) >= self.slots

    def _waits(self, name: str) -> bool:
        return self._use[name].waiting

    def _least(self, node: str) -> str:
        """What a node can best do without."""
        return min(self.held[node], key=lambda n: (self._waits(n), self._loss(n), -self._order[n]))

    def _loss(self, name: str) -> float:
        """What one node less would cost: of more than it needs, nothing."""
        return self._worth(name, self._copies[name]) if self._copies[name] <= self._needs[name] else 0.0

    def _worth(self, name: str, copies: int) -> float:
        """What the last of so many nodes is worth to an adapter that needs them."""
        return self._use[name].asked * (_ALONE if copies == 1 else 1.0 / copies)

    def _cost(self, node: str) -> tuple[float, float, str]:
        """What one more adapter costs a node, then how busy its adapters keep it."""
        lost = self._loss(self._least(node)) if self._full(node) else -1.0
        # exact: the order of a set is another one in each process
        busy = math.fsum(self._use[n].asked / self._copies[n] for n in self.held[node])
        return lost, busy, node

    def _by_worth(self, names: Iterable[str]) -> list[str]:
        """The most used first, for each node that has it; then in the order of the configuration."""
        return sorted(names, key=lambda n: (-self._use[n].asked / max(1, self._copies[n]), self._order[n]))
