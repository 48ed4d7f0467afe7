"""Which regions can be seen, and so where nodes may be launched and ended.

What it decides: per region, whether its machines are known well enough to launch or end any of them there.
Why: each region lists its own machines and fails alone. What is not seen is not touched: a launch whose
answer was lost could not be found again, and a node that seems to be gone may be one that a list did not
show. But nothing of that concerns the other regions: they go on launching and ending, with the nodes of the
silent region counted as far as their engines, or a balancer, answer.
Never: a region that this daemon has not listed is guessed at. Its nodes and open launches are those in the
journal. A journal that has neither opened a launch nor heard of a node there may be new or lost. Where it was
lost the region may hold the whole pool, so nothing is launched or ended anywhere before that region was
listed once, or has failed to answer for UNSEEN_FOR and no balancer holds a target that may be there: then
nobody is served from there. See docs/decisions/0013.

Example:
    >>> from policies.evidence import Evidence
    >>> from policies.memory import Memory
    >>> from policies.model import Observed, Pool, World
    >>> world = World(now=100.0, regions={"east": Observed(value=(), at=99.0),
    ...                                   "west": Observed(value=(), at=40.0, error="503")})
    >>> sight = Sight(Evidence(Pool(name="p", replicas=4), world, Memory()), world)
    >>> sight.hidden("east"), sight.hidden("west")
    ('', 'the last complete list of west is 60 s old')
"""

from __future__ import annotations

from policies.evidence import Balancer, Evidence
from policies.evidence.sources import fails_since
from policies.model import EVERYWHERE, World
from policies.value import lazy

UNSEEN_FOR = 120.0
"""Seconds without an answer after which a new pool is launched without a region that was never listed."""


class Sight:
    """What one turn can see of the regions."""

    def __init__(self, evidence: Evidence, world: World) -> None:
        self._evidence, self._pool, self._memory = evidence, evidence.pool, evidence.memory
        self._world = world
        self.regions = tuple(world.regions)
        self._hidden: dict[str, str] = {}

    def hidden(self, region: str) -> str:
        """Why a region cannot be seen well enough now to launch or end nodes there; empty when it can."""
        if region not in self._hidden:
            self._hidden[region] = self._why(region)
        return self._hidden[region]

    def passed_over(self, region: str) -> str:
        """`hidden` while another region is open: what would be done here is done there.

        Where none is open everything waits, and what is on its way counts as before. So it does until the
        first look after a start has ended: regions answer one after another.
        """
        return self.hidden(region) if self._open and not self._being_looked_at(region) else ""

    def avoided(self, region: str) -> str:
        """Why nothing new is launched in a region while another may take it; empty when it may be."""
        unseen = self.hidden(region) if self._open else ""
        return unseen or self._unanswering(region)

    def waited_for(self, region: str) -> bool:
        """What is on its way in a region counts."""
        return not (self.passed_over(region) or self._unanswering(region))

    def doubtful(self, region: str) -> bool:
        """The newest look at a region failed, and at another one it did not."""
        view = self._world.region(region)
        return view is not None and bool(view.error) and self._sound

    @lazy
    def unaccounted(self) -> str:
        """Why nothing may be launched or ended anywhere: what a region holds neither a list nor a journal
        tells. Empty when all is accounted for, or nothing is gained by waiting."""
        if not self.waits:
            return ""
        unseen = _unseen(", ".join(self._unknown))
        return f"{unseen}, and the journal is too new to tell which nodes are there"

    @lazy
    def waits(self) -> str:
        """For how long other regions wait for what is `unaccounted`, in words; empty when they do not."""
        if not self._unknown:
            return ""
        world = self._world
        since = [fails_since(world.regions[region], world) for region in self._unknown]
        tried = min(0.0 if at is None else world.now - at for at in since)
        if tried < UNSEEN_FOR:
            return f"for {UNSEEN_FOR - tried:.0f} s more"
        return next(filter(None, map(self._may_be_there, self._evidence.routing)), "")

    @lazy
    def _unknown(self) -> tuple[str, ...]:
        """Regions of several of which nothing tells which nodes they hold."""
        if self._memory.serial > 0 or len(self.regions) == 1 or not self._world.unlisted:
            return ()
        known = {record.placement.region for record in self._memory.nodes.values()}
        return tuple(region for region in self._world.unlisted if region not in known)

    def _may_be_there(self, balancer: Balancer) -> str:
        """For how long a balancer may serve from a region that nothing is known of; else empty."""
        if balancer.read_at is None:
            return f"until {balancer.name} was read once"
        if balancer.usable - self._memory.nodes.keys() - self._memory.ended.keys():
            return f"while {balancer.name} sends requests to nodes that nobody knows"
        return ""

    def _unanswering(self, region: str) -> str:
        """That a region lists its machines and answers no launch, where another region may."""
        if region not in self._mute or region not in self.regions:
            return ""
        other = any(r not in self._mute and not self.hidden(r) for r in self.regions)
        return self._mute[region] if other else ""

    @lazy
    def _mute(self) -> dict[str, str]:
        """Regions where a launch has been asked for again and again in vain, for how long. What it may have
        done a list would show, and the first answer ends this."""
        asked: dict[str, float] = {}
        for intent in self._memory.intents.values():
            if intent.placement is None or intent.accepted_at is not None:
                continue
            region, since = intent.placement.region, self._evidence.watched_since(intent.at)
            if intent.attempts - intent.throttled <= (not intent.unanswered):
                if not intent.throttled:
                    continue  # asked for the first time
                since = max(since, self._took.get(region, since))  # too many calls, and others were taken
            asked[region] = max(self._world.now - since, asked.get(region, 0.0))
        return {
            region: f"a launch there has had no answer for {waited:.0f} s"
            for region, waited in asked.items()
            if waited >= self._pool.patience.effect_timeout
        }

    @lazy
    def _took(self) -> dict[str, float]:
        """When each region last took a launch, as far as nodes and open launches tell."""
        found: dict[str, float] = {}
        for record in self._memory.nodes.values():
            found[record.placement.region] = max(record.launched_at, found.get(record.placement.region, 0.0))
        for intent in self._memory.intents.values():
            if intent.placement is not None and intent.accepted_at is not None:
                region = intent.placement.region
                found[region] = max(intent.accepted_at, found.get(region, 0.0))
        return found

    @lazy
    def _open(self) -> bool:
        return any(not self.hidden(region) for region in self.regions)

    @lazy
    def _sound(self) -> bool:
        return any(not view.error for view in self._world.regions.values())

    def _being_looked_at(self, region: str) -> bool:
        """The first look since this daemon is awake is under way. It ends with a list or an error."""
        view = self._world.region(region)
        return view is not None and not view.error and not self._world.seen(view)

    def _why(self, region: str) -> str:
        world, view = self._world, self._world.region(region)
        if view is None:
            return f"{region} is not a region of the configuration"
        if not world.seen(view):
            return _unseen(region if region in world.regions else EVERYWHERE)
        if view.age(world.now) > self._pool.patience.stale_after:
            what = region if region in world.regions and region != EVERYWHERE else "instances"
            return f"the last complete list of {what} is {view.age(world.now):.0f} s old"
        return ""


def _unseen(region: str) -> str:
    return f"{region or 'the cloud'} has not been seen whole yet"
