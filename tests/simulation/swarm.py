"""Swarm testing: each seed draws a pool, a world and a set of faults, and plays them against the daemon.

Drawing which faults a run knows at all, and not only when they strike, finds more than every fault in every
run: some bugs only show where something else stays away. Faults first, when only "never" counts; then the
faults end, and the pool must come to what is wanted.

Every draw has a generator of its own, named after what it draws: one kind of fault more changes neither the
pool nor the world nor when the others strike.
"""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from scenarios import ALB, LOOK, PROPAGATION, TWO_REGIONS, bounds, config, sales
from swarm_faults import FAULTS, Kind, price_walk
from swarm_host import slow_disk

from cloud.sim.balancer import Traffic
from cloud.sim.counting import units
from cloud.sim.faults import Fault, Rates
from cloud.sim.notices import METADATA, QUEUE
from cloud.sim.numbers import Numbers
from cloud.sim.world import Pace, Sale
from orchestrator.simulation.recorded_store import RecordedStore
from orchestrator.simulation.simulate import NotSettled, Outcome, Simulation
from orchestrator.wiring.ports import Ports
from policies.events import Resumed
from policies.model import Market, Pool

CALM = 15.0
"""So many times `vanish_grace` after the last fault "how soon" counts again: lists are doubted for ten,
once the calls are over that were slow."""

UNTROUBLED = 0.05
"""Share of seeds that know no fault at all."""

ADAPTIVE = 0.1
"""Share of seeds whose mix is adaptive."""

LARGE = 0.15
"""Share of seeds with nodes of two sizes."""

APART = 0.3
"""Share of seeds with two regions."""

CAPPED = 0.35
"""Share of seeds with a spend cap, where prices stand still and all nodes are of one size."""

TIGHT = 0.7
"""Share of those whose cap is so close to what the pool costs that it binds now and then."""

LONG_ANSWERS = 0.3
"""Share of seeds whose answers take longer than any look, and less than a drain."""

SLOW_BALANCER = 0.2
"""Share of seeds whose balancer routes by what it held before for as long as an ALB does."""

PRICELESS = 0.1
"""Share of seeds without a spend cap whose prices are away from some instant on for good."""


def drawn(purpose: str, seed: int) -> random.Random:
    """The generator of one thing that a seed draws."""
    return random.Random(f"{purpose}/{seed}")


