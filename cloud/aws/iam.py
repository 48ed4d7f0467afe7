"""The permissions that the daemon needs on AWS and no more, as an IAM policy for one pool.

What cannot be narrowed by resource (Describe calls) is allowed on all. Machines may be launched only with
the pool's tag, by the pool's launch template with its security groups, of the pool's types and with IMDSv2,
and only machines with that tag may be stopped, started or ended, so that a fault of ours, or somebody with
the daemon's keys, reaches nothing else. Tags may be written at a launch only: a machine that is not ours can
never be made ours.

Source of actions, resources and condition keys: the Service Authorization Reference of AWS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cloud.aws.places import POOL_TAG, AwsRegion

_QUEUE = re.compile(r"https?://[^/]+/(\d{12})/([\w-]+(?:\.fifo)?)")
_ELB = "elasticloadbalancing"


def policy(
    pool: str,
    places: Sequence[AwsRegion],
    *,
    queues: Mapping[str, str],
    target_group: str = "",
    node_role: str = "",
    key: str = "",
) -> dict[str, Any]:
    """The policy document. `queues` maps a region to its queue's URL; `node_role` is the ARN of the role
    that the launch template gives to nodes, empty when it gives none; `key` is the user's own key of KMS for
    their volumes, by ARN, id or alias.

    Raises ValueError for a queue's URL without account and name.
    """
    regions = [place.region for place in places]
    statements = [
        _statement(
            "Look",
            [
                "ec2:DescribeCapacityReservations",
                "ec2:DescribeInstanceStatus",
                "ec2:DescribeInstances",
                "ec2:DescribeSpotInstanceRequests",
                "ec2:DescribeSpotPriceHistory",
                "pricing:GetProducts",
            ],
            ["*"],
        ),
        *_launching(pool, places),
        _statement(
            "ChangeOwn",
            ["ec2:StartInstances", "ec2:StopInstances", "ec2:TerminateInstances"],
            [_ec2(region, "instance/*") for region in regions],
            {f"aws:ResourceTag/{POOL_TAG}": pool},
        ),
        _statement(
            "ReadConsoles",
            ["ec2:GetConsoleOutput"],
            [_ec2(region, "instance/*") for region in regions],
            {f"aws:ResourceTag/{POOL_TAG}": pool},
        ),
    ]
    if node_role:
        statements.append(
            _statement(
                "GiveRole", ["iam:PassRole"], [node_role], {"iam:PassedToService": "ec2.amazonaws.com"}
            )
        )
    if key:
        statements += encrypting(regions, key)
    if queues:
        actions = ["ChangeMessageVisibility", "DeleteMessage", "GetQueueAttributes", "ReceiveMessage"]
        resources = [_queue(region, url) for region, url in queues.items()]
        statements.append(_statement("Hear", [f"sqs:{action}" for action in actions], resources))
    if target_group:
        statements += _balancing(regions, target_group)
    return {"Version": "2012-10-17", "Statement": statements}


def doctor_policy(places: Sequence[AwsRegion], *, target_group: str = "") -> dict[str, Any]:
    """What `orchestrator doctor` needs beside the daemon's policy, for the person or role that runs it.

    The daemon itself must not have it. Looks only, but for the one setting that `--fix` changes.
    """
    looks = [
        "ec2:DescribeImages",
        "ec2:DescribeInstanceTypeOfferings",
        "ec2:DescribeLaunchTemplateVersions",
        "ec2:DescribeRegions",
        "ec2:DescribeRouteTables",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSnapshots",
        "ec2:DescribeSubnets",
        "ec2:DescribeVolumes",
        "ec2:DescribeVpcEndpoints",
        "ec2:GetEbsDefaultKmsKeyId",
        "ec2:GetEbsEncryptionByDefault",
        "ec2:GetSpotPlacementScores",
        "events:DescribeRule",
        "events:ListRuleNamesByTarget",
        "events:ListTargetsByRule",
        "events:TestEventPattern",
        "iam:GetInstanceProfile",
        "iam:GetRole",
        "iam:ListAttachedRolePolicies",
        "iam:SimulatePrincipalPolicy",
        "kms:DescribeKey",
        "kms:GetKeyPolicy",
        "kms:ListGrants",
        "servicequotas:GetServiceQuota",
    ]
    statements = []
    if target_group:
        looks.append(f"{_ELB}:DescribeLoadBalancerAttributes")
        groups = _groups([place.region for place in places], target_group)
        statements = [_statement("Fix", [f"{_ELB}:ModifyTargetGroupAttributes"], groups)]
    return {"Version": "2012-10-17", "Statement": [_statement("Examine", looks, ["*"]), *statements]}


def field_test_policy(pool: str, places: Sequence[AwsRegion], *, role: str) -> dict[str, Any]:
    """What `orchestrator doctor --field-test aws` needs beside the daemon's policy, to have FIS interrupt its
    machine. The daemon itself must not have it. `role`: the name of the role under which FIS acts.

    Experiments are made and started with the pool's tag only; what FIS may do then is up to the role's own
    policy. The first experiment of an account makes the role with which FIS watches it.
    """
    regions = [place.region for place in places]
    tagged, tagging = {f"aws:ResourceTag/{POOL_TAG}": pool}, {f"aws:RequestTag/{POOL_TAG}": pool}
    templates, experiments = _fis(regions, "experiment-template/*"), _fis(regions, "experiment/*")
    partitions = sorted({_partition(region) for region in regions})
    watch = "role/aws-service-role/fis.amazonaws.com/AWSServiceRoleForFIS"
    return {
        "Version": "2012-10-17",
        "Statement": [
            _statement(
                "InterruptBy",
                ["fis:CreateExperimentTemplate"],
                _fis(regions, "action/aws:ec2:send-spot-instance-interruptions"),
            ),
            _statement("MakeTemplate", ["fis:CreateExperimentTemplate"], templates, tagging),
            _statement("Start", ["fis:StartExperiment"], experiments, tagging),
            _statement("Tag", ["fis:TagResource"], [*templates, *experiments], tagging),
            _statement("Use", ["fis:DeleteExperimentTemplate", "fis:StartExperiment"], templates, tagged),
            _statement("Look", ["fis:GetExperiment"], experiments, tagged),
            _statement(
                "GiveRole",
                ["iam:PassRole"],
                [f"arn:{partition}:iam::*:role/{role}" for partition in partitions],
                {"iam:PassedToService": "fis.amazonaws.com"},
            ),
            _statement(
                "MakeWatchingRole",
                ["iam:CreateServiceLinkedRole"],
                [f"arn:{partition}:iam::*:{watch}" for partition in partitions],
                {"iam:AWSServiceName": "fis.amazonaws.com"},
            ),
        ],
    }


def bootstrap_policy(
    pool: str, places: Sequence[AwsRegion], *, queues: Mapping[str, str], target_group: str = ""
) -> dict[str, Any]:
    """What the user of `orchestrator aws bootstrap` needs; the daemon must not have it.

    `queues` maps a region to the name of its queue. Whatever it makes it must tag with the pool, and of what
    cannot be named it may change only what carries that tag.
    """
    regions = [place.region for place in places]
    tagged, tagging = {f"aws:ResourceTag/{POOL_TAG}": pool}, {f"aws:RequestTag/{POOL_TAG}": pool}
    kinds = ("launch-template", "security-group")
    made = [_ec2(region, f"{kind}/*") for region in regions for kind in kinds]
    looks = ["Images", "LaunchTemplateVersions", "LaunchTemplates", "SecurityGroups", "Subnets"]
    queue = ["CreateQueue", "GetQueueAttributes", "GetQueueUrl", "ListQueueTags", "SetQueueAttributes"]
    rule = [
        "DescribeRule",
        "ListTagsForResource",
        "ListTargetsByRule",
        "PutRule",
        "PutTargets",
        "TagResource",
    ]
    statements = [
        _statement("Look", [f"ec2:Describe{what}" for what in looks], ["*"]),
        _statement("MakeTagged", ["ec2:CreateLaunchTemplate", "ec2:CreateSecurityGroup"], made, tagging),
        _statement("MakeIn", ["ec2:CreateSecurityGroup"], [_ec2(region, "vpc/*") for region in regions]),
        _statement(
            "ChangeOwn",
            [
                "ec2:AuthorizeSecurityGroupIngress",
                "ec2:CreateLaunchTemplateVersion",
                "ec2:CreateTags",
                "ec2:RevokeSecurityGroupIngress",
            ],
            made,
            tagged,
        ),
        _statement(
            "TagWhatIsMade",
            ["ec2:CreateTags"],
            made,
            {"ec2:CreateAction": ["CreateLaunchTemplate", "CreateSecurityGroup"]},
        ),
        _statement(
            "Queue",
            [f"sqs:{action}" for action in (*queue, "TagQueue")],
            [f"arn:{_partition(region)}:sqs:{region}:*:{name}" for region, name in queues.items()],
        ),
        _statement(
            "Rules",
            [f"events:{action}" for action in rule],
            [f"arn:{_partition(r)}:events:{r}:*:rule/orchestrator-{pool}-*" for r in regions],
        ),
    ]
    if target_group:
        looks = [
            "DescribeLoadBalancerAttributes",
            "DescribeTags",
            "DescribeTargetGroupAttributes",
            "DescribeTargetGroups",
        ]
        changes = ["AddTags", "ModifyTargetGroup", "ModifyTargetGroupAttributes"]
        groups = _groups(regions, target_group)
        statements.append(_statement("LookAtTargets", [f"{_ELB}:{action}" for action in looks], ["*"]))
        statements.append(_statement("SetTargets", [f"{_ELB}:{action}" for action in changes], groups))
    return {"Version": "2012-10-17", "Statement": statements}


def node_policy(secrets: Mapping[str, str], weights: str = "", region: str = "us-east-1") -> dict[str, Any]:
    """What the nodes' role needs: the engine's secrets, each by its ARN, the weights at s3://BUCKET/PREFIX,
    and nothing else. `region` is any of the pool's.

    To prove who it is a node needs no permission. A key of KMS's of the user's own needs kms:Decrypt too. A
    shell by Session Manager needs what AWS's own policy AmazonSSMManagedInstanceCore grants.
    """
    by_action: dict[str, list[str]] = {}
    for arn in secrets.values():
        action = "ssm:GetParameter" if arn.split(":")[2] == "ssm" else "secretsmanager:GetSecretValue"
        by_action.setdefault(action, []).append(arn)
    statements = [
        _statement(f"Read{number}", [action], sorted(set(arns)))
        for number, (action, arns) in enumerate(sorted(by_action.items()), 1)
    ]
    if weights.startswith("s3://"):
        statements += _reading(weights, _partition(region))
    return {"Version": "2012-10-17", "Statement": statements}


def _reading(weights: str, partition: str) -> list[dict[str, Any]]:
    """The objects at a prefix, and their names."""
    bucket, _, prefix = weights.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    arn = f"arn:{partition}:s3:::{bucket}"
    names = _statement("ListWeights", ["s3:ListBucket"], [arn])
    if prefix:
        names["Condition"] = {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}}
    objects = f"{arn}/{prefix}/*" if prefix else f"{arn}/*"
    return [names, _statement("ReadWeights", ["s3:GetObject"], [objects])]


def encrypting(regions: Sequence[str], key: str) -> list[dict[str, Any]]:
    """Machines whose volumes are encrypted with a key: EC2 uses it by grants that the caller gives it."""
    alias = key.rpartition(":")[2] if key.rpartition(":")[2].startswith("alias/") else ""
    name = "*" if alias else key
    resources = (
        [key]
        if key.startswith("arn:") and not alias
        else [f"arn:{_partition(region)}:kms:{region}:*:key/{name}" for region in regions]
    )
    named: dict[str, Any] = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}} if alias else {}
    uses = ["Decrypt", "DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo"]
    use = _statement("UseKey", [f"kms:{action}" for action in uses], resources)
    grant = _statement("GrantKey", ["kms:CreateGrant"], resources)
    if named:
        use["Condition"] = named
    grant["Condition"] = {**named, "Bool": {"kms:GrantIsForAWSResource": "true"}}
    return [use, grant]


def _launching(pool: str, places: Sequence[AwsRegion]) -> list[dict[str, Any]]:
    """Launches by the pool's own template alone, with the tag, of the configured types, with IMDSv2, into the
    configured subnets; security groups, key pair and image are those of the template.

    EC2 judges a launch by each resource that it makes or uses, with the keys that this resource has: whether
    it "is a launch template resource" means that the template names it and the call does not. A template that
    is given by name has no ARN that could be written down: it must carry the pool's tag, as the one that
    bootstrap makes does.
    """
    regions = [place.region for place in places]
    by_id = [place for place in places if place.template.startswith("lt-")]
    by_name = [place.region for place in places if not place.template.startswith("lt-")]
    templates = sorted(_template(place) for place in places)
    types = sorted({name for place in places for name in place.instance_types})
    tagged, from_template = (
        {f"aws:RequestTag/{POOL_TAG}": pool},
        {"ArnLike": {"ec2:LaunchTemplate": templates}},
    )
    machine = {
        **tagged,
        "ec2:InstanceType": types,
        "ec2:MetadataHttpTokens": "required",
        "ec2:MetadataHttpPutResponseHopLimit": "1",
    }
    made = _resources(regions, "volume")
    free = _resources(regions, "network-interface", "spot-instances-request")
    subnets = [_ec2(p.region, f"subnet/{subnet}") for p in places for subnet in p.subnets.values()]
    # Images and snapshots may belong to nobody in particular.
    images = [_public(p.region, f"image/{p.image}") for p in places if p.image]
    reserved = [_ec2(p.region, f"capacity-reservation/{held.id}") for p in places for held in p.reservations]
    snapshots = [_public(region, "snapshot/*") for region in regions]
    named = _resources(regions, "security-group", "key-pair")
    named += [_public(p.region, "image/*") for p in places if not p.image]
    found = [
        _statement(
            "LaunchMachine", ["ec2:RunInstances"], _resources(regions, "instance"), machine, from_template
        ),
        _statement("LaunchVolume", ["ec2:RunInstances"], made, tagged, from_template),
        _statement(
            "LaunchInto",
            ["ec2:RunInstances"],
            subnets + free + images + snapshots + reserved,
            more=from_template,
        ),
        _statement(
            "LaunchAsTemplateSays",
            ["ec2:RunInstances"],
            named,
            more={**from_template, "Bool": {"ec2:IsLaunchTemplateResource": "true"}},
        ),
        _statement(
            "TagAtLaunch",
            ["ec2:CreateTags"],
            _resources(regions, "instance") + made + free,
            {"ec2:CreateAction": "RunInstances"},
        ),
    ]
    if by_id:
        found.append(_statement("LaunchFrom", ["ec2:RunInstances"], [_template(place) for place in by_id]))
    if by_name:
        own = {f"aws:ResourceTag/{POOL_TAG}": pool}
        own_templates = _resources(by_name, "launch-template")
        found.append(_statement("LaunchFromTagged", ["ec2:RunInstances"], own_templates, own))
    return found


def _template(place: AwsRegion) -> str:
    """The ARN of a region's template, or the pattern of all where its id is not known."""
    return _ec2(
        place.region, f"launch-template/{place.template if place.template.startswith('lt-') else '*'}"
    )


