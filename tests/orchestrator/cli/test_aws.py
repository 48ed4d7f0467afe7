"""`orchestrator aws`: what it prints, and what it says when it cannot."""

import json
from pathlib import Path

import pytest

from orchestrator.__main__ import main

QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/notices"
AWS = """
[pool.llama]
replicas = 4
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
