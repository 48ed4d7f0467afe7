"""The stand-in for AWS refuses what EC2 refuses, and ends what EC2 ends."""

import asyncio

import boto3
import pytest
from botocore.exceptions import ClientError

TYPE = "p5.4xlarge"
FAULT = {"code": "Client.InternalError", "message": "Client error on launch", "after": 0.0}


class Account:
    """EC2 of the stand-in, as the daemon asks it: under a key of its own, without retries."""

    def __init__(self, shim, place):
        self.shim, self.place = shim, place
        self.ec2 = boto3.client("ec2", region_name=place.region, endpoint_url=shim.url)
        self._launches = 0

    def launch(self, market="on-demand", **given):
        self._launches += 1
        spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if market == "spot" else {}
        asked = {
            "ClientToken": f"pool/1/{self._launches}",
            "InstanceType": TYPE,
            "SubnetId": self.place.subnets["us-east-1a"],
            "LaunchTemplate": {"LaunchTemplateName": "node", "Version": "1"},
            "MinCount": 1,
            "MaxCount": 1,
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": [{"Key": "orchestrator:pool", "Value": "pool"}]}
            ],
        }
        return self.ec2.run_instances(**{**asked, **spot, **given})["Instances"][0]["InstanceId"]

    def described(self, node):
        return self.ec2.describe_instances(InstanceIds=[node])["Reservations"][0]["Instances"][0]

    def refusal(self, call, **given):
        with pytest.raises(ClientError) as refused:
            call(**given)
        return refused.value.response["Error"]["Code"]


@pytest.fixture
def account(aws_shim, aws_place):
    return Account(aws_shim, aws_place)


async def until(met):
    while not met():  # noqa: ASYNC110 - a process is asked
        await asyncio.sleep(0.02)


async def test_a_launch_is_accepted_and_ends_while_pending_with_its_reason(account):
    account.shim.order("set", launch_faults={"spot": FAULT}, boot=0.0)
    dead, lives = account.launch("spot"), account.launch()
    await until(lambda: account.described(dead)["State"]["Name"] == "terminated")
    reason = account.described(dead)["StateReason"]
    assert reason == {"Code": FAULT["code"], "Message": f"{FAULT['code']}: {FAULT['message']}"}
    await until(lambda: account.described(lives)["State"]["Name"] == "running")


async def test_a_fault_of_every_market(account):
    account.shim.order("set", launch_faults={"*": FAULT})
    for node in (account.launch("spot"), account.launch()):
        await until(lambda node=node: account.described(node)["State"]["Name"] == "terminated")


def test_spot_needs_its_role_and_on_demand_does_not(account):
    account.shim.order("set", spot_role=False)
    code = account.refusal(account.launch, market="spot")
    assert code == "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
    assert account.launch()


def test_a_console_says_what_the_machine_wrote(account):
    node, other = account.launch(), account.launch()
    assert "Output" not in account.ec2.get_console_output(InstanceId=node, Latest=True)
    account.shim.order("set", console={node: "no driver\n", "*": "booting\n"})
    assert account.ec2.get_console_output(InstanceId=node)["Output"] == "no driver\n"
    assert account.ec2.get_console_output(InstanceId=other)["Output"] == "booting\n"
