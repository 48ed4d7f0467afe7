"""The queue as a source of notices: nothing is lost, nothing stays that is not ours, nothing stops it."""

import asyncio
import inspect
import itertools
import json
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.aws.notice_queue import QueueNotices
from cloud.clock import SystemClock
from cloud.errors import Denied, Uncertain
from policies.model import Confidence, NoticeKind

PATIENCE = 60.0
_numbers = itertools.count(1)


def node(number):
    return f"i-{number:017x}"


def body(of, kind="EC2 Spot Instance Interruption Warning", detail=None, **changes):
    event = {
        "version": "0",
        "id": f"e-{next(_numbers)}",
        "detail-type": kind,
        "source": "aws.ec2",
        "account": "123456789012",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "detail": detail if detail is not None else {"instance-id": of, "instance-action": "terminate"},
    }
    return json.dumps(event | changes)


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
async def open_source():
    """Opens sources on a queue; closes them in the end."""
    sources = []

    def make(queue, **settings):
        source = QueueNotices(queue, SystemClock(), url=queue.url, **{"wait": 1, "visibility": 30} | settings)
        sources.append(source)
        return source

    yield make
    for source in sources:
        await source.close()


async def take(source, count, *, acknowledge=True):
    """The next notices, in order."""
    found = []
    async with asyncio.timeout(PATIENCE), aclosing(source.stream()) as stream:
        async for notice in stream:
            found.append(notice)
            if acknowledge:
                await source.acknowledge(notice)
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


async def until(condition):
    """Wait until a condition, plain or awaitable, is true."""
    clock = SystemClock()
    async with asyncio.timeout(PATIENCE):
        while True:
            now = condition()
            if await now if inspect.isawaitable(now) else now:
                return
            await clock.sleep(0.02)


async def test_a_warning_is_told_and_stays_in_the_queue_until_it_is_acknowledged(any_sqs, open_source):
    await any_sqs.send(body(node(1)))
    source = open_source(any_sqs)
    (notice,) = await take(source, 1, acknowledge=False)
    assert (notice.kind, notice.node) == (NoticeKind.INTERRUPTION, node(1))
    assert (notice.source, notice.confidence) == ("aws-queue", Confidence.CONFIRMED)
    assert await any_sqs.left() == 1
    await source.acknowledge(notice)
    await source.acknowledge(notice)
    assert await any_sqs.left() == 0
    assert (source.counts.told, source.counts.deleted) == (1, 1)


async def test_a_new_reader_is_told_again_what_was_not_acknowledged(sqs, open_source):
    await sqs.send(body(node(1)))
    source = open_source(sqs)
    (first,) = await take(source, 1, acknowledge=False)
    (again,) = await take(source, 1)
    assert again == first
    await until(lambda: _empty(sqs))


async def test_a_daemon_that_was_killed_is_told_again_after_its_visibility(sqs, open_source):
    await sqs.send(body(node(1)))
    killed, successor = open_source(sqs, visibility=1), open_source(sqs)
    (first,) = await take(killed, 1, acknowledge=False)
    for task in killed._polling:
        task.cancel()
    (again,) = await take(successor, 1)
    assert (again.id, again.node, again.deadline) == (first.id, first.node, first.deadline)


async def test_a_source_that_is_closed_has_deleted_what_was_acknowledged(any_sqs, open_source):
    await any_sqs.send(*(body(node(n)) for n in range(12)))
    source = open_source(any_sqs)
    held = await take(source, 12, acknowledge=False)
    acknowledging = [asyncio.create_task(source.acknowledge(notice)) for notice in held]
    await asyncio.sleep(0)
    await source.close()
    await source.close()
    assert await any_sqs.left() == 0
    await asyncio.gather(*acknowledging)


async def test_a_notice_whose_reader_lost_it_is_told_again_and_its_new_receipt_deletes_it(
    any_sqs, open_source
):
    await any_sqs.send(body(node(1)))
    source = open_source(any_sqs, visibility=1)
    first, again = await take(source, 2, acknowledge=False)
    assert first == again
    await source.acknowledge(again)
    assert await any_sqs.left() == 0


async def test_copies_of_an_event_are_told_once_and_deleted_with_it(any_sqs, open_source):
    event = body(node(1))
    await any_sqs.send(event, event, event, body(node(2)))
    source = open_source(any_sqs)
    found = await take(source, 2)
    assert {notice.node for notice in found} == {node(1), node(2)}
    await any_sqs.send(event)
    await until(lambda: _empty(any_sqs))
    assert (source.counts.told, source.counts.duplicates) == (2, 3)


