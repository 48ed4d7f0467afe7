"""A month of money: what `orchestrator cost` tells, held against accounts that know nothing of the ledger.

    python tests/simulation/money.py                  30 simulated days
    python tests/simulation/money.py --days 3

One daemon keeps two pools whole on spot and on-demand machines whose prices change. Spot nodes are taken with
and without a notice, zones are sold out, the daemon is killed some times a day and away for up to forty
minutes now and then, while nodes end. The simulated cloud bills every machine from its launch to its end at
the price of each instant; a day's requests are played into the gateways' usage file and spend file, some by
gateways that die, and each is written down beside them. Then the report is read from the files that daemon
and gateways left: every cell by pool, day, zone and market, what on-demand would have cost, every day of each
provider, model and key, and all tokens must be the same to the cent. Exit code 1 when one is not.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sqlite3
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also under PYTHONSAFEPATH

from jobs import memory_folder, quiet
from scenarios import PACE, ZONES, sales

from cloud.sim.balancer import Traffic
from cloud.sim.invariants import Bounds
from orchestrator.config.load import Config, build_config
from orchestrator.costs.books import read_books
from orchestrator.costs.view import view_of
from orchestrator.gateway.accounts.usage_file import UsageFile
from orchestrator.gateway.spend_file import Claim, Settled, SpendFile, Ticket
from orchestrator.simulation.simulate import Simulation
from policies.model import Market, Placement
from policies.spend import PICO, Usage, day_of

DAY = 86_400.0
CENT = 0.01
POOLS = {"chat": 4, "batch": 3}
KEYS = ("team-a", "team-b", "")
PROVIDERS = {"claude": ("large", "small"), "mistral": ("medium",)}

EVERY = {"reclaim": 2 * 3600.0, "price": 6 * 3600.0, "kill": 7 * 3600.0, "away": 2 * DAY, "traffic": 600.0}
"""Seconds between two of them on average, in each pool where they are of a pool."""

PATIENT = Bounds(track=90.0, forget_target=90.0, see_loss=90.0, settle_calls=180.0)


@dataclass
class CloudBill:
    """What one pool's cloud bills: each machine from its launch to its end, at the price of each instant."""

    prices: dict[Placement, list[tuple[float, float]]]
    machines: dict[str, tuple[Placement, float, float | None]] = field(default_factory=dict)

    def note(self, sim: Simulation, pool: str) -> None:
        """Write down the machines that there are, before the world forgets those that ended long ago."""
        for machine in sim.pools[pool].world.of(pool):
            self.machines[machine.id] = (machine.placement, machine.launched_at, machine.ended_at)

    def cells(self, until: float) -> dict[tuple[str, str, str], float]:
        """USD by day, zone and market, up to an instant."""
        found: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        for place, launched, ended in self.machines.values():
            end = until if ended is None else min(ended, until)
            for begin, stop, price in self.stretches(place, launched, end):
                cell = (day_of(begin), place.zone, str(place.market))
                found[cell].append(price * (stop - begin) / 3600.0)
        return {cell: math.fsum(parts) for cell, parts in found.items()}

    def on_demand(self, since: float, until: float) -> dict[str, float]:
        """USD by day of one machine at the cheapest on-demand price of each instant."""
        places = [place for place in self.prices if place.market is Market.ON_DEMAND]
        turns = sorted(
            {since, *(at for place in places for at, _ in self.prices[place] if since < at < until)}
        )
        found: defaultdict[str, list[float]] = defaultdict(list)
        for begin, end in zip(turns, [*turns[1:], until], strict=True):
            price = min(price for p in places for *_, price in self.stretches(p, begin, begin + 1e-3))
            for first, last in days(begin, end):
                found[day_of(first)].append(price * (last - first) / 3600.0)
        return {day: math.fsum(parts) for day, parts in found.items()}

    def stretches(self, place: Placement, begin: float, end: float) -> Iterator[tuple[float, float, float]]:
        """Stretches of time within one day and at one price."""
        known = self.prices[place]
        for (at, price), (after, _) in zip(known, [*known[1:], (math.inf, 0.0)], strict=True):
            for first, last in days(max(begin, at), min(end, after)):
                yield first, last, price


