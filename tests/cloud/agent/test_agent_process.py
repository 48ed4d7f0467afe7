"""The agent as a process, between a metadata service and a receiver that both misbehave."""

import asyncio
import ctypes
import json
import os
import platform
import signal
import ssl
import subprocess
import time
from contextlib import aclosing

import pytest
import structlog
from node_bench import AGENT, make_certificate

from cloud.node_agent import node_key
from policies.model import Confidence, NoticeKind

pytestmark = pytest.mark.slow

PATIENCE = 60.0
SECRET = b"the secret of a pool, in a test"
XID = "4,1,2,-;NVRM: Xid (PCI:0000:00:1e): 79, pid='<unknown>', GPU has fallen off the bus.\n"


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


async def told(receiver, count):
    found = []
    async with asyncio.timeout(PATIENCE), aclosing(receiver.stream()) as stream:
        async for notice in stream:
            found.append(notice)
            await receiver.acknowledge(notice)
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


def heard(receiver, node):
    return receiver.reports().get(node.id)


def test_once_prints_what_it_sees(machine):
    node = machine(market="on-demand")
    node.order("interrupt", after=120)
    node.log.write_text(XID)
    done = subprocess.run(
        [*AGENT, "--once", *node.options()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["node"], seen["life_cycle"]) == (node.id, "on-demand")
    assert [notice["kind"] for notice in seen["notices"]] == ["interruption"]
    assert seen["gpus"][0]["memory_used_mib"] == 40960.0
    assert seen["xids"][0]["code"] == 79
    assert (seen["metadata_error"], seen["gpu_error"], seen["xid_error"]) == ("", "", "")


async def test_it_reports_for_as_long_as_it_lives_and_a_notice_arrives(machine, serve, until):
    served, node = await serve(), machine()
    process = node.start("--url", served.url)
    await until(lambda: served.receiver.accepted >= 3)
    report = heard(served.receiver, node)
    assert report.life_cycle == "spot"
    await until(lambda: heard(served.receiver, node).gpus)
    assert heard(served.receiver, node).gpus[0].name == "NVIDIA L40S"
    node.order("interrupt", after=120)
    node.order("recommend")
    found = await told(served.receiver, 2)
    assert {notice.node for notice in found} == {node.id}
    assert {notice.kind for notice in found} == {NoticeKind.INTERRUPTION, NoticeKind.REBALANCE}
    assert all(notice.confidence is Confidence.REPORTED for notice in found)
    with node.log.open("a") as log:
        log.write(XID)
    await until(lambda: [xid.code for xid in heard(served.receiver, node).xids] == [79])
    assert set(served.receiver.refused) == {"session"}
    process.terminate()
    assert await asyncio.to_thread(process.wait, PATIENCE) == 0


async def test_how_far_the_engine_came_is_told_and_what_is_odd_in_it_loses_no_report(machine, serve, until):
    served, node = await serve(), machine()
    node.start("--url", served.url)
    await until(lambda: served.receiver.accepted >= 1)
    assert heard(served.receiver, node).boot is None
    boot = {"schema": 1, "stage": "weights", "ok": True, "detail": "1 of 2 GB", "checks": [], "at": 5}
    node.boot.write_text(json.dumps(boot))
    await until(lambda: (told := heard(served.receiver, node).boot) and told.detail == "1 of 2 GB")
    text = '{"schema": 1, "stage": "failed", "detail": "\\ud800 it broke", "at": NaN, "restarts": 1e999}'
    node.boot.write_text(text)  # the control host would take none of these
    await until(lambda: heard(served.receiver, node).boot.stage == "failed")
    assert heard(served.receiver, node).boot.detail == " it broke"
    node.boot.unlink()  # between two starts there may be none
    before = served.receiver.accepted
    await until(lambda: served.receiver.accepted >= before + 3)
    assert heard(served.receiver, node).boot.stage == "failed"
    assert set(served.receiver.refused) == {"session"}


async def test_it_goes_on_with_a_control_host_that_restarts_or_comes_later(machine, serve, until):
    first, node = await serve(), machine()
    node.start("--url", first.url)
    await until(lambda: first.receiver.accepted >= 1)
    await first.close()
    await until(lambda: "push: Refused" in node.said())
    second = await serve(port=first.port)
    node.order("interrupt")
    (notice,) = await told(second.receiver, 1)
    assert notice.node == node.id


async def test_an_agent_that_restarts_goes_on_in_the_same_session(machine, serve, until):
    served, node = await serve(), machine()
    node.start("--url", served.url).kill()
    for expected in (2, 4):
        process = node.start("--url", served.url)
        await until(lambda expected=expected: served.receiver.accepted >= expected)
        process.kill()
        process.wait()
    assert served.receiver.refused["replayed"] == 0


async def test_a_key_that_is_missing_wrong_or_changed_is_taken_up_when_it_is_right(machine, serve, until):
    served, node = await serve(), machine()
    node.key.unlink()
    node.start("--url", served.url)
    await until(lambda: "push: FileNotFoundError" in node.said())
    node.key.write_text("no hex")
    await until(lambda: "push: ValueError" in node.said())
    node.key.write_text(node_key(b"the secret of another pool", node.id).hex())
    await until(lambda: served.receiver.refused["signature"] >= 1)
    assert served.receiver.accepted == 0
    node.key.write_text(node_key(SECRET, node.id).hex())
    await until(lambda: served.receiver.accepted >= 1)


async def test_metadata_that_fails_is_reported_and_what_was_seen_before_holds(machine, serve, until):
    served, node = await serve(), machine()
    node.order("interrupt")
    node.start("--url", served.url)
    await told(served.receiver, 1)
    node.order("set", enabled=False)
    await until(lambda: "switched off" in heard(served.receiver, node).metadata_error)
    node.order("set", enabled=True)
    await until(lambda: heard(served.receiver, node).metadata_error == "")
    for kind in ("garbage", "noise", "close", "huge", "503", "401"):
        node.order("fault", path="", kind=kind, times=3)
    node.order("recommend")
    (notice,) = await told(served.receiver, 1)
    assert notice.kind is NoticeKind.REBALANCE


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that signs itself, and a server's context with it."""
    file, key = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file, key)
    return file, context


