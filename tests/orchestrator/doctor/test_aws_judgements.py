"""Judgements on AWS as tables: facts in, findings out."""

from dataclasses import replace

import pytest

from cloud.aws.doctor.account import ClockReading, How, Identity, Permission, context_of, principal_of
from cloud.aws.doctor.balancer import TargetGroupFacts
from cloud.aws.doctor.launch import GroupFacts, ImageFacts, Opening, SubnetFacts, TemplateFacts
from cloud.aws.doctor.notices import QueueFacts, RuleFacts
from cloud.aws.event_rules import queue_policy
from cloud.aws.events import LISTENED_TO
from cloud.aws.places import AwsRegion
from orchestrator.doctor import (
    aws_account,
    aws_balancer,
    aws_launch,
    aws_notices,
)
from orchestrator.doctor.findings import State
from policies.model import Market, Pool
from policies.model_fit import Verdict

OK, WARN, FAIL, SKIPPED = State.OK, State.WARN, State.FAIL, State.SKIPPED
REGION = "us-east-1"
ACCOUNT = "123456789012"
QUEUE = f"arn:aws:sqs:{REGION}:{ACCOUNT}:notices"
RULE = f"arn:aws:events:{REGION}:{ACCOUNT}:rule/warnings"
KINDS = frozenset(kind for _, kind in LISTENED_TO)
PLACE = AwsRegion(
    region=REGION,
    subnets={"us-east-1a": "subnet-1", "us-east-1b": "subnet-2"},
    instance_types=("g6e.12xlarge", "p5.4xlarge"),
    template="node",
    template_version="1",
)
POOL = Pool(name="llama", replicas=10)


def states(findings):
    return [finding.state for finding in findings]


def texts(findings, *which):
    return [finding.text for finding in findings if finding.state in which]


# -- account -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arn", "state"), [("arn:aws:iam::1:user/x", OK), (f"arn:aws:iam::{ACCOUNT}:root", FAIL)]
)
def test_root_is_no_identity_to_run_with(arn, state):
    assert states(aws_account.credentials(Identity(account=ACCOUNT, arn=arn))) == [state]


@pytest.mark.parametrize(
    ("least", "most", "state", "text"),
    [
        (-0.8, 0.3, OK, "agrees"),
        (1.0, 2.1, OK, "1.0 s ahead of"),
        (-3.5, -2.5, WARN, "2.5 s behind"),
        (4.0, 5.1, WARN, "4.0 s ahead of"),
        (5.0, 6.1, FAIL, "drains keep 5 s free"),
        (-400.0, -399.0, FAIL, "399.0 s behind"),
    ],
)
def test_a_clock_is_as_bad_as_it_is_at_least(least, most, state, text):
    (found,) = aws_account.clock(ClockReading(least=least, most=most), 5.0)
    assert (found.state, text in found.text) == (state, True), found
    assert bool(found.advice) == (state is not OK)


@pytest.mark.parametrize(
    ("how", "allowed", "state", "advice"),
    [
        (How.DRY_RUN, True, OK, ""),
        (How.SIMULATED, False, FAIL, "orchestrator aws policy pool.toml"),
        (How.UNKNOWN, None, SKIPPED, "--doctor"),
        (How.DRY_RUN, None, FAIL, "a launch would be refused"),
    ],
)
def test_a_permission_is_had_or_not_or_not_known(how, allowed, state, advice):
    found = Permission(action="ec2:RunInstances", how=how, allowed=allowed, detail="why")
    (finding,) = aws_account.permissions([found], REGION, "pool.toml")
    assert (finding.state, finding.subject) == (state, "ec2:RunInstances in us-east-1")
    assert advice in finding.advice


def test_a_session_stands_for_its_role_and_a_user_for_itself():
    session = "arn:aws-us-gov:sts::1:assumed-role/daemon/i-0123"
    assert principal_of(session) == "arn:aws-us-gov:iam::1:role/daemon"
    assert principal_of("arn:aws:iam::1:user/a") == "arn:aws:iam::1:user/a"


# -- notices -------------------------------------------------------------------------------------------------


def queue(policy=None, **changes):
    facts = QueueFacts(
        url="https://queue",
        arn=QUEUE,
        policy=queue_policy(QUEUE, [RULE]) if policy is None else policy,
        retention=300.0,
        waiting=0,
        key="",
        redrives=False,
    )
    return replace(facts, **changes)


