"""The target table by itself: sets, generations, the choice, health and breakers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cloud.balancers.targets import TargetSet
from orchestrator.gateway.blame import BreakerState
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.continuation import Capability, Way
from orchestrator.gateway.entry import ANYWHERE, Wish
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.targets import StaleGeneration, TargetTable, WrongPool
from policies.model import TargetPhase, TargetSpec, TargetState


class World:
    """A table with a hand-turned clock."""

    def __init__(self, **settings):
        self.now = 100.0
        defaults = {"max_in_flight": 8, "breaker_failures": 3, "breaker_open": 10.0}
        gate = PoolGate(targets_file=Path("t"), **(defaults | settings))
        self.table = TargetTable(now=lambda: self.now, rng=random.Random(7), gate=gate)
        self.generation = 0

    def put(self, *specs, healthy=True):
        self.generation += 1
        change = self.table.apply(
            TargetSet(generation=self.generation, pool="p", written_at=1.0, targets=specs)
        )
        if healthy:
            for entry in self.table:
                self.table.checked(entry, "", 1)
        return change

    def entry(self, node):
        return next(entry for entry in self.table if entry.spec.id == node)

    def chosen(self, wish=ANYWHERE):
        entry = self.table.choose(wish)
        return entry and entry.spec.id

    def end(self, entry, failure=None):
        """A request ends there: well, or with a failure."""
        self.table.take(entry)
        if failure is None:
            self.table.good(entry)
        else:
            self.table.blame(entry, failure)
        self.table.give(entry)


def without(*entries):
    """The wish of a request that these failed."""
    wish = Wish()
    for entry in entries:
        wish.failed_at(entry)
    return wish


@pytest.fixture
def world():
    return World()


def spec(node, **fields):
    return TargetSpec(id=node, address=f"10.0.0.1:{8000 + ord(node[-1])}", **fields)


def test_lower_generations_and_other_pools_change_nothing():
    world = World(name="p")
    world.generation = 4
    world.put(spec("a"))
    old = TargetSet(generation=4, pool="p", written_at=1.0, targets=())
    with pytest.raises(StaleGeneration, match="generation 4 is lower than the accepted 5"):
        world.table.apply(old)
    with pytest.raises(WrongPool, match="'q'"):
        world.table.apply(TargetSet(generation=9, pool="q", written_at=1.0, targets=()))
    assert world.table.generation == 5
    assert world.chosen() == "a"


def test_the_same_generation_may_come_again(world):
    world.put(spec("a"))
    world.generation -= 1
    assert world.put(spec("a"), spec("b")).added == ("b",)


def test_a_set_tells_what_it_changed(world):
    world.put(spec("a"), spec("b"), spec("c"))
    change = world.put(spec("a"), spec("b", phase=TargetPhase.DRAINING, drain_deadline=200.0), spec("d"))
    assert (change.added, change.drained, change.removed) == (("d",), ("b",), ("c",))
    assert world.put(spec("a"), spec("b"), spec("d")).added == ()
    assert not world.entry("b").draining


def test_what_is_known_of_a_target_stays_unless_its_address_changes(world):
    world.put(spec("a"))
    world.put(TargetSpec(id="a", address="10.0.0.1:8097", weight=50), healthy=False)
    assert world.entry("a").health is TargetState.HEALTHY
    world.put(TargetSpec(id="a", address="10.9.9.9:8000"), healthy=False)
    assert world.entry("a").health is TargetState.INITIAL


def test_the_least_busy_target_for_its_weight_is_chosen(world):
    world.put(spec("a", weight=100), spec("b", weight=50), spec("z", weight=0))
    for _ in range(6):
        world.table.take(world.table.choose())
    assert {entry.spec.id: entry.in_flight for entry in world.table} == {"a": 4, "b": 2, "z": 0}


def test_ties_are_broken_by_the_seed():
    def first(seed):
        world = World()
        world.table._rng = random.Random(seed)
        world.put(*(spec(node) for node in "abcdefgh"))
        return [world.chosen() for _ in range(8)]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_a_target_of_four_units_takes_and_holds_four_times_as_many_requests():
    world = World(max_in_flight=3)
    world.put(spec("a"), spec("b", weight=400))
    taken = []
    while (entry := world.table.choose()) is not None:
        world.table.take(entry)
        taken.append(entry.spec.id)
    assert (taken.count("a"), taken.count("b")) == (3, 12)
    assert (taken[:5].count("a"), taken[:5].count("b")) == (1, 4)


def test_draining_and_removed_targets_are_never_chosen(world):
    world.put(spec("a"), spec("b"))
    world.table.take(world.entry("b"))
    world.put(spec("a", phase=TargetPhase.DRAINING), healthy=False)
    assert world.chosen() is None
    assert world.entry("b").state(world.now) == (
        TargetState.DRAINING,
        "removed; its last requests are running",
    )


def test_a_removed_target_lives_until_its_last_request_ends_and_may_come_back(world):
    world.put(spec("a"))
    entry = world.entry("a")
    world.table.take(entry)
    world.table.take(entry)
    world.put(healthy=False)
    assert list(world.table) == [entry]
    world.table.give(entry)
    assert list(world.table) == [entry]
    world.put(spec("a"), healthy=False)
    assert list(world.table) == [entry]
    assert entry.in_flight == 1
    world.put(healthy=False)
    world.table.give(entry)
    assert list(world.table) == []


def test_all_busy_means_waiting_not_failing_open(world):
    world.put(spec("a"), spec("b"))
    world.table.checked(world.entry("b"), "down", 1)
    for _ in range(8):
        world.table.take(world.entry("a"))
    assert world.chosen() is None


def test_an_unchecked_target_is_used_only_when_none_is_sound(world):
    world.put(spec("a"))
    world.put(spec("a"), spec("b"), healthy=False)
    assert world.chosen() == "a"
    world.table.checked(world.entry("a"), "down", 1)
    assert world.chosen() == "b"


def test_failing_open_takes_the_least_bad(world):
    world.put(spec("a"), spec("b"))
    for _ in range(3):
        world.table.checked(world.entry("a"), "down", 1)
    world.table.checked(world.entry("b"), "down", 1)
    assert world.chosen() == "b"
    assert world.chosen(without(world.entry("b"))) == "a"


def test_a_tried_target_waits_for_its_next_passed_check(world):
    world.put(spec("a"))
    wish = without(world.entry("a"))
    assert world.chosen(wish) is None
    world.table.checked(world.entry("a"), "", 1)
    assert world.chosen(wish) == "a"


def test_another_machine_under_a_known_name_has_failed_nothing(world):
    world.put(spec("a"))
    for _ in range(50):
        world.table.checked(world.entry("a"), "", 1)
    wish = without(world.entry("a"))
    world.put(TargetSpec(id="a", address="10.9.9.9:8000"))
    assert world.chosen(wish) == "a"


def test_a_target_that_passed_a_check_since_is_hoped_for(world):
    world.put(spec("a"))
    wish = without(world.entry("a"))
    assert not world.table.hopeful(wish)
    world.table.checked(world.entry("a"), "", 1)
    for _ in range(16):
        world.table.take(world.entry("a"))
    assert world.chosen(wish) is None
    assert world.table.hopeful(wish)


def test_checks_need_a_run_of_failures_but_one_pass(world):
    world.put(spec("a"))
    entry = world.entry("a")
    assert not world.table.checked(entry, "slow", 2)
    assert entry.health is TargetState.HEALTHY
    assert world.table.checked(entry, "slow", 2)
    assert entry.state(world.now) == (TargetState.UNHEALTHY, "slow")
    assert world.table.checked(entry, "", 2)
    assert entry.health is TargetState.HEALTHY


def test_a_refused_connection_makes_a_target_unhealthy_and_asks_for_a_check(world):
    world.put(spec("a"))
    entry = world.entry("a")
    world.end(entry, Failure.CONNECT)
    assert entry.health is TargetState.UNHEALTHY
    assert entry.suspicion.is_set()


def test_the_breaker_keeps_requests_away_and_lets_one_probe_pass(world):
    world.put(spec("a"), spec("b"))
    ill = world.entry("a")
    opened = []
    world.table.on_breaker_open.append(opened.append)
    for _ in range(3):
        world.end(ill, Failure.ENGINE_ERROR)
    assert opened == [ill]
    assert {world.chosen() for _ in range(20)} == {"b"}
    assert ill.state(world.now) == (TargetState.UNHEALTHY, "circuit breaker open")
    world.now += 10.0
    world.table.take(world.entry("b"))
    assert world.chosen() == "a"
    world.table.take(ill)
    assert {world.chosen() for _ in range(20)} == {"b"}
    world.table.good(ill)
    assert {world.chosen() for _ in range(20)} == {"a", "b"}
    assert ill.state(world.now)[0] is TargetState.HEALTHY


def test_a_probe_whose_client_leaves_lets_another_probe(world):
    world.put(spec("a"))
    entry = world.entry("a")
    for _ in range(3):
        world.end(entry, Failure.ENGINE_ERROR)
    world.now += 10.0
    world.table.take(world.table.choose())
    assert world.chosen() is None
    world.table.give(entry)
    assert world.chosen() == "a"
    assert entry.state(world.now) == (TargetState.HEALTHY, ""), "another may probe it"
    assert entry.breaker.state(world.now) is BreakerState.HALF_OPEN, "one that left has shown nothing"
    world.put(spec("a"), spec("b"))
    world.end(entry, Failure.ENGINE_ERROR)
    assert {world.chosen() for _ in range(20)} == {"b"}


def test_a_probe_that_tells_nothing_keeps_no_busy_target_closed(world):
    world.put(spec("a"))
    entry = world.entry("a")
    world.table.take(entry)  # a long stream
    world.table.blame(entry, Failure.RATE_LIMITED, 5.0)
    world.now += 5.0
    world.table.take(world.table.choose())
    world.table.give(entry)  # its client left
    assert world.chosen() is None
    world.now += 10.0
    assert world.chosen() == "a"


def test_a_client_that_leaves_and_a_move_on_purpose_are_no_fault_of_the_target(world):
    world.put(spec("a"))
    entry = world.entry("a")
    for _ in range(10):
        world.end(entry, Failure.MOVED)
        world.table.take(entry)
        world.table.give(entry)
    assert entry.in_flight == 0
    assert world.chosen() == "a"


def test_a_target_that_answers_503_at_once_does_not_draw_the_traffic(world):
    world.put(spec("a"), spec("b"), spec("c"))
    world.table.take(world.entry("b"))
    world.table.take(world.entry("c"))
    for _ in range(3):
        assert world.chosen() == "a"
        world.end(world.entry("a"), Failure.UNAVAILABLE)
    assert world.chosen() != "a"


def test_what_a_target_says_of_its_return_is_heard(world):
    world.put(spec("a"), spec("b"))
    world.table.blame(world.entry("a"), Failure.RATE_LIMITED, 30.0)
    world.now += 29.0
    assert {world.chosen() for _ in range(20)} == {"b"}
    world.now += 1.0
    assert {world.chosen() for _ in range(20)} == {"a", "b"}


def test_a_doubtful_target_is_taken_only_where_there_is_no_other(world):
    world.put(spec("a"), spec("b"))
    world.entry("a").doubtful = True
    for _ in range(8):
        entry = world.table.choose()
        assert entry.spec.id == "b"
        world.table.take(entry)
    assert world.chosen() == "a"


def test_a_request_that_lost_its_target_finds_room_where_new_ones_wait(world):
    world.put(spec("a"))
    for _ in range(8):
        world.table.take(world.table.choose())
    wish = Wish()
    assert world.chosen(wish) is None
    wish.again = True
    for _ in range(8):
        world.table.take(world.table.choose(wish))
    assert world.chosen(wish) is None


def test_a_pool_that_fails_as_a_whole_is_left_alone(world):
    world.put(spec("a"), spec("b"))
    assert world.table.hopeful()
    for entry in list(world.table):
        for _ in range(3):
            world.end(entry, Failure.BAD_GATEWAY)
    assert world.chosen() is None
    world.now += 5.0
    assert not world.table.hopeful()
    world.now += 5.0
    assert world.table.hopeful()


def test_hope_is_a_target_that_is_new_well_or_busy(world):
    assert world.table.hopeful()
    world.put()
    assert not world.table.hopeful()
    world.put(spec("a"), healthy=False)
    assert world.table.hopeful()
    entry = world.entry("a")
    world.table.checked(entry, "down", 1)
    world.now += 100.0
    assert not world.table.hopeful()
    entry.clock.moved(world.now, None)
    assert world.table.hopeful()


def test_only_targets_that_fit_are_chosen_and_hoped_for(world):
    world.put(spec("a"), spec("b"))
    wish = Wish()
    wish.fits = lambda entry: entry.spec.id == "b"
    assert {world.chosen(wish) for _ in range(20)} == {"b"}
    wish.fits = lambda entry: False
    assert world.chosen(wish) is None
    assert not world.table.hopeful(wish)


# -- what targets can do for broken streams --------------------------------------------------------


@pytest.mark.parametrize(
    ("builds", "ways", "found"),
    [
        (("x", "x", "x"), (None, None, None), None),
        (("x", "x", "x"), (None, Way.DERENDER, None), Way.DERENDER),
        (("x", "x", "x"), (None, Way.NONE, Way.CLEAN), Way.CLEAN),
        (("x", "y", "x"), (None, Way.DERENDER, None), None),
        (("", "", ""), (None, Way.DERENDER, None), None),
    ],
    ids=str,
)
def test_a_target_that_was_not_asked_yet_can_do_what_its_build_can(builds, ways, found):
    world = World()
    names = ("a", "b", "c")
    world.put(*(spec(name, build=build) for name, build in zip(names, builds, strict=True)))
    for name, way in zip(names, ways, strict=True):
        world.entry(name).capability = None if way is None else Capability(way=way, identity="m")
    able = world.table.able_by_build(world.entry("a"))
    assert (able and able.way) == found


def test_a_target_that_only_waits_for_its_probe_is_shown_as_it_is_used(world):
    """Where nobody asks for anything, nobody probes it either."""
    world.put(spec("a"))
    entry = world.entry("a")
    for _ in range(3):
        world.end(entry, Failure.ENGINE_ERROR)
    assert entry.state(world.now)[0] is TargetState.UNHEALTHY
    world.now += 10.0
    assert entry.state(world.now)[0] is TargetState.HEALTHY
    world.table.take(entry)
    assert entry.state(world.now) == (TargetState.UNHEALTHY, "circuit breaker half-open")


def test_a_target_that_cannot_take_a_request_hides_none_behind_it(world):
    """Each that stands before the good one is out for a reason of its own."""
    names = ("ill", "open", "full", "tried", "good")
    world.put(*(spec(name) for name in names))
    world.table.checked(world.entry("ill"), "down", 1)
    for _ in range(3):
        world.end(world.entry("open"), Failure.ENGINE_ERROR)
    for _ in range(8):
        world.table.take(world.entry("full"))
    wish = without(world.entry("tried"))
    assert {world.chosen(wish) for _ in range(20)} == {"good"}
    wish.key = 5
    assert world.chosen(wish) == "good"
    assert world.table.any_sound()
    for _ in range(8):
        world.table.take(world.entry("good"))
    assert world.chosen(wish) is None
    wish.again = True
    assert world.chosen(wish) in ("full", "good"), "there is as much room again"


def test_nothing_is_hoped_of_a_set_whose_targets_all_refuse_and_one_of_them_is_enough(world):
    world.put(spec("a"), spec("b"))
    for name in "ab":
        world.table.blame(world.entry(name), Failure.CONNECT)
    assert world.table.down()
    world.table.checked(world.entry("b"), "", 1)
    assert not world.table.down()
    assert world.table.has_room()
    for _ in range(8):
        world.table.take(world.entry("b"))
    assert not world.table.down()
    assert not world.table.has_room()
