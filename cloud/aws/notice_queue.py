"""Notices that EventBridge rules put into an SQS queue: the cloud's own word, under our credentials.

A message stays in the queue until its notices are journalled (`acknowledge`), so a daemon that is killed gets
it again when its visibility has run out. Messages that are no notice of ours, or that cannot be read, are
deleted at once and counted: left alone they would come back until the queue forgets them. Deletions go in
batches of ten.

One long poll is always open; when it comes back full, further pollers help until the queue is empty, so a
thousand warnings at once take about a hundred calls to hear, and a quiet queue six calls a minute. The lane
of these calls belongs to the queue alone: a notice never waits behind a list of machines.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cloud.aws import events
from cloud.errors import Uncertain
from cloud.logger import structlog
from cloud.ports import Clock
from policies.model import Confidence, Notice, NoticeKind

log = structlog.get_logger("aws")

BATCH: Final = 10
"""Messages of one call, the most that SQS allows."""
MOST_HELD: Final = 10_000
"""Notices that wait for the journal; beyond it the queue is left to wait."""
_REMEMBERED = 20_000
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
_IDLE_PAUSE = 0.2
_CLOSE_WITHIN = 3.0

_MILLISECONDS = re.compile("[0-9]{1,15}")

_Key = tuple[str, float | None, bool]


class QueueCalls(Protocol):
    """The calls of SQS that the source makes, with boto3's parameters and answers. Raise CloudError."""

    async def receive_message(self, **parameters: Any) -> Mapping[str, Any]:
        """Wait for messages; in a lane that holds up nothing else."""
        ...

    async def delete_message_batch(self, **parameters: Any) -> Mapping[str, Any]:
        """Delete up to ten messages by their receipts."""
        ...

    async def get_queue_attributes(self, **parameters: Any) -> Mapping[str, Any]:
        """How many messages there are, about."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDepth:
    """Messages in the queue, as SQS estimates them: to be received, and received but not deleted yet."""

    waiting: int
    in_flight: int


@dataclass(slots=True, kw_only=True)
class QueueCounts:
    """What happened since the start, for metrics. They only rise."""

    calls: int = 0
    failures: int = 0  # calls that failed
    received: int = 0  # messages, copies included
    told: int = 0  # notices
    duplicates: int = 0  # messages that only said what was known
    foreign: int = 0  # messages that were not for us
    unparseable: int = 0
    deleted: int = 0


@dataclass(slots=True)
class _Message:
    id: str
    receipt: str
    sent_at: float
    told_at: float
    waits_for: set[_Key]


@dataclass(slots=True)
class _Held:
    notice: Notice
    messages: set[str] = field(default_factory=set)


async def _nobody(_reservation: str) -> tuple[str, ...]:
    return ()


class QueueNotices:
    """A `Notices` source on one SQS queue.

    `account`: events that say they are from another account are foreign (empty: not checked). `owned` says
    False of an instance that is certainly not ours, so that other people's machines cost nothing; a machine
    that is not described yet must pass. `reservation_nodes` names our instances in a capacity reservation,
    for events that name only that. Where it raises, the message comes again after its visibility; no other
    waits for it. `wait` and `visibility` are seconds: of one long poll, and until a message that was not
    acknowledged is yielded again.
    """

    def __init__(
        self,
        calls: QueueCalls,
        clock: Clock,
        *,
        url: str,
        account: str = "",
        owned: Callable[[str], bool] = lambda _node: True,
        reservation_nodes: Callable[[str], Awaitable[Iterable[str]]] = _nobody,
        wait: int = 10,
        visibility: int = 15,
        pollers: int = 2,
        name: str = "aws-queue",
    ) -> None:
        self.name = name
        self.counts = QueueCounts()
        self.last_error = ""
        self._calls, self._clock, self._url, self._account = calls, clock, url, account
        self._owned, self._reservation_nodes = owned, reservation_nodes
        self._wait, self._visibility = wait, visibility
        self._pollers = pollers
        self._polling: list[asyncio.Task[None]] = []
        self._failing_since: float | None = None
        self._messages: dict[str, _Message] = {}  # received, not deleted yet; by message id
        self._held: dict[_Key, _Held] = {}  # yielded, not acknowledged yet
        self._done: OrderedDict[_Key, None] = OrderedDict()  # acknowledged lately
        self._arrived: deque[Notice] = deque()
        self._wake = asyncio.Event()
        self._burst = asyncio.Event()
        self._doomed: deque[tuple[str, asyncio.Future[str]]] = deque()  # receipt, and what went wrong
        self._sweeping: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()  # who is in reservations that end

    async def stream(self) -> AsyncIterator[Notice]:
        """Yield notices for ever, first those that an earlier reader got and did not acknowledge."""
        self._arrived = deque(held.notice for held in self._held.values())
        if not self._polling:
            self._polling = [asyncio.create_task(self._poll(first=n == 0)) for n in range(self._pollers)]
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            self._wake.clear()
            await self._wake.wait()

    async def acknowledge(self, notice: Notice) -> None:
        """Delete the messages that say only this. Idempotent. Raises Uncertain when SQS did not confirm.

        A message that is not deleted comes again and is then deleted as a copy.
        """
        key = _key(notice)
        held = self._held.pop(key, None)
        if held is None:
            return
        self._done[key] = None
        if len(self._done) > _REMEMBERED:
            self._done.popitem(last=False)
        deletions = []
        for identity in held.messages:
            message = self._messages.get(identity)
            if message is None:
                continue
            message.waits_for.discard(key)
            if not message.waits_for:
                del self._messages[identity]
                deletions.append(self._discard(message.receipt))
        wrong = [error for deletion in deletions if (error := await deletion)]
        if wrong:
            raise Uncertain(f"{self.name}: {notice.id} may stay in the queue: {wrong[0]}")

    async def depth(self) -> QueueDepth:
        """How much waits in the queue. Raises CloudError."""
        asked = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await self._calls.get_queue_attributes(QueueUrl=self._url, AttributeNames=asked)
        found = answer.get("Attributes", {})
        return QueueDepth(waiting=int(found.get(asked[0], 0)), in_flight=int(found.get(asked[1], 0)))

    def age(self) -> float:
        """Seconds for which the oldest unheard or unjournalled message may have waited; 0 when all is well.

        SQS tells the age of its oldest message to CloudWatch only. This is the age of the oldest message
        held here, or, when the queue cannot be read, for how long that has been so.
        """
        now = self._clock.now()
        since = [message.sent_at for message in self._messages.values()]
        if self._failing_since is not None:
            since.append(self._failing_since)
        return max(0.0, now - min(since)) if since else 0.0

    async def close(self) -> None:
        """Stop polling, once deletions under way are through. Idempotent.

        What was not acknowledged comes again after its visibility. So does what SQS still hands to the poll
        that is broken off here, which is why neither should be long.
        """
        ended, self._polling = [*self._polling, *self._asking], []
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        if self._sweeping is not None:
            try:
                async with asyncio.timeout(_CLOSE_WITHIN):
                    await self._sweeping
            except TimeoutError:
                log.warning("notice_queue.delete_failed", queue=self.name, messages=len(self._doomed))

    # -- receiving ---------------------------------------------------------------------------------

    async def _poll(self, *, first: bool) -> None:
        """Receive for ever. The first poller always waits; the others help while there is much."""
        pause = _FIRST_PAUSE
        while True:
            if not first:
                await self._burst.wait()
            while len(self._held) >= MOST_HELD:
                await self._clock.sleep(_FIRST_PAUSE)
            began = self._clock.now()
            try:
                messages = await self._receive(self._wait if first else 1)
                self._take_all(messages)
            except Exception as error:  # whatever it is, the next call may work
                self._failed(error)
                self._burst.clear()
                await self._clock.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            pause = _FIRST_PAUSE
            self._recovered()
            if len(messages) >= BATCH:
                self._burst.set()
            elif not messages:
                self._burst.clear()
                if self._clock.now() - began < _IDLE_PAUSE:
                    await self._clock.sleep(_IDLE_PAUSE)  # a queue that does not wait must not be hammered

    async def _receive(self, wait: int) -> list[Mapping[str, Any]]:
        self.counts.calls += 1
        answer = await self._calls.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=BATCH,
            WaitTimeSeconds=wait,
            VisibilityTimeout=self._visibility,
            MessageSystemAttributeNames=["SentTimestamp"],
        )
        found = answer.get("Messages") or []
        return [message for message in found if isinstance(message, Mapping)]

    def _take_all(self, messages: Iterable[Mapping[str, Any]]) -> None:
        """Take up messages. One that fails comes again by itself, and holds up no other."""
        failure: Exception | None = None
        for message in messages:
            try:
                self._take(message)
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    def _take(self, message: Mapping[str, Any]) -> None:
        """Take up one message: tell its notices, or discard it."""
        self.counts.received += 1
        identity, receipt = str(message.get("MessageId", "")), str(message.get("ReceiptHandle", ""))
        if not identity or not receipt:
            self.counts.unparseable += 1  # no answer of SQS; there is nothing to delete
            return
        now = self._clock.now()
        known = self._messages.get(identity)
        if known is not None:
            known.receipt = receipt
            # SQS may deliver twice at once. After the visibility it means that its reader may have
            # lost it, so it is yielded again.
            if now - known.told_at >= self._visibility / 2:
                known.told_at = now
                self._tell([self._held[key].notice for key in known.waits_for if key in self._held])
            return
        sent_at = _sent_at(message.get("Attributes"))
        parsed = events.parse(
            message.get("Body"), received_at=now, sent_at=sent_at, source=self.name, account=self._account
        )
        new = _Message(identity, receipt, now if sent_at is None else min(now, sent_at), now, set())
        if isinstance(parsed, events.ReservationEnds):
            asking = asyncio.create_task(self._ask_who_is_in(parsed, new))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
            return
        told = parsed.notices if isinstance(parsed, events.Told) else ()
        self._settle(new, parsed, [notice for notice in told if self._owned(notice.node)])

    async def _ask_who_is_in(self, ends: events.ReservationEnds, message: _Message) -> None:
        """Tell the nodes that go with a reservation. A message for which that fails comes again."""
        try:
            nodes = await self._reservation_nodes(ends.reservation)
        except Exception as error:  # whatever it is, the next time may work
            self.counts.failures += 1
            log.warning(
                "reservation.read_failed",
                queue=self.name,
                reservation=ends.reservation,
                error=f"{type(error).__name__}: {error}",
            )
            return
        notices = [
            Notice(
                id=f"{ends.id}/{node}",
                kind=NoticeKind.MAINTENANCE,
                node=node,
                deadline=ends.deadline,
                source=self.name,
                confidence=Confidence.CONFIRMED,
                seen_at=message.told_at,
            )
            for node in nodes
        ]
        self._settle(message, ends, notices)

    def _settle(self, message: _Message, parsed: events.Parsed, notices: Sequence[Notice]) -> None:
        """Tell the notices of a message that may be about our nodes, or discard it."""
        fresh = [notice for notice in notices if _key(notice) not in self._done]
        if not fresh:
            self._reject(parsed, bool(notices))
            self._discard(message.receipt)
            return
        message.waits_for |= {_key(notice) for notice in fresh}
        self._messages[message.id] = message
        news = []
        for notice in fresh:
            held = self._held.get(_key(notice))
            if held is None:
                held = self._held[_key(notice)] = _Held(notice)
                news.append(notice)
            held.messages.add(message.id)
        if news:
            self.counts.told += len(news)
            self._tell(news)
        else:
            self.counts.duplicates += 1

    def _reject(self, parsed: events.Parsed, copy: bool) -> None:
        """Count a message that tells nothing; what is unreadable is logged, ever more rarely."""
        if copy:
            self.counts.duplicates += 1
        elif isinstance(parsed, events.Unparseable):
            self.counts.unparseable += 1
            if self.counts.unparseable & (self.counts.unparseable - 1) == 0:
                log.warning(
                    "notice_queue.parse_failed",
                    queue=self.name,
                    reason=parsed.reason,
                    total=self.counts.unparseable,
                )
        else:
            self.counts.foreign += 1

    def _tell(self, notices: Iterable[Notice]) -> None:
        self._arrived.extend(notices)
        self._wake.set()

    def _failed(self, error: Exception) -> None:
        self.counts.failures += 1
        self.last_error = f"{type(error).__name__}: {error}"
        if self._failing_since is None:
            self._failing_since = self._clock.now()
            log.error("notice_queue.read_failed", queue=self.name, error=self.last_error)

    def _recovered(self) -> None:
        if self._failing_since is not None:
            log.info("notice_queue.recovered", queue=self.name, after=self._clock.now() - self._failing_since)
            self._failing_since, self.last_error = None, ""

    # -- deleting ----------------------------------------------------------------------------------

    def _discard(self, receipt: str) -> asyncio.Future[str]:
        """Delete a message soon; the result is what went wrong, empty for nothing."""
        outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._doomed.append((receipt, outcome))
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep())
        return outcome

    async def _sweep(self) -> None:
        """Delete what is to be deleted, in batches."""
        while self._doomed:
            await self._clock.sleep(0.0)  # what is acknowledged at the same instant joins the batch
            batch = [self._doomed.popleft() for _ in range(min(BATCH, len(self._doomed)))]
            wrong = await self._delete([receipt for receipt, _ in batch])
            for n, (_, outcome) in enumerate(batch):
                if not outcome.done():
                    outcome.set_result(wrong.get(str(n), ""))

    async def _delete(self, receipts: list[str]) -> Mapping[str, str]:
        """Delete up to ten messages; returns what went wrong by position."""
        entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(receipts)]
        self.counts.calls += 1
        try:
            answer = await self._calls.delete_message_batch(QueueUrl=self._url, Entries=entries)
        except Exception as error:  # the message comes again, and is deleted then
            self.counts.failures += 1
            return {entry["Id"]: f"{type(error).__name__}: {error}" for entry in entries}
        failed = {
            str(entry.get("Id", "")): str(entry.get("Message") or entry.get("Code") or "refused")
            for entry in answer.get("Failed") or []
        }
        self.counts.deleted += len(receipts) - len(failed)
        return failed


def _key(notice: Notice) -> _Key:
    """What makes two notices the same news."""
    return notice.id, notice.deadline, notice.cancelled


def _sent_at(attributes: object) -> float | None:
    """When SQS took a message, in seconds since the epoch; None when it does not say."""
    sent = attributes.get("SentTimestamp") if isinstance(attributes, Mapping) else None
    return int(sent) / 1000 if isinstance(sent, str) and _MILLISECONDS.fullmatch(sent) else None