class Swarm:
    """What one seed draws and does, to a daemon that looks every `look` seconds."""

    def __init__(self, seed: int, hours: float, *, look: float = LOOK) -> None:
        self.seed, self.seconds, self.look = seed, hours * 3600.0, look
        self.pool = self._pool()
        self.regions = self._regions()
        self.large = self._large()
        self.pace = self._pace()
        self.rates = self._rates()
        self.record_turns = drawn("record turns", seed).choice(("off", "off", "off", "60s"))
        self.intensity = drawn("intensity", seed).choice((0.3, 1.0, 1.0, 3.0))
        untroubled = drawn("untroubled", seed).random() < UNTROUBLED
        self.kinds = () if untroubled else tuple(k for k in FAULTS if self._knows(k))
        if cap := self._cap():
            self.pool["limits"] = {"spend_per_hour": cap}
        self.propagation = self._propagation()
        self.sources = self._sources()
        self.answers = self._answers()
        self.priceless_from = self._priceless()

    def _knows(self, kind: Kind) -> bool:
        if kind.strike is slow_disk and self.seed in REGRESSIONS:
            return False
        return drawn(f"known/{kind.name}", self.seed).random() < kind.share

    def _pool(self) -> dict[str, Any]:
        pool: dict[str, Any] = {"replicas": drawn("replicas", self.seed).choice((1, 2, 4, 4, 10))}
        standby = drawn("standby", self.seed).random()
        if standby < 0.3:
            pool["standby"] = {"stopped": 1}
        elif standby < 0.5:
            pool["standby"] = {"hot": 1}
        if drawn("rebalance", self.seed).random() < 0.3:
            pool["rebalance"] = {"replace": True}
        share = drawn("spot share", self.seed).choice((None, None, None, 0.0, 0.5, 1.0))
        if share is not None:
            pool["spot_share"] = share
        if mix := self._mix():
            pool |= mix
            pool["standby"] = {k: v for k, v in pool.get("standby", {}).items() if k != "hot"}
        return pool

    def _mix(self) -> dict[str, Any]:
        """The adaptive mix, with what starts quickest in it, or nothing: the split, as in the saved seeds."""
        rng = drawn("mix", self.seed)
        if self.seed in REGRESSIONS or rng.random() >= ADAPTIVE:
            return {}
        starts = rng.choice(({}, {"notice": 30.0}, {"spot": 600.0, "on_demand": 90.0, "standby": 300.0}))
        return {"mix": "adaptive", "availability": rng.choice((0.99, 0.999, 0.9999)), "starts": starts}

    def _large(self) -> list[Sale]:
        """What is sold of machines of several units, beside those of one: dearer or cheaper by the unit."""
        rng = drawn("units", self.seed)
        if rng.random() >= LARGE or "mix" in self.pool:  # adaptive counts nodes of one unit
            return []
        units = rng.choice((2, 3, 8))
        self.pool["units"] = {"big": units}
        return sales(rng.choice((1, 3, 10)), "big", units * rng.choice((0.5, 0.9, 1.1)), self.regions)

    def _regions(self) -> Mapping[str, str]:
        """The regions of the zones: one, as in the saved seeds, or two."""
        apart = drawn("regions", self.seed).random() < APART and self.seed not in REGRESSIONS
        return TWO_REGIONS if apart else {}

    def _propagation(self) -> float:
        """Seconds for which the balancer routes by what it held before: none in the saved seeds."""
        slow = drawn("propagation", self.seed).random() < SLOW_BALANCER and self.seed not in REGRESSIONS
        if slow:
            self.pool["drain"] = ALB
        return PROPAGATION if slow else 0.0

    def _answers(self) -> tuple[float, float]:
        """Seconds that an answer takes: where it is long a node that drains is not idle by accident."""
        long = drawn("answers", self.seed).random() < LONG_ANSWERS and self.seed not in REGRESSIONS
        return (10.0, 15.0) if long else (1.0, 8.0)

    def _sources(self) -> tuple[str, ...]:
        """Where notices come from: one alone may hide the loss of the other."""
        both = (QUEUE, METADATA)
        return (
            both
            if self.seed in REGRESSIONS
            else drawn("sources", self.seed).choice((both, both, both, (QUEUE,), (METADATA,)))
        )

    def _cap(self) -> float:
        """What the mix and a node more cost at the dearest place, or all on demand and a node or two more.

        Nothing where prices move, which a daemon only sees when it looks, and in the saved seeds.
        """
        rng = drawn("cap", self.seed)
        walks = any(kind.strike is price_walk for kind in self.kinds)
        if self.seed in REGRESSIONS or rng.random() >= CAPPED or self.large or walks:
            return 0.0
        most = self.pool["replicas"] + sum(self.pool.get("standby", {}).values())
        most += self.pool["replicas"] if "mix" in self.pool else 0  # standbys, or insurance
        dear, more, tight = max(sale.price for sale in sales()), rng.choice((1, 2)), rng.random() < TIGHT
        if not tight or "mix" in self.pool:
            return dear * (most + more)
        if rng.random() < 0.8:  # it runs until it is ready, and costs something meanwhile
            self.pool["standby"] = {"stopped": 1}
        numbers = Numbers.of(Pool(name="p", replicas=self.pool["replicas"], spot_share=self._share()))
        spot = max(sale.price for sale in sales() if sale.placement.market is Market.SPOT)
        hot = self.pool.get("standby", {}).get("hot", 0)
        return dear * (numbers.floor + hot + 1) + spot * numbers.spot

    def _share(self) -> float:
        return float(self.pool.get("spot_share", 0.7))

    def _priceless(self) -> float | None:
        """Seconds after which prices cannot be read any more: the pool must come to what is wanted all the
        same. None where they can, as in the saved seeds."""
        rng = drawn("priceless", self.seed)
        if self.seed in REGRESSIONS or "limits" in self.pool or rng.random() >= PRICELESS:
            return None
        return rng.choice((0.0, rng.uniform(0.0, self.seconds)))

    def _pace(self) -> Pace:
        rng = drawn("pace", self.seed)
        unlucky = drawn("duds", self.seed)
        return Pace(
            list_lag=rng.choice(((0.2, 2.0), (5.0, 30.0))),
            latency=rng.choice(((0.01, 0.1), (0.1, 2.0))),
            load=rng.choice(((10.0, 20.0), (60.0, 180.0))),
            duds=unlucky.choice((0.0, 0.0, 0.0, 0.02, 0.1)),
            slow_loads=unlucky.choice((0.0, 0.0, 0.1)),
            slower=1.5,
            tick=1.0 if self.look < 5.0 else 2.0,
        )

    def _rates(self) -> Rates:
        rng = drawn("rates", self.seed)
        return Rates(
            lost=rng.choice((0.0, 0.02, 0.1)),
            throttled=rng.choice((0.0, 0.0, 0.05)),
            failed=rng.choice((0.0, 0.0, 0.05)),
            slow=rng.choice((0.0, 0.0, 0.02)),
        )

    async def script(self, sim: Simulation) -> None:
        """Faults, then calm, then the pool as it is wanted."""
        if drawn("furnished", self.seed).random() < 0.5:
            sim.furnish()
        sim.boot(supervised=True)
        sim.world.faults.rates = self.rates
        sim.checker.faults_on = True
        if self.priceless_from is not None:
            away = partial(sim.world.faults.begin, ("offerings",), Fault.DENIED)
            sim.world.later(self.priceless_from, away)
        end = sim.clock.now() + self.seconds
        strikes = [asyncio.ensure_future(self._strike(sim, kind, end)) for kind in self.kinds]
        await sim.clock.sleep(self.seconds)
        for strike in strikes:
            await strike
        sim.world.faults.rates = Rates()
        sim.world.pace = replace(self.pace, list_lag=(0.2, 2.0), duds=0.0, slow_loads=0.0)
        sim.ahead = 0.0
        await sim.operate(lambda now: Resumed(at=now, by="swarm"))
        await sim.clock.sleep(CALM * sim.pool.patience.vanish_grace)
        sim.checker.faults_on = False
        # What the adaptive mix aims at is its own affair: it has come to it when it rests.
        try:
            await sim.settle(within=settles_within(sim), steady=60.0 if "mix" in self.pool else 5.0)
        except NotSettled:
            if not waits_for_a_person(sim):
                raise

    async def _strike(self, sim: Simulation, kind: Kind, end: float) -> None:
        """One kind of fault, now and then until the end."""
        rng = drawn(f"strikes/{kind.name}", self.seed)
        pause = kind.pause / self.intensity
        while True:
            wait = rng.expovariate(1.0 / pause)
            if sim.clock.now() + wait >= end:
                return
            await sim.clock.sleep(wait)
            sim.world.trace.add("fault", kind.name)
            await kind.strike(sim, rng)


