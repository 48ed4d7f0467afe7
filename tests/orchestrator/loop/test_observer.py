"""Every part of the world is looked at on its own, with a deadline; a failure shows as an age."""

from __future__ import annotations

import math

import pytest
from observer_rig import Play, Watch, machine, watch

from cloud.errors import CloudError, Throttled, Uncertain
from orchestrator.loop.observer import Pace
from orchestrator.simulation.virtual_time import VirtualClock
from policies.fleet import Fleet
from policies.gpu_readings import NodeGpus, Xid
from policies.memory import Memory
from policies.model import (
    InstanceState,
    Pool,
    Target,
    TargetState,
)
from policies.value import replace
from policies.verdict import unread

pytestmark = pytest.mark.usefixtures("quiet")


def test_nothing_was_seen_before_the_first_answer(play: Play) -> None:
    async def work(w: Watch) -> None:
        world = w.world()
        parts = (world.regions[""], world.offerings["east"], world.balancers["gw"])
        assert [part.at for part in parts] == [None, None, None]
        assert all(part.age(world.now) == math.inf for part in parts)
        await w.clock.sleep(1.0)
        world = w.world()
        # As old as the question, not the answer.
        assert world.regions[""].age(world.now) == pytest.approx(1.0)
        assert {part: view.value for part, view in world.offerings.items()} == w.port.sells
        assert (world.durable, world.leading, world.epoch) == (True, True, 3)
        assert w.woken

    watch(play, work)


def test_a_list_grows_old_also_between_two_turns(play: Play) -> None:
    async def work(w: Watch) -> None:
        assert w.observer.age("r") == math.inf
        await w.clock.sleep(1.0)
        assert w.observer.age("r") == pytest.approx(1.0)  # one list for every region
        w.port.fails = {"instances": CloudError("no")}
        await w.clock.sleep(30.0)
        assert w.observer.age("r") == pytest.approx(31.0, abs=6.0)

    watch(play, work)


@pytest.mark.parametrize("error", [Throttled("slow down"), CloudError("what")])
def test_a_failed_look_keeps_the_value_and_shows_its_age_and_reason(play: Play, error: CloudError) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a")]
        await w.clock.sleep(1.0)
        w.port.fails = {"instances": error}
        await w.clock.sleep(30.0)
        found = w.world().regions[""]
        assert [i.id for i in found.value] == ["a"]
        assert found.age(w.clock.now()) > 24.0
        assert found.error == str(error)
        assert not w.world().balancers["gw"].error
        w.port.fails = {}
        await w.clock.sleep(2.0)
        assert w.world().regions[""].error == ""
        assert w.world().regions[""].age(w.clock.now()) < 3.0

    watch(play, work)


@pytest.mark.parametrize("down", ["fails", "hangs"])
def test_prices_of_one_part_that_cannot_be_read_leave_the_others(play: Play, down: str) -> None:
    async def work(w: Watch) -> None:
        if down == "fails":
            w.port.fails = {"east": CloudError("no")}
        else:
            w.port.hangs = {"east"}
        await w.clock.sleep(15.0)
        east, west = w.world().offerings["east"], w.world().offerings["west"]
        assert east.error
        assert east.at is None
        assert [o.price for o in east.value] == [None]  # what may be bought is known all the same
        assert (west.error, west.value) == ("", w.port.sells["west"])

    watch(play, work)


