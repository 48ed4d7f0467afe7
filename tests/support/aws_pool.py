"""A pool of the whole-system tests on the stand-in for AWS: tables, machines, and those of other people."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from aws_stage import REGION, queue_of_events

TYPE = "p5.4xlarge"
POOL = "pool.test"
QUEUE = "system-notices"
TEMPLATE = "system-node"


@dataclass
class Machines:
    """EC2 as seen from outside of the daemon, with an engine at every running machine of the pool."""

    shim: Any
    port: int

    async def living(self) -> dict[str, str]:
        """Machines of the pool that are not ending: id to market."""
        return await asyncio.to_thread(self.shim.living, "test")

    async def tokens(self) -> list[str]:
        """The token of every machine that the pool ever had."""
        return [m["token"] for m in await asyncio.to_thread(self.shim.machines, "test")]

    async def state(self, node: str) -> str:
        """The state of any machine, with our tag or without."""
        machines = (await asyncio.to_thread(self.shim.order, "machines"))["machines"]
        return str(next(m["state"] for m in machines if m["id"] == node))


def tables(
    machines: Machines, subnets: dict[str, str], replicas: int = 3, template: str = TEMPLATE
) -> dict[str, dict[str, object]]:
    """What makes a stack's pool run on EC2."""
    aws = f"{POOL}.cloud.aws"
    return {
        POOL: {"replicas": replicas},
        f"{POOL}.engine": {"allow_simulated": True},
        f"{POOL}.limits": {"spend_per_hour": "unlimited"},
        f"{POOL}.cloud": {"kind": "aws", "state_dir": None, "socket": None},
        aws: {
            "endpoint": machines.shim.url,
            "instance_types": [TYPE],
            "engine_port": machines.port,
            "poll_spot_requests": "500ms",
        },
        f"{aws}.regions.{REGION}": {
            "launch_template": template,
            "launch_template_version": 1,
            "notice_queue": queue_of_events(machines.shim, QUEUE),
        },
        f"{aws}.regions.{REGION}.subnets": dict(subnets),
    }


async def somebody_elses(machines: Machines, subnets: dict[str, str], **tags: str) -> str:
    """A machine in our network that we did not launch; its id."""
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    launched = await asyncio.to_thread(
        machines.shim.client("ec2").run_instances,
        ImageId="ami-12345678",
        MinCount=1,
        MaxCount=1,
        InstanceType=TYPE,
        SubnetId=next(iter(subnets.values())),
        **({"TagSpecifications": [{"ResourceType": "instance", "Tags": listed}]} if tags else {}),
    )
    return str(launched["Instances"][0]["InstanceId"])
