"""What is Azure's own about machines; what holds of every cloud is in the contract suite."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from azure_pool import place
from azure_stage import SIZE

from cloud.azure.instances import LAG
from cloud.azure.machines import name_of
from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.ports import EngineCommand, LaunchRequest
from cloud.tombstones import Stage
from policies.model import Ending, InstanceState, Market, Placement

pytestmark = pytest.mark.slow


def request(name: str = "t-1", market: Market = Market.SPOT, zone: str = "eastus-1") -> LaunchRequest:
    where = Placement(
        provider="azure",
        region=zone.partition("-")[0],
        zone=zone,
        instance_type=SIZE,
        market=market,
    )
    return LaunchRequest(
        token=name, pool="pool", placement=where, command=EngineCommand(argv=("x",), build="b")
    )


async def state_of(adapters: Any, node: str, region: str = "eastus") -> Any:
    listed = await adapters.instances.list("pool", region)
    return next((i for i in listed if i.id == node), None)


def reaches(adapters: Any, node: str, *states: InstanceState) -> Any:
    async def look() -> Any:
        found = await state_of(adapters, node)
        return found if found is not None and found.state in states else None

    return look


async def test_a_replay_after_deletion_launches_nothing_also_by_a_daemon_that_just_started(
    stand: Any,
) -> None:
    first = stand.adapters()
    launched = await first.instances.launch(request())
    await first.instances.terminate(launched.id)
    await stand.until(reaches(first, launched.id, InstanceState.TERMINATED))
    for adapters in (first, stand.adapters()):
        again = await adapters.instances.launch(request())
        assert (again.id, again.state) == (launched.id, InstanceState.TERMINATED)
    assert (await stand.order("calls"))["calls"]["create"] == 1


async def test_a_token_whose_machine_was_evicted_while_nobody_looked_launches_nothing(stand: Any) -> None:
    launched = await stand.adapters().instances.launch(request())
    await stand.order("evict", node=launched.id)
    await stand.until(lambda: _gone(stand, launched.id))
    started = stand.adapters()
    again = await started.instances.launch(request())
    assert again.state is InstanceState.TERMINATED
    assert (await stand.order("calls"))["calls"]["create"] == 1


async def _gone(stand: Any, node: str) -> bool:
    return node in {m["id"] for m in (await stand.order("machines"))["ended"]}


async def test_nothing_is_left_of_machines_that_ended_in_whatever_way(stand: Any) -> None:
    adapters = stand.adapters()
    ends = [await adapters.instances.launch(request(f"t-{n}")) for n in range(3)]
    for launched in ends:
        await stand.until(reaches(adapters, launched.id, InstanceState.RUNNING))
    await adapters.instances.stop(ends[1].id)
    await stand.until(reaches(adapters, ends[1].id, InstanceState.STOPPED))
    await adapters.instances.terminate(ends[0].id)
    await adapters.instances.terminate(ends[1].id)
    await stand.order("evict", node=ends[2].id)
    for launched in ends:
        await stand.until(reaches(adapters, launched.id, InstanceState.TERMINATED))
    assert await stand.order("left") == {"machines": [], "disks": [], "interfaces": []}


async def test_a_launch_that_was_taken_and_not_met_is_a_lack_of_capacity_and_is_cleared_away(
    stand: Any,
) -> None:
    adapters = stand.adapters()
    await stand.order(
        "fault", action="create", kind="fail-later", code="ZonalAllocationFailed", message="no room in zone 1"
    )
    launched = await adapters.instances.launch(request())
    assert launched.state is InstanceState.PENDING
    ended = await stand.until(reaches(adapters, launched.id, InstanceState.TERMINATED))
    assert (ended.ending, ended.ending_why) == (Ending.CAPACITY, "ZonalAllocationFailed: no room in zone 1")

    async def cleared() -> bool:
        await adapters.instances.list("pool", "eastus")
        return not (await stand.order("left"))["machines"]

    await stand.until(cleared)
    after = await stand.until(reaches(adapters, launched.id, InstanceState.TERMINATED))
    assert after.ending is Ending.CAPACITY
    assert await stand.order("left") == {"machines": [], "disks": [], "interfaces": []}
    assert (await adapters.instances.launch(request())).state is InstanceState.TERMINATED


async def test_why_a_machine_ends_is_known_while_it_is_being_deleted(stand: Any) -> None:
    await stand.order("set", turn=1.0)
    adapters = stand.adapters()
    await stand.order("fault", action="create", kind="fail-later", code="AllocationFailed")
    launched = await adapters.instances.launch(request())
    await stand.until(reaches(adapters, launched.id, InstanceState.TERMINATED))
    ending = await stand.until(reaches(adapters, launched.id, InstanceState.SHUTTING_DOWN))
    assert ending.ending is Ending.CAPACITY


async def test_a_launch_whose_answer_was_lost_before_azure_had_it_is_uncertain_and_then_over(
    stand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon died between the line in the ledger and the call. Asking again could make a second machine
    of a token whose first came and went meanwhile."""
    adapters = stand.adapters()
    await asyncio.to_thread(adapters.ledger.ask, request(), name_of("t-1"))
    with pytest.raises(Uncertain):
        await adapters.instances.launch(request())
    monkeypatch.setattr(stand.clock, "now", lambda now=stand.clock.now: now() + LAG + 1.0)
    assert (await adapters.instances.launch(request())).state is InstanceState.TERMINATED
    assert "create" not in (await stand.order("calls"))["calls"]


