"""EC2 beyond the contract: how a launch is asked for, and what EC2 may say to it."""

import asyncio
import base64
import datetime
from dataclasses import replace

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from cloud.aws import instances as module
from cloud.aws.clients import AwsClients, Lane
from cloud.aws.errors import translate
from cloud.aws.instances import AwsInstances
from cloud.aws.machines import instance_of, launch_parameters
from cloud.aws.places import ENGINE_TAG, POOL_TAG, PROVIDER, TOKEN_TAG, AwsRegion
from cloud.clock import SystemClock
from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    NotFound,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.ports import VOUCHED, EngineCommand, LaunchRequest, console_end
from policies.model import Ending, InstanceState, Market, Placement, StandbyKind

TYPE = "p5.4xlarge"


def request(name="pool/1/1", market=Market.ON_DEMAND, zone="us-east-1a", region="us-east-1"):
    place = Placement(provider=PROVIDER, region=region, zone=zone, instance_type=TYPE, market=market)
    return LaunchRequest(token=name, pool="pool", placement=place, command=EngineCommand(argv=("x",)))


@pytest.fixture
def instances(aws_shim, aws_clients, aws_place):
    return AwsInstances([(aws_clients, aws_place)], clock=SystemClock())


@pytest.fixture(scope="module")
def ec2(aws_shim_process):
    return boto3.client("ec2", region_name="us-east-1", endpoint_url=aws_shim_process.url)


# -- what is asked for ----------------------------------------------------------------------------

PLACE = AwsRegion(
    region="us-east-1",
    subnets={"us-east-1a": "subnet-1"},
    instance_types=(TYPE,),
    template="lt-1",
    template_version="7",
)


def test_a_launch_is_one_machine_of_one_kind_with_tags_and_imdsv2():
    asked = launch_parameters(replace(request(), standby=StandbyKind.HOT), PLACE, "subnet-1")
    assert (asked["MinCount"], asked["MaxCount"], asked["ClientToken"]) == (1, 1, "pool/1/1")
    assert (asked["InstanceType"], asked["SubnetId"]) == (TYPE, "subnet-1")
    assert asked["LaunchTemplate"] == {"LaunchTemplateId": "lt-1", "Version": "7"}
    assert asked["MetadataOptions"]["HttpTokens"] == "required"
    assert "InstanceMarketOptions" not in asked
    assert "ImageId" not in asked
    tags = {
        spec["ResourceType"]: {t["Key"]: t["Value"] for t in spec["Tags"]}
        for spec in asked["TagSpecifications"]
    }
    assert tags["instance"] == tags["volume"]
    assert tags["instance"] == {
        "Name": "pool",
        "orchestrator:pool": "pool",
        "orchestrator:token": "pool/1/1",
        "orchestrator:standby": "hot",
    }


def test_a_spot_launch_ends_when_it_is_reclaimed_and_states_no_price():
    options = launch_parameters(request(market=Market.SPOT), PLACE, "subnet-1")["InstanceMarketOptions"]
    assert options == {
        "MarketType": "spot",
        "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
    }


def tags_of(asked):
    return {
        spec["ResourceType"]: {t["Key"]: t["Value"] for t in spec["Tags"]}
        for spec in asked["TagSpecifications"]
    }


@pytest.mark.parametrize("market", list(Market))
def test_tags_of_the_user_are_on_all_that_a_launch_makes(market):
    place = replace(PLACE, tags={"team": "ml", "Name": "mine", POOL_TAG: "other", TOKEN_TAG: "none"})
    tags = tags_of(launch_parameters(request(market=market), place, "s"))
    spot = {"spot-instances-request"} if market is Market.SPOT else set()
    assert tags.keys() == {"instance", "volume", "network-interface"} | spot
    for held in tags.values():
        assert held == {"team": "ml", "Name": "pool", POOL_TAG: "pool", TOKEN_TAG: "pool/1/1"}


