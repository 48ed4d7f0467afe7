"""The permissions: every call that the adapters make is allowed, and nothing else is."""

import ast
import json
from itertools import pairwise
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name
from iam_policy import allows

from cloud import aws
from cloud.aws.field.interruption import ROLE as FIS_ROLE
from cloud.aws.iam import bootstrap_policy, doctor_policy, field_test_policy, node_policy, policy
from cloud.aws.places import AwsRegion

PREFIXES = {
    "ec2": "ec2",
    "elbv2": "elasticloadbalancing",
    "events": "events",
    "fis": "fis",
    "iam": "iam",
    "kms": "kms",
    "pricing": "pricing",
    "service-quotas": "servicequotas",
    "sqs": "sqs",
    "sts": "sts",
}
ADAPTERS = Path(aws.__file__).parent
READING = ("Describe", "Get", "List", "Simulate", "Test")
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


def called(directory: Path) -> set[str]:
    """The actions behind every operation that a module in the directory names, with its service."""
    return set().union(*map(called_in, directory.glob("*.py")))


def called_in(file: Path) -> set[str]:
    """The same of one module."""
    known, found = operations(), set()
    for service, operation in named(ast.parse(file.read_text(encoding="utf-8")), known):
        # SQS permits its batch calls by the name of the single one.
        name = known[service][operation]
        found.add(f"{PREFIXES[service]}:{name.removesuffix('Batch') if service == 'sqs' else name}")
    return found


def named(tree, known):
    """(service, operation) side by side in a call; an operation that stands elsewhere is counted for every
    service that the module names."""
    pairs, single, services = set(), set(), set()
    for node in ast.walk(tree):
        texts = node.args if isinstance(node, ast.Call) else [node]
        words = [n.value if isinstance(n, ast.Constant) and isinstance(n.value, str) else "" for n in texts]
        services |= set(words) & known.keys()
        together = {(s, o) for s, o in pairwise(words) if s in known and o in known[s]}
        pairs |= together
        single |= set(words) if not isinstance(node, ast.Call) else set()
    single -= {operation for _, operation in pairs}
    return pairs | {(s, o) for s in services for o in single & known[s].keys()}


def test_what_is_called_is_allowed_and_nothing_else():
    allowed = {action for s in made() for action in s["Action"]}
    calls = called(ADAPTERS)
    assert {"ec2:RunInstances", "sqs:ReceiveMessage", "pricing:GetProducts"} <= calls
    # A launch writes tags and may give a role without a call of its own.
    assert allowed == calls | {"ec2:CreateTags", "iam:PassRole"}


def test_the_doctor_has_what_it_needs_beside_the_daemon_and_nothing_else():
    daemon = {action for s in made() for action in s["Action"]}
    own = [a for s in doctor_policy([PLACE], target_group="llama")["Statement"] for a in s["Action"]]
    calls = called(ADAPTERS / "doctor")
    assert {"events:TestEventPattern", "iam:SimulatePrincipalPolicy", "ec2:RunInstances"} <= calls
    # Who one is needs no permission.
    assert set(own) == calls - daemon - {"sts:GetCallerIdentity"}
    assert len(own) == len(set(own))


def test_a_field_test_has_what_it_needs_beside_the_daemon_and_nothing_else():
    own = field_test_policy("pool", [PLACE], role=FIS_ROLE)["Statement"]
    allowed = {action for statement in own for action in statement["Action"]}
    calls = called(ADAPTERS / "field")
    assert {"fis:CreateExperimentTemplate", "fis:StartExperiment"} <= calls
    # Tags and a role are given without calls of their own; FIS makes its own role with the first experiment.
    given = {"fis:TagResource", "iam:PassRole", "iam:CreateServiceLinkedRole"}
    assert allowed == (calls - {"sts:GetCallerIdentity"}) | given
    assert not allowed & {action for s in made() for action in s["Action"] if action != "iam:PassRole"}


@pytest.mark.parametrize(
    ("action", "resource", "context", "allowed"),
    [
        ("CreateExperimentTemplate", "action/aws:ec2:send-spot-instance-interruptions", {}, True),
        ("CreateExperimentTemplate", "action/aws:ec2:terminate-instances", {}, False),
        (
            "CreateExperimentTemplate",
            "experiment-template/EXT1",
            {"aws:RequestTag/orchestrator:pool": "pool"},
            True,
        ),
        ("CreateExperimentTemplate", "experiment-template/EXT1", {}, False),
        ("StartExperiment", "experiment-template/EXT1", {"aws:ResourceTag/orchestrator:pool": "pool"}, True),
        (
            "StartExperiment",
            "experiment-template/EXT1",
            {"aws:ResourceTag/orchestrator:pool": "other"},
            False,
        ),
        ("StartExperiment", "experiment/EXP1", {"aws:RequestTag/orchestrator:pool": "pool"}, True),
        ("StartExperiment", "experiment/EXP1", {}, False),
        ("GetExperiment", "experiment/EXP1", {"aws:ResourceTag/orchestrator:pool": "pool"}, True),
    ],
)
def test_a_field_test_uses_experiments_of_its_pool_that_interrupt(action, resource, context, allowed):
    arn = f"arn:aws:fis:us-east-1:123456789012:{resource}"
    found = allows(field_test_policy("pool", [PLACE], role=FIS_ROLE), f"fis:{action}", arn, context)
    assert found is allowed


