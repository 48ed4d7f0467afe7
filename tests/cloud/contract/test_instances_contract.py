"""What every adapter of `Instances` keeps, whatever the provider. See `cloud.ports.Instances`."""

import asyncio
from dataclasses import replace

import pytest

from cloud.errors import CloudError, InsufficientCapacity, NotFound, Throttled, Uncertain
from cloud.ports import CONSOLE_MOST
from policies.model import Ending, InstanceState, Market, StandbyKind

pytestmark = pytest.mark.slow

GONE = (InstanceState.TERMINATED,)


@pytest.fixture
def console_world(cloud_world):
    """A provider that keeps what machines wrote."""
    if not cloud_world.keeps_consoles:
        pytest.skip("this provider keeps no consoles")
    return cloud_world


async def test_a_launch_is_listed_with_what_it_asked_for(cloud_world):
    request = replace(await cloud_world.request("t-1"), standby=StandbyKind.HOT)
    launched = await cloud_world.instances.launch(request)
    listed = await cloud_world.until_state(launched.id, InstanceState.RUNNING)
    assert (listed.token, listed.pool, listed.placement) == ("t-1", "pool", request.placement)
    assert listed.standby is StandbyKind.HOT
    assert listed.launched_at <= cloud_world.clock.now()
    assert listed.price is None or listed.price > 0  # an unknown price is never zero
    host, _, port = listed.address.rpartition(":")
    assert host
    assert int(port) > 0


async def test_two_launches_of_the_same_run_the_same(cloud_world):
    """Whether the cloud goes by our command or by a template of its own: what was the same stays so."""
    first, second = [
        await cloud_world.instances.launch(await cloud_world.request(name)) for name in ("t-1", "t-2")
    ]
    listed = {i.id: i.build for i in await cloud_world.listed("pool")}
    assert listed[first.id] == listed[second.id] != ""


async def test_the_same_token_gives_the_same_instance(cloud_world):
    request = await cloud_world.request("t-1")
    first = await cloud_world.instances.launch(request)
    again = await cloud_world.instances.launch(request)
    assert again.id == first.id
    assert [i.id for i in await cloud_world.listed("pool")] == [first.id]


async def test_the_same_token_at_the_same_time_launches_one(cloud_world):
    request = await cloud_world.request("t-1")
    launched = await asyncio.gather(*(cloud_world.instances.launch(request) for _ in range(5)))
    assert len({instance.id for instance in launched}) == 1
    assert len(await cloud_world.listed("pool")) == 1


async def test_the_token_of_a_terminated_instance_launches_nothing(cloud_world):
    request = await cloud_world.request("t-1")
    first = await cloud_world.instances.launch(request)
    await cloud_world.instances.terminate(first.id)
    await cloud_world.until_state(first.id, *GONE)
    again = await cloud_world.instances.launch(request)
    assert again.id == first.id
    assert again.state is InstanceState.TERMINATED
    assert len(await cloud_world.listed("pool")) == 1


async def test_different_tokens_launch_different_instances(cloud_world):
    first = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    second = await cloud_world.instances.launch(await cloud_world.request("t-2"))
    assert first.id != second.id


async def test_a_lost_answer_is_uncertain_and_the_token_resolves_it(cloud_world):
    request = await cloud_world.request("t-1")
    await cloud_world.lose_answer("launch")
    with pytest.raises(Uncertain):
        await cloud_world.instances.launch(request)
    resolved = await cloud_world.instances.launch(request)
    assert [i.id for i in await cloud_world.listed("pool")] == [resolved.id]


