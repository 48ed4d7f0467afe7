"""EventBridge events, as a queue delivers them, read as notices. Pure, and total: any text has an answer.

The event formats are those of the EC2 and AWS Health user guides. What the guides leave open or get wrong is
allowed for: `resources` may be one string, an ARN may carry a zone in its region field and no account, the
Capacity Block samples spell "detail_type", and the spot warning carries no deadline.

Deadlines. A spot interruption comes two minutes after the event's own time, hibernation at once. An event
from the future means that this host's clock is behind: its time counts as now, for the deadline is compared
with this clock. A state change is true already. A Capacity Block's instances are ended from thirty minutes
before the block does.

Kinds. An interruption of a capacity reservation is `maintenance`: it takes nodes that are not spot, and
`interruption` is believed of spot nodes only. Of the state changes only the final ones are notices: a stopped
node may be started again, and a notice is for good.

Everything here comes from the cloud under our own credentials, so notices are confirmed; that holds as long
as the queue's policy lets nobody but EventBridge send.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

from policies.model import Confidence, Notice, NoticeKind

MOST_BYTES: Final = 256 * 1024
"""Bytes of one event; EventBridge sends no larger ones, so what is larger is not read."""
MOST_NODES: Final = 1000
"""Nodes that one event may name."""
NOTICE_SECONDS: Final = 120.0
"""From a spot interruption warning to the interruption."""
BLOCK_ENDS_EARLY: Final = 1800.0
"""Seconds before the end of a Capacity Block at which its instances start to be ended."""
FINAL_STATES: Final = ("shutting-down", "terminated")
"""Of the state changes, those that are notices."""

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
_LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_NODE = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")
_RESERVATION = re.compile(r"cr-[0-9a-z]{1,32}")
_EVENT_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_OTHER_STATES = ("pending", "running", "stopping", "stopped")


@dataclass(frozen=True, slots=True)
class Told:
    """The event is one notice for each node that it names; at least one."""

    notices: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class ReservationEnds:
    """A Capacity Block runs out: every node in it goes at `deadline`. The event names no nodes."""

    reservation: str
    deadline: float
    id: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """A sound event that is no notice, or not one of ours. `reason` says which."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unparseable:
    """Not an event, or one that cannot be acted on. `reason` says what is wrong with it."""

    reason: str


Parsed = Told | ReservationEnds | Foreign | Unparseable


class _Unsound(Exception):
    """Why an event cannot be read."""


@dataclass(frozen=True, slots=True)
class _Event:
    """An EventBridge envelope whose fields have the right types. `at` is its time by this host's clock."""

    id: str
    type: str
    at: float
    resources: tuple[str, ...]
    detail: Mapping[str, Any]
    source: str
    seen_at: float

    def notice(
        self, kind: NoticeKind, node: str, deadline: float | None, *, same: str = "", cancelled: bool = False
    ) -> Notice:
        """A notice; `same` names what several events tell of, when that is more than this event."""
        return Notice(
            id=f"{self.source}/{same or self.id}/{node}",
            kind=kind,
            node=node,
            deadline=deadline,
            source=self.source,
            confidence=Confidence.CONFIRMED,
            seen_at=self.seen_at,
            cancelled=cancelled,
        )


def parse(body: object, *, received_at: float, source: str, account: str = "") -> Parsed:
    """Read the body of one queue message. Never raises.

    `received_at` is this host's time now, `source` the name of the notice source, `account` the account that
    events must be from when they say so (empty: any).
    """
    if not isinstance(body, str) or not body:
        return Unparseable("the body is empty or no text")
    if len(body) > MOST_BYTES:
        return Unparseable(f"{len(body)} characters; the largest event has {MOST_BYTES}")
    try:
        document = orjson.loads(body)
    except (ValueError, RecursionError) as error:
        return Unparseable(f"not JSON: {_short(str(error))}")
    if not isinstance(document, dict):
        return Unparseable(f"JSON, but no object: {_short(body)}")
    origin, kind = document.get("source"), document.get("detail-type", document.get("detail_type"))
    if not isinstance(origin, str) or not isinstance(kind, str):
        return Unparseable(f"no EventBridge event: it lacks source or detail-type: {_short(body)}")
    reader = _READERS.get((origin, kind))
    if reader is None:
        return Foreign(f"{_short(kind)} from {_short(origin)} is not listened to")
    of = document.get("account")
    if account and isinstance(of, str) and of != account:
        return Foreign(f"{kind} of account {_short(of)}")
    try:
        return reader(_envelope(document, body, kind, received_at, source))
    except _Unsound as unsound:
        return Unparseable(f"{kind}: {unsound}")


def _envelope(document: Mapping[str, Any], body: str, kind: str, received_at: float, source: str) -> _Event:
    identity = document.get("id")
    if not isinstance(identity, str) or not _EVENT_ID.fullmatch(identity):
        identity = hashlib.sha256(body.encode()).hexdigest()[:32]
    detail = document.get("detail")
    if not isinstance(detail, dict):
        raise _Unsound("its detail is no object")
    resources = document.get("resources")
    listed = [resources] if isinstance(resources, str) else resources if isinstance(resources, list) else []
    return _Event(
        id=identity,
        type=kind,
        at=min(_time(document.get("time"), "time"), received_at),
        resources=tuple(r for r in listed[:MOST_NODES] if isinstance(r, str)),
        detail=detail,
        source=source,
        seen_at=received_at,
    )


