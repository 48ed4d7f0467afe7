"""How likely a zone is to take its spot nodes soon, learned from memory alone.

What it decides: the rate (events per hour) at which each spot placement is expected to lose nodes, the share
of its nodes that such an event takes, how long starts take and how long before a loss its notice comes.
Why: spot risk falls steeply with time since the last bad news, and a policy that knows it pays for insurance
only where it is worth something.

The mathematics, per spot placement:

* A spell of age a (hours watched without bad news) ends with hazard ``h(a) = SHAPE / (a + SCALE) + RATE`` per
  hour. This is the hazard of a gamma mixture of exponentials (a Lomax law) plus a constant: some spells are
  short-lived, some are not, and the longer one has lasted the surer it is of the second kind.
* Time without a look is worth little: the spell may have ended and another begun. With the last
  look at age a, u hours ago, the spell is still the same with probability ``S = ((a + SCALE) / (a + u +
  SCALE)) ** SHAPE * exp(-RATE * u)``; else the zone counts as a zone found open at random u hours after bad
  news, whose spell looks ``CREDIT * ln(1 + u / CREDIT_SCALE)`` old.
* Zones differ. The hazard is multiplied by m, the ratio of losses that happened to losses that h foretold
  while nodes were held there. Both decay with a half-life of three days, and m is shrunk towards the ratio
  over all placements, and that towards 1, by PRIOR events (the mean of a gamma posterior).
* Zones of a region fall together: for STORM_FOR after a loss elsewhere in the region, STORM events per hour
  are added.
* A loss takes either one node or all that are held. `whole` counts how much of the nodes beyond the first
  recent losses took; it starts at WHOLE_PRIOR for one imaginary loss.
* A refusal where nothing is held means the zone is shut: age 0. Where nodes are held it means that there is
  no room beside them: the age counts as CROWDED at most.

The constants were fitted by eye to the first half (in time) of four public recordings, see
docs/explanation/adaptive.md; the second half was not looked at.
Never: the future, or anything that is not in the journal. The same events give the same numbers.

Sources: the falling hazard is in the recordings of Wu et al. ("Can't Be Late", NSDI 2024) and SkyNomad
(arXiv 2601.06520); losses that come together within minutes in Mao et al. (SpotHedge, EuroSys 2025, figures
3 and 4); gamma shrinkage is the textbook estimate of a Poisson rate (Gelman et al., Bayesian Data Analysis,
section 2.6).

Example:
    >>> zone = took(ZoneHistory(bad_at=0.0, seen_at=0.0), 60.0)
    >>> young, old = rate(zone, 120.0), rate(zone, 6 * 3600.0)
    >>> young > 5 * old
    True
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from policies.model import Market, Placement
from policies.value import replace, value

SHAPE = 0.55
SCALE = 0.22  # hours
RATE = 0.02  # per hour
CREDIT = 0.2  # hours
CREDIT_SCALE = 0.5  # hours
PRIOR = 4.0  # events
HALF_LIFE = 72.0  # hours after which a loss, and the time it is measured against, weigh half
STORM = 0.3  # events per hour
STORM_FOR = 1200.0  # seconds
CROWDED = 0.5  # hours
WHOLE_PRIOR = 0.6  # share of the nodes beyond the first that a loss takes
SAME_LOSS = 60.0  # seconds within which lost nodes are one event

UNKNOWN_FOR = 24.0
"""Hours since bad news that a placement counts as having, before anything is known of it."""

SPOT_START, ON_DEMAND_START, STANDBY_START, NOTICE_LEAD = "spot", "on-demand", "standby", "notice"
"""Names of the durations in `Memory.timings`: three starts until ready, and from a notice to its deadline."""

LEARN = 0.3
"""Weight of a new observation in the running means of start and notice times."""

_HOUR = 3600.0


@value
class ZoneHistory:
    """What is remembered of one spot placement. Times are seconds since the epoch, ages hours."""

    held: int = 0  # nodes held now
    seen_at: float = 0.0  # the last instant that anything is known of
    age: float = 0.0  # of the spell at `seen_at`
    bad_at: float = 0.0  # the last bad news
    expected: float = 0.0  # losses foretold: a decayed sum as of `seen_at`
    losses: float = 0.0  # losses that happened, decayed likewise
    whole: float = 0.0  # how much of the nodes beyond the first they took, decayed likewise
    losing_since: float | None = None  # the last loss
    losing_of: int = 0  # nodes held when it began
    lost: int = 0  # nodes it took


@value
class RunningMean:
    """A mean that forgets, of durations in seconds."""

    mean: float
    count: int = 1

    def with_one(self, value: float) -> RunningMean:
        """The mean after one more observation."""
        weight = max(LEARN, 1.0 / (self.count + 1))
        return RunningMean(mean=self.mean + weight * (value - self.mean), count=self.count + 1)


def base_rate(age: float) -> float:
    """Events per hour of a spell that was watched for `age` hours, in a zone like any other."""
    return SHAPE / (age + SCALE) + RATE


def _age_of(hazard: float) -> float:
    """The age at which `base_rate` has this value."""
    return max(0.0, SHAPE / max(hazard - RATE, 1e-6) - SCALE)


def _credit(unseen: float) -> float:
    return CREDIT * math.log1p(unseen / CREDIT_SCALE)


def age(zone: ZoneHistory, now: float) -> float:
    """The age, in hours, that the zone's spell counts as having now."""
    passed = max(0.0, now - zone.seen_at) / _HOUR
    if zone.held > 0:
        return zone.age + passed
    if passed <= 0.0:
        return zone.age
    since_bad = min(max(0.0, now - zone.bad_at) / _HOUR, UNKNOWN_FOR)
    chance = _credit(since_bad)
    if zone.age <= 0.0:
        return chance
    same = ((zone.age + SCALE) / (zone.age + passed + SCALE)) ** SHAPE * math.exp(-RATE * passed)
    return _age_of(same * base_rate(zone.age + passed) + (1.0 - same) * base_rate(chance))


