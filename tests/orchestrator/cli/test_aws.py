"""`orchestrator aws`: what it prints, and what it says when it cannot."""

import json
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest

from orchestrator.__main__ import main

QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/notices"
AWS = """
[pool.llama]
replicas = 4
engine.allow_simulated = true
limits.spend_per_hour = "unlimited"
[pool.llama.cloud]
kind = "aws"
[pool.llama.cloud.aws]
instance_types = ["p5.4xlarge"]
[pool.llama.cloud.aws.regions.us-east-1]
subnets = { us-east-1a = "subnet-1" }
launch_template = "node"
launch_template_version = 3
notice_queue = "QUEUE"
"""


def test_policy_is_json_for_this_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(AWS.replace("QUEUE", QUEUE))
    role = "arn:aws:iam::123456789012:role/node"
    assert main(["aws", "policy", str(file), "--node-role", role]) == 0
    made = {found["Sid"]: found for found in json.loads(capsys.readouterr().out)["Statement"]}
    assert made["GiveRole"]["Resource"] == [role]
    assert made["ChangeOwn"]["Condition"]["StringEquals"] == {"aws:ResourceTag/orchestrator:pool": "llama"}
    assert made["Hear"]["Resource"] == ["arn:aws:sqs:us-east-1:123456789012:notices"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pool.llama]\nreplicas = 4\n", 'the pool runs on local; write cloud.kind = "aws" first'),
        (AWS.replace("QUEUE", "https://queue"), "names no account and queue"),
        ("[pool.llama]\n", "replicas: is missing"),
    ],
)
def test_policy_says_what_is_wrong(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(text)
    assert main(["aws", "policy", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def test_grants_of_a_key_are_printed_for_spot_and_for_the_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(AWS.replace("QUEUE", QUEUE))
    assert main(["aws", "policy", str(file), "--kms", KEY]) == 0
    spot, daemon = [line for line in capsys.readouterr().out.splitlines() if line.startswith("aws kms")]
    role = "arn:aws:iam::123456789012:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
    assert f"create-grant --region us-east-1 --key-id {KEY} --grantee-principal {role} " in spot
    assert "--grantee-principal DAEMON_ROLE_ARN " in daemon
    assert "CreateGrant" in spot
    assert "GenerateDataKeyWithoutPlaintext" in daemon


@pytest.mark.parametrize("key", ["alias/nodes", KEY.replace(":key/", ":alias/"), "1234abcd"])
def test_grants_need_the_arn_of_a_key(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(AWS.replace("QUEUE", QUEUE))
    assert main(["aws", "policy", str(file), "--kms", key]) == 1
    assert "arn:aws:kms:REGION:ACCOUNT:key/ID" in capsys.readouterr().err


def test_one_thing_is_printed_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(AWS.replace("QUEUE", QUEUE))
    assert main(["aws", "policy", str(file), "--node", "--kms", KEY]) == 2
    assert "choose one" in capsys.readouterr().err


def test_the_key_and_the_weights_of_the_file_are_in_the_policies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pool.toml"
    tables = f'weights = "s3://llama/8b"\ndisk.kms_key = "{KEY}"\n'
    file.write_text(AWS.replace("QUEUE", QUEUE).replace("instance_types", f"{tables}instance_types"))
    assert main(["aws", "policy", str(file)]) == 0
    daemon = {found["Sid"]: found for found in json.loads(capsys.readouterr().out)["Statement"]}
    assert daemon["GrantKey"]["Resource"] == [KEY]
    assert main(["aws", "policy", str(file), "--node"]) == 0
    node = {found["Sid"]: found for found in json.loads(capsys.readouterr().out)["Statement"]}
    assert node["ReadWeights"]["Resource"] == ["arn:aws:s3:::llama/8b/*"]


def parts(out: str) -> dict[str, str]:
    return {f"{part['kind']} {part['name']}": part["verb"] for part in json.loads(out)["parts"]}


@pytest.fixture
def account(aws_shim: Any, tmp_path: Path) -> Path:
    """A file for a pool that has nothing on the stand-in for AWS but a network."""
    ec2: Any = boto3.client("ec2", region_name="us-east-1", endpoint_url=aws_shim.url)
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24", AvailabilityZone="us-east-1a")
    file = tmp_path / "pool.toml"
    name = f"cli{uuid.uuid4().hex[:8]}"
    file.write_text(
        f"""
[pool.{name}]
replicas = 4
engine.allow_simulated = true
limits.spend_per_hour = "unlimited"
[pool.{name}.cloud]
kind = "aws"
[pool.{name}.cloud.aws]
endpoint = "{aws_shim.url}"
instance_types = ["p5.4xlarge"]
[pool.{name}.cloud.aws.regions.us-east-1]
subnets = {{ us-east-1a = "{subnet["Subnet"]["SubnetId"]}" }}
launch_template = "{name}-node"
image = "ami-12345678"
allow_from = ["10.9.0.0/28"]
"""
    )
    return file


@pytest.mark.slow
def test_bootstrap_shows_then_makes_then_keeps(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(account)
    assert main(["aws", "bootstrap", file, "--security-group"]) == 0
    text = capsys.readouterr().out
    assert "+ queue orchestrator-cli" in text
    assert "MessageRetentionPeriod: 300" in text
    assert "Ingress: tcp 8000 from 10.9.0.0/28" in text
    assert "Next: the same command with --apply" in text

    assert main(["aws", "bootstrap", file, "--security-group", "--apply"]) == 1
    assert "answer with --yes" in capsys.readouterr().err

    assert main(["aws", "bootstrap", file, "--security-group", "--apply", "-y"]) == 0
    text = capsys.readouterr().out
    assert "7 parts changed." in text
    assert 'notice_queue = "http' in text
    assert "launch_template_version" not in text  # the file says 1 already

    assert main(["aws", "bootstrap", file, "--security-group", "--apply", "-y", "-o", "json"]) == 0
    out = capsys.readouterr().out
    assert set(parts(out).values()) == {"keep"}
    shown = json.loads(out)
    assert (shown["ok"], shown["pending"], shown["error"]) == (True, False, "")
    account.write_text(account.read_text() + f'notice_queue = "{shown["settings"][0]["notice_queue"]}"')
    assert main(["aws", "bootstrap", file, "--security-group", "--plan"]) == 0
    assert capsys.readouterr().out.endswith("Nothing to change.\n")


@pytest.mark.slow
def test_bootstrap_shows_what_it_keeps_of_others(
    aws_shim: Any, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["aws", "bootstrap", str(account), "--security-group"]
    assert main([*words, "--apply", "--yes", "-o", "json"]) == 0
    name = json.loads(capsys.readouterr().out)["settings"][0]["launch_template"]
    ec2: Any = boto3.client("ec2", region_name="us-east-1", endpoint_url=aws_shim.url)
    (version,) = ec2.describe_launch_template_versions(LaunchTemplateName=name)["LaunchTemplateVersions"]
    ec2.create_launch_template_version(
        LaunchTemplateName=name, LaunchTemplateData={**version["LaunchTemplateData"], "KeyName": "ops"}
    )
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"= launch template {name}: version 2" in text
    assert 'kept: KeyName: "ops"' in text
    assert "launch_template_version = 2" in text


@pytest.mark.slow
def test_bootstrap_says_what_failed_and_goes_on(
    aws_shim: Any, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aws_shim.order("fault", action="PutTargets", kind="error", code="AccessDeniedException", status=400)
    words = ["aws", "bootstrap", str(account), "--security-group", "--apply", "--yes"]
    assert main(words) == 1
    text = capsys.readouterr().out
    assert "1 part changed, then: events.put_targets in us-east-1: AccessDeniedException" in text
    assert "it goes on from there" in text
    assert main([*words, "-o", "json"]) == 0
    verbs = parts(capsys.readouterr().out)
    assert [verb for name, verb in verbs.items() if name.startswith("queue")] == ["keep"]


@pytest.mark.slow
def test_bootstrap_refuses_what_cannot_be(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["aws", "bootstrap", str(account), "--apply", "--yes"]) == 1
    text = capsys.readouterr().out
    assert "! launch template" in text
    assert "let --security-group make one" in text
    assert "Nothing is changed while a part is refused (!)." in text
    assert main(["aws", "bootstrap", str(account), "--plan", "--apply"]) == 2


@pytest.mark.parametrize(
    ("flag", "sid"),
    [
        ("--bootstrap", "MakeTagged"),
        ("--doctor", "Examine"),
        ("--field-test", "InterruptBy"),
        ("--node", None),
    ],
)
def test_there_is_a_policy_for_each(
    flag: str, sid: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(AWS.replace("QUEUE", QUEUE))
    assert main(["aws", "policy", str(file), flag]) == 0
    found = [statement["Sid"] for statement in json.loads(capsys.readouterr().out)["Statement"]]
    assert found == [] if sid is None else sid in found
    if flag == "--bootstrap":
        assert main(["aws", "policy", str(file), "--bootstrap", "--node"]) == 2
