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
    """Nodes that a pool has, open launches included.

    `units`: what they serve. `nodes`: machines that are not on their way out. `spend`: USD/h of those that
    bill and whose price is known, `unpriced`: how many bill at a price that nobody knows.
    """

    units: int = 0
    nodes: int = 0
    spend: float = 0.0
    unpriced: int = 0

    def cost(self, unknown: float) -> float:
        """USD/h of all of them, those of unknown price at `unknown` each."""
        return self.spend + self.unpriced * unknown


@value
class Ask:
    """What one pool wants and has, as of its newest turn. Capacity is in units.

    `replicas`: wanted in all, `floor` of them on demand. `standby`: hot and stopped beyond them. `surge`:
    beyond those, for a while. `cap`: the pool's own spend cap, USD/h. `on_demand` and `spot`: the cheapest
    node that may be launched now to fill the floor, and the rest; `way_back`: the cheapest spot node, whether
    or not it may be had now; `dearest`: USD/h of the dearest node that
    is sold. `has_on_demand`, `has_spot`: nodes that count towards wanted; `has_standby`: stopped standbys;
    `other`: whatever else lives or bills, being on its way out or not counted. `launches`: False while the
    pool launches nothing, being paused or dead. `seen`: False while nobody can tell what it has: then what
    it wants counts as there.
    """

    pool: str
    priority: int = 0
    replicas: int
    floor: int = 0
    standby: int = 0
    surge: int = 0
    cap: float | None = None
    on_demand: Price = Price()
    spot: Price = Price()
    way_back: Price = Price()
    dearest: float | None = None
    has_on_demand: Held = Held()
    has_spot: Held = Held()
    has_standby: Held = Held()
    other: Held = Held()
    launches: bool = True
    seen: bool = True

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

    `replicas` and `standby`: units that the pool may aim at, no more than it wants. `nodes`: machines that
    may live at once, those on their way out not counted; `spend_per_hour`: USD/h of all that bills, open
    launches and nodes on their way out included; each None where the budget does not limit it. Both are at
    least what the pool has, so they stop only what would be added. `why`: what the pool is short of and why,
    one phrase, empty where it gets all that it wants. `way_back`: USD/h that on-demand nodes beyond the floor
    leave free for a spot node. `floor_short`: not even its on-demand floor is granted.
    `violation`: what is wrong with the sharing itself, in words; then nothing may be added.
    """

    replicas: int
    standby: int = 0
    nodes: int | None = None
    spend_per_hour: float | None = None
    why: str = ""
    way_back: float = 0.0
    floor_short: bool = False
    violation: str = ""