def test_interfaces_and_spot_requests_carry_no_tags_of_ours_alone():
    """An account whose policy permits the tags of machines and volumes can go on launching."""
    assert tags_of(launch_parameters(request(market=Market.SPOT), PLACE, "s")).keys() == {
        "instance",
        "volume",
    }


async def test_ec2_takes_the_tags_of_the_user(aws_shim, aws_clients, aws_place, ec2):
    place = replace(aws_place, tags={"team": "ml"})
    launched = await AwsInstances([(aws_clients, place)], clock=SystemClock()).launch(
        request(market=Market.SPOT)
    )
    described = ec2.describe_instances(InstanceIds=[launched.id])["Reservations"][0]["Instances"][0]
    assert {"Key": "team", "Value": "ml"} in described["Tags"]
    disk = described["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    assert {"Key": "team", "Value": "ml"} in ec2.describe_volumes(VolumeIds=[disk])["Volumes"][0]["Tags"]


def test_the_order_of_tags_in_the_file_changes_no_launch():
    tags = {"team": "ml", "cost": "7"}
    turned = dict(reversed(tags.items()))
    one, two = (launch_parameters(request(), replace(PLACE, tags=t), "s") for t in (tags, turned))
    assert one["TagSpecifications"] == two["TagSpecifications"]


def test_the_same_request_gives_the_same_parameters():
    assert launch_parameters(request(), PLACE, "s") == launch_parameters(request(), PLACE, "s")


@pytest.mark.parametrize("token", ["", "x" * 65, "pöol/1/1"])
def test_a_token_that_ec2_would_not_take_is_denied(token):
    with pytest.raises(Misconfigured, match="64 ASCII"):
        launch_parameters(request(token), PLACE, "s")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"template_version": "$Latest"}, "pin a number"),
        ({"subnets": {}}, "no subnet"),
        ({"instance_types": ()}, "no instance type"),
        ({"subnets": {"eu-west-1a": "s"}}, "not in this region"),
    ],
)
def test_a_place_that_cannot_work_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(PLACE, **change)


MACHINE = {
    "InstanceId": "i-1",
    "InstanceType": TYPE,
    "Placement": {"AvailabilityZone": "us-east-1a"},
    "LaunchTime": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "State": {"Name": "terminated"},
}


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("Server.SpotInstanceTermination", Ending.RECLAIM),
        ("Server.SpotInstanceShutdown", Ending.RECLAIM),
        ("Server.InsufficientInstanceCapacity", Ending.CAPACITY),
        ("Server.InternalError", Ending.FAULT),
        ("Server.ScheduledStop", Ending.UNKNOWN),
        ("Client.UserInitiatedShutdown", Ending.REQUEST),
        ("Client.UserInitiatedHibernate", Ending.REQUEST),
        ("Client.InternalError", Ending.FAULT),
        ("Client.InvalidSnapshot.NotFound", Ending.FAULT),
        ("Client.VolumeLimitExceeded", Ending.FAULT),
        ("Client.InstanceInitiatedShutdown", Ending.FAULT),
        ("pending", Ending.UNKNOWN),
        ("", Ending.UNKNOWN),
    ],
)
def test_the_reason_of_a_state_says_why_a_machine_ended(code, ending):
    ended = MACHINE | {"StateReason": {"Code": code, "Message": f"{code}: what EC2 says"}}
    for state in ("shutting-down", "terminated"):
        assert instance_of(ended | {"State": {"Name": state}}, PLACE).ending is ending
    for state in ("pending", "running", "stopping", "stopped"):  # a stopped standby has a reason too
        shown = instance_of(ended | {"State": {"Name": state}}, PLACE)
        assert (shown.ending, shown.ending_why) == (Ending.UNKNOWN, "")


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        (
            {"Code": "Client.InternalError", "Message": "Client.InternalError: Client error on launch"},
            "Client.InternalError: Client error on launch",
        ),
        ({"Code": "Client.InternalError", "Message": "-"}, "Client.InternalError"),
        ({"Code": "Client.InternalError", "Message": "no"}, "Client.InternalError: no"),
        ({"Code": "Client.InternalError"}, "Client.InternalError"),
        ({"Code": "Client.X", "Message": "a\x1b[31m\r\nb" + "x" * 9000}, "Client.X: a b" + "x" * 287),
        ({}, ""),
        (None, ""),
    ],
)
def test_the_words_for_an_end_are_one_bounded_line(reason, why):
    assert instance_of(MACHINE | {"StateReason": reason}, PLACE).ending_why == why