def settles_within(sim: Simulation) -> float:
    """Seconds after which a pool that nothing disturbs any more must be as it is wanted, by its settings.

    What boots in vain is given up, what was refused is forgotten, and what died is replaced. Then the mix
    comes back a few nodes at a time: each boots and has to be stable before what stood in for it drains.
    """
    pool, pace, numbers = sim.pool, sim.world.pace, Numbers.of(sim.pool)
    rules, look = pool.back_to_spot, sim.config.daemon.poll_instances
    first = pool.health.boot_timeout + pool.health.replace_after + pool.patience.effect_timeout
    first += 10 * pool.placement.refusal_half_life + pool.patience.stale_after
    boots = pace.boot[1] + pace.load[1] * pace.slower + pace.list_lag[1] + 4 * look
    wave = rules.hold + rules.stable + boots + pool.drain.budget + pool.drain.settle + 4 * look
    waves = math.ceil(numbers.spot / rules.at_once) + bool(numbers.hot) + bool(numbers.stopped) + 1
    return first + waves * wave * (2 if pool.adaptive is not None else 1)


def waits_for_a_person(sim: Simulation) -> bool:
    """Whether what lives leaves no room below the spend cap for a node of any market that lacks some.

    Silent nodes are ended, and noticed ones leave, only once others are ready (`policies.health`).
    """
    cap = sim.pool.limits.spend_per_hour
    if cap is None:
        return False
    now, numbers, prices = sim.clock.now(), Numbers.of(sim.pool), sim.world.prices
    room = cap - sum(prices[machine.placement] for machine in sim.live())
    short = [
        market
        for market, wanted in ((Market.ON_DEMAND, numbers.floor), (Market.SPOT, numbers.spot))
        if units(sim.pool, (m for m in sim.live(market) if m.able(now) and m.told_at is None)) < wanted
    ]
    return bool(short) and all(price > room for place, price in prices.items() if place.market in short)


