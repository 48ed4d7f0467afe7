"""Bootstrap on a stand-in for AWS: made once, repaired where it drifted, finished where it broke off."""

import asyncio
import base64
import itertools
import json
from dataclasses import replace

import boto3
import pytest

from cloud.aws.bootstrap.run import Bootstrap
from cloud.aws.bootstrap.wanted import Verb, Wanted
from cloud.aws.disks import Disk
from cloud.aws.places import POOL_TAG
from cloud.cloud_init.user_data import NodeSetup, unpacked, user_data
from cloud.errors import CloudError
from cloud.ports import EngineCommand

pytestmark = pytest.mark.slow

REGION = "us-east-1"
READS = ("Describe", "Get", "List")
KINDS = ["queue", *["rule"] * 4, "security group", "launch template", "target group"]
_numbers = itertools.count(1)


class Account:
    """What is there, as boto3 sees it, and runs of bootstrap for one pool."""

    def __init__(self, shim, clients, place):
        self.shim, self.clients = shim, clients
        self.sqs, self.events, self.ec2, self.elb = (
            boto3.client(service, region_name=REGION, endpoint_url=shim.url)
            for service in ("sqs", "events", "ec2", "elbv2")
        )
        self.pool = f"boot{next(_numbers)}"
        network = self.ec2.describe_subnets(SubnetIds=list(place.subnets.values()))["Subnets"][0]["VpcId"]
        self.network = network
        self.group = self.elb.create_target_group(
            Name=self.pool, Protocol="HTTP", Port=8000, VpcId=network, TargetType="instance"
        )["TargetGroups"][0]["TargetGroupArn"]
        self.wanted = Wanted(
            pool=self.pool,
            region=REGION,
            subnets=tuple(place.subnets.values()),
            template=f"{self.pool}-node",
            image="ami-12345678",
            profile="llama-node",
            groups=(),
            make_group=True,
            allow_from=("10.0.0.0/28", "10.1.0.0/28"),
            ports=(8000, 9400),
            user_data=self.data("one"),
            target_group=self.pool,
            user_tags={"team": "ml"},
        )

    def data(self, word: str) -> bytes:
        return user_data(NodeSetup(pool=self.pool, command=EngineCommand(argv=("engine", word)), port=8000))

    def run(self, **changes) -> Bootstrap:
        return Bootstrap([(self.clients, replace(self.wanted, **changes))])

    async def applied(self, **changes) -> Bootstrap:
        run = self.run(**changes)
        await run.plan()
        await run.apply()
        return run

    async def plan(self, **changes) -> dict[str, str]:
        """Kind and name of what is not kept, and what would happen to it."""
        planned = await self.run(**changes).plan()
        return {f"{c.kind} {c.name}": str(c.verb) for c in planned if c.verb is not Verb.KEEP}

    def changing(self) -> list[str]:
        """Calls that change something, since the reset."""
        return sorted(name for name in self.shim.order("calls") if not name.startswith(READS))

    @property
    def queue(self) -> str:
        return self.sqs.get_queue_url(QueueName=f"orchestrator-{self.pool}-notices")["QueueUrl"]

    def versions(self) -> list[dict]:
        found = self.ec2.describe_launch_template_versions(LaunchTemplateName=self.wanted.template)
        return sorted(found["LaunchTemplateVersions"], key=lambda v: v["VersionNumber"])

    def security_group(self) -> dict:
        filters = [{"Name": "group-name", "Values": [f"orchestrator-{self.pool}"]}]
        (found,) = self.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
        return found


@pytest.fixture
def account(aws_shim, aws_clients, aws_place):
    return Account(aws_shim, aws_clients, aws_place)


async def test_a_plan_changes_nothing(account):
    before = account.changing()
    planned = await account.run().plan()
    assert [c.kind for c in planned] == KINDS
    assert {c.verb for c in planned} == {Verb.CREATE, Verb.UPDATE}
    assert account.changing() == before
    assert planned[-1].verb is Verb.UPDATE  # the target group is there, its delay is the default
    assert {d.field: d.after for d in planned[-1].differences} == {
        "HealthCheckPath": "/health",
        "HealthCheckIntervalSeconds": "10",
        "HealthyThresholdCount": "2",
        "UnhealthyThresholdCount": "3",
        "load_balancing.algorithm.type": "least_outstanding_requests",
        "deregistration_delay.timeout_seconds": "90",
        f"Tag {POOL_TAG}": account.pool,
    }