async def test_foreign_and_unreadable_messages_are_deleted_at_once_and_counted(any_sqs, open_source):
    await any_sqs.send(
        body(node(1), source="my.app"),
        body(node(1), account="210987654321"),
        body(node(1), "EC2 Instance State-change Notification", {"instance-id": node(1), "state": "running"}),
        body(node(666)),
        "{",
        "hello",
        body("i-no"),
        body(node(2)),
    )
    source = open_source(any_sqs, account="123456789012", owned=lambda name: name != node(666))
    (notice,) = await take(source, 1, acknowledge=False)
    assert notice.node == node(2)
    await until(lambda: _left(any_sqs, 1))
    assert (source.counts.foreign, source.counts.unparseable, source.counts.told) == (4, 3, 1)


async def test_the_corpus_of_malformed_bodies_neither_stops_nor_stays_in_the_queue(
    sqs, open_source, malformed
):
    bodies = [text for _, text in malformed if text.isprintable() and 0 < len(text) < 100_000]
    assert len(bodies) > 70
    await sqs.send(*bodies, body(node(1)))
    source = open_source(sqs)
    (notice,) = await take(source, 1)
    assert notice.node == node(1)
    await until(lambda: _empty(sqs))
    assert source.counts.foreign + source.counts.unparseable == len(bodies)


@pytest.mark.parametrize("time", [None, "soon", 1, "2001-01-01T00:00:00Z", "2026-01-01T00:00:00"])
async def test_a_warning_with_an_unreadable_time_counts_from_when_the_queue_took_it(
    any_sqs, open_source, time
):
    """Each daemon hears it with the same deadline, and it stays until it is acknowledged."""
    began = SystemClock().now()
    await any_sqs.send(body(node(1), time=time), body(node(2)))
    killed, successor = open_source(any_sqs, visibility=2), open_source(any_sqs)
    first = {notice.node: notice for notice in await take(killed, 2, acknowledge=False)}
    assert set(first) == {node(1), node(2)}
    assert began - 1.0 <= first[node(1)].deadline - 120.0 <= SystemClock().now()
    assert await any_sqs.left() == 2
    await killed.close()
    again = {notice.node: notice for notice in await take(successor, 2)}
    assert again[node(1)].deadline == first[node(1)].deadline
    await until(lambda: _empty(any_sqs))
    assert (killed.counts.unparseable, successor.counts.unparseable) == (0, 0)


async def test_a_test_of_a_lifecycle_hook_is_deleted_without_an_alarm_and_the_hook_is_heard(sqs, open_source):
    test = {"Event": "autoscaling:TEST_NOTIFICATION", "Service": "AWS Auto Scaling", "RequestId": "r"}
    hook = {
        "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
        "LifecycleActionToken": "t-1",
        "EC2InstanceId": node(1),
        "Time": datetime.now(UTC).isoformat(),
    }
    await sqs.send(json.dumps(test), json.dumps(hook))
    source = open_source(sqs)
    with structlog.testing.capture_logs() as logs:
        (notice,) = await take(source, 1)
        await until(lambda: _empty(sqs))
    assert (notice.kind, notice.node) == (NoticeKind.MAINTENANCE, node(1))
    assert (source.counts.foreign, source.counts.unparseable, logs) == (1, 0, [])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fuzzed = st.one_of(
    st.text(max_size=200),
    json_values.map(json.dumps),
    st.dictionaries(st.sampled_from(list(json.loads(body("i-1")))), json_values).map(
        lambda changes: json.dumps(json.loads(body(node(7))) | changes)
    ),
    st.integers(0, 300).map(lambda end: body(node(8))[:end]),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(fuzzed, max_size=25))
def test_whatever_is_in_the_queue_it_is_read_to_the_end_and_the_next_warning_is_heard(new_sqs, bodies):
    """Nothing that comes stops the source, and once what it told is acknowledged nothing is left."""

    async def play():
        sqs = new_sqs()
        await sqs.send(*bodies, body(node(1)))
        source = QueueNotices(sqs, SystemClock(), url=sqs.url, wait=1, visibility=30)
        told = []
        async with asyncio.timeout(PATIENCE), aclosing(source.stream()) as stream:
            async for notice in stream:
                told.append(notice)
                await source.acknowledge(notice)
                if notice.node == node(1):
                    break
        await until(lambda: _empty(sqs))
        await source.close()
        assert source.counts.failures == 0
        assert source.counts.received == source.counts.deleted == len(bodies) + 1
        assert all(notice.node.startswith("i-") for notice in told)

    asyncio.run(play())


