"""What a new account lacks and what costs money there, on the stand-in for AWS, one thing at a time."""

import itertools
import json

import pytest

from orchestrator.doctor.findings import State

OK, WARN, FAIL, SKIPPED = State.OK, State.WARN, State.FAIL, State.SKIPPED
CALLER = "arn:aws:iam::123456789012:user/orchestrator"
CORE = "AmazonSSMManagedInstanceCore"
NUMBERS = itertools.count()


def worst(findings):
    return [f for f in findings if f.state in (WARN, FAIL)]


def only(findings):
    (found,) = worst(findings)
    return found


async def test_an_account_without_the_role_for_spot_is_told_the_command(account):
    account.shim.order("set", spot_role=False)
    found = only((await account.findings("aws"))["aws/spot-role"])
    assert (found.state, found.advice) == (
        FAIL,
        "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com",
    )


@pytest.mark.parametrize("known", [True, False])
async def test_a_region_that_is_not_opted_in_is_named_whether_it_knows_credentials_or_not(account, known):
    account.region, account.subnets = "me-south-1", {"me-south-1a": "subnet-0123456789abcdef0"}
    account.shim.order("set", opted_out=["me-south-1"])
    if not known:
        refusal = {"kind": "error", "times": 9, "code": "InvalidClientTokenId"}
        account.shim.order("fault", action="GetCallerIdentity", **refusal)
    found = await account.findings("aws")
    assert found["aws/credentials"][0].state is (OK if known else FAIL)
    assert "aws account enable-region --region-name me-south-1" in only(found["aws/region"]).advice


async def test_a_region_that_there_is_not(account):
    account.region, account.subnets = "us-east-9", {"us-east-9a": "subnet-0123456789abcdef0"}
    assert "there is no such region" in only((await account.findings("aws"))["aws/region"]).text


async def test_every_type_is_tried_in_every_market_and_every_zone_with_the_first(account):
    found = await account.findings("aws", "launch")
    assert [(f.state, f.text) for f in found["launch/dry-run"]] == [
        (OK, "g6e.12xlarge, p5.4xlarge would start"),
        (OK, "g6e.12xlarge, p5.4xlarge would start"),
    ]
    # 2 types and one zone more, in 2 markets; the check of permissions makes no launches of its own
    assert account.shim.order("calls")["RunInstances"] == 6


async def test_one_refused_type_among_others_is_found_and_named(account):
    # The second type in the first market.
    account.shim.order(
        "fault", action="RunInstances", kind="error", after=1, code="InvalidKeyPair.NotFound", message="gone"
    )
    (found,) = worst((await account.findings("aws", "launch"))["launch/dry-run"])
    assert (found.state, found.subject) == (FAIL, "spot in us-east-1")
    assert (
        found.text == "every launch would be refused: p5.4xlarge in us-east-1a: InvalidKeyPair.NotFound: gone"
    )


async def test_a_type_that_the_first_zone_lacks_is_tried_in_the_next(account):
    message = "p5 is not supported in your requested Availability Zone (us-east-1a)"
    account.shim.order("fault", action="RunInstances", kind="error", code="Unsupported", message=message)
    found = (await account.findings("aws", "launch"))["launch/dry-run"]
    assert {f.state for f in found} == {OK}
    assert account.shim.order("calls")["RunInstances"] == 7


async def test_too_many_calls_are_waited_out(account):
    account.shim.order(
        "fault", action="RunInstances", kind="error", times=2, code="RequestLimitExceeded", status=503
    )
    found = (await account.findings("aws", "launch"))["launch/dry-run"]
    assert {f.state for f in found} == {OK}
    assert account.shim.order("calls")["RunInstances"] == 8


async def test_a_pool_without_spot_tries_none_and_needs_no_role(account):
    account.pool["on_demand_floor"] = 10
    account.shim.order("set", spot_role=False)
    found = await account.findings("aws", "launch")
    assert [f.subject for f in found["launch/dry-run"]] == ["on-demand in us-east-1"]
    assert [f.state for f in found["aws/spot-role"]] == [OK]