@pytest.mark.parametrize(
    ("reason", "at"),
    [
        ("User initiated (2026-11-30 08:12:33 GMT)", 1_796_026_353.0),
        ("Server.SpotInstanceTermination: Marked for termination (2026-11-30 08:12:33 UTC)", 1_796_026_353.0),
        ("Server.SpotInstanceTermination", None),
        ("User initiated (2026-13-45 99:12:33 GMT)", None),
        ("", None),
    ],
)
def test_what_ended_is_paid_for_until_then(reason, at):
    told = MACHINE | {"StateTransitionReason": reason}
    for state in ("shutting-down", "terminated"):
        assert instance_of(told | {"State": {"Name": state}}, PLACE).ended_at == at
    for state in ("running", "stopped"):  # it tells of stops and starts too
        assert instance_of(told | {"State": {"Name": state}}, PLACE).ended_at is None


async def test_a_place_that_is_not_configured_is_refused(instances):
    for wrong in (request(zone="us-east-1f"), request(region="eu-west-1")):
        with pytest.raises(Misconfigured):
            await instances.launch(wrong)


@pytest.mark.slow
async def test_ec2_was_told_the_same(instances, ec2):
    launched = await instances.launch(request(market=Market.SPOT))
    (found,) = ec2.describe_instances(InstanceIds=[launched.id])["Reservations"][0]["Instances"]
    assert found["MetadataOptions"]["HttpTokens"] == "required"
    assert found["ClientToken"] == "pool/1/1"
    assert found["InstanceLifecycle"] == "spot"
    assert launched.placement == request(market=Market.SPOT).placement
    assert launched.address == f"{found['PrivateIpAddress']}:8000"


# -- what may come back ---------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_token_whose_launch_was_another_gives_the_machine_that_it_launched(
    instances, aws_clients, aws_place
):
    first = await instances.launch(request())
    image = AwsInstances([(aws_clients, replace(aws_place, image="ami-87654321"))], clock=SystemClock())
    again = await image.launch(request())
    assert again.id == first.id
    assert len(await instances.list("pool", "us-east-1")) == 1


@pytest.mark.slow
async def test_a_token_used_elsewhere_and_not_shown_yet_is_uncertain(instances, aws_shim):
    aws_shim.order("fault", action="RunInstances", kind="error", code="IdempotentParameterMismatch")
    with pytest.raises(Uncertain):
        await instances.launch(request())
    assert await instances.list("pool", "us-east-1") == ()


@pytest.mark.slow
async def test_a_token_that_ended_before_ec2s_memory_launches_nothing(instances, aws_shim):
    aws_shim.order("fault", action="RunInstances", kind="error", code="IdempotentInstanceTerminated")
    ended = await instances.launch(request())
    assert (ended.state, ended.token) == (InstanceState.TERMINATED, "pool/1/1")
    assert await instances.list("pool", "us-east-1") == ()


@pytest.mark.slow
async def test_a_young_machine_that_ec2_does_not_show_yet_is_not_taken_for_gone(instances, aws_shim):
    aws_shim.order("set", describe_lag=600.0)
    launched = await instances.launch(request())
    assert await instances.list("pool", "us-east-1") == ()
    with pytest.raises(Uncertain):
        await instances.terminate(launched.id)


