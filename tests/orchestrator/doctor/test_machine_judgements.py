"""Judgements on this machine, the state, what runs and the pool as tables: facts in, findings out."""

from dataclasses import replace
from pathlib import Path

import pytest

from cloud.kinds import KINDS
from orchestrator.config.tables.engine import EngineConfig
from orchestrator.doctor import host, pool, running, state
from orchestrator.doctor.findings import State
from orchestrator.doctor.machine import Listener, Room
from orchestrator.units import HostPort
from policies.model import DrainRules, Pool, StandbyRules

OK, WARN, FAIL, SKIPPED = State.OK, State.WARN, State.FAIL, State.SKIPPED


def judged(findings, state_, text=""):
    """The worst finding is as bad as this, says that, and what is wrong says what to do."""
    order = [OK, SKIPPED, WARN, FAIL]
    worst = max(findings, key=lambda f: order.index(f.state))
    assert (worst.state, text in worst.text) == (state_, True), findings
    assert all(f.advice for f in findings if f.state in (WARN, FAIL))


@pytest.mark.parametrize(("version", "state_"), [((3, 11, 0), OK), ((3, 10, 9), FAIL)])
def test_python(version, state_):
    judged(host.python(version), state_, ".".join(map(str, version)))


@pytest.mark.parametrize(("version", "state_"), [((3, 24, 0), OK), ((3, 23, 1), FAIL)])
def test_sqlite(version, state_):
    judged(host.sqlite(version), state_)


def test_package_names():
    judged(host.packages([]), OK)
    judged(host.packages(["the package name cloud also belongs to cloud"]), FAIL, "also belongs")


@pytest.mark.parametrize(
    ("limit", "always", "state_", "text"),
    [
        (228, True, OK, "needs up to 228"),
        (227, True, FAIL, "may open 227 files, and needs up to 228"),
        (227, False, WARN, "under full load"),
        (None, True, SKIPPED, "another user"),
    ],
)
def test_open_files(limit, always, state_, text):
    judged(host.open_files(limit, 100, "daemon, pid 7", always=always), state_, text)


ROOM = Room(bytes=100 * 2**30, files=10**6, read_only=False)


@pytest.mark.parametrize(
    ("room", "changes", "state_", "text"),
    [
        (ROOM, {}, OK, "can be written, 100 GiB free"),
        (ROOM, {"exists": False}, OK, "will be made"),
        (None, {}, FAIL, "its parent is not there"),
        (replace(ROOM, read_only=True), {}, FAIL, "read-only"),
        (ROOM, {"writable": False}, FAIL, "cannot be written"),
        (replace(ROOM, bytes=2**20), {}, FAIL, "1 MiB free"),
        (replace(ROOM, files=3), {}, FAIL, "3 files"),
        (replace(ROOM, bytes=200 * 2**20), {}, WARN, "less than the journal may take (256 MiB)"),
    ],
)
def test_state_directories(room, changes, state_, text):
    given = {"exists": True, "writable": True, "journal_size": 256 * 2**20} | changes
    judged(state.directory(Path("/state"), room, **given), state_, text)


@pytest.mark.parametrize(
    ("kind", "state_", "text"),
    [
        ("ext4", OK, "ext4"),
        ("nfs4", FAIL, "corrupted"),
        ("9p", FAIL, "corrupted"),
        ("tmpfs", WARN, "next boot"),
        ("overlay", WARN, "with the container"),
        ("", SKIPPED, "is not known"),
    ],
)
def test_file_systems(kind, state_, text):
    judged(state.file_system(Path("/state"), kind), state_, text)


@pytest.mark.parametrize(
    ("changes", "state_", "text"),
    [
        ({"exists": False}, OK, "no daemon has taken"),
        ({"holder": 7}, OK, "held by pid 7 on host, epoch 3"),
        ({"holder": 0}, OK, "free"),
        ({"holder": None}, SKIPPED, "is not known"),
    ],
)
def test_leases(changes, state_, text):
    given = {"exists": True, "who": "pid 7 on host", "epoch": 3} | changes
    judged(state.lease(state.LeaseFacts(**given)), state_, text)


@pytest.mark.parametrize(
    ("exists", "fault", "corrupt", "schema", "state_", "text"),
    [
        (False, "", False, 0, OK, "no journal yet"),
        (True, "", False, 2, OK, "whole; of schema 2"),
        (True, "", False, 1, OK, "brought to 2"),
        (True, "row 3 missing from index", True, 2, FAIL, "row 3"),
        (True, "written by a newer version", False, 9, FAIL, "newer"),
    ],
)
def test_journals(exists, fault, corrupt, schema, state_, text):
    judged(state.journal(exists, fault, corrupt, schema, 2), state_, text)


DAEMON = running.DaemonFacts(
    version="1.0", pid=7, states={"chat": "ok"}, leading=True, journal_ok=True, loaded_at=100.0, rejected=()
)


