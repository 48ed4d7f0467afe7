"""What EC2 is asked for, how often, and what its answers mean, without EC2."""

from __future__ import annotations

from typing import Any

import pytest
from hand_clock import HandClock
from played_aws import LAUNCHED, PlayedClients, described, machine, refusal

from cloud.aws.clients import Lane
from cloud.aws.instances import AwsInstances
from cloud.aws.places import PROVIDER, AwsRegion
from cloud.errors import CloudError, Denied, Misconfigured, NotFound, Uncertain
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import InstanceState, Market, Placement, StandbyKind

EAST, WEST = "us-east-1", "us-west-2"
NOW = LAUNCHED.timestamp() + 10_000.0


def place(region: str = EAST) -> AwsRegion:
    return AwsRegion(
        region=region,
        subnets={f"{region}a": "s-1"},
        instance_types=("g6e.xlarge",),
        template="lt-1",
        template_version="1",
        engine_port=8000,
    )


def request(
    intent: str = "pool/1/1", zone: str = "us-east-1a", region: str = EAST, provider: str = PROVIDER
) -> Any:
    where = Placement(
        provider=provider, region=region, zone=zone, instance_type="g6e.xlarge", market=Market.SPOT
    )
    return LaunchRequest(
        token=intent,
        pool="pool",
        placement=where,
        command=EngineCommand(argv=("x",)),
        standby=StandbyKind.HOT,
    )


def adapter(*clients: PlayedClients, at: float = NOW) -> AwsInstances:
    pairs: Any = [(each, place(each.region)) for each in clients]
    return AwsInstances(pairs, clock=HandClock(at))


# -- lists -----------------------------------------------------------------------------------------------


async def test_a_list_is_one_listing_of_the_region_by_the_tag_of_the_pool() -> None:
    odd = {"InstanceId": "i-3"}  # it just began, and lacks its state
    pages = [described(machine("i-1"), odd), described(machine("i-2", "pending", PrivateIpAddress=""))]
    east, west = PlayedClients(describe_instances=pages), PlayedClients(WEST)
    instances = adapter(east, west)
    found = await instances.list("pool", EAST)
    assert [(i.id, i.state, i.address) for i in found] == [
        ("i-1", InstanceState.RUNNING, "10.0.0.1:8000"),
        ("i-2", InstanceState.PENDING, ""),
    ]
    assert [(lane, name) for lane, name, _ in east.asked] == [(Lane.LIST, "describe_instances")]
    assert east.asked[0][2]["Filters"] == [{"Name": "tag:orchestrator:pool", "Values": ["pool"]}]
    assert west.asked == []


async def test_a_machine_that_was_listed_is_ended_where_it_is_without_a_look() -> None:
    east = PlayedClients(describe_instances=described(machine("i-1")), terminate_instances={})
    west = PlayedClients(WEST, describe_instances=described(machine("i-2")), terminate_instances={})
    instances = adapter(east, west)
    for region in (EAST, WEST):
        await instances.list("pool", region)
    await instances.terminate("i-2")
    assert west.asked[-1] == (Lane.END, "terminate_instances", {"InstanceIds": ["i-2"]})
    assert (east.count("terminate_instances"), east.count("describe_instances")) == (0, 1)
    assert west.count("describe_instances") == 1


async def test_one_that_no_list_showed_is_looked_for_once_in_each_region_and_known_then() -> None:
    east = PlayedClients(describe_instances=described())
    west = PlayedClients(WEST, describe_instances=described(machine("i-2")), terminate_instances={})
    instances = adapter(east, west)
    await instances.terminate("i-2")
    await instances.terminate("i-2")
    assert (east.count("describe_instances"), west.count("describe_instances")) == (1, 1)
    assert west.count("terminate_instances") == 2
    assert west.asked[0][2]["Filters"] == [{"Name": "instance-id", "Values": ["i-2"]}]


