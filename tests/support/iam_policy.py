"""What IAM decides by one policy: a small evaluator of documents, with the conditions that ours have, and the
resources of a launch with the keys that EC2 gives for each.

An operator that is not known here is an error, so a condition is never taken as met unseen.

Source: the IAM user guide ("Policy evaluation logic", "Condition operators"), the Service Authorization
Reference ("Actions, resources, and condition keys for Amazon EC2"), and the EC2 user guide ("Control access
to launch templates with IAM permissions").
"""

from fnmatch import fnmatchcase

ACCOUNT = "123456789012"

_TESTS = {
    "StringEquals": lambda given, wanted: given == wanted,
    "StringEqualsIgnoreCase": lambda given, wanted: given.lower() == wanted.lower(),
    "StringLike": lambda given, wanted: matches(wanted, given),
    "ArnEquals": lambda given, wanted: arn_matches(wanted, given),
    "ArnLike": lambda given, wanted: arn_matches(wanted, given),
    "Bool": lambda given, wanted: given.lower() == wanted.lower(),
    "NumericEquals": lambda given, wanted: float(given) == float(wanted),
    "NumericLessThanEquals": lambda given, wanted: float(given) <= float(wanted),
}


def matches(pattern, text):
    """`*` and `?` only: a bracket means itself."""
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def arn_matches(pattern, arn):
    """Part by part: no `*` reaches over a colon, but in the last part."""
    wanted, given = pattern.split(":", 5), arn.split(":", 5)
    return len(wanted) == len(given) == 6 and all(map(matches, wanted, given))


def listed(value):
    return [value] if isinstance(value, str) else list(value)


def holds(condition, context):
    """Whether every condition of a statement holds. A key that is not there makes it fail."""
    return all(
        _key_holds(operator, context.get(key.lower()), listed(wanted))
        for operator, keys in condition.items()
        for key, wanted in keys.items()
    )


def _key_holds(operator, given, wanted):
    quantifier, _, name = operator.rpartition(":")
    if name == "Null":
        return wanted == [str(given is None).lower()]
    if name.endswith("IfExists"):
        if given is None:
            return True
        name = name.removesuffix("IfExists")
    test = _TESTS[name]
    if given is None:
        return quantifier == "ForAllValues"
    met = [any(test(value, each) for each in wanted) for value in listed(given)]
    return all(met) if quantifier == "ForAllValues" else any(met)


def allows(policy, action, resource, context=None):
    """Whether the policy allows an action on a resource (an ARN, or "*") in a context of condition keys."""
    context = {key.lower(): value for key, value in (context or {}).items()}
    effects = {
        statement["Effect"]
        for statement in policy["Statement"]
        if any(matches(pattern.lower(), action.lower()) for pattern in listed(statement["Action"]))
        and any(matches(pattern, resource) for pattern in listed(statement["Resource"]))
        and holds(statement.get("Condition", {}), context)
    }
    return effects == {"Allow"}


def launch_refused(policy, parameters, template, *, region="us-east-1"):
    """The resources of a RunInstances call that the policy refuses, by their kinds; empty: it may launch.

    `parameters` are boto3's; `template` is what its launch template holds, with its "id" and its "tags".
    """
    return [
        kind
        for kind, arn, context in _resources(parameters, template, region)
        if not allows(policy, "ec2:RunInstances", arn, context)
    ]


def _resources(asked, template, region):
    named = asked.get("LaunchTemplate")
    shared = {}
    if named:
        shared["ec2:LaunchTemplate"] = _arn(region, f"launch-template/{template['id']}")
    tags = {each["ResourceType"]: each["Tags"] for each in asked.get("TagSpecifications", ())}

    def found(kind, name, account=ACCOUNT, **keys):
        requested = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in tags.get(kind, ())}
        return kind, _arn(region, f"{kind}/{name}", account), {**shared, **requested, **keys}

    def chosen(kind, field, default, account=ACCOUNT):
        """What the call names is not of the template, whatever that says."""
        own, given = template.get(field, default), asked.get(field)
        value = own if given is None else given
        keys = {"ec2:IsLaunchTemplateResource": str(bool(named) and given is None).lower()}
        return [
            found(kind, each, account, **keys) for each in (value if isinstance(value, list) else [value])
        ]

    options = {**template.get("MetadataOptions", {}), **asked.get("MetadataOptions", {})}
    yield found(
        "instance",
        "*",
        **{
            "ec2:InstanceType": asked["InstanceType"],
            "ec2:MetadataHttpTokens": options.get("HttpTokens", "optional"),
            "ec2:MetadataHttpPutResponseHopLimit": str(options.get("HttpPutResponseHopLimit", 1)),
            "ec2:IsLaunchTemplateResource": "false",  # the call names its type
        },
    )
    yield found("volume", "*")
    yield found("network-interface", "*")
    yield found("subnet", asked["SubnetId"], **{"ec2:IsLaunchTemplateResource": "false"})
    yield found("snapshot", "snap-1", account="")
    yield from chosen("security-group", "SecurityGroupIds", ["sg-template"])
    yield from chosen("image", "ImageId", "ami-template", account="")
    if "KeyName" in template or "KeyName" in asked:
        yield from chosen("key-pair", "KeyName", "")
    if named:
        own = {f"aws:ResourceTag/{key}": value for key, value in template.get("tags", {}).items()}
        yield found("launch-template", template["id"], **own)
    if asked.get("InstanceMarketOptions", {}).get("MarketType") == "spot":
        yield found("spot-instances-request", "*")
    reservation = asked.get("CapacityReservationSpecification", {}).get("CapacityReservationTarget", {})
    if "CapacityReservationId" in reservation:
        yield found("capacity-reservation", reservation["CapacityReservationId"])


def _arn(region, resource, account=ACCOUNT):
    return f"arn:aws:ec2:{region}:{account}:{resource}"
