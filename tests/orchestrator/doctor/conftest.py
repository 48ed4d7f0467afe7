"""An account of the stand-in for AWS in which everything is as it should be; a gateway that is asked."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from node_bench import Imds, running_imds

from cloud.aws.clients import AwsClients
from cloud.aws.event_rules import RULES, queue_policy
from cloud.clock import SystemClock
from orchestrator.api.client import ControlClient, Unreachable
from orchestrator.doctor import on_aws
from orchestrator.doctor.assembly import examine
from orchestrator.doctor.findings import Finding
from orchestrator.wiring.aws import places

REGION = "us-east-1"
HOST = "i-0fedcba9876543210"
_NUMBERS = itertools.count(1)


@dataclass
class Network:
    """What lasts over the tests: making it takes the stand-in a while."""

    vpc: str
    subnets: dict[str, str]
    group: str
    image: str


@dataclass
class Account:
    """A pool's things on AWS, to be broken one at a time."""

    shim: Any
    network: Network
    queue: str
    target_group: str
    balancer: str
    directory: Path
    keep_alive: str = "75"
    region: str = REGION
    subnets: dict[str, str] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=lambda: {"allow_simulated": True})
    limits: dict[str, Any] = field(default_factory=lambda: {"spend_per_hour": "unlimited"})
    pool: dict[str, Any] = field(default_factory=lambda: {"replicas": 10})
    settings: dict[str, Any] = field(default_factory=dict)
    region_settings: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        return boto3.client(service, region_name=REGION, endpoint_url=self.shim.url)

    def template(self, **data: Any) -> str:
        """A new launch template with this data instead of the sound one's; its name."""
        ec2 = self.client("ec2")
        sound = {
            "ImageId": self.network.image,
            "SecurityGroupIds": [self.network.group],
            "MetadataOptions": {"HttpTokens": "required"},
            "KeyName": "ops",
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": True}}],
        }
        data = {key: value for key, value in {**sound, **data}.items() if value is not None}
        name = f"doctor-{next(_NUMBERS)}"
        ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
        self.region_settings["launch_template"] = name
        return name

    def config(self) -> Path:
        """The configuration of the pool, as it is now."""
        aws = {
            "endpoint": self.shim.url,
            "instance_types": ["g6e.12xlarge", "p5.4xlarge"],
            "target_group": "llama",
            **self.settings,
        }
        region = {
            "launch_template_version": 1,
            "notice_queue": self.queue,
            **self.region_settings,
        }
        tables = {
            "pool.llama": self.pool,
            "pool.llama.engine": self.engine,
            "pool.llama.limits": self.limits,
            "pool.llama.engine.env": {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": self.keep_alive},
            "pool.llama.cloud": {"kind": "aws"},
            "pool.llama.cloud.aws": aws,
            f"pool.llama.cloud.aws.regions.{self.region}": region,
            f"pool.llama.cloud.aws.regions.{self.region}.subnets": self.subnets or self.network.subnets,
        }
        lines = []
        for title, table in tables.items():
            lines.append(f"[{title}]")
            lines += [f"{key} = {toml(value)}" for key, value in table.items()]
        file = self.directory / "pool.toml"
        file.write_text("\n".join(lines) + "\n")
        return file

    async def findings(self, *only: str) -> dict[str, list[Finding]]:
        """What the doctor finds, by the name of the check."""
        results = await examine(self.config(), only, SystemClock(), lambda _done, _waiting: None)
        return {result.check.title: list(result.findings) for result in results}


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture(scope="session")
def network(aws_shim_process: Any) -> Network:
    ec2: Any = boto3.client("ec2", region_name=REGION, endpoint_url=aws_shim_process.url)
    vpc = ec2.create_vpc(CidrBlock="127.79.0.0/16")["Vpc"]["VpcId"]
    subnets = {}
    for number, zone in enumerate((f"{REGION}a", f"{REGION}b")):
        made = ec2.create_subnet(VpcId=vpc, CidrBlock=f"127.79.{number}.0/24", AvailabilityZone=zone)
        subnets[zone] = made["Subnet"]["SubnetId"]
        ec2.modify_subnet_attribute(SubnetId=subnets[zone], MapPublicIpOnLaunch={"Value": True})
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    of_vpc = [{"Name": "vpc-id", "Values": [vpc]}]
    (table,) = ec2.describe_route_tables(Filters=of_vpc)["RouteTables"]
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    group = ec2.create_security_group(GroupName="engines", Description="engines", VpcId=vpc)["GroupId"]
    ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": 8000,
                "ToPort": 8000,
                "IpRanges": [{"CidrIp": "127.79.0.0/16"}],
            }
        ],
    )
    ec2.create_key_pair(KeyName="ops")
    images = ec2.describe_images(Filters=[{"Name": "architecture", "Values": ["x86_64"]}])["Images"]
    return Network(vpc=vpc, subnets=subnets, group=group, image=images[0]["ImageId"])