async def test_what_is_made_is_as_it_should_be_and_made_once(account):
    run = await account.applied()
    assert len(run.done) == len(KINDS)
    assert (run.sites[0].version, run.sites[0].queue_url) == (1, account.queue)
    before = account.changing()
    calls = account.shim.order("calls")
    again = await account.applied()
    assert again.done == []
    assert account.changing() == before
    assert {n: c for n, c in account.shim.order("calls").items() if n in before} == {
        n: c for n, c in calls.items() if n in before
    }
    assert again.sites[0].version == 1

    policy = json.loads(
        account.sqs.get_queue_attributes(QueueUrl=account.queue, AttributeNames=["All"])["Attributes"][
            "Policy"
        ]
    )
    rules = account.events.list_rules(NamePrefix=f"orchestrator-{account.pool}-")["Rules"]
    allowed = policy["Statement"][0]["Condition"]["ArnEquals"]["aws:SourceArn"]
    assert sorted(allowed) == sorted(rule["Arn"] for rule in rules)
    assert len(rules) == 4

    (version,) = account.versions()
    data = version["LaunchTemplateData"]
    assert unpacked(base64.b64decode(data["UserData"])) == unpacked(account.wanted.user_data)
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert data["IamInstanceProfile"] == {"Name": "llama-node"}
    group = account.security_group()
    assert data["SecurityGroupIds"] == [group["GroupId"]]
    opened = sorted(group["IpPermissions"], key=lambda permission: permission["FromPort"])
    assert [(o["FromPort"], o["ToPort"]) for o in opened] == [(8000, 8000), (9400, 9400)]
    for permission in opened:
        assert {span["CidrIp"] for span in permission["IpRanges"]} == set(account.wanted.allow_from)


async def test_everything_carries_the_pool(account):
    await account.applied()
    tag = {"Key": POOL_TAG, "Value": account.pool}
    assert account.sqs.list_queue_tags(QueueUrl=account.queue)["Tags"][POOL_TAG] == account.pool
    for rule in account.events.list_rules(NamePrefix=f"orchestrator-{account.pool}-")["Rules"]:
        assert tag in account.events.list_tags_for_resource(ResourceARN=rule["Arn"])["Tags"]
    assert tag in account.security_group()["Tags"]
    found = account.ec2.describe_launch_templates(LaunchTemplateNames=[account.wanted.template])
    assert tag in found["LaunchTemplates"][0]["Tags"]
    assert tag in account.elb.describe_tags(ResourceArns=[account.group])["TagDescriptions"][0]["Tags"]


async def test_what_is_made_carries_the_users_tags_and_what_is_there_gets_them(account):
    await account.applied(user_tags={})
    assert await account.plan(user_tags={}) == {}
    before = account.versions()
    changes = await account.plan()
    assert set(changes.values()) == {"update"}
    assert len(changes) == len(KINDS) - 1  # the target group is not ours to tag so
    await account.applied()
    assert await account.plan() == {}
    assert account.versions() == before
    tag = {"Key": "team", "Value": "ml"}
    assert account.sqs.list_queue_tags(QueueUrl=account.queue)["Tags"]["team"] == "ml"
    for rule in account.events.list_rules(NamePrefix=f"orchestrator-{account.pool}-")["Rules"]:
        assert tag in account.events.list_tags_for_resource(ResourceARN=rule["Arn"])["Tags"]
    assert tag in account.security_group()["Tags"]
    found = account.ec2.describe_launch_templates(LaunchTemplateNames=[account.wanted.template])
    assert tag in found["LaunchTemplates"][0]["Tags"]


