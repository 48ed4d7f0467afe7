"""A pool's account on the stand-in for AWS: sound, and then broken one thing at a time."""

import json

import pytest

from cloud.aws.event_rules import RULES
from orchestrator.doctor.findings import State

OK, WARN, FAIL, SKIPPED = State.OK, State.WARN, State.FAIL, State.SKIPPED
ARN = "arn:aws:sqs:us-east-1:123456789012:notices"


def worst(findings):
    return [f for f in findings if f.state in (WARN, FAIL)]


def only(findings):
    (found,) = worst(findings)
    return found


async def test_a_sound_account_has_nothing_to_mend(account):
    found = await account.findings("aws", "notices", "launch", "balancer")
    assert {title: worst(findings) for title, findings in found.items() if worst(findings)} == {}
    for title in ("aws/credentials", "aws/clock", "notices/rules", "launch/quotas", "launch/spot-scores"):
        assert found[title][0].state is OK, title
    ways = {f.subject.partition(" ")[0]: f.text for f in found["aws/permissions"] if f.state is OK}
    assert ways["ec2:DescribeInstances"] == "allowed, by dry run"
    assert ways["ec2:RunInstances"] == "allowed, by dry run"
    assert ways["ec2:CreateTags"] == "allowed, by dry run of RunInstances"
    assert ways["sqs:GetQueueAttributes"] == "allowed, by reading"
    assert ways["elasticloadbalancing:RegisterTargets"] == "allowed, by IAM's policy simulator"
    assert ways["sqs:DeleteMessage"] == "allowed, by IAM's policy simulator"


async def test_looking_changes_nothing(account):
    before = account.shim.order("calls")
    await account.findings("aws", "notices", "launch", "balancer")
    after = account.shim.order("calls")
    made = {name for name in after if after[name] > before.get(name, 0)}
    reads = ("Describe", "Get", "List", "Simulate", "Test")
    assert {name for name in made if not name.startswith(reads)} <= {"RunInstances"}
    assert not account.client("ec2").describe_instances()["Reservations"]


async def test_without_credentials_the_rest_is_skipped_and_says_so(account):
    account.shim.order("set", expired_keys=["testing"])
    found = await account.findings("aws", "launch")
    assert only(found["aws/credentials"]).text.count("ExpiredToken")
    assert [(f.state, f.text) for f in found["launch/template"]] == [(SKIPPED, "aws/credentials failed")]


@pytest.mark.parametrize(
    ("action", "how"),
    [
        ("ec2:DescribeSpotPriceHistory", "dry run"),
        ("ec2:RunInstances", "dry run"),
        ("pricing:GetProducts", "reading"),
        ("sqs:GetQueueAttributes", "reading"),
        ("elasticloadbalancing:DescribeTargetHealth", "reading"),
        ("ec2:TerminateInstances", "IAM's policy simulator"),
        ("sqs:DeleteMessage", "IAM's policy simulator"),
        ("elasticloadbalancing:DeregisterTargets", "IAM's policy simulator"),
    ],
)
async def test_an_action_that_is_not_allowed_is_named_with_the_way_it_was_tried(account, action, how):
    account.shim.order("set", denied=[action])
    found = (await account.findings("aws"))["aws/permissions"]
    denied = {f.subject: f for f in found if f.state is FAIL}
    assert f"{action} in us-east-1" in denied
    assert denied[f"{action} in us-east-1"].text.startswith(f"not allowed, by {how}")
    assert "orchestrator aws policy" in denied[f"{action} in us-east-1"].advice
    assert len(denied) == (2 if action == "ec2:RunInstances" else 1)


async def test_a_machine_of_the_pool_is_what_changes_are_tried_on(account):
    ec2 = account.client("ec2")
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "orchestrator:pool", "Value": "llama"}]}]
    ec2.run_instances(ImageId=account.network.image, MinCount=1, MaxCount=1, TagSpecifications=tags)
    found = (await account.findings("aws"))["aws/permissions"]
    ways = {f.subject.partition(" ")[0]: f.text for f in found}
    assert ways["ec2:TerminateInstances"] == "allowed, by dry run"
    (machine,) = ec2.describe_instances()["Reservations"][0]["Instances"]
    assert machine["State"]["Name"] in ("pending", "running")


async def test_what_nobody_may_simulate_is_skipped_not_passed(account):
    account.shim.order("set", denied=["iam:SimulatePrincipalPolicy"])
    found = (await account.findings("aws"))["aws/permissions"]
    skipped = {f.subject.partition(" ")[0] for f in found if f.state is SKIPPED}
    assert {"ec2:TerminateInstances", "sqs:ReceiveMessage", "elasticloadbalancing:AddTags"} <= skipped
    assert not worst(found)
    assert all("--doctor" in f.advice for f in found if f.state is SKIPPED)


