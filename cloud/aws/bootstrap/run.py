"""One run of bootstrap over every region: first everything is looked at, then what differs is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cloud.aws.bootstrap.site import Site, Step
from cloud.aws.bootstrap.steps import steps_of
from cloud.aws.bootstrap.wanted import Change, Verb, Wanted
from cloud.aws.clients import AwsClients
from cloud.errors import CloudError

_CHANGES = (Verb.CREATE, Verb.UPDATE)


@dataclass(slots=True)
class Bootstrap:
    """`plan`, and after that `apply`. `done` are the changes that were made."""

    regions: Sequence[tuple[AwsClients, Wanted]]
    done: list[Change] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    _planned: list[tuple[Step, Change]] = field(default_factory=list)

    async def plan(self) -> list[Change]:
        """What would happen, part by part. Changes nothing. Raises CloudError."""
        self.sites, self._planned = [], []
        for clients, wanted in self.regions:
            site = Site(clients, wanted, groups=wanted.groups)
            site.account = (await site.call("sts", "get_caller_identity"))["Account"]
            self.sites.append(site)
            for step in steps_of(site):
                self._planned.append((step, await step.look()))
        return [change for _, change in self._planned]

    @property
    def refused(self) -> bool:
        """Whether something cannot be as it should: then nothing is changed."""
        return any(change.verb is Verb.REFUSE for _, change in self._planned)

    @property
    def pending(self) -> bool:
        """Whether there is something to change."""
        return any(change.verb in _CHANGES for _, change in self._planned)

    async def apply(self, done: Callable[[Change], None] = lambda _: None) -> None:
        """Change what the plan says, in its order; `done` is called after each change.

        Raises CloudError at the first one that fails: what was made stays, and the next run goes on there.
        """
        if self.refused:
            raise CloudError("something is refused, so nothing was changed")
        for step, change in self._planned:
            if change.verb in _CHANGES:
                await step.apply()
                self.done.append(change)
                done(change)

    async def close(self) -> None:
        """End the threads of the clients. Idempotent."""
        for clients, _ in self.regions:
            await clients.close()