async def test_events_of_ec2_arrive_in_the_queue(account):
    await account.applied()
    node = "i-0123456789abcdef0"
    state, hook = "EC2 Instance State-change Notification", "EC2 Instance-{} Lifecycle Action"
    for source, kind, detail in (
        ("aws.ec2", "EC2 Spot Instance Interruption Warning", {"instance-action": "terminate"}),
        ("aws.ec2", state, {"state": "running"}),
        ("aws.ec2", state, {"state": "stopping"}),
        ("aws.ec2", state, {"state": "stopped"}),
        ("aws.ec2", state, {"state": "terminated"}),
        ("aws.autoscaling", hook.format("launch"), {"EC2InstanceId": node, "state": "launch hook"}),
        ("aws.autoscaling", hook.format("terminate"), {"EC2InstanceId": node, "state": "terminate hook"}),
    ):
        account.shim.order(
            "tell", kind=kind, detail={"instance-id": node, **detail}, node=node, source=source
        )
    told = []
    while found := account.sqs.receive_message(QueueUrl=account.queue, MaxNumberOfMessages=10).get(
        "Messages"
    ):
        for message in found:
            told.append(json.loads(message["Body"])["detail"])
            account.sqs.delete_message(QueueUrl=account.queue, ReceiptHandle=message["ReceiptHandle"])
    assert sorted(d.get("instance-action") or d["state"] for d in told) == [
        "stopped",
        "stopping",
        "terminate",
        "terminate hook",
        "terminated",
    ]


def drifts(account):
    """What somebody may do by hand, by the part that it spoils."""
    queue, rule = account.queue, f"orchestrator-{account.pool}-warnings"
    group = account.security_group()["GroupId"]
    span = {"IpProtocol": "tcp", "FromPort": 8000, "ToPort": 8000, "IpRanges": [{"CidrIp": "10.0.0.0/28"}]}
    wide = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    anybody = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "sqs:*"}],
    }
    arn = account.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"][
        "QueueArn"
    ]
    sqs, events, ec2 = account.sqs, account.events, account.ec2
    part_of = {
        "queue": f"queue orchestrator-{account.pool}-notices",
        "rule": f"rule {rule}",
        "group": f"security group orchestrator-{account.pool}",
        "target": f"target group {account.pool}",
        "template": f"launch template {account.wanted.template}",
    }
    delay = [{"Key": "deregistration_delay.timeout_seconds", "Value": "10"}]
    turns = [{"Key": "load_balancing.algorithm.type", "Value": "round_robin"}]
    reshaped = [{"Id": "notices", "Arn": arn, "Input": '"x"'}]

    def attribute(name: str, value: str):
        return lambda: sqs.set_queue_attributes(QueueUrl=queue, Attributes={name: value})

    done = {
        "retention": ("queue", attribute("MessageRetentionPeriod", "345600")),
        "policy": ("queue", attribute("Policy", json.dumps(anybody))),
        "disabled": ("rule", lambda: events.disable_rule(Name=rule)),
        "pattern": ("rule", lambda: events.put_rule(Name=rule, EventPattern='{"source": ["aws.s3"]}')),
        "no target": ("rule", lambda: events.remove_targets(Rule=rule, Ids=["notices"])),
        "reshaped": ("rule", lambda: events.put_targets(Rule=rule, Targets=reshaped)),
        "closed": (
            "group",
            lambda: ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[span]),
        ),
        "opened": (
            "group",
            lambda: ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[wide]),
        ),
        "delay": (
            "target",
            lambda: account.elb.modify_target_group_attributes(
                TargetGroupArn=account.group, Attributes=delay
            ),
        ),
        "algorithm": (
            "target",
            lambda: account.elb.modify_target_group_attributes(
                TargetGroupArn=account.group, Attributes=turns
            ),
        ),
        "path": (
            "target",
            lambda: account.elb.modify_target_group(TargetGroupArn=account.group, HealthCheckPath="/"),
        ),
        "untagged": ("queue", lambda: sqs.untag_queue(QueueUrl=queue, TagKeys=["team"])),
        "retagged": (
            "group",
            lambda: ec2.create_tags(Resources=[group], Tags=[{"Key": "team", "Value": "sales"}]),
        ),
    }
    return {name: (part_of[part], spoil) for name, (part, spoil) in done.items()}


@pytest.mark.parametrize(
    "drift",
    [
        *("retention", "policy", "disabled", "pattern", "no target", "reshaped", "closed", "opened", "delay"),
        *("algorithm", "path", "untagged", "retagged"),
    ],
)
async def test_what_drifted_is_mended_and_nothing_else(account, drift):
    await account.applied()
    part, spoil = drifts(account)[drift]
    spoil()
    assert await account.plan() == {part: "update"}
    await account.applied()
    assert await account.plan() == {}