def test_a_field_test_gives_its_role_to_fis_alone():
    role = f"arn:aws:iam::123456789012:role/{FIS_ROLE}"
    made = field_test_policy("pool", [PLACE], role=FIS_ROLE)
    assert allows(made, "iam:PassRole", role, {"iam:PassedToService": "fis.amazonaws.com"})
    assert not allows(made, "iam:PassRole", role, {"iam:PassedToService": "ec2.amazonaws.com"})


def test_the_doctor_may_change_nothing_but_one_setting_of_the_target_group():
    looks, fixes = doctor_policy([PLACE], target_group="llama")["Statement"]
    assert all(action.split(":")[1].startswith(READING) for action in looks["Action"])
    assert fixes["Action"] == ["elasticloadbalancing:ModifyTargetGroupAttributes"]
    assert fixes["Resource"] == ["arn:aws:elasticloadbalancing:us-east-1:*:targetgroup/llama/*"]
    assert [s["Sid"] for s in doctor_policy([PLACE])["Statement"]] == ["Examine"]


def bootstraps(group: str = "llama") -> list[dict]:
    queues = {"us-east-1": "orchestrator-pool-notices"}
    return bootstrap_policy("pool", [PLACE], queues=queues, target_group=group)["Statement"]


def test_bootstrap_has_what_it_needs_and_nothing_else():
    allowed = {action for s in bootstraps() for action in s["Action"]}
    calls = called(ADAPTERS / "bootstrap") | called_in(ADAPTERS / "doctor" / "idle_timeout.py")
    assert {"sqs:CreateQueue", "events:PutRule", "ec2:CreateLaunchTemplateVersion"} <= calls
    # Tags travel in the calls that make things; who one is needs no permission.
    tags = {"ec2:CreateTags", "sqs:TagQueue", "events:TagResource"}
    assert allowed == (calls | tags) - {"sts:GetCallerIdentity"}


def test_bootstrap_changes_only_what_is_named_or_tagged():
    for found in bootstraps():
        assert all("*" not in action for action in found["Action"])
        if found["Resource"] == ["*"]:
            assert all(action.split(":")[1].startswith("Describe") for action in found["Action"])
    by_name = {found["Sid"]: found for found in bootstraps()}
    assert by_name["Queue"]["Resource"] == ["arn:aws:sqs:us-east-1:*:orchestrator-pool-notices"]
    assert by_name["Rules"]["Resource"] == ["arn:aws:events:us-east-1:*:rule/orchestrator-pool-*"]
    pool = {"orchestrator:pool": "pool"}
    for name, key in (("MakeTagged", "aws:RequestTag"), ("ChangeOwn", "aws:ResourceTag")):
        wanted = {f"{key}/{tag}": value for tag, value in pool.items()}
        assert by_name[name]["Condition"] == {"StringEquals": wanted}
    assert not {"LookAtTargets", "SetTargets"} & {found["Sid"] for found in bootstraps("")}
    assert len(json.dumps(bootstraps()).replace(" ", "")) < 6_144  # characters of a managed policy


def test_nodes_may_read_their_secrets_and_nothing_else():
    parameter = "arn:aws:ssm:us-east-1:123456789012:parameter/llama/key"
    secret = "arn:aws:secretsmanager:us-east-1:123456789012:secret:hf-Ab12"
    found = node_policy({"A": parameter, "B": secret, "C": parameter})["Statement"]
    assert {s["Action"][0]: s["Resource"] for s in found} == {
        "ssm:GetParameter": [parameter],
        "secretsmanager:GetSecretValue": [secret],
    }
    assert node_policy({})["Statement"] == []


@pytest.mark.parametrize(
    ("weights", "bucket", "objects", "names"),
    [
        ("s3://llama/8b", "llama", "llama/8b/*", ["8b", "8b/*"]),
        ("s3://llama/a/8b/", "llama", "llama/a/8b/*", ["a/8b", "a/8b/*"]),
        ("s3://llama", "llama", "llama/*", None),
        ("s3://llama/", "llama", "llama/*", None),
    ],
)
def test_nodes_may_read_their_weights_and_no_others(weights, bucket, objects, names):
    lists, reads = node_policy({}, weights)["Statement"]
    assert (lists["Action"], lists["Resource"]) == (["s3:ListBucket"], [f"arn:aws:s3:::{bucket}"])
    assert (reads["Action"], reads["Resource"]) == (["s3:GetObject"], [f"arn:aws:s3:::{objects}"])
    assert lists.get("Condition") == (names and {"StringLike": {"s3:prefix": names}})


