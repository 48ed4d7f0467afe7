"""The stand-in for AWS refuses what EC2 refuses, and ends what EC2 ends."""

import asyncio

import boto3
import pytest
from botocore.exceptions import ClientError

from cloud.aws.notice_calls import NoticeCalls

TYPE = "p5.4xlarge"
FAULT = {"code": "Client.InternalError", "message": "Client error on launch", "after": 0.0}


class Account:
    """EC2 of the stand-in, as the daemon asks it: under a key of its own, without retries."""

    def __init__(self, shim, place):
        self.shim, self.place = shim, place
        self.ec2 = boto3.client("ec2", region_name=place.region, endpoint_url=shim.url)
        self._launches = 0

    def launch(self, market="on-demand", **given):
        self._launches += 1
        spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if market == "spot" else {}
        asked = {
            "ClientToken": f"pool/1/{self._launches}",
            "InstanceType": TYPE,
            "SubnetId": self.place.subnets["us-east-1a"],
            "LaunchTemplate": {"LaunchTemplateName": "node", "Version": "1"},
            "MinCount": 1,
            "MaxCount": 1,
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": [{"Key": "orchestrator:pool", "Value": "pool"}]}
            ],
        }
        return self.ec2.run_instances(**{**asked, **spot, **given})["Instances"][0]["InstanceId"]

    def described(self, node):
        return self.ec2.describe_instances(InstanceIds=[node])["Reservations"][0]["Instances"][0]

    def refusal(self, call, **given):
        with pytest.raises(ClientError) as refused:
            call(**given)
        return refused.value.response["Error"]["Code"]


@pytest.fixture
def account(aws_shim, aws_place):
    return Account(aws_shim, aws_place)


async def until(met):
    while not met():  # noqa: ASYNC110 - a process is asked
        await asyncio.sleep(0.02)


async def test_a_launch_is_accepted_and_ends_while_pending_with_its_reason(account):
    account.shim.order("set", launch_faults={"spot": FAULT}, boot=0.0)
    dead, lives = account.launch("spot"), account.launch()
    await until(lambda: account.described(dead)["State"]["Name"] == "terminated")
    reason = account.described(dead)["StateReason"]
    assert reason == {"Code": FAULT["code"], "Message": f"{FAULT['code']}: {FAULT['message']}"}
    await until(lambda: account.described(lives)["State"]["Name"] == "running")


async def test_a_fault_of_every_market(account):
    account.shim.order("set", launch_faults={"*": FAULT})
    for node in (account.launch("spot"), account.launch()):
        await until(lambda node=node: account.described(node)["State"]["Name"] == "terminated")


def test_spot_needs_its_role_and_on_demand_does_not(account):
    account.shim.order("set", spot_role=False)
    code = account.refusal(account.launch, market="spot")
    assert code == "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
    assert account.launch()


def test_a_console_says_what_the_machine_wrote(account):
    node, other = account.launch(), account.launch()
    assert "Output" not in account.ec2.get_console_output(InstanceId=node, Latest=True)
    account.shim.order("set", console={node: "no driver\n", "*": "booting\n"})
    assert account.ec2.get_console_output(InstanceId=node)["Output"] == "no driver\n"
    assert account.ec2.get_console_output(InstanceId=other)["Output"] == "booting\n"


# -- what is looked at before the call ------------------------------------------------------------


def test_launches_come_in_a_bucket_of_five(account):
    account.shim.order("set", run_bucket=[5, 0.001])
    for _ in range(5):
        account.launch()
    assert account.refusal(account.launch) == "RequestLimitExceeded"
    assert len(account.shim.machines("pool")) == 5


def test_ends_have_a_larger_bucket_than_launches(account):
    node = account.launch()
    account.shim.order("set", run_bucket=[5, 0.001])
    for _ in range(20):
        account.ec2.terminate_instances(InstanceIds=[node])


def test_what_is_no_more_is_refused_like_what_is_not_ours(account):
    account.shim.order("set", remember=0.0, end=0.0)
    mine, bare = account.launch(), account.launch(TagSpecifications=[])
    for change in (account.ec2.terminate_instances, account.ec2.stop_instances, account.ec2.start_instances):
        for node in (bare, "i-0123456789abcdef0"):
            assert account.refusal(change, InstanceIds=[node]) == "UnauthorizedOperation"
    account.ec2.terminate_instances(InstanceIds=[mine])
    account.shim.order("set", tag_authorisation=False)
    assert account.refusal(account.ec2.terminate_instances, InstanceIds=["i-0123456789abcdef0"]) == (
        "InvalidInstanceID.NotFound"
    )


def test_what_ec2_does_not_show_yet_may_not_be_changed(account):
    account.shim.order("set", describe_lag=600.0)
    node = account.launch()
    assert account.refusal(account.ec2.terminate_instances, InstanceIds=[node]) == "UnauthorizedOperation"


def test_a_region_that_is_not_opted_in_to_does_not_know_the_keys(account):
    account.shim.order("set", opted_out=["us-east-1"])
    assert account.refusal(account.launch) == "AuthFailure"
    assert account.refusal(account.ec2.describe_instances) == "AuthFailure"


