"""Brings a model's weights from S3 to a node's disk: many ranges at once, and on from where it broke off.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.

Every object is read in ranges of `CHUNK` bytes, each under the condition that the object is still the one
that was listed (If-Match). A file has its name once it is whole and on the disk, so neither a kill nor a
crash leaves a hole; the next start goes on with the others. With `.complete`, which is written last, the copy
is used even when S3 does not answer. The bucket must be in the node's region.

Source: Amazon S3 API (ListObjectsV2, GetObject), path-style addresses, which every region takes.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from cloud.node_aws import Aws, said, trusting
from cloud.node_metadata import Refused, fetch

CHUNK = 32 * 2**20
THREADS = 16
ATTEMPTS = 8
MOST_FILES = 1000  # that one page of a listing holds; a model has a few dozen
_MOST_LISTED = 8 * 2**20
_SECONDS = 120.0  # for one range: one that drips is asked for again
_FOR_GOOD = (301, 400, 403, 404, 412)

Tell = Callable[[int, int, float], None]
"""Progress: bytes that are there, bytes of all, bytes a second."""


class Item(NamedTuple):
    """One object: its name below the prefix, its key, its size in bytes, and its entity tag."""

    name: str
    key: str
    size: int
    etag: str


def place_of(url: str, root: str) -> str:
    """The directory of the copy of an s3:// URL below `root`: two URLs never share one."""
    last = re.sub(r"[^A-Za-z0-9._-]", "-", url.rstrip("/").rpartition("/")[2]).lstrip(".-")
    return f"{root}/models/{last or 'model'}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


