"""The content of the launch template: ours is replaced, what people added is kept, AWS's own is no change."""

import base64

import botocore.session
import pytest
from botocore.validate import ParamValidator

from cloud.aws.bootstrap import template
from cloud.aws.bootstrap.wanted import Wanted
from cloud.aws.disks import Disk

IMAGE = {
    "RootDeviceName": "/dev/sda1",
    "BlockDeviceMappings": [
        {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": "snap-1", "VolumeSize": 60}},
        {"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": "snap-2", "VolumeSize": 20}},
    ],
}
PEOPLES = {
    "KeyName": "ops",
    "Monitoring": {"Enabled": True},
    "Placement": {"Tenancy": "dedicated"},
    "CapacityReservationSpecification": {"CapacityReservationPreference": "open"},
    "EbsOptimized": True,
    "TagSpecifications": [
        {"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]},
        {"ResourceType": "volume", "Tags": [{"Key": "a", "Value": "1"}]},
    ],
}


def wanted(**changes) -> Wanted:
    return Wanted(
        pool="llama",
        region="us-east-1",
        subnets=("subnet-1",),
        template="llama-node",
        image="ami-1",
        groups=("sg-1",),
        make_group=False,
        allow_from=(),
        ports=(8000,),
        **{"profile": "", "user_data": b"#cloud-config\n", **changes},
    )


def ours(**changes) -> dict:
    return template.managed(wanted(**changes), ("sg-1", "sg-2"), IMAGE)


def answered(data: dict) -> dict:
    """A content as EC2 tells it: with states and defaults of its own, and in an order of its own."""
    told = {key: list(reversed(value)) if isinstance(value, list) else value for key, value in data.items()}
    told["MetadataOptions"] = {
        **data["MetadataOptions"],
        "State": "pending",
        "HttpProtocolIpv6": "disabled",
        "InstanceMetadataTags": "disabled",
    }
    told["Operator"] = {"Managed": False}
    told["SecurityGroups"] = []
    return told


def device(content: dict, name: str) -> dict:
    (found,) = [m for m in content["BlockDeviceMappings"] if m["DeviceName"] == name]
    return found


@pytest.mark.parametrize("disk", [Disk(), Disk(size=300, type="gp3", throughput=500, encrypted=True)])
def test_a_second_run_finds_nothing_whatever_aws_adds(disk):
    content = template.merged({}, ours(disk=disk))
    again = template.merged(answered(content), ours(disk=disk))
    assert template.same(answered(content), again)
    assert template.differences(answered(content), again) == ()


def test_what_is_sent_is_what_ec2_takes():
    found = answered(template.merged({}, ours()) | PEOPLES)
    content = template.merged(found, ours(key_name="k", profile="node", disk=Disk(size=90, type="gp3")))
    shape = botocore.session.get_session().get_service_model("ec2").shape_for("RequestLaunchTemplateData")
    assert ParamValidator().validate(content, shape).generate_report() == ""
    assert content.keys() <= shape.members.keys()  # the validator passes over what it does not know
    assert content["MetadataOptions"].keys() <= shape.members["MetadataOptions"].members.keys()


def test_what_people_added_is_kept_and_shown():
    before = template.merged({}, ours()) | PEOPLES
    after = template.merged(before, ours(user_data=b"#cloud-config\nother: 1\n"))
    assert {key: after[key] for key in PEOPLES} == PEOPLES
    shown = template.kept(after, ours())
    assert shown.keys() == {
        "KeyName",
        "Monitoring",
        "Placement",
        "CapacityReservationSpecification",
        "EbsOptimized",
        "TagSpecifications instance",
        "TagSpecifications volume",
    }
    assert shown["KeyName"] == '"ops"'
    assert {d.field for d in template.differences(before, after)} == {"UserData"}


def test_a_field_that_ec2_will_come_to_know_is_kept():
    assert template.merged({"NewThing": {"On": True}}, ours())["NewThing"] == {"On": True}


def test_a_key_pair_of_the_file_wins():
    after = template.merged({"KeyName": "theirs"}, ours(key_name="ops"))
    assert after["KeyName"] == "ops"
    assert "KeyName" not in template.kept(after, ours(key_name="ops"))


def test_a_profile_of_somebody_is_kept_until_the_file_names_one():
    theirs = {"IamInstanceProfile": {"Arn": "arn:aws:iam::123456789012:instance-profile/theirs"}}
    assert template.merged(theirs, ours())["IamInstanceProfile"] == theirs["IamInstanceProfile"]
    assert template.merged(theirs, ours(profile="node"))["IamInstanceProfile"] == {"Name": "node"}


def test_options_of_the_metadata_are_kept_but_for_ours():
    theirs = {"MetadataOptions": {"InstanceMetadataTags": "enabled", "HttpPutResponseHopLimit": 2}}
    assert template.merged(theirs, ours())["MetadataOptions"] == {
        "InstanceMetadataTags": "enabled",
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
    }


def test_another_device_is_kept_and_one_that_outlives_its_node_is_named():
    theirs = {
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/sdx", "Ebs": {"VolumeSize": 500, "DeleteOnTermination": False}},
            {"DeviceName": "/dev/sdy", "Ebs": {"VolumeSize": 9, "DeleteOnTermination": True}},
            {"DeviceName": "/dev/sdz", "VirtualName": "ephemeral0"},
        ]
    }
    after = template.merged(theirs, ours())
    names = [m["DeviceName"] for m in after["BlockDeviceMappings"]]
    assert names == ["/dev/sda1", "/dev/sdf", "/dev/sdx", "/dev/sdy", "/dev/sdz"]
    assert device(after, "/dev/sdx") == theirs["BlockDeviceMappings"][0]
    shown = template.kept(after, ours())
    assert "may outlive its node" in shown["BlockDeviceMappings /dev/sdx"]
    assert "may outlive" not in shown["BlockDeviceMappings /dev/sdy"]
    assert "ephemeral0" in shown["BlockDeviceMappings /dev/sdz"]


