"""Spot requests as a source of notices: which statuses count, and what a poll makes of them."""

import asyncio
import math
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from cloud.aws.spot_requests import SpotRequestNotices, deadline, read_status, takes_away
from cloud.errors import Throttled
from policies.model import Confidence, NoticeKind

START = 1_800_000_000.0
PATIENCE = 30.0


class JumpingClock:
    """Time that passes only by sleeping, at once."""

    def __init__(self):
        self.time = START
        self.slept = []

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self.slept += [seconds] if seconds else []
        self.time += max(0.0, seconds)
        await asyncio.sleep(0)


class Requests:
    """DescribeSpotInstanceRequests: `looks` holds the pages of each look; the last look goes on for ever."""

    def __init__(self, *looks):
        self.looks = list(looks)
        self.asked = []
        self._rest = []

    async def describe_spot_instance_requests(self, **asked):
        self.asked.append(asked)
        if "NextToken" not in asked:
            self._rest = list(self.looks.pop(0) if len(self.looks) > 1 else self.looks[0])
        page = self._rest.pop(0)
        if isinstance(page, Exception):
            raise page
        return {"SpotInstanceRequests": page} | ({"NextToken": "more"} if self._rest else {})


def request(number, code, *, since=START, **changes):
    return {
        "SpotInstanceRequestId": f"sir-{number}",
        "InstanceId": f"i-{number}",
        "State": "active",
        "Status": {"Code": code, "Message": "", "UpdateTime": datetime.fromtimestamp(since, UTC)},
    } | changes


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


async def take(source, count, *, acknowledge=True):
    found = []
    async with asyncio.timeout(PATIENCE), aclosing(source.stream()) as stream:
        async for notice in stream:
            found.append(notice)
            if acknowledge:
                await source.acknowledge(notice)
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


async def looks(source, count):
    """Read the stream until so many looks are done; whatever it yields."""
    found = []
    async with asyncio.timeout(PATIENCE):
        stream = source.stream()

        async def read():
            async for notice in stream:
                found.append(notice)

        reading = asyncio.create_task(read())
        while source.looks < count:
            await source._clock.sleep(0.0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    return found


@pytest.mark.parametrize(
    ("code", "lead"),
    [
        ("marked-for-termination", 120.0),
        ("marked-for-stop", 120.0),
        ("marked-for-stop-by-experiment", 120.0),
        ("instance-terminated-no-capacity", 120.0),
        ("instance-terminated-by-price", 120.0),
        ("instance-terminated-by-experiment", 120.0),
        ("instance-terminated-launch-group-constraint", 120.0),
        ("instance-terminated-by-service", 120.0),
        ("instance-stopped-no-capacity", 0.0),
        ("instance-stopped-by-experiment", 0.0),
    ],
)
def test_a_status_by_which_ec2_takes_the_instance(code, lead):
    assert takes_away(code)
    status = read_status(request(1, code), now=START + 5.0)
    assert deadline(status) == START + lead


@pytest.mark.parametrize(
    "code",
    [
        "fulfilled",
        "pending-evaluation",
        "capacity-not-available",
        "instance-terminated-by-user",
        "spot-instance-terminated-by-user",
        "instance-stopped-by-user",
        "request-canceled-and-instance-running",
        "canceled-before-fulfillment",
        "",
    ],
)
def test_a_status_that_takes_nothing(code):
    assert not takes_away(code)


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.datetimes(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["Status", "Code", "UpdateTime", "InstanceId", "SpotInstanceRequestId"]),
                inner,
            )
        ),
    )
)
def test_any_entry_can_be_read(entry):
    status = read_status(entry, now=START)
    assert status is None or (status.node and status.request and status.since <= START)


