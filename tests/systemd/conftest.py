"""A control host: the Debian package in a booted systemd, a local cloud beside it, clients in front."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from machine import Machine, NoMachine, booted

ROOT = Path(__file__).parents[2]
CONFIG = "/etc/spot-orchestrator/pool.toml"
DAEMON, GATEWAY = "spot-orchestrator.service", "spot-orchestrator-gateway.service"
CLOUD = "local-cloud.service"
PATIENCE = 60.0
REPLICAS = 4
WATCHDOG = 6

MARKET = {"state_dir": "/var/lib/local-cloud", "boot_delay": 0.2, "boot_jitter": 0.0}
QUICK = """
[pool.llama.drain]
budget = "5s"
margin = "1s"
settle = "100ms"

[pool.llama.limits]
launches_per_minute = 100
"""

ASK = """
import json, sys
from pathlib import Path
from orchestrator.api.client import ControlClient
print(json.dumps(ControlClient(Path(sys.argv[1])).get(sys.argv[2])))
"""


class Host:
    """One control host and what tests ask of it."""

    def __init__(self, machine: Machine, package: Path) -> None:
        self.machine, self.package = machine, package
        self.run, self.must = machine.run, machine.must

    def install(self) -> str:
        """Install the package, or bring it to this version."""
        inside = f"/var/tmp/{self.package.name}"
        self.machine.write(inside, self.package.read_bytes())
        return self.must("dpkg", "-i", inside)

    def set_up(self) -> None:
        """What an administrator does after the installation, and a cloud to play with."""
        self.machine.write(CONFIG, quick(self.must("cat", CONFIG)))
        self.machine.write(
            f"/etc/systemd/system/{DAEMON}.d/test.conf", f"[Service]\nWatchdogSec={WATCHDOG}s\n"
        )
        self.machine.write("/etc/market.json", json.dumps(MARKET))
        self.must("useradd", "--groups", "spot-orchestrator", "alice")
        self.must("systemctl", "daemon-reload")
        self.must(
            *(
                "systemd-run",
                f"--unit={CLOUD}",
                "--uid=spot-orchestrator",
                "-p",
                "RuntimeDirectory=local-cloud",
            ),
            *("-p", "StateDirectory=local-cloud spot-orchestrator", "orchestrator", "local-cloud"),
            *("--config", CONFIG, "--market", "/etc/market.json"),
        )
        self.must("systemctl", "enable", "--now", GATEWAY, DAEMON)

    # -- looking ----------------------------------------------------------------------------------

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.must("systemctl", "show", "-P", name, unit).strip()

    def pid(self, unit: str) -> int:
        """The main process of a service, as seen inside."""
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str) -> str:
        """The log of a unit."""
        return self.must("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def status(self) -> Any:
        """What `orchestrator status` says to a member of the group; None while the daemon does not answer."""
        done = self.run("runuser", "-u", "alice", "--", "orchestrator", "status", "-o", "json")
        return json.loads(done.stdout) if done.stdout else None

    def nodes(self) -> dict[str, Any]:
        """The nodes that the daemon knows, by id."""
        status = self.status()
        return {} if status is None else {node["id"]: node for node in status["pools"][0]["nodes"]}

    def machines(self) -> Any:
        """What the cloud has seen."""
        words = ("/opt/spot-orchestrator/bin/python", "-c", ASK, "/run/local-cloud/cloud.sock")
        return json.loads(self.must(*words, "/admin/statistics"))

    def until(self, what: str, holds: Callable[[], Any]) -> Any:
        """Wait until `holds()` is true and return it."""
        deadline = time.monotonic() + PATIENCE
        while not (found := holds()):
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {u}\n{self.journal(u)[-3000:]}" for u in (DAEMON, GATEWAY, CLOUD))
                pytest.fail(f"{what}: not within {PATIENCE:.0f} s\n{self.status()}\n{logs}")
            time.sleep(0.2)
        return found

    def settled(self) -> dict[str, Any]:
        """Wait until both services run and the pool is as wanted; the nodes."""

        def whole() -> bool:
            # its exit status is 0 as soon as one of them is active
            states = self.run("systemctl", "is-active", DAEMON, GATEWAY).stdout.split()
            status = self.status()
            if status is None or states != ["active", "active"]:
                return False
            pool = status["pools"][0]
            ready = [n for n in pool["nodes"] if n["phase"] == "ready" and n["attached"]]
            return pool["wanted"] == REPLICAS == len(ready) == len(pool["nodes"])

        self.until("the pool is whole", whole)
        return self.nodes()

    # -- clients ----------------------------------------------------------------------------------

    @contextmanager
    def clients(self, rate: float = 8.0) -> Iterator[Clients]:
        """Requests at the gateway while a test does something, half of them streams."""
        program = (sys.executable, str(Path(__file__).with_name("load.py")))
        words = self.machine.outside(*program, "http://127.0.0.1:8000", str(rate))
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as child:
            clients = Clients(child)
            try:
                clients.answers(10)
                yield clients
            finally:
                clients.end()


class Clients:
    """A load that runs; `report` is what became of it, once it has ended."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child, self.report = child, {}
        self._count = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("{"):
                self.report: dict[str, Any] = json.loads(line)
            else:
                self._count = int(line)

    def answers(self, more: int) -> None:
        """Wait until so many more requests were answered."""
        goal, deadline = self._count + more, time.monotonic() + PATIENCE
        while self._count < goal:
            assert time.monotonic() < deadline, f"{self._count} answers, {goal} expected"
            time.sleep(0.05)

    def end(self) -> None:
        """Send no more and wait for what is owed."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(timeout=2 * PATIENCE)
        self._reader.join(timeout=10)


def quick(text: str) -> str:
    """The installed example with a pool that is whole in seconds."""
    for old, new in (
        ("[daemon]\n", '[daemon]\ntick = "250ms"\npoll_instances = "250ms"\npoll_targets = "250ms"\n'),
        ("replicas = 10", f"replicas = {REPLICAS}"),
        ('model = "simulated-llama"', 'model = "simulated"'),
        ('kind = "simulated"  ', 'args = ["--load-time", "0.2"]\nkind = "simulated"  '),
        ("hot = 1", "hot = 0"),
        ('socket = "/run/spot-orchestrator/cloud.sock"', 'socket = "/run/local-cloud/cloud.sock"\n'
         'state_dir = "/var/lib/local-cloud"'),
    ):  # fmt: skip
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text + QUICK


@pytest.fixture(scope="session")
def package(lacking: Callable[[str], NoReturn]) -> Path:
    """The Debian package as `make deb` made it."""
    found = sorted((ROOT / "build").glob("spot-orchestrator_*.deb"), key=lambda file: file.stat().st_mtime)
    return found[-1] if found else lacking("there is no package in build/; make deb")


@pytest.fixture(scope="session")
def control_host(package: Path, lacking: Callable[[str], NoReturn]) -> Iterator[Host]:
    """One host for all tests."""
    try:
        with booted() as machine:
            made = Host(machine, package)
            made.install()
            made.set_up()
            made.settled()
            yield made
    except NoMachine as error:
        lacking(str(error))


@pytest.fixture
def host(control_host: Host) -> Host:
    """The host with its pool whole, before and after the test."""
    control_host.settled()
    return control_host
