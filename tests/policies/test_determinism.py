"""The same history gives the same plan: over a replay, in another run, and in any order of the mappings."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from policies.decide import decide
from policies.memory import Memory, reduce, replay
from policies.model import Market, NoticeKind, StandbyRules, World
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_cloud import ToyCloud
from tests.support.toy_pools import quick_pool


def stormy(toy: ToyCloud, seed: int, turns: int = 120) -> Any:
    """A run full of trouble, drawn from a seed."""
    draw = random.Random(seed)
    for _ in range(turns):
        alive = toy.alive()
        pick = draw.choice(alive) if alive else ""
        match draw.randrange(14):
            case 0 if pick and toy.machines[pick].spot:
                toy.reclaim(pick, draw.choice([0.0, 30.0, 120.0]), told=draw.random() < 0.7)
            case 1:
                toy.set_capacity(draw.choice(list(Market)), draw.choice([0, 3, 100]), draw.choice("abc"))
            case 2 if pick:
                toy.kill_engine(pick)
            case 3:
                toy.losing_answers = draw.random() < 0.5
            case 4:
                toy.list_lag = draw.choice([0.0, 6.0])
            case 5 if pick:
                toy.operator_drain(pick)
            case 6:
                toy.configure(replicas=draw.randint(2, 10))
            case 7:
                toy.balancer_works = draw.random() < 0.7
            case 8 if draw.random() < 0.2:
                toy.restart()
            case 9 if pick:
                toy.notice(pick, 60.0, kind=draw.choice(list(NoticeKind)))
            case 10:
                toy.load(draw.randint(0, 2))
        toy.turn()
    return toy


@pytest.fixture
def run() -> Callable[[int], Any]:
    def make(seed: int) -> Any:
        pool = quick_pool(6, standby=StandbyRules(hot=1, stopped=1))
        return stormy(CheckedCloud(pool, record=True), seed)

    return make


@pytest.mark.parametrize("seed", [1, 3, 11])
def test_decided_again_from_the_journal_every_turn_gives_its_plan(
    run: Callable[[int], Any], seed: int
) -> None:
    """Whatever the instant at which a daemon dies, the next one has the same memory and decides the same."""
    toy = run(seed)
    assert len({type(a) for t in toy.turns for a in t.plan.actions}) >= 6
    memory, done = Memory(), 0
    for turn in toy.turns:
        memory = reduce(memory, *toy.journal[done : turn.events_before])
        done = turn.events_before
        assert memory == turn.memory
        assert decide(turn.pool, turn.world, memory) == turn.plan
    assert replay(toy.journal) == toy.memory


def test_the_same_history_gives_the_same_run(run: Callable[[int], Any]) -> None:
    first, second = run(5), run(5)
    assert [t.plan for t in first.turns] == [t.plan for t in second.turns]
    assert first.journal == second.journal


def shuffled(value: Any, draw: random.Random) -> Any:
    """The same mapping in another order, its inner mappings too."""
    if isinstance(value, Mapping):
        items = [(key, shuffled(inner, draw)) for key, inner in value.items()]
        draw.shuffle(items)
        return dict(items)
    return value


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_mappings_and_lists_does_not_matter(run: Callable[[int], Any], seed: int) -> None:
    draw = random.Random(seed)

    def mixed(world: World) -> World:
        machines = list(world.instances)
        offerings = list(world.offerings["sim"].value)
        draw.shuffle(machines)
        draw.shuffle(offerings)
        return replace(
            world,
            regions={"": replace(world.regions[""], value=tuple(machines))},
            offerings={"sim": replace(world.offerings["sim"], value=tuple(offerings))},
            engines=shuffled(world.engines, draw),
            balancers=shuffled(world.balancers, draw),
        )

    for turn in run(seed).turns:
        fields = {f.name: shuffled(getattr(turn.memory, f.name), draw) for f in dataclasses.fields(Memory)}
        assert decide(turn.pool, mixed(turn.world), Memory(**fields)) == turn.plan


def test_deciding_changes_neither_memory_nor_world(run: Callable[[int], Any]) -> None:
    for turn in run(1).turns[::10]:
        before = repr((turn.memory, turn.world))
        decide(turn.pool, turn.world, turn.memory)
        assert repr((turn.memory, turn.world)) == before
