"""Weights come whole from S3 whatever breaks on the way, and what is there is not fetched again."""

import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from node_bench import REPOSITORY

from cloud import node_weights
from cloud.node_aws import Aws
from cloud.node_metadata import Metadata, Refused
from cloud.node_weights import Copy, place_of

pytestmark = pytest.mark.slow

CHUNK = 1000
PATIENCE = 60.0
MODEL = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 37,
    "model-00002-of-00002.safetensors": b"x" * (5 * CHUNK),
    "nested/tokenizer ü+&.json": b"t" * (CHUNK + 1),
    "empty": b"",
}


class Store:
    """An S3 bucket that can misbehave. `faults`: what happens to the next requests, see `_Handler`."""

    def __init__(self):
        self.objects, self.faults, self.asked = {}, [], []
        self.most_listed = 1000
        self.lock = threading.Lock()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.store = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def put(self, files, prefix="model/"):
        self.objects = {f"{prefix}{name}": body for name, body in files.items()}

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def ranges(self):
        return [where for where, span in self.asked if span]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        store, parts = self.server.store, urlsplit(self.path)
        key, span = unquote(parts.path).removeprefix("/bucket").lstrip("/"), self.headers.get("Range")
        with store.lock:
            fault = store.faults.pop(0) if store.faults and (span or "list" in store.faults[0]) else ""
            store.asked.append((key, span))
        if "Authorization" not in self.headers or "X-Amz-Content-Sha256" not in self.headers:
            return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        if fault.isdecimal() or fault.startswith("list "):
            return self.answer(int(fault.split()[-1]), b"<Error><Code>SomeCode</Code></Error>")
        if not span:
            return self.listing(parse_qs(parts.query)["prefix"][0])
        body = store.objects.get(key)
        if body is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if self.headers["If-Match"] != etag(body):
            return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups())
        part = body[start : end + 1]
        if fault == "reset":
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault == "short":
            return self.answer(206, part[:-1])
        if fault == "torn":
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return None
        if fault == "drip":
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            threading.Event().wait(PATIENCE)
            return None
        return self.answer(206, part)

    def listing(self, prefix):
        found = sorted((k, b) for k, b in self.server.store.objects.items() if k.startswith(prefix))
        most = self.server.store.most_listed
        entries = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{len(b)}</Size><ETag>{escape(etag(b))}</ETag></Contents>"
            for k, b in found[:most]
        )
        more = str(len(found) > most).lower()
        name = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        text = f"<ListBucketResult {name}><IsTruncated>{more}</IsTruncated>{entries}</ListBucketResult>"
        self.answer(200, text.encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def etag(body):
    return f'"{hashlib.md5(body).hexdigest()}"'  # noqa: S324 - as S3 does


@pytest.fixture
def store():
    made = Store()
    made.put(MODEL)
    yield made
    made.close()


@pytest.fixture
def aws(machine, store, monkeypatch):
    node = machine()
    node.give_role("r", {"AccessKeyId": "AKIA", "SecretAccessKey": "secret", "SessionToken": "token"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    return Aws(Metadata(node.url))


@pytest.fixture
def bring(aws, tmp_path):
    def brought(url="s3://bucket/model", told=None):
        tell = (lambda *_: None) if told is None else (lambda *progress: told.append(progress))
        os.makedirs(tmp_path / "copy", exist_ok=True)
        others = set(threading.enumerate())
        try:
            return Copy(aws, url, str(tmp_path / "copy"), tell, CHUNK).bring()
        finally:  # a start that fails ends its process, and its threads with it
            for thread in set(threading.enumerate()) - others:
                if thread.name.endswith("(_run)"):
                    thread.join(30.0)

    return brought


def here(directory: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    return {name: body for name, body in found.items() if name not in (".complete", ".whole")}


def test_every_file_comes_whole(bring, store, tmp_path):
    told = []
    assert bring(told=told) == ""
    assert here(tmp_path / "copy") == MODEL
    assert told[-1][:2] == (sum(map(len, MODEL.values())),) * 2
    assert (tmp_path / "copy/.complete").exists()


def test_what_is_there_is_not_fetched_again(bring, store, tmp_path):
    bring()
    store.asked.clear()
    assert bring() == ""
    assert len(store.asked) == 1  # the listing


@pytest.mark.parametrize("fault", ["reset", "short", "torn", "500", "503", "429", "408"])
def test_what_breaks_once_is_asked_for_again(bring, store, tmp_path, fault):
    store.faults = [fault] * 4
    assert bring() == ""
    assert here(tmp_path / "copy") == MODEL


def test_an_answer_that_never_ends_is_cut_off(bring, store, tmp_path, monkeypatch):
    monkeypatch.setattr(node_weights, "_SECONDS", 0.5)
    store.faults = ["drip"]
    assert bring() == ""
    assert here(tmp_path / "copy") == MODEL


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("403", "s3:ListBucket and s3:GetObject"),
        ("404", "status 404"),
        ("301", "must be in the node's region"),
        ("412", "the object was changed"),
    ],
)
def test_what_will_not_get_better_is_said_at_once(bring, store, tmp_path, status, words):
    for fault in (f"list {status}", status):
        store.faults = [fault]
        with pytest.raises(Refused, match=re.escape(words)):
            bring()
        assert not (tmp_path / "copy/.complete").exists()


def test_what_stays_broken_is_given_up(bring, store, monkeypatch):
    monkeypatch.setattr(node_weights, "ATTEMPTS", 2)
    store.faults = ["503"] * 1000
    with pytest.raises(Refused, match="status 503"):
        bring()


def test_an_object_that_changes_while_it_is_read_is_not_mixed(bring, store, tmp_path, monkeypatch):
    """The new object has another tag, so no range of it comes; the next start takes the new one whole."""
    listed = Copy.items

    def then_changed(self):
        found = listed(self)
        store.objects["model/model-00002-of-00002.safetensors"] = b"y" * (5 * CHUNK)
        return found

    monkeypatch.setattr(Copy, "items", then_changed)
    with pytest.raises(Refused, match="the object was changed"):
        bring()
    monkeypatch.setattr(Copy, "items", listed)
    assert bring() == ""
    assert here(tmp_path / "copy")["model-00002-of-00002.safetensors"] == b"y" * (5 * CHUNK)


def test_a_model_that_was_replaced_replaces_the_copy(bring, store, tmp_path):
    bring()
    new = {"config.json": b"{}", "model-00001-of-00001.safetensors": b"n" * 2500}
    store.put(new)
    store.asked.clear()
    assert bring() == ""
    assert here(tmp_path / "copy") == new  # no shard of the old one is left for the engine
    assert "model/config.json" not in store.ranges()


def test_a_file_that_was_damaged_comes_again(bring, store, tmp_path):
    bring()
    (tmp_path / "copy/.complete").unlink()
    (tmp_path / "copy/model-00001-of-00002.safetensors").write_bytes(b"short")
    bring()
    assert here(tmp_path / "copy") == MODEL


@pytest.mark.parametrize("name", [".whole", ".complete"])
@pytest.mark.parametrize("text", ["", "[]", "{", "5", "\x00"])
def test_notes_that_are_odd_count_for_nothing(bring, store, tmp_path, name, text):
    bring()
    (tmp_path / "copy" / name).write_text(text)
    (tmp_path / "copy/config.json").unlink()
    (tmp_path / "copy/.complete").unlink(missing_ok=True)
    assert bring() == ""
    assert here(tmp_path / "copy") == MODEL


def test_a_complete_copy_is_used_while_s3_does_not_answer(bring, store, tmp_path, monkeypatch):
    bring()
    monkeypatch.setattr(node_weights, "ATTEMPTS", 1)
    store.faults = ["list 503"]
    assert "status 503" in bring()
    store.faults = ["list 403"]
    assert "status 403" in bring()
    (tmp_path / "copy/.complete").unlink()
    store.faults = ["list 503"]
    with pytest.raises(Refused, match="status 503"):
        bring()


def test_a_disk_without_room_is_said_before_anything_is_fetched(bring, store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(Refused, match="free; give a larger disk"):
        bring()
    assert store.ranges() == []


@pytest.fixture
def tight(monkeypatch, tmp_path):
    """A disk that holds one model and little more."""

    def usage(_):
        used = sum(path.stat().st_size for path in (tmp_path / "copy").rglob("*") if path.is_file())
        total = sum(map(len, MODEL.values())) + 2 * CHUNK
        return shutil._ntuple_diskusage(total, used, max(0, total - used))

    monkeypatch.setattr(shutil, "disk_usage", usage)


@pytest.mark.usefixtures("tight")
def test_what_a_broken_start_left_takes_no_room_from_the_next(bring, store, tmp_path, monkeypatch):
    """A large shard of which most had come is fetched anew; the disk need not hold both."""
    monkeypatch.setattr(node_weights, "ATTEMPTS", 1)
    monkeypatch.setattr(node_weights, "THREADS", 1)
    store.faults = [""] * 15 + ["503"]
    with pytest.raises(Refused, match="status 503"):
        bring()
    assert list((tmp_path / "copy").rglob("*.part"))
    assert bring() == ""
    assert here(tmp_path / "copy") == MODEL


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("new", ["config.json/inner.json", "config.json"])
def test_a_new_model_needs_no_room_beside_the_old_one(bring, store, tmp_path, new):
    bring()
    replaced = {new: b"n" * (12 * CHUNK), "empty/x": b"x"}
    store.put(replaced)
    assert bring() == ""
    assert here(tmp_path / "copy") == replaced
    store.put(MODEL)
    assert bring() == ""
    assert here(tmp_path / "copy") == MODEL


@pytest.mark.parametrize("names", [(), ("folder/",)])
def test_a_prefix_without_objects_is_said(bring, store, names):
    store.put(dict.fromkeys(names, b""))
    with pytest.raises(Refused, match="nothing is there; correct weights"):
        bring()


def test_a_neighbour_whose_name_begins_alike_is_not_taken(bring, store, tmp_path):
    store.objects["model-2/config.json"] = b"another"
    bring()
    assert here(tmp_path / "copy") == MODEL


def test_more_objects_than_a_model_has_are_refused(bring, store):
    store.most_listed = 3
    with pytest.raises(Refused, match="more than 1000 objects are there"):
        bring()


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x", "a/../../x", "/etc/x", "a//b", ".complete", "x/.whole"]
)
def test_no_object_is_written_outside_the_copy(bring, store, tmp_path, name):
    store.objects[f"model/{name}"] = b"evil"
    with pytest.raises(Refused, match="cannot be the name of a file of a model"):
        bring()
    assert not (tmp_path / "copy/config.json").exists()


def test_each_url_has_a_place_of_its_own():
    urls = ["s3://a/llama", "s3://b/llama", "s3://a/x/llama", "s3://a/", "s3://a", "s3://a/.."]
    places = {place_of(url, "/disk") for url in urls}
    assert len(places) == len(urls)
    assert all(re.fullmatch(r"/disk/models/[A-Za-z0-9][A-Za-z0-9._-]*", place) for place in places)
    assert place_of("s3://a/llama", "/disk").startswith("/disk/models/llama-")


KILLED = """
import sys, threading, time
from cloud import node_weights
from cloud.node_aws import Aws
from cloud.node_metadata import Metadata
node_weights.THREADS = 1
copy = node_weights.Copy(Aws(Metadata(sys.argv[1])), "s3://bucket/model", sys.argv[2], lambda *_: None, 1000)
copy.bring()
"""


def test_a_start_that_is_killed_goes_on_with_the_files_that_lack(aws, bring, store, machine, tmp_path):
    node = machine()
    node.give_role("r", {"AccessKeyId": "AKIA", "SecretAccessKey": "secret", "SessionToken": "token"})
    (tmp_path / "copy").mkdir()
    store.faults = ["none"] * 8 + ["drip"]  # it hangs in the middle of the first shard
    words = [sys.executable, "-c", KILLED, node.url, str(tmp_path / "copy")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    try:
        waited = threading.Event()
        while len(store.ranges()) < 9:
            assert process.poll() is None
            waited.wait(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    whole = set(json.loads((tmp_path / "copy/.whole").read_text()))
    assert whole
    assert not (tmp_path / "copy/.complete").exists()
    store.asked.clear()
    store.faults = []
    assert bring() == ""
    assert here(tmp_path / "copy") == MODEL
    assert not {f"model/{name}" for name in whole} & set(store.ranges())


def test_it_signs_as_boto_does(aws, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    now, path, query = 1_767_225_600.0, "/bucket/a%20b%2Bc/d", "list-type=2&prefix=a%2Fb%20c%2F"
    headers = {"X-Amz-Content-Sha256": hashlib.sha256(b"").hexdigest(), "Range": "bytes=0-9"}
    signed = aws.signed("s3", "us-east-1", headers, b"", now, f"GET {path}", query)
    url = f"https://s3.us-east-1.amazonaws.com{path}?{query}"
    request = AWSRequest("GET", url, dict(headers))
    request.context["timestamp"] = request.headers["X-Amz-Date"] = signed["X-Amz-Date"]
    request.headers["X-Amz-Security-Token"] = "token"
    auth = S3SigV4Auth(Credentials("AKIA", "secret", "token"), "s3", "us-east-1")
    text = auth.string_to_sign(request, auth.canonical_request(request))
    assert signed["Authorization"].endswith(f"Signature={auth.signature(text, request)}")


def test_the_stand_in_for_aws_gives_the_same(aws_shim, machine, tmp_path, monkeypatch):
    """Another server than this file's own, filled by boto."""
    s3 = boto3.client("s3", region_name="us-east-1", endpoint_url=aws_shim.url)
    s3.create_bucket(Bucket="llama-weights")
    for name, body in MODEL.items():
        s3.put_object(Bucket="llama-weights", Key=f"llama-3.1-8b/{name}", Body=body)
    node = machine()
    node.give_role("r", {"AccessKeyId": "AKIA", "SecretAccessKey": "secret", "SessionToken": "token"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_shim.url)
    url, copy = "s3://llama-weights/llama-3.1-8b", tmp_path / "copy"
    copy.mkdir()
    assert Copy(Aws(Metadata(node.url)), url, str(copy), lambda *_: None, CHUNK).bring() == ""
    assert here(copy) == MODEL