async def test_lost_answers_to_changes_are_uncertain_and_may_be_asked_again(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    await cloud_world.until_state(launched.id, InstanceState.RUNNING)
    await cloud_world.lose_answer("terminate")
    with pytest.raises(Uncertain):
        await cloud_world.instances.terminate(launched.id)
    await cloud_world.instances.terminate(launched.id)
    await cloud_world.until_state(launched.id, *GONE)


async def test_a_capacity_refusal_launches_nothing_and_burns_no_token(cloud_world):
    request = await cloud_world.request("t-1", Market.SPOT)
    await cloud_world.refuse_launches(1)
    with pytest.raises(InsufficientCapacity):
        await cloud_world.instances.launch(request)
    assert await cloud_world.listed("pool") == ()
    launched = await cloud_world.instances.launch(request)
    assert [i.id for i in await cloud_world.listed("pool")] == [launched.id]


async def test_a_throttled_call_does_nothing(cloud_world):
    request = await cloud_world.request("t-1")
    await cloud_world.throttle(1)
    with pytest.raises(Throttled):
        await cloud_world.instances.launch(request)
    assert await cloud_world.listed("pool") == ()


async def test_a_list_is_complete_or_an_error(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    await cloud_world.fail_list()
    with pytest.raises(CloudError):
        await cloud_world.listed("pool")
    assert [i.id for i in await cloud_world.listed("pool")] == [launched.id]


async def test_a_list_shows_its_own_pool_only(cloud_world):
    mine = await cloud_world.instances.launch(await cloud_world.request("t-1", pool="mine"))
    await cloud_world.instances.launch(await cloud_world.request("t-2", pool="theirs"))
    assert [i.id for i in await cloud_world.listed("mine")] == [mine.id]
    assert await cloud_world.listed("nobody's") == ()


async def test_terminate_ends_an_instance_and_may_be_asked_again(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    await cloud_world.until_state(launched.id, InstanceState.RUNNING)
    await cloud_world.instances.terminate(launched.id)
    await cloud_world.instances.terminate(launched.id)
    ended = await cloud_world.until_state(launched.id, *GONE)
    await cloud_world.instances.terminate(launched.id)
    assert (ended.id, ended.ending) == (launched.id, Ending.REQUEST)
    assert ended.ending_why


async def test_what_was_taken_back_says_so(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1", Market.SPOT))
    running = await cloud_world.until_state(launched.id, InstanceState.RUNNING)
    await cloud_world.take(launched.id)
    ended = await cloud_world.until_state(launched.id, *GONE)
    assert (running.ending, running.ending_why) == (Ending.UNKNOWN, "")
    assert ended.ending is Ending.RECLAIM
    assert ended.ending_why


async def test_terminate_of_an_instance_still_pending(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    await cloud_world.instances.terminate(launched.id)
    await cloud_world.until_state(launched.id, *GONE)


async def test_terminate_of_an_unknown_instance_is_success(cloud_world):
    await cloud_world.instances.terminate("i-0000000000000000")
    assert await cloud_world.listed("pool") == ()


async def test_stop_and_start_keep_the_instance(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    await cloud_world.until_state(launched.id, InstanceState.RUNNING)
    await cloud_world.instances.stop(launched.id)
    await cloud_world.instances.stop(launched.id)
    stopped = await cloud_world.until_state(launched.id, InstanceState.STOPPED)
    await cloud_world.instances.stop(launched.id)
    assert (stopped.token, stopped.placement) == (launched.token, launched.placement)
    await cloud_world.instances.start(launched.id)
    await cloud_world.instances.start(launched.id)
    running = await cloud_world.until_state(launched.id, InstanceState.RUNNING)
    await cloud_world.instances.start(launched.id)
    assert (running.token, running.placement) == (launched.token, launched.placement)
    assert running.address
    assert len(await cloud_world.listed("pool")) == 1


async def test_a_start_may_meet_no_capacity_and_leaves_it_stopped(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    await cloud_world.until_state(launched.id, InstanceState.RUNNING)
    await cloud_world.instances.stop(launched.id)
    await cloud_world.until_state(launched.id, InstanceState.STOPPED)
    await cloud_world.refuse_launches(1)
    with pytest.raises(InsufficientCapacity):
        await cloud_world.instances.start(launched.id)
    await cloud_world.until_state(launched.id, InstanceState.STOPPED)


async def test_a_stopped_instance_can_be_terminated(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    await cloud_world.until_state(launched.id, InstanceState.RUNNING)
    await cloud_world.instances.stop(launched.id)
    await cloud_world.until_state(launched.id, InstanceState.STOPPED)
    await cloud_world.instances.terminate(launched.id)
    await cloud_world.until_state(launched.id, *GONE)


async def test_stop_and_start_of_what_is_gone_are_not_found(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    await cloud_world.instances.terminate(launched.id)
    await cloud_world.until_state(launched.id, *GONE)
    for node in (launched.id, "i-0000000000000000"):
        with pytest.raises(NotFound):
            await cloud_world.instances.stop(node)
        with pytest.raises(NotFound):
            await cloud_world.instances.start(node)


async def test_a_console_shows_what_a_machine_wrote_also_once_it_has_ended(console_world):
    launched = await console_world.launch_writing("loading weights\nout of memory\n")
    await console_world.until_state(launched.id, InstanceState.RUNNING)
    assert await console_world.until_written(launched.id) == "loading weights\nout of memory"
    await console_world.instances.terminate(launched.id)
    await console_world.until_state(launched.id, *GONE)
    assert await console_world.instances.console(launched.id) == "loading weights\nout of memory"


async def test_a_console_that_was_never_written_to_is_empty(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    assert await cloud_world.instances.console(launched.id) == ""


async def test_the_console_of_an_unknown_instance_is_not_found(cloud_world):
    with pytest.raises(NotFound):
        await cloud_world.instances.console("i-0000000000000000")


ILL = {
    "one-line": "x" * 1_000_000,
    "escapes": "\x1b[2J\x1b]0;gone\x07\x1b[31merror\x1b[0m\u202e\x00\x9b\n" * 30_000,
    "newlines": "\r\n" * 500_000,
}


@pytest.mark.parametrize("kind", ILL)
async def test_a_console_is_the_bounded_end_in_printable_lines(console_world, kind):
    """A megabyte of a machine that means ill."""
    launched = await console_world.launch_writing(f"{ILL[kind]}\nthe last\n")
    await console_world.until_state(launched.id, InstanceState.RUNNING)
    text = await console_world.until_written(launched.id, "the last")
    assert len(text.encode()) <= CONSOLE_MOST
    assert all(row and row.isprintable() and "[31m" not in row for row in text.split("\n"))


async def test_a_throttled_look_at_a_console_says_so(console_world):
    launched = await console_world.instances.launch(await console_world.request("t-1"))
    await console_world.throttle(1)
    with pytest.raises(Throttled):
        await console_world.instances.console(launched.id)


async def test_closing_touches_no_machine(cloud_world):
    launched = await cloud_world.instances.launch(await cloud_world.request("t-1"))
    await cloud_world.until_state(launched.id, InstanceState.RUNNING)
    await cloud_world.instances.close()
    await cloud_world.instances.close()
    await cloud_world.until_state(launched.id, InstanceState.RUNNING)
