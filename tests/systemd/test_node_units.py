"""The units that a node's user-data installs, under a real systemd: who runs, who may read, what the console
shows, and what happens when the engine ends or cannot start."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from machine import Machine, NoMachine, booted

from cloud.cloud_init.user_data import NodeSetup, written
from cloud.ports import EngineCommand

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PATIENCE = 60.0
REPORT = "/run/orchestrator-engine/boot.json"
CONSOLE = "/var/log/console"
IMDS = "http://127.0.0.1:9163"

METADATA = """
import http.server
class Answers(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        self.reply(b"token")
    def do_GET(self):
        self.reply(b"127.0.0.1")
    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 9163), Answers).serve_forever()
"""
ENGINE = """#!/usr/bin/python3
import json, os, pathlib, sys, time
pathlib.Path("/var/lib/orchestrator-engine/seen.json").write_text(json.dumps([os.getuid(), dict(os.environ)]))
print("the engine says hello", flush=True)
if pathlib.Path("/opt/engine/broken").exists():
    print("ValueError: no kernel image is available", flush=True)
    sys.exit(3)
time.sleep(1000)
"""
UNIT = """[Service]
ExecStart=/usr/bin/python3 /opt/engine/metadata.py
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Machine]:
    """A machine with what cloud-init writes, and a stand-in for the metadata service."""
    setup = NodeSetup(pool="llama", command=EngineCommand(argv=("/opt/engine/bin/engine",)), port=8000)
    try:
        with booted() as machine:
            for path, text in written(setup).items():
                machine.write(path, text)
            for path, text in (("metadata.py", METADATA), ("bin/engine", ENGINE)):
                machine.write(f"/opt/engine/{path}", text)
            machine.write("/etc/systemd/system/metadata.service", UNIT)
            # A container has no terminal for a console.
            changes = {"engine": "", "console": f"StandardOutput=append:{CONSOLE}\nTTYPath=\n"}
            for unit, more in changes.items():
                text = f"[Service]\nEnvironment=AWS_EC2_METADATA_SERVICE_ENDPOINT={IMDS}\n{more}"
                machine.write(f"/etc/systemd/system/orchestrator-{unit}.service.d/test.conf", text)
            machine.must("chmod", "755", "/opt/engine/bin/engine")
            machine.must("systemd-sysusers")
            machine.must("systemctl", "daemon-reload")
            machine.must("systemctl", "start", "metadata")
            units = [p.rpartition("/")[2] for p in written(setup) if p.endswith(".service")]
            machine.must("systemctl", "enable", "--now", *units)
            yield machine
    except NoMachine as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _begun_anew(node: Machine) -> None:
    """As after a boot, with an engine that works."""
    node.must("systemctl", "stop", "orchestrator-engine", "orchestrator-disks")
    node.must("rm", "-f", "/opt/engine/broken", REPORT)
    node.must("systemctl", "start", "orchestrator-disks", "orchestrator-engine")
    wait(lambda: report(node).get("stage") == "start")


def breaks(node: Machine) -> None:
    node.write("/opt/engine/broken", "")
    node.must("systemctl", "kill", "-s", "KILL", "orchestrator-engine")


def report(node: Machine) -> dict[str, Any]:
    done = node.run("setpriv", "--reuid=nobody", "--clear-groups", "cat", REPORT)  # as the agent reads it
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def wait(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_engine_runs_as_a_user_of_its_own_and_tells_everybody_how_it_went(node: Machine) -> None:
    found = report(node)
    assert (found["ok"], found["restarts"]) == (True, 0)
    assert [check["name"] for check in found["checks"]][:2] == ["local-disk", "engine"]
    wait(lambda: node.run("test", "-e", "/var/lib/orchestrator-engine/seen.json").returncode == 0)
    user, environment = json.loads(node.must("cat", "/var/lib/orchestrator-engine/seen.json"))
    assert user == int(node.must("id", "-u", "orchestrator-engine")) != 0
    assert environment["PATH"].startswith("/opt/engine/bin:")
    assert environment["HOME"] == "/var/lib/orchestrator-engine"
    for path in ("/etc/x", "/opt/orchestrator/x", "/usr/x"):
        pid = node.must("systemctl", "show", "-p", "MainPID", "--value", "orchestrator-engine").strip()
        words = ("nsenter", "-t", pid, "-m", "-S", str(user), "touch", path)
        assert node.run(*words).returncode != 0


def test_an_engine_that_breaks_is_told_of_and_tried_ever_more_rarely(node: Machine) -> None:
    breaks(node)
    wait(lambda: "; restart 2 follows in 5 s" in report(node).get("detail", ""))
    assert report(node)["detail"].startswith("the engine ended (exit-code exited 3); its log says why")
    wait(lambda: "; restart 3 follows in 10 s" in report(node).get("detail", ""))
    log = node.must("journalctl", "-u", "orchestrator-engine", "-o", "cat")
    assert "ValueError: no kernel image is available" in log


def test_the_console_shows_why(node: Machine) -> None:
    breaks(node)
    wait(lambda: "ValueError: no kernel image is available" in node.must("cat", CONSOLE))
    shown = node.must("cat", CONSOLE)
    assert "node-disks: disks: this machine has no local disk" in shown
    assert "node-start: ok: engine: /opt/engine/bin/engine" in shown
