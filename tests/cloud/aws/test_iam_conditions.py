"""The conditions of the daemon's policy, put to an evaluator: what the adapter asks for is allowed, no launch
by another template, group, type or metadata service, and no change of other people's machines."""

import pytest
from iam_policy import ACCOUNT, allows, holds, launch_refused

from cloud.aws.iam import policy
from cloud.aws.machines import launch_parameters
from cloud.aws.places import AwsRegion
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Market, Placement

ID = "lt-0123456789abcdef0"
TAGGED = {"orchestrator:pool": "pool"}


def place(template=ID, **changes):
    return AwsRegion(
        **{
            "region": "us-east-1",
            "subnets": {"us-east-1a": "subnet-1", "us-east-1b": "subnet-2"},
            "instance_types": ("p5.4xlarge", "g6e.12xlarge"),
            "template": template,
            "template_version": "3",
            **changes,
        }
    )


def of(*places):
    return policy("pool", places or [place()], queues={})


def asked(at=None, market=Market.SPOT, **changes):
    """RunInstances as the adapter asks for it, with changes."""
    at = at or place()
    placement = Placement("aws", at.region, "us-east-1a", "p5.4xlarge", market)
    request = LaunchRequest(token="t-1", pool="pool", placement=placement, command=EngineCommand(argv=("x",)))
    parameters = launch_parameters(request, at, at.subnets["us-east-1a"]) | changes
    return {name: value for name, value in parameters.items() if value is not None}


def template(**changes):
    return {"id": ID, "SecurityGroupIds": ["sg-1", "sg-2"], "ImageId": "ami-1", "KeyName": "ops", **changes}


@pytest.mark.parametrize("market", list(Market))
@pytest.mark.parametrize("name", [ID, "llama-node"])
@pytest.mark.parametrize("more", [{}, {"image": "ami-9"}, {"tags": {"team": "search"}}])
def test_what_the_adapter_launches_is_allowed(market, name, more):
    at = place(name, **more)
    assert launch_refused(of(at), asked(at, market), template(tags=TAGGED)) == []


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"InstanceType": "p5.48xlarge"}, {"instance"}),
        ({"MetadataOptions": {"HttpTokens": "optional", "HttpPutResponseHopLimit": 1}}, {"instance"}),
        ({"MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}}, {"instance"}),
        ({"MetadataOptions": {}}, {"instance"}),
        ({"TagSpecifications": []}, {"instance", "volume"}),
        ({"SecurityGroupIds": ["sg-open-to-the-world"]}, {"security-group"}),
        ({"SecurityGroupIds": ["sg-1", "sg-2"]}, {"security-group"}),
        ({"ImageId": "ami-of-somebody"}, {"image"}),
        ({"KeyName": "mine"}, {"key-pair"}),
        ({"SubnetId": "subnet-of-the-databases"}, {"subnet"}),
    ],
)
def test_a_launch_that_names_anything_else_is_refused(changes, refused):
    assert set(launch_refused(of(), asked(**changes), template())) == refused


def test_the_tag_of_another_pool_launches_nothing():
    other = [{"Key": "orchestrator:pool", "Value": "other"}]
    tags = [{"ResourceType": kind, "Tags": other} for kind in ("instance", "volume")]
    assert set(launch_refused(of(), asked(TagSpecifications=tags), template())) == {"instance", "volume"}


def test_nothing_is_launched_without_a_template_or_by_another_one():
    everything = launch_refused(of(), asked(LaunchTemplate=None), template())
    assert {"instance", "volume", "security-group", "image", "subnet"} <= set(everything)
    assert "launch-template" in launch_refused(of(), asked(), template(id="lt-0fffffffffffffff0"))


def test_a_template_by_name_must_carry_the_pools_tag():
    named = place("llama-node")
    assert launch_refused(of(named), asked(named), template()) == ["launch-template"]
    wrong = template(tags={"orchestrator:pool": "other"})
    assert launch_refused(of(named), asked(named), wrong) == ["launch-template"]


def test_an_image_that_the_file_names_is_the_only_one():
    at = place(image="ami-9")
    assert launch_refused(of(at), asked(at, ImageId="ami-8"), template()) == ["image"]