@pytest.mark.parametrize(
    ("answer", "holder", "changed_at", "state_", "text"),
    [
        (DAEMON, 7, 50.0, OK, "pid 7 answers; the pool is ok"),
        (replace(DAEMON, states={"a": "ok", "b": "down"}), 7, 50.0, OK, "answers; a is ok, b is down"),
        (replace(DAEMON, states={}), 7, 50.0, OK, "answers; it runs no pool"),
        (None, 0, 50.0, WARN, "no daemon runs"),
        (None, None, 50.0, WARN, "no daemon runs"),
        (None, 7, 50.0, FAIL, "pid 7 holds the lease, and does not answer: why"),
        (replace(DAEMON, version="0.9"), 7, 50.0, WARN, "version 0.9"),
        (replace(DAEMON, leading=False), 7, 50.0, FAIL, "only watches"),
        (replace(DAEMON, leading=False, journal_ok=False, silent=41.0), 7, 50.0, FAIL, "answered for 41 s"),
        (replace(DAEMON, journal_ok=False), 7, 50.0, FAIL, "cannot write its journal"),
        (replace(DAEMON, rejected=("pool.toml:3: no",)), 7, 150.0, FAIL, "pool.toml:3: no"),
        (DAEMON, 7, 150.0, WARN, "changed after it was read"),
    ],
)
def test_daemons(answer, holder, changed_at, state_, text):
    found = running.daemon(answer, "why", holder=holder, installed="1.0", changed_at=changed_at)
    judged(found, state_, text)


@pytest.mark.parametrize(
    ("held", "wanted", "state_", "text"),
    [
        ({"a": "active", "b": "draining"}, {"a": "active", "b": "draining"}, OK, "2 of them"),
        ({"a": "active"}, {"a": "active", "b": "draining"}, OK, "1 of them"),
        ({"a": "active"}, None, OK, "no daemon to compare"),
        (None, None, WARN, "no gateway runs"),
        (None, {"a": "active"}, FAIL, "does not answer"),
        ({}, {"a": "active"}, FAIL, "lacks a"),
        ({"a": "active"}, {"a": "draining"}, FAIL, "sends to a as well"),
        ({"a": "active", "c": "active"}, {"b": "active", "c": "active"}, FAIL, "lacks b and sends to a"),
    ],
)
def test_gateways(held, wanted, state_, text):
    judged(running.gateway(held, wanted, "why"), state_, text)


def test_a_gateway_that_refuses_its_file():
    found = running.gateway({"a": "active"}, {"a": "active"}, "", file_fault="its checksum is wrong")
    assert [f.state for f in found] == [OK, WARN]
    judged(found[1:], WARN, "it refuses its targets file: its checksum is wrong")


def test_a_gateway_that_does_not_share_the_limits_of_keys_says_why() -> None:
    why = "the usage file /srv/usage.db: database or disk is full"
    found = running.gateway({"a": "active"}, {"a": "active"}, "", limits_alone=why)
    assert [one.state for one in found] == [State.OK, State.WARN]
    assert why in found[1].text
    assert "room on the disk" in found[1].advice
    (_, unwritten) = running.gateway({"a": "active"}, {"a": "active"}, "", usage_fault="the disk is full")
    assert unwritten.text == "what is used is counted in its memory alone: the disk is full"
    assert unwritten.advice
    assert running.gateway(None, None, "nobody", usage_fault="x") == running.gateway(None, None, "nobody")
    both = running.gateway({"a": "active"}, {"a": "active"}, "", file_fault="torn", limits_alone=why)
    assert [one.state for one in both] == [State.OK, State.WARN, State.WARN]


def one(way, node="a", why=""):
    return running.Continues(node=node, way=way, why=why)


def test_nobody_can_say_whose_answers_others_finish():
    judged(running.continuation("on", None), SKIPPED, "no gateway answers that says")
    judged(running.continuation("on", []), SKIPPED, "no target has been asked yet")


def test_who_wants_no_continuation_is_not_warned():
    judged(running.continuation("off", [one("none", why="no ids")]), OK, "is off")


def test_those_whose_answers_others_cannot_finish_are_named_with_what_to_do():
    found = running.continuation(
        "exact",
        [one("derender", "a"), one("none", "b", "no ids"), one("clean", "c", "403"), one("derender", "d")],
    )
    assert [(f.state, f.subject) for f in found] == [(WARN, "b"), (WARN, "c"), (OK, "")]
    assert "its answers end with an error: no ids" in found[0].text
    assert "its tool calls and reasoning end with an error: 403" in found[1].text
    assert all("--enable-scale-out" in f.advice for f in found[:2])
    assert "answers of 2 nodes" in found[2].text


ADDRESS = running.Address(key="daemon.listen", at=HostPort("127.0.0.1", 9477), process="daemon")


def listener(**changes):
    given = {"host": "127.0.0.1", "port": 9477, "pid": 7, "command": "python -m orchestrator run"}
    return Listener(**(given | changes))