def days(begin: float, end: float) -> Iterator[tuple[float, float]]:
    """A stretch of time, cut at midnight (UTC)."""
    while begin < end:
        midnight = (begin // DAY + 1) * DAY
        yield begin, min(end, midnight)
        begin = midnight


@dataclass
class Gateways:
    """Requests played into the gateways' files, and an account of them that is kept apart."""

    folder: Path
    rng: random.Random
    paid: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)  # picodollars
    tokens: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    died: int = 0

    def serve(self, now: float) -> None:
        """Some minutes of requests: tokens of pools by key, and calls of providers that cost money."""
        with closing(UsageFile(self.folder / "usage.db")) as usage:
            for pool in POOLS:
                key, requests = self.rng.choice(KEYS), self.rng.randint(1, 400)
                fresh, output = requests * self.rng.randint(10, 900), requests * self.rng.randint(1, 300)
                names = (int(now // 3600), key, "", f"pool/{pool}", "")
                usage.add([(names, [requests, 0, 0, fresh, 0, 0, output, 1.0, 2.0])], now)
                self.tokens[pool, day_of(now), key] += fresh + output
        with closing(SpendFile(self.folder / "spend.db")) as spend:
            for _ in range(self.rng.randint(0, 3)):
                self._call(spend, now)

    def _call(self, spend: SpendFile, now: float) -> None:
        provider = self.rng.choice([*PROVIDERS])
        model, key = self.rng.choice(PROVIDERS[provider]), self.rng.choice(KEYS)
        most = self.rng.randint(1, PICO // 2)
        claim = Claim(provider=provider, route="", model=model, amount=most, until=now + 60.0, key=key)
        [ticket] = spend.apply([claim], now)
        assert isinstance(ticket, Ticket)
        cell = (provider, day_of(now), model, key)
        if self.rng.random() < 0.02:  # its gateway dies: nobody settles it, and it counts at its most
            self.died += 1
            self.paid[cell] += most
            return
        amount = self.rng.randint(0, most)
        used = Usage(self.rng.randint(1, 5000), 0, 0, self.rng.randint(1, 900))
        spend.apply([Settled(ticket=ticket, amount=amount, usage=used)], now + self.rng.uniform(0.0, 50.0))
        self.paid[cell] += amount


@dataclass(frozen=True)
class Difference:
    """One figure: as the report tells it and as it was counted apart, in USD or tokens."""

    what: str
    told: float
    counted: float

    @property
    def off(self) -> float:
        return abs(self.told - self.counted)


@dataclass(frozen=True)
class Result:
    """What a run came to: every figure, what happened, what else broke."""

    figures: list[Difference]
    happened: Counter[str]
    broken: list[str]

    def worst(self, kind: str) -> Difference:
        """The figure of a kind that is farthest off."""
        return max((f for f in self.figures if f.what.startswith(kind)), key=lambda f: f.off)


def config(folder: Path, look: float) -> Config:
    """Two pools whose daemon looks every so many seconds, and two providers."""
    pool = {
        "drain": {"budget": 20.0, "margin": 5.0, "settle": 1.0},
        "back_to_spot": {"hold": 60.0, "stable": 30.0},
        "health": {"unhealthy_after": 60.0, "replace_after": 180.0, "boot_timeout": 600.0},
        "patience": {"stale_after": 120.0, "vanish_grace": 60.0, "effect_timeout": 60.0},
    }
    return build_config(
        {
            "daemon": {
                "state_dir": "state", "listen": "off", "tick": look, "poll_instances": look,
                "poll_targets": 30.0, "poll_offerings": look, "probe_interval": 30.0, "probe_timeout": 5.0,
                "record_turns": "off", "keep_events": DAY,
            },
            "pool": {name: {**pool, "replicas": n, "model": name} for name, n in POOLS.items()},
            "provider": {
                name: {
                    "kind": "openai", "url": f"https://{name}.example.com/v1", "usd_per_day": "unlimited",
                    "api_key_file": "{credentials}/key",
                    "price": {model: {"input": "3", "output": "15"} for model in models},
                }
                for name, models in PROVIDERS.items()
            },
        },
        base=folder,
    )  # fmt: skip


def play(
    length: float, *, seed: int = 1, look: float = 10.0, tick: float = 1.0, often: float = 1.0
) -> Result:
    """Play so many days and hold the report against the accounts.

    `look`, `tick`: seconds between two looks of the daemon, and of nature. `often`: how many times as often
    as in EVERY something happens.
    """
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        found = config(Path(folder), look)
        month = Month(found, seed=seed, often=often)
        sim = Simulation(
            found,
            sales=sales(),
            seed=seed,
            pace=replace(PACE, tick=tick, listed_after_end=3600.0),  # as long as EC2 lists what ended
            traffic=Traffic(per_second=0.01),
            bounds=PATIENT,
            longest=(length + 1) * DAY,
        )
        outcome = sim.run(lambda sim: month.script(sim, length * DAY))
        broken = [str(b) for b in outcome.broken]
        return Result(list(month.differences()), month.happened + Counter(boots=outcome.boots), broken)


class Month:
    """One run: what happens when, and the accounts of it."""

    def __init__(self, config: Config, *, seed: int, often: float) -> None:
        self.config, self.rng, self._often = config, random.Random(seed), often
        self.happened: Counter[str] = Counter()
        self.bills: dict[str, CloudBill] = {}
        self.gateways = Gateways(config.daemon.state_dir, random.Random(seed + 1))
        self._began = self._ended = 0.0

    async def script(self, sim: Simulation, length: float) -> None:
        """Boot, live for so long, end in good order."""
        self._began = sim.clock.now()
        for pool in POOLS:
            prices = sim.pools[pool].world.prices
            self.bills[pool] = CloudBill({place: [(0.0, price)] for place, price in prices.items()})
        sim.boot(supervised=True)
        await sim.settle(within=3600.0)
        due = {what: sim.clock.now() + self._wait(what) for what in EVERY}
        end = self._began + length
        while sim.clock.now() < end:
            what = min(due, key=lambda name: due[name])
            await sim.clock.sleep(max(0.0, min(due[what], end) - sim.clock.now()))
            if sim.clock.now() < end:
                await self._happen(sim, what)
                due[what] = sim.clock.now() + self._wait(what)
        while (process := sim.running) is None or process.up_since is None:
            await sim.clock.sleep(1.0)
        await sim.clock.sleep(120.0)  # nothing is under way that a daemon has yet to see
        await sim.stop(process)
        self._ended = sim.clock.now()
        for pool, bill in self.bills.items():
            bill.note(sim, pool)

    def _wait(self, what: str) -> float:
        return self.rng.uniform(0.5, 1.5) * EVERY[what] / self._often

    async def _happen(self, sim: Simulation, what: str) -> None:
        self.happened[what] += 1
        now, pool = sim.clock.now(), self.rng.choice([*POOLS])
        world = sim.pools[pool].world
        if what == "traffic":
            self.gateways.serve(now)
        elif what == "price":
            place = self.rng.choice([*world.prices])
            world.prices[place] = round(world.prices[place] * self.rng.uniform(0.97, 1.03), 4)
            self.bills[pool].prices[place].append((now, world.prices[place]))
        elif what == "reclaim":
            for name in POOLS:
                self._reclaim(sim, name)
            zone, capacity = self.rng.choice(ZONES), self.rng.choice((0, 10, 10, 10))
            for place in world.prices:
                if place.zone == zone and place.market is Market.SPOT:
                    world.set_capacity(place, capacity)
        elif (process := sim.running) is not None:
            sim.kill(process)
            if what == "kill":
                sim.restart_later()
                await sim.clock.sleep(3.0)
                return
            for name in POOLS:
                self._reclaim(sim, name)
            await sim.clock.sleep(self.rng.uniform(60.0, 2400.0))
            sim.boot(supervised=True)
            await sim.clock.sleep(60.0)  # a price that changes while nobody looks is charged as it is then

    def _reclaim(self, sim: Simulation, pool: str) -> None:
        found = sim.pools[pool]
        spots = [m.id for m in found.world.of(pool) if m.live and m.placement.market is Market.SPOT]
        if spots:
            told = self.rng.random() < 0.8
            after = self.rng.uniform(100.0, 140.0) if told else 1.0
            found.board.reclaim(self.rng.choice(spots), after=after, notice=after if told else None)
        self.bills[pool].note(sim, pool)
        found.world.bury(before=sim.clock.now() - 7200.0)

    # -- the report beside the accounts ----------------------------------------------------------------

    def differences(self) -> Iterator[Difference]:
        """Every figure of the report beside the one that was counted apart."""
        charged = self._charged()
        yield from self._machines(charged)
        yield from self._on_demand(charged)
        yield from self._providers()
        yield from self._tokens()

    def _charged(self) -> dict[str, float]:
        """Until when the daemon counted each pool."""
        with closing(sqlite3.connect(self.config.daemon.state_dir / "journal.db")) as db:
            return dict(db.execute("SELECT pool, charged_until FROM totals").fetchall())

    def _rows(self, *by: str) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
        hours = {"since": int(self._began // 3600), "until": int(self._ended // 3600) + 1}
        books, missing = read_books(self.config, now=self._ended, **hours)
        view = view_of(books, by, missing)
        return [(tuple(row["group"][name] or "" for name in by), dict(row)) for row in view["rows"]]

    def _machines(self, charged: dict[str, float]) -> Iterator[Difference]:
        counted = {
            (pool, *cell): usd
            for pool, bill in self.bills.items()
            for cell, usd in bill.cells(charged[pool]).items()
        }
        told = {
            group: row["machines_usd"]
            for group, row in self._rows("pool", "day", "zone", "market")
            if row["machines_usd"]
        }
        yield from _compared("machines", told, counted)
        for names in (("pool",), ("pool", "market"), ("day",), ("zone",)):
            where = [("pool", "day", "zone", "market").index(name) for name in names]
            sums: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
            for cell, usd in counted.items():
                sums[tuple(cell[i] for i in where)].append(usd)
            told = {group: row["machines_usd"] for group, row in self._rows(*names) if row["machines_usd"]}
            yield from _compared("machines", told, {cell: math.fsum(parts) for cell, parts in sums.items()})

    def _on_demand(self, charged: dict[str, float]) -> Iterator[Difference]:
        told = {
            group: row["on_demand_usd"] for group, row in self._rows("pool", "day") if row["on_demand_usd"]
        }
        with closing(sqlite3.connect(self.config.daemon.state_dir / "journal.db")) as db:
            sums = db.execute("SELECT pool, SUM(wanted_unit_seconds) FROM baseline_hours GROUP BY pool")
            seconds = {pool: wanted / POOLS[pool] for pool, wanted in sums}
        for pool, bill in self.bills.items():
            began = charged[pool] - seconds[pool]
            yield Difference(f"begin {pool}, s", began, self._began)
            counted = {
                (pool, day): usd * POOLS[pool] for day, usd in bill.on_demand(began, charged[pool]).items()
            }
            yield from _compared("on-demand", {c: u for c, u in told.items() if c[0] == pool}, counted)

    def _providers(self) -> Iterator[Difference]:
        told = {
            (group[0].removeprefix("provider/"), *group[1:]): row["providers_usd"]
            for group, row in self._rows("pool", "day", "model", "key")
            if group[0].startswith("provider/")
        }
        yield from _compared("provider", told, {c: pico / PICO for c, pico in self.gateways.paid.items()})

    def _tokens(self) -> Iterator[Difference]:
        told = {
            group: row["tokens_in"] + row["tokens_out"]
            for group, row in self._rows("pool", "day", "key")
            if group[0] in POOLS and row["requests"]
        }
        yield from _compared("tokens", told, dict(self.gateways.tokens))


def _compared(kind: str, told: dict[Any, float], counted: dict[Any, float]) -> Iterator[Difference]:
    for cell in sorted(told.keys() | counted.keys()):
        yield Difference(f"{kind} {' '.join(cell)}", told.get(cell, 0.0), counted.get(cell, 0.0))


def sound(result: Result) -> bool:
    """All dollars are the same to the cent, all tokens the same."""
    return (
        not result.broken
        and all(f.off < CENT / 2 for f in result.figures if not f.what.startswith(("tokens", "begin")))
        and all(f.off == 0 for f in result.figures if f.what.startswith("tokens"))
        and all(f.off < 15.0 for f in result.figures if f.what.startswith("begin"))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--look", type=float, default=10.0, help="seconds between two looks of the daemon")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    quiet()
    result = play(options.days, seed=options.seed, look=options.look)
    if options.output == "json":
        print(json.dumps({"happened": result.happened, "figures": [vars(f) for f in result.figures]}))
        return not sound(result)
    for kind in ("machines", "on-demand", "provider", "tokens", "begin"):
        figures = [f for f in result.figures if f.what.startswith(kind)]
        worst = result.worst(kind)
        print(
            f"{kind}: {len(figures)} figures; the farthest off is {worst.what}: {worst.told!r} told, ", end=""
        )
        print(f"{worst.counted!r} counted, {worst.off:.6f} off")
    for pool in POOLS:
        told = next(f for f in result.figures if f.what == f"machines {pool}")
        print(f"{pool}: {told.told:,.4f} USD told, {told.counted:,.4f} USD counted apart")
    print(", ".join(f"{name} {count}" for name, count in sorted(result.happened.items())))
    for line in result.broken:
        print(line)
    return not sound(result)


if __name__ == "__main__":
    sys.exit(main())