def test_each_region_has_its_own_template():
    other = place(
        "lt-0abcdefabcdefabcd", region="us-west-2", subnets={"us-west-2a": "subnet-9"}, image="ami-7"
    )
    both = of(place(), other)
    assert launch_refused(both, asked(), template()) == []
    elsewhere = {"ImageId": "ami-7", "SubnetId": "subnet-9"}
    west = template(id="lt-0abcdefabcdefabcd")
    assert launch_refused(both, asked(**elsewhere), west, region="us-west-2") == []
    assert "launch-template" in launch_refused(both, asked(**elsewhere), template(), region="us-west-2")


@pytest.mark.parametrize(
    "action", ["TerminateInstances", "StopInstances", "StartInstances", "GetConsoleOutput"]
)
@pytest.mark.parametrize(("pool", "allowed"), [("pool", True), ("other", False), (None, False)])
def test_only_machines_of_the_pool_are_changed(action, pool, allowed):
    machine = f"arn:aws:ec2:us-east-1:{ACCOUNT}:instance/i-1"
    context = {} if pool is None else {"aws:ResourceTag/orchestrator:pool": pool}
    assert allows(of(), f"ec2:{action}", machine, context) is allowed
    assert not allows(of(), f"ec2:{action}", machine.replace("us-east-1", "eu-west-1"), context)


def test_tags_are_written_by_a_launch_only():
    machine = f"arn:aws:ec2:us-east-1:{ACCOUNT}:instance/i-1"
    assert allows(of(), "ec2:CreateTags", machine, {"ec2:CreateAction": "RunInstances"})
    assert not allows(of(), "ec2:CreateTags", machine)
    assert not allows(of(), "ec2:CreateTags", machine, {"ec2:CreateAction": "CreateVolume"})


@pytest.mark.parametrize(
    "action",
    [
        "ec2:ModifyInstanceMetadataOptions",
        "ec2:ModifyInstanceAttribute",
        "ec2:CreateLaunchTemplateVersion",
        "ec2:AuthorizeSecurityGroupIngress",
        "ec2:DeleteTags",
        "iam:PassRole",
        "sqs:SendMessage",
    ],
)
def test_what_would_undo_the_conditions_is_not_allowed(action):
    assert not allows(of(), action, f"arn:aws:ec2:us-east-1:{ACCOUNT}:instance/i-1", TAGGED)


# -- the evaluator itself ----------------------------------------------------------------------------------


def test_a_denial_wins_and_silence_is_a_refusal():
    allow = {"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}
    deny = {"Effect": "Deny", "Action": ["ec2:Run*"], "Resource": "*"}
    assert allows({"Statement": [allow]}, "ec2:RunInstances", "*")
    assert not allows({"Statement": [allow, deny]}, "ec2:RunInstances", "*")
    assert not allows({"Statement": []}, "ec2:RunInstances", "*")


@pytest.mark.parametrize(
    ("condition", "context", "met"),
    [
        ({"StringEquals": {"K": ["a", "b"]}}, {"k": "b"}, True),
        ({"StringEquals": {"K": "a"}}, {}, False),
        ({"StringEqualsIfExists": {"K": "a"}}, {}, True),
        ({"StringEqualsIfExists": {"K": "a"}}, {"k": "b"}, False),
        ({"StringLike": {"K": "a*"}}, {"k": "ab"}, True),
        ({"ArnLike": {"K": "arn:aws:ec2:*:1:x/*"}}, {"k": "arn:aws:ec2:r:1:x/y"}, True),
        ({"ArnLike": {"K": "arn:aws:ec2:*:x/*"}}, {"k": "arn:aws:ec2:r:1:x/y"}, False),
        ({"Bool": {"K": "true"}}, {"k": "false"}, False),
        ({"Null": {"K": "true"}}, {}, True),
        ({"NumericLessThanEquals": {"K": "2"}}, {"k": "1"}, True),
        ({"ForAnyValue:StringEquals": {"K": "a"}}, {"k": ["b", "a"]}, True),
        ({"ForAllValues:StringEquals": {"K": "a"}}, {"k": ["b", "a"]}, False),
        ({"StringEquals": {"K": "a"}, "Bool": {"L": "true"}}, {"k": "a"}, False),
    ],
)
def test_conditions_are_met_as_iam_says(condition, context, met):
    assert holds(condition, context) is met


def test_an_operator_that_is_not_known_is_an_error():
    with pytest.raises(KeyError):
        holds({"DateLessThan": {"K": "2026"}}, {"k": "2025"})