async def test_the_rules_of_an_earlier_version_are_brought_up_to_date(account):
    """It knew of no lifecycle hooks, and let through only machines that end."""
    await account.applied()
    name = f"orchestrator-{account.pool}"
    account.events.remove_targets(Rule=f"{name}-lifecycle", Ids=["notices"])
    account.events.delete_rule(Name=f"{name}-lifecycle")
    pattern = {
        "source": ["aws.ec2"],
        "detail-type": ["EC2 Instance State-change Notification"],
        "detail": {"state": ["shutting-down", "terminated"]},
    }
    account.events.put_rule(Name=f"{name}-ends", EventPattern=json.dumps(pattern))
    asked = account.sqs.get_queue_attributes(QueueUrl=account.queue, AttributeNames=["Policy"])
    policy = json.loads(asked["Attributes"]["Policy"])
    sources = policy["Statement"][0]["Condition"]["ArnEquals"]
    sources["aws:SourceArn"] = [a for a in sources["aws:SourceArn"] if not a.endswith("-lifecycle")]
    account.sqs.set_queue_attributes(QueueUrl=account.queue, Attributes={"Policy": json.dumps(policy)})
    assert await account.plan() == {
        f"queue {name}-notices": "update",
        f"rule {name}-ends": "update",
        f"rule {name}-lifecycle": "create",
    }
    await account.applied()
    assert await account.plan() == {}


async def test_what_was_deleted_is_made_again(account):
    await account.applied()
    rule = f"orchestrator-{account.pool}-ends"
    account.events.remove_targets(Rule=rule, Ids=["notices"])
    account.events.delete_rule(Name=rule)
    account.sqs.delete_queue(QueueUrl=account.queue)
    assert set((await account.plan()).values()) == {"create"}
    await account.applied()
    assert await account.plan() == {}


async def test_a_new_version_is_made_only_for_new_content(account):
    await account.applied()
    two = account.data("two")
    run = account.run(user_data=two)
    change = next(c for c in await run.plan() if c.kind == "launch template")
    (difference,) = change.differences
    assert [line.split() for line in difference.after.splitlines()] == [["-", '"one"'], ["+", '"two"']]
    await run.apply()
    assert run.sites[0].version == 2
    for data, version in ((two, 2), (account.wanted.user_data, 1), (two, 2)):
        assert (await account.applied(user_data=data)).sites[0].version == version
    assert len(account.versions()) == 2
    account.ec2.create_launch_template_version(
        LaunchTemplateName=account.wanted.template, LaunchTemplateData={"ImageId": "ami-87654321"}
    )
    assert (await account.applied(user_data=two)).sites[0].version == 2  # what somebody adds changes nothing


DISKS = [
    {"device": "/dev/sda1", "size": 60},
    {"device": "/dev/sdf", "size": 200, "delete_on_termination": False},
    {"device": "/dev/sdg", "size": 100, "delete_on_termination": False},
]


def launched(account, version: int) -> str:
    template = {"LaunchTemplateName": account.wanted.template, "Version": str(version)}
    subnet = account.wanted.subnets[0]
    tags = [{"ResourceType": "instance", "Tags": [{"Key": POOL_TAG, "Value": account.pool}]}]
    (machine,) = account.ec2.run_instances(
        LaunchTemplate=template,
        MinCount=1,
        MaxCount=1,
        InstanceType="p5.4xlarge",
        SubnetId=subnet,
        TagSpecifications=tags,
    )["Instances"]
    return machine["InstanceId"]


def volumes(account) -> dict[int, dict]:
    """By their size."""
    return {volume["Size"]: volume for volume in account.ec2.describe_volumes()["Volumes"]}


async def until(met):
    while not met():  # noqa: ASYNC110 - a process is asked
        await asyncio.sleep(0.02)


async def test_no_volume_of_the_image_outlives_a_node(account):
    account.shim.order("set", images={"ami-disks": {"volumes": DISKS}}, end=0.0)
    run = await account.applied(image="ami-disks", profile="")
    node = launched(account, run.sites[0].version)
    assert {60, 200, 100} <= volumes(account).keys()
    account.ec2.terminate_instances(InstanceIds=[node])
    await until(lambda: not {60, 200, 100} & volumes(account).keys())


