"""DescribeInstanceStatus as a source of notices: which events and checks count, and what polls make of it."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from cloud.aws.instance_status import EVENTS, FILTERS, LASTING, InstanceStatusNotices, read_troubles
from cloud.aws.instances import AwsInstances
from cloud.aws.notice_calls import NoticeCalls
from cloud.clock import SystemClock
from cloud.errors import Throttled
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Confidence, Market, NoticeKind, Placement

START = 1_800_000_000.0
PATIENCE = 30.0
NODE = "i-0123456789abcdef0"
OTHER = "i-0123456789abcdef1"


class JumpingClock:
    """Time that passes only by sleeping, at once."""

    def __init__(self):
        self.time = START

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self.time += max(0.0, seconds)
        await asyncio.sleep(0)


class Statuses:
    """DescribeInstanceStatus: each look has the pages of its three calls; the last look goes on for ever."""

    def __init__(self, *looks):
        self.looks = list(looks)
        self.asked = []
        self._now, self._rest = (), {}

    async def describe_instance_status(self, **asked):
        self.asked.append(asked)
        (wanted,) = asked["Filters"]
        at = [f["Name"] for f in FILTERS].index(wanted["Name"])
        if "NextToken" not in asked:
            if at == 0:
                self._now = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
            self._rest[at] = list(self._now[at]) if at < len(self._now) else [[]]
        page = self._rest[at].pop(0)
        if isinstance(page, Exception):
            raise page
        return {"InstanceStatuses": page} | ({"NextToken": "more"} if self._rest[at] else {})


def at(seconds):
    return datetime.fromtimestamp(START + seconds, UTC)


def event(code="system-reboot", *, starts=3600.0, identity="instance-event-1", says="scheduled reboot"):
    return {"InstanceEventId": identity, "Code": code, "Description": says, "NotBefore": at(starts)}


def entry(*events, node=NODE, **checks):
    fields = {"instance": "InstanceStatus", "system": "SystemStatus"}
    return {
        "InstanceId": node,
        "Events": list(events),
        **{fields[check]: status for check, status in checks.items()},
    }


def impaired(since=-300.0):
    detail = {"Name": "reachability", "Status": "failed", "ImpairedSince": at(since)}
    return {"Status": "impaired", "Details": [detail]}


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


def look(*pages):
    """One look: the pages of its first call, for events; the other calls answer nothing."""
    return (list(pages) or [[]],)


async def take(source, count):
    found = []
    async with asyncio.timeout(PATIENCE), aclosing(source.stream()) as stream:
        async for notice in stream:
            found.append(notice)
            await source.acknowledge(notice)
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("code", [*EVENTS, "a-code-of-next-year"])
def test_every_scheduled_event_is_maintenance_at_its_time(code):
    (trouble,) = read_troubles(entry(event(code)), now=START)
    assert (trouble.node, trouble.deadline, trouble.over) == (NODE, START + 3600.0, False)
    assert trouble.confidence is Confidence.CONFIRMED


@pytest.mark.parametrize("says", ["[Completed] Your instance", "[Canceled] maintenance", "[completed]"])
def test_an_event_that_is_over_says_so(says):
    assert [t.over for t in read_troubles(entry(event(says=says)), now=START)] == [True]


@pytest.mark.parametrize("check", ["instance", "system"])
def test_a_check_counts_once_it_has_failed_for_two_minutes_and_only_as_reported(check):
    assert read_troubles(entry(**{check: impaired(since=-LASTING + 1.0)}), now=START) == ()
    (trouble,) = read_troubles(entry(**{check: impaired(since=-LASTING)}), now=START)
    assert trouble.confidence is Confidence.REPORTED
    assert trouble.deadline == START


@pytest.mark.parametrize("status", ["ok", "initializing", "insufficient-data", "not-applicable", None])
def test_a_check_that_did_not_fail_is_no_trouble(status):
    assert read_troubles(entry(system={**impaired(), "Status": status}), now=START) == ()


ODD = st.sampled_from([None, "", "x", 1, [], {}, [1], [None], [{}], at(0.0), datetime(2026, 1, 1)])  # noqa: DTZ001


@given(
    st.fixed_dictionaries(
        {
            "InstanceId": ODD | st.just(NODE),
            "Events": ODD | st.lists(st.dictionaries(st.sampled_from([*event()]), ODD), max_size=3),
            "InstanceStatus": ODD
            | st.fixed_dictionaries({"Status": st.just("impaired"), "Details": ODD | st.lists(ODD)}),
            "SystemStatus": ODD,
        }
    )
    | ODD
)
def test_any_entry_can_be_read(found):
    for trouble in read_troubles(found, now=START):
        assert trouble.node == NODE
        assert trouble.name


async def test_it_is_told_once_and_again_when_it_moves():
    moved = entry(event(starts=60.0))
    statuses = Statuses(look([entry(event())]), look([entry(event())]), look([moved]))
    first, second = await take(InstanceStatusNotices(statuses, JumpingClock()), 2)
    assert (first.kind, first.node, first.deadline) == (NoticeKind.MAINTENANCE, NODE, START + 3600.0)
    assert (second.id, second.deadline) == (first.id, START + 60.0)
    assert first.confidence is Confidence.CONFIRMED


@pytest.mark.parametrize("after", [look(), look([entry(event(says="[Canceled] reboot"))])])
async def test_what_vanishes_or_is_called_off_is_cancelled(after):
    source = InstanceStatusNotices(Statuses(look([entry(event())]), after), JumpingClock())
    first, second = await take(source, 2)
    assert (second.id, first.cancelled, second.cancelled) == (first.id, False, True)


async def test_what_was_over_before_it_was_seen_is_not_told():
    over = entry(event(says="[Completed] reboot"))
    statuses = Statuses(look([over]), look([over, entry(event(), node=OTHER)]))
    (notice,) = await take(InstanceStatusNotices(statuses, JumpingClock()), 1)
    assert notice.node == OTHER


async def test_a_check_that_passes_again_is_cancelled_and_may_fail_again():
    fails = ([[]], [[]], [[entry(system=impaired())]])
    again = ([[]], [[]], [[entry(system=impaired(since=-200.0))]])
    statuses = Statuses(fails, look(), again)
    told = await take(InstanceStatusNotices(statuses, JumpingClock()), 3)
    assert [n.cancelled for n in told] == [False, True, False]
    assert told[0].id == told[1].id != told[2].id
    assert {n.confidence for n in told} == {Confidence.REPORTED}


async def test_a_look_takes_three_calls_of_the_largest_pages_and_reads_every_page():
    statuses = Statuses(look([entry(event())], [entry(event(), node=OTHER)]))
    source = InstanceStatusNotices(statuses, JumpingClock())
    assert {n.node for n in await take(source, 2)} == {NODE, OTHER}
    assert [asked["MaxResults"] for asked in statuses.asked] == [1000] * 4
    assert [asked["Filters"][0]["Name"] for asked in statuses.asked] == [
        *("event.code", "event.code"),
        *("instance-status.status", "system-status.status"),
    ]


async def test_strangers_cost_nothing():
    statuses = Statuses(look([entry(event(), node=OTHER), entry(event())]))
    source = InstanceStatusNotices(statuses, JumpingClock(), owned=lambda node: node == NODE)
    (notice,) = await take(source, 1)
    assert notice.node == NODE


async def test_a_look_that_fails_cancels_nothing_and_is_repeated():
    fails = look(Throttled("too many"))
    moved = look([entry(event(starts=60.0))])
    source = InstanceStatusNotices(Statuses(look([entry(event())]), fails, moved), JumpingClock())
    told = await take(source, 2)
    assert [n.cancelled for n in told] == [False, False]
    assert (source.failures, source.last_error) == (1, "Throttled: too many")


async def test_what_was_not_acknowledged_comes_again_to_a_new_reader():
    source = InstanceStatusNotices(Statuses(look([entry(event())])), JumpingClock())
    async with asyncio.timeout(PATIENCE), aclosing(source.stream()) as stream:
        first = await anext(stream)
    async with asyncio.timeout(PATIENCE), aclosing(source.stream()) as stream:
        again = await anext(stream)
    assert again == first


@pytest.mark.slow
async def test_an_account_tells_of_events_and_checks_of_machines_that_run(aws_shim, aws_clients, aws_place):
    clock, calls = SystemClock(), NoticeCalls(aws_clients)
    instances = AwsInstances([(aws_clients, aws_place)], clock=clock)
    nodes = []
    for number in range(2):
        placement = Placement("aws", "us-east-1", "us-east-1a", aws_place.instance_types[0], Market.ON_DEMAND)
        nodes.append(
            await instances.launch(
                LaunchRequest(
                    token=f"status-{number}",
                    pool="pool",
                    placement=placement,
                    command=EngineCommand(argv=("true",)),
                )
            )
        )
    event = {"InstanceEventId": "instance-event-1", "Code": "system-reboot", "NotBefore": 3600.0}
    detail = {"Name": "reachability", "Status": "failed", "ImpairedSince": -300.0}
    statuses = {
        nodes[0].id: {"Events": [event]},
        nodes[1].id: {"SystemStatus": {"Status": "impaired", "Details": [detail]}},
    }
    aws_shim.order("set", boot=0.0, statuses=statuses)
    source = InstanceStatusNotices(calls, clock, interval=0.2)
    try:
        told = {notice.node: notice for notice in await take(source, 2)}
    finally:
        await calls.close()
        await instances.close()
    first, second = (told[node.id] for node in nodes)
    assert (first.confidence, second.confidence) == (Confidence.CONFIRMED, Confidence.REPORTED)
    assert first.deadline > clock.now() + 3000.0
    assert second.deadline < clock.now()