# -- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"ImageId": "ami-00000000000000000"}, "InvalidAMIID.NotFound"),
        ({"ImageId": "image"}, "InvalidAMIID.Malformed"),
        ({"KeyName": "nobody"}, "InvalidKeyPair.NotFound"),
        ({"IamInstanceProfile": {"Name": "nobody"}}, "InvalidParameterValue"),
        ({"SubnetId": "subnet-00000000"}, "InvalidSubnetID.NotFound"),
        (
            {"LaunchTemplate": {"LaunchTemplateName": "node", "Version": "9"}},
            "InvalidLaunchTemplateId.VersionNotFound",
        ),
        (
            {"LaunchTemplate": {"LaunchTemplateName": "node", "Version": "0"}},
            "InvalidLaunchTemplateId.VersionNotFound",
        ),
        (
            {"LaunchTemplate": {"LaunchTemplateName": "nobody", "Version": "1"}},
            "InvalidLaunchTemplateName.NotFoundException",
        ),
        (
            {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "aws:x", "Value": "1"}]}]},
            "InvalidParameterValue",
        ),
        (
            {"TagSpecifications": [{"ResourceType": "spot-instances-request", "Tags": []}]},
            "InvalidParameterValue",
        ),
        (
            {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 1}}]},
            "InvalidBlockDeviceMapping",
        ),
    ],
)
def test_what_is_asked_for_wrongly_is_refused(account, asked, code):
    assert account.refusal(account.launch, **asked) == code
    assert account.shim.machines("pool") == []


def test_tags_of_spot_requests_come_with_spot_only(account):
    tags = [{"ResourceType": "spot-instances-request", "Tags": [{"Key": "team", "Value": "ml"}]}]
    assert account.launch("spot", TagSpecifications=tags)


@pytest.mark.parametrize(
    ("what", "words"), [("zone", "requested Availability Zone"), ("configuration", "requested configuration")]
)
def test_unsupported_is_said_of_a_zone_and_of_a_configuration(account, what, words):
    account.shim.order("set", unsupported={TYPE: what})
    with pytest.raises(ClientError, match=words) as refused:
        account.launch()
    assert refused.value.response["Error"]["Code"] == "Unsupported"


# -- disks ----------------------------------------------------------------------------------------

DISKS = [
    {"device": "/dev/sda1", "size": 20},
    {"device": "/dev/sdf", "size": 300, "delete_on_termination": False},
]


def sizes(account):
    return sorted(volume["Size"] for volume in account.ec2.describe_volumes()["Volumes"])


async def test_volumes_that_are_not_deleted_outlive_their_machine(account):
    account.shim.order("set", images={"ami-disks": {"volumes": DISKS}}, end=0.0)
    node = account.launch(ImageId="ami-disks")
    assert sizes(account) == [20, 300]
    account.ec2.terminate_instances(InstanceIds=[node])
    await until(lambda: sizes(account) == [300])
    (left,) = account.ec2.describe_volumes()["Volumes"]
    assert (left["State"], left["Attachments"]) == ("available", [])


def test_a_launch_writes_over_the_disks_of_its_image(account):
    account.shim.order("set", images={"ami-disks": {"volumes": DISKS}})
    ebs = {"VolumeSize": 100, "VolumeType": "gp3", "Throughput": 500, "DeleteOnTermination": True}
    over = [{"DeviceName": "/dev/sda1", "Ebs": ebs}, {"DeviceName": "/dev/sdf", "NoDevice": ""}]
    account.launch(ImageId="ami-disks", BlockDeviceMappings=over)
    (volume,) = account.ec2.describe_volumes()["Volumes"]
    assert (volume["Size"], volume["Throughput"]) == (100, 500)


def test_an_image_tells_its_disks_and_their_key(account):
    key = "arn:aws:kms:us-east-1:123456789012:key/1"
    account.shim.order("set", images={"ami-disks": {"volumes": [{"size": 9, "encrypted": True, "kms": key}]}})
    (image,) = account.ec2.describe_images(ImageIds=["ami-disks"])["Images"]
    (mapping,) = image["BlockDeviceMappings"]
    ebs = mapping["Ebs"]
    assert (ebs["VolumeSize"], ebs["DeleteOnTermination"], ebs["Encrypted"]) == (9, True, True)
    (snapshot,) = account.ec2.describe_snapshots(SnapshotIds=[ebs["SnapshotId"]])["Snapshots"]
    assert snapshot["KmsKeyId"] == key
    account.shim.order("set", images={})
    assert account.refusal(account.ec2.describe_images, ImageIds=["ami-disks"]) == "InvalidAMIID.NotFound"


async def test_a_customer_key_ends_every_launch_that_may_not_use_it(account):
    account.shim.order("set", default_key="key-1", key_grants={"key-1": ["on-demand"]})
    spot, on_demand = account.launch("spot"), account.launch()
    await until(lambda: account.described(spot)["State"]["Name"] == "terminated")
    assert account.described(spot)["StateReason"]["Code"] == "Client.InternalError"
    await until(lambda: account.described(on_demand)["State"]["Name"] == "running")


def test_volumes_have_a_quota(account):
    account.shim.order("set", volume_quota=10)
    account.launch()
    assert account.refusal(account.launch) == "VolumeLimitExceeded"


# -- reservations ---------------------------------------------------------------------------------


async def test_a_reservation_holds_the_on_demand_machines_of_its_type_and_zone(account, aws_clients):
    account.shim.order("set", reservations={f"{TYPE}:us-east-1a": "cr-0000aaaa"})
    inside, spot = account.launch(), account.launch("spot")
    outside = account.launch(SubnetId=account.place.subnets["us-east-1b"])
    assert account.described(inside)["CapacityReservationId"] == "cr-0000aaaa"
    for node in (spot, outside):
        assert "CapacityReservationId" not in account.described(node)
    calls = NoticeCalls(aws_clients)
    assert await calls.nodes_in_reservation("pool", "cr-0000aaaa") == (inside,)
    assert await calls.nodes_in_reservation("other", "cr-0000aaaa") == ()
    assert await calls.nodes_in_reservation("pool", "cr-0000bbbb") == ()