def allowing(principal, condition=None, action="sqs:SendMessage", effect="Allow"):
    statement = {"Effect": effect, "Principal": principal, "Action": action, "Resource": QUEUE}
    return {"Statement": [statement | ({"Condition": condition} if condition else {})]}


FROM_RULE = {"ArnEquals": {"aws:SourceArn": RULE}}
BRIDGE = {"Service": "events.amazonaws.com"}


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        (queue_policy(QUEUE, [RULE]), None),
        (allowing(BRIDGE, FROM_RULE, "SQS:*"), None),
        (allowing("*", {"ArnLike": {"AWS:SourceArn": "arn:aws:events:*:rule/*"}}), None),
        ({"Statement": allowing(BRIDGE, FROM_RULE)["Statement"][0]}, None),
        (allowing(BRIDGE), WARN),
        (allowing(BRIDGE, {"ArnEquals": {"aws:SourceArn": "*"}}), WARN),
        (allowing({"AWS": "*"}), FAIL),
        (allowing({"AWS": ["arn:aws:iam::999999999999:root"]}), FAIL),
        (allowing(BRIDGE, FROM_RULE, "sqs:ReceiveMessage"), FAIL),
        (allowing("*", effect="Deny"), FAIL),
        ({}, FAIL),
        ({"Statement": "nonsense"}, FAIL),
    ],
)
def test_eventbridge_may_send_and_only_it(policy, state):
    found = aws_notices.queue(queue(policy), REGION)
    assert ({f.state for f in found} - {OK} or {None}) == {state}, found
    assert all(f.advice for f in found if f.state is not OK)


def test_the_owner_of_the_queue_is_no_stranger_and_others_are():
    owner = allowing({"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, action="SQS:*")["Statement"]
    bridge = allowing(BRIDGE, FROM_RULE)["Statement"]
    assert FAIL not in states(aws_notices.queue(queue({"Statement": bridge + owner}), REGION))
    other = allowing({"AWS": f"arn:aws:iam::{ACCOUNT}:role/app"})["Statement"]
    found = aws_notices.queue(queue({"Statement": bridge + other}), REGION)
    assert any("role/app" in text for text in texts(found, FAIL))


def test_everybody_but_one_is_everybody():
    odd = {
        "Statement": [{"Effect": "Allow", "NotPrincipal": {"AWS": "x"}, "Action": "sqs:*", "Resource": QUEUE}]
    }
    assert any("everybody" in text for text in texts(aws_notices.queue(queue(odd), REGION), FAIL))


def test_a_denial_that_spares_eventbridge_is_fine():
    denial = {"Effect": "Deny", "NotPrincipal": BRIDGE, "Action": "sqs:SendMessage", "Resource": QUEUE}
    sound = allowing(BRIDGE, FROM_RULE)["Statement"]
    assert FAIL not in states(aws_notices.queue(queue({"Statement": [*sound, denial]}), REGION))


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"retention": 60.0}, WARN),
        ({"retention": 300.0}, OK),
        ({"retention": 345_600.0}, WARN),
        ({"key": "arn:aws:kms:us-east-1:1:alias/aws/sqs"}, FAIL),
        ({"key": "arn:aws:kms:us-east-1:1:key/2"}, WARN),
    ],
)
def test_retention_and_encryption(changes, state):
    found = aws_notices.queue(queue(**changes), REGION)
    assert state in states(found)
    assert (FAIL in states(found)) == (state is FAIL)


def rule(**changes):
    facts = RuleFacts(name="warnings", arn=RULE, enabled=True, reshapes=False, matches=KINDS)
    return replace(facts, **changes)


@pytest.mark.parametrize(
    ("rules", "state", "text"),
    [
        ([rule()], OK, f"all {len(KINDS)} kinds"),
        ([], FAIL, "no notice ever comes this way"),
        ([rule(matches=KINDS - {"AWS Health Event"})], WARN, '"AWS Health Event"'),
        ([rule(matches=frozenset())], FAIL, "Spot Instance Interruption"),
        ([rule(enabled=False)], FAIL, "Spot Instance Interruption"),
        ([rule(reshapes=True)], FAIL, "nobody can read"),
        ([rule(arn=RULE + "-other")], FAIL, "does not let the rule"),
        ([rule(enabled=False), rule(name="other")], WARN, "is disabled"),
    ],
)
def test_every_kind_reaches_the_queue_whole(rules, state, text):
    found = aws_notices.rules(queue(), rules, REGION)
    assert any(f.state is state and text in f.text for f in found), found
    assert (FAIL in states(found)) == (state is FAIL)
    assert all(f.advice for f in found if f.state is not OK)


