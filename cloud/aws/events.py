"""EventBridge events, as a queue delivers them, read as notices. Pure, and total: any text has an answer.

The event formats are those of the EC2, Auto Scaling and AWS Health user guides. What the guides leave open or
get wrong is allowed for: `resources` may be one string, an ARN may carry a zone in its region field and no
account, the Capacity Block samples spell "detail_type", and the spot warning carries no deadline. A lifecycle
hook's message that Auto Scaling sends to a queue itself is read like its event, and an event may come in the
envelope of SNS or as a JSON string.

Times. An event counts from its own time. One that is missing, unreadable, without a zone, later than its
receipt or more than a day before it counts from its receipt: the time at which SQS took the message, which is
the same for every delivery of it, or now where SQS does not say. A damaged time costs no notice.

Deadlines. A spot interruption comes two minutes after the event, hibernation at once. So does whatever names
a time that cannot be read, and what a lifecycle hook waits for: its time-out is not in the message. A state
change is true already. A Capacity Block's instances are ended from thirty minutes before the block does.
Maintenance that is overdue is kept: the machine is still there, and it may go at any moment.

Kinds. An interruption of a capacity reservation is `maintenance`: it takes nodes that are not spot, and
`interruption` is believed of spot nodes only. A machine that stops is `stop`, which is believed of spot nodes
only too: another one may be a standby, and comes back. Words of AWS count in any case.

Everything here comes from the cloud under our own credentials, so notices are confirmed; that holds as long
as the queue's policy lets nobody send but EventBridge, and whom the account's owner trusts as much.
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
"""From a spot interruption warning to the interruption; and to whatever gives no time that can be read."""
BELIEVED_FOR: Final = 86_400.0
"""Seconds by which an event's time may be before its receipt: EventBridge tries to deliver for a day."""
BLOCK_ENDS_EARLY: Final = 1800.0
"""Seconds before the end of a Capacity Block at which its instances start to be ended."""
FINAL_STATES: Final = ("shutting-down", "terminated")
"""States of a machine that ends: a notice for any node."""
STOP_STATES: Final = ("stopping", "stopped")
"""States of a machine that stops: a notice for a spot node."""

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
_LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_NODE = re.compile(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})")
_RESERVATION = re.compile(r"cr-[0-9a-z]{1,32}")
_EVENT_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_OTHER_STATES = ("pending", "running")
_FARTHEST = 366 * 86_400.0  # s from an event to a deadline that is believed
_MOST_WRAPS = 3  # envelopes around one event
_AUTO_SCALING = "aws.autoscaling"
_TEST_OF_HOOK = "autoscaling:test_notification"
_TERMINATE_HOOK = "EC2 Instance-terminate Lifecycle Action"


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
    """An EventBridge envelope whose fields have the right types. `at` is its time, or that of its receipt."""

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
        """A notice; `same` names what several events report together, when that is more than this event."""
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


def parse(
    body: object, *, received_at: float, source: str, sent_at: float | None = None, account: str = ""
) -> Parsed:
    """Read the body of one queue message. Never raises.

    `received_at` is this host's time now, `sent_at` when SQS took the message (None: it does not say),
    `source` the name of the notice source, `account` the account that events must be from when they say so
    (empty: any).
    """
    if not isinstance(body, str) or not body:
        return Unparseable("the body is empty or no text")
    if len(body) > MOST_BYTES:
        return Unparseable(f"{len(body)} characters; the largest event has {MOST_BYTES}")
    try:
        document = _unwrapped(body)
    except (ValueError, RecursionError) as error:
        return Unparseable(f"not JSON: {_short(str(error))}")
    if not isinstance(document, dict):
        return Unparseable(f"JSON, but no object: {_short(body)}")
    document = _as_event(document)
    origin, kind = document.get("source"), document.get("detail-type", document.get("detail_type"))
    if not isinstance(origin, str) or not isinstance(kind, str):
        return Unparseable(f"no EventBridge event: it lacks source or detail-type: {_short(body)}")
    reader = _READERS.get((origin, kind))
    if reader is None:
        return Foreign(f"{_short(kind)} from {_short(origin)} is not listened to")
    of = document.get("account")
    if account and isinstance(of, str) and of != account:
        return Foreign(f"{kind} of account {_short(of)}")
    heard_at = _heard_at(sent_at, received_at)
    try:
        return reader(_envelope(document, body, kind, heard_at, received_at, source))
    except _Unsound as unsound:
        return Unparseable(f"{kind}: {unsound}")


def _unwrapped(body: str) -> object:
    """The JSON of a body, out of what it may have been wrapped in: a string, the envelope of SNS."""
    found: object = orjson.loads(body)
    for _ in range(_MOST_WRAPS):
        if isinstance(found, dict) and isinstance(found.get("Message"), str) and "source" not in found:
            found = found["Message"]
        if not isinstance(found, str):
            break
        found = orjson.loads(found)
    return found