async def test_a_call_that_was_never_sent_is_uncertain_and_burns_no_token(stand: Any) -> None:
    class Nowhere:
        url = "http://127.0.0.1:9"

    adapters = stand.adapters()
    broken = type(stand)(Nowhere(), stand.directory).adapters()
    with pytest.raises(CloudError):
        await broken.instances.launch(request())
    await broken.close()
    launched = await adapters.instances.launch(request())
    assert launched.state is InstanceState.PENDING


async def test_a_lost_ledger_doubles_no_living_machine(stand: Any) -> None:
    launched = await stand.adapters().instances.launch(request())
    (stand.directory / "azure.ledger").unlink()
    again = await stand.adapters().instances.launch(request())
    assert again.id == launched.id
    assert (await stand.order("calls"))["calls"]["create"] == 1


async def test_a_machine_that_appears_between_the_look_and_the_call_is_taken_as_it_is(stand: Any) -> None:
    """Two daemons that do not know of each other, with ledgers of their own."""
    one = stand.adapters()
    other = type(stand)(stand.stand_in, stand.directory / "other").adapters()
    both = await asyncio.gather(one.instances.launch(request()), other.instances.launch(request()))
    await other.close()
    assert len({launched.id for launched in both}) == 1
    assert len((await stand.order("machines"))["machines"]) == 1


async def test_after_429_azure_is_not_asked_until_it_wants_to_be(stand: Any) -> None:
    adapters = stand.adapters()
    await stand.order("fault", action="create", code="OperationThrottled", status=429, retry_after=300)
    with pytest.raises(Throttled):
        await adapters.instances.launch(request("t-1"))
    calls = (await stand.order("calls"))["calls"]
    with pytest.raises(Throttled, match="not asked"):
        await adapters.instances.launch(request("t-2"))
    assert (await stand.order("calls"))["calls"] == calls
    # Other lanes go on.
    assert await adapters.instances.list("pool", "eastus") == ()
    await adapters.instances.terminate("so-00000000000000000000")


@pytest.mark.parametrize(
    ("code", "status", "message", "kind"),
    [
        ("SkuNotAvailable", 409, "not in eastus", InsufficientCapacity),
        ("OperationNotAllowed", 409, "exceeding approved LowPriorityCores quota", QuotaExceeded),
        ("AuthorizationFailed", 403, "no right", Denied),
        ("InvalidParameter", 400, "odd", Misconfigured),
        ("InvalidResourceReference", 400, "no such subnet", Misconfigured),
    ],
)
async def test_a_refusal_burns_no_token(
    stand: Any, code: str, status: int, message: str, kind: type[CloudError]
) -> None:
    adapters = stand.adapters()
    await stand.order("fault", action="create", code=code, status=status, message=message)
    with pytest.raises(kind, match=message):
        await adapters.instances.launch(request())
    assert adapters.ledger.find("t-1").stage is Stage.REFUSED
    assert (await adapters.instances.launch(request())).state is InstanceState.PENDING


async def test_a_dark_region_holds_no_other(stand: Any) -> None:
    adapters = stand.adapters(place("eastus"), place("westus3"), read_timeout=0.5)
    there = await adapters.instances.launch(request("t-w", zone="westus3-1"))
    await stand.order("set", dark=["eastus"], dark_for=20.0)
    dark = [asyncio.ensure_future(adapters.instances.list("pool", "eastus")) for _ in range(8)]
    listed = await adapters.instances.list("pool", "westus3")
    assert [i.id for i in listed] == [there.id]
    await adapters.instances.terminate(there.id)
    for look in dark:
        with pytest.raises(CloudError):
            await look
    with pytest.raises(Uncertain):  # one that may be in any region: the dark one is not taken for empty
        await adapters.instances.stop("so-0123456789abcdef0123")


