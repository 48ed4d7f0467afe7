"""What the receiver takes up and what it refuses: a report speaks for its own sender, once."""

import asyncio
import contextlib
import json
import math
from contextlib import aclosing

import aiohttp
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud.agent_receiver import (
    MOST_BYTES,
    MOST_CHECKS,
    MOST_TOLD,
    SILENT,
    AgentReceiver,
    BootCheck,
    BootReport,
    _boot,
    _Refused,
)
from cloud.node_agent import SCHEMA, node_key, signature
from policies.model import Confidence, NoticeKind

START = 1_800_000_000.0
SECRET = b"the secret of a pool, in a test"
PATIENCE = 60.0
A, B = "i-0000000000000000a", "i-0000000000000000b"


class HandClock:
    """Time that the test sets."""

    def __init__(self):
        self.time = START

    def now(self):
        return self.time

    async def sleep(self, seconds):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def clock():
    return HandClock()


class Sender:
    """Sends what a node, or somebody else, might send."""

    def __init__(self, served, clock, http):
        self.served, self.clock, self.http = served, clock, http
        self.session = served.receiver._session
        self.sequence = 0

    def report(self, node, **changes):
        self.sequence += 1
        base = {"schema": SCHEMA, "node": node, "at": self.clock.now(), "session": self.session}
        return {**base, "sequence": self.sequence, "notices": [], **changes}

    async def post(self, to, body, *, sign_as=None, secret=SECRET, given=None):
        """Post a body to a node's address: (status, answer)."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        name = to if sign_as is None else sign_as
        mac = signature(node_key(secret, name), name, raw) if given is None else given
        url = f"{self.served.url}/v1/nodes/{to}/report"
        async with self.http.post(url, data=raw, headers={"X-Node-Signature": mac}) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith("{") else text

    async def tell(self, node, **changes):
        return await self.post(node, self.report(node, **changes))


@pytest.fixture
async def sender(serve, clock):
    served = await serve(clock)
    async with aiohttp.ClientSession() as http:
        yield Sender(served, clock, http)


@pytest.fixture
def receiver(sender):
    return sender.served.receiver


async def told(receiver, count, *, acknowledge=True):
    """The next notices."""
    found = []
    async with asyncio.timeout(PATIENCE), aclosing(receiver.stream()) as stream:
        async for notice in stream:
            found.append(notice)
            if acknowledge:
                await receiver.acknowledge(notice)
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


def silent(receiver):
    """True when no notice came of anything."""
    return not receiver._held


INTERRUPTION = {"kind": "interruption", "deadline": START + 120.0, "what": "terminate", "event": ""}


async def test_a_notice_of_a_node_is_reported_for_that_node(sender, receiver):
    assert (await sender.tell(A, notices=[INTERRUPTION]))[0] == 204
    (notice,) = await told(receiver, 1)
    assert (notice.node, notice.kind, notice.deadline) == (A, NoticeKind.INTERRUPTION, START + 120.0)
    assert (notice.source, notice.confidence) == ("node-agent", Confidence.REPORTED)


async def test_a_forged_report_does_nothing(sender, receiver):
    report = sender.report(A, notices=[INTERRUPTION])
    for wrong in ({"secret": b"another pool's secret"}, {"sign_as": B}, {"given": ""}, {"given": "0" * 64}):
        status, answer = await sender.post(A, report, **wrong)
        assert status == 401
        assert answer == {"error": "not signed with this node's key"}
    assert silent(receiver)
    assert receiver.reports() == {}
    assert receiver.refused == {"signature": 4}


async def test_a_report_that_was_changed_on_the_way_does_nothing(sender, receiver):
    raw = json.dumps(sender.report(A)).encode()
    mac = signature(node_key(SECRET, A), A, raw)
    changed = raw.replace(b'"notices": []', b'"notices": [{"kind": "rebalance"}]')
    assert changed != raw
    assert (await sender.post(A, changed, given=mac))[0] == 401
    assert silent(receiver)


async def test_a_node_cannot_speak_for_another(sender, receiver):
    # With its own key at the other's address; with the other's id in its own report; both.
    assert (await sender.post(B, sender.report(B, notices=[INTERRUPTION]), sign_as=A))[0] == 401
    assert (await sender.post(A, sender.report(B, notices=[INTERRUPTION])))[0] == 400
    named = [INTERRUPTION | {"node": B, "instance-id": B}]
    assert (await sender.tell(A, notices=named))[0] == 204
    assert {notice.node for notice in await told(receiver, 1)} == {A}
    assert set(receiver.reports()) == {A}


async def test_a_replayed_report_does_nothing(sender, receiver, clock):
    first = sender.report(A, notices=[INTERRUPTION])
    assert (await sender.post(A, first))[0] == 204
    await told(receiver, 1)
    clock.time += 1.0
    assert (await sender.tell(A))[0] == 204
    age = receiver.ages()[A]
    clock.time += 1.0
    status, answer = await sender.post(A, first)
    assert (status, answer["sequence"]) == (409, 2)
    assert receiver.ages()[A] == age + 1.0
    assert silent(receiver)
    assert receiver.refused == {"replayed": 1}


async def test_reports_from_before_a_restart_do_nothing(sender, serve, clock):
    recorded = sender.report(A, notices=[INTERRUPTION])
    assert (await sender.post(A, recorded))[0] == 204
    restarted = await serve(clock)
    other = Sender(restarted, clock, sender.http)
    status, answer = await other.post(A, recorded)
    assert (status, answer["sequence"]) == (409, 0)
    assert answer["session"] == other.session != sender.session
    assert silent(restarted.receiver)


@pytest.mark.parametrize("at", [START - 61.0, START + 61.0, 0.0, None, "now", True, 1e300])
async def test_a_time_that_is_off_is_refused_with_what_to_do(sender, receiver, at):
    status, answer = await sender.tell(A, at=at, notices=[INTERRUPTION])
    assert status == 400
    assert "NTP" in answer["error"]
    assert silent(receiver)


@pytest.mark.parametrize("sequence", [0, -1, 2**53, 1.5, True, "1", None])
async def test_a_number_that_is_none_is_refused(sender, receiver, sequence):
    assert (await sender.tell(A, sequence=sequence, notices=[INTERRUPTION]))[0] == 409
    assert silent(receiver)


async def test_a_node_that_is_not_ours_is_refused_like_a_forger(serve, clock):
    served = await serve(clock, owned=lambda node: node != B)
    async with aiohttp.ClientSession() as http:
        sender = Sender(served, clock, http)
        assert await sender.tell(B) == (401, {"error": "not signed with this node's key"})
        assert (await sender.tell(A))[0] == 204
    assert served.receiver.refused == {"unknown-node": 1}


@pytest.mark.parametrize("node", ["..", "%2e%2e", "i-1%0a", "a" * 65, "%00", "i 1"])
async def test_an_address_that_names_no_node_is_refused(sender, node):
    assert (await sender.post(node, b"{}", given="0" * 64))[0] in (401, 404)


async def test_a_report_that_is_too_large_is_refused_unread(sender, receiver):
    body = json.dumps(sender.report(A)).encode() + b" " * MOST_BYTES
    assert (await sender.post(A, body))[0] == 413
    assert receiver.refused == {"size": 1}


async def test_a_report_that_does_not_arrive_is_given_up(sender, receiver, monkeypatch):
    monkeypatch.setattr("cloud.agent_receiver._READ_WITHIN", 0.05)
    reading, writing = await asyncio.open_connection("127.0.0.1", sender.served.port)
    writing.write(
        f"POST /v1/nodes/{A}/report HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{{".encode()
    )
    async with asyncio.timeout(PATIENCE):
        assert b" 408 " in await reading.readline()
    writing.close()
    assert receiver.refused == {"slow": 1}
    assert (await sender.tell(A))[0] == 204


async def test_more_reports_at_once_than_can_be_read_are_put_off(sender, receiver, monkeypatch):
    monkeypatch.setattr("cloud.agent_receiver.MOST_AT_ONCE", 0)
    assert (await sender.tell(A))[0] == 503
    monkeypatch.undo()
    assert (await sender.tell(A))[0] == 204


async def test_a_node_that_reports_too_often_waits_and_is_heard_again(sender, receiver, clock):
    statuses = [(await sender.tell(A))[0] for _ in range(25)]
    assert statuses.count(204) == 20
    assert statuses[-1] == 429
    assert (await sender.tell(B))[0] == 204
    clock.time += 10.0
    assert (await sender.tell(A, notices=[INTERRUPTION]))[0] == 204
    assert (await told(receiver, 1))[0].node == A


async def test_replays_by_somebody_else_do_not_use_up_the_nodes_share(sender, receiver, serve, clock):
    recorded = sender.report(A)
    assert (await sender.post(A, recorded))[0] == 204
    for _ in range(15):
        assert (await sender.post(A, recorded))[0] == 409
    statuses = [(await sender.tell(A))[0] for _ in range(19)]
    assert set(statuses) == {204}


async def test_an_address_that_keeps_forging_is_not_read_for_a_while(sender, receiver, clock):
    statuses = [(await sender.post(A, b"{}", given="0" * 64))[0] for _ in range(25)]
    assert statuses[:20] == [401] * 20
    assert statuses[20:] == [429] * 5
    clock.time += 5.0
    assert (await sender.tell(A))[0] == 204


async def test_a_node_tells_of_a_limited_number_of_notices(sender, receiver, clock):
    for n in range(20):
        many = [INTERRUPTION | {"deadline": START + 10.0 * n + k} for k in range(10)]
        assert (await sender.tell(A, notices=many))[0] == 204
        clock.time += 1.0
    assert len(receiver._held) == MOST_TOLD
    assert receiver.refused["notices"] > 0


async def test_the_same_notice_in_every_report_is_told_once(sender, receiver):
    for _ in range(3):
        await sender.tell(A, notices=[INTERRUPTION, {"kind": "rebalance"}])
    assert len(receiver._arrived) == 2
    kinds = {notice.kind for notice in await told(receiver, 2)}
    assert kinds == {NoticeKind.INTERRUPTION, NoticeKind.REBALANCE}
    await sender.tell(A, notices=[INTERRUPTION, {"kind": "rebalance"}])
    assert silent(receiver)


async def test_a_new_reader_is_told_again_what_was_not_acknowledged(sender, receiver):
    await sender.tell(A, notices=[INTERRUPTION])
    (first,) = await told(receiver, 1, acknowledge=False)
    (again,) = await told(receiver, 1)
    assert again == first
    assert silent(receiver)


async def test_maintenance_that_is_called_off_cancels_its_notice(sender, receiver):
    event = {"kind": "maintenance", "deadline": START + 9000.0, "event": "instance-event-1", "what": "x"}
    await sender.tell(A, notices=[event])
    await sender.tell(A, notices=[event | {"cancelled": True}])
    first, last = await told(receiver, 2)
    assert (first.id, first.cancelled) == (last.id, not last.cancelled)


@pytest.mark.parametrize("days", [0.9, 1.1, 30.0])
async def test_maintenance_that_is_overdue_and_still_open_is_kept_with_its_time(sender, receiver, days):
    due = START - days * 86_400.0
    await sender.tell(A, notices=[{"kind": "maintenance", "deadline": due, "event": "instance-event-1"}])
    (notice,) = await told(receiver, 1)
    assert (notice.kind, notice.node, notice.deadline) == (NoticeKind.MAINTENANCE, A, due)
    assert not notice.cancelled


@pytest.mark.parametrize("kind", ["interruption", "maintenance"])
@pytest.mark.parametrize("deadline", [None, "soon", math.inf, -5.0, START + 1e9, True])
async def test_a_notice_without_a_usable_time_comes_two_minutes_after_it_was_first_heard_of(
    sender, receiver, clock, deadline, kind
):
    said = {"kind": kind, "deadline": deadline}
    odd = json.dumps(sender.report(A, notices=[said])).encode()
    if deadline == math.inf:
        odd = odd.replace(b"Infinity", b"1e999")
    status, _ = await sender.post(A, odd)
    assert status in (204, 400)
    if status == 400:  # no JSON
        return
    clock.time += 30.0
    await sender.tell(A, notices=[said | {"deadline": None}])
    (notice,) = await told(receiver, 1)
    assert (str(notice.kind), notice.deadline) == (kind, START + 120.0)
    assert silent(receiver)


async def test_a_report_shows_the_gpus_and_the_errors(sender, receiver, clock):
    gpu = {"index": 0.0, "uuid": "GPU-1", "name": "NVIDIA L40S", "utilisation_percent": 37.0}
    gpu |= {"memory_used_mib": 40960.0, "memory_total_mib": 46068.0, "temperature_c": None}
    await sender.tell(
        A,
        life_cycle="spot",
        gpus=[gpu, 7, {}],
        xids=[{"pci": "0000:00:1e", "code": 79, "text": "fell off"}, {"code": "79"}],
        gpu_error="odd\nline",
    )
    report = receiver.reports()[A]
    assert (report.life_cycle, report.heard_at, report.gpu_error) == ("spot", START, "oddline")
    assert (report.gpus[0].index, report.gpus[0].utilisation_percent) == (0, 37.0)
    assert report.gpus[0].temperature_c is None
    assert [(xid.pci, xid.code) for xid in report.xids] == [("0000:00:1e", 79)]
    clock.time += 7.0
    assert receiver.ages() == {A: 7.0}


async def test_nodes_that_are_gone_and_silent_are_forgotten(sender, receiver, clock):
    await sender.tell(A)
    await sender.tell(B)
    receiver.keep([A])
    assert set(receiver.reports()) == {A, B}
    clock.time += SILENT + 1.0
    receiver.keep([A])
    assert set(receiver.reports()) == {A}


def test_a_short_secret_is_refused():
    with pytest.raises(ValueError, match="16 random bytes"):
        AgentReceiver(HandClock(), secret=b"short")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "deadline", "event", "node", "cancelled", "code", "index"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
kinds = st.fixed_dictionaries({"kind": st.sampled_from(["interruption", "rebalance", "maintenance"])})
notices = st.lists(values | st.builds(lambda a, b: {**a, **b} if isinstance(b, dict) else a, kinds, values))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["notices", "gpus", "xids", "life_cycle", "gpu_error", "schema", "session"]),
    values,
    notices,
)
async def test_a_signed_report_of_anything_speaks_for_its_sender_only(key, value, listed):
    clock = HandClock()
    receiver = AgentReceiver(clock, secret=SECRET)
    report = {"schema": SCHEMA, "node": A, "at": START, "session": receiver._session, "sequence": 1}
    body = json.dumps({**report, "notices": listed, key: value}).encode()
    with contextlib.suppress(_Refused):
        receiver._check_signature(A, signature(node_key(SECRET, A), A, body), body)
        receiver._take(A, body)
    assert set(receiver.reports()) <= {A}
    for notice in receiver._held.values():
        assert notice.node == A
        assert notice.confidence is Confidence.REPORTED
        assert notice.deadline is None or START - 86_400.0 <= notice.deadline <= START + 60 * 86_400.0
        assert len(notice.id) < 200


@given(st.binary(max_size=200), st.text(max_size=80), st.text(max_size=70))
def test_nobody_without_the_key_gets_past_the_signature(body, given_mac, node):
    receiver = AgentReceiver(HandClock(), secret=SECRET)
    with pytest.raises(_Refused, match="not signed with this node's key"):
        receiver._check_signature(node, given_mac, body)


# -- how a node started --------------------------------------------------------------------------------------

BOOT = {
    "schema": 1,
    "stage": "failed",
    "ok": False,
    "detail": "driver: nvidia-smi was not found",
    "checks": [
        {"name": "driver", "ok": False, "text": "nvidia-smi was not found"},
        {"name": "disk", "ok": True, "text": "120 GiB free"},
    ],
    "at": START - 3,
    "restarts": 2,
}


async def test_how_far_a_start_came_is_kept(sender, receiver):
    assert (await sender.tell(A))[0] == 204
    assert receiver.report(A).boot is None
    assert (await sender.tell(A, boot=BOOT))[0] == 204
    assert receiver.report(A).boot == BootReport(
        stage="failed",
        ok=False,
        detail="driver: nvidia-smi was not found",
        checks=(
            BootCheck(name="driver", ok=False, text="nvidia-smi was not found"),
            BootCheck(name="disk", ok=True, text="120 GiB free"),
        ),
        at=START - 3,
        restarts=2,
    )
    assert (await sender.tell(A, boot=None))[0] == 204
    assert receiver.report(A).boot is None


def test_a_stage_or_a_schema_of_another_version_is_not_believed():
    assert _boot({**BOOT, "schema": 2}) is None
    assert _boot({**BOOT, "stage": "dancing"}).stage == ""
    assert _boot({**BOOT, "ok": "yes", "restarts": True, "at": "now"}) == _boot(
        {**BOOT, "ok": False, "restarts": -1, "at": math.nan}
    )


def test_a_long_boot_report_is_cut():
    check = {"name": "n" * 1000, "ok": True, "text": "\x1b[31m" + "t" * 10_000}
    found = _boot({**BOOT, "detail": "d" * 10_000, "checks": [check] * 1000, "restarts": 10**30})
    assert len(found.checks) == MOST_CHECKS
    assert max(len(found.detail), *(len(c.name) + len(c.text) for c in found.checks)) <= 532
    assert found.checks[0].text.startswith("[31mt")
    assert found.restarts == 1_000_000


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(sorted(BOOT)) | st.text(), inner),
    )
)
def test_any_boot_report_can_be_read(found):
    boot = _boot(found)
    assert boot is None or (boot.detail.isprintable() and boot.at == boot.at and boot.restarts >= 0)


async def test_what_a_report_says_of_gpus_is_taken_up_by_name(sender, receiver):
    """An agent of an older version tells less; what is no number counts as not told."""
    old = {"index": 0, "uuid": "GPU-1", "name": "L4", "utilisation_percent": 37, "ecc_uncorrected": 0}
    new = {
        **old,
        "index": 1.0,
        "power_w": 212.5,
        "throttle_reasons": 64.0,
        "remap_failed": 1.0,
        "state": "lost",
    }
    odd = {"index": "x", "power_w": "212", "throttle_reasons": True, "state": 7, "temperature_c": 1e400}
    xids = [{"pci": "0000:1b:00", "code": 48, "text": "DBE"}]
    xids += [{**xids[0], "code": 45, "count": count} for count in (200, -1, "7", True, 10**9)]
    assert (await sender.tell(A, gpus=[old, new, odd, 7], xids=xids))[0] == 400
    assert (await sender.tell(A, gpus=[old, new, {**odd, "temperature_c": None}, 7], xids=xids))[0] == 204
    looked = receiver.gpus(A)
    assert (looked.node, looked.source, looked.at) == (A, "agent", START)
    first, second, third = looked.gpus
    assert (first.utilisation_percent, first.ecc_uncorrected, first.power_w, first.state) == (
        37.0,
        0.0,
        None,
        "",
    )
    assert (second.index, second.power_w, second.throttle_reasons) == (1, 212.5, 64.0)
    assert (second.remap_failed, second.state) == (1.0, "lost")
    assert (third.index, third.power_w, third.throttle_reasons, third.state) == (-1, None, None, "")
    assert [x.code for x in looked.xids] == [48, 45, 45, 45, 45, 45]
    assert [x.count for x in looked.xids] == [1, 200, 1, 1, 1, 1_000_000]
    assert receiver.gpus(B) is None