@pytest.mark.parametrize(
    ("host_", "found", "runs", "state_", "text"),
    [
        ("127.0.0.1", [], False, OK, "is free"),
        ("127.0.0.1", [listener(port=9478), listener(host="10.0.0.1")], False, OK, "is free"),
        ("127.0.0.1", [], True, WARN, "another configuration"),
        ("127.0.0.1", [listener()], True, OK, "one of ours"),
        ("127.0.0.1", [listener(command="/lib/systemd/systemd", pid=1)], True, OK, "one of ours"),
        ("127.0.0.1", [listener(host="0.0.0.0", command="nginx")], False, FAIL, "pid 7: nginx"),
        ("0.0.0.0", [listener(command="nginx")], False, FAIL, "nginx"),
        ("localhost", [listener(host="::1", command="nginx")], False, FAIL, "nginx"),
        ("127.0.0.1", [listener(pid=0, command="")], False, SKIPPED, "another user"),
    ],
)
def test_ports(host_, found, runs, state_, text):
    address = replace(ADDRESS, at=HostPort(host_, 9477))
    judged(running.ports([address], found, {"daemon": runs}), state_, text)


@pytest.mark.parametrize(
    ("listen", "gateway", "keys", "state_", "text"),
    [
        ("127.0.0.1", "::1", (False, False, False), OK, "this machine only"),
        ("0.0.0.0", None, (False, False, False), WARN, "metrics and status"),
        (None, "10.0.0.5", (False, False, False), WARN, "engines ask for no key"),
        (None, "10.0.0.5", (False, True, False), OK, ""),
        (None, "10.0.0.5", (False, True, True), WARN, "adds the engines' key"),
        (None, "10.0.0.5", (True, True, True), OK, ""),
        (None, "10.0.0.5", (True, False, False), OK, ""),
    ],
)
def test_exposure(listen, gateway, keys, state_, text):
    own_keys, engine_key, adds_key = keys
    found = running.exposure(
        {"daemon.listen": HostPort(listen, 9477) if listen else None, "gateway.metrics_listen": None},
        HostPort(gateway, 8000) if gateway else None,
        own_keys=own_keys,
        engine_key=engine_key,
        adds_key=adds_key,
    )
    judged(found, state_, text)


@pytest.mark.parametrize(
    ("budget", "notice", "state_", "text"),
    [
        (30.0, 120.0, OK, "budget 30s + margin 5s + settle 1s = 36s of 2m"),
        (84.0, 90.0, OK, "of 90s"),
        (85.0, 90.0, FAIL, "leaves 90s: requests are cut"),
    ],
)
def test_drains_against_each_notice(budget, notice, state_, text):
    judged(pool.drain(DrainRules(budget=budget), {"aws-queue": notice}), state_, text)


TEN = Pool(name="llama", replicas=10)


@pytest.mark.parametrize(
    ("wanted", "zones", "state_", "text"),
    [
        (TEN, 4, OK, ""),  # 7 on spot, at most 2 of them in a zone
        (TEN, 2, WARN, "leaves 6 of 10 nodes (60%), less than the 75% of drain.min_serving"),
        (TEN, 1, WARN, "leaves 3 of 10 nodes"),
        (replace(TEN, standby=StandbyRules(hot=2)), 2, OK, ""),
        (TEN, 0, SKIPPED, "not known here"),
        (replace(TEN, spot_share=0.0), 2, OK, "no node is on spot"),
        (replace(TEN, replicas=2, spot_share=0.5), 2, WARN, "leaves 1 of 2 nodes"),
    ],
)
def test_what_losses_leave(wanted, zones, state_, text):
    judged(pool.capacity(wanted, zones), state_, text)


@pytest.mark.parametrize(
    ("kind", "program", "local", "state_", "text"),
    [
        ("simulated", "", True, OK, "part of this distribution"),
        ("vllm", "sh", True, OK, "/sh"),
        ("vllm", "no-such-engine", True, FAIL, "no-such-engine is no program here"),
        ("llamacpp", "sh", True, OK, "/sh"),
        ("vllm", "no-such-engine", False, SKIPPED, "on the nodes"),
    ],
)
def test_engines(kind, program, local, state_, text):
    judged(pool.engine(EngineConfig(kind=kind, executable=program), local), state_, text)


@pytest.mark.parametrize(
    ("program", "local", "state_", "text"),
    [
        ("exit 0", True, OK, "docker has engine:1"),
        ('[ "$1" = version ]', True, WARN, "docker does not have engine:1; every first start waits for it"),
        ("echo the service is down; exit 1", True, FAIL, "docker does not answer: the service is down"),
        ("exit 1", False, SKIPPED, "on the nodes"),
    ],
)
def test_containers(monkeypatch, tmp_path, program, local, state_, text):
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    judged(pool.engine(EngineConfig(kind="vllm", run="container", image="engine:1"), local), state_, text)


def test_an_engine_that_was_only_read_about_is_named():
    cloud, balancer, engine = pool.proof([KINDS["local"]], ["gateway"], "tgi")
    judged([cloud], OK, "program")
    judged([balancer], OK, "program")
    judged([engine], WARN, "was not run against the real one (Text Generation Inference")
    assert "doctor --engine URL --kind tgi" in engine.advice