async def test_it_reports_over_tls_to_a_host_that_it_trusts_and_to_no_other(
    machine, serve, until, certificate
):
    file, context = certificate
    served, trusting, wary = await serve(tls=context), machine(), machine()
    wary.start("--url", served.url)
    trusting.start("--url", served.url, "--ca-file", str(file))
    await until(lambda: "CERTIFICATE_VERIFY_FAILED" in wary.said())
    await until(lambda: served.receiver.accepted >= 2)
    assert set(served.receiver.reports()) == {trusting.id}


async def test_gpus_that_hang_hold_up_no_notice(machine, serve, until):
    served, node = await serve(), machine()
    node.show_gpus("exec sleep 600")
    node.start("--url", served.url)
    await until(lambda: served.receiver.accepted >= 1)
    node.order("interrupt")
    (notice,) = await told(served.receiver, 1)
    assert notice.kind is NoticeKind.INTERRUPTION


async def test_a_control_host_of_garbage_does_not_stop_it(machine, serve, until, imds):
    served, node = await serve(), machine()
    # Something else answers at the control host's address: here, the metadata of another node.
    odd = machine()
    odd.order("fault", path="", kind="noise", times=1)
    process = node.start("--url", odd.url)
    await until(lambda: "push: Refused" in node.said())
    assert process.poll() is None
    assert served.receiver.accepted == 0


async def test_nodes_are_kept_apart(machine, serve, until):
    served, nodes = await serve(), [machine() for _ in range(3)]
    for node in nodes:
        node.start("--url", served.url)
    nodes[1].order("interrupt")
    (notice,) = await told(served.receiver, 1)
    assert notice.node == nodes[1].id
    await until(lambda: set(served.receiver.ages()) == {node.id for node in nodes})
    # The key of one node is of no use at another's address.
    nodes[2].key.write_text(nodes[0].key.read_text())
    await until(lambda: served.receiver.refused["signature"] >= 1)
    assert not served.receiver._held


# -- other clouds, and the end of the machine ----------------------------------------------------------------


@pytest.mark.parametrize(("cloud", "seconds"), [("gcp", 120.0), ("azure", 25.0)])
async def test_a_preemption_on_any_cloud_arrives_with_its_deadline(machine, serve, cloud, seconds):
    served = await serve()
    node = machine(cloud=cloud, **({"notice": 120} if cloud == "gcp" else {}))
    node.start("--url", served.url)
    asked = time.time()
    node.order("preempt", after=25.0)
    (notice,) = await told(served.receiver, 1)
    assert (notice.node, notice.kind) == (node.id, NoticeKind.INTERRUPTION)
    assert notice.confidence is Confidence.REPORTED
    assert asked + seconds - 1.0 <= notice.deadline <= time.time() + seconds


async def test_a_machine_that_systemd_stops_says_so_on_any_cloud(machine, serve, until):
    served, node = await serve(), machine()
    processes = [node.start("--cloud", "none", "--node-id", node.id, "--url", served.url)]
    await until(lambda: served.receiver.report(node.id) is not None)
    asked = time.time()
    node.stop_system()
    (notice,) = await told(served.receiver, 1)
    assert (notice.node, notice.kind) == (node.id, NoticeKind.INTERRUPTION)
    assert asked + 20.0 <= notice.deadline <= time.time() + 20.0
    assert [await asyncio.to_thread(p.wait, PATIENCE) for p in processes] == [0]


async def test_the_last_word_is_not_late_when_another_thread_gets_the_signal(machine, serve, until):
    served, node = await serve(), machine()
    process = node.start("--url", served.url, "--heartbeat", "600")
    await until(lambda: served.receiver.report(node.id) is not None)
    other = max(map(int, os.listdir(f"/proc/{process.pid}/task")))
    assert other != process.pid
    node.stop_system(signals=False)
    tgkill = {"x86_64": 234, "aarch64": 131}[platform.machine()]
    assert ctypes.CDLL(None).syscall(tgkill, process.pid, other, signal.SIGTERM) == 0
    (notice,) = await told(served.receiver, 1)
    assert notice.kind is NoticeKind.INTERRUPTION


async def test_an_agent_that_is_stopped_alone_says_nothing(machine, serve, until):
    served, node = await serve(), machine()
    process = node.start("--url", served.url)
    await until(lambda: served.receiver.report(node.id) is not None)
    process.terminate()
    assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    assert served.receiver.age() == 0.0


async def test_the_last_word_does_not_take_the_place_of_what_the_cloud_said(machine, serve, until):
    served, node = await serve(), machine()
    node.start("--url", served.url)
    node.order("interrupt", after=100.0)
    (first,) = await told(served.receiver, 1)
    node.stop_system()
    (last,) = await told(served.receiver, 1)
    assert last.id != first.id
    assert last.deadline < first.deadline - 60.0


def test_an_agent_without_metadata_needs_the_nodes_id():
    refused = subprocess.run(
        [*AGENT, "--cloud", "none", "--once"], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert "--node-id" in refused.stderr
