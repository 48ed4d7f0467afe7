"""The calls that the notice sources make, each in a lane of its own kind.

A long poll holds a thread for twenty seconds, so polls have threads to themselves; deletions and the status
of spot requests have others, so that neither waits for a list, a launch or a target group.
"""

from __future__ import annotations

from typing import Any

from cloud.aws.clients import Answer, AwsClients, Lane
from cloud.aws.instances import PAGE
from cloud.aws.places import POOL_TAG
from cloud.errors import CloudError, Uncertain


class NoticeCalls:
    """SQS, spot requests and reservations in one region. All raise CloudError.

    Parameters and answers are boto3's where nothing else is said.
    """

    def __init__(self, clients: AwsClients) -> None:
        self._clients = clients
        self._share = clients.share()

    async def receive_message(self, **parameters: Any) -> Answer:
        """Wait for messages."""
        return await self._clients.call(Lane.POLL, "sqs", "receive_message", lost=CloudError, **parameters)

    async def delete_message_batch(self, **parameters: Any) -> Answer:
        """Delete up to ten messages."""
        return await self._sqs("delete_message_batch", lost=Uncertain, **parameters)

    async def change_message_visibility_batch(self, **parameters: Any) -> Answer:
        """Change when up to ten messages can be received again."""
        return await self._sqs("change_message_visibility_batch", lost=Uncertain, **parameters)

    async def get_queue_attributes(self, **parameters: Any) -> Answer:
        """How many messages there are, about."""
        return await self._sqs("get_queue_attributes", lost=CloudError, **parameters)

    async def describe_spot_instance_requests(self, **parameters: Any) -> Answer:
        """One page of spot requests."""
        return await self._clients.call(
            Lane.NOTICE, "ec2", "describe_spot_instance_requests", lost=CloudError, **parameters
        )

    async def describe_instance_status(self, **parameters: Any) -> Answer:
        """One page of the status of machines that run."""
        return await self._clients.call(
            Lane.NOTICE, "ec2", "describe_instance_status", lost=CloudError, **parameters
        )

    async def nodes_in_reservation(self, pool: str, reservation: str) -> tuple[str, ...]:
        """The machines of a pool that were launched into a capacity reservation."""
        filters = [
            {"Name": f"tag:{POOL_TAG}", "Values": [pool]},
            {"Name": "capacity-reservation-id", "Values": [reservation]},
        ]
        found: list[str] = []
        async for page in self._clients.pages(
            Lane.NOTICE, "ec2", "describe_instances", Filters=filters, MaxResults=PAGE
        ):
            for group in page["Reservations"]:  # of EC2's other kind: the machines of one launch
                found += [str(machine["InstanceId"]) for machine in group["Instances"]]
        return tuple(found)

    async def close(self) -> None:
        """Give up this share of the clients. Idempotent."""
        await self._share.close()

    async def _sqs(self, operation: str, *, lost: type[CloudError], **parameters: Any) -> Answer:
        return await self._clients.call(Lane.NOTICE, "sqs", operation, lost=lost, **parameters)
