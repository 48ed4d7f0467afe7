#!/usr/bin/env python3
"""Runs on a node: tells the control host what the instance metadata and the GPUs say.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that a node needs nothing. It
reads the notices in the metadata of EC2, Compute Engine or Azure, asks NVML or nvidia-smi for the GPUs, reads
the kernel log for Xid errors, the boot report of `cloud.node_start` and the engine's log until it serves, and
pushes what it knows as one JSON report: every few seconds as a heartbeat, at once when there is a notice. A
report holds the whole state, so a lost one costs nothing but time.

Where it is ended because systemd stops the machine, it has a last word on any cloud: an interruption, twenty
seconds from then.

Every report is signed with the node's own key and numbered within a session that the control host names in
its answers: it can be neither forged nor replayed, and it speaks for this node only. The key is read from
its file for every report, so it may arrive after the agent and may be changed.

Nothing stops it: no network, no metadata, no GPU, no key, garbage or silence from any of them. Each source
is read in a thread of its own, so one that hangs delays no other.

Examples:
  python3 -m cloud.node_agent --url http://10.0.0.5:9465 --key-file /run/node-agent/key
  python3 -m cloud.node_agent --once      print what it sees and exit; needs neither --url nor a key
  python3 -m cloud.node_agent --once --imds http://127.0.0.1:1338
  python3 -m cloud.node_agent --cloud none --node-id rack-7 --url http://10.0.0.5:9465
"""

# This file runs where nothing of the project is installed and on older Pythons: hence time and threads
# instead of the project's Clock and asyncio.
from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import hmac
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from cloud.node_boot import BOOT_FILE
from cloud.node_gpus import NVML, Gpus, Xids
from cloud.node_log import StartLog
from cloud.node_metadata import IMDS, MOST_READ, Refused, fetch
from cloud.node_notices import CLOUDS, LAST_WORD_SECONDS, is_stopping, read_json, reader_of, told_notice

SCHEMA = "node-report/1"
MOST_CHECKS = 16
MOST_STAGES = 8
LOG_LINES = 5000  # of an engine's log that are read at first
WAIT_AGAIN = 0.2  # s between two waits for a change of the metadata, and before one that failed is repeated
XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9A-Fa-f]+:[0-9A-Fa-f:.]+)(?: GPU-I:\d+)?\): (\d+)(?:, (.*))?")


def node_key(secret: bytes, node: str) -> bytes:
    """The key of one node, from the secret of its pool: nothing has to be stored for each node."""
    return hmac.new(secret, b"node-key/1\n" + node.encode(), hashlib.sha256).digest()


def signature(key: bytes, node: str, body: bytes) -> str:
    """The signature of a report: HMAC-SHA256 over the node's id and the body, in hex.

    The control host checks reports with this function and `node_key`.
    """
    return hmac.new(key, b"\n".join((SCHEMA.encode(), node.encode(), body)), hashlib.sha256).hexdigest()


class KernelLog:
    """The Xid errors in the kernel's log. /dev/kmsg is read from its oldest record on, then followed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None
        self._rest = b""
        self.xids = Xids()
        self.error = ""

    def read(self) -> None:
        """Read what is new. Never raises for what the log holds."""
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
                self.xids, self._rest = Xids(), b""  # it is read from its beginning
            self._drain(self._fd)
            self.error = ""
        except OSError as error:
            self.error = f"{self._path}: {error.strerror}"
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

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
            self.xids.add(match[1][:32], int(match[2]), text[:200])


def _stage(boot: dict[str, Any] | None) -> tuple[str, str]:
    return (str(boot.get("stage")), str(boot.get("ok"))) if boot else ("", "")


def read_boot(path: str) -> dict[str, Any] | None:
    """The boot report that `cloud.node_start` writes; None when there is none that can be read.

    The engine's user writes that file. So what is passed on is only what it should hold, in ASCII and
    bounded: whatever else were in it could make the control host refuse the whole report.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            body = file.read(MOST_READ) or b""
    except OSError:
        return None
    boot = read_json(body.decode("utf-8", "replace"))
    if not isinstance(boot, dict) or boot.get("schema") != 1:
        return None
    at, restarts, checks = boot.get("at"), boot.get("restarts"), boot.get("checks")
    return {
        "schema": 1,
        "stage": _plain(boot.get("stage"), 32),
        "ok": boot.get("ok") is True,
        "detail": _plain(boot.get("detail"), 500),
        "checks": [
            {"name": _plain(c.get("name"), 32), "ok": c.get("ok") is True, "text": _plain(c.get("text"), 500)}
            for c in (checks[:MOST_CHECKS] if isinstance(checks, list) else [])
            if isinstance(c, dict)
        ],
        "at": at if isinstance(at, (int, float)) and 0 <= at < 1e12 else 0,
        "restarts": restarts if isinstance(restarts, int) and 0 <= restarts < 10**6 else 0,
        "first": _moment(boot.get("first")),
        "times": _times(boot.get("times")),
    }


