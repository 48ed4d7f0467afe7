"""The permissions: every call that the adapters make is allowed, and nothing else is."""

import ast
import json
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name

from cloud import aws
from cloud.aws.iam import policy
from cloud.aws.places import AwsRegion

PREFIXES = {"ec2": "ec2", "elbv2": "elasticloadbalancing", "sqs": "sqs", "pricing": "pricing"}
QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/notices"
ROLE = "arn:aws:iam::123456789012:role/node"
PLACE = AwsRegion(
    region="us-east-1",
    subnets={"us-east-1a": "subnet-1", "us-east-1b": "subnet-2"},
    instance_types=("p5.4xlarge",),
    template="node",
    template_version="1",
)


def made(**changes):
    given = {"queues": {"us-east-1": QUEUE}, "target_group": "llama", "node_role": ROLE, **changes}
    return policy("pool", [PLACE], **given)["Statement"]


def statement(name):
    (found,) = [s for s in made() if s["Sid"] == name]
    return found


def operations() -> dict[str, dict[str, str]]:
    """Operations of each service by the name that boto3 gives their method."""
    session = botocore.session.get_session()
    return {
        service: {xform_name(name): name for name in session.get_service_model(service).operation_names}
        for service in PREFIXES
    }


def called() -> set[str]:
    """The actions behind every operation that a module of the adapters names, with its service."""
    known, found = operations(), set()
    for file in Path(aws.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        words = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        for service in words & PREFIXES.keys():
            for word in words & known[service].keys():
                # SQS permits its batch calls by the name of the single one.
                action = (
                    known[service][word].removesuffix("Batch") if service == "sqs" else known[service][word]
                )
                found.add(f"{PREFIXES[service]}:{action}")
    return found


def test_what_is_called_is_allowed_and_nothing_else():
    allowed = {action for s in made() for action in s["Action"]}
    assert {"ec2:RunInstances", "sqs:ReceiveMessage", "pricing:GetProducts"} <= called()
    # A launch writes tags and may give a role without a call of its own.
    assert allowed == called() | {"ec2:CreateTags", "iam:PassRole"}


def test_nothing_is_allowed_everywhere_but_looking():
    for found in made():
        assert all("*" not in action for action in found["Action"])
        if found["Resource"] == ["*"]:
            assert all(action.split(":")[1].startswith(("Describe", "Get")) for action in found["Action"])


@pytest.mark.parametrize(
    ("name", "condition"),
    [
        ("ChangeOwn", {"aws:ResourceTag/orchestrator:pool": "pool"}),
        ("LaunchTagged", {"aws:RequestTag/orchestrator:pool": "pool"}),
        ("TagAtLaunch", {"ec2:CreateAction": "RunInstances"}),
        ("GiveRole", {"iam:PassedToService": "ec2.amazonaws.com"}),
    ],
)
def test_changes_are_bound_to_the_pool(name, condition):
    assert statement(name)["Condition"] == {"StringEquals": condition}


def test_machines_and_volumes_cannot_be_launched_without_the_tag():
    untagged = statement("LaunchWith")["Resource"]
    assert not [resource for resource in untagged if ":instance/" in resource or ":volume/" in resource]
    assert [r for r in untagged if ":subnet/" in r] == [
        "arn:aws:ec2:us-east-1:*:subnet/subnet-1",
        "arn:aws:ec2:us-east-1:*:subnet/subnet-2",
    ]


def test_queue_and_target_group_are_named():
    assert statement("Hear")["Resource"] == ["arn:aws:sqs:us-east-1:123456789012:notices"]
    groups = statement("ChangeTargets")["Resource"]
    assert groups == ["arn:aws:elasticloadbalancing:us-east-1:*:targetgroup/llama/*"]


def test_what_a_pool_does_not_use_is_not_allowed():
    names = {found["Sid"] for found in made(queues={}, target_group="", node_role="")}
    assert names == {"Look", "LaunchTagged", "LaunchWith", "TagAtLaunch", "ChangeOwn"}


def test_a_policy_fits_into_a_role():
    text = json.dumps(
        policy("pool", [PLACE], queues={"us-east-1": QUEUE}, target_group="llama", node_role=ROLE)
    )
    assert len(text.replace(" ", "")) < 10_240  # characters that the policies of a role may have


def test_a_queue_that_cannot_be_named_is_refused():
    with pytest.raises(ValueError, match="ACCOUNT/NAME"):
        made(queues={"us-east-1": "https://queue"})