async def test_a_message_of_several_nodes_stays_until_each_of_its_notices_is_acknowledged(sqs, open_source):
    detail = {
        "eventArn": "arn:aws:health:us-east-1::event/EC2/X/1",
        "service": "EC2",
        "eventTypeCategory": "scheduledChange",
        "startTime": "Sat, 05 Dec 2026 15:10:09 GMT",
        "affectedEntities": [{"entityValue": node(n)} for n in (1, 2, 3)],
    }
    await sqs.send(body("", "AWS Health Event", detail, source="aws.health"))
    source = open_source(sqs)
    found = await take(source, 3, acknowledge=False)
    assert [(n.kind, n.node) for n in found] == [(NoticeKind.MAINTENANCE, node(n)) for n in (1, 2, 3)]
    await source.acknowledge(found[0])
    await source.acknowledge(found[2])
    assert await sqs.left() == 1
    await source.acknowledge(found[1])
    assert await sqs.left() == 0


async def test_a_change_that_is_called_off_is_told_although_its_first_event_was_acknowledged(
    sqs, open_source
):
    detail = {
        "eventArn": "arn:aws:health:us-east-1::event/EC2/X/2",
        "service": "EC2",
        "eventTypeCategory": "scheduledChange",
        "startTime": "Sat, 05 Dec 2026 15:10:09 GMT",
        "affectedEntities": [{"entityValue": node(1)}],
    }
    source = open_source(sqs)
    await sqs.send(body("", "AWS Health Event", detail, source="aws.health"))
    (told,) = await take(source, 1)
    await sqs.send(body("", "AWS Health Event", detail | {"statusCode": "closed"}, source="aws.health"))
    (over,) = await take(source, 1)
    assert (over.id, told.cancelled, over.cancelled) == (told.id, False, True)


def block(name):
    detail = {"capacity-reservation-id": name, "end-date": "2026-12-05T11:30:00Z"}
    return body("", "Capacity Block Expiration Warning", detail)


async def test_a_capacity_block_that_runs_out_is_a_notice_for_each_of_our_nodes_in_it(sqs, open_source):
    async def nodes_in(name):
        return [node(1), node(2)] if name == "cr-0000aaaa" else []

    await sqs.send(block("cr-0000aaaa"), block("cr-0000bbbb"))
    source = open_source(sqs, reservation_nodes=nodes_in)
    found = await take(source, 2)
    assert [(n.kind, n.node) for n in found] == [(NoticeKind.MAINTENANCE, node(n)) for n in (1, 2)]
    assert {n.deadline for n in found} == {datetime(2026, 12, 5, 11, 0, tzinfo=UTC).timestamp()}
    assert len({n.id for n in found}) == 2
    await until(lambda: _empty(sqs))
    assert source.counts.foreign == 1


@pytest.mark.parametrize("error", [Denied("not allowed"), RuntimeError("a bug")])
async def test_a_block_whose_nodes_cannot_be_known_now_comes_again(sqs, open_source, error):
    answers = [error, [node(1)]]

    async def nodes_in(_name):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    await sqs.send(block("cr-0000aaaa"))
    source = open_source(sqs, reservation_nodes=nodes_in, visibility=1)
    (notice,) = await take(source, 1)
    assert notice.node == node(1)
    await until(lambda: _empty(sqs))
    assert source.counts.failures == 1


async def test_no_notice_waits_for_the_nodes_of_a_block(sqs, open_source):
    asked = asyncio.Event()

    async def nodes_in(_name):
        asked.set()
        await asyncio.Event().wait()

    await sqs.send(block("cr-0000aaaa"))
    source = open_source(sqs, reservation_nodes=nodes_in)
    reading = asyncio.create_task(take(source, 1))
    await asked.wait()
    await sqs.send(body(node(7)))
    assert [notice.node for notice in await reading] == [node(7)]
    await source.close()
    assert await sqs.left() == 1


async def test_a_burst_is_received_and_deleted_in_batches(any_sqs, open_source):
    await any_sqs.send(*(body(node(n)) for n in range(40)))
    source = open_source(any_sqs)
    found = await take(source, 40, acknowledge=False)
    assert {notice.node for notice in found} == {node(n) for n in range(40)}
    before = any_sqs.calls["delete_message_batch"]
    await asyncio.gather(*(source.acknowledge(notice) for notice in found))
    assert any_sqs.calls["delete_message_batch"] - before <= 6
    assert await any_sqs.left() == 0