async def test_a_node_has_the_disk_of_the_file(account):
    account.shim.order("set", images={"ami-disks": {"volumes": DISKS}})
    disk = Disk(size=333, type="gp3", throughput=500)
    run = await account.applied(image="ami-disks", profile="", disk=disk)
    launched(account, run.sites[0].version)
    assert volumes(account)[333]["Throughput"] == 500
    (mapping,) = [
        m
        for m in account.versions()[0]["LaunchTemplateData"]["BlockDeviceMappings"]
        if m["DeviceName"] == "/dev/sda1"
    ]
    assert mapping["Ebs"]["VolumeSize"] == 333


async def test_what_people_added_to_the_template_is_kept(account):
    await account.applied()
    held = account.versions()[0]["LaunchTemplateData"]
    mine = {"DeviceName": "/dev/sdx", "Ebs": {"VolumeSize": 77, "DeleteOnTermination": True}}
    theirs = {
        "KeyName": "ops",
        "Monitoring": {"Enabled": True},
        "CapacityReservationSpecification": {"CapacityReservationPreference": "open"},
        "TagSpecifications": [{"ResourceType": "volume", "Tags": [{"Key": "backup", "Value": "no"}]}],
    }
    account.ec2.create_launch_template_version(
        LaunchTemplateName=account.wanted.template,
        LaunchTemplateData={
            **held,
            **theirs,
            "BlockDeviceMappings": [*held["BlockDeviceMappings"], mine],
        },
    )
    again = await account.applied()
    assert again.done == []
    assert again.sites[0].version == 2
    run = account.run(user_data=account.data("two"))
    change = next(c for c in await run.plan() if c.kind == "launch template")
    assert [d.field for d in change.differences] == ["UserData"]
    assert change.kept.keys() == {
        *("KeyName", "Monitoring", "CapacityReservationSpecification"),
        *("TagSpecifications volume", "BlockDeviceMappings /dev/sdx"),
    }
    await run.apply()
    made = account.versions()[2]["LaunchTemplateData"]
    assert {key: made[key] for key in theirs} == theirs
    assert mine in made["BlockDeviceMappings"]
    assert run.sites[0].version == 3
    assert (await account.applied(user_data=account.data("two"))).done == []
    assert len(account.versions()) == 3


async def test_another_image_takes_the_devices_of_the_one_before_away(account):
    other = [{"device": "/dev/xvda", "size": 30}]
    images = {"ami-disks": {"volumes": DISKS}, "ami-other": {"volumes": other}}
    account.shim.order("set", images=images)
    await account.applied(image="ami-disks", disk=Disk(size=90, type="gp3"))
    await account.applied(image="ami-other", disk=Disk(size=90, type="gp3"))
    made = account.versions()[1]["LaunchTemplateData"]["BlockDeviceMappings"]
    assert [m["DeviceName"] for m in made] == ["/dev/xvda"]
    assert await account.plan(image="ami-other", disk=Disk(size=90, type="gp3")) == {}


async def test_the_balancer_is_told_of_and_not_changed(account):
    balancer = account.elb.create_load_balancer(
        Name=account.pool, Subnets=list(account.wanted.subnets), Type="application"
    )["LoadBalancers"][0]["LoadBalancerArn"]
    forward = [{"Type": "forward", "TargetGroupArn": account.group}]
    account.elb.create_listener(LoadBalancerArn=balancer, Protocol="HTTP", Port=80, DefaultActions=forward)

    async def note(seconds: float) -> str:
        planned = await account.run(idle_timeout=seconds).plan()
        return next(c.note for c in planned if c.kind == "target group")

    assert await note(60.0) == ""
    told = await note(300.0)
    assert "has an idle timeout of 60 s, and balancer_idle_timeout is 300 s" in told
    assert f"--load-balancer-arn {balancer} --attributes Key=idle_timeout.timeout_seconds,Value=300" in told
    before = account.elb.describe_load_balancer_attributes(LoadBalancerArn=balancer)["Attributes"]
    await account.applied(idle_timeout=300.0)
    assert account.elb.describe_load_balancer_attributes(LoadBalancerArn=balancer)["Attributes"] == before


