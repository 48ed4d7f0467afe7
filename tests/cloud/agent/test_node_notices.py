"""What the agent's readers make of each cloud's metadata: which node it is, and each notice with the deadline
that this cloud really gives."""

import json
import os
import subprocess
import sys
import threading
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud import node_notices
from cloud.agent_keys import agent_program
from cloud.cloud_init.user_data import NodeSetup, written
from cloud.node_metadata import Refused
from cloud.node_notices import AZURE_KEPT, GCE_SECONDS, MOST_NOTICES, Azure, Gce, is_stopping, reader_of
from cloud.ports import EngineCommand

NOW = 1_800_000_000.0


def made(machine, cloud, **values):
    """A machine on a cloud, and its reader."""
    node = machine(cloud=cloud, **values)
    return node, reader_of(cloud, node.url)


# -- whose metadata ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
@pytest.mark.parametrize("market", ["spot", "on-demand"])
def test_each_clouds_metadata_are_recognised_and_say_which_node_it_is(machine, cloud, market):
    node = machine(cloud=cloud, market=market)
    reader = reader_of("auto", node.url)
    assert (reader.cloud, reader.identity()) == (cloud, (node.id, market))


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_metadata_of_another_cloud_are_refused(machine, cloud):
    node = machine(cloud=cloud)
    for other in {"aws", "gcp", "azure"} - {cloud}:
        with pytest.raises(Refused):
            reader_of(other, node.url)


def test_where_no_metadata_answer_each_cloud_says_why():
    with pytest.raises(Refused) as refused:
        reader_of("auto", "http://127.0.0.1:9")
    assert str(refused.value).count("http://127.0.0.1:9/") == 3


# -- Compute Engine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notice", "seconds"), [(None, 30.0), (120, 120.0), (0, 30.0), ("soon", 30.0), ("1e9", 30.0)]
)
def test_a_preemption_comes_after_what_was_asked_for(machine, monkeypatch, notice, seconds):
    node, reader = made(machine, "gcp", notice=notice)
    reader.identity()
    assert reader.changed() == []
    node.order("preempt")
    monkeypatch.setattr(node_notices.time, "time", lambda: NOW)
    (told,) = reader.changed()
    assert (told["kind"], told["deadline"], told["event"]) == ("interruption", NOW + seconds, "preempted")
    monkeypatch.setattr(node_notices.time, "time", lambda: NOW + 10.0)
    assert reader.changed() == [told]  # it keeps its deadline


def test_a_preemption_ends_the_wait_for_it(machine):
    node, reader = made(machine, "gcp")
    assert reader.changed() == []  # the first answer comes at once
    found = []
    waiting = threading.Thread(target=lambda: found.extend(reader.changed()))
    waiting.start()
    node.order("preempt")
    waiting.join(30.0)
    assert [n["kind"] for n in found] == ["interruption"]
    assert node.order("calls")["instance/preempted"] == 2


def test_a_preemption_between_two_waits_is_not_missed(machine):
    node, reader = made(machine, "gcp")
    assert reader.changed() == []
    node.order("preempt")
    assert len(reader.changed()) == 1


def test_a_wait_that_is_answered_503_is_refused_and_works_again(machine):
    node, reader = made(machine, "gcp")
    node.order("fault", path="instance/preempted", kind="503", times=2)
    for _ in range(2):
        with pytest.raises(Refused, match="503"):
            reader.changed()
    node.order("preempt")
    assert len(reader.changed()) == 1


def test_an_answer_that_is_not_of_compute_engine_is_no_preemption(machine):
    node = machine(cloud="azure")
    with pytest.raises(Refused):
        Gce(node.url).changed()


def test_host_maintenance_that_ends_the_machine_is_told_and_a_migration_is_not(machine):
    node, reader = made(machine, "gcp", market="on-demand")
    assert reader.notices(NOW) == []
    node.order("put", path="instance/maintenance-event", text="MIGRATE_ON_HOST_MAINTENANCE")
    assert reader.notices(NOW) == []
    node.order("put", path="instance/maintenance-event", text="TERMINATE_ON_HOST_MAINTENANCE")
    (told,) = reader.notices(NOW)
    assert (told["kind"], told["deadline"]) == ("maintenance", NOW + 60.0)
    assert reader.notices(NOW + 5.0) == [told]
    node.order("put", path="instance/maintenance-event", text="NONE")
    assert reader.notices(NOW + 9.0) == []
    assert GCE_SECONDS == 30.0


# -- Azure -------------------------------------------------------------------------------------------------


class Played(Azure):
    """Azure's reader on documents that the test gives."""

    def __init__(self, *events, name="vm-1"):
        super().__init__("http://127.0.0.1:9")
        self._name = name
        self.document = json.dumps({"DocumentIncarnation": 1, "Events": list(events)})

    def _get(self, path, timeout):
        return self.document

    def show(self, *events):
        self.document = json.dumps({"DocumentIncarnation": 2, "Events": list(events)})


def event(kind="Preempt", *, after=None, machines=("vm-1",), identity="E-1", **more):
    starts = "" if after is None else formatdate(NOW + after, usegmt=True)
    return {
        "EventId": identity,
        "EventType": kind,
        "Resources": list(machines),
        "EventStatus": "Started" if after is None else "Scheduled",
        "NotBefore": starts,
        **more,
    }