@pytest.mark.parametrize(
    ("condition", "context"),
    [
        ({}, []),
        ({"StringEquals": {"a": "x"}}, [("a", ["x"], "string")]),
        ({"StringLike": {"s3:prefix": ["x", "x/*"]}}, [("s3:prefix", ["x"], "string")]),
        (
            {"Bool": {"kms:GrantIsForAWSResource": "true"}},
            [("kms:GrantIsForAWSResource", ["true"], "boolean")],
        ),
        ({"ForAnyValue:StringEquals": {"b": "alias/x"}}, [("b", ["alias/x"], "stringList")]),
    ],
)
def test_conditions_of_the_policy_hold_where_they_are_simulated(condition, context):
    found = context_of(condition)
    assert [(c["ContextKeyName"], c["ContextKeyValues"], c["ContextKeyType"]) for c in found] == context


# -- launches ------------------------------------------------------------------------------------------------

TEMPLATE = TemplateFacts(
    image="ami-12345678", tokens="required", groups=("sg-1",), interfaces=False, market="", profile=""
)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, OK),
        ({"tokens": ""}, WARN),
        ({"tokens": "optional"}, WARN),
        ({"market": "spot"}, FAIL),
        ({"interfaces": True}, FAIL),
    ],
)
def test_launch_templates(changes, state):
    assert states(aws_launch.template(replace(TEMPLATE, **changes), PLACE)) == [state]


IMAGE = ImageFacts(id="ami-12345678", state="available", architecture="x86_64")


@pytest.mark.parametrize(
    ("name", "facts", "state", "text"),
    [
        ("ami-12345678", IMAGE, OK, "available"),
        ("ami-12345678", None, FAIL, "there is no image"),
        ("", None, FAIL, "names an image"),
        ("resolve:ssm:/image", None, FAIL, "tomorrow"),
        ("ami-12345678", replace(IMAGE, state="pending"), FAIL, "pending"),
        ("ami-12345678", replace(IMAGE, architecture="arm64"), FAIL, "arm64"),
    ],
)
def test_images(name, facts, state, text):
    (found,) = aws_launch.image(name, facts, PLACE)
    assert (found.state, text in found.text) == (state, True), found


SUBNETS = tuple(
    SubnetFacts(id=f"subnet-{n}", zone=f"us-east-1{z}", zone_id=f"use1-az{n}", network="vpc-1", free=200)
    for n, z in ((1, "a"), (2, "b"))
)
GROUP = GroupFacts(id="sg-1", network="vpc-1", openings=(Opening(first=8000, last=8000, anywhere=False),))
WORLD = Opening(first=0, last=65535, anywhere=True)


def network(subnets=SUBNETS, groups=(GROUP,), named=("sg-1",), exporter=None):
    return aws_launch.network(subnets, groups, named, PLACE, 14, exporter)


@pytest.mark.parametrize(
    ("given", "state", "text"),
    [
        ({}, OK, "2 subnets"),
        ({"subnets": SUBNETS[:1]}, FAIL, "there is no subnet subnet-2"),
        ({"subnets": (SUBNETS[0], replace(SUBNETS[1], zone="us-east-1c"))}, FAIL, "is in us-east-1c"),
        ({"subnets": (SUBNETS[0], replace(SUBNETS[1], network="vpc-2"))}, FAIL, "several networks"),
        ({"subnets": (SUBNETS[0], replace(SUBNETS[1], free=6))}, WARN, "6 free addresses"),
        ({"named": ()}, WARN, "default group"),
        ({"groups": ()}, FAIL, "there is no security group sg-1"),
        ({"groups": (replace(GROUP, network="vpc-2"),)}, FAIL, "belongs to vpc-2"),
        ({"groups": (replace(GROUP, openings=()),)}, FAIL, "nobody reaches"),
        (
            {"groups": (replace(GROUP, openings=(Opening(first=0, last=65535, anywhere=True),)),)},
            FAIL,
            "world",
        ),
        ({"exporter": 8000}, OK, "2 subnets"),
        ({"exporter": 9400}, WARN, "opens port 9400 (gpu.dcgm_port)"),
        ({"exporter": 9400, "groups": ()}, FAIL, "there is no security group sg-1"),
    ],
)
def test_networks(given, state, text):
    found = network(**given)
    assert [f.state for f in found if text in f.text] == [state], found
    assert (FAIL in states(found)) == (state is FAIL)
    assert all(f.advice for f in found if f.state is not OK)