async def test_what_is_acknowledged_a_step_of_the_loop_later_joins_the_batch(sqs, open_source):
    await sqs.send(*(body(node(n)) for n in range(2)))
    source = open_source(sqs)
    first, second = await take(source, 2, acknowledge=False)
    before = sqs.calls["delete_message_batch"]
    early = asyncio.create_task(source.acknowledge(first))
    await asyncio.sleep(0)
    await asyncio.gather(early, source.acknowledge(second))
    assert sqs.calls["delete_message_batch"] - before == 1


async def test_a_thousand_warnings_among_as_many_strangers_take_a_bounded_number_of_calls(sqs, open_source):
    await sqs.send(*(text for n in range(1000) for text in (body(node(n)), body(node(n), source="my.app"))))
    source = open_source(sqs)
    found = await take(source, 1000, acknowledge=False)
    assert {notice.node for notice in found} == {node(n) for n in range(1000)}
    await asyncio.gather(*(source.acknowledge(notice) for notice in found))
    await until(lambda: _empty(sqs))
    assert source.counts.foreign == 1000
    assert sqs.calls["receive_message"] <= 220
    # Strangers' messages are deleted as they come, ten to a batch or fewer.
    assert sqs.calls["delete_message_batch"] <= 420


@pytest.mark.parametrize("error", [Denied("expired"), Uncertain("reset"), RuntimeError("a bug")])
async def test_calls_that_fail_are_asked_again_and_the_age_says_so(sqs, open_source, error):
    sqs.failures["receive_message"] = [error]
    source = open_source(sqs)
    assert source.age() == 0.0
    reading = asyncio.create_task(take(source, 1))
    await until(lambda: source.counts.failures == 1)
    assert source.age() > 0.0
    assert str(error) in source.last_error
    await sqs.send(body(node(1)))
    await reading
    await until(lambda: source.last_error == "" and source.age() == 0.0)


async def test_calls_that_go_on_failing_are_made_less_often_each_time(sqs):
    class Paced(SystemClock):
        def __init__(self):
            super().__init__()
            self.slept = []

        async def sleep(self, seconds):
            self.slept.append(seconds)
            await super().sleep(0.0)

    clock = Paced()
    sqs.failures["receive_message"] = [Uncertain("reset")] * 10
    source = QueueNotices(sqs, clock, url=sqs.url, wait=1, visibility=30, pollers=1)
    await sqs.send(body(node(1)))
    await take(source, 1, acknowledge=False)
    await source.close()
    assert clock.slept[:10] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


async def test_a_question_about_nodes_that_fails_loses_no_message(sqs, open_source):
    asked = []

    def owned(name):
        asked.append(name)
        if len(asked) == 1:
            raise KeyError(name)
        return True

    await sqs.send(body(node(1)), body(node(2)))
    source = open_source(sqs, visibility=1, owned=owned)
    assert [notice.node for notice in await take(source, 2)] == [node(2), node(1)]
    assert source.counts.failures == 1


async def test_a_deletion_that_fails_is_said_and_made_good_when_the_message_comes_again(sqs, open_source):
    await sqs.send(body(node(1)))
    source = open_source(sqs, visibility=1)
    (notice,) = await take(source, 1, acknowledge=False)
    sqs.failures["delete_message_batch"] = [RuntimeError("reset")]
    with pytest.raises(Uncertain, match="reset"):
        await source.acknowledge(notice)
    assert await sqs.left() == 1
    await until(lambda: _empty(sqs))
    assert source.counts.told == 1


async def test_the_age_counts_from_when_the_oldest_message_was_sent(sqs, open_source):
    await sqs.send(body(node(1)))
    source = open_source(sqs)
    (notice,) = await take(source, 1, acknowledge=False)
    await until(lambda: source.age() > 0.0)
    await source.acknowledge(notice)
    assert source.age() == 0.0


async def test_the_depth_is_what_waits_and_what_is_in_flight(any_sqs, open_source):
    source = open_source(any_sqs)
    assert (await source.depth()).waiting == 0
    await any_sqs.send(body(node(1)), body(node(2)))
    assert (await source.depth()).waiting == 2
    await take(source, 2, acknowledge=False)
    depth = await source.depth()
    assert (depth.waiting, depth.in_flight) == (0, 2)


async def test_answers_that_are_no_answers_do_not_stop_it(sqs, open_source):
    sqs.odd_answers = [{"Messages": None}, {"Messages": [7]}, {"Messages": [{}]}, {"Messages": [{"Body": 7}]}]
    await sqs.send(body(node(1)))
    (notice,) = await take(open_source(sqs), 1)
    assert notice.node == node(1)


async def _left(sqs, count):
    return await sqs.left() == count


async def _empty(sqs):
    return await sqs.left() == 0