async def test_a_machine_of_an_only_region_needs_no_look() -> None:
    east = PlayedClients(terminate_instances={}, stop_instances={})
    instances = adapter(east)
    await instances.terminate("i-9")
    await instances.stop("i-9")
    assert [(lane, name) for lane, name, _ in east.asked] == [
        (Lane.END, "terminate_instances"),
        (Lane.LAUNCH, "stop_instances"),
    ]


@pytest.mark.parametrize(
    ("west", "error"), [(described(), NotFound), (CloudError("silent"), CloudError), (Denied("no"), Denied)]
)
async def test_one_that_nobody_has_is_gone_only_where_every_region_says_so(
    west: Any, error: type[CloudError]
) -> None:
    instances = adapter(
        PlayedClients(describe_instances=described()), PlayedClients(WEST, describe_instances=west)
    )
    with pytest.raises(CloudError) as met:
        await instances.stop("i-1")
    assert type(met.value) is error


async def test_what_is_old_and_listed_no_more_is_forgotten_and_what_is_young_is_kept() -> None:
    """Two machines leave the list: one was launched long ago, one just now."""
    young = LAUNCHED.timestamp() + 100.0
    east = PlayedClients(describe_instances=described(machine("i-1"), machine("i-2")))
    west = PlayedClients(WEST, describe_instances=described())
    instances = adapter(east, west, at=young)
    await instances.list("pool", EAST)
    east.says["describe_instances"] = described(machine("i-2"))
    await instances.list("pool", EAST)
    assert set(instances._region_of) == {"i-1", "i-2"}, "it may not be shown yet"
    instances._clock.at = young + 20.0  # type: ignore[attr-defined]
    await instances.list("pool", WEST)
    assert set(instances._region_of) == {"i-1", "i-2"}, "another region says nothing of it"
    await instances.list("pool", EAST)
    assert set(instances._region_of) == set(instances._launched_at) == {"i-2"}


# -- changes ---------------------------------------------------------------------------------------------


GONE, LAGS = refusal("InvalidInstanceID.NotFound"), refusal("UnauthorizedOperation")


@pytest.mark.parametrize(
    ("said", "shown", "young", "ends"),
    [
        ({}, None, False, None),
        (GONE, None, False, None),  # success: it is no more
        (GONE, None, True, Uncertain),
        (LAGS, described(), False, None),
        (LAGS, described(), True, Uncertain),
        (LAGS, described(machine("i-1", "terminated")), False, None),
        (LAGS, described(machine("i-1", "shutting-down")), True, None),
        (LAGS, described(machine("i-1")), False, Denied),
        (LAGS, CloudError("silent"), False, Denied),
        (Uncertain("lost"), None, False, Uncertain),
    ],
)
async def test_what_an_end_that_was_not_taken_means(said: Any, shown: Any, young: bool, ends: Any) -> None:
    """EC2 refuses a machine that is no more, or not yet, like one that is not ours: so it is looked for."""
    east = PlayedClients(describe_instances=described(machine("i-1")), terminate_instances=said)
    instances = adapter(east, at=LAUNCHED.timestamp() + (119.0 if young else 120.0))
    await instances.list("pool", EAST)
    east.says["describe_instances"] = shown
    if ends is None:
        await instances.terminate("i-1")
    else:
        with pytest.raises(CloudError) as met:
            await instances.terminate("i-1")
        assert type(met.value) is ends
    assert east.count("describe_instances") == 1 + (said is LAGS)