class Copy:
    """The copy of one s3://BUCKET/PREFIX in a directory."""

    def __init__(self, aws: Aws, url: str, directory: str, tell: Tell, chunk: int = CHUNK) -> None:
        self._aws, self._url, self._chunk, self._tell, self._at = aws, url, chunk, tell, directory
        self._bucket, _, prefix = url.partition("://")[2].partition("/")
        self._prefix = f"{prefix.strip('/')}/".lstrip("/")
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._whole: dict[str, str] = {}  # entity tags of the files that are here
        self._left: dict[str, int] = {}  # ranges that a file lacks
        self._there, self._failed = 0, ""
        self._work: queue.SimpleQueue[tuple[Item, int]] = queue.SimpleQueue()

    def bring(self) -> str:
        """Complete the copy; what kept a complete one from being compared with S3, empty for nothing.

        Raises Refused, OSError.
        """
        try:
            items = self.items()
        except Refused as error:
            if not _read(f"{self._at}/.complete"):
                raise
            return str(error)
        wanted = {item.name: item.etag for item in items}
        if _read(f"{self._at}/.complete") == wanted:
            return ""
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{self._at}/.complete")
        self._clear(items)
        self._fetch(items)
        _write(f"{self._at}/.complete", wanted)
        return ""

    def items(self) -> list[Item]:
        """Every object below the prefix. Raises Refused, also where there is none."""
        body = self._get("", f"list-type=2&prefix={quote(self._prefix, safe='-_.~')}", {}, _MOST_LISTED)
        try:
            page = ElementTree.fromstring(body)  # noqa: S314 - S3's own answer, bounded
        except ElementTree.ParseError as error:
            raise Refused(f"{self._url}: no listing: {error}") from None
        spaced = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
        found = []
        for entry in page.iter(f"{spaced}Contents"):
            text = {child.tag[len(spaced) :]: child.text or "" for child in entry}
            name = text["Key"][len(self._prefix) :]
            if name == "" or name.endswith("/"):
                continue
            if any(part in ("", ".", "..", ".whole", ".complete") for part in name.split("/")):
                raise Refused(f"{self._url}: {name!r} cannot be the name of a file of a model")
            found.append(Item(name, text["Key"], int(text["Size"]), text["ETag"]))
        if not found or page.findtext(f"{spaced}IsTruncated") == "true":
            what = f"more than {MOST_FILES} objects are" if found else "nothing is"
            raise Refused(f"{self._url}: {what} there; correct weights, or copy the model to it")
        return found

    def _clear(self, items: Sequence[Item]) -> None:
        """Keep the files that are whole. What else lies there would take the room of what is to come, or be
        taken by an engine for a shard of the model."""
        before = _read(f"{self._at}/.whole")
        for item in items:
            path = f"{self._at}/{item.name}"
            known = before.get(item.name) == item.etag
            if known and os.path.isfile(path) and os.path.getsize(path) == item.size:
                self._whole[item.name], self._there = item.etag, self._there + item.size
        for folder, _, files in os.walk(self._at, topdown=False):
            for path in (os.path.join(folder, name) for name in files):
                if os.path.relpath(path, self._at) not in {*self._whole, ".whole"}:
                    os.remove(path)
            with contextlib.suppress(OSError):  # it holds files
                os.rmdir(folder)
        os.makedirs(self._at, exist_ok=True)

    def _fetch(self, items: Sequence[Item]) -> None:
        for item in items:
            if item.name in self._whole:
                continue
            path = f"{self._at}/{item.name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            starts = range(0, item.size, self._chunk) or (0,)
            self._left[item.name] = len(starts)
            for start in starts:
                self._work.put((item, start))
        total, had = sum(item.size for item in items), self._there
        free = shutil.disk_usage(self._at).free
        if total - had > free:
            what = f"{(total - had) / 1e9:.1f} GB are to come and {self._at} has {free / 1e9:.1f} GB free"
            raise Refused(f"{self._url}: {what}; give a larger disk.size or a type with a local disk")
        threads, began = [], time.monotonic()  # noqa: TID251
        for _ in range(THREADS):
            threads.append(threading.Thread(target=self._run, daemon=True))
            threads[-1].start()
        for thread in threads:
            while thread.is_alive() and not self._stop.is_set():
                thread.join(1.0)
                passed = max(0.001, time.monotonic() - began)  # noqa: TID251
                self._tell(self._there, total, (self._there - had) / passed)
        if self._failed:
            raise Refused(self._failed)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                item, start = self._work.get_nowait()
                end = min(item.size, start + self._chunk)
                self._keep(item, start, self._range(item, start, end) if end else b"")
        except queue.Empty:
            pass
        except Exception as error:  # the others need not go on
            self._failed = self._failed or str(error) or type(error).__name__
            self._stop.set()

    def _range(self, item: Item, start: int, end: int) -> bytes:
        headers = {"Range": f"bytes={start}-{end - 1}", "If-Match": item.etag}
        return self._get(f"/{_quoted(item.key)}", "", headers, end - start, end - start)

    def _get(self, path: str, query: str, headers: Mapping[str, str], most: int, size: int = -1) -> bytes:
        """What S3 answers to a GET, of `size` bytes where that is known. Raises Refused."""
        base, path = self._aws.url("s3", self._aws.region), f"/{self._bucket}{path}"
        given, what = {"X-Amz-Content-Sha256": hashlib.sha256(b"").hexdigest(), **headers}, ""
        for attempt in range(ATTEMPTS):
            now, call = time.time(), f"GET {path}"  # noqa: TID251
            sent = self._aws.signed("s3", self._aws.region, given, b"", now, call, query)
            url = f"{base}{path}?{query}" if query else f"{base}{path}"
            try:
                status, body = fetch(url, "GET", sent, None, _SECONDS, trusting(url), max(most, 65536))
            except Refused as refused:
                what = str(refused)
            else:
                if status in (200, 206) and size in (-1, len(body)):
                    return body
                code = re.search(rb"<Code>([^<]{1,80})</Code>", body)
                why = code[1].decode("ascii", "replace") if code else said(body[:200])
                what = f"s3:/{path}: status {status}, {len(body)} bytes: {why}"
                if status in _FOR_GOOD and "RequestTimeout" not in why:
                    hints = {301: "the bucket must be in the node's region", 412: "the object was changed"}
                    hints[403] = "the nodes' role needs s3:ListBucket and s3:GetObject there"
                    raise Refused(f"{what}; {hints.get(status, 'correct weights')}")
            if self._stop.wait(min(15.0, 0.25 * 2**attempt)):
                break
        raise Refused(what)

    def _keep(self, item: Item, start: int, body: bytes) -> None:
        path = f"{self._at}/{item.name}"
        with open(os.open(f"{path}.part", os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
            file.seek(start)
            file.write(body)
            file.flush()
            with self._lock:
                self._there += len(body)
                self._left[item.name] -= 1
                if self._left[item.name]:
                    return
            file.truncate(item.size)
            os.fsync(file.fileno())
        with self._lock:
            os.replace(f"{path}.part", path)
            self._whole[item.name] = item.etag
            _write(f"{self._at}/.whole", self._whole)


def _quoted(text: str) -> str:
    return quote(text, safe="/-_.~")


def _read(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError):
        return {}


def _write(path: str, tags: Mapping[str, str]) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(tags, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