@pytest.mark.slow
async def test_capacity_is_refused_per_offering_and_quota_per_market(instances, aws_shim):
    aws_shim.order("set", capacity={f"spot:{TYPE}:us-east-1a": 0}, quota={"on-demand": 1})
    with pytest.raises(InsufficientCapacity):
        await instances.launch(request("t-1", Market.SPOT))
    await instances.launch(request("t-2", Market.SPOT, "us-east-1b"))
    await instances.launch(request("t-3"))
    with pytest.raises(QuotaExceeded, match="quota"):
        await instances.launch(request("t-4"))
    assert len(await instances.list("pool", "us-east-1")) == 2


@pytest.mark.slow
async def test_a_spot_machine_cannot_be_stopped_and_a_pending_one_must_wait(instances, aws_shim):
    aws_shim.order("set", boot=600.0)
    spot = await instances.launch(request("t-1", Market.SPOT))
    with pytest.raises(Misconfigured, match="one-time"):
        await instances.stop(spot.id)
    pending = await instances.launch(request("t-2"))
    with pytest.raises(CloudError, match="is pending, so stop_instances must wait"):
        await instances.stop(pending.id)
    await instances.start(pending.id)


@pytest.mark.slow
async def test_every_page_is_read_and_any_that_fails_fails_the_list(instances, aws_shim, monkeypatch):
    monkeypatch.setattr(module, "PAGE", 5)
    for number in range(12):
        await instances.launch(request(f"t-{number}"))
    assert len({i.id for i in await instances.list("pool", "us-east-1")}) == 12
    aws_shim.order(
        "fault", action="DescribeInstances", kind="error", code="InternalError", status=500, after=2
    )
    with pytest.raises(CloudError) as raised:
        await instances.list("pool", "us-east-1")
    assert type(raised.value) is CloudError
    assert len(await instances.list("pool", "us-east-1")) == 12


@pytest.mark.slow
async def test_what_carries_no_tag_of_ours_is_not_listed(instances, ec2, aws_place):
    launched = await instances.launch(request())
    ec2.run_instances(
        MinCount=1, MaxCount=1, ImageId="ami-12345678", SubnetId=aws_place.subnets["us-east-1a"]
    )
    assert [i.id for i in await instances.list("pool", "us-east-1")] == [launched.id]
    ec2.delete_tags(Resources=[launched.id], Tags=[{"Key": "orchestrator:pool"}])
    assert await instances.list("pool", "us-east-1") == ()


@pytest.mark.slow
async def test_expired_credentials_are_denied_until_they_are_renewed(instances, aws_shim):
    aws_shim.order("fault", action="*", kind="error", code="ExpiredToken", times=2)
    with pytest.raises(Denied, match="renew"):
        await instances.launch(request())
    with pytest.raises(Denied, match="renew"):
        await instances.list("pool", "us-east-1")
    assert (await instances.launch(request())).token == "pool/1/1"


@pytest.mark.slow
async def test_renewed_credentials_are_found_without_a_restart(aws_shim, aws_place, monkeypatch, tmp_path):
    file = tmp_path / "credentials"

    def write(key):
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = x\n")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    aws_shim.order("set", expired_keys=["OLD"])
    clients = AwsClients("us-east-1", endpoint=aws_shim.url)
    instances = AwsInstances([(clients, aws_place)], clock=SystemClock())
    write("OLD")
    for _ in range(2):
        with pytest.raises(Denied, match="renew"):
            await instances.launch(request())
    write("NEW")
    launched = await instances.launch(request())
    assert [i.id for i in await instances.list("pool", "us-east-1")] == [launched.id]
    await instances.close()


async def test_no_credentials_are_denied(aws_place, monkeypatch, aws_shim):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    bare = AwsInstances([(AwsClients("us-east-1", endpoint=aws_shim.url), aws_place)], clock=SystemClock())
    with pytest.raises(Denied, match="credentials"):
        await bare.list("pool", "us-east-1")
    await bare.close()