def rate(zone: ZoneHistory, now: float, *, factor: float = 1.0, storm: bool = False) -> float:
    """Events per hour expected of a placement now. `factor` is its `factor_of`."""
    return factor * base_rate(age(zone, now)) + (STORM if storm else 0.0)


def outlook(zone: ZoneHistory, now: float, *, factor: float = 1.0, hours: float = 6.0) -> float:
    """Losses per hour of use, over the coming `hours`, of a node that is there now or launched now.

    A young spell is risky for a short while and still worth having if it may become an old one: this
    is the chance to be lost within the horizon over the time expected to be used. The integral of the
    survival is taken by Simpson's rule on a grid that is fine where the survival falls steeply.
    """
    begin = age(zone, now) + SCALE
    used, before, last = 0.0, 0.0, 1.0
    for share in _GRID:
        at = share * hours
        middle = 0.5 * (before + at)
        survival = _survival(begin, at, factor)
        used += (at - before) * (last + 4.0 * _survival(begin, middle, factor) + survival) / 6.0
        before, last = at, survival
    return (1.0 - last) / used


_GRID = (0.005, 0.02, 0.08, 0.3, 1.0)


def _survival(begin: float, hours: float, factor: float) -> float:
    survival: float = (begin / (begin + hours)) ** (SHAPE * factor) * math.exp(-RATE * factor * hours)
    return survival


def all_factor(zones: Mapping[Placement, ZoneHistory]) -> float:
    """Losses that happened over losses foretold, over all placements, shrunk towards 1."""
    losses = sum(z.losses for z in zones.values())
    expected = sum(z.expected for z in zones.values())
    return (losses + PRIOR) / (expected + PRIOR)


def factor_of(zone: ZoneHistory, overall: float) -> float:
    """Losses that happened over losses foretold at one placement, shrunk towards the overall ratio."""
    return (zone.losses + PRIOR * overall) / (zone.expected + PRIOR)


def share_taken(zone: ZoneHistory) -> float:
    """Chance that a loss takes all nodes held rather than one."""
    return min(1.0, (zone.whole + WHOLE_PRIOR) / (zone.losses + 1.0))


def storms(zones: Mapping[Placement, ZoneHistory], now: float) -> Mapping[str, frozenset[Placement]]:
    """Per region, the spot placements that lost nodes within STORM_FOR."""
    found: dict[str, set[Placement]] = {}
    for placement, zone in zones.items():
        if zone.losing_since is not None and now - zone.losing_since < STORM_FOR:
            found.setdefault(placement.region, set()).add(placement)
    return {region: frozenset(placements) for region, placements in found.items()}


# -- what events change (called by `policies.memory.reduce`) ---------------------------------------------


def _advance(zone: ZoneHistory, at: float) -> ZoneHistory:
    """The history at `at`, with the time since `seen_at` counted."""
    if at <= zone.seen_at:
        return zone
    hours = (at - zone.seen_at) / _HOUR
    keep = 0.5 ** (hours / HALF_LIFE)
    foretold = 0.0
    if zone.held > 0:
        foretold = SHAPE * math.log((zone.age + hours + SCALE) / (zone.age + SCALE)) + RATE * hours
    return replace(
        zone,
        seen_at=at,
        age=age(zone, at),
        expected=zone.expected * keep + foretold,
        losses=zone.losses * keep,
        whole=zone.whole * keep,
    )


def unknown(at: float) -> ZoneHistory:
    """The history of a placement that nothing is known of."""
    return ZoneHistory(seen_at=at, bad_at=at - UNKNOWN_FOR * _HOUR, age=_credit(UNKNOWN_FOR))


def took(zone: ZoneHistory, at: float) -> ZoneHistory:
    """A node of ours appeared there."""
    zone = _advance(zone, at)
    return replace(zone, held=zone.held + 1)


def let_go(zone: ZoneHistory, at: float) -> ZoneHistory:
    """A node went by our own choice."""
    zone = _advance(zone, at)
    return replace(zone, held=max(0, zone.held - 1))


def lost(zone: ZoneHistory, at: float) -> ZoneHistory:
    """The cloud takes, or took, a node there."""
    zone = _advance(zone, at)
    if zone.losing_since is not None and at - zone.losing_since < SAME_LOSS:
        share = 1.0 / (zone.losing_of - 1) if zone.losing_of > 1 else 0.0
        zone = replace(zone, lost=zone.lost + 1, whole=zone.whole + share)
    else:
        # The loss of a single node says nothing of whether it would have taken more.
        alone = WHOLE_PRIOR if zone.held <= 1 else 0.0
        zone = replace(
            zone,
            losses=zone.losses + 1.0,
            whole=zone.whole + alone,
            losing_since=at,
            losing_of=zone.held,
            lost=1,
        )
    return replace(zone, bad_at=at, age=0.0, held=max(0, zone.held - 1))


def refused(zone: ZoneHistory, at: float) -> ZoneHistory:
    """A launch there was refused."""
    zone = _advance(zone, at)
    if zone.held > 0:
        return replace(zone, age=min(zone.age, CROWDED))
    return replace(zone, age=0.0, bad_at=at)


def spot(placement: Placement) -> bool:
    """Only spot placements have a history."""
    return placement.market is Market.SPOT