@pytest.mark.parametrize(("keep_alive", "seconds"), [("75", 75), ("65", 70)])
async def test_a_balancer_that_keeps_connections_longer_than_the_engines(account, keep_alive, seconds):
    account.keep_alive = keep_alive  # the file says 60 s of the balancer, and all is well by the file
    account.client("elbv2").modify_load_balancer_attributes(
        LoadBalancerArn=account.balancer,
        Attributes=[{"Key": "idle_timeout.timeout_seconds", "Value": str(seconds)}],
    )
    (late,) = worst((await account.findings("aws", "balancer"))["balancer/idle-timeout"])
    assert (late.state, "clients get 502" in late.text) == (FAIL, True)
    assert f"--load-balancer-arn {account.balancer}" in late.advice
    assert f'balancer_idle_timeout = "{seconds}s"' in late.advice


async def test_who_may_not_read_the_idle_timeout_still_sees_the_target_group(account):
    account.shim.order("set", denied=["elasticloadbalancing:DescribeLoadBalancerAttributes"])
    found = await account.findings("aws", "balancer")
    assert [f.state for f in found["balancer/idle-timeout"]] == [SKIPPED]
    assert [f.state for f in found["balancer/target-group"]] == [OK]


def nodes_role(account, *, trusted=("ec2.amazonaws.com",), policies=(CORE,), holds=True):
    """An instance profile with a role; its name and the role's ARN."""
    iam, name = account.client("iam"), f"node-{next(NUMBERS)}"
    statement = {"Effect": "Allow", "Principal": {"Service": list(trusted)}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document)["Role"]["Arn"]
    for policy in policies:
        allowing = {"Effect": "Allow", "Action": "ssm:*", "Resource": "*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [allowing]})
        made = iam.create_policy(Path=f"/{name}/", PolicyName=policy, PolicyDocument=document)
        iam.attach_role_policy(RoleName=name, PolicyArn=made["Policy"]["Arn"])
    iam.create_instance_profile(InstanceProfileName=name)
    if holds:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    account.template(IamInstanceProfile={"Name": name}, KeyName=None)
    account.settings["node_role"] = arn
    return name, arn


@pytest.mark.parametrize(
    ("given", "state", "text"),
    [
        ({}, None, ""),
        ({"trusted": ("lambda.amazonaws.com",)}, FAIL, "EC2 may not assume"),
        ({"trusted": ("ec2.amazonaws.com", "lambda.amazonaws.com")}, FAIL, "pass for a node"),
        ({"policies": ()}, WARN, "nobody can look into a node"),
        ({"holds": False}, FAIL, "holds no role"),
    ],
)
async def test_the_role_of_nodes(account, given, state, text):
    name, _ = nodes_role(account, **given)
    found = worst((await account.findings("aws", "launch"))["launch/profile"])
    assert {f.state for f in found} == ({state} if state else set())
    assert text in " ".join(f.text for f in found)
    assert all(name in f.advice for f in found)


async def test_an_instance_profile_that_is_not_there(account):
    account.template(IamInstanceProfile={"Name": "nobody"})
    found = only((await account.findings("aws", "launch"))["launch/profile"])
    assert (found.state, "EC2 refuses every launch" in found.text) == (FAIL, True)
    assert "aws iam create-instance-profile --instance-profile-name nobody" in found.advice


async def test_a_role_that_may_not_read_the_secrets_of_engines(account):
    _, arn = nodes_role(account)
    account.settings["engine_secrets"] = {
        "HF_TOKEN": "arn:aws:ssm:us-east-1:123456789012:parameter/llama/hf-token"
    }
    account.shim.order("set", principals=[arn])
    found = (await account.findings("aws", "launch"))["launch/profile"]
    assert [f.state for f in found] == [OK, OK]
    account.shim.order("set", principals=[arn], denied=["ssm:GetParameter"])
    found = only((await account.findings("aws", "launch"))["launch/profile"])
    assert (found.state, "ssm:GetParameter" in found.text) == (FAIL, True)
    account.shim.order("set", principals=[arn], denied=["iam:SimulatePrincipalPolicy"])
    found = (await account.findings("aws", "launch"))["launch/profile"]
    assert [f.state for f in found] == [OK, SKIPPED]


IMAGE = "ami-0fedcba987654321"


def image_of(account, *volumes):
    """An image with these disks beside its root, used by the pool."""
    root = {"device": "/dev/sda1", "size": 8}
    account.shim.order("set", images={IMAGE: {"volumes": [root, *volumes]}})
    account.settings["instance_types"] = ["g6e.12xlarge"]
    return account.template(ImageId=IMAGE)


async def test_a_volume_of_the_image_that_outlives_machines(account):
    name = image_of(account, {"device": "/dev/sdb", "size": 500, "delete_on_termination": False})
    found = only((await account.findings("aws", "launch"))["launch/disks"])
    assert (found.state, "/dev/sdb (500 GiB)" in found.text) == (FAIL, True)
    assert "$40.00 a month" in found.text
    assert f"create-launch-template-version --region us-east-1 --launch-template-name {name} " in found.advice
    data = found.advice.partition("--launch-template-data '")[2].partition("'")[0]
    # What the advice says fixes it.
    made = account.client("ec2").create_launch_template_version(
        LaunchTemplateName=name, SourceVersion="1", LaunchTemplateData=json.loads(data)
    )
    account.region_settings["launch_template_version"] = made["LaunchTemplateVersion"]["VersionNumber"]
    assert not worst((await account.findings("aws", "launch"))["launch/disks"])


async def test_an_image_whose_snapshot_is_encrypted_with_a_key_of_ones_own(account):
    arn = account.client("kms").create_key()["KeyMetadata"]["Arn"]
    image_of(account, {"device": "/dev/sdb", "size": 100, "encrypted": True, "kms": arn})
    found = worst((await account.findings("aws", "launch"))["launch/disks"])
    assert [(f.state, f"--key-id {arn} " in f.advice) for f in found] == [(FAIL, True)]


async def test_the_default_key_of_an_account_that_encrypts_everything(account):
    arn = account.client("kms").create_key()["KeyMetadata"]["Arn"]
    account.shim.order("set", default_key=arn)
    found = worst((await account.findings("aws", "launch"))["launch/disks"])
    assert [(f.state, f"--key-id {arn} " in f.advice) for f in found] == [(FAIL, True)]


def own_key(account):
    """A key of KMS's that volumes of launches get."""
    arn = account.client("kms").create_key()["KeyMetadata"]["Arn"]
    ebs = {"DeleteOnTermination": True, "Encrypted": True, "KmsKeyId": arn}
    account.template(BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": ebs}])
    return arn


async def test_a_key_of_ones_own_without_grants_ends_every_spot_machine(account):
    arn = own_key(account)
    account.shim.order("set", denied=["kms:CreateGrant"])  # to the daemon
    found = worst((await account.findings("aws", "launch"))["launch/disks"])
    spot = "arn:aws:iam::123456789012:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
    assert [(f.state, arn in f.advice) for f in found] == [(WARN, True), (FAIL, True)]
    assert "Client.InternalError" in found[1].text
    for finding, who in zip(found, (CALLER, spot), strict=True):
        assert f"--grantee-principal {who} " in finding.advice
    account.shim.order("set", denied=[])
    assert only((await account.findings("aws", "launch"))["launch/disks"]).advice == found[1].advice
    # What the advice says fixes it.
    for who in (CALLER, spot):
        operations = found[1].advice.partition("--operations ")[2].split()
        account.client("kms").create_grant(KeyId=arn, GranteePrincipal=who, Operations=operations)
    assert not worst((await account.findings("aws", "launch"))["launch/disks"])


async def test_who_may_not_read_keys_still_sees_what_outlives_machines(account):
    image_of(account, {"device": "/dev/sdb", "size": 500, "delete_on_termination": False})
    account.shim.order("set", denied=["ec2:GetEbsEncryptionByDefault"])
    found = (await account.findings("aws", "launch"))["launch/disks"]
    assert [f.state for f in found] == [FAIL, SKIPPED]
    assert "GetEbsEncryptionByDefault" in found[1].text


async def test_grants_that_nobody_may_read_are_printed_all_the_same(account):
    arn = own_key(account)
    account.shim.order("set", denied=["kms:ListGrants"])
    found = (await account.findings("aws", "launch"))["launch/disks"]
    assert [f.state for f in found] == [OK, SKIPPED]
    assert found[1].advice.count(f"aws kms create-grant --region us-east-1 --key-id {arn}") == 2


async def test_volumes_that_are_left_over_cost_money(account):
    ec2 = account.client("ec2")
    tags = [{"ResourceType": "volume", "Tags": [{"Key": "orchestrator:pool", "Value": "llama"}]}]
    made = ec2.create_volume(AvailabilityZone="us-east-1a", Size=500, TagSpecifications=tags)["VolumeId"]
    other = ec2.create_volume(AvailabilityZone="us-east-1a", Size=500)["VolumeId"]
    try:
        found = only((await account.findings("aws", "launch"))["launch/left-volumes"])
    finally:
        ec2.delete_volume(VolumeId=made)
        ec2.delete_volume(VolumeId=other)
    assert (found.state, "$40.00 a month" in found.text) == (WARN, True)
    delete = "aws ec2 delete-volume --region us-east-1 --volume-id $v"
    assert found.advice == f"for v in {made}; do {delete}; done"


# -- the way out, and the way to nodes -----------------------------------------------------------------------

_70B = "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"


def in_a_network(account, kind):
    """The pool in a network of its own, whose main route table leads out by that kind of gateway, if any.
    Its zones' second subnet has its own table, which leads nowhere."""
    ec2 = account.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="127.80.0.0/16")["Vpc"]["VpcId"]
    first, second = (
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"127.80.{n}.0/24", AvailabilityZone=zone)["Subnet"][
            "SubnetId"
        ]
        for n, zone in enumerate(account.network.subnets)
    )
    of_vpc = [{"Name": "vpc-id", "Values": [vpc]}]
    (main,) = ec2.describe_route_tables(Filters=of_vpc)["RouteTables"]
    if kind == "nat":
        address = ec2.allocate_address(Domain="vpc")["AllocationId"]
        made = ec2.create_nat_gateway(SubnetId=first, AllocationId=address)["NatGateway"]["NatGatewayId"]
        ec2.create_route(
            RouteTableId=main["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", NatGatewayId=made
        )
    closed = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    ec2.associate_route_table(RouteTableId=closed, SubnetId=second)
    account.subnets = dict(zip(account.network.subnets, (first, second), strict=True))
    account.pool["model"] = _70B
    account.engine.update(kind="vllm", args=["--tensor-parallel-size", "4", "--max-model-len", "4096"])
    account.settings["instance_types"] = ["g6e.12xlarge"]
    return vpc, main["RouteTableId"], closed


async def test_nat_costs_money_and_no_route_at_all_keeps_engines_from_their_weights(account):
    vpc, main, closed = in_a_network(account, "nat")
    first, second = account.subnets.values()
    found = worst((await account.findings("aws", "launch"))["launch/routes"])
    assert {(f.state, f.text.partition(":")[0]) for f in found} == {(WARN, first), (FAIL, second)}
    texts = {f.state: f for f in found}
    assert "GB through NAT, $1." in texts[WARN].text  # about 38 GB
    assert f"--vpc-id {vpc} --service-name com.amazonaws.us-east-1.s3" in texts[WARN].advice
    assert f"--route-table-ids {main}" in texts[WARN].advice
    assert "Hugging Face" in texts[FAIL].text
    assert f"--route-table-id {closed} " in texts[FAIL].advice


async def test_weights_in_s3_are_free_with_the_endpoint_that_is_advised(account):
    vpc, main, closed = in_a_network(account, "nat")
    account.settings["weights"] = "s3://llama-weights/70b"
    account.client("ec2").create_vpc_endpoint(
        VpcId=vpc, ServiceName="com.amazonaws.us-east-1.s3", RouteTableIds=[main, closed]
    )
    found = (await account.findings("aws", "launch"))["launch/routes"]
    assert {f.state for f in found} == {OK}, found


async def test_this_host_is_in_the_network_of_the_nodes_or_in_another(account, imds):
    imds.put("meta-data/mac", "02:00:00:00:00:01")
    imds.put("meta-data/network/interfaces/macs/02:00:00:00:00:01/vpc-id", account.network.vpc)
    assert [f.state for f in (await account.findings("aws", "launch"))["launch/control-host"]] == [OK]
    imds.put("meta-data/network/interfaces/macs/02:00:00:00:00:01/vpc-id", "vpc-0fedcba987654321")
    found = only((await account.findings("aws", "launch"))["launch/control-host"])
    assert "this host is in vpc-0fedcba987654321" in found.text


@pytest.mark.parametrize("answers", ["nothing", "errors"])
async def test_where_no_metadata_answers_nobody_knows_where_this_host_is(account, imds, monkeypatch, answers):
    if answers == "nothing":
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    imds.put("meta-data/mac", None)
    found = (await account.findings("aws", "launch"))["launch/control-host"]
    assert [f.state for f in found] == [SKIPPED]