@pytest.mark.parametrize("code", ["IncorrectInstanceState", "IncorrectState"])
@pytest.mark.parametrize(
    ("turn", "state", "ends"),
    [
        ("stop", "stopped", None),
        ("stop", "stopping", None),
        ("stop", "pending", CloudError),
        ("stop", "running", CloudError),
        ("stop", "terminated", NotFound),
        ("stop", "shutting-down", NotFound),
        ("stop", None, NotFound),
        ("start", "running", None),
        ("start", "pending", None),
        ("start", "stopping", CloudError),
        ("start", "stopped", CloudError),
    ],
)
async def test_a_turn_is_done_where_the_machine_is_there_already(
    code: str, turn: str, state: str | None, ends: Any
) -> None:
    shown = described() if state is None else described(machine("i-1", state))
    east = PlayedClients(
        describe_instances=shown, stop_instances=refusal(code), start_instances=refusal(code)
    )
    instances = adapter(east)
    asked = instances.stop if turn == "stop" else instances.start
    if ends is None:
        await asked("i-1")
    else:
        with pytest.raises(CloudError) as met:
            await asked("i-1")
        assert type(met.value) is ends
    assert [name for _, name, _ in east.asked] == [f"{turn}_instances", "describe_instances"]


async def test_another_refusal_of_a_turn_is_as_it_is_and_asks_nothing_more() -> None:
    east = PlayedClients(stop_instances=refusal("UnsupportedOperation"))
    with pytest.raises(Misconfigured):
        await adapter(east).stop("i-1")
    assert len(east.asked) == 1


# -- launches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request(region=WEST), "this pool has no region us-west-2"),
        (request(provider="local"), "this pool has no region us-east-1 on AWS"),
        (request(zone="us-east-1z"), "no subnet is configured for us-east-1z"),
    ],
)
async def test_a_launch_into_a_place_that_is_not_configured_asks_nobody(asked: Any, words: str) -> None:
    east = PlayedClients()
    with pytest.raises(Misconfigured, match=words):
        await adapter(east).launch(asked)
    assert east.asked == []


async def test_a_launch_gives_its_machine_which_is_known_from_then_on() -> None:
    east = PlayedClients(run_instances={"Instances": [machine("i-1", "pending")]}, terminate_instances=GONE)
    west = PlayedClients(WEST)
    instances = adapter(east, west, at=LAUNCHED.timestamp() + 1.0)
    launched = await instances.launch(request())
    assert (launched.id, launched.state) == ("i-1", InstanceState.PENDING)
    assert east.asked[0][:2] == (Lane.LAUNCH, "run_instances")
    with pytest.raises(Uncertain, match="a moment ago"):
        await instances.terminate("i-1")
    assert (east.count("describe_instances"), west.asked) == (0, [])


@pytest.mark.parametrize(
    ("code", "pools", "found"),
    [
        ("IdempotentInstanceTerminated", ["pool"], "i-0"),
        ("IdempotentInstanceTerminated", ["other", "pool"], "i-1"),  # the token is another pool's too
        ("IdempotentInstanceTerminated", [""], "i-0"),
        ("IdempotentInstanceTerminated", [], ""),
        ("IdempotentInstanceTerminated", ["other"], ""),
        ("IdempotentParameterMismatch", ["pool"], "i-0"),
        ("IdempotentParameterMismatch", [], None),
        ("IdempotentParameterMismatch", ["other"], None),
    ],
)
async def test_a_token_that_ec2_takes_no_more_means_the_launch_it_meant(
    code: str, pools: list[str], found: str | None
) -> None:
    machines = [
        machine(f"i-{n}", "terminated", Tags=[{"Key": "orchestrator:pool", "Value": pool}] if pool else [])
        for n, pool in enumerate(pools)
    ]
    east = PlayedClients(run_instances=refusal(code), describe_instances=described(*machines))
    instances = adapter(east)
    if found is None:
        with pytest.raises(Uncertain, match="pool/1/7 was used for another launch"):
            await instances.launch(request("pool/1/7"))
    else:
        launched = await instances.launch(request("pool/1/7"))
        assert (launched.id, launched.pool, launched.token) == (found, "pool", "pool/1/7")
        assert launched.state is InstanceState.TERMINATED
        if not found:
            assert (launched.launched_at, launched.price, launched.standby) == (NOW, None, StandbyKind.HOT)
            assert launched.placement == request().placement
    assert [name for _, name, _ in east.asked] == ["run_instances", "describe_instances"]
    assert east.asked[1][2]["Filters"] == [{"Name": "client-token", "Values": ["pool/1/7"]}]