async def test_a_status_is_told_once_as_it_goes_from_marked_to_terminated():
    calls = Requests(
        [[request(1, "fulfilled"), request(2, "fulfilled")]],
        [[request(1, "marked-for-termination", since=START + 4), request(2, "fulfilled")]],
        [[request(1, "instance-terminated-no-capacity", since=START + 9), request(2, "fulfilled")]],
    )
    source = SpotRequestNotices(calls, JumpingClock())
    found = await looks(source, 6)
    (notice,) = found
    assert (notice.node, notice.kind, notice.deadline) == ("i-1", NoticeKind.INTERRUPTION, START + 124.0)
    assert (notice.source, notice.confidence) == ("aws-spot-requests", Confidence.CONFIRMED)


async def test_one_look_reads_every_page_and_asks_for_the_statuses_that_count():
    pages = [[request(n, "marked-for-termination")] for n in range(3)]
    calls = Requests(pages)
    found = await take(SpotRequestNotices(calls, JumpingClock()), 3)
    assert [notice.node for notice in found] == ["i-0", "i-1", "i-2"]
    assert len(calls.asked) == 3
    (codes,) = calls.asked[0]["Filters"]
    assert codes["Name"] == "status-code"
    assert all(takes_away(code.replace("*", "x")) for code in codes["Values"])
    assert {"instance-terminated-no-capacity", "marked-for-stop"} <= {*codes["Values"]}


async def test_what_is_not_ours_and_what_is_history_is_not_told():
    calls = Requests(
        [
            [
                request(1, "instance-terminated-no-capacity", since=START - 3600.0),
                request(2, "marked-for-termination"),
                request(3, "marked-for-termination"),
                request(4, "marked-for-termination", InstanceId=None),
            ]
        ]
    )
    source = SpotRequestNotices(calls, JumpingClock(), owned=lambda node: node != "i-2")
    assert [notice.node for notice in await looks(source, 3)] == ["i-3"]


async def test_a_request_that_was_fulfilled_again_can_be_taken_again():
    calls = Requests(
        [[request(1, "marked-for-stop")]],
        [[request(1, "fulfilled")]],
        [[request(1, "marked-for-stop", since=START + 8)]],
    )
    first, second = await take(SpotRequestNotices(calls, JumpingClock()), 2)
    assert first.id != second.id
    assert (first.deadline, second.deadline) == (START + 120.0, START + 128.0)


async def test_failures_are_repeated_with_growing_pauses_and_what_pages_told_before_holds():
    calls = Requests(
        [[request(1, "marked-for-termination")], Throttled("slow down")],
        [Throttled("slow down")],
        [RuntimeError("a bug")],
        [Throttled("slow down")],
        [Throttled("slow down")],
        [[request(1, "marked-for-termination"), request(2, "marked-for-termination")]],
    )
    clock = JumpingClock()
    source = SpotRequestNotices(calls, clock, interval=5.0)
    assert source.age() == math.inf
    found = await take(source, 2)
    assert [notice.node for notice in found] == ["i-1", "i-2"]
    assert source.failures == 5
    assert clock.slept == [5.0, 5.0, 5.0, 8.0, 16.0]
    await looks(source, source.looks + 1)
    assert source.last_error == ""
    assert source.age() < 60.0


async def test_a_listing_without_end_is_left_after_a_while():
    class Circle:
        calls = 0

        async def describe_spot_instance_requests(self, **_):
            self.calls += 1
            return {"SpotInstanceRequests": [], "NextToken": "again"}

    circle = Circle()
    await looks(SpotRequestNotices(circle, JumpingClock()), 2)
    assert 500 <= circle.calls <= 1001


async def test_a_new_reader_is_told_again_what_was_not_acknowledged():
    calls = Requests([[request(1, "marked-for-termination")]])
    source = SpotRequestNotices(calls, JumpingClock())
    (first,) = await take(source, 1, acknowledge=False)
    (again,) = await take(source, 1)
    assert again == first
    await source.acknowledge(again)
    assert await looks(source, source.looks + 2) == []
    await source.close()