def test_prices_that_were_read_in_part_are_taken_with_what_is_missing(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.problems = {"east": "one of them is no number"}
        await w.clock.sleep(1.0)
        east = w.world().offerings["east"]
        assert east.error == "one of them is no number"
        assert east.value == w.port.sells["east"]
        assert east.at is not None
        w.port.problems = {}
        await w.clock.sleep(2.0)  # it is not left alone for the pace of prices that are whole
        assert w.world().offerings["east"].error == ""

    watch(play, work)


def test_looks_that_go_on_failing_are_repeated_less_often_also_in_a_hurry(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.observer.hurry(on=True)
        w.port.fails = {"instances": Throttled("slow down"), "east": Throttled("slow down")}
        await w.clock.sleep(60.0)
        assert w.looks("instances") < 16  # after 1, 2, 4 and then every 5 s
        assert w.looks("east") < 8

    watch(play, work)


def test_it_is_known_since_when_a_part_cannot_be_read(play: Play) -> None:
    async def work(w: Watch) -> None:
        await w.clock.sleep(11.0)
        asked = w.looks("targets")
        w.port.hangs = {"targets"}
        await w.clock.sleep(12.0)
        first = [at for _, at in w.port.looks if _ == "targets"][asked]
        assert w.world().balancers["gw"].failing_since is None, "nobody has waited for long enough yet"
        await w.clock.sleep(20.0)
        assert w.world().balancers["gw"].failing_since == first
        w.port.hangs = set()
        await w.clock.sleep(12.0)
        assert w.world().balancers["gw"].failing_since is None
        assert w.world().regions[""].failing_since is None

    watch(play, work)


def test_a_look_that_failed_late_is_repeated_at_once(play: Play) -> None:
    """A frozen gateway is asked again as soon as its time-out has passed."""

    async def work(w: Watch) -> None:
        await w.clock.sleep(1.0)
        w.port.fails, w.port.slow_look = {"targets": Uncertain("no answer")}, 2.0
        await w.clock.sleep(20.0)
        failed = [at for part, at in w.port.looks if part == "targets"][1:3]
        assert failed[1] - failed[0] == pytest.approx(2.0)

    watch(play, work)


@pytest.mark.parametrize("part", ["targets", "instances", "east"])
def test_a_part_that_fails_or_answers_again_wakes_the_loop_once(play: Play, part: str) -> None:
    async def work(w: Watch) -> None:
        await w.clock.sleep(20.0)
        for fails in ({part: CloudError("gone")}, {}):
            before = w.woken
            w.port.fails = dict(fails)
            await w.clock.sleep(100.0)
            assert w.woken == before + 1

    watch(play, work)


def test_a_source_of_notices_has_an_instant_at_which_it_was_surely_read(play: Play) -> None:
    async def work(w: Watch) -> None:
        assert w.world().heard == {"feed": None}
        w.port.silence = 7.0
        assert w.world().heard == {"feed": w.clock.now() - 7.0}

    watch(play, work)


def test_looks_that_follow_each_other_are_one_run_until_there_is_a_gap(play: Play) -> None:
    async def work(w: Watch) -> None:
        began = w.clock.now()
        await w.clock.sleep(31.0)
        assert w.world().regions[""].since == began
        w.port.fails = {"instances": Throttled("slow down")}
        await w.clock.sleep(30.0)
        assert w.world().regions[""].since == began
        w.port.fails = {}
        await w.clock.sleep(10.0)
        since = w.world().regions[""].since
        assert since is not None
        assert since - began > 60.0
        assert w.world().balancers["gw"].since == began

    watch(play, work)


def test_it_is_known_since_when_a_balancer_finds_a_target_unhealthy(play: Play) -> None:
    async def work(w: Watch) -> None:
        def failing_for() -> float | None:
            (target,) = w.world().balancers["gw"].value
            return None if target.failing_since is None else w.clock.now() - target.failing_since

        w.port.targets = (Target(id="a", address="a:1", state=TargetState.HEALTHY),)
        await w.clock.sleep(10.0)
        assert failing_for() is None
        w.port.targets = (Target(id="a", address="a:1", state=TargetState.UNHEALTHY),)
        await w.clock.sleep(30.0)
        found = failing_for()
        assert found is not None
        assert 24.0 < found <= 30.0
        w.port.fails = {"targets": Throttled("slow down")}
        await w.clock.sleep(30.0)
        w.port.fails = {}
        await w.clock.sleep(10.0)
        again = failing_for()
        assert again is not None
        assert again <= 10.0  # nobody looked for a while

    watch(play, work)


def test_silence_is_counted_anew_after_a_time_in_which_nobody_looked(play: Play) -> None:
    """The process hung: the looks before and after it are no run of looks that failed."""

    async def work(w: Watch) -> None:
        def silent_for() -> float:
            since = w.world().engines["a"].failing_since
            assert since is not None
            return w.clock.now() - since

        w.port.silent = {"a"}
        w.follow("a")
        await w.clock.sleep(20.0)
        assert silent_for() > 19.0
        w.port.slow_probe = 100.0
        await w.clock.sleep(103.0)
        w.port.slow_probe = 0.0
        assert silent_for() < 5.0

    watch(play, work)


@pytest.mark.parametrize(("seconds", "woke"), [(3.0, False), (15.0, True)])
def test_a_process_that_did_nothing_for_a_while_woke_up(play: Play, seconds: float, woke: bool) -> None:
    """What it saw before counts as seen before it woke, from the very next turn on."""

    async def work(w: Watch) -> None:
        began = w.clock.now()
        await w.clock.sleep(60.0)
        assert w.world().awake_since == began
        assert isinstance(w.clock, VirtualClock)
        w.clock.epoch += seconds  # time goes by and nothing runs
        now = w.clock.now()
        world = w.world()
        assert world.awake_since == (now if woke else began)
        assert world.seen(world.regions[""]) is not woke
        await w.clock.sleep(20.0)
        assert w.world().awake_since == world.awake_since
        assert w.world().seen(w.world().regions[""])

    watch(play, work)


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_each_region_is_looked_at_by_itself(play: Play, how: str) -> None:
    """One that fails or hangs keeps its list with its age; the other is as fresh as ever, and both wake."""

    async def work(w: Watch) -> None:
        await w.clock.sleep(1.0)
        first, woken = w.world(), w.woken
        assert {name: view.at is not None for name, view in first.regions.items()} == {
            "east": True,
            "west": True,
        }
        if how == "fails":
            w.port.fails = {"instances west": CloudError("503")}
        else:
            w.port.hangs = {"instances west"}
        w.port.machines = [machine("i-1")]
        await w.clock.sleep(60.0)
        world = w.world()
        east, west = world.regions["east"], world.regions["west"]
        assert west.at == first.regions["west"].at
        assert west.error == ("503" if how == "fails" else "no answer within 10 s")
        assert east.age(world.now) < 6.0
        assert [i.id for i in world.instances] == ["i-1"]
        assert w.woken > woken
        assert w.looks("instances east") > 10
        w.port.fails, w.port.hangs = {}, set()
        await w.clock.sleep(12.0)
        assert w.world().regions["west"].age(w.clock.now()) < 6.0

    watch(play, work, regions=("east", "west"))


def test_a_look_that_hangs_has_a_deadline_and_holds_up_no_other(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.hangs = {"instances"}
        await w.clock.sleep(31.0)
        world = w.world()
        assert world.regions[""].at is None
        assert world.regions[""].error == "no answer within 10 s"
        assert world.balancers["gw"].age(world.now) < 6.0
        w.port.hangs = set()
        await w.clock.sleep(12.0)
        assert w.world().regions[""].at is not None

    watch(play, work)


def test_in_a_hurry_instances_and_targets_are_looked_at_quickly_and_offerings_are_not(play: Play) -> None:
    async def work(w: Watch) -> None:
        await w.clock.sleep(10.0)
        before = {part: w.looks(part) for part in ("instances", "targets", "east")}
        w.observer.hurry(on=True)
        await w.clock.sleep(10.0)
        after = {part: w.looks(part) for part in before}
        assert after["instances"] - before["instances"] > 20
        assert after["targets"] - before["targets"] > 20
        assert after["east"] == before["east"]
        w.observer.hurry(on=False)
        await w.clock.sleep(1.0)
        calm = w.looks("instances")
        await w.clock.sleep(50.0)
        assert w.looks("instances") - calm <= 11

    watch(play, work)


def test_only_changes_wake_the_loop(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a")]
        w.follow("a")
        await w.clock.sleep(20.0)
        before = w.woken
        await w.clock.sleep(100.0)
        assert w.woken == before
        w.port.machines = [machine("a"), machine("b", InstanceState.PENDING)]
        await w.clock.sleep(6.0)
        assert w.woken > before
        before = w.woken
        w.port.targets = (Target(id="a", address="a:1", state=TargetState.HEALTHY),)
        await w.clock.sleep(6.0)
        assert w.woken > before
        before = w.woken
        w.port.silent = {"a"}
        await w.clock.sleep(3.0)
        assert w.woken == before + 1  # the edge, and not every failed probe
        await w.clock.sleep(20.0)
        assert w.woken == before + 1

    watch(play, work)


def test_looks_that_fail_before_the_first_answer_wake_nobody(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.fails = {part: CloudError("down") for part in ("instances", "east", "west", "targets")}
        await w.clock.sleep(30.0)
        assert w.looks("instances") > 3
        assert w.woken == 0
        w.port.fails = {}
        await w.clock.sleep(60.0)
        assert w.woken == 3  # an empty cloud and both parts of what is sold; an empty target set is as before

    watch(play, work)


def test_the_engines_that_are_followed_are_probed_whatever_lists_show(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a"), machine("b", InstanceState.STOPPED)]
        w.port.silent = {"c"}
        w.follow("b", "c")
        for _ in range(3):
            await w.clock.sleep(200.0)
            engines = w.world().engines
            assert {node: reading.ok for node, reading in engines.items()} == {"b": True, "c": False}
            assert all(reading.at > w.clock.now() - 3.0 for reading in engines.values())
        w.follow("b")
        assert set(w.world().engines) == {"b"}
        before = len(w.port.probes)
        await w.clock.sleep(10.0)
        assert {node for node, _ in w.port.probes[before:]} == {"b"}

    watch(play, work)


def test_engines_are_probed_before_the_cloud_was_seen(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.fails = {"instances": CloudError("down")}
        w.follow("a")
        await w.clock.sleep(1.0)
        assert w.world().regions[""].at is None
        assert w.world().engines["a"].ok

    watch(play, work)


def test_a_new_address_is_probed_anew_and_none_where_it_was(play: Play) -> None:
    async def work(w: Watch) -> None:
        for address, probed in (("", set()), ("old:1", {"old:1"}), ("", {"old:1"}), ("new:1", {"new:1"})):
            before = len(w.port.probes)
            w.observer.follow({"a": address})
            await w.clock.sleep(7.0)
            assert {address for _, address in w.port.probes[before:]} == probed

    watch(play, work)


def test_a_probe_that_crashes_is_begun_again(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.fails = {"crash a": RuntimeError("a bug")}
        for _ in range(4):
            w.follow("a", "b")
            await w.clock.sleep(5.0)
        assert set(w.world().engines) == {"b"}
        w.port.fails = {}
        w.follow("a", "b")
        await w.clock.sleep(1.0)
        assert set(w.world().engines) == {"a", "b"}

    watch(play, work)


def test_probes_are_bounded(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.follow(*(f"n{i}" for i in range(100)))
        await w.clock.sleep(20.0)
        assert len(w.world().engines) == 100
        assert w.port.most_probing == 8

    watch(play, work, probe_concurrency=8)


def test_a_world_is_a_snapshot(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.follow("a")
        await w.clock.sleep(7.0)
        world = w.world()
        seen = dict(world.engines)
        await w.clock.sleep(30.0)
        assert dict(world.engines) == seen

    watch(play, work)


def test_what_agents_tell_of_gpus_is_in_the_world_and_says_nothing_of_the_engine(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.follow("a", "b")
        await w.clock.sleep(10.0)
        assert w.world().gpus == {}
        xid = Xid(pci="0000:1b:00", code=79, text="")
        w.told["a"] = NodeGpus(node="a", at=w.clock.now(), source="agent", xids=(xid,))
        w.told["stranger"] = w.told["a"]
        world = w.world()
        assert set(world.gpus) == {"a"}
        assert world.gpus["a"].fault == "Xid 79: the GPU has fallen off the bus"
        assert world.engines["a"].ok
        w.follow("b")
        assert w.world().gpus == {}

    watch(play, work)


def test_a_node_that_is_slower_than_its_peers_is_in_the_world_with_how_long(play: Play) -> None:
    async def work(w: Watch) -> None:
        nodes = ("a", "b", "c", "d")
        w.port.machines = [machine(node) for node in nodes]
        w.port.works = dict.fromkeys(nodes, (10, 500.0))
        w.follow(*nodes)
        for _ in range(30):
            await w.clock.sleep(2.0)
            assert w.world().gpus == {}
        w.port.works["c"] = (10, 100.0)
        began = w.clock.now()
        for _ in range(90):
            await w.clock.sleep(2.0)
            world = w.world()
        state = world.gpus["c"]
        assert set(world.gpus) == {"c"}
        assert state.slow_since is not None
        assert began < state.slow_since < began + 60.0, "what was measured before weighs for a while"
        assert state.slow_at == world.now
        assert state.at is None, "nobody has read its GPUs"
        w.port.works = {}
        await w.clock.sleep(200.0)
        assert w.world().gpus == {}, "without work there is nothing to compare"

    watch(play, work)


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.9, 1.5, 1.9])
@pytest.mark.parametrize("takes", [0.001, 2.0], ids=["refused", "frozen"])
def test_a_gateway_that_falls_silent_is_unread_well_within_ten_seconds(
    play: Play, phase: float, takes: float
) -> None:
    """At the paces that a daemon has; and read again soon after it answers. One look may be lost."""
    pool = Pool(name="p", replicas=1)

    def away(w: Watch) -> bool:
        world = w.world()
        return unread(Fleet.of(pool, world, Memory()), world, "gw")

    async def until(w: Watch, *, silent: bool) -> float:
        began = w.clock.now()
        while away(w) is not silent:
            await w.clock.sleep(0.1)
        return w.clock.now() - began

    async def work(w: Watch) -> None:
        await w.clock.sleep(30.0 + phase)
        w.port.slow["targets"] = takes
        w.port.fails["targets"] = Uncertain("no answer")
        assert 3.9 < await until(w, silent=True) < 6.5
        w.port.slow.clear()
        w.port.fails.clear()
        assert await until(w, silent=False) < 4.5
        looks = w.looks("targets")
        w.port.slow["targets"] = takes
        w.port.fails["targets"] = Uncertain("one is lost")
        while w.looks("targets") == looks:
            await w.clock.sleep(0.01)
        await w.clock.sleep(takes - 0.01)
        w.port.slow.clear()
        w.port.fails.clear()
        for _ in range(100):
            assert not away(w)
            await w.clock.sleep(0.1)

    watch(play, work, targets=Pace().targets, in_path=True)


def test_since_when_a_balancer_has_no_usable_target(play: Play) -> None:
    async def work(w: Watch) -> None:
        healthy = Target(id="a", address="a:1", state=TargetState.HEALTHY)
        w.port.targets = (healthy,)
        await w.clock.sleep(3.0)
        assert w.world().services["gw"].bare_since is None
        w.port.targets = (replace(healthy, state=TargetState.UNHEALTHY),)
        await w.clock.sleep(6.0)
        since = w.world().services["gw"].bare_since
        w.port.targets = ()
        await w.clock.sleep(6.0)
        assert since is not None
        assert w.world().services["gw"].bare_since == since, "it had none all the while"
        w.port.targets = (replace(healthy, state=TargetState.INITIAL),)
        await w.clock.sleep(6.0)
        assert w.world().services["gw"].bare_since is None

    watch(play, work)