# -- owners ----------------------------------------------------------------------------------------------


async def test_owners_are_asked_for_by_id_and_by_address_in_one_listing_each_of_every_region() -> None:
    def shown(*, Filters: list[dict[str, Any]], **_: Any) -> Any:  # noqa: N803 - as boto3 has it
        known = [
            machine("i-1", PrivateIpAddress="10.0.0.1"),
            machine("i-2", "terminated", PrivateIpAddress="10.0.0.2"),
        ]
        key = "InstanceId" if Filters[1]["Name"] == "instance-id" else "PrivateIpAddress"
        return described(*(each for each in known if each[key] in Filters[1]["Values"]))

    east = PlayedClients(describe_instances=shown)
    west = PlayedClients(WEST, describe_instances=described())
    targets = [("i-1", 80), ("i-2", 80), ("i-9", 80), ("10.0.0.1", 81), ("10.0.0.2", 81), ("10.0.0.1", 82)]
    found = await adapter(east, west).owners("pool", targets)
    assert found == {("i-1", 80): "i-1", ("i-2", 80): "i-2", ("10.0.0.1", 81): "i-1", ("10.0.0.1", 82): "i-1"}
    asked = [(f["Filters"][1]["Name"], f["Filters"][1]["Values"]) for _, _, f in east.asked]
    assert asked == [
        ("instance-id", ["i-1", "i-2", "i-9"]),
        ("private-ip-address", ["10.0.0.1", "10.0.0.2"]),
    ]
    assert all(f["Filters"][0]["Name"] == "tag:orchestrator:pool" for _, _, f in east.asked)
    assert west.count("describe_instances") == 2


async def test_many_owners_are_asked_for_in_as_many_listings_as_a_filter_has_room_for() -> None:
    east = PlayedClients(describe_instances=described())
    await adapter(east).owners("pool", [(f"i-{n:03}", 80) for n in range(401)])
    assert [len(f["Filters"][1]["Values"]) for _, _, f in east.asked] == [200, 200, 1]
    assert await adapter(east).owners("pool", []) == {}
    assert east.count("describe_instances") == 3


# -- what a machine wrote --------------------------------------------------------------------------------


async def test_what_was_kept_is_asked_for_only_where_there_is_nothing_newer() -> None:
    def output(newest: Any, kept: Any) -> Any:
        return lambda *, Latest, **_: newest if Latest else kept  # noqa: N803 - as boto3 has it

    east = PlayedClients(get_console_output=output({"Output": "new"}, {"Output": "old"}))
    assert await adapter(east).console("i-1") == "new"
    assert [(lane, asked["Latest"]) for lane, _, asked in east.asked] == [(Lane.CONSOLE, True)]
    for newest in ({"Output": ""}, {}, refusal("UnsupportedOperation"), refusal("IncorrectInstanceState")):
        east = PlayedClients(get_console_output=output(newest, {"Output": "old"}))
        assert await adapter(east).console("i-1") == "old"
        assert east.count("get_console_output") == 2
    east = PlayedClients(get_console_output=output({"Output": ""}, {"Output": ""}))
    assert await adapter(east).console("i-1") == ""
    for code, said in ((refusal("UnauthorizedOperation"), {}), ({}, refusal("UnsupportedOperation"))):
        east = PlayedClients(get_console_output=output(code, said))
        with pytest.raises(CloudError):
            await adapter(east).console("i-1")


async def test_the_shares_of_all_regions_are_given_up() -> None:
    east, west = PlayedClients(), PlayedClients(WEST)
    instances = adapter(east, west)
    assert (east.shares, west.shares, instances.regions) == (1, 1, (EAST, WEST))
    await instances.close()
    assert (east.shares, west.shares) == (0, 0)
