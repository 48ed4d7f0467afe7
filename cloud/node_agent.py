#!/usr/bin/env python3
"""Runs on a node: tells the control host what the instance metadata and the GPUs say.

One file, standard library only, Python 3.9 or newer, so that user-data can carry it. It polls EC2's instance
metadata (IMDSv2) for notices, asks nvidia-smi for the GPUs and reads the kernel log for Xid errors, and
pushes what it knows as one JSON report: every few seconds as a heartbeat, at once when there is a notice.
A report holds the whole state, so a lost one costs nothing but time.

Every report is signed with the node's own key and numbered within a session that the control host names in
its answers: it can be neither forged nor replayed, and it speaks for this node only. The key is read from
its file for every report, so it may arrive after the agent and may be changed.

Nothing stops it: no network, no metadata, no GPU, no key, garbage or silence from any of them. Each source
is read in a thread of its own, so one that hangs delays no other.

Examples:
  python3 node_agent.py --url http://10.0.0.5:9465 --key-file /run/node-agent/key
  python3 node_agent.py --once            print what it sees and exit; needs neither --url nor a key
  python3 node_agent.py --once --imds http://127.0.0.1:1338
"""

# This file runs where nothing of the project is installed and on older Pythons: hence time, threads and
# timezone.utc instead of the project's Clock, asyncio and datetime.UTC.
from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import hashlib
import hmac
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

SCHEMA = "node-report/1"
IMDS = "http://169.254.169.254"
TOKEN_SECONDS = 21600
MOST_READ = 64 * 1024  # bytes of any answer
MOST_NOTICES = 16
MOST_XIDS = 32
MOST_GPUS = 32
GPU_FIELDS = {
    "index": "index",
    "uuid": "uuid",
    "name": "name",
    "utilization.gpu": "utilisation_percent",
    "memory.used": "memory_used_mib",
    "memory.total": "memory_total_mib",
    "temperature.gpu": "temperature_c",
    "ecc.errors.uncorrected.volatile.total": "ecc_uncorrected",
}
NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OVER = ("canceled", "completed")  # states of a scheduled event that comes no more
XID = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)(?:, (.*))?")


def node_key(secret: bytes, node: str) -> bytes:
    """The key of one node, from the secret of its pool: nothing has to be stored for each node."""
    return hmac.new(secret, b"node-key/1\n" + node.encode(), hashlib.sha256).digest()


def signature(key: bytes, node: str, body: bytes) -> str:
    """The signature of a report: HMAC-SHA256 over the node's id and the body, in hex.

    The control host checks reports with this function and `node_key`.
    """
    return hmac.new(key, b"\n".join((SCHEMA.encode(), node.encode(), body)), hashlib.sha256).hexdigest()


class Refused(Exception):
    """An answer that is no use, or none; the message is for people."""