def test_what_people_said_of_a_volume_of_the_image_is_kept_but_not_that_it_stays():
    theirs = {
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 500, "DeleteOnTermination": False}}
        ]
    }
    after = template.merged(theirs, ours())
    assert device(after, "/dev/sda1")["Ebs"] == {"VolumeSize": 500, "DeleteOnTermination": True}
    assert template.kept(after, ours()) == {"BlockDeviceMappings /dev/sda1": '{"VolumeSize": 500}'}


def test_a_device_that_somebody_took_away_stays_away():
    theirs = {"BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "NoDevice": ""}]}
    after = template.merged(theirs, ours())
    assert device(after, "/dev/sdf") == {"DeviceName": "/dev/sdf", "NoDevice": ""}
    assert "BlockDeviceMappings /dev/sdf" in template.kept(after, ours())


def test_a_type_takes_the_speed_of_the_other_type_away():
    held = {"VolumeType": "io2", "Iops": 20_000, "VolumeSize": 80}
    theirs = {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": held}]}
    after = template.merged(theirs, ours(disk=Disk(type="gp3", throughput=500)))
    assert device(after, "/dev/sda1")["Ebs"] == {
        "VolumeSize": 80,
        "VolumeType": "gp3",
        "Throughput": 500,
        "DeleteOnTermination": True,
    }


def test_encryption_takes_the_other_key_away():
    held = {"Encrypted": True, "KmsKeyId": "alias/other"}
    theirs = {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": held}]}
    after = template.merged(theirs, ours(disk=Disk(encrypted=True)))
    assert device(after, "/dev/sda1")["Ebs"] == {"Encrypted": True, "DeleteOnTermination": True}


def test_devices_of_the_image_before_go_with_it():
    theirs = {
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 300, "DeleteOnTermination": True}},
            {"DeviceName": "/dev/sdx", "Ebs": {"VolumeSize": 9, "DeleteOnTermination": True}},
        ]
    }
    after = template.merged(theirs, ours(), gone={"/dev/xvda"})
    assert [m["DeviceName"] for m in after["BlockDeviceMappings"]] == ["/dev/sda1", "/dev/sdf", "/dev/sdx"]


@pytest.mark.parametrize(
    "theirs",
    [
        {"InstanceMarketOptions": {"MarketType": "spot"}},  # an on-demand node would be a spot machine
        {"InstanceRequirements": {"VCpuCount": {"Min": 1}}},
        {"NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": "subnet-9"}]},
        {"SecurityGroups": ["default"]},
        {"DisableApiTermination": True},  # a machine that nobody but a person can end goes on costing
        {"DisableApiStop": True},
    ],
)
def test_what_no_launch_may_have_is_taken_out_and_shown(theirs):
    before = template.merged({}, ours()) | theirs
    after = template.merged(before, ours())
    assert not theirs.keys() & after.keys()
    assert not template.same(before, after)
    (difference,) = template.differences(before, after)
    assert {difference.field} == theirs.keys()
    assert difference.after == ""


def test_user_data_is_compared_as_it_is_read():
    one = ours()
    other = one | {"UserData": base64.b64encode(b"#cloud-config\nother: 1\n").decode()}
    assert not template.same(one, other)
    (difference,) = template.differences(one, other)
    assert difference.after == "+other: 1"


def test_each_device_that_changes_is_named():
    before, after = ours(), ours(disk=Disk(size=90, type="gp3"))
    (difference,) = template.differences(before, after)
    assert difference.field == "BlockDeviceMappings /dev/sda1"
    assert '"VolumeSize": 90' in difference.after