async def test_a_balancer_that_cannot_be_looked_at_stops_nothing(account):
    balancer = account.elb.create_load_balancer(
        Name=account.pool, Subnets=list(account.wanted.subnets), Type="application"
    )["LoadBalancers"][0]["LoadBalancerArn"]
    forward = [{"Type": "forward", "TargetGroupArn": account.group}]
    account.elb.create_listener(LoadBalancerArn=balancer, Protocol="HTTP", Port=80, DefaultActions=forward)
    action = "DescribeLoadBalancerAttributes"
    account.shim.order("fault", action=action, kind="error", code="AccessDenied", status=403)
    planned = await account.run().plan()
    assert "cannot be read" in planned[-1].note
    assert planned[-1].verb is Verb.UPDATE


def foreign(account, kind):
    """Make something of that name that is not ours."""
    name = f"orchestrator-{account.pool}"
    match kind:
        case "queue":
            account.sqs.create_queue(QueueName=f"{name}-notices", tags={POOL_TAG: "other"})
        case "rule":
            account.events.put_rule(Name=f"{name}-health", EventPattern='{"source": ["aws.s3"]}')
        case "security group":
            account.ec2.create_security_group(GroupName=name, Description="x", VpcId=account.network)
        case "launch template":
            data = {"ImageId": "ami-12345678"}
            account.ec2.create_launch_template(
                LaunchTemplateName=account.wanted.template, LaunchTemplateData=data
            )
        case "target group":
            tags = [{"Key": POOL_TAG, "Value": "other"}]
            account.elb.add_tags(ResourceArns=[account.group], Tags=tags)


@pytest.mark.parametrize("kind", ["queue", "rule", "security group", "launch template", "target group"])
async def test_what_is_not_ours_is_left_alone_and_then_nothing_is_changed(account, kind):
    foreign(account, kind)
    before = account.shim.order("calls")
    run = account.run()
    planned = await run.plan()
    assert [c.kind for c in planned if c.verb is Verb.REFUSE] == [kind]
    assert run.refused
    with pytest.raises(CloudError, match="nothing was changed"):
        await run.apply()
    after = account.shim.order("calls")
    assert {n for n in after if after[n] != before.get(n)} <= {n for n in after if n.startswith(READS)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": ""}, "there is no image"),
        ({"image": "ami-0123456789abcdef0"}, "us-east-1 has none of that id"),
        ({"disk": Disk(size=7, type="gp3")}, "has 8 GiB, and disk.size = 7"),
        ({"make_group": False}, "there are no security_groups"),
        ({"template": "lt-0123456789abcdef0"}, "named by its id"),
        ({"allow_from": ()}, "allow_from is empty"),
        ({"target_group": "nowhere"}, "does not exist; make it with its load balancer first"),
        ({"queue": "https://sqs.us-east-1.amazonaws.com/123456789012/nowhere"}, "named by notice_queue"),
    ],
)
async def test_what_cannot_be_made_says_what_to_do(account, changes, words):
    planned = await account.run(**changes).plan()
    (why,) = [c.note for c in planned if c.verb is Verb.REFUSE]
    assert words in why


CHANGING = [
    "CreateQueue",
    "PutRule",
    "PutTargets",
    "CreateSecurityGroup",
    "AuthorizeSecurityGroupIngress",
    "CreateLaunchTemplate",
    "ModifyTargetGroup",
    "ModifyTargetGroupAttributes",
    "AddTags",
]


@pytest.mark.parametrize("kind", ["error", "lose"])
@pytest.mark.parametrize("action", CHANGING)
async def test_a_run_that_broke_off_is_finished_by_the_next(account, action, kind):
    """Whether the call that failed was done or not."""
    account.shim.order("fault", action=action, kind=kind, code="InternalError", status=500)
    with pytest.raises(CloudError):
        await account.applied()
    run = await account.applied()
    assert await account.plan() == {}
    assert run.sites[0].version == 1
    assert len(account.versions()) == 1
    account.security_group()  # there is one


async def test_two_pools_do_not_touch_each_other(account, aws_shim, aws_clients, aws_place):
    other = Account(aws_shim, aws_clients, aws_place)
    await account.applied()
    await other.applied()
    assert await account.plan() == {}
    assert await other.plan() == {}


async def test_groups_of_the_file_are_used_as_they_are(account):
    run = await account.applied(groups=("sg-0123456789abcdef0",), make_group=False)
    assert "security group" not in {c.kind for c in run.done}
    assert account.versions()[0]["LaunchTemplateData"]["SecurityGroupIds"] == ["sg-0123456789abcdef0"]