def _moment(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and 0 < value < 1e12 else None


def _times(found: Any) -> dict[str, Any]:
    pairs = list(found.items())[:MOST_STAGES] if isinstance(found, dict) else []
    return {_plain(name, 32): at for name, at in pairs if _moment(at) is not None}


def _written(text: str) -> float | None:
    """When a line of the journal was written."""
    return float(text) if re.fullmatch(r"\d{9,11}\.\d{1,9}", text) else None


def _plain(value: Any, longest: int) -> str:
    return "".join(c for c in value[:longest] if " " <= c <= "~") if isinstance(value, str) else ""


class Agent:
    """What is known of this node, and the threads that find it out and push it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._reader: Any = None  # of the metadata, once it is known whose they are
        self._notices: dict[str, list[dict[str, Any]]] = {"shutdown": [], "change": [], "look": []}
        self._sent: list[dict[str, Any]] = []  # the notices of the last report that was taken up
        self._last_word_taken = threading.Event()
        self._gpus = Gpus(options.nvidia_smi, "" if options.nvml == "off" else options.nvml)
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
        self.known.update(cloud="", life_cycle="", notices=[], gpus=[], xids=[], boot=None, engine=None)
        self._followed = None

    def look_at_metadata(self) -> None:
        """Poll the metadata once. What was seen before holds while it does not answer."""
        if self._options.cloud == "none":
            self._learn(metadata_error="")
            return
        try:
            reader = self._reader or reader_of(self._options.cloud, self._options.imds)
            if not self.node or not self.known["life_cycle"]:
                node, cycle = reader.identity()
                self.node = self.node or node
                self._learn(cloud=reader.cloud, life_cycle=cycle)
                self._news.set()
            self._reader = reader
            found = reader.notices(time.time())  # noqa: TID251
            self._learn(metadata_error="")
            self._notice("look", found)
        except Refused as refused:
            self._learn(metadata_error=str(refused)[:200])

    def wait_for_change(self) -> None:
        """Wait for a notice where the metadata say so by themselves. Raises Refused."""
        if self._reader is not None and self._reader.waits:
            self._notice("change", self._reader.changed())

    def last_word(self) -> None:
        """End the agent; where the machine is stopping, once that was said, or nobody can hear it."""
        if is_stopping(self._options.systemctl):
            deadline = time.time() + LAST_WORD_SECONDS  # noqa: TID251
            self._notice("shutdown", [told_notice("interruption", deadline, "shutdown", "shutdown")])
            self._last_word_taken.wait(LAST_WORD_SECONDS)
        os._exit(0)

    def _notice(self, where: str, found: list[dict[str, Any]]) -> None:
        """Take up the notices of one source; those of the others hold."""
        with self._lock:
            self._notices[where] = found
            notices = [notice for part in self._notices.values() for notice in part]
        self._learn(notices=notices)

    def look_at_gpus(self) -> None:
        """Ask the GPUs once."""
        gpus, error = self._gpus.read()
        self._learn(gpus=gpus, gpu_error=error)

    def look_at_log(self) -> None:
        """Read what is new in the kernel log. While that cannot be read, NVML's count."""
        self._log.read()
        xids = self._gpus.xids if self._log.error else self._log.xids.listed()
        self._learn(xids=xids, xid_error=self._log.error)

    def look_at_boot(self) -> None:
        """Read how far the start of the engine came. While that cannot be read, what it said last holds."""
        boot = read_boot(self._options.boot_file)
        if boot is not None:
            self._learn(boot=boot)

    def look_at_engine(self) -> None:
        """Read the engine's log until it serves, once for each start in the boot report."""
        began = ((self.known["boot"] or {}).get("times") or {}).get("start")
        if began is None or began == self._followed:
            return
        log = StartLog()
        command = [self._options.journalctl, "-fqb", "-n", str(LOG_LINES), "-o", "short-unix"]
        with subprocess.Popen(
            [*command, "-u", self._options.engine_unit],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as journal:
            for raw in journal.stdout or ():
                at, _, line = raw.decode("utf-8", "replace").partition(" ")
                log.take(line, _written(at))
                told = log.told()
                if log.serves and (told["serves_at"] or began) < began:
                    continue  # that was an earlier start
                if told != self.known["engine"]:
                    self._learn(engine=told)
                if log.serves:
                    self._followed = began
                    break
            journal.kill()

    def _learn(self, **news: Any) -> None:
        with self._lock:
            urgent = any(self.known[key] != news[key] for key in ("notices", "xids") if key in news)
            urgent |= "engine" in news and news["engine"]["serves"]
            urgent |= "boot" in news and _stage(self.known["boot"]) != _stage(news["boot"])
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
                self._sent = report["notices"]
                return True
            told = read_json(answer.decode("utf-8", "replace"))
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
            (self.wait_for_change, WAIT_AGAIN),
            (self.look_at_gpus, options.gpu_interval),
            (self.look_at_log, options.interval),
            (self.look_at_boot, options.interval),
            (self.look_at_engine, options.interval),
        ):
            threading.Thread(target=self._repeat, args=(look, every), daemon=True).start()
        quickest = pause = min(1.0, options.heartbeat)
        while True:
            taken = self._push_safely()
            if taken and any(notice["event"] == "shutdown" for notice in self._sent):
                self._last_word_taken.set()
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
            pace = self._reader.pace if self._reader is not None and look == self.look_at_metadata else every
            time.sleep(min(every, pace))  # noqa: TID251

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
    add("--cloud", default="auto", choices=("auto", *CLOUDS, "none"), help="whose metadata (%(default)s)")
    add("--imds", default=imds, help="the instance metadata service (%(default)s)")
    add("--nvml", default=NVML, help='the library that knows the GPUs, or "off" (%(default)s)')
    add("--nvidia-smi", default="nvidia-smi", help="the command to ask without that library (%(default)s)")
    add("--kernel-log", default="/dev/kmsg", help="where Xid errors show (%(default)s)")
    add("--boot-file", default=BOOT_FILE, help="how far the start of the engine came (%(default)s)")
    add("--journalctl", default="journalctl", help="the command that has its log (%(default)s)")
    add("--engine-unit", default="orchestrator-engine", help="the unit whose log it is (%(default)s)")
    add("--systemctl", default="systemctl", help="the command that knows of a shutdown (%(default)s)")
    add("--interval", type=_seconds, default=5.0, help="seconds between polls of the metadata (%(default)s)")
    add("--gpu-interval", type=_seconds, default=15.0, help="seconds between looks at GPUs (%(default)s)")
    add("--heartbeat", type=_seconds, default=10.0, help="seconds between reports (%(default)s)")
    add("--once", action="store_true", help="print what it sees as JSON, and exit")
    options = parser.parse_args(arguments)
    if not options.once and urlsplit(options.url).scheme not in ("http", "https"):
        parser.error("--url: give the control host's address, such as http://10.0.0.5:9465, or use --once")
    if options.cloud == "none" and not options.node_id:
        parser.error("--cloud none: no metadata say which node this is; give its --node-id")
    return options


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 3600:
        raise argparse.ArgumentTypeError("seconds between 0.01 and 3600")
    return value


def _when_ended(act: Callable[[], None]) -> None:
    """Have a thread of its own act on SIGTERM, at once.

    Python's handlers run in the main thread only, which may sleep on until its wait is over when the signal
    comes just before it, or to another thread. The file that is written for each signal wakes the thread.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait() -> None:
        while signal.SIGTERM not in os.read(reading, 16):
            pass
        act()

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str] | None = None) -> int:
    """Run the agent; with --once, print one report."""
    options = options_of(arguments)
    agent = Agent(options)
    if options.once:
        for look in (agent.look_at_metadata, agent.look_at_gpus, agent.look_at_log, agent.look_at_boot):
            look()
        with contextlib.suppress(Refused):  # which the metadata's error says
            agent.wait_for_change()  # the first answer comes at once
        print(json.dumps(agent.report(), indent=2))
        return 0
    _when_ended(agent.last_word)
    with contextlib.suppress(KeyboardInterrupt):
        agent.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