def test_weights_in_another_partition_are_there():
    _, reads = node_policy({}, "s3://llama/8b", "cn-north-1")["Statement"]
    assert reads["Resource"] == ["arn:aws-cn:s3:::llama/8b/*"]


def test_weights_that_nodes_have_need_no_permission():
    assert node_policy({}, "/opt/weights")["Statement"] == []


KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.mark.parametrize(
    ("key", "resource", "alias"),
    [
        (KEY, KEY, None),
        ("1234abcd-12ab", "arn:aws:kms:us-east-1:*:key/1234abcd-12ab", None),
        ("alias/nodes", "arn:aws:kms:us-east-1:*:key/*", "alias/nodes"),
        ("arn:aws:kms:us-east-1:123456789012:alias/nodes", "arn:aws:kms:us-east-1:*:key/*", "alias/nodes"),
    ],
)
def test_a_key_of_the_user_is_used_and_granted_to_ec2_alone(key, resource, alias):
    by_name = {s["Sid"]: s for s in made(key=key)}
    use, grant = by_name["UseKey"], by_name["GrantKey"]
    assert use["Resource"] == grant["Resource"] == [resource]
    assert grant["Action"] == ["kms:CreateGrant"]
    assert grant["Condition"]["Bool"] == {"kms:GrantIsForAWSResource": "true"}
    named = {"kms:ResourceAliases": alias} if alias else None
    assert use.get("Condition", {}).get("ForAnyValue:StringEquals") == named
    assert grant["Condition"].get("ForAnyValue:StringEquals") == named


def test_without_a_key_nothing_of_kms_is_allowed():
    assert not [a for s in made() for a in s["Action"] if a.startswith("kms:")]


def test_nothing_is_allowed_everywhere_but_looking():
    for found in made():
        assert all("*" not in action for action in found["Action"])
        if found["Resource"] == ["*"]:
            assert all(action.split(":")[1].startswith(("Describe", "Get")) for action in found["Action"])


@pytest.mark.parametrize(
    ("name", "condition"),
    [
        ("ChangeOwn", {"aws:ResourceTag/orchestrator:pool": "pool"}),
        ("ReadConsoles", {"aws:ResourceTag/orchestrator:pool": "pool"}),
        ("TagAtLaunch", {"ec2:CreateAction": "RunInstances"}),
        ("GiveRole", {"iam:PassedToService": "ec2.amazonaws.com"}),
    ],
)
def test_changes_are_bound_to_the_pool(name, condition):
    assert statement(name)["Condition"] == {"StringEquals": condition}


def test_machines_and_volumes_cannot_be_launched_without_the_tag():
    tag = {"aws:RequestTag/orchestrator:pool": "pool"}
    assert statement("LaunchMachine")["Condition"]["StringEquals"].items() >= tag.items()
    assert statement("LaunchVolume")["Condition"]["StringEquals"] == tag
    untagged = statement("LaunchInto")["Resource"] + statement("LaunchAsTemplateSays")["Resource"]
    assert not [resource for resource in untagged if ":instance/" in resource or ":volume/" in resource]
    assert [r for r in untagged if ":subnet/" in r] == [
        "arn:aws:ec2:us-east-1:*:subnet/subnet-1",
        "arn:aws:ec2:us-east-1:*:subnet/subnet-2",
    ]


def test_whatever_a_launch_makes_may_be_tagged():
    kinds = ("instance", "network-interface", "spot-instances-request", "volume")
    assert statement("TagAtLaunch")["Resource"] == [f"arn:aws:ec2:us-east-1:*:{kind}/*" for kind in kinds]


def test_queue_and_target_group_are_named():
    assert statement("Hear")["Resource"] == ["arn:aws:sqs:us-east-1:123456789012:notices"]
    groups = statement("ChangeTargets")["Resource"]
    assert groups == ["arn:aws:elasticloadbalancing:us-east-1:*:targetgroup/llama/*"]


def test_what_a_pool_does_not_use_is_not_allowed():
    names = {found["Sid"] for found in made(queues={}, target_group="", node_role="")}
    launching = {"Machine", "Volume", "Into", "AsTemplateSays", "FromTagged"}
    assert names == {"Look", "TagAtLaunch", "ChangeOwn", "ReadConsoles"} | {f"Launch{n}" for n in launching}


def test_a_policy_fits_into_a_role():
    text = json.dumps(
        policy("pool", [PLACE], queues={"us-east-1": QUEUE}, target_group="llama", node_role=ROLE)
    )
    assert len(text.replace(" ", "")) < 10_240  # characters that the policies of a role may have


def test_a_queue_that_cannot_be_named_is_refused():
    with pytest.raises(ValueError, match="ACCOUNT/NAME"):
        made(queues={"us-east-1": "https://queue"})
