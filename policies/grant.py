"""What pools ask of a budget that they share, and what each one gets. The sharing is `policies.budget`.

What it decides: nothing. Why: a world carries its pool's grant, and what a world is made of knows no policy.
Never: a grant says what must be ended; a pool that may aim at less than it has shrinks by its own policies.
"""

from __future__ import annotations

from policies.value import value


@value
class SharedBudget:
    """What all pools may have together; None is no limit.

    `spend_per_hour`: USD/h of everything that bills. `nodes`: machines, those on their way out not counted.
    """

    spend_per_hour: float | None = None
    nodes: int | None = None

    @property
    def words(self) -> str:
        """The limits in words."""
        dollars = "" if self.spend_per_hour is None else f"${self.spend_per_hour:,.2f} an hour"
        nodes = "" if self.nodes is None else f"{self.nodes} node{'' if self.nodes == 1 else 's'}"
        return " and ".join(part for part in (dollars, nodes) if part)


@value
class Price:
    """What a missing unit may be had for: USD/h of a node, None where not known, and the units it serves."""

    node: float | None = None
    units: int = 1


@value
class Held:
    """Nodes that a pool has, open launches included."""

    units: int = 0  # what they serve
    nodes: int = 0  # machines that are not on their way out
    spend: float = 0.0  # USD/h of those that bill and whose price is known
    unpriced: int = 0  # how many bill at an unknown price

    def cost(self, unknown: float) -> float:
        """USD/h of all of them, those of unknown price at `unknown` each."""
        return self.spend + self.unpriced * unknown


@value
class Ask:
    """What one pool wants and has, as of its newest turn. Capacity is in units."""

    pool: str
    priority: int = 0
    replicas: int  # wanted in all
    floor: int = 0  # of them on demand
    standby: int = 0  # hot and stopped, beyond `replicas`
    surge: int = 0  # beyond those, for a while
    cap: float | None = None  # the pool's own spend cap, USD/h
    on_demand: Price = Price()  # the cheapest node that may be launched now to fill the floor
    spot: Price = Price()  # the same for the rest
    way_back: Price = Price()  # the cheapest spot node, whether or not it can be launched now
    dearest: float | None = None  # USD/h of the dearest node that is sold
    has_on_demand: Held = Held()  # nodes that count towards wanted
    has_spot: Held = Held()  # nodes that count towards wanted
    has_standby: Held = Held()  # stopped standbys
    other: Held = Held()  # what else lives or bills: on its way out, or not counted
    launches: bool = True  # False while the pool is paused or its loop is dead
    seen: bool = True  # False while it is not known what it has: then what it wants counts as there

    @property
    def held(self) -> tuple[Held, ...]:
        """All that the pool has."""
        return self.has_on_demand, self.has_spot, self.has_standby, self.other

    @property
    def nodes(self) -> int:
        """Machines that are not on their way out, open launches included."""
        return sum(held.nodes for held in self.held)

    def spend(self, unknown: float) -> float:
        """USD/h of all that bills, nodes of unknown price at `unknown` each."""
        return sum(held.cost(unknown) for held in self.held)


@value
class Share:
    """Marks a pool that is as its grant lets it be: what else limits it, and what does not follow from less.

    `nodes`: machines that may live at once, None for no limit. `dollars`: its spend cap is what was granted.
    `drains`: units that it may drain by choice at once. `way_back`: as in `Grant`.
    """

    nodes: int | None
    dollars: bool
    drains: int
    way_back: float = 0.0


@value
class Grant:
    """A pool's share of the budget for one turn.

    `nodes` and `spend_per_hour` are None where the budget does not limit them, else at least what the pool
    has: they stop only what would be added.
    """

    replicas: int  # units that the pool may aim at, no more than it wants
    standby: int = 0  # the same of standbys
    nodes: int | None = None  # machines that may live at once, those on their way out not counted
    spend_per_hour: float | None = None  # USD/h of all that bills, open launches and leaving nodes included
    why: str = ""  # what the pool is short of and why, one phrase; empty where it gets all that it wants
    way_back: float = 0.0  # USD/h that on-demand nodes beyond the floor leave free for a spot node
    floor_short: bool = False  # not even its on-demand floor is granted
    violation: str = ""  # what is wrong with the sharing itself; then nothing may be added
