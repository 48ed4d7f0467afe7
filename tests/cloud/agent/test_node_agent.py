"""The agent's parts: what it makes of metadata, GPUs and the kernel log, and that garbage stops none."""

import json
import os
import subprocess
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_bench import AGENT

import cloud.node_agent as agent
from cloud.node_agent import KernelLog
from cloud.node_gpus import MOST_XIDS
from cloud.node_metadata import Metadata, Refused
from cloud.node_notices import read_ec2

NOW = 1_800_000_000.0
ACTION = "meta-data/spot/instance-action"
ENDS = "meta-data/spot/termination-time"
REBALANCE = "meta-data/events/recommendations/rebalance"
SCHEDULED = "meta-data/events/maintenance/scheduled"
SOURCE = Path(agent.__file__)


def test_help_shows_examples_and_a_missing_address_says_what_to_do():
    shown = subprocess.run([*AGENT, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert "--url http://10.0.0.5:9465" in shown.stdout
    assert "--once" in shown.stdout
    refused = subprocess.run(AGENT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "or use --once" in refused.stderr


# -- notices -----------------------------------------------------------------------------------------------


def notices(**documents):
    names = {"action": ACTION, "ends": ENDS, "rebalance": REBALANCE, "scheduled": SCHEDULED}
    return read_ec2({names[key]: text for key, text in documents.items()}.get, NOW)


def test_metadata_without_news_is_no_notice():
    assert notices() == []
    assert notices(scheduled="[]") == []


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_an_instance_action_is_an_interruption_at_its_time(action):
    (notice,) = notices(
        action=json.dumps({"action": action, "time": "2017-09-18T08:22:00Z"}), ends="2017-09-18T08:22:00Z"
    )
    assert (notice["kind"], notice["what"]) == ("interruption", action)
    assert notice["deadline"] == 1505722920.0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2027-01-15T08:02:00Z", 1),
        ("2015-01-05T18:02:00Z", 0),  # EC2 failed to end it, or it was called off
        ("not a time", 0),
        ("", 0),
    ],
)
def test_the_older_document_counts_only_with_a_time_that_is_not_long_past(text, count):
    assert len(notices(ends=text)) == count


def test_an_instance_action_that_is_garbage_leaves_the_older_document():
    (notice,) = notices(action="\xff{", ends="2027-01-15T08:02:00Z")
    assert notice["kind"] == "interruption"


def test_an_instance_action_without_a_time_is_an_interruption_all_the_same():
    (notice,) = notices(action='{"action": "terminate"}')
    assert (notice["kind"], notice["deadline"]) == ("interruption", None)


def test_rebalance_and_maintenance_come_after_the_interruption():
    event = {
        "NotBefore": "21 Jan 2019 09:00:43 GMT",
        "Code": "system-reboot",
        "Description": "scheduled reboot",
        "EventId": "instance-event-0d59937288b749b32",
        "NotAfter": "21 Jan 2019 09:17:23 GMT",
        "State": "active",
    }
    found = notices(
        action='{"action": "terminate", "time": "2027-01-15T08:02:00Z"}',
        rebalance='{"noticeTime": "2020-10-27T08:22:00Z"}',
        scheduled=json.dumps([event, event | {"State": "canceled"}, {"NotBefore": "odd"}, 7]),
    )
    kinds = ["interruption", "rebalance", "maintenance", "maintenance", "maintenance"]
    assert [notice["kind"] for notice in found] == kinds
    assert [notice["cancelled"] for notice in found] == [False, False, False, True, False]
    assert found[2]["deadline"] == 1548061243.0
    assert found[2]["event"] == "instance-event-0d59937288b749b32"


@pytest.mark.parametrize("starts", [None, "odd", "", 1548061243, [], "2019-13-41"])
@pytest.mark.parametrize(
    ("state", "over"),
    [
        ("active", False),
        ("Active", False),
        ("odd", False),
        (7, False),
        ("canceled", True),
        ("COMPLETED", True),
    ],
)
def test_a_scheduled_event_is_told_of_whatever_its_time_and_state_hold(starts, state, over):
    """One that is over is reported too, since an earlier notice of it may have been believed."""
    event = {
        "NotBefore": starts,
        "Code": "instance-retirement",
        "EventId": "instance-event-1",
        "State": state,
    }
    (notice,) = notices(scheduled=json.dumps([event]))
    assert (notice["kind"], notice["deadline"], notice["event"]) == ("maintenance", None, "instance-event-1")
    assert notice["cancelled"] is over


def test_a_scheduled_event_that_is_overdue_keeps_its_time():
    (notice,) = notices(scheduled=json.dumps([{"NotBefore": "21 Jan 2019 09:00:43 GMT", "State": "active"}]))
    assert (notice["deadline"], notice["cancelled"]) == (1548061243.0, False)


odd = st.sampled_from(["", "[]", "{}", "[{}]", "null", "7", '{"time": []}', '[{"NotBefore": 1}]', "[" * 9999])


@given(st.tuples(*[st.none() | odd | st.text(max_size=60)] * 4))
def test_any_metadata_can_be_read(texts):
    documents = dict(zip((ACTION, ENDS, REBALANCE, SCHEDULED), texts, strict=True))
    json.dumps(read_ec2(documents.get, NOW))


# -- the metadata service ----------------------------------------------------------------------------------


def test_one_token_serves_many_documents(machine):
    node = machine()
    metadata = Metadata(node.url, timeout=10.0)
    assert metadata.get("meta-data/instance-id") == node.id
    assert metadata.get(ACTION) is None
    assert metadata.get("meta-data/instance-life-cycle") == "spot"
    assert node.order("calls")["token"] == 1


def test_a_token_that_is_refused_is_renewed_once(machine):
    node = machine()
    metadata = Metadata(node.url, timeout=10.0)
    metadata.get(ACTION)
    node.order("expire")
    assert metadata.get("meta-data/instance-id") == node.id
    assert node.order("calls")["token"] == 2
    node.order("fault", path="meta-data", kind="401", times=2)
    with pytest.raises(Refused, match="a fresh token is refused"):
        metadata.get("meta-data/instance-id")
    assert metadata.get("meta-data/instance-id") == node.id


def test_metadata_that_is_switched_off_says_so(machine):
    node = machine(enabled=False)
    with pytest.raises(Refused, match="switched off"):
        Metadata(node.url, timeout=10.0).get(ACTION)


@pytest.mark.parametrize("kind", ["huge", "garbage", "noise", "redirect", "close", "503"])
@pytest.mark.parametrize("path", ["token", "meta-data"])
def test_metadata_that_misbehaves_is_refused_and_works_again_afterwards(machine, kind, path):
    node = machine()
    metadata = Metadata(node.url, timeout=10.0)
    node.order("fault", path=path, kind=kind)
    if (path, kind) == ("meta-data", "garbage"):
        assert "not what it should be" in metadata.get(ACTION)
    else:
        with pytest.raises(Refused):
            metadata.get(ACTION)
    assert metadata.get("meta-data/instance-id") == node.id


@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_metadata_that_never_finishes_is_cut_off(machine, kind):
    node = machine()
    node.order("fault", path="meta-data", kind=kind)
    with pytest.raises(Refused):
        Metadata(node.url, timeout=0.5).get(ACTION)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.0.0.1:odd", "nonsense", "", "http://[::1"])
def test_an_address_where_nothing_answers_is_refused(url):
    with pytest.raises((Refused, ValueError)):
        Metadata(url, timeout=0.5).get(ACTION)


# -- the kernel log ----------------------------------------------------------------------------------------

XID = "4,1234,99999,-;NVRM: Xid (PCI:0000:00:1e): 79, pid='<unknown>', GPU has fallen off the bus.\n"


def codes(log):
    return [xid["code"] for xid in log.xids.listed()]


def test_xids_are_found_as_they_are_written(tmp_path):
    path = tmp_path / "kmsg"
    path.write_text("6,1,2,-;eth0: link up\n" + XID)
    log = KernelLog(str(path))
    log.read()
    log.read()
    (xid,) = log.xids.listed()
    assert (xid["pci"], xid["code"], xid["count"]) == ("0000:00:1e", 79, 1)
    assert "fallen off the bus" in xid["text"]
    with path.open("a") as file:
        file.write("NVRM: Xid (PCI:0000:00:1e): 4")
    log.read()
    assert codes(log) == [79]
    with path.open("a") as file:
        file.write("8\nNVRM: Xid (no address): 1\nNVRM: Xid (0000:03:00): 31, Ch 1\n")
    log.read()
    assert codes(log) == [79, 48, 31]


@pytest.mark.parametrize(
    "where", ["PCI:0000:1b:00", "PCI:0000:1b:00.0", "0000:1b:00", "PCI:0000:1b:00 GPU-I:05"]
)
def test_an_error_is_found_wherever_the_driver_says_that_it_was(tmp_path, where):
    """With or without a word before the address, and for a part of a GPU (MIG)."""
    path = tmp_path / "kmsg"
    path.write_text(f"4,1,2,-;NVRM: Xid ({where}): 94, pid=7194, Contained: CE User Channel (0x9). RST: No\n")
    log = KernelLog(str(path))
    log.read()
    (xid,) = log.xids.listed()
    assert (xid["pci"].removesuffix(".0"), xid["code"]) == ("0000:1b:00", 94)
    assert xid["text"] == "pid=7194, Contained: CE User Channel (0x9). RST: No"


def test_an_error_is_not_pushed_out_by_hundreds_that_follow_it(tmp_path):
    """A double-bit error ends every channel of the GPU, and each of them is told of."""
    path = tmp_path / "kmsg"
    last = "4,1,2,-;NVRM: Xid (PCI:0000:1b:00): 45, pid=1, Ch 000000{:02x}\n"
    path.write_text(XID + "".join(last.format(n) for n in range(200)))
    log = KernelLog(str(path))
    log.read()
    assert [(x["code"], x["count"]) for x in log.xids.listed()] == [(79, 1), (45, 200)]
    assert log.xids.listed()[1]["text"].endswith("Ch 000000c7")
    with path.open("a") as file:
        file.write(XID)
    log.read()
    assert [(x["code"], x["count"]) for x in log.xids.listed()] == [(45, 200), (79, 2)]


def test_a_log_that_cannot_be_read_is_said_and_read_when_it_can(tmp_path):
    log = KernelLog(str(tmp_path / "kmsg"))
    log.read()
    assert "No such file" in log.error
    (tmp_path / "kmsg").write_text(XID)
    log.read()
    assert (codes(log), log.error) == ([79], "")


def test_a_log_full_of_garbage_is_bounded(tmp_path):
    path = tmp_path / "kmsg"
    many = "".join(XID.replace("00:1e", f"{n:02x}:00") for n in range(200))
    path.write_bytes(os.urandom(50_000) + b"\n" + many.encode() + b"x" * 50_000)
    log = KernelLog(str(path))
    log.read()
    assert len(log.xids.listed()) == MOST_XIDS
    assert log.xids.listed()[-1]["pci"] == "0000:c7:00", "the newest stay"
    assert len(log._rest) <= 8192


# -- how the start of the engine went ---------------------------------------------------------------------

BOOT = {
    "schema": 1,
    "stage": "weights",
    "ok": True,
    "detail": "12.3 of 140.0 GB",
    "checks": [{"name": "driver", "ok": True, "text": "4 GPUs"}],
    "at": 1_800_000_000.5,
    "restarts": 1,
    "first": 1_800_000_000.0,
    "times": {"checks": 1_800_000_000.0, "weights": 1_800_000_000.5},
}


def test_the_boot_report_is_passed_on(tmp_path):
    file = tmp_path / "boot.json"
    assert agent.read_boot(str(file)) is None
    file.write_text(json.dumps(BOOT))
    assert agent.read_boot(str(file)) == BOOT


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema": 2}', "[" * 60_000, "\x00" * 99_999])
def test_a_boot_report_that_is_none_is_left_out(tmp_path, text):
    file = tmp_path / "boot.json"
    file.write_text(text)
    assert agent.read_boot(str(file)) is None


def test_a_boot_report_that_is_a_pipe_or_a_directory_holds_nothing_up(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert agent.read_boot(str(tmp_path / "pipe")) is None
    assert agent.read_boot(str(tmp_path)) is None


@given(
    st.fixed_dictionaries(
        {"schema": st.just(1)},
        optional={
            key: st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                lambda inner: (
                    st.lists(inner) | st.dictionaries(st.sampled_from(("name", "text", "ok")), inner)
                ),
            )
            for key in ("stage", "ok", "detail", "checks", "at", "restarts", "first", "times")
        },
    )
)
def test_whatever_is_in_a_boot_report_the_control_host_can_read_the_whole(tmp_path_factory, found):
    file = tmp_path_factory.mktemp("boot") / "boot.json"
    file.write_text(json.dumps(found))
    boot = agent.read_boot(str(file))
    body = json.dumps({"boot": boot}, allow_nan=False).encode()
    assert orjson.loads(body)["boot"] == boot
    assert len(body) < 16 * 1024


def test_the_longest_boot_report_leaves_room_for_the_rest(tmp_path):
    file, check = tmp_path / "boot.json", {"name": "\u00fc\\" * 20, "ok": False, "text": '"' * 600}
    file.write_text(json.dumps({**BOOT, "detail": '"' * 600, "checks": [check] * 20}))
    read = agent.read_boot(str(file))
    assert len(json.dumps(read)) < 20_000
    assert (len(read["detail"]), {len(each["text"]) for each in read["checks"]}) == (500, {500})
    assert len(read["checks"]) == agent.MOST_CHECKS
    assert {each["name"] for each in read["checks"]} == {"\\" * 16}
