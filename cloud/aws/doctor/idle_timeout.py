"""How long a load balancer waits on a silent connection.

Source: the ELBv2 API reference (DescribeLoadBalancerAttributes) and the user guide of Application Load
Balancers ("Connection idle timeout": 60 seconds when new).
"""

from __future__ import annotations

from typing import Final

from cloud.aws.balancer_settings import IDLE_TIMEOUT
from cloud.aws.clients import AwsClients, Lane
from cloud.errors import CloudError

_NEW: Final = 60.0  # s


async def idle_timeout(clients: AwsClients, balancer: str) -> float:
    """Seconds after which the balancer of that ARN closes a connection, to a client or a node, on which
    nothing is sent. Raises CloudError."""
    answer = await clients.call(
        Lane.LIST, "elbv2", "describe_load_balancer_attributes", lost=CloudError, LoadBalancerArn=balancer
    )
    values = {entry["Key"]: entry["Value"] for entry in answer["Attributes"]}
    return float(values.get(IDLE_TIMEOUT, _NEW))
