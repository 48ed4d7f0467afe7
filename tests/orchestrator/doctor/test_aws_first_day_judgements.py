"""Judgements on a new account as tables: facts in, findings out."""

from dataclasses import replace

import pytest

from cloud.aws.doctor import disks
from cloud.aws.doctor.dry_launches import DryLaunch
from cloud.aws.doctor.launch import SubnetFacts
from cloud.aws.doctor.roles import ProfileFacts
from cloud.aws.doctor.routes import TableFacts, Way
from cloud.aws.errors import error_class
from cloud.aws.keys import OPERATIONS
from cloud.aws.places import AwsRegion
from cloud.errors import CloudError
from orchestrator.doctor import aws_account, aws_disks, aws_dry_launches, aws_roles, aws_routes
from orchestrator.doctor.aws_routes import Needs
from orchestrator.doctor.findings import State
from policies.model import Market

OK, WARN, FAIL, SKIPPED = State.OK, State.WARN, State.FAIL, State.SKIPPED
REGION = "us-east-1"
ACCOUNT = "123456789012"
PLACE = AwsRegion(
    region=REGION,
    subnets={"us-east-1a": "subnet-1", "us-east-1b": "subnet-2"},
    instance_types=("g6e.12xlarge", "p5.4xlarge"),
    template="node",
    template_version="1",
)


def states(findings):
    return [finding.state for finding in findings]


@pytest.mark.parametrize(
    ("exists", "wanted", "state"), [(True, True, OK), (False, True, FAIL), (False, False, OK)]
)
def test_spot_needs_a_role_that_nobody_has_by_himself(exists, wanted, state):
    (found,) = aws_account.spot_role(exists, wanted=wanted)
    assert found.state is state
    if state is FAIL:
        assert found.advice == "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"


@pytest.mark.parametrize(
    ("status", "state", "text"),
    [
        ("opt-in-not-required", OK, "may use it"),
        ("opted-in", OK, "may use it"),
        ("not-opted-in", FAIL, "enable-region --region-name me-south-1"),
        ("", FAIL, "correct its name"),
    ],
)
def test_a_region_has_to_be_opted_in(status, state, text):
    (found,) = aws_account.region(status, "me-south-1")
    assert (found.state, text in found.text + found.advice) == (state, True), found


def tried(kind, market=Market.SPOT, code="", message="", **changes):
    error = f"{code}: {message}" if code else ""
    word = error_class(code, 400, lost=CloudError, message=message).word if code else ""
    launch = DryLaunch(
        instance_type=kind, market=market, zone="us-east-1a", code=code, error=error, word=word
    )
    return replace(launch, **changes)


@pytest.mark.parametrize(
    ("code", "message", "changes", "state", "advice"),
    [
        ("UnauthorizedOperation", "no", {"refused": True}, FAIL, "orchestrator aws policy pool.toml"),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", "", {"refused": True}, FAIL, "spot.amazonaws"),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", "", {}, FAIL, "spot.amazonaws"),
        ("VcpuLimitExceeded", "", {}, FAIL, "--quota-code L-C4BD4855"),
        ("MaxSpotInstanceCountExceeded", "", {}, FAIL, "--quota-code L-C4BD4855"),
        ("InsufficientInstanceCapacity", "", {}, WARN, "add types"),
        ("Unsupported", "not supported in your requested Availability Zone", {}, WARN, "add types"),
        ("Unsupported", "The requested configuration is not supported", {}, FAIL, "correct what it names"),
        ("InvalidKeyPair.NotFound", "The key pair does not exist", {}, FAIL, "correct what it names"),
        ("RequestLimitExceeded", "", {}, SKIPPED, "run it again"),
    ],
)
def test_why_a_type_would_not_start_is_told_apart(code, message, changes, state, advice):
    found = aws_dry_launches.launches(
        [tried("g6e.12xlarge"), tried("p5.4xlarge", code=code, message=message, **changes)],
        REGION,
        "pool.toml",
    )
    (finding,) = found
    assert (finding.state, advice in finding.advice) == (state, True), finding
    assert "p5.4xlarge in us-east-1a" in finding.text
    assert "g6e.12xlarge" not in finding.text


