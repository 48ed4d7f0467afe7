"""Sums of a cost report, and what follows from them.

What it decides: nothing; it counts. All sums are whole numbers, so that parts add up to the whole exactly:
money in picodollars, times in milliseconds, tokens. What follows is USD and shares.
Why: what a million tokens cost says little beside what they would have cost elsewhere and how busy the
machines were, so that all of it is worked out from the same sums.
Never: what is not known is told as 0: a part without a known price makes the whole unknown, which is None.

Example: 7 M tokens by a pool that could have served 10 M, $3 and 40 % for people; an API asks $6 for them.
    >>> sums = Sums(machines_usd=3 * PICO, people_usd=12 * PICO // 10, capacity=10**10, ready_ms=3_600_000,
    ...             fresh=6_000_000, output=1_000_000, served=7_000_000, api_usd=6 * PICO)
    >>> sums.utilisation, round(sums.usd_per_mtok, 2), round(sums.usd_per_mtok_people, 2)
    (0.7, 0.43, 0.6)
    >>> round(sums.break_even, 2)
    0.49
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from policies.spend import PICO
from policies.unit_cost import break_even

_MTOK: Final = 10**6


@dataclass(slots=True, kw_only=True)
class Sums:
    """Of a group, or of everything.

    `machines_usd` lacks `unpriced_ms` of nodes, and all of the pools that served `uncounted` tokens in hours
    of which no machine was counted; `providers_usd` lacks `unpriced_requests`; `on_demand_usd` lacks
    `unpriced_unit_ms`. `served` are the tokens that pools served, of all kinds; `api_usd` is what an API asks
    for them and lacks `incomparable` ones; `capacity` is what ready units could have served, in thousandths
    of a token, and lacks those ready for `unrated_ms`.
    """

    machines_usd: int = 0
    people_usd: int = 0
    on_demand_usd: int = 0
    node_ms: int = 0
    ready_ms: int = 0
    unpriced_ms: int = 0
    unpriced_unit_ms: int = 0
    capacity: int = 0
    unrated_ms: int = 0
    requests: int = 0
    estimated: int = 0
    fresh: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0
    served: int = 0
    uncounted: int = 0
    api_usd: int = 0
    incomparable: int = 0
    providers_usd: int = 0
    unpriced_requests: int = 0

    def add(self, other: Sums) -> None:
        """Take in the sums of another part."""
        for name in NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def prompt(self) -> int:
        """Tokens of prompts."""
        return self.fresh + self.cached + self.written

    @property
    def tokens(self) -> int:
        """All tokens, of pools and providers."""
        return self.prompt + self.output

    @property
    def machines(self) -> float | None:
        """USD for nodes."""
        return None if self.unpriced_ms or self.uncounted else self.machines_usd / PICO

    @property
    def people(self) -> float | None:
        """USD for people's work."""
        return None if self.machines is None else self.people_usd / PICO

    @property
    def providers(self) -> float | None:
        """USD to providers."""
        return None if self.unpriced_requests else self.providers_usd / PICO

    @property
    def spent(self) -> float | None:
        """USD for nodes and to providers."""
        return None if self.machines is None or self.providers is None else self.known

    @property
    def known(self) -> float:
        """The same without what has no known price."""
        return (self.machines_usd + self.providers_usd) / PICO

    @property
    def on_demand(self) -> float | None:
        """USD that the wanted units would have cost on-demand."""
        return None if self.unpriced_unit_ms else self.on_demand_usd / PICO

    @property
    def saved(self) -> float | None:
        """USD saved against on-demand, less than nothing where it cost more."""
        if self.machines is None or self.on_demand is None:
            return None
        return (self.on_demand_usd - self.machines_usd) / PICO

    @property
    def saved_share(self) -> float | None:
        """The same as a share of what on-demand would have cost."""
        return self.saved / self.on_demand if self.saved is not None and self.on_demand else None

    @property
    def usd_per_mtok(self) -> float | None:
        """USD per million tokens, None where none was served."""
        return self.spent / self.tokens * _MTOK if self.spent is not None and self.tokens else None

    @property
    def usd_per_mtok_people(self) -> float | None:
        """The same with people's work."""
        if self.spent is None or not self.tokens:
            return None
        return (self.machines_usd + self.people_usd + self.providers_usd) / PICO / self.tokens * _MTOK

    @property
    def api(self) -> float | None:
        """USD that an API asks for what pools served."""
        return None if self.incomparable else self.api_usd / PICO

    @property
    def api_per_mtok(self) -> float | None:
        """The same for a million tokens."""
        return self.api / self.served * _MTOK if self.api is not None and self.served else None

    @property
    def utilisation(self) -> float | None:
        """Tokens that pools served over what their ready units could have served, both in the hours of which
        machines were counted."""
        if not self.capacity or self.unrated_ms:
            return None
        return (self.served - self.uncounted) * 1000 / self.capacity

    @property
    def usd_per_unit_hour(self) -> float | None:
        """USD for an hour of one ready unit, without people's work."""
        if self.machines is None or not self.ready_ms:
            return None
        return self.machines / (self.ready_ms / 3_600_000)

    @property
    def break_even(self) -> float | None:
        """The utilisation above which the pools are cheaper than the API, people's work included. None also
        where the API costs nothing: no utilisation undercuts that."""
        price, api = self.usd_per_unit_hour, self.api_per_mtok
        if price is None or not api or self.utilisation is None:
            return None
        people = self.people_usd / self.machines_usd if self.machines_usd else 0.0
        return break_even(price=price, rate=self.capacity / self.ready_ms, api=api, people=people)


NAMES: Final = tuple(field.name for field in fields(Sums))