@pytest.mark.parametrize(
    ("missing", "state"),
    [
        (set(), OK),
        ({("p5.4xlarge", "us-east-1a")}, WARN),
        ({("p5.4xlarge", "us-east-1a"), ("p5.4xlarge", "us-east-1b")}, FAIL),
    ],
)
def test_types_that_are_not_sold(missing, state):
    sold = {(kind, zone) for kind in PLACE.instance_types for zone in PLACE.subnets} - missing
    assert states(aws_launch.types(frozenset(sold), PLACE)) == [state]


@pytest.mark.parametrize(
    ("fits", "used", "state"), [(True, 0.5, OK), (True, 0.95, WARN), (False, 1.05, WARN)]
)
def test_models(fits, used, state):
    verdict = Verdict(fits=fits, used=used, text="needs 40 GiB of 48")
    (found,) = aws_launch.model({"g6e.12xlarge": verdict}, "llama-70b-awq")
    assert (found.state, found.subject) == (state, "g6e.12xlarge")
    assert states(aws_launch.model({}, "simulated")) == [SKIPPED]


def test_each_family_has_its_quotas():
    codes = aws_launch.quota_codes(
        ("g6e.12xlarge", "p4d.24xlarge", "p5.4xlarge", "p6-b200.48xlarge", "m7i.large")
    )
    assert codes == {
        (Market.SPOT, "L-3819A6DF"): ("g6e.12xlarge",),
        (Market.SPOT, "L-7212CCBC"): ("p4d.24xlarge",),
        (Market.SPOT, "L-C4BD4855"): ("p5.4xlarge",),
        (Market.ON_DEMAND, "L-DB2E81BA"): ("g6e.12xlarge",),
        (Market.ON_DEMAND, "L-417A185B"): ("p4d.24xlarge", "p5.4xlarge", "p6-b200.48xlarge"),
    }


@pytest.mark.parametrize(
    ("market", "value", "state"),
    [
        # p5.4xlarge has 16 vCPUs; the pool wants 7 on spot, at least 3 and at most 10 on-demand
        (Market.SPOT, 111.0, FAIL),
        (Market.SPOT, 112.0, OK),
        (Market.ON_DEMAND, 47.0, FAIL),
        (Market.ON_DEMAND, 48.0, WARN),
        (Market.ON_DEMAND, 160.0, OK),
    ],
)
def test_quotas_against_the_pool(market, value, state):
    code = "L-C4BD4855" if market is Market.SPOT else "L-417A185B"
    (found,) = aws_launch.quota(market, code, ("p5.4xlarge",), value, POOL, REGION)
    assert found.state is state, found
    if state is not OK:
        assert f"--desired-value {112 if market is Market.SPOT else 160}" in found.advice


def test_a_type_of_unknown_size_has_no_verdict():
    assert not aws_launch.quota(Market.SPOT, "L-3819A6DF", ("g99.large",), 0.0, POOL, REGION)


@pytest.mark.parametrize(
    ("scores", "types", "state", "text"),
    [
        ({"use1-az1": 9, "use1-az2": 2}, 3, OK, "us-east-1a 9 of 10, us-east-1b 2 of 10"),
        ({"use1-az1": 3, "use1-az2": 1}, 3, WARN, "unlikely"),
        ({"use1-az1": 3}, 2, OK, "always low"),
        ({"use1-az6": 9}, 3, WARN, "none of the zones"),
    ],
)
def test_scores_are_told_and_low_ones_of_enough_types_warned_of(scores, types, state, text):
    place = replace(PLACE, instance_types=("g5.12xlarge", "g6e.12xlarge", "p5.4xlarge")[:types])
    (found,) = aws_launch.scores(scores, SUBNETS, place)
    assert (found.state, text in found.text) == (state, True), found


# -- balancer ------------------------------------------------------------------------------------------------