async def test_power_is_read_machine_by_machine_where_the_subscription_cannot_be_listed(stand: Any) -> None:
    adapters = stand.adapters()
    launched = await adapters.instances.launch(request())
    await stand.order("set", dark_subscription=True)
    running = await stand.until(reaches(adapters, launched.id, InstanceState.RUNNING))
    assert running.address
    await stand.order("set", dark_subscription=False, forget_status=True)
    assert (await state_of(adapters, launched.id)).state is InstanceState.RUNNING


async def test_calls_of_a_list_do_not_grow_with_the_pool(stand: Any) -> None:
    adapters = stand.adapters()
    made = [await adapters.instances.launch(request(f"t-{n}")) for n in range(7)]
    for launched in made:
        await stand.until(reaches(adapters, launched.id, InstanceState.RUNNING))
    before = (await stand.order("calls"))["calls"]
    assert len(await adapters.instances.list("pool", "eastus")) == 7
    after = (await stand.order("calls"))["calls"]
    assert {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)} == {
        "list": 1,
        "list-all": 1,
    }


async def test_every_page_is_read(stand: Any) -> None:
    await stand.order("set", page=2)
    adapters = stand.adapters()
    for number in range(5):
        await adapters.instances.launch(request(f"t-{number}"))

    async def all_run() -> bool:
        listed = await adapters.instances.list("pool", "eastus")
        return len(listed) == 5 and all(i.state is InstanceState.RUNNING and i.address for i in listed)

    await stand.until(all_run)


async def test_machines_of_others_are_neither_listed_nor_touched(stand: Any) -> None:
    adapters = stand.adapters()
    mine = await adapters.instances.launch(request())
    for node in ("somebody-elses", "web-1"):
        await adapters.instances.terminate(node)
    assert "delete" not in (await stand.order("calls"))["calls"]
    assert [i.id for i in await adapters.instances.list("pool", "eastus")] == [mine.id]


async def test_spot_asks_for_what_the_pool_says_and_on_demand_for_nothing_of_it(stand: Any) -> None:
    adapters = stand.adapters(place(eviction="deallocate", max_price=1.5))
    spot = await adapters.instances.launch(request("t-1"))
    on_demand = await adapters.instances.launch(request("t-2", Market.ON_DEMAND))
    bodies = (await stand.order("calls"))["bodies"]
    wanted = {"priority": "Spot", "evictionPolicy": "Deallocate", "billingProfile": {"maxPrice": 1.5}}
    assert wanted.items() <= bodies[spot.id]["properties"].items()
    assert not wanted.keys() & bodies[on_demand.id]["properties"].keys()
    usual = await stand.adapters().instances.launch(request("t-3"))
    bodies = (await stand.order("calls"))["bodies"]
    assert bodies[usual.id]["properties"]["evictionPolicy"] == "Delete"
    assert bodies[usual.id]["properties"]["billingProfile"] == {"maxPrice": -1}


async def test_an_evicted_machine_that_is_kept_is_a_stopped_one(stand: Any) -> None:
    adapters = stand.adapters(place(eviction="deallocate"))
    launched = await adapters.instances.launch(request())
    await stand.until(reaches(adapters, launched.id, InstanceState.RUNNING))
    await stand.order("evict", node=launched.id)
    await stand.until(reaches(adapters, launched.id, InstanceState.STOPPED))
    await adapters.instances.start(launched.id)
    await stand.until(reaches(adapters, launched.id, InstanceState.RUNNING))


async def test_a_start_that_was_taken_and_not_met_leaves_it_stopped(stand: Any) -> None:
    adapters = stand.adapters()
    launched = await adapters.instances.launch(request())
    await stand.until(reaches(adapters, launched.id, InstanceState.RUNNING))
    await adapters.instances.stop(launched.id)
    await stand.until(reaches(adapters, launched.id, InstanceState.STOPPED))
    await stand.order("fault", action="start", kind="fail-later", code="AllocationFailed")
    await adapters.instances.start(launched.id)
    await stand.until(reaches(adapters, launched.id, InstanceState.STOPPED))
    assert (await stand.order("left"))["machines"] == [launched.id]


async def test_custom_data_that_is_too_large_is_refused_here(stand: Any) -> None:
    adapters = stand.adapters(custom_data=b"x" * 70_000)
    with pytest.raises(Misconfigured, match="65535"):
        await adapters.instances.launch(request())
    assert "create" not in (await stand.order("calls"))["calls"]
