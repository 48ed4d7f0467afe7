"""Target groups beyond the contract: instances as targets, what is refused, what a change costs."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import boto3
import pytest

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.instances import AwsInstances
from cloud.aws.load_balancer import AlbTargetGroup
from cloud.aws.places import PROVIDER
from cloud.clock import SystemClock
from cloud.errors import CloudError, Denied, NotFound
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import InstanceState, Market, Placement, TargetPhase, TargetSpec, TargetState

pytestmark = pytest.mark.slow

PATIENCE = 30.0


@dataclass(frozen=True)
class Account:
    """The account, with what tests do by hand in it."""

    shim: Any
    clients: AwsClients
    instances: AwsInstances
    elb: Any
    vpc: str

    def group(self, name: str = "pool", protocol: str = "HTTP", kind: str = "instance") -> str:
        made = self.elb.create_target_group(
            Name=name, Protocol=protocol, Port=8000, VpcId=self.vpc, TargetType=kind
        )
        return str(made["TargetGroups"][0]["TargetGroupArn"])

    def balancer(self, group: str = "pool", clients: AwsClients | None = None) -> AlbTargetGroup:
        async def owners(targets: Any) -> Any:
            return await self.instances.owners("pool", targets)

        return AlbTargetGroup(clients or self.clients, group=group, owners=owners, clock=SystemClock())

    async def node(self, number: int, pool: str = "pool") -> TargetSpec:
        """A running machine, as a target."""
        place = Placement(
            provider=PROVIDER,
            region="us-east-1",
            zone="us-east-1a",
            instance_type="p5.4xlarge",
            market=Market.ON_DEMAND,
        )
        command = EngineCommand(argv=("x",))
        asked = LaunchRequest(token=f"{pool}/1/{number}", pool=pool, placement=place, command=command)
        made = await self.instances.launch(asked)
        async with asyncio.timeout(PATIENCE):
            while (await self.instances.list(pool, "us-east-1"))[-1].state is not InstanceState.RUNNING:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return TargetSpec(id=made.id, address=made.address)

    def calls(self) -> Counter[str]:
        return Counter(self.shim.order("calls"))


@pytest.fixture(scope="module")
def by_hand(aws_shim_process):
    where = {"region_name": "us-east-1", "endpoint_url": aws_shim_process.url}
    return boto3.client("elbv2", **where), boto3.client("ec2", **where)


@pytest.fixture
def account(aws_shim, aws_clients, aws_place, by_hand):
    elb, ec2 = by_hand
    instances = AwsInstances([(aws_clients, aws_place)], clock=SystemClock())
    return Account(aws_shim, aws_clients, instances, elb, ec2.describe_vpcs()["Vpcs"][0]["VpcId"])


async def test_instances_are_targets_and_foreign_ones_are_left_alone(account):
    arn = account.group()
    ours, other = await account.node(1), await account.node(2, pool="other")
    account.elb.register_targets(TargetGroupArn=arn, Targets=[{"Id": other.id, "Port": 8000}])
    balancer = account.balancer(arn)
    await balancer.apply([ours], 1)
    view = await balancer.observe()
    assert [(t.id, t.address) for t in view.targets] == [(ours.id, f"{ours.id}:8000")]
    assert view.incarnation == arn
    await balancer.apply([], 2)
    left = account.elb.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
    states = {t["Target"]["Id"]: t["TargetHealth"]["State"] for t in left}
    assert states[ours.id] == "draining"
    assert states[other.id] in ("initial", "healthy")


async def test_another_daemon_takes_over_what_is_there(account):
    account.group()
    nodes = [await account.node(number) for number in (1, 2)]
    await account.balancer().apply(nodes, 1)
    after_a_crash = account.balancer()
    await after_a_crash.apply(nodes[:1], 2)
    states = {t.id: t.state for t in (await after_a_crash.observe()).targets}
    assert states[nodes[1].id] is TargetState.DRAINING
    assert states[nodes[0].id] in (TargetState.INITIAL, TargetState.HEALTHY)


async def test_a_change_costs_three_calls_and_no_change_none(account):
    account.group()
    nodes = [await account.node(number) for number in range(4)]
    balancer = account.balancer()
    await balancer.apply(nodes[:3], 1)
    before = account.calls()
    await balancer.apply(nodes[1:], 2)
    assert account.calls() - before == {"RegisterTargets": 1, "DeregisterTargets": 1, "AddTags": 1}
    before = account.calls()
    await balancer.apply(nodes[1:], 3)
    assert account.calls() - before == {}
    await balancer.observe()
    assert account.calls() - before == {"DescribeTags": 1, "DescribeTargetHealth": 1}
    before = account.calls()
    draining = TargetSpec(id=nodes[1].id, address=nodes[1].address, phase=TargetPhase.DRAINING)
    await balancer.apply([draining, *nodes[2:]], 4)
    assert account.calls() - before == {"DeregisterTargets": 1, "AddTags": 1}
    before = account.calls()
    await balancer.apply(nodes[2:], 5)
    assert account.calls() - before == {}


async def test_a_machine_that_does_not_run_costs_the_others_nothing(account):
    account.group()
    nodes = [await account.node(number) for number in range(3)]
    await account.instances.terminate(nodes[1].id)
    balancer = account.balancer()
    with pytest.raises(Denied):
        await balancer.apply(nodes, 1)
    assert {t.id for t in (await balancer.observe()).targets} == {nodes[0].id, nodes[2].id}


async def test_a_machine_that_ends_leaves_the_group(account):
    account.group()
    node = await account.node(1)
    balancer = account.balancer()
    await balancer.apply([node], 1)
    await account.instances.terminate(node.id)
    (target,) = (await balancer.observe()).targets
    assert target.state is TargetState.DRAINING


async def test_a_stopped_machine_is_unused_with_the_reason(account):
    account.group()
    node = await account.node(1)
    balancer = account.balancer()
    await balancer.apply([node], 1)
    await account.instances.stop(node.id)
    (target,) = (await balancer.observe()).targets
    assert target.state is TargetState.UNUSED
    assert target.reason.startswith("Target.InvalidState")


async def test_a_network_load_balancer_is_refused_with_the_reason(account):
    account.group("slow", protocol="TCP")
    balancer = account.balancer("slow")
    for call in (balancer.observe(), balancer.apply([], 1)):
        with pytest.raises(Denied, match="about two minutes; use an Application Load Balancer"):
            await call


async def test_a_group_that_does_not_exist_is_not_found(account):
    with pytest.raises(NotFound):
        await account.balancer("nothing").observe()


async def test_the_deregistration_delay_can_be_read(account):
    arn = account.group()
    assert await account.balancer().deregistration_delay() == 300.0
    account.elb.modify_target_group_attributes(
        TargetGroupArn=arn, Attributes=[{"Key": "deregistration_delay.timeout_seconds", "Value": "60"}]
    )
    assert await account.balancer().deregistration_delay() == 60.0


async def test_a_notice_waits_for_no_list(account):
    account.group()
    nodes = [await account.node(number) for number in (1, 2)]
    balancer = account.balancer()
    await balancer.apply(nodes, 1)
    account.shim.order("fault", action="DescribeInstances", kind="hold", times=8)
    account.shim.order("fault", action="DescribeTargetHealth", kind="hold")
    # More than the lane for lists has threads.
    slow = [asyncio.create_task(account.instances.list("pool", "us-east-1")) for _ in range(8)]
    looking = asyncio.create_task(balancer.observe())
    async with asyncio.timeout(PATIENCE):
        while account.calls()["DescribeTargetHealth"] < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await balancer.apply(nodes[:1], 2)
    assert not looking.done()
    assert not any(task.done() for task in slow)
    account.shim.order("release")
    await asyncio.gather(*slow, looking)
    states = {t.id: t.state for t in (await balancer.observe()).targets}
    assert states[nodes[1].id] is TargetState.DRAINING


async def test_an_unreadable_address_is_denied(account):
    account.group()
    with pytest.raises(Denied, match="expected host:port"):
        await account.balancer().apply([TargetSpec(id="i-1", address="nowhere")], 1)


async def test_a_throttled_description_is_an_error_and_not_an_empty_group(account):
    account.group()
    account.shim.order("fault", action="DescribeTargetHealth", kind="error", code="Throttling")
    with pytest.raises(CloudError, match="Throttling"):
        await account.balancer().observe()


async def test_calls_can_be_made_in_any_lane_at_once(account):
    answers = await asyncio.gather(
        *(account.clients.call(lane, "ec2", "describe_vpcs") for lane in Lane for _ in range(4))
    )
    assert all(answer["Vpcs"] for answer in answers)
