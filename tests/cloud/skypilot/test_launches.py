"""One machine a token, whatever dies when: the ledger is written first, the cloud asked before a launch."""

import asyncio
import errno
import os
import signal
from dataclasses import replace

import pytest
from sky_stage import region

from cloud.errors import Denied, InsufficientCapacity, Misconfigured, NotFound, Uncertain
from cloud.skypilot.instances import cluster_of
from cloud.tombstones import Stage
from policies.model import Ending, InstanceState, Market

pytestmark = pytest.mark.slow


def full(*_):
    """What a write to a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


GCP = {"cloud": "gcp", "network": "net"}  # its call takes no token of ours


@pytest.mark.parametrize("moment", ["die-first", "die", "lose"])
async def test_a_helper_that_dies_in_a_launch_costs_no_second_machine(stage, asked, moment):
    daemon = stage.daemon()
    stage.cloud.fault("launch", moment)
    with pytest.raises(Uncertain):
        await daemon.instances.launch(asked())
    launched = await daemon.instances.launch(asked())
    assert [f"m-{m['id']}" for m in stage.cloud.machines()] == [launched.id]


@pytest.mark.parametrize("moment", ["die-first", "die"])
async def test_a_daemon_that_dies_in_a_launch_leaves_its_machine_to_the_next(stage, asked, moment):
    stage.cloud.fault("launch", moment)
    first = stage.daemon()
    with pytest.raises(Uncertain):
        await first.instances.launch(asked())
    await first.close()
    second = stage.daemon()
    listed = await second.instances.list("pool", "us-east-1")  # found although no answer ever named it
    assert [i.id for i in listed] == [f"m-{m['id']}" for m in stage.cloud.machines()]
    launched = await second.instances.launch(asked())
    assert (len(stage.cloud.machines()), launched.build, launched.token) == (1, "b-1", "t-1")


async def test_a_token_whose_machine_ended_unseen_launches_nothing(stage, asked):
    """It was made, nobody here heard of it, and it was taken back since."""
    daemon = stage.daemon()
    stage.cloud.fault("launch", "die")
    with pytest.raises(Uncertain):
        await daemon.instances.launch(asked())
    stage.cloud.take(f"m-{stage.cloud.machines()[0]['id']}")
    again = await daemon.instances.launch(asked())
    assert (again.state, len(stage.cloud.machines())) == (InstanceState.TERMINATED, 1)


async def test_a_token_whose_machine_the_cloud_forgot_launches_nothing(stage, asked):
    daemon = stage.daemon()
    launched = await daemon.instances.launch(asked())
    await daemon.instances.terminate(launched.id)
    await daemon.instances.list("pool", "us-east-1")
    stage.cloud.forget()
    await daemon.close()
    again = await stage.daemon().instances.launch(asked())
    assert (again.id, again.state) == (launched.id, InstanceState.TERMINATED)
    assert stage.cloud.machines() == []


async def test_without_a_ledger_the_cloud_is_still_asked_first(stage, asked):
    first = stage.daemon()
    launched = await first.instances.launch(asked())
    await first.close()
    stage.file.unlink()
    again = await stage.daemon().instances.launch(asked())
    assert (again.id, len(stage.cloud.machines())) == (launched.id, 1)


async def test_nothing_is_launched_without_the_ledger(stage, asked, monkeypatch):
    daemon = stage.daemon()
    await daemon.instances.list("pool", "us-east-1")
    monkeypatch.setattr("cloud.tombstones.os.pwrite", full)
    with pytest.raises(Denied, match="ledger"):
        await daemon.instances.launch(asked())
    assert (stage.cloud.asked("launch"), stage.cloud.machines()) == (0, [])


async def test_a_cloud_that_takes_no_token_is_asked_again_only_once_it_would_show_the_machine(
    stage, asked, hand_clock
):
    place = region(**GCP)
    daemon = stage.daemon(clock=hand_clock, place=place, settles=60.0)
    stage.cloud.fault("launch", "die-first")
    with pytest.raises(Uncertain):
        await daemon.instances.launch(asked())
    hand_clock.at += 59.0
    with pytest.raises(Uncertain, match="shows no machine"):
        await daemon.instances.launch(asked())
    assert stage.cloud.machines() == []
    hand_clock.at += 1.0
    await daemon.instances.launch(asked())
    assert len(stage.cloud.machines()) == 1


async def test_a_second_launch_of_unknown_outcome_is_given_its_time_as_well(stage, asked, hand_clock):
    daemon = stage.daemon(clock=hand_clock, place=region(**GCP), settles=60.0)
    for _ in range(3):
        stage.cloud.fault("launch", "die-first")
        with pytest.raises(Uncertain, match="ended with"):
            await daemon.instances.launch(asked())
        hand_clock.at += 59.0
        with pytest.raises(Uncertain, match="shows no machine"):
            await daemon.instances.launch(asked())
        hand_clock.at += 61.0
    assert (await daemon.instances.launch(asked())).id == "m-1"


async def test_a_machine_of_a_token_that_was_refused_long_ago_is_young(stage, asked, hand_clock):
    daemon = stage.daemon(clock=hand_clock)
    stage.cloud.fault("launch", "refuse", "no-capacity")
    with pytest.raises(InsufficientCapacity):
        await daemon.instances.launch(asked())
    hand_clock.at += 600.0
    launched = await daemon.instances.launch(asked())
    assert launched.launched_at == hand_clock.at
    stage.cloud.take(launched.id)
    stage.cloud.forget()  # as of a machine that it does not show yet
    assert [i.state for i in await daemon.instances.list("pool", "us-east-1")] == [InstanceState.PENDING]


async def test_a_disk_that_fills_while_a_machine_is_launched_leaves_the_outcome_open(
    stage, asked, monkeypatch
):
    daemon = stage.daemon()
    stage.cloud.fault("launch", "hold", seconds=0.5)
    launching = asyncio.ensure_future(daemon.instances.launch(asked()))
    await stage.until(lambda: stage.cloud.asked("launch") == 1)
    with monkeypatch.context() as patch:
        patch.setattr("cloud.tombstones.os.pwrite", full)
        with pytest.raises(Uncertain, match="ledger"):
            await launching
    assert (await daemon.instances.launch(asked())).id == "m-1"


async def test_a_ledger_that_is_removed_under_a_daemon_loses_no_machine(stage, asked):
    daemon = stage.daemon()
    launched = await daemon.instances.launch(asked())
    stage.file.unlink()
    assert [i.id for i in await daemon.instances.list("pool", "us-east-1")] == [launched.id]
    await daemon.close()
    assert [i.id for i in await stage.daemon().instances.list("pool", "us-east-1")] == [launched.id]


async def test_a_step_on_a_damaged_line_is_found_out_again(stage, asked):
    first = stage.daemon()
    launched = await first.instances.launch(asked())
    await first.close()
    lines = stage.file.read_bytes().splitlines(keepends=True)
    stage.file.write_bytes(lines[0] + lines[1].replace(b"made", b"m\0de"))
    second = stage.daemon()
    assert [i.id for i in await second.instances.list("pool", "us-east-1")] == [launched.id]
    await second.instances.terminate(launched.id)
    assert [m["state"] for m in stage.cloud.machines()] == ["terminated"]


async def test_a_refusal_is_none_of_what_was_made_before(stage, asked):
    daemon = stage.daemon()
    launched = await daemon.instances.launch(asked())
    stage.cloud.fault("launch", "refuse", "no-capacity")
    with pytest.raises(Uncertain):
        await daemon.instances.launch(asked())
    assert daemon.ledger.find("t-1").stage is Stage.MADE
    assert (await daemon.instances.launch(asked())).id == launched.id


async def test_a_refused_look_at_a_cloud_without_tokens_leaves_the_outcome_open(stage, asked, hand_clock):
    daemon = stage.daemon(clock=hand_clock, place=region(**GCP))
    stage.cloud.fault("launch", "die")
    with pytest.raises(Uncertain):
        await daemon.instances.launch(asked())
    stage.cloud.fault("launch", "refuse", "throttled")
    hand_clock.at += 1.0
    with pytest.raises(Uncertain):
        await daemon.instances.launch(asked())
    assert daemon.ledger.find("t-1").stage is Stage.ASKED


async def test_a_launch_that_never_was_is_given_up_by_the_list(stage, asked, hand_clock):
    daemon = stage.daemon(clock=hand_clock)
    stage.cloud.fault("launch", "die-first")
    with pytest.raises(Uncertain):
        await daemon.instances.launch(asked())
    assert await daemon.instances.list("pool", "us-east-1") == ()
    assert daemon.ledger.find("t-1").stage is Stage.ASKED
    hand_clock.at += 121.0
    assert await daemon.instances.list("pool", "us-east-1") == ()
    looks = stage.cloud.asked("look")
    assert daemon.ledger.find("t-1").stage is Stage.REFUSED
    await daemon.instances.list("pool", "us-east-1")
    assert stage.cloud.asked("look") == looks == 2


async def test_a_list_beside_a_launch_gives_nothing_up(stage, asked, hand_clock):
    daemon = stage.daemon(clock=hand_clock)
    stage.cloud.fault("launch", "hold", seconds=1.0)
    launching = asyncio.ensure_future(daemon.instances.launch(asked()))
    await stage.until(lambda: stage.cloud.asked("launch") == 1)
    hand_clock.at += 500.0
    assert await daemon.instances.list("pool", "us-east-1") == ()
    assert daemon.ledger.find("t-1").stage is Stage.ASKED
    assert (await launching).id == "m-1"


async def test_a_machine_that_the_cloud_does_not_show_yet_is_pending(stage, asked, hand_clock):
    daemon = stage.daemon(clock=hand_clock)
    launched = await daemon.instances.launch(asked())
    stage.cloud.take(launched.id)
    stage.cloud.forget()
    states = []
    for _ in range(3):
        states += [i.state for i in await daemon.instances.list("pool", "us-east-1")]
        hand_clock.at += 61.0
    assert states == [InstanceState.PENDING, InstanceState.PENDING, InstanceState.TERMINATED]


async def test_what_ended_is_listed_for_a_while_and_asked_for_no_more(stage, asked, hand_clock):
    daemon = stage.daemon(clock=hand_clock)
    launched = await daemon.instances.launch(asked())
    stage.cloud.take(launched.id)
    (ended,) = await daemon.instances.list("pool", "us-east-1")
    assert (ended.state, ended.ending, ended.ended_at) == (InstanceState.TERMINATED, Ending.RECLAIM, 1000.0)
    looks = stage.cloud.asked("look")
    assert await daemon.instances.list("pool", "us-east-1") == (ended,)
    hand_clock.at += 901.0
    assert await daemon.instances.list("pool", "us-east-1") == ()
    assert (stage.cloud.asked("look"), stage.cloud.asked("forget")) == (looks, 1)


async def test_an_end_on_demand_that_nobody_asked_for_is_not_explained(stage, asked):
    daemon = stage.daemon()
    launched = await daemon.instances.launch(asked(market=Market.ON_DEMAND))
    stage.cloud.take(launched.id)
    (ended,) = await daemon.instances.list("pool", "us-east-1")
    assert (ended.ending, "did not ask for it" in ended.ending_why) == (Ending.UNKNOWN, True)


async def test_five_of_one_token_at_once_from_two_daemons_are_one_machine(stage, asked):
    """As after a takeover whose predecessor still lives: the second helper waits for the end of the first."""
    first, second = stage.daemon(), stage.daemon()
    launched = await asyncio.gather(*(first.instances.launch(asked()) for _ in range(5)))
    waiting = asyncio.ensure_future(second.instances.launch(asked()))
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    assert not done
    os.kill(first.helper.pid, signal.SIGKILL)
    assert {i.id for i in (*launched, await waiting)} == {"m-1"}


async def test_stops_follow_what_the_cloud_can(stage, asked):
    daemon = stage.daemon()
    spot = await daemon.instances.launch(asked("t-1"))
    with pytest.raises(Misconfigured, match="cannot stop a spot machine on aws"):
        await daemon.instances.stop(spot.id)
    assert stage.cloud.asked("stop") == 0
    await daemon.close()
    other = stage.daemon(place=region(cloud="runpod", network=""))
    with pytest.raises(Misconfigured, match="on runpod"):
        await other.instances.stop(spot.id)


async def test_a_machine_of_a_region_that_is_named_no_more_says_so(stage, asked):
    first = stage.daemon()
    launched = await first.instances.launch(asked())
    await first.close()
    moved = stage.daemon(place=region(region="us-west-2", zones=("us-west-2a",)))
    with pytest.raises(Misconfigured, match="does not name any more"):
        await moved.instances.terminate(launched.id)
    with pytest.raises(NotFound):
        await moved.instances.stop("m-99")


@pytest.mark.parametrize("place", [{"region": "eu-west-1"}, {"zone": "us-east-1f"}, {"provider": "aws"}])
async def test_a_placement_that_is_not_the_pools_is_misconfigured(stage, asked, place):
    with pytest.raises(Misconfigured):
        await stage.daemon().instances.launch(asked(**place))
    assert stage.cloud.asked("launch") == 0


async def test_refusals_burn_no_token(stage, asked):
    daemon = stage.daemon()
    for word in ("no-capacity", "quota", "throttled", "misconfigured"):
        stage.cloud.fault("launch", "refuse", word)
        with pytest.raises(Exception, match="injected") as refused:
            await daemon.instances.launch(asked())
        assert refused.value.word == word
    stage.cloud.fault("launch", "refuse", "no-capacity")
    with pytest.raises(InsufficientCapacity):
        await daemon.instances.launch(asked())
    assert (await daemon.instances.launch(asked())).id == "m-1"


async def test_an_engine_is_started_over_ssh_once_and_again_after_a_failure(stage, asked):
    place = replace(region(cloud="nebius", zones=("us-east-1",), network="net"), script="start it")
    daemon = stage.daemon(place=place)
    stage.cloud.fault("engine", "refuse", "error")
    await daemon.instances.launch(asked(zone="us-east-1"))
    script = stage.home / f"engine-{cluster_of('t-1')}.sh"
    for number in (1, 2):
        await daemon.instances.list("pool", "us-east-1")
        await stage.until(lambda wanted=number: stage.cloud.asked("engine") == wanted)
    await stage.until(script.exists)
    await stage.until(lambda: not daemon.instances.orders)
    await daemon.instances.list("pool", "us-east-1")
    await stage.until(lambda: not daemon.instances.orders)
    assert (script.read_text(), stage.cloud.asked("engine")) == ("start it", 2)


async def test_a_list_that_was_given_up_goes_on_where_it_was(stage, asked, hand_clock):
    daemon = stage.daemon(clock=hand_clock)
    for number in range(4):
        await daemon.instances.launch(asked(f"t-{number}"))
    stage.cloud.fault("look", "hold", seconds=1.0)
    given_up = asyncio.ensure_future(daemon.instances.list("pool", "us-east-1"))
    await stage.until(lambda: stage.cloud.asked("look") == 4)
    await daemon.helper.ask("info")
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    listed = await daemon.instances.list("pool", "us-east-1")
    assert len(listed) == 4
    assert 4 < stage.cloud.asked("look") < 8  # what was seen already was not asked again
    before = stage.cloud.asked("look")
    await daemon.instances.list("pool", "us-east-1")
    assert stage.cloud.asked("look") == before + 4  # and counts once


async def test_a_machine_that_lives_for_months_is_never_forgotten(stage, asked, hand_clock, monkeypatch):
    monkeypatch.setattr("cloud.tombstones._LARGE", 0)  # every line that is written drops what is forgotten
    daemon = stage.daemon(clock=hand_clock)
    launched = await daemon.instances.launch(asked())
    for number in range(6):
        hand_clock.at += 16 * 86_400.0
        await daemon.instances.launch(asked(f"other-{number}"))
        listed = {i.id for i in await daemon.instances.list("pool", "us-east-1")}
        assert launched.id in listed


def test_names_are_made_of_tokens_and_fit_every_cloud():
    assert cluster_of("a/1/2/3") == cluster_of("a/1/2/3") != cluster_of("a/1/2/4")
    assert len(cluster_of("x" * 64)) == 15