def fetch(
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 2.0,
    trust: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """One request: status and body. It ends after about `timeout` seconds, name lookup apart. Raises Refused.

    No proxies and no redirects: both addresses are given and near. The time-outs of sockets count from the
    last byte, so a server that drips bytes is cut off by closing the connection from a timer.
    """
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(parts.netloc, timeout=timeout, context=trust)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    except http.client.HTTPException as error:
        raise Refused(f"{url}: {error}") from None

    def cut() -> None:
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout, cut)
    timer.daemon = True
    timer.start()
    try:
        connection.request(method, parts.path or "/", body=body, headers=headers or {})
        answer = connection.getresponse()
        found = answer.read(MOST_READ + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Refused(f"{url}: {type(error).__name__}: {error}") from None
    finally:
        timer.cancel()
        connection.close()
    if len(found) > MOST_READ:
        raise Refused(f"{url}: more than {MOST_READ} bytes")
    return answer.status, found


class Metadata:
    """Reads IMDSv2. The token is renewed early, and once more when it is refused."""

    def __init__(self, base: str, timeout: float = 1.0) -> None:
        self._base = base.rstrip("/")
        self._timeout = timeout
        self._token = ""
        self._renew_at = 0.0

    def get(self, path: str) -> str | None:
        """A document below /latest/, None when there is none (the normal answer). Raises Refused."""
        for fresh in (False, True):
            if fresh or not self._token or time.monotonic() >= self._renew_at:  # noqa: TID251
                self._take_token()
            url = f"{self._base}/latest/{path}"
            status, body = fetch(
                url, headers={"X-aws-ec2-metadata-token": self._token}, timeout=self._timeout
            )
            if status == 200:
                return body.decode("utf-8", "replace")
            if status == 404:
                return None
            if status != 401:
                raise Refused(f"{url}: status {status}{'; is IMDS switched off?' if status == 403 else ''}")
            self._token = ""
        raise Refused(f"{self._base}: a fresh token is refused")

    def _take_token(self) -> None:
        url = f"{self._base}/latest/api/token"
        header = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        status, body = fetch(url, "PUT", header, timeout=self._timeout)
        token = body.decode("ascii", "replace").strip()
        if status != 200 or not token.isprintable() or not 0 < len(token) <= 4096:
            raise Refused(
                f"{url}: no token: status {status}{'; is IMDS switched off?' if status == 403 else ''}"
            )
        self._token = token
        self._renew_at = time.monotonic() + TOKEN_SECONDS / 2  # noqa: TID251


def node_id(text: str) -> str:
    """The text when it can be a node's id. Raises Refused."""
    if not NODE_ID.fullmatch(text):
        raise Refused(f"{text[:64]!r} is no node id")
    return text


def read_notices(get: Callable[[str], str | None], now: float) -> list[dict[str, Any]]:
    """Every notice that the metadata shows, the most urgent first. Raises Refused when it cannot be read."""
    found = []
    action = _json(get("meta-data/spot/instance-action"))
    if isinstance(action, dict):
        found.append(_notice("interruption", _time(action.get("time")), str(action.get("action", ""))))
    else:
        # Older than instance-action; it may hold a time long past or no time at all.
        ends = _time(get("meta-data/spot/termination-time"))
        if ends is not None and ends > now - 300:
            found.append(_notice("interruption", ends, "terminate"))
    recommended = _json(get("meta-data/events/recommendations/rebalance"))
    if isinstance(recommended, dict):
        found.append(_notice("rebalance", None, ""))
    events = _json(get("meta-data/events/maintenance/scheduled"))
    for event in events if isinstance(events, list) else []:
        if isinstance(event, dict) and event:
            over = str(event.get("State", "")).lower() in OVER
            code, identity = str(event.get("Code", "")), str(event.get("EventId", ""))
            found.append(_notice("maintenance", _time(event.get("NotBefore")), code, identity, over))
    return found[:MOST_NOTICES]


def _notice(
    kind: str, deadline: float | None, what: str, event: str = "", over: bool = False
) -> dict[str, Any]:
    return {"kind": kind, "deadline": deadline, "what": what[:64], "event": event[:64], "cancelled": over}


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _time(value: Any) -> float | None:
    """Seconds since the epoch of a time as EC2 writes it, None for anything else."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    text = value.strip()
    try:
        try:
            at = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        except ValueError:
            at = parsedate_to_datetime(text)
        return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()  # noqa: UP017
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class Gpus:
    """Asks nvidia-smi. When a driver makes it hang where no signal reaches it, it is left alone."""

    def __init__(self, command: str, timeout: float = 10.0) -> None:
        self._query = [command, "--query-gpu=" + ",".join(GPU_FIELDS), "--format=csv,noheader,nounits"]
        self._timeout = timeout
        self._hung: subprocess.Popen[bytes] | None = None

    def read(self) -> tuple[list[dict[str, Any]], str]:
        """What it says of each GPU, and what is wrong with asking it (empty: nothing)."""
        command = self._query[0]
        if self._hung is not None and self._hung.poll() is None:
            return [], f"{command}: still hangs, and cannot be killed"
        try:
            process = subprocess.Popen(
                self._query, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            return [], f"{command}: {error.strerror}"
        try:
            output = process.communicate(timeout=self._timeout)[0].decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            process.kill()
            self._hung = process
            return [], f"{command}: no answer within {self._timeout:g} s"
        gpus, odd = parse_gpus(output)
        if process.returncode != 0 or odd:
            said = " ".join((odd or output).split())[:200]
            return gpus, f"{command}: status {process.returncode}: {said}"
        return gpus, ""


def parse_gpus(output: str) -> tuple[list[dict[str, Any]], str]:
    """The GPUs in nvidia-smi's CSV, and the first line that is none. A value that it lacks is None."""
    gpus: list[dict[str, Any]] = []
    odd = ""
    for line in output.splitlines()[: 4 * MOST_GPUS]:
        row = next(csv.reader([line], skipinitialspace=True), []) if len(line) < 2000 else []
        if len(row) == len(GPU_FIELDS) and row[0].strip().isdigit():
            gpus.append({key: _value(key, cell.strip()) for key, cell in zip(GPU_FIELDS.values(), row)})  # noqa: B905
        elif line.strip():
            odd = odd or line.strip()
    return gpus[:MOST_GPUS], odd


def _value(key: str, cell: str) -> Any:
    if key in ("uuid", "name"):
        return cell[:80]
    try:
        number = float(cell)
    except ValueError:  # [N/A], [Not Supported], [Unknown Error], ERR!
        return None
    return number if abs(number) < 1e12 else None


class KernelLog:
    """The Xid errors in the kernel's log. /dev/kmsg is read from its oldest record on, then followed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None
        self._rest = b""
        self.xids: list[dict[str, Any]] = []
        self.error = ""

    def read(self) -> bool:
        """Read what is new; True when there were Xids. Never raises for what the log holds."""
        before = len(self.xids)
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
                self.xids, self._rest, before = [], b"", 0  # it is read from its beginning
            self._drain(self._fd)
            self.error = ""
        except OSError as error:
            self.error = f"{self._path}: {error.strerror}"
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
        found = len(self.xids) > before
        self.xids = self.xids[-MOST_XIDS:]
        return found

    def _drain(self, fd: int) -> None:
        for _ in range(100_000):
            try:
                chunk = os.read(fd, 16384)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:  # records were overwritten before they were read
                    continue
                raise
            if not chunk:
                return
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._rest = self._rest[-8192:]
            for line in lines:
                self._take(line.decode("utf-8", "replace"))

    def _take(self, line: str) -> None:
        match = XID.search(line)
        if match is not None and len(match[2]) < 6:
            text = "".join(c for c in match[3] or "" if c.isprintable())
            self.xids.append({"pci": match[1][:32], "code": int(match[2]), "text": text[:200]})


class Agent:
    """What is known of this node, and the threads that find it out and push it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._imds = Metadata(options.imds)
        self._gpus = Gpus(options.nvidia_smi)
        self._log = KernelLog(options.kernel_log)
        https = options.url.startswith("https:")
        self._trust = ssl.create_default_context(cafile=options.ca_file or None) if https else None
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._said: dict[str, str] = {}
        self._session = ""
        self._sequence = 0
        self.node = options.node_id
        errors = ("metadata_error", "gpu_error", "xid_error")
        self.known: dict[str, Any] = dict.fromkeys(errors, "not asked yet")
        self.known.update(life_cycle="", notices=[], gpus=[], xids=[])

    def look_at_metadata(self) -> None:
        """Poll the metadata once. What was seen before holds while it does not answer."""
        try:
            if not self.node:
                self.node = node_id((self._imds.get("meta-data/instance-id") or "").strip())
                self._news.set()
            cycle = self.known["life_cycle"] or self._imds.get("meta-data/instance-life-cycle") or ""
            notices = read_notices(self._imds.get, time.time())  # noqa: TID251
            self._learn(life_cycle=cycle.strip()[:32], notices=notices, metadata_error="")
        except Refused as refused:
            self._learn(metadata_error=str(refused)[:200])

    def look_at_gpus(self) -> None:
        """Ask nvidia-smi once."""
        gpus, error = self._gpus.read()
        self._learn(gpus=gpus, gpu_error=error)

    def look_at_log(self) -> None:
        """Read what is new in the kernel log."""
        self._log.read()
        self._learn(xids=list(self._log.xids), xid_error=self._log.error)

    def _learn(self, **news: Any) -> None:
        with self._lock:
            urgent = any(self.known[key] != news[key] for key in ("notices", "xids") if key in news)
            self.known.update(news)
        for key in news:
            if key.endswith("_error"):
                self._say(key, news[key])
        if urgent:
            self._news.set()

    def report(self) -> dict[str, Any]:
        """The whole state, as it is pushed."""
        with self._lock:
            return {"schema": SCHEMA, "node": self.node, "at": time.time(), **self.known}  # noqa: TID251

    def push(self) -> bool:
        """Send one report; True when it was taken up."""
        for _ in range(2):  # the second time with the session that the first answer named
            with open(self._options.key_file, "rb") as file:
                key = bytes.fromhex(file.read(1024).decode("ascii").strip())
            self._sequence += 1
            report = {**self.report(), "session": self._session, "sequence": self._sequence}
            body = json.dumps(report).encode()
            status, answer = fetch(
                f"{self._options.url.rstrip('/')}/v1/nodes/{self.node}/report",
                "POST",
                {"Content-Type": "application/json", "X-Node-Signature": signature(key, self.node, body)},
                body,
                timeout=2.0,
                trust=self._trust,
            )
            if status == 204:
                return True
            told = _json(answer.decode("utf-8", "replace"))
            if status != 409 or not isinstance(told, dict) or not isinstance(told.get("session"), str):
                text = answer[:200].decode("utf-8", "replace")
                raise Refused(f"the control host refused: status {status}: {' '.join(text.split())}")
            self._session = told["session"][:64]
            last = told.get("sequence")
            self._sequence = last if isinstance(last, int) and 0 <= last < 2**53 else 0
        raise Refused("the control host named a session and then refused it")

    def run(self) -> None:
        """Look and push for ever."""
        options = self._options
        for look, every in (
            (self.look_at_metadata, options.interval),
            (self.look_at_gpus, options.gpu_interval),
            (self.look_at_log, options.interval),
        ):
            threading.Thread(target=self._repeat, args=(look, every), daemon=True).start()
        quickest = pause = min(1.0, options.heartbeat)
        while True:
            taken = self._push_safely()
            # With a notice in hand the next try comes soon; a notice that arrives cuts the wait short.
            pause = quickest if taken or self.known["notices"] else min(options.heartbeat, pause * 2)
            self._news.wait(options.heartbeat if taken else pause)
            self._news.clear()

    def _repeat(self, look: Callable[[], None], every: float) -> None:
        while True:
            try:
                look()
            except Exception as error:  # whatever it is, the next look may work
                self._say(look.__name__, f"{type(error).__name__}: {error}")
            time.sleep(every)  # noqa: TID251

    def _push_safely(self) -> bool:
        if not self.node:
            return False  # its id comes with the metadata
        try:
            self.push()
        except Exception as error:  # no key, no network, garbage: the next try may work
            self._say("push", f"{type(error).__name__}: {error}")
            return False
        self._say("push", "")
        return True

    def _say(self, what: str, error: str) -> None:
        """Log a change for the worse or the better, not its repetition."""
        if self._said.get(what, "") != error:
            self._said[what] = error
            with contextlib.suppress(OSError, ValueError):
                print(f"node-agent: {what}: {error or 'works'}", file=sys.stderr, flush=True)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with a message when it cannot be understood."""
    about, _, examples = (__doc__ or "").partition("Examples:")
    parser = argparse.ArgumentParser(
        prog="node_agent.py",
        description=about.strip(),
        epilog="examples:" + examples.rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    imds = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or IMDS
    add = parser.add_argument
    add("--url", default="", help="the control host's listener for node reports, http:// or https://")
    add("--key-file", default="/run/node-agent/key", help="file with this node's key in hex (%(default)s)")
    add("--ca-file", default="", help="certificates to trust for an https:// URL (the system's)")
    add("--node-id", default="", help="this node's id (from the metadata)")
    add("--imds", default=imds, help="the instance metadata service (%(default)s)")
    add("--nvidia-smi", default="nvidia-smi", help="the command that knows the GPUs (%(default)s)")
    add("--kernel-log", default="/dev/kmsg", help="where Xid errors show (%(default)s)")
    add("--interval", type=_seconds, default=5.0, help="seconds between polls of the metadata (%(default)s)")
    add("--gpu-interval", type=_seconds, default=15.0, help="seconds between looks at GPUs (%(default)s)")
    add("--heartbeat", type=_seconds, default=10.0, help="seconds between reports (%(default)s)")
    add("--once", action="store_true", help="print what it sees as JSON, and exit")
    options = parser.parse_args(arguments)
    if not options.once and urlsplit(options.url).scheme not in ("http", "https"):
        parser.error("--url: give the control host's address, such as http://10.0.0.5:9465, or use --once")
    return options


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 3600:
        raise argparse.ArgumentTypeError("seconds between 0.01 and 3600")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run the agent; with --once, print one report."""
    options = options_of(arguments)
    agent = Agent(options)
    if options.once:
        for look in (agent.look_at_metadata, agent.look_at_gpus, agent.look_at_log):
            look()
        print(json.dumps(agent.report(), indent=2))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        agent.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