BALANCER = "arn:aws:elasticloadbalancing:us-east-1:1:loadbalancer/app/front/1"
TARGETS = TargetGroupFacts(
    arn="arn:aws:elasticloadbalancing:us-east-1:1:targetgroup/llama/1",
    name="llama",
    protocol="HTTP",
    kind="instance",
    network="vpc-1",
    balancers=(BALANCER,),
    health_path="/health",
    delay=90.0,
    slow_start=0.0,
    sticky=False,
    algorithm="least_outstanding_requests",
)


@pytest.mark.parametrize(
    ("changes", "state", "text"),
    [
        ({}, OK, "90 s"),
        ({"protocol": "TCP"}, FAIL, "Network Load Balancer"),
        ({"protocol": ""}, FAIL, "speaks nothing"),
        ({"kind": "lambda"}, FAIL, "lambda"),
        ({"delay": 115.0}, OK, "115 s"),
        ({"delay": 116.0}, FAIL, "requests are cut"),
        ({"delay": 20.0}, WARN, "shorter than drain.budget"),
        ({"slow_start": 30.0}, WARN, "slow start"),
        ({"network": "vpc-9"}, FAIL, "belongs to vpc-9"),
        ({"balancers": ()}, WARN, "no load balancer"),
        ({"sticky": True}, WARN, "sticky"),
        ({"health_path": "/"}, FAIL, "asks for /,"),
        ({"health_path": ""}, FAIL, "asks for no path"),
        ({"health_path": "/v1/models"}, FAIL, "asks for /v1/models"),
        ({"algorithm": "round_robin"}, WARN, "by round_robin"),
    ],
)
def test_target_groups(changes, state, text):
    found = aws_balancer.target_group(
        replace(TARGETS, **changes), region=REGION, budget=30.0, margin=5.0, networks=frozenset({"vpc-1"})
    )
    assert [f.state for f in found] == [state], found
    assert text in found[0].text
    assert bool(found[0].advice) == (state is not OK)


def test_the_command_of_the_advice_names_group_region_and_value():
    (found,) = aws_balancer.target_group(
        replace(TARGETS, delay=300.0), region=REGION, budget=30.0, margin=5.0, networks=frozenset()
    )
    command = "aws elbv2 modify-target-group-attributes --region us-east-1 --target-group-arn " + TARGETS.arn
    assert command in found.advice
    assert "Value=90" in found.advice


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        (
            {"health_path": "/"},
            f"aws elbv2 modify-target-group --region {REGION} --target-group-arn {TARGETS.arn} "
            "--health-check-path /health",
        ),
        (
            {"algorithm": "round_robin"},
            f"aws elbv2 modify-target-group-attributes --region {REGION} --target-group-arn {TARGETS.arn} "
            "--attributes Key=load_balancing.algorithm.type,Value=least_outstanding_requests",
        ),
    ],
)
def test_what_mends_a_target_group_is_a_whole_command(changes, command):
    (found,) = aws_balancer.target_group(
        replace(TARGETS, **changes), region=REGION, budget=30.0, margin=5.0, networks=frozenset()
    )
    assert found.advice == command


@pytest.mark.parametrize(
    ("seconds", "keep_alive", "answer", "state", "text", "value"),
    [
        (60.0, 75.0, 30.0, [OK], "after 60 s here and after 75 s", ""),
        (60.0, 5.0, 30.0, [FAIL], "clients get 502", 'balancer_idle_timeout = "60s"'),
        (75.0, 75.0, 30.0, [FAIL], "not below the 75 s", "Value=60"),
        (60.0, 75.0, 90.0, [WARN], "gets 504", 'Value=90 and write cloud.aws.balancer_idle_timeout = "90s"'),
        (60.0, 20.0, 90.0, [FAIL, WARN], "clients get 502", "Value=5"),
    ],
)
def test_a_balancer_lets_go_of_idle_connections_first(seconds, keep_alive, answer, state, text, value):
    found = aws_balancer.idle_timeout(
        seconds, BALANCER, region=REGION, keep_alive=keep_alive, answer=answer, stated=seconds
    )
    assert states(found) == state, found
    assert text in found[0].text
    assert value in found[0].advice
    assert not value or f"--load-balancer-arn {BALANCER} " in found[0].advice


def test_an_idle_timeout_is_as_the_configuration_says():
    (found,) = aws_balancer.idle_timeout(
        50.0, BALANCER, region=REGION, keep_alive=75.0, answer=30.0, stated=60.0
    )
    assert (found.state, found.advice) == (WARN, 'write cloud.aws.balancer_idle_timeout = "50s"')