@pytest.mark.slow
async def test_an_answer_that_is_too_late_is_uncertain_and_the_token_resolves_it(aws_shim, aws_place):
    hasty = AwsClients("us-east-1", endpoint=aws_shim.url, read_timeout=0.5)
    instances = AwsInstances([(hasty, aws_place)], clock=SystemClock())
    aws_shim.order("fault", action="RunInstances", kind="delay", seconds=1.5)
    with pytest.raises(Uncertain):
        await instances.launch(request())
    patient = AwsInstances([(AwsClients("us-east-1", endpoint=aws_shim.url), aws_place)], clock=SystemClock())
    resolved = await patient.launch(request())
    assert [i.id for i in await patient.list("pool", "us-east-1")] == [resolved.id]
    await instances.close()
    await patient.close()


@pytest.mark.slow
async def test_a_launch_that_is_held_up_until_after_a_reset_is_none_in_the_stand_ins_new_account(
    aws_shim, aws_place
):
    hasty = AwsClients("us-east-1", endpoint=aws_shim.url, read_timeout=0.5)
    instances = AwsInstances([(hasty, aws_place)], clock=SystemClock())
    aws_shim.order("fault", action="RunInstances", kind="hold")
    with pytest.raises(Uncertain):
        await instances.launch(request())
    aws_shim.order("reset")
    await asyncio.sleep(0.3)  # it goes on now
    assert await instances.list("pool", "us-east-1") == ()
    await instances.close()


@pytest.mark.slow
async def test_each_region_has_its_list_and_a_machine_is_found_in_its_own(
    instances, aws_shim, aws_clients, aws_place
):
    west_ec2 = boto3.client("ec2", region_name="us-west-2", endpoint_url=aws_shim.url)
    subnet = west_ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": ["us-west-2a"]}])
    data = {"ImageId": "ami-12345678"}
    west_ec2.create_launch_template(LaunchTemplateName="node", LaunchTemplateData=data)
    west = replace(aws_place, region="us-west-2", subnets={"us-west-2a": subnet["Subnets"][0]["SubnetId"]})
    clients = AwsClients("us-west-2", endpoint=aws_shim.url)

    def both():
        return AwsInstances([(aws_clients, aws_place), (clients, west)], clock=SystemClock())

    east_node = await both().launch(replace(request("t-1"), pool="both"))
    wanted = request("t-2", zone="us-west-2a", region="us-west-2")
    west_node = await both().launch(replace(wanted, pool="both"))
    assert both().regions == ("us-east-1", "us-west-2")
    (in_east,), (in_west,) = [await both().list("both", region) for region in both().regions]
    assert (in_east.id, in_east.placement.region) == (east_node.id, "us-east-1")
    assert (in_west.id, in_west.placement.region) == (west_node.id, "us-west-2")
    await both().terminate(west_node.id)  # it knows of neither
    states = {i.id: i.state for region in both().regions for i in await both().list("both", region)}
    assert states[west_node.id] in (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)
    assert states[east_node.id] in (InstanceState.PENDING, InstanceState.RUNNING)
    await clients.close()


@pytest.mark.slow
async def test_targets_are_owned_by_living_machines_of_the_pool(instances, ec2, aws_place):
    mine = await instances.launch(request())
    other = await instances.launch(replace(request("t-2"), pool="other"))
    host = mine.address.rpartition(":")[0]
    asked = [(mine.id, 8000), (other.id, 8000), (host, 8000), ("10.9.9.9", 8000), ("i-0123456789abcdef0", 1)]
    assert await instances.owners("pool", asked) == {(mine.id, 8000): mine.id, (host, 8000): mine.id}


def test_a_description_with_odd_tags_is_read():
    machine = {
        "InstanceId": "i-1",
        "InstanceType": TYPE,
        "State": {"Name": "running", "Code": 16},
        "Placement": {"AvailabilityZone": "us-east-1a"},
        "LaunchTime": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "ClientToken": "from-the-call",
        "Tags": [{"Key": "orchestrator:standby", "Value": "nonsense"}],
    }
    found = instance_of(machine, PLACE)
    assert (found.token, found.pool, found.standby, found.address) == ("from-the-call", "", None, "")
    assert found.placement.market is Market.ON_DEMAND