REGRESSIONS: tuple[int, ...] = (
    1,  # two daemons wrote one journal: the first had hung while its lease was removed by hand
    2,  # the only node, unreachable for this host alone, was ended while a balancer sent it requests
    3,  # with an old copy of the journal, a standby at work was stopped
    4,  # on a host whose clock was an hour ahead every node was given up as soon as it was launched
    8,  # after a restart, the nodes on a page that a list lacked were taken out of the set
    1001,  # a node that had come back to life was ended because its termination had been asked for before
    1002,  # a node that an old list showed again after its end was put back into the set
    1003,  # with an old copy of the journal, a target was taken out before the cloud was seen
    1005,  # a node was ended on an acknowledgement that the balancer had forgotten
    1007,  # a machine of somebody else that carries our tag was ended
    46004926,  # the checker judged a set by what happened after it was sent
    101015185,  # the checker judged a drain when it took effect, not when a balancer acknowledged it
    197058967,  # a balancer that forgot the removal of a drained node held it for ever
    206342826,  # a drain to save money went on while those that should stay went away
    323957529,  # after a clock was set, an operator's drain seemed to have waited for a day
    344685002,  # the only target was ended because its engine had been silent for a moment
    691277479,  # lists hid a node, one look at its engine failed, and it was gone
    702651805,  # the checker took a drain to save money for one that a report asked for
    812982724,  # the checker judged by what a forgetful balancer held whether a target is the last
    892992165,  # a node was ended while the set that made it the last resort was on its way
    894402626,  # an old journal's drain, taken back since, took a working node out
    907204677,  # the checker forgot with a full disk that the cloud takes a node away
    965288551,  # the only target, whose end had been asked for in vain, was taken out
    684881300,  # a list from before a standby was started had it taken out while it served
)
"""Seeds that found a bug, at `REGRESSION_HOURS` each."""

REGRESSION_HOURS = 0.25


class Bug(Protocol):
    """What is planted into a run: it replaces ports and the journal, and `into` changes the rest."""

    @property
    def wrap(self) -> Callable[[Simulation, Ports], Ports]: ...

    @property
    def store(self) -> type[RecordedStore]: ...

    def into(self, sim: Simulation, pool: Mapping[str, Any]) -> None: ...


def play(seed: int, *, hours: float, look: float = LOOK) -> Outcome:
    """One run of a seed."""
    return play_swarm(Swarm(seed, hours, look=look))


def play_swarm(
    swarm: Swarm,
    *,
    wrap: Callable[[Simulation, Ports], Ports] | None = None,
    planted: Bug | None = None,
    kept: int = 400,
) -> Outcome:
    """One run of what a seed drew; `kept` lines of its trace stay.

    `wrap` replaces ports of every daemon. `planted`: a bug, whose rule is in force already; the run ends as
    soon as an invariant breaks.
    """
    wrap = planted.wrap if planted is not None else wrap
    with tempfile.TemporaryDirectory() as folder:
        sim = Simulation(
            config(Path(folder), record_turns=swarm.record_turns, look=swarm.look, **swarm.pool),
            sales=[*sales(regions=swarm.regions), *swarm.large],
            seed=swarm.seed,
            pace=swarm.pace,
            traffic=Traffic(per_second=2.0, seconds=swarm.answers, propagation=swarm.propagation),
            bounds=bounds(swarm.look, swarm.propagation, swarm.answers[1]),
            sources=swarm.sources,
            wrap=None if wrap is None else lambda ports: wrap(sim, ports),
            store=RecordedStore if planted is None else planted.store,
        )
        if planted is not None:
            planted.into(sim, swarm.pool)
            sim.stop_once_broken()
        sim.world.trace.tail = deque(maxlen=kept)
        return sim.run(swarm.script)
