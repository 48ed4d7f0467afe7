"""One region at work, and what a part of it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from cloud.aws.bootstrap.wanted import Change, Wanted
from cloud.aws.clients import Answer, AwsClients, Lane
from cloud.aws.errors import code_of
from cloud.aws.tags import listed
from cloud.errors import CloudError, NotFound

_MISSING = frozenset(
    {
        "AWS.SimpleQueueService.NonExistentQueue",
        "InvalidLaunchTemplateId.NotFound",
        "InvalidLaunchTemplateName.NotFoundException",
        "QueueDoesNotExist",
        "ResourceNotFoundException",
    }
)


@dataclass(slots=True)
class Site:
    """One region at work: what the steps learn and later ones need. `groups` are the nodes' security groups,
    empty until one is made; `version` is the launch template's."""

    clients: AwsClients
    wanted: Wanted
    account: str = ""
    queue_url: str = ""
    groups: tuple[str, ...] = ()
    version: int | None = None

    async def call(self, service: str, operation: str, **parameters: Any) -> Answer:
        """One call. Raises CloudError."""
        return await self.clients.call(Lane.LIST, service, operation, **parameters)

    async def tag(self, name: str) -> None:
        """Put the user's tags on something of EC2's by its id. Raises CloudError."""
        tags = listed(self.wanted.user_tags)
        if tags:
            await self.call("ec2", "create_tags", Resources=[name], Tags=tags)

    async def found(self, service: str, operation: str, **parameters: Any) -> Answer | None:
        """One look; None for what does not exist. Raises CloudError."""
        try:
            return await self.clients.call(Lane.LIST, service, operation, lost=CloudError, **parameters)
        except CloudError as error:
            if isinstance(error, NotFound) or code_of(error) in _MISSING:
                return None
            raise


class Step(Protocol):
    """One part."""

    async def look(self) -> Change:
        """Compare what is with what should be. Raises CloudError."""
        ...

    async def apply(self) -> None:
        """Make it so, after a look. Raises CloudError."""
        ...