TEMPLATE = {"aws:ec2launchtemplate:id": "lt-1", "aws:ec2launchtemplate:version": "7"}


def described(image="ami-12345678", **tags):
    machine = {
        "InstanceId": "i-1",
        "ImageId": image,
        "InstanceType": TYPE,
        "State": {"Name": "running", "Code": 16},
        "Placement": {"AvailabilityZone": "us-east-1a"},
        "LaunchTime": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }
    return instance_of(machine, PLACE)


def test_what_a_machine_was_launched_to_run_is_its_image_and_the_version_of_its_template():
    build = described(**TEMPLATE).build
    assert build
    assert described(**TEMPLATE, Name="other").build == build
    others = [
        described("ami-2", **TEMPLATE),
        described(**TEMPLATE | {"aws:ec2launchtemplate:id": "lt-2"}),
        described(**TEMPLATE | {"aws:ec2launchtemplate:version": "8"}),
    ]
    assert len({build, *(other.build for other in others)}) == 4


def test_two_types_of_one_template_with_flags_of_their_own_run_different_things():
    """The template holds the flags of all types: what a machine runs follows from its own, by its tag."""
    usual, large = (described(**TEMPLATE, **{ENGINE_TAG: build}).build for build in ("one", "eight"))
    assert len({usual, large, described(**TEMPLATE).build}) == 3
    assert described(**TEMPLATE, **{ENGINE_TAG: "one"}).build == usual


def test_what_the_configuration_vouched_for_at_the_launch_runs_the_same_whatever_its_template():
    vouched = {ENGINE_TAG: f"{VOUCHED}1"}
    assert {described(**TEMPLATE, **vouched).build, described("ami-2", **vouched).build} == {f"{VOUCHED}1"}


def test_a_launch_says_what_its_machine_runs():
    asked = request()
    command = replace(asked.command, build="abc")
    for held in tags_of(launch_parameters(replace(asked, command=command), PLACE, "s")).values():
        assert held[ENGINE_TAG] == "abc"
    for held in tags_of(launch_parameters(asked, PLACE, "s")).values():
        assert ENGINE_TAG not in held


@pytest.mark.parametrize("missing", TEMPLATE)
def test_what_a_machine_runs_that_no_template_launched_is_not_known(missing):
    assert described(**{key: value for key, value in TEMPLATE.items() if key != missing}).build == ""
    assert described("", **TEMPLATE).build == ""


class Region:
    """The clients of a region that knows some machines, fails, or answers nothing."""

    def __init__(self, *machines: str, fails: Exception | None = None, hangs: bool = False) -> None:
        self.machines, self.fails, self.hangs = machines, fails, hangs
        self.asked: list[str] = []

    def share(self):
        return self

    async def close(self):
        return

    async def call(self, _lane, _service, operation, **parameters):
        self.asked.append(operation)
        if self.hangs:
            await asyncio.sleep(3600.0)
        if self.fails is not None:
            raise self.fails
        if operation == "terminate_instances" and parameters["InstanceIds"][0] not in self.machines:
            raise NotFound("no such machine")
        return {}

    async def pages(self, lane, service, operation, **parameters):
        await self.call(lane, service, operation, **parameters)
        named = [v for f in parameters["Filters"] if f["Name"] == "instance-id" for v in f["Values"]]
        yield {
            "Reservations": [
                {
                    "Instances": [
                        {
                            "InstanceId": machine,
                            "InstanceType": TYPE,
                            "State": {"Name": "running", "Code": 16},
                            "Placement": {"AvailabilityZone": "us-east-1a"},
                            "LaunchTime": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
                        }
                        for machine in self.machines
                        if not named or machine in named
                    ]
                }
            ]
        }


def two_regions(east: Region, west: Region) -> AwsInstances:
    there = replace(PLACE, region="us-west-2", subnets={"us-west-2a": "subnet-9"})
    return AwsInstances([(east, PLACE), (west, there)], clock=SystemClock())