def _spot_interruption(event: _Event) -> Parsed:
    action = event.detail.get("instance-action")
    # Hibernation begins when it is announced.
    deadline = event.at if action == "hibernate" else event.at + NOTICE_SECONDS
    return Told((event.notice(NoticeKind.INTERRUPTION, _node(event), deadline),))


def _rebalance(event: _Event) -> Parsed:
    return Told((event.notice(NoticeKind.REBALANCE, _node(event), None),))


def _state_change(event: _Event) -> Parsed:
    state = event.detail.get("state")
    if state in FINAL_STATES:
        return Told((event.notice(NoticeKind.STATE_CHANGE, _node(event), event.at),))
    if state in _OTHER_STATES:
        return Foreign(f"a change to {state} ends no node")
    raise _Unsound(f"state {_short(state)} is unknown")


def _reservation_interruption(event: _Event) -> Parsed:
    ends = event.detail.get("instance-termination-time")
    deadline = event.at + NOTICE_SECONDS if ends is None else _time(ends, "instance-termination-time")
    return Told((event.notice(NoticeKind.MAINTENANCE, _node(event), deadline),))


def _block_expires(event: _Event) -> Parsed:
    named = [event.detail.get("capacity-reservation-id"), *event.resources]
    texts = [text.rpartition("/")[2] for text in named if isinstance(text, str)]
    reservation = next((text for text in texts if _RESERVATION.fullmatch(text)), None)
    if reservation is None:
        raise _Unsound("it names no capacity reservation")
    ends = _time(event.detail.get("end-date"), "end-date")
    return ReservationEnds(reservation, ends - BLOCK_ENDS_EARLY, f"{event.source}/{event.id}")


def _health(event: _Event) -> Parsed:
    service, category = event.detail.get("service"), event.detail.get("eventTypeCategory")
    if service != "EC2" or category != "scheduledChange":
        return Foreign(f"AWS Health: {_short(category)} of {_short(service)}")
    entities = event.detail.get("affectedEntities")
    named = [
        entity.get("entityValue")
        for entity in (entities[:MOST_NODES] if isinstance(entities, list) else [])
        if isinstance(entity, dict)
    ]
    nodes = _nodes(named) or _nodes(event.resources)
    if not nodes:
        return Foreign("AWS Health: a scheduled change that names no instance")
    starts = _time(event.detail.get("startTime"), "startTime")
    arn = event.detail.get("eventArn")
    # One change is told of several times, the last time when it is over or called off.
    same = hashlib.sha256(arn.encode()).hexdigest()[:32] if isinstance(arn, str) and arn else ""
    over = event.detail.get("statusCode") == "closed"
    return Told(
        tuple(event.notice(NoticeKind.MAINTENANCE, n, starts, same=same, cancelled=over) for n in nodes)
    )


_READERS: Mapping[tuple[str, str], Callable[[_Event], Parsed]] = {
    ("aws.ec2", "EC2 Spot Instance Interruption Warning"): _spot_interruption,
    ("aws.ec2", "EC2 Instance Rebalance Recommendation"): _rebalance,
    ("aws.ec2", "EC2 Instance State-change Notification"): _state_change,
    ("aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning"): _reservation_interruption,
    ("aws.ec2", "Capacity Block Expiration Warning"): _block_expires,
    ("aws.ec2", "Capacity Block Reservation Expiration Warning"): _block_expires,
    ("aws.health", "AWS Health Event"): _health,
}

LISTENED_TO: Final = tuple(_READERS)
"""(source, detail-type) of every event that may be a notice: what the EventBridge rules must let through."""


def _node(event: _Event) -> str:
    """The instance that an event is about; the detail says it more reliably than the resources do."""
    named = event.detail.get("instance-id")
    nodes = _nodes((named,)) if named is not None else _nodes(event.resources[:1])
    if not nodes:
        raise _Unsound(f"it names no instance: {_short(named if named is not None else event.resources)}")
    return nodes[0]


def _nodes(texts: object) -> tuple[str, ...]:
    """The instance ids among texts that are ids or ARNs, each once."""
    found: dict[str, None] = {}
    if isinstance(texts, (list, tuple)):
        for text in texts:
            identity = text.rpartition("/")[2] if isinstance(text, str) else ""
            if _NODE.fullmatch(identity):
                found[identity] = None
    return tuple(found)


def _time(value: object, key: str) -> float:
    """A time as AWS writes it (ISO 8601, or RFC 1123 in Health events), in seconds since the epoch."""
    if not isinstance(value, str) or len(value) > 64:
        raise _Unsound(f"its {key} is no time: {_short(value)}")
    try:
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            at = parsedate_to_datetime(value)
        seconds = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        raise _Unsound(f"its {key} is no time: {_short(value)}") from None
    if not _EARLIEST <= seconds <= _LATEST:
        raise _Unsound(f"its {key} is out of all bounds: {_short(value)}")
    return seconds


def _short(value: object) -> str:
    """A stranger's value for a log line: quoted, without line breaks, short."""
    if isinstance(value, str):
        return repr(value[:80])
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"a {type(value).__name__}"