async def test_a_role_is_simulated_as_the_role_and_not_as_its_session(account):
    account.shim.order(
        "set",
        caller="arn:aws:sts::123456789012:assumed-role/daemon/i-0123",
        principals=["arn:aws:iam::123456789012:role/daemon"],
    )
    found = (await account.findings("aws"))["aws/permissions"]
    assert {f.state for f in found} == {OK}


async def test_a_role_with_a_launch_template_is_part_of_the_policy(account):
    account.template(IamInstanceProfile={"Arn": "arn:aws:iam::123456789012:instance-profile/node"})
    found = (await account.findings("aws"))["aws/permissions"]
    assert "iam:PassRole in us-east-1" in {f.subject for f in found}


@pytest.mark.parametrize(
    ("action", "check"),
    [
        ("ec2:DescribeLaunchTemplateVersions", "launch/template"),
        ("ec2:DescribeSubnets", "launch/network"),
        ("servicequotas:GetServiceQuota", "launch/quotas"),
        ("ec2:GetSpotPlacementScores", "launch/spot-scores"),
        ("events:TestEventPattern", "notices/rules"),
    ],
)
async def test_what_the_doctor_may_not_see_is_skipped(account, action, check):
    account.shim.order("set", denied=[action])
    (found,) = (await account.findings(check.partition("/")[0], "aws"))[check]
    assert found.state is SKIPPED
    assert action.partition(":")[2] in found.text
    assert "--doctor" in found.advice


async def test_a_clock_that_is_wrong_is_told_by_how_much(account):
    account.shim.order("set", clock=100.0)
    found = only((await account.findings("aws"))["aws/clock"])
    assert found.state is FAIL
    assert "s behind that of AWS" in found.text
    assert "time service" in found.advice


async def test_a_queue_that_is_missing(account):
    account.region_settings["notice_queue"] = f"{account.queue}-other"
    found = only((await account.findings("aws", "notices"))["notices/queue"])
    assert found.state is FAIL
    assert "NonExistentQueue" in found.text


@pytest.mark.parametrize(
    ("change", "check", "state", "text"),
    [
        ({"MessageRetentionPeriod": "345600"}, "notices/queue", WARN, "kept for 4d"),
        ({"KmsMasterKeyId": "alias/aws/sqs"}, "notices/queue", FAIL, "nothing arrives"),
        ({"Policy": ""}, "notices/queue", FAIL, "does not let EventBridge send"),
        ({"Policy": ""}, "notices/rules", FAIL, "does not let the rule"),
    ],
)
async def test_what_is_wrong_with_the_queue(account, change, check, state, text):
    account.client("sqs").set_queue_attributes(QueueUrl=account.queue, Attributes=change)
    found = worst((await account.findings("aws", "notices"))[check])
    assert found[0].state is state
    assert text in found[0].text
    assert found[0].advice


async def test_a_kind_of_event_that_no_rule_lets_through(account):
    account.client("events").put_rule(
        Name="warnings",
        EventPattern=json.dumps(
            {"source": ["aws.ec2"], "detail-type": [{"prefix": "EC2 Instance Rebalance"}]}
        ),
    )
    found = worst((await account.findings("aws", "notices"))["notices/rules"])
    assert {f.state for f in found if "EC2 Spot Instance Interruption" in f.text} == {FAIL}
    assert {f.state for f in found if "Capacity Block" in f.text} == {WARN}
    assert "Rebalance" not in " ".join(f.text for f in found)
    pattern = json.loads(found[0].advice.partition("pattern: ")[2])
    assert pattern["source"] == ["aws.ec2"]


async def test_a_disabled_rule_lets_nothing_through(account):
    account.client("events").disable_rule(Name="warnings")
    found = worst((await account.findings("aws", "notices"))["notices/rules"])
    assert "aws events enable-rule --region us-east-1 --name warnings" in [f.advice for f in found]
    assert FAIL in {f.state for f in found}


async def test_no_rule_at_all(account):
    for name in RULES:
        account.client("events").remove_targets(Rule=name, Ids=["queue"])
    found = only((await account.findings("aws", "notices"))["notices/rules"])
    assert (found.state, "no notice ever comes" in found.text) == (FAIL, True)


async def test_a_rule_of_an_earlier_version_that_lets_no_stop_through(account):
    detail = {"state": ["shutting-down", "terminated"]}
    pattern = {**RULES["ends"], "detail": detail}
    account.client("events").put_rule(Name="ends", EventPattern=json.dumps(pattern))
    found = worst((await account.findings("aws", "notices"))["notices/rules"])
    assert [(f.state, "State-change" in f.text, "stopping" in f.advice) for f in found] == [
        (WARN, True, True)
    ]


async def test_a_target_that_reshapes_the_event(account):
    account.client("events").put_targets(
        Rule="warnings", Targets=[{"Id": "queue", "Arn": ARN, "InputPath": "$.detail"}]
    )
    found = worst((await account.findings("aws", "notices"))["notices/rules"])
    assert found[0].state is FAIL
    assert "InputPath" in found[0].advice