@pytest.mark.parametrize("west", [Region(fails=CloudError("503")), Region(hangs=True)], ids=["503", "hangs"])
async def test_a_silent_region_keeps_no_machine_of_another_from_its_end(west):
    """Also before any list has shown in which region the machine is."""
    east = Region("i-1")
    instances = two_regions(east, west)
    async with asyncio.timeout(5.0):
        assert [i.id for i in await instances.list("pool", "us-east-1")] == ["i-1"]
        await instances.terminate("i-1")
        assert west.asked == []
        unknown = two_regions(east, west)
        await unknown.terminate("i-1")
    assert east.asked.count("terminate_instances") == 2
    assert "terminate_instances" not in west.asked


async def test_a_machine_that_a_silent_region_may_have_is_not_gone():
    with pytest.raises(CloudError, match="503"):
        await two_regions(Region(), Region(fails=CloudError("503"))).terminate("i-1")
    instances = two_regions(Region(), Region())
    await instances.terminate("i-1")  # gone is success
    with pytest.raises(NotFound):
        await instances.stop("i-1")


async def test_what_one_region_lists_no_more_is_not_forgotten_of_another():
    east, west = Region("i-1"), Region("i-2")
    instances = two_regions(east, west)
    for region in instances.regions:
        await instances.list("pool", region)
    west.machines = ()
    assert await instances.list("pool", "us-west-2") == ()
    east.asked.clear()
    await instances.terminate("i-1")
    assert east.asked == ["terminate_instances"]  # it is known where it is


# -- consoles -------------------------------------------------------------------------------------


def refused(code):
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    return ClientError(answer, "GetConsoleOutput")


class Consoles:
    """An EC2 that answers GetConsoleOutput as given, and notes how it was asked."""

    region = "us-east-1"

    def __init__(self, *answers):
        self.answers, self.asked = [*answers], []

    def share(self):
        return self

    async def call(self, lane, service, operation, *, lost, **given):
        assert (service, operation, lost) == ("ec2", "get_console_output", CloudError)
        self.asked.append((lane, given["InstanceId"], given["Latest"]))
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            return {"Output": answer}
        raise translate(answer, "ec2.get_console_output") from answer


@pytest.mark.parametrize("code", ["UnsupportedOperation", "IncorrectInstanceState"])
async def test_a_type_that_cannot_tell_its_latest_output_is_asked_for_what_was_kept(code):
    clients = Consoles(refused(code), "kept")
    assert await AwsInstances([(clients, PLACE)], clock=SystemClock()).console("i-1") == "kept"
    assert clients.asked == [(Lane.CONSOLE, "i-1", True), (Lane.CONSOLE, "i-1", False)]


async def test_a_machine_that_ended_may_have_nothing_later_than_what_was_kept():
    clients = Consoles("", "kept")
    assert await AwsInstances([(clients, PLACE)], clock=SystemClock()).console("i-1") == "kept"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("UnauthorizedOperation", Denied),
        ("RequestLimitExceeded", Throttled),
        ("InvalidInstanceID.NotFound", NotFound),
    ],
)
async def test_a_refusal_is_not_asked_again(code, error):
    clients = Consoles(refused(code))
    with pytest.raises(error):
        await AwsInstances([(clients, PLACE)], clock=SystemClock()).console("i-1")
    assert len(clients.asked) == 1


def test_output_is_decoded_whatever_it_holds():
    """boto3 decodes the output; bytes that are no text become marks, none of which a terminal obeys."""
    client = boto3.client("ec2", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    raw = b"\xff\xfe\x1b[31mpanic\x00\r\n" * 3
    with Stubber(client) as stub:
        stub.add_response("get_console_output", {"Output": base64.b64encode(raw).decode()})
        output = client.get_console_output(InstanceId="i-1", Latest=True)["Output"]
    assert console_end(output).split("\n") == ["\ufffd\ufffdpanic"] * 3
