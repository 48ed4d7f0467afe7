"""What was spent, as it is told and as it is counted apart from the ledger; `money.py` plays a month."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from money import CENT, CloudBill, Difference, Result, days, play, sound
from outages import holders, passes
from scenarios import PACE, config, place, sales

from cloud.sim.balancer import Traffic
from orchestrator.costs.gather import Span, from_journal
from orchestrator.loop.ledger import Ledger
from orchestrator.simulation.simulate import Simulation
from policies.model import Market

SPOT = place(Market.SPOT, "a")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_hours_of_reclaims_kills_and_outages_are_told_to_the_cent() -> None:
    result = play(0.75, seed=3, look=30.0, tick=5.0, often=3.0)
    assert result.broken == []
    assert all(result.happened[what] for what in ("reclaim", "price", "kill", "away", "traffic"))
    for kind in ("machines", "on-demand", "provider"):
        assert result.worst(kind).off < CENT / 2, result.worst(kind)
        assert sum(f.counted for f in result.figures if f.what.startswith(kind)) > 10.0
    assert result.worst("tokens").off == 0
    assert sound(result)


# -- takeovers of a pair -----------------------------------------------------------------------------------


def taken_over(folder: Path) -> tuple[float, float]:
    """USD told and USD counted apart, of a pair whose leader dies or hangs as nodes begin and end."""
    found: list[CloudBill] = []

    async def script(sim: Simulation) -> None:
        found.append(CloudBill({at: [(0.0, price)] for at, price in sim.world.prices.items()}))
        hosts = {name: sim.boot(host=name) for name in "ab"}
        await sim.settle()
        for number in range(4):
            spots = [m.id for m in sim.live(Market.SPOT)]
            sim.board.reclaim(spots[0], after=20.0 * (number % 2), notice=20.0 * (number % 2))
            await passes(sim, 3.0 + 7 * number)
            [leader] = holders(sim)
            name = next(host for host, process in hosts.items() if process is leader)
            if number % 2:
                sim.kill(leader)
            else:
                sim.freeze(leader)
            await passes(sim, 40.0)
            if leader.frozen:
                sim.thaw(leader)
            await passes(sim, 10.0)
            hosts[name] = sim.boot(host=name)
            await sim.settle()
        await passes(sim, 30.0)
        [leader] = holders(sim)
        await sim.stop(leader)
        found[0].note(sim, "p")

    sim = Simulation(config(folder), sales=sales(), seed=2, pace=PACE, traffic=Traffic(per_second=0.1))
    outcome = sim.run(script)
    assert not outcome.broken, outcome.broken
    path = sim.config.daemon.state_dir
    with closing(sqlite3.connect(path / "journal.db")) as db:
        until = db.execute("SELECT charged_until FROM totals").fetchone()[0]
    hours = Span(since=0, until=10**6, now=sim.clock.now())
    told = sum(hour.usd for hour in from_journal(path, hours).spent)
    return told, sum(found[0].cells(until).values())


def test_takeovers_lose_and_double_nothing(tmp_path: Path) -> None:
    told, counted = taken_over(tmp_path)
    assert told == pytest.approx(counted, abs=CENT / 100)
    assert told > 0.9


def test_ends_that_nobody_settles_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "_settle", lambda *_, **__: None)
    told, counted = taken_over(tmp_path)
    assert abs(told - counted) > CENT / 10


# -- the account itself ------------------------------------------------------------------------------------

MIDNIGHT = 19_700 * 86_400.0


def test_a_machine_is_billed_at_the_price_of_each_instant_on_the_day_of_it() -> None:
    bill = CloudBill({SPOT: [(0.0, 3.6), (MIDNIGHT - 10.0, 7.2), (MIDNIGHT + 100.0, 36.0)]})
    bill.machines["i-1"] = (SPOT, MIDNIGHT - 30.0, MIDNIGHT + 110.0)
    bill.machines["i-2"] = (SPOT, MIDNIGHT + 100.0, None)
    cells = bill.cells(MIDNIGHT + 200.0)
    assert cells == {
        ("2023-12-08", "a", "spot"): pytest.approx(20 * 0.001 + 10 * 0.002),
        ("2023-12-09", "a", "spot"): pytest.approx(100 * 0.002 + 10 * 0.01 + 100 * 0.01),
    }
    assert bill.cells(MIDNIGHT)[("2023-12-08", "a", "spot")] == pytest.approx(0.04)


def test_on_demand_is_what_the_cheapest_place_asks() -> None:
    first, second = place(Market.ON_DEMAND, "a"), place(Market.ON_DEMAND, "b")
    bill = CloudBill({SPOT: [(0.0, 0.1)], first: [(0.0, 3.6), (MIDNIGHT + 10.0, 36.0)], second: [(0.0, 7.2)]})
    told = bill.on_demand(MIDNIGHT - 10.0, MIDNIGHT + 20.0)
    assert told == {"2023-12-08": pytest.approx(0.01), "2023-12-09": pytest.approx(0.01 + 0.02)}


def test_a_stretch_of_time_is_cut_at_midnight() -> None:
    assert [*days(MIDNIGHT - 5.0, MIDNIGHT + 86_401.0)] == [
        (MIDNIGHT - 5.0, MIDNIGHT),
        (MIDNIGHT, MIDNIGHT + 86_400.0),
        (MIDNIGHT + 86_400.0, MIDNIGHT + 86_401.0),
    ]


@pytest.mark.parametrize(
    ("what", "off", "good"),
    [
        ("machines p", 0.004, True),
        ("machines p", 0.006, False),
        ("on-demand p", 0.006, False),
        ("provider claude", 0.006, False),
        ("tokens p", 1.0, False),
        ("begin p", 3.0, True),
    ],
)
def test_what_is_not_the_same_to_the_cent_is_not_sound(what: str, off: float, good: bool) -> None:
    figures = [Difference("machines q", 5.0, 5.0), Difference(what, 7.0 + off, 7.0)]
    assert sound(Result(figures, Counter(), [])) is good
    assert not sound(Result(figures, Counter(), ["an invariant"]))