@pytest.fixture(scope="session")
def clients(aws_shim_process: Any) -> AwsClients:
    return AwsClients(REGION, endpoint=aws_shim_process.url)


@dataclass
class Metadata:
    """The instance metadata of this host."""

    service: Imds
    url: str

    def put(self, path: str, text: str | None) -> None:
        self.service.order("put", node=HOST, path=path, text=text)


@pytest.fixture(scope="session")
def imds_process() -> Iterator[Imds]:
    with running_imds() as imds:
        yield imds


@pytest.fixture
def imds(imds_process: Imds, monkeypatch: pytest.MonkeyPatch) -> Metadata:
    """This host is a machine of EC2."""
    made = Metadata(imds_process, imds_process.order("node", id=HOST)["url"])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", made.url)
    return made


@pytest.fixture
def account(
    aws_shim: Any, network: Network, clients: AwsClients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Account:
    # Clients are made once: reading the descriptions of all services takes them seconds.
    monkeypatch.setattr(
        on_aws,
        "clients_of",
        lambda config: [(clients, place) for place in places(config.pool.cloud.aws)],
    )

    def client(service: str) -> Any:
        return boto3.client(service, region_name=REGION, endpoint_url=aws_shim.url)

    sqs, events, elb = client("sqs"), client("events"), client("elbv2")
    queue = sqs.create_queue(QueueName="notices", Attributes={"MessageRetentionPeriod": "300"})["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    rules = []
    for name, pattern in RULES.items():
        rules.append(events.put_rule(Name=name, EventPattern=json.dumps(pattern))["RuleArn"])
        events.put_targets(Rule=name, Targets=[{"Id": "queue", "Arn": arn}])
    policy = json.dumps(queue_policy(arn, rules))
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy})
    group = elb.create_target_group(
        Name="llama", Protocol="HTTP", Port=8000, VpcId=network.vpc, HealthCheckPath="/health"
    )["TargetGroups"][0]["TargetGroupArn"]
    elb.modify_target_group_attributes(
        TargetGroupArn=group,
        Attributes=[
            {"Key": "deregistration_delay.timeout_seconds", "Value": "90"},
            {"Key": "load_balancing.algorithm.type", "Value": "least_outstanding_requests"},
        ],
    )
    balancer = elb.create_load_balancer(Name="front", Subnets=list(network.subnets.values()))
    front = balancer["LoadBalancers"][0]["LoadBalancerArn"]
    elb.create_listener(
        LoadBalancerArn=front,
        Protocol="HTTP",
        Port=80,
        DefaultActions=[{"Type": "forward", "TargetGroupArn": group}],
    )
    zones = client("ec2").describe_subnets(SubnetIds=list(network.subnets.values()))["Subnets"]
    aws_shim.order("set", scores={zone["AvailabilityZoneId"]: 8 for zone in zones})
    made = Account(aws_shim, network, queue, group, front, tmp_path)
    made.template()
    return made


@pytest.fixture
def the_finding(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[Finding]]:
    """Asks for the one finding of a check, with a gateway that answers /v1/routes so; None: there is none."""

    async def find(file: Path, title: str, *, routes: Mapping[str, Any] | None) -> Finding:
        def get(_self: ControlClient, path: str) -> dict[str, Any]:
            if routes is None:
                raise Unreachable("nobody")
            return {"targets": [], "file_fault": "", **(routes if path == "/v1/routes" else {})}

        def text(_self: ControlClient, _path: str) -> str:
            if routes is None:
                raise Unreachable("nobody")
            return ""

        monkeypatch.setattr(ControlClient, "get", get)
        monkeypatch.setattr(ControlClient, "text", text)
        results = await examine(file, ("daemon",), SystemClock(), lambda _done, _waiting: None)
        ((found,),) = [r.findings for r in results if r.check.title == title]
        return found

    return find
