"""Sums of a cost report, and what follows from them.

What it decides: nothing; it counts. All sums are whole numbers, so that parts add up to the whole exactly:
money in picodollars, times in milliseconds, tokens. What follows is USD and shares.
Why: what a million tokens cost says little beside what they would have cost elsewhere and how busy the
machines were, so that all of it is worked out from the same sums.
Never: what is not known counts as 0: a part without a known price makes the whole unknown, which is None.

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
_MS_OF_HOUR: Final = 3_600_000


@dataclass(slots=True, kw_only=True)
class Sums:
    """Of a group, or of everything. Money in picodollars, times in milliseconds."""

    machines_usd: int = 0
    people_usd: int = 0  # people's work, a share of what machines cost
    on_demand_usd: int = 0  # what the wanted units would have cost on-demand
    node_ms: int = 0
    ready_ms: int = 0  # of units
    unpriced_ms: int = 0  # of nodes, missing in `machines_usd`
    unpriced_unit_ms: int = 0  # of wanted units, missing in `on_demand_usd`
    capacity: int = 0  # thousandths of a token that ready units could have served
    unrated_ms: int = 0  # of ready units, missing in `capacity`
    requests: int = 0
    estimated: int = 0  # requests whose tokens were not reported
    fresh: int = 0  # tokens of prompts that were read anew
    cached: int = 0  # tokens of prompts that were read from a prefix cache
    written: int = 0  # tokens of prompts that were written to it
    output: int = 0  # tokens of answers
    served: int = 0  # tokens of all kinds that pools served
    uncounted: int = 0  # those of them in hours without a counted machine: their cost is missing
    api_usd: int = 0  # what an API asks for `served`
    incomparable: int = 0  # tokens that are missing in `api_usd`
    providers_usd: int = 0
    unpriced_requests: int = 0  # missing in `providers_usd`

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
        return _usd(self.machines_usd, self.unpriced_ms, self.uncounted)

    @property
    def people(self) -> float | None:
        """USD for people's work."""
        return _usd(self.people_usd, self.unpriced_ms, self.uncounted)

    @property
    def providers(self) -> float | None:
        """USD to providers."""
        return _usd(self.providers_usd, self.unpriced_requests)

    @property
    def spent(self) -> float | None:
        """USD for nodes and to providers."""
        paid = self.machines_usd + self.providers_usd
        return _usd(paid, self.unpriced_ms, self.uncounted, self.unpriced_requests)

    @property
    def known(self) -> float:
        """The same without what has no known price."""
        return (self.machines_usd + self.providers_usd) / PICO

    @property
    def on_demand(self) -> float | None:
        """USD that the wanted units would have cost on-demand."""
        return _usd(self.on_demand_usd, self.unpriced_unit_ms)

    @property
    def saved(self) -> float | None:
        """USD saved against on-demand, negative where it cost more."""
        more = self.on_demand_usd - self.machines_usd
        return _usd(more, self.unpriced_ms, self.uncounted, self.unpriced_unit_ms)

    @property
    def saved_share(self) -> float | None:
        """The same as a share of what on-demand would have cost."""
        return _ratio(self.saved, self.on_demand)

    @property
    def usd_per_mtok(self) -> float | None:
        """USD per million tokens, None where none was served."""
        return _ratio(self.spent, self.tokens, _MTOK)

    @property
    def usd_per_mtok_people(self) -> float | None:
        """The same with people's work."""
        paid = self.machines_usd + self.people_usd + self.providers_usd
        usd = _usd(paid, self.unpriced_ms, self.uncounted, self.unpriced_requests)
        return _ratio(usd, self.tokens, _MTOK)

    @property
    def api(self) -> float | None:
        """USD that an API asks for what pools served."""
        return _usd(self.api_usd, self.incomparable)

    @property
    def api_per_mtok(self) -> float | None:
        """The same for a million tokens."""
        return _ratio(self.api, self.served, _MTOK)

    @property
    def utilisation(self) -> float | None:
        """Tokens that pools served over what their ready units could have served, both in the hours of which
        machines were counted."""
        served = None if self.unrated_ms else (self.served - self.uncounted) * 1000
        return _ratio(served, self.capacity)

    @property
    def usd_per_unit_hour(self) -> float | None:
        """USD for an hour of one ready unit, without people's work."""
        return _ratio(self.machines, self.ready_ms / _MS_OF_HOUR)

    @property
    def break_even(self) -> float | None:
        """The utilisation above which the pools are cheaper than the API, people's work included. None also
        where the API costs nothing: no utilisation undercuts that."""
        price, api = self.usd_per_unit_hour, self.api_per_mtok
        if price is None or not api or self.utilisation is None:
            return None
        people = self.people_usd / self.machines_usd if self.machines_usd else 0.0
        return break_even(price=price, rate=self.capacity / self.ready_ms, api=api, people=people)


def _usd(amount: int, *missing: int) -> float | None:
    """USD of picodollars; None where anything is missing in them."""
    return None if any(missing) else amount / PICO


def _ratio(amount: float | None, of: float | None, times: int = 1) -> float | None:
    """`amount / of * times`; None where either is not known, or there is nothing to divide by."""
    return amount / of * times if amount is not None and of else None


NAMES: Final = tuple(field.name for field in fields(Sums))