def test_types_with_one_reason_share_a_finding_and_markets_have_their_own():
    found = aws_dry_launches.launches(
        [
            tried("g6e.12xlarge", code="InvalidKeyPair.NotFound"),
            tried("p5.4xlarge", code="InvalidKeyPair.NotFound"),
            tried("g6e.12xlarge", Market.ON_DEMAND),
            tried("p5.4xlarge", Market.ON_DEMAND),
        ],
        REGION,
        "pool.toml",
    )
    assert [(f.state, f.subject) for f in found] == [
        (FAIL, "spot in us-east-1"),
        (OK, "on-demand in us-east-1"),
    ]
    assert found[0].text.startswith("every launch would be refused: g6e.12xlarge, p5.4xlarge in us-east-1a")
    assert found[1].text == "g6e.12xlarge, p5.4xlarge would start"


# -- disks and keys ------------------------------------------------------------------------------------------

ROOT = {"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": "snap-1", "VolumeSize": 100, "Encrypted": True}}
DATA = {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 500, "DeleteOnTermination": False}}


@pytest.mark.parametrize(
    ("template", "stays"),
    [
        ([], ["/dev/sdb"]),
        ([{"DeviceName": "/dev/sdb", "Ebs": {"DeleteOnTermination": True}}], []),
        ([{"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 900}}], ["/dev/sdb"]),
        ([{"DeviceName": "/dev/sdb", "NoDevice": ""}], []),
        ([{"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"}], []),
        ([{"DeviceName": "/dev/sdc", "Ebs": {"DeleteOnTermination": False}}], ["/dev/sdb", "/dev/sdc"]),
    ],
)
def test_the_template_has_the_last_word_on_what_the_image_leaves(template, stays):
    found = disks.volumes([ROOT, DATA], template)
    assert [volume.device for volume in found if not volume.deleted] == stays
    assert states(aws_disks.kept(found, PLACE)) == ([FAIL] if stays else [OK])


def test_what_a_volume_is_encrypted_by_is_kept_apart():
    root, data = disks.volumes([ROOT, DATA], [{"DeviceName": "/dev/sdb", "Ebs": {"Encrypted": True}}])
    assert (root.sealed, root.snapshot, data.sealed, data.encrypted) == (True, "snap-1", False, True)


KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1"
DAEMON = f"arn:aws:iam::{ACCOUNT}:role/daemon"
SPOT = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
EVERYBODY = f"arn:aws:iam::{ACCOUNT}:root"
ENOUGH = frozenset(OPERATIONS)


def named_in_policy(*names, action="kms:*", effect="Allow"):
    return {"Statement": [{"Effect": effect, "Principal": {"AWS": list(names)}, "Action": action}]}


@pytest.mark.parametrize(
    ("own", "grants", "policy", "by_iam", "daemon", "spot"),
    [
        (False, {}, {}, (), OK, None),
        (True, {}, {}, (), FAIL, FAIL),
        (True, {DAEMON: ENOUGH, SPOT: ENOUGH}, {}, (), OK, OK),
        (True, {DAEMON: ENOUGH, SPOT: frozenset({"Decrypt"})}, {}, (), OK, FAIL),
        (True, {}, named_in_policy(DAEMON, SPOT), (), OK, OK),
        (True, {}, named_in_policy(DAEMON, SPOT, effect="Deny"), (), FAIL, FAIL),
        (True, {}, named_in_policy(DAEMON, SPOT, action="kms:Decrypt"), (), FAIL, FAIL),
        # IAM's own policies count for the daemon where the key says so, and nobody can give EC2's role any.
        (True, {SPOT: ENOUGH}, named_in_policy(EVERYBODY), (), WARN, OK),
        (True, {}, named_in_policy(EVERYBODY), (DAEMON,), OK, FAIL),
        (True, {}, {}, (DAEMON,), FAIL, FAIL),
    ],
)
def test_who_may_use_a_key(own, grants, policy, by_iam, daemon, spot):
    facts = disks.KeyFacts(arn=KEY, own=own, grants=grants, policy=policy)
    found = aws_disks.grants(facts, {"the daemon": DAEMON, "the role for spot": SPOT}, by_iam, REGION)
    assert states(found) == [state for state in (daemon, spot) if state is not None]
    for finding in found:
        assert finding.state is OK or f"create-grant --region {REGION} --key-id {KEY} " in finding.advice


def test_many_volumes_that_are_left_make_one_command_of_bounded_length():
    many = [disks.LeftVolume(id=f"vol-{n:017x}", size=10) for n in range(50)]
    (found,) = aws_disks.left(many, REGION)
    assert found.advice.count("vol-") == 20
    assert "the other 30" in found.advice
    assert states(aws_disks.left([], REGION)) == [OK]


# -- the role of nodes ---------------------------------------------------------------------------------------

NODE = f"arn:aws:iam::{ACCOUNT}:role/node"


def trusting(principal, effect="Allow"):
    return {"Statement": [{"Effect": effect, "Principal": principal, "Action": "sts:AssumeRole"}]}


PROFILE = ProfileFacts(
    name="node",
    role=NODE,
    trust=trusting({"Service": "ec2.amazonaws.com"}),
    policies=frozenset({"AmazonSSMManagedInstanceCore"}),
)


@pytest.mark.parametrize(
    ("changes", "node_role", "key_pair", "state", "text"),
    [
        ({}, NODE, "", [OK], "EC2 alone may assume"),
        ({}, "", "", [OK], "EC2 alone may assume"),
        ({}, NODE + "2", "", [FAIL], "believes no node"),
        ({"role": ""}, NODE, "", [FAIL], "holds no role"),
        ({"trust": trusting({"AWS": "*"})}, NODE, "", [FAIL, FAIL], "EC2 may not assume"),
        ({"trust": trusting("*")}, NODE, "", [FAIL, FAIL], "EC2 may not assume"),
        ({"trust": trusting({"Service": "ec2.amazonaws.com"}, "Deny")}, NODE, "", [FAIL], "may not assume"),
        (
            {"trust": trusting({"Service": "ec2.amazonaws.com", "AWS": [DAEMON]})},
            NODE,
            "",
            [FAIL],
            "pass for a node",
        ),
        ({"trust": trusting({"Service": "ec2.amazonaws.com", "AWS": DAEMON})}, "", "", [WARN], DAEMON),
        ({"policies": frozenset()}, NODE, "", [WARN], "nobody can look into"),
        ({"policies": frozenset()}, NODE, "ops", [OK], "EC2 alone may assume"),
    ],
)
def test_who_may_have_the_role_of_nodes(changes, node_role, key_pair, state, text):
    found = aws_roles.profile(replace(PROFILE, **changes), "node", node_role, key_pair)
    assert states(found) == state, found
    assert text in found[0].text
    assert all("aws iam " in f.advice for f in found if f.state is not OK)


@pytest.mark.parametrize(("key_pair", "state"), [("", WARN), ("ops", OK)])
def test_nodes_without_a_role_need_a_key_pair(key_pair, state):
    assert states(aws_roles.no_role(key_pair)) == [state]


# -- the way out, and the way to nodes -----------------------------------------------------------------------

PUBLIC = SubnetFacts(
    id="subnet-1", zone="us-east-1a", zone_id="use1-az1", network="vpc-1", free=200, public=True
)
PRIVATE = replace(PUBLIC, id="subnet-2", public=False)
OPEN = TableFacts(id="rtb-1", network="vpc-1", subnets=(PUBLIC,), way=Way.INTERNET, target="igw-1")
NAT = replace(OPEN, subnets=(PRIVATE,), way=Way.NAT, target="nat-1")
NOWHERE = replace(OPEN, subnets=(PRIVATE,), way=Way.NONE, target="")
HUB = Needs(weights=140.0, hub=True)
BUCKET = Needs(weights=140.0, services={"s3": "weights"})
SECRET = Needs(services={"ssm": "secrets"})
S3_ENDPOINT = (
    f"aws ec2 create-vpc-endpoint --region {REGION} --vpc-id vpc-1 --service-name com.amazonaws.{REGION}.s3 "
    "--route-table-ids rtb-1"
)


@pytest.mark.parametrize(
    ("table", "needs", "endpoints", "state", "text", "advice"),
    [
        (OPEN, HUB, (), OK, "go out by igw-1", ""),
        (NAT, HUB, (), WARN, "140 GB through NAT, $6.30 for each launch", "put the weights into S3"),
        (NAT, BUCKET, (), WARN, "140 GB through NAT, $6.30 for each launch", S3_ENDPOINT),
        (NAT, replace(BUCKET, weights=None), (), WARN, "$0.045 a GB", S3_ENDPOINT),
        (replace(NAT, s3=True), BUCKET, (), OK, "go out by nat-1", ""),
        (replace(NAT, s3=True), HUB, (), OK, "weights in S3 would cost nothing", ""),
        (NAT, Needs(), (), OK, "go out by nat-1", ""),
        (replace(NAT, way=Way.OTHER, target="tgw-1"), HUB, (), OK, "other side is not known", ""),
        (replace(OPEN, subnets=(PRIVATE,)), HUB, (), FAIL, "no public address", "--subnet-id subnet-2 --map"),
        (replace(NAT, way=Way.DEAD), HUB, (), FAIL, "which is gone", "--route-table-id rtb-1"),
        (NOWHERE, HUB, (), FAIL, "Hugging Face (weights)", "--nat-gateway-id"),
        (NOWHERE, BUCKET, (), FAIL, "s3 (weights)", S3_ENDPOINT),
        (replace(NOWHERE, s3=True), BUCKET, (), OK, "reached by endpoints", ""),
        (NOWHERE, SECRET, (), FAIL, "ssm (secrets)", "endpoints"),
        (NOWHERE, SECRET, ("ssm",), OK, "reached by endpoints", ""),
        (replace(NOWHERE, s3=True), HUB, ("ssm",), FAIL, "Hugging Face (weights)", "--nat-gateway-id"),
        (NOWHERE, Needs(), (), OK, "reached by endpoints", ""),
    ],
)
def test_nodes_reach_what_they_fetch_and_what_it_costs(table, needs, endpoints, state, text, advice):
    (found,) = aws_routes.routes([table], frozenset(endpoints), needs, REGION)
    assert (found.state, text in found.text, advice in found.advice) == (state, True, True), found
    assert bool(found.advice) == (state is not OK)


def test_a_table_with_both_kinds_of_subnets_has_two_findings():
    found = aws_routes.routes([replace(OPEN, subnets=(PUBLIC, PRIVATE))], frozenset(), HUB, REGION)
    assert [(f.state, f.text.partition(":")[0]) for f in found] == [(OK, "subnet-1"), (FAIL, "subnet-2")]


@pytest.mark.parametrize(
    ("own", "state", "text"),
    [
        ("vpc-1", OK, "as the nodes are"),
        ("vpc-2", WARN, "--vpc-id vpc-2 --peer-vpc-id vpc-1"),
        ("", SKIPPED, "--try-node on-demand"),
    ],
)
def test_the_daemon_has_to_reach_nodes(own, state, text):
    (found,) = aws_routes.control_host(own, frozenset({"vpc-1"}), "pool.toml")
    assert (found.state, text in found.text + found.advice) == (state, True), found
    assert state is OK or "health.boot_timeout" in found.text