def _as_event(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message that Auto Scaling sent to the queue itself, in the form of its event; others as they are."""
    said = _word(document.get("LifecycleTransition")) or _word(document.get("Event"))
    if "source" in document or not said.startswith("autoscaling:"):
        return document
    ends = said == "autoscaling:ec2_instance_terminating"
    return {
        "source": _AUTO_SCALING,
        "detail-type": _TERMINATE_HOOK if ends else said,
        "account": document.get("AccountId"),
        "id": document.get("RequestId"),
        "time": document.get("Time"),
        "detail": document,
    }


def _envelope(
    document: Mapping[str, Any], body: str, kind: str, heard_at: float, received_at: float, source: str
) -> _Event:
    identity, detail = document.get("id"), document.get("detail")
    if not isinstance(identity, str) or not _EVENT_ID.fullmatch(identity):
        identity = hashlib.sha256(body.encode()).hexdigest()[:32]
    resources, at = document.get("resources"), _time(document.get("time"))
    listed = [resources] if isinstance(resources, str) else resources if isinstance(resources, list) else []
    return _Event(
        id=identity,
        type=kind,
        at=heard_at if at is None or heard_at - at > BELIEVED_FOR else min(at, heard_at),
        resources=tuple(r for r in listed[:MOST_NODES] if isinstance(r, str)),
        detail=detail if isinstance(detail, dict) else {},
        source=source,
        seen_at=received_at,
    )


def _heard_at(sent_at: float | None, received_at: float) -> float:
    """When a message was received: SQS's word, unless that is in the future or long past for this clock."""
    if sent_at is None or not 0.0 <= received_at - sent_at <= BELIEVED_FOR:
        return received_at
    return sent_at


def _spot_interruption(event: _Event) -> Parsed:
    # Hibernation begins when it is announced.
    hibernates = _word(event.detail.get("instance-action")) == "hibernate"
    deadline = event.at if hibernates else event.at + NOTICE_SECONDS
    return Told((event.notice(NoticeKind.INTERRUPTION, _node(event), deadline),))


def _rebalance(event: _Event) -> Parsed:
    return Told((event.notice(NoticeKind.REBALANCE, _node(event), None),))


def _state_change(event: _Event) -> Parsed:
    state = event.detail.get("state")
    word = _word(state)
    if word in _OTHER_STATES:
        return Foreign(f"a change to {word} ends no node")
    if word not in FINAL_STATES + STOP_STATES:
        raise _Unsound(f"state {_short(state)} is unknown")
    kind = NoticeKind.STATE_CHANGE if word in FINAL_STATES else NoticeKind.STOP
    return Told((event.notice(kind, _node(event), event.at),))


def _reservation_interruption(event: _Event) -> Parsed:
    deadline = _deadline(event.detail.get("instance-termination-time"), event)
    return Told((event.notice(NoticeKind.MAINTENANCE, _node(event), deadline),))


def _terminate_hook(event: _Event) -> Parsed:
    """An Auto Scaling group ends a node once its hook's time-out is over, which the message does not tell."""
    if _word(event.detail.get("LifecycleTransition")) == _TEST_OF_HOOK:
        return Foreign("the test of a lifecycle hook")
    token = event.detail.get("LifecycleActionToken")
    same = token if isinstance(token, str) and _EVENT_ID.fullmatch(token) else ""
    deadline = event.at + NOTICE_SECONDS
    return Told((event.notice(NoticeKind.MAINTENANCE, _node(event), deadline, same=same),))


def _block_expires(event: _Event) -> Parsed:
    named = [event.detail.get("capacity-reservation-id"), *event.resources]
    texts = [text.rpartition("/")[2] for text in named if isinstance(text, str)]
    reservation = next((text for text in texts if _RESERVATION.fullmatch(text)), None)
    if reservation is None:
        raise _Unsound("it names no capacity reservation")
    deadline = _deadline(event.detail.get("end-date"), event, early=BLOCK_ENDS_EARLY)
    return ReservationEnds(reservation, deadline, f"{event.source}/{event.id}")


def _health(event: _Event) -> Parsed:
    service, category = event.detail.get("service"), event.detail.get("eventTypeCategory")
    if _word(service) != "ec2" or _word(category) != "scheduledchange":
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
    starts = _deadline(event.detail.get("startTime"), event)
    arn = event.detail.get("eventArn")
    # One change is announced several times, the last time when it is over or cancelled.
    same = hashlib.sha256(arn.encode()).hexdigest()[:32] if isinstance(arn, str) and arn else ""
    over = _word(event.detail.get("statusCode")) == "closed"
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
    (_AUTO_SCALING, _TERMINATE_HOOK): _terminate_hook,
}

LISTENED_TO: Final = tuple(_READERS)
"""(source, detail-type) of every event that may be a notice: what the EventBridge rules must let through."""


def _node(event: _Event) -> str:
    """The instance that an event is about; the detail says it more reliably than the resources do."""
    named = event.detail.get("instance-id", event.detail.get("EC2InstanceId"))
    nodes = _nodes((named,)) or _nodes(event.resources)
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


def _deadline(value: object, event: _Event, *, early: float = 0.0) -> float:
    """`early` seconds before the time that an event names; two minutes after the event where that is none."""
    at = _time(value)
    if at is None or at - event.at > _FARTHEST:
        return event.at + NOTICE_SECONDS
    return at - early


def _time(value: object) -> float | None:
    """A time as AWS writes it (ISO 8601, or RFC 1123 in Health events), in seconds since the epoch.

    None for anything else. A time without a zone is one that lost its end: what is left of it may be hours
    off.
    """
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            at = parsedate_to_datetime(value)
        seconds = at.timestamp() if at.tzinfo is not None else -1.0
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return seconds if _EARLIEST <= seconds <= _LATEST else None


def _word(value: object) -> str:
    """A word of AWS's, in lower case; empty for anything else."""
    return value.lower() if isinstance(value, str) else ""


def _short(value: object) -> str:
    """A stranger's value for a log line: quoted, without line breaks, short."""
    if isinstance(value, str):
        return repr(value[:80])
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"a {type(value).__name__}"
