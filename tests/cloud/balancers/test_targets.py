"""The target set document: strict to read, exact to write, atomic on disk."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.balancers.targets import (
    MAX_ADAPTERS,
    WITHOUT_ADAPTERS,
    WITHOUT_BUILDS,
    TargetsError,
    TargetSet,
    encode,
    in_schema,
    parse,
)
from cloud.durable import write_atomic
from policies.held import Held
from policies.model import TargetPhase, TargetSpec

ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
times = st.floats(min_value=0, max_value=4e9)
addresses = st.builds(
    "{}:{}".format, st.sampled_from(["10.0.0.5", "node-1", "[fd00::5]"]), st.integers(1, 65535)
)
builds = st.just("") | ids
held = st.builds(Held, name=ids, served_as=ids, revision=ids) | st.builds(
    Held, name=ids, number=st.integers(0, 99), revision=ids
)
adapters = st.lists(held, max_size=4, unique_by=lambda one: (one.name, one.revision)).map(tuple)


def specs(build, adapters):
    active = st.builds(
        TargetSpec,
        id=ids,
        address=addresses,
        weight=st.integers(0, 65535),
        build=build,
        adapters=adapters,
    )
    return active | st.builds(
        TargetSpec,
        id=ids,
        address=addresses,
        phase=st.just(TargetPhase.DRAINING),
        drain_deadline=st.none() | times,
        build=build,
        adapters=adapters,
    )


def documents_of(schema, build, adapters):
    return st.builds(
        TargetSet,
        generation=st.integers(0, 2**53),
        pool=st.text(min_size=1, max_size=20),
        written_at=times,
        targets=st.lists(specs(build, adapters), max_size=8, unique_by=lambda spec: spec.id).map(tuple),
        schema=st.just(schema),
    )


documents = (
    documents_of("targets/3", builds, adapters)
    | documents_of("targets/2", builds, st.just(()))
    | documents_of("targets/1", st.just(""), st.just(()))
)


@given(documents)
def test_what_is_written_is_read_back(document):
    assert parse(encode(document)) == document


def good():
    target = {
        "id": "i-1",
        "address": "10.0.0.5:8000",
        "phase": "active",
        "weight": 100,
        "drain_deadline": None,
        "build": "8f3a",
        "adapters": [{"name": "sql", "served_as": "sql@1f", "number": None, "revision": "1f"}],
    }
    return {"schema": "targets/3", "generation": 7, "pool": "chat", "written_at": 1.5, "targets": [target]}


def test_the_documented_form_is_read():
    document = parse(json.dumps(good()).encode())
    sql = Held(name="sql", served_as="sql@1f", revision="1f")
    assert document.targets == (TargetSpec(id="i-1", address="10.0.0.5:8000", build="8f3a", adapters=(sql,)),)
    assert (document.generation, document.pool, document.written_at) == (7, "chat", 1.5)


def older(schema, *without):
    body = good() | {"schema": schema}
    for key in without:
        del body["targets"][0][key]
    return body


def oldest():
    return older(WITHOUT_BUILDS, "build", "adapters")


def old():
    return older(WITHOUT_ADAPTERS, "adapters")


@pytest.mark.parametrize(("body", "build"), [(oldest(), ""), (old(), "8f3a")], ids=["1", "2"])
def test_older_forms_are_read_and_written_as_their_versions_do(body, build):
    document = parse(json.dumps(body).encode())
    assert document.targets == (TargetSpec(id="i-1", address="10.0.0.5:8000", build=build),)
    assert document.schema == body["schema"]
    assert json.loads(encode(document)) == body


def test_a_target_is_cut_down_to_what_a_form_can_say():
    (spec,) = parse(json.dumps(good()).encode()).targets
    cut = [in_schema(spec, schema) for schema in ("targets/1", "targets/2", "targets/3")]
    assert [(s.build, len(s.adapters)) for s in cut] == [("", 0), ("8f3a", 0), ("8f3a", 1)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (oldest() | {"schema": "targets/2"}, r"targets\[0\]: missing build"),
        (old() | {"schema": "targets/1"}, r"targets\[0\]: unknown build"),
        (old() | {"schema": "targets/3"}, r"targets\[0\]: missing adapters"),
        (good() | {"schema": "targets/2"}, r"targets\[0\]: unknown adapters"),
    ],
    ids=["no build in 2", "one in 1", "no adapters in 3", "some in 2"],
)
def test_each_form_has_its_own_keys_and_no_others(body, says):
    with pytest.raises(TargetsError, match=says):
        parse(json.dumps(body).encode())


def test_a_build_that_the_form_cannot_say_is_not_dropped():
    spec = TargetSpec(id="a", address="10.0.0.5:8000", build="8f3a")
    document = TargetSet(generation=1, pool="p", written_at=1.0, targets=(spec,), schema=WITHOUT_BUILDS)
    with pytest.raises(TargetsError, match=r"targets\[0\].build: '8f3a': 'targets/1' has none"):
        encode(document)
    spec = TargetSpec(id="a", address="10.0.0.5:8000", adapters=(Held(name="sql", number=0),))
    document = TargetSet(generation=1, pool="p", written_at=1.0, targets=(spec,), schema=WITHOUT_ADAPTERS)
    with pytest.raises(TargetsError, match=r"targets\[0\].adapters: .*sql.*: 'targets/2' has none"):
        encode(document)


SQL = {"name": "sql", "served_as": "sql@1f", "number": None, "revision": "1f"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (None, "adapters: expected a list"),
        ({}, "adapters: expected a list"),
        ([SQL] * (MAX_ADAPTERS + 1), "adapters: expected a list of at most"),
        (["sql"], r"adapters\[0\]: expected an object"),
        ([SQL, {"name": "law"}], r"adapters\[1\]: expected an object"),
        ([SQL | {"extra": 1}], r"adapters\[0\]: expected an object"),
        ([SQL | {"name": ""}], r"adapters\[0\].name: ''"),
        ([SQL | {"name": 5}], r"adapters\[0\].name: 5"),
        ([SQL | {"name": ["a"]}], "expected plain values"),
        ([SQL | {"served_as": "a b"}], r"adapters\[0\].served_as: 'a b'"),
        ([SQL | {"revision": "x" * 257}], r"adapters\[0\].revision"),
        ([SQL | {"number": -1, "served_as": ""}], r"adapters\[0\].number: -1"),
        ([SQL | {"number": True, "served_as": ""}], r"adapters\[0\].number: True"),
        ([SQL | {"number": 1}], r"adapters\[0\]: expected either served_as or a number"),
        ([SQL | {"served_as": ""}], r"adapters\[0\]: expected either served_as or a number"),
        ([SQL, SQL], "adapters: 'sql' of revision '1f' is listed twice"),
    ],
    ids=str,
)
def test_a_wrong_row_of_an_adapter_is_named(rows, says):
    body = good()
    body["targets"][0]["adapters"] = rows
    with pytest.raises(TargetsError, match=says):
        parse(json.dumps(body).encode())


def test_two_revisions_of_one_adapter_may_be_held_at_once():
    body = good()
    body["targets"][0]["adapters"] = [SQL, SQL | {"served_as": "sql@2e", "revision": "2e"}]
    assert [h.revision for h in parse(json.dumps(body).encode()).targets[0].adapters] == ["1f", "2e"]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("schema", "targets/4", "schema: 'targets/4': this version reads 'targets/1' and 'targets/2' and"),
        ("schema", ["targets/2"], "schema: "),
        ("generation", -1, "generation: -1: expected a whole number"),
        ("generation", 1.5, "generation: 1.5"),
        ("generation", True, "generation: True"),
        ("pool", "", "pool: ''"),
        ("pool", 5, "pool: 5"),
        ("written_at", "now", "written_at: 'now': expected seconds"),
        ("targets", {}, "targets: dict: expected a list"),
        ("targets", [5], r"targets\[0\]: int: expected an object"),
    ],
)
def test_a_wrong_field_is_named(field, value, says):
    with pytest.raises(TargetsError, match=says):
        parse(json.dumps(good() | {field: value}).encode())


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("id", "", r"targets\[0\].id: ''"),
        ("id", "a b", "no spaces"),
        ("id", "x" * 129, "1 to 128"),
        ("address", "10.0.0.5", "expected host:port"),
        ("address", "10.0.0.5:0", "expected host:port"),
        ("address", "10.0.0.5:65536", "expected host:port"),
        ("address", ":80", "expected host:port"),
        ("address", "fd00::5:80", "expected host:port"),
        ("address", "user@host:80", "expected host:port"),
        ("address", "host/path:80", "expected host:port"),
        ("address", 80, "expected host:port"),
        ("phase", "absent", "'absent': expected one of active, draining"),
        ("weight", -1, "weight: -1"),
        ("weight", 1.0, "weight: 1.0"),
        ("drain_deadline", 5.0, "only a draining target has one"),
        ("drain_deadline", "soon", "drain_deadline: 'soon'"),
        ("build", None, "build: None: expected up to 128 printable"),
        ("build", 5, "build: 5"),
        ("build", "a b", "build: 'a b'"),
        ("build", "x" * 129, "build: 'xxx"),
        ("build", "a\n", "build: 'a"),
        ("build", ["a"], "expected plain values only"),
    ],
)
def test_a_wrong_field_of_a_target_is_named_with_its_place(field, value, says):
    body = good()
    body["targets"][0][field] = value
    with pytest.raises(TargetsError, match=says):
        parse(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b"[]", "target set: list: expected an object"),
        (b"{}", "missing generation, pool, schema, targets, written_at"),
        (b'{"generation": NaN}', "not JSON"),
    ],
)
def test_what_is_no_document_is_refused(data, says):
    with pytest.raises(TargetsError, match=says):
        parse(data)


def test_unknown_keys_and_repeated_ids_are_refused():
    with pytest.raises(TargetsError, match="unknown color"):
        parse(json.dumps(good() | {"color": "red"}).encode())
    body = good()
    body["targets"] *= 2
    with pytest.raises(TargetsError, match="id 'i-1' is listed twice"):
        parse(json.dumps(body).encode())


def test_a_document_that_could_not_be_read_is_not_written():
    bad = TargetSet(generation=1, pool="p", written_at=1.0, targets=(TargetSpec(id="a", address="nowhere"),))
    with pytest.raises(TargetsError, match=r"targets\[0\].address: 'nowhere'"):
        encode(bad)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "targets.json"
    write_atomic(path, b"one")
    inode = path.stat().st_ino
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_ino != inode
    assert [entry.name for entry in tmp_path.iterdir()] == ["targets.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "targets.json"
    write_atomic(path, b"one")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["targets.json"]


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no" / "targets.json", b"")
