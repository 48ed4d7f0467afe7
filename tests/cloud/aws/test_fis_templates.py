"""The templates of the Fault Injection Service in `examples/fis`: what AWS would take, and our own tags."""

import json
import re
from pathlib import Path

import pytest

from cloud.aws.places import POOL_TAG

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "examples" / "fis").glob("*.json"))
TEMPLATES = [file for file in FILES if not file.name.startswith("role-")]
PAGE = (ROOT / "docs" / "how-to" / "interrupt-on-aws.md").read_text(encoding="utf-8")


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_a_template_is_taken(file, aws_shim):
    """boto3 checks every parameter by the description of the API before it sends."""
    template = read(file)
    made = aws_shim.client("fis").create_experiment_template(clientToken=file.stem, **template)
    assert made["experimentTemplate"]["actions"].keys() == template["actions"].keys()


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_a_template_names_its_targets_and_takes_nodes_of_the_pool_only(file):
    template = read(file)
    named = {name for action in template["actions"].values() for name in action["targets"].values()}
    assert named == template["targets"].keys()
    for target in template["targets"].values():
        if target["resourceType"] == "aws:ec2:spot-instance":
            assert list(target["resourceTags"]) == [POOL_TAG]


def test_the_role_may_do_what_the_templates_do():
    allowed = {s["Action"] for s in read(ROOT / "examples" / "fis" / "role-policy.json")["Statement"]}
    needed = {
        "aws:ec2:send-spot-instance-interruptions": "ec2:SendSpotInstanceInterruptions",
        "aws:ec2:api-insufficient-instance-capacity-error": "ec2:InjectApiError",
    }
    used = {a["actionId"] for file in TEMPLATES for a in read(file)["actions"].values()}
    assert {needed[action] for action in used} | {"ec2:DescribeInstances"} == allowed


def test_the_page_names_every_file_and_every_placeholder():
    for file in FILES:
        assert file.name in PAGE
    accounts = {account for file in FILES for account in re.findall(r"\b\d{12}\b", file.read_text())}
    assert accounts == {"111122223333"}
    assert all(name in PAGE for name in ("111122223333", "llama", "us-east-1a"))