def _resources(regions: Sequence[str], *kinds: str) -> list[str]:
    return [_ec2(region, f"{kind}/*") for region in regions for kind in kinds]


def _public(region: str, resource: str) -> str:
    return f"arn:{_partition(region)}:ec2:{region}::{resource}"


def _balancing(regions: Sequence[str], target_group: str) -> list[dict[str, Any]]:
    looks = ["DescribeTags", "DescribeTargetGroupAttributes", "DescribeTargetGroups", "DescribeTargetHealth"]
    changes = ["AddTags", "DeregisterTargets", "RegisterTargets"]
    groups = _groups(regions, target_group)
    return [
        _statement("LookAtTargets", [f"{_ELB}:{action}" for action in looks], ["*"]),
        _statement("ChangeTargets", [f"{_ELB}:{action}" for action in changes], groups),
    ]


def _groups(regions: Sequence[str], target_group: str) -> list[str]:
    return [f"arn:{_partition(r)}:{_ELB}:{r}:*:targetgroup/{target_group}/*" for r in regions]


def _statement(
    name: str,
    actions: Sequence[str],
    resources: Sequence[str],
    equal: Mapping[str, str | Sequence[str]] | None = None,
    more: Mapping[str, Mapping[str, str | Sequence[str]]] | None = None,
) -> dict[str, Any]:
    """`equal`: keys that must have one of these values. `more`: other conditions, by their operator."""
    made: dict[str, Any] = {
        "Sid": name,
        "Effect": "Allow",
        "Action": sorted(actions),
        "Resource": sorted(resources),
    }
    conditions = {**({"StringEquals": dict(equal)} if equal else {}), **(more or {})}
    if conditions:
        made["Condition"] = conditions
    return made


def _ec2(region: str, resource: str) -> str:
    return f"arn:{_partition(region)}:ec2:{region}:*:{resource}"


def _fis(regions: Sequence[str], resource: str) -> list[str]:
    return [f"arn:{_partition(region)}:fis:{region}:*:{resource}" for region in regions]


def _queue(region: str, url: str) -> str:
    found = _QUEUE.fullmatch(url)
    if found is None:
        raise ValueError(f"{url!r} names no account and queue; write it as https://HOST/ACCOUNT/NAME")
    return f"arn:{_partition(region)}:sqs:{region}:{found.group(1)}:{found.group(2)}"


def _partition(region: str) -> str:
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"
