"""Notices from the status of the account's spot requests, asked for every few seconds.

EC2 changes the status of a request when it decides to take the instance, two minutes before it does: a
request of an instance that ends goes straight to `instance-terminated-no-capacity` while the instance still
runs; one that stops is `marked-for-stop` first. So one cheap call for the whole fleet hears interruptions
although neither EventBridge nor anything on the node works. How soon the status changes is not promised.

Any `marked-for-...`, `instance-terminated-...` or `instance-stopped-...` status counts except by the user,
who is us: codes that EC2 adds later are heard too.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from cloud.aws.events import NOTICE_SECONDS
from cloud.aws.polled import MOST_PAGES, PolledNotices
from cloud.logger import structlog
from cloud.ports import Clock
from policies.model import Confidence, Notice, NoticeKind

log = structlog.get_logger("aws")

PAGE: Final = 1000
HISTORY: Final = 900.0
"""Seconds after which a status is history: EC2 lists closed requests long after their instances are gone."""

_CODES = (
    # The codes of the user guide, and patterns for those to come: the guide does not say of this filter
    # whether it takes patterns.
    "marked-for-termination",
    "marked-for-stop",
    "marked-for-stop-by-experiment",
    "instance-terminated-no-capacity",
    "instance-terminated-by-price",
    "instance-terminated-by-experiment",
    "instance-terminated-by-schedule",
    "instance-terminated-by-service",
    "instance-terminated-capacity-oversubscribed",
    "instance-terminated-launch-group-constraint",
    "instance-stopped-no-capacity",
    "instance-stopped-by-price",
    "instance-stopped-by-experiment",
    "instance-stopped-capacity-oversubscribed",
    "marked-for-*",
    "instance-terminated-*",
    "instance-stopped-*",
)
_TAKEN = re.compile(r"(?:spot-)?(?:marked-for|instance-terminated|instance-stopped)-.+")


class SpotRequestCalls(Protocol):
    """The call of EC2 that the source makes, with boto3's parameters and answer. Raises CloudError."""

    async def describe_spot_instance_requests(self, **parameters: Any) -> Mapping[str, Any]:
        """One page of spot requests."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotStatus:
    """One spot request's word about its instance. `since` is when it took this status, in seconds."""

    request: str
    node: str
    code: str
    since: float


def read_status(entry: object, *, now: float) -> SpotStatus | None:
    """What an entry of DescribeSpotInstanceRequests says of an instance; None when it says nothing usable."""
    if not isinstance(entry, Mapping):
        return None
    status = entry.get("Status")
    request, node = entry.get("SpotInstanceRequestId"), entry.get("InstanceId")
    code = status.get("Code") if isinstance(status, Mapping) else None
    if not (
        isinstance(request, str) and isinstance(node, str) and isinstance(code, str) and request and node
    ):
        return None
    updated = status.get("UpdateTime") if isinstance(status, Mapping) else None
    since = updated.timestamp() if isinstance(updated, datetime) and updated.tzinfo is not None else now
    return SpotStatus(request=request, node=node, code=code, since=min(since, now))


def takes_away(code: str) -> bool:
    """True for a status by which EC2 takes, or has taken, the instance."""
    return _TAKEN.fullmatch(code) is not None and not code.endswith("-by-user")


def deadline(status: SpotStatus) -> float:
    """When the instance goes: two minutes after the status changed; a stopped one went at that time."""
    stopped = status.code.startswith("instance-stopped-")
    return status.since if stopped else status.since + NOTICE_SECONDS


class SpotRequestNotices(PolledNotices):
    """A `Notices` source that polls DescribeSpotInstanceRequests every `interval` seconds.

    `filters` narrow the listing on EC2's side, in boto3's form; None asks for the statuses that count. Any
    that come back are looked at again here. `owned` says False of an instance that is certainly not ours.
    """

    def __init__(
        self,
        calls: SpotRequestCalls,
        clock: Clock,
        *,
        owned: Callable[[str], bool] = lambda _node: True,
        filters: list[dict[str, Any]] | None = None,
        interval: float = 5.0,
        name: str = "aws-spot-requests",
    ) -> None:
        super().__init__(clock, interval=interval, name=name)
        self._calls, self._owned = calls, owned
        self._filters = [{"Name": "status-code", "Values": list(_CODES)}] if filters is None else filters
        self._told: dict[tuple[str, str], Notice] = {}  # by (request, instance)

    async def _look(self) -> AsyncIterator[Notice]:
        """Read every page; yields what is new."""
        seen: set[tuple[str, str]] = set()
        token: dict[str, str] = {}
        for _ in range(MOST_PAGES):
            page = await self._calls.describe_spot_instance_requests(
                Filters=self._filters, MaxResults=PAGE, **token
            )
            now = self._clock.now()
            for entry in page.get("SpotInstanceRequests") or []:
                status = read_status(entry, now=now)
                if status is None or not takes_away(status.code) or not self._owned(status.node):
                    continue
                seen.add((status.request, status.node))
                notice = self._heard(status, now)
                if notice is not None:
                    yield notice
            following = page.get("NextToken")
            if not isinstance(following, str) or not following:
                break
            token = {"NextToken": following}
        # A request that is fulfilled again, or forgotten, may be taken again: that is another notice.
        self._told = {key: notice for key, notice in self._told.items() if key in seen}

    def _heard(self, status: SpotStatus, now: float) -> Notice | None:
        """The notice of a status that counts; None when it was yielded, or is history.

        Later statuses of the same reclaim (marked, then terminated) say nothing new.
        """
        key = (status.request, status.node)
        if key in self._told or now - status.since > HISTORY:
            return None
        notice = Notice(
            id=f"{self.name}/{status.request}/{status.node}/{status.since:.0f}",
            kind=NoticeKind.INTERRUPTION,
            node=status.node,
            deadline=deadline(status),
            source=self.name,
            confidence=Confidence.CONFIRMED,
            seen_at=now,
        )
        self._told[key] = self._unacknowledged[notice.id] = notice
        return notice

    def _say_failed(self, error: str) -> None:
        log.error("spot_requests.read_failed", source=self.name, error=error)

    def _say_recovered(self) -> None:
        log.info("spot_requests.recovered", source=self.name)
