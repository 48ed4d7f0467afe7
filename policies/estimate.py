"""What machines would cost for a traffic that an API serves so far, before anything runs.

What it decides: how many units a traffic takes, and whether they or the API are cheaper for a month of it,
people's work included on the side of the machines. Where a machine's tokens/s are not known, how many it
would have to take for that.
Why: the question comes before the first machine, when there is a bill and no measurement.
Never: a rate is guessed; a fleet that is too small for the busiest hour counts as enough; a verdict without
both prices.

Example: 50 M tokens a day at $3 a million, on units at $3 an hour that take 500 tokens/s, 40 % for people.
    >>> traffic = Traffic(tokens=50e6 * 365 / 12, peak=2.0)
    >>> found = weigh(traffic, Machine(name="h100", price=3.0, rate=500.0, people=0.4), api=3.0)
    >>> found.units, round(found.usd_per_month), round(found.api_per_month), found.cheaper
    (3, 9198, 4562, 'api')
    >>> round(weigh(traffic, Machine(name="h100", price=3.0, people=0.4), api=3.0).needs_rate)
    1157
"""

from __future__ import annotations

import math

from policies.self_or_api import Cheaper, Unit, count_words, dollars, offer_advice
from policies.unit_cost import HOURS_OF_MONTH
from policies.value import value

_MTOK = 1e6


@value
class Traffic:
    """Tokens a month, of prompts and answers; `peak`: those of the busiest hour over those of a mean one."""

    tokens: float
    peak: float = 1.0

    @property
    def busiest(self) -> float:
        """Tokens/s in the busiest hour."""
        return self.tokens / HOURS_OF_MONTH / 3600.0 * self.peak


@value
class Machine:
    """One unit that could be bought: USD/h and tokens/s at saturation, None where not known."""

    name: str
    price: float | None = None
    rate: float | None = None
    people: float = 0.0


@value
class Weighed:
    """A machine compared with the API. None where it is not known."""

    machine: Machine
    units: int | None = None  # that serve the busiest hour
    usd_per_month: float | None = None
    api_per_month: float | None = None
    usd_per_mtok: float | None = None
    utilisation: float | None = None  # mean of the units
    break_even: float | None = None  # utilisation of one unit above which it is cheaper
    pays_from: float | None = None  # tokens a month above which it is cheaper
    needs_rate: float | None = None  # tokens/s a unit needs to be cheaper, where its rate is not known
    cheaper: Cheaper = "unknown"
    advice: str


def weigh(traffic: Traffic, machine: Machine, *, api: float | None) -> Weighed:
    """What a month of the traffic would cost on such machines. `api`: USD that it asks for a million tokens
    of this traffic, None where not known."""
    bill = None if api is None else api * traffic.tokens / _MTOK
    if machine.price is None:
        text = f"What {machine.name} costs an hour is not known."
        return Weighed(machine=machine, api_per_month=bill, advice=text)
    if machine.rate is None:
        return _without_rate(traffic, machine, machine.price, bill)
    unit = Unit(price=machine.price, rate=machine.rate, people=machine.people)
    units = unit.units_for(tokens=traffic.tokens, peak=traffic.peak)
    own = unit.cost(tokens=traffic.tokens, peak=traffic.peak)
    unknown = "What the API asks for this traffic is not known"
    return Weighed(
        machine=machine,
        units=units,
        usd_per_month=own,
        api_per_month=bill,
        usd_per_mtok=own / traffic.tokens * _MTOK if traffic.tokens else None,
        utilisation=traffic.busiest / traffic.peak / (units * unit.rate),
        break_even=unit.break_even(api) if api else None,
        pays_from=None if api is None else unit.pays_from(api, peak=traffic.peak),
        cheaper="unknown" if bill is None else "pool" if own <= bill else "api",
        advice=f"{unknown}; {machine.name} would cost {dollars(own)} a month."
        if api is None
        else offer_advice(machine.name, unit, api=api, tokens=traffic.tokens, peak=traffic.peak),
    )


def _without_rate(traffic: Traffic, machine: Machine, price: float, bill: float | None) -> Weighed:
    """How fast a unit would have to be: as many as the API's bill pays for must take the busiest hour."""
    if bill is None:
        text = f"Neither what the API asks is known, nor how many tokens/s {machine.name} takes."
        return Weighed(machine=machine, advice=text)
    one = price * (1.0 + machine.people) * HOURS_OF_MONTH
    affordable = math.floor(bill / one + 1e-9)
    if not affordable:
        text = (
            f"{machine.name} would not pay, however fast it is: one costs {dollars(one)} a month, the API "
            f"{dollars(bill)} for these {count_words(traffic.tokens)} tokens."
        )
        return Weighed(machine=machine, api_per_month=bill, cheaper="api", advice=text)
    needed = traffic.busiest / affordable
    text = (
        f"{machine.name} would pay if one takes {needed:,.0f} tokens/s or more: the {dollars(bill)} that the "
        f"API asks a month pay for {affordable} of them."
    )
    return Weighed(machine=machine, api_per_month=bill, needs_rate=needed, advice=text)
