"""Notices from DescribeInstanceStatus: scheduled events, and status checks of EC2 that fail.

EC2 tells of its scheduled events here too, whether or not AWS Health's event or the node's agent arrives. A
failed check says that the host, or the system on it, no longer answers EC2; it counts once it has lasted for
two minutes.

EC2 picks out the machines that have either, so that three calls an interval are all it takes, for any number
of machines. They cannot be narrowed to a pool: the call knows no tags.

An event is the cloud's own word. A check is EC2's opinion of a machine whose engine is looked at anyway, and
trouble of a zone's network may show as many failed checks at once: so it counts as reported, and takes at
most the disruption limit of nodes at a time. What is over, called off or passes again is cancelled.

Source of the formats: the EC2 API reference (DescribeInstanceStatus, InstanceStatusEvent, InstanceStatus).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Protocol

from cloud.aws.polled import MOST_PAGES, PolledNotices
from cloud.logger import structlog
from cloud.ports import Clock
from policies.model import Confidence, Notice, NoticeKind

log = structlog.get_logger("aws")

PAGE: Final = 1000
LASTING: Final = 120.0
"""Seconds for which a check has to fail before it counts."""
EVENTS: Final = (
    "instance-reboot",
    "instance-retirement",
    "instance-stop",
    "system-maintenance",
    "system-reboot",
)
"""Codes of scheduled events: all there are."""

_OVER = ("[canceled]", "[cancelled]", "[completed]")  # how the description of one begins that comes no more
_EVENT_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_NODE = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")
_CHECKS = {"instance": "InstanceStatus", "system": "SystemStatus"}

FILTERS: Final[tuple[Mapping[str, Any], ...]] = (
    {"Name": "event.code", "Values": list(EVENTS)},
    *({"Name": f"{check}-status.status", "Values": ["impaired"]} for check in _CHECKS),
)
"""One for each call: EC2 gives only what all filters of a call let through."""


class InstanceStatusCalls(Protocol):
    """The call of EC2 that the source makes, with boto3's parameters and answer. Raises CloudError."""

    async def describe_instance_status(self, **parameters: Any) -> Mapping[str, Any]:
        """One page of statuses."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A scheduled event, or a check that fails. `over`: it comes no more. `deadline`: when the event begins,
    or since when the check has counted."""

    node: str
    name: str  # the same for as long as it lasts
    deadline: float
    over: bool = False
    confidence: Confidence = Confidence.CONFIRMED


def read_troubles(entry: object, *, now: float) -> tuple[Trouble, ...]:
    """What an entry of DescribeInstanceStatus says of a machine. Never raises."""
    if not isinstance(entry, Mapping):
        return ()
    node = entry.get("InstanceId")
    if not isinstance(node, str) or not _NODE.fullmatch(node):
        return ()
    events = entry.get("Events")
    found = [_event(node, event, now) for event in (events if isinstance(events, list) else ())]
    found += [_check(node, check, entry.get(field), now) for check, field in _CHECKS.items()]
    return tuple(trouble for trouble in found if trouble is not None)


def _event(node: str, event: object, now: float) -> Trouble | None:
    code = event.get("Code") if isinstance(event, Mapping) else None
    if not isinstance(event, Mapping) or not isinstance(code, str) or not code:
        return None
    identity, says = event.get("InstanceEventId"), event.get("Description")
    named = identity if isinstance(identity, str) and _EVENT_ID.fullmatch(identity) else code[:64]
    return Trouble(
        node=node,
        name=named,
        deadline=_at(event.get("NotBefore"), now),
        over=isinstance(says, str) and says.lower().startswith(_OVER),
    )


def _check(node: str, check: str, status: object, now: float) -> Trouble | None:
    """A check that fails, once it has for long enough."""
    if not isinstance(status, Mapping) or status.get("Status") != "impaired":
        return None
    details = status.get("Details")
    since = min(
        (
            _at(detail.get("ImpairedSince"), now)
            for detail in (details if isinstance(details, list) else ())
            if isinstance(detail, Mapping) and detail.get("Status") == "failed"
        ),
        default=now,
    )
    if now - since < LASTING:
        return None
    name = f"{check}-check/{since:.0f}"
    return Trouble(node=node, name=name, deadline=since + LASTING, confidence=Confidence.REPORTED)


def _at(value: object, now: float) -> float:
    """A time as boto3 gives it, in seconds since the epoch; now for anything else."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        return now
    return value.timestamp()


class InstanceStatusNotices(PolledNotices):
    """A `Notices` source that polls DescribeInstanceStatus every `interval` seconds.

    `owned` says False of an instance that is certainly not ours.
    """

    def __init__(
        self,
        calls: InstanceStatusCalls,
        clock: Clock,
        *,
        owned: Callable[[str], bool] = lambda _node: True,
        interval: float = 30.0,
        name: str = "aws-instance-status",
    ) -> None:
        super().__init__(clock, interval=interval, name=name)
        self._calls, self._owned = calls, owned
        self._told: dict[str, Notice] = {}  # by id; until it is over

    async def _look(self) -> AsyncIterator[Notice]:
        """Ask for each kind of trouble; yields what is new, has moved or is over."""
        there: dict[str, Notice] = {}
        for wanted in FILTERS:
            async for trouble in self._troubles(wanted):
                notice = self._notice(trouble)
                there[notice.id] = notice
        for notice in list(there.values()):
            known = self._told.get(notice.id)
            if known is None and notice.cancelled:
                continue  # it was over before it was seen
            if known is None or (known.deadline, known.cancelled) != (notice.deadline, notice.cancelled):
                yield self._tell(notice)
        for known in [n for n in self._told.values() if n.id not in there]:
            if not known.cancelled:
                yield self._tell(replace(known, cancelled=True))
            del self._told[known.id]

    async def _troubles(self, wanted: Mapping[str, Any]) -> AsyncIterator[Trouble]:
        token: dict[str, str] = {}
        for _ in range(MOST_PAGES):
            page = await self._calls.describe_instance_status(Filters=[wanted], MaxResults=PAGE, **token)
            now = self._clock.now()
            for entry in page.get("InstanceStatuses") or []:
                for trouble in read_troubles(entry, now=now):
                    if self._owned(trouble.node):
                        yield trouble
            following = page.get("NextToken")
            if not isinstance(following, str) or not following:
                return
            token = {"NextToken": following}

    def _notice(self, trouble: Trouble) -> Notice:
        identity = f"{self.name}/{trouble.node}/{trouble.name}"
        known = self._told.get(identity)
        return Notice(
            id=identity,
            kind=NoticeKind.MAINTENANCE,
            node=trouble.node,
            deadline=trouble.deadline,
            source=self.name,
            confidence=trouble.confidence,
            seen_at=self._clock.now() if known is None else known.seen_at,
            cancelled=trouble.over,
        )

    def _tell(self, notice: Notice) -> Notice:
        self._told[notice.id] = self._unacknowledged[notice.id] = notice
        return notice

    def _say_failed(self, error: str) -> None:
        log.error("instance_status.read_failed", source=self.name, error=error)

    def _say_recovered(self) -> None:
        log.info("instance_status.recovered", source=self.name)