def test_a_preemption_has_the_time_that_azure_gives():
    (told,) = Played(event(after=9.0)).notices(NOW)
    assert (told["kind"], told["deadline"], told["what"]) == ("interruption", NOW + 9.0, "Preempt")
    assert (told["event"], told["cancelled"]) == ("E-1", False)


def test_an_event_that_has_started_is_now_and_stays_so():
    reader = Played(event(after=9.0))
    reader.notices(NOW)
    reader.show(event())
    assert [n["deadline"] for n in reader.notices(NOW + 3.0)] == [NOW + 3.0]
    assert [n["deadline"] for n in reader.notices(NOW + 6.0)] == [NOW + 3.0]


def test_events_of_other_machines_and_pauses_are_none_of_ours():
    others = event(machines=("vm-2", "vm-10"))
    assert Played(others, event("Freeze", after=60.0, identity="E-2")).notices(NOW) == []
    assert len(Played(event(machines=("vm-2", "VM-1"))).notices(NOW)) == 1  # names differ in case


@pytest.mark.parametrize("kind", ["Reboot", "Redeploy", "Terminate"])
def test_what_takes_the_engine_away_is_maintenance(kind):
    assert [n["kind"] for n in Played(event(kind, after=900.0)).notices(NOW)] == ["maintenance"]


def test_maintenance_that_vanishes_is_called_off_and_forgotten_later():
    reader = Played(event("Reboot", after=900.0))
    reader.notices(NOW)
    reader.show()
    assert [n["cancelled"] for n in reader.notices(NOW + 1.0)] == [True]
    assert [n["cancelled"] for n in reader.notices(NOW + AZURE_KEPT)] == [True]
    assert reader.notices(NOW + AZURE_KEPT + 2.0) == []


def test_maintenance_that_comes_back_counts_again():
    reader = Played(event("Reboot", after=900.0))
    reader.notices(NOW)
    reader.show()
    reader.notices(NOW + 1.0)
    reader.show(event("Reboot", after=900.0))
    assert [n["cancelled"] for n in reader.notices(NOW + 2.0)] == [False]


def test_a_preemption_is_told_before_many_others():
    events = [event("Reboot", after=60.0, identity=f"R-{n}") for n in range(40)]
    told = Played(*events, event(after=90.0)).notices(NOW)
    assert (len(told), told[0]["kind"]) == (MOST_NOTICES, "interruption")


def test_azure_is_asked_without_an_acknowledgement(machine):
    node, reader = made(machine, "azure")
    node.order("preempt", after=20.0)
    assert len(reader.notices(NOW)) == 1
    assert "acknowledged" not in node.order("calls")


def test_azures_metadata_that_fail_are_refused_and_work_again(machine):
    node, reader = made(machine, "azure")
    node.order("fault", path="scheduledevents", kind="500", times=1)
    with pytest.raises(Refused, match="500"):
        reader.notices(NOW)
    assert reader.notices(NOW) == []


JSON = st.sampled_from([None, True, 1.5, -1, "", "vm-1", "x" * 1000, [], [None], {}, {"": []}])
EVENT = st.fixed_dictionaries(
    {
        name: JSON | st.sampled_from(values)
        for name, values in {
            "EventId": ["E-1"],
            "EventType": ["Preempt", "Reboot"],
            "Resources": [["vm-1"]],
            "NotBefore": ["", "Mon, 19 Sep 2026 18:29:47 GMT"],
            "EventStatus": ["Started"],
        }.items()
    }
)


@given(st.lists(st.lists(EVENT | JSON, max_size=4), max_size=3))
def test_any_events_can_be_read(documents):
    reader = Played()
    for at, events in enumerate(documents):
        reader.show(*events)
        json.dumps(reader.notices(NOW + at))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Events": {}}', "<html>", "\0"])
def test_a_document_that_is_none_is_refused_and_what_was_seen_holds(text):
    reader = Played(event("Reboot", after=900.0))
    reader.notices(NOW)
    kept, reader.document = reader.document, text
    with pytest.raises(Refused):
        reader.notices(NOW)
    reader.document = kept
    assert [n["cancelled"] for n in reader.notices(NOW)] == [False]


# -- systemd -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "stopping"),
    [
        ("echo stopping; exit 1", True),
        ("echo running", False),
        ("echo degraded; exit 1", False),
        ("echo offline; exit 1", False),
        ("exit 4", False),
    ],
)
def test_the_machine_stops_when_systemd_says_so(tmp_path, script, stopping):
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\n{script}\n")
    systemctl.chmod(0o755)
    assert is_stopping(str(systemctl)) is stopping
    assert is_stopping(str(tmp_path / "none")) is False


# -- what travels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_the_agents_program_works_beside_what_user_data_carries(machine, tmp_path, cloud):
    setup = NodeSetup(pool="llama", command=EngineCommand(argv=("engine",)), port=8000)
    for path, text in written(setup).items():
        if path.endswith(".py"):
            (tmp_path / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.lstrip("/")).write_text(text)
    program = tmp_path / "agent.py"
    program.write_text(agent_program())
    node = machine(cloud=cloud)
    node.order("interrupt" if cloud == "aws" else "preempt")
    done = subprocess.run(
        [sys.executable, "-S", str(program), "--once", *node.options()],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "opt/orchestrator")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["cloud"], seen["node"]) == (cloud, node.id)
    assert (seen["life_cycle"], seen["metadata_error"]) == ("spot", "")
    assert [notice["kind"] for notice in seen["notices"]] == ["interruption"]