@pytest.mark.parametrize(
    ("data", "check", "state", "text"),
    [
        ({"MetadataOptions": None}, "launch/template", WARN, "permits IMDSv1"),
        ({"InstanceMarketOptions": {"MarketType": "spot"}}, "launch/template", FAIL, "sets the market"),
        ({"NetworkInterfaces": [{"DeviceIndex": 0}]}, "launch/template", FAIL, "network interfaces"),
        ({"ImageId": "ami-0123456789abcdef0"}, "launch/image", FAIL, "there is no image"),
        ({"ImageId": "resolve:ssm:/image"}, "launch/image", FAIL, "another one tomorrow"),
        ({"ImageId": None}, "launch/image", FAIL, "names an image"),
        ({"SecurityGroupIds": None}, "launch/network", WARN, "names no security group"),
        ({"SecurityGroupIds": ["sg-0123456789abcdef0"]}, "launch/network", FAIL, "no security group sg-"),
    ],
)
async def test_what_is_wrong_with_the_launch_template(account, data, check, state, text):
    account.template(**data)
    found = worst((await account.findings("aws", "launch"))[check])
    assert (found[0].state, text in found[0].text) == (state, True), found
    assert found[0].advice


@pytest.mark.parametrize(
    ("settings", "check", "text"),
    [
        ({"launch_template": "none"}, "launch/template", "does not exist"),
        ({"launch_template_version": 7}, "launch/template", "version 7"),
        ({"image": "ami-0123456789abcdef0"}, "launch/image", "there is no image"),
    ],
)
async def test_a_configuration_that_names_what_is_not_there(account, settings, check, text):
    account.region_settings.update(settings)
    found = only((await account.findings("aws", "launch"))[check])
    assert (found.state, text in found.text) == (FAIL, True), found


async def test_quotas_and_scores_are_read(account):
    account.shim.order("set", quotas={"L-417A185B": 32}, scores={"use1-az6": 1})
    found = await account.findings("aws", "launch")
    quota = only(found["launch/quotas"])
    assert (quota.state, quota.subject) == (FAIL, "Running On-Demand P instances in us-east-1")
    assert "--quota-code L-417A185B" in quota.advice
    assert found["launch/spot-scores"]


@pytest.mark.parametrize(
    ("key", "value", "state", "text"),
    [
        ("deregistration_delay.timeout_seconds", "300", FAIL, "longer than the 120 s of a notice"),
        ("deregistration_delay.timeout_seconds", "10", WARN, "shorter than drain.budget"),
        ("slow_start.duration_seconds", "60", WARN, "slow start"),
        ("stickiness.enabled", "true", WARN, "sticky"),
    ],
)
async def test_what_is_wrong_with_the_target_group(account, key, value, state, text):
    account.client("elbv2").modify_target_group_attributes(
        TargetGroupArn=account.target_group, Attributes=[{"Key": key, "Value": value}]
    )
    found = only((await account.findings("aws", "balancer"))["balancer/target-group"])
    assert (found.state, text in found.text) == (state, True), found
    assert found.advice


async def test_a_network_load_balancer_is_refused_with_the_reason(account):
    account.client("elbv2").create_target_group(
        Name="tcp", Protocol="TCP", Port=8000, VpcId=account.network.vpc
    )
    account.settings["target_group"] = "tcp"
    found = only((await account.findings("aws", "balancer"))["balancer/target-group"])
    assert (found.state, "two minutes" in found.text) == (FAIL, True)
    assert "Application Load Balancer" in found.advice


async def test_an_aws_that_does_not_answer_is_a_finding(account):
    account.shim.order("outage", services=["events"])
    found = only((await account.findings("aws", "notices"))["notices/rules"])
    assert (found.state, "no usable answer" in found.text) == (FAIL, True)


async def test_what_a_pool_does_not_use_is_skipped_with_the_reason(account):
    account.settings["target_group"] = ""
    account.region_settings["notice_queue"] = ""
    found = await account.findings("aws", "notices", "balancer")
    assert [f.state for f in found["notices/queue"]] == [SKIPPED]
    assert [f.state for f in found["balancer/target-group"]] == [SKIPPED]
    assert {f.state for f in found["aws/permissions"]} == {OK}
    actions = {f.subject.partition(":")[0] for f in found["aws/permissions"]}
    assert actions == {"ec2", "pricing"}


@pytest.mark.parametrize(
    ("prices", "state", "words"),
    [
        ({"p5.4xlarge": 6.88, "g6e.12xlarge": 10.49}, State.OK, "at most $125.88"),
        ({"p5.4xlarge": None, "g6e.12xlarge": 10.49}, State.SKIPPED, "no on-demand price of p5.4xlarge"),
    ],
)
async def test_the_price_list_is_held_against_the_cap(account, aws_shim, prices, state, words):
    aws_shim.order("set", on_demand_prices=prices)
    (found,) = (await account.findings("aws", "money"))["money/cap"]
    assert (found.state, words in found.text) == (state, True), found
