"""Clients of AWS that answer what a test says, and count what they were asked."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from typing import Any

from botocore.exceptions import ClientError

from cloud.aws.clients import Lane
from cloud.aws.errors import translate
from cloud.errors import CloudError, Uncertain

Said = (
    Any  # an answer, an exception, pages in a list, or a function of the parameters that gives one of these
)

LAUNCHED = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class PlayedClients:
    """`cloud.aws.clients.AwsClients` of one region. `says`: by operation, the same each time."""

    def __init__(self, region: str = "us-east-1", **says: Said) -> None:
        self.region, self.says = region, says
        self.asked: list[tuple[Lane, str, dict[str, Any]]] = []
        self.shares = 0

    def count(self, operation: str) -> int:
        return sum(name == operation for _, name, _ in self.asked)

    def share(self) -> PlayedClients:
        self.shares += 1
        return self

    async def close(self) -> None:
        self.shares -= 1

    async def call(
        self,
        lane: Lane,
        service: str,
        operation: str,
        *,
        lost: type[CloudError] = Uncertain,
        region: str = "",
        **parameters: Any,
    ) -> Any:
        found = self._said(lane, f"{service}.{operation}", operation, region, parameters)
        return found[0] if isinstance(found, list) else found

    async def pages(
        self,
        lane: Lane,
        service: str,
        operation: str,
        *,
        lost: type[CloudError] = CloudError,
        region: str = "",
        **parameters: Any,
    ) -> AsyncIterator[Any]:
        found = self._said(lane, f"{service}.{operation}", operation, region, parameters)
        for page in found if isinstance(found, list) else [found]:
            if isinstance(page, Exception):
                raise page
            yield page

    def _said(self, lane: Lane, what: str, operation: str, region: str, parameters: dict[str, Any]) -> Any:
        where = {"region": region} if region else {}
        self.asked.append((lane, operation, {**parameters, **where}))
        found = self.says[operation]
        if callable(found):
            found = found(**parameters)
        if isinstance(found, ClientError):
            raise translate(found, what) from found
        if isinstance(found, Exception):
            raise found
        return found


def refusal(code: str, message: str = "no") -> ClientError:
    """What AWS says to a call that it does not take."""
    said: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    return ClientError(said, "Operation")


def machine(node: str, state: str = "running", **more: Any) -> dict[str, Any]:
    """A machine as EC2 describes it."""
    return {
        "InstanceId": node,
        "State": {"Name": state},
        "Placement": {"AvailabilityZone": "us-east-1a"},
        "InstanceType": "g6e.xlarge",
        "LaunchTime": LAUNCHED,
        "PrivateIpAddress": "10.0.0.1",
        "Tags": [{"Key": "orchestrator:pool", "Value": "pool"}],
        **more,
    }


def described(*machines: dict[str, Any]) -> dict[str, Any]:
    """A page of descriptions, each machine in a reservation of its own."""
    return {"Reservations": [{"Instances": [each]} for each in machines]}
