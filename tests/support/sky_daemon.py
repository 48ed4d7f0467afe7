"""A whole daemon with a pool through SkyPilot, as a process, and what it weighs and imports."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aws_stage import REGION, ZONES, credentials, free_port
from sky_stage import POOL, VENV

from orchestrator.api.client import ClientError, ControlClient

_AT_EXIT = (
    "import atexit, json, pathlib, sys\n"
    "file = pathlib.Path({file!r})\n"
    "atexit.register(lambda: file.write_text(json.dumps(sorted(sys.modules))))\n"
)
_CONFIG = """
[daemon]
state_dir = "{state}"
socket = "{socket}"
listen = "127.0.0.1:{listen}"
tick = "250ms"
probe_interval = "500ms"
poll_instances = "30s"
call_timeout = "60s"

[pool.{pool}]
replicas = {nodes}
model = "simulated"

[pool.{pool}.engine]
kind = "simulated"
allow_simulated = true

[pool.{pool}.limits]
spend_per_hour = "unlimited"
launches_per_minute = 1000
surge = {nodes}

[pool.{pool}.patience]
stale_after = "5m"
effect_timeout = "5m"

[pool.{pool}.cloud]
kind = "skypilot"

[pool.{pool}.cloud.skypilot]
python = "{python}"
home = "{home}"
cloud = "aws"
instance_types = ["g6.xlarge"]
engine_port = {port}
endpoint = "{url}"

[pool.{pool}.cloud.skypilot.regions.{region}]
zones = {zones}
network = "{group}"
image = "ami-12345678"
"""


_PR_SET_MDWE, _REFUSE_EXEC_GAIN = 65, 1


def _as_in_the_unit() -> None:
    """No memory that can be written becomes a program, as the unit's MemoryDenyWriteExecute has it for the
    daemon and its helper. Kernels before 6.3 do not know it."""
    ctypes.CDLL(None).prctl(_PR_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0)


class SkyDaemon:
    """`orchestrator run` on a pool of so many nodes, whose engines listen at `port` of each machine."""

    def __init__(self, directory: Path, url: str, home: Path, group: str, port: int, nodes: int) -> None:
        self.directory, self.nodes = directory, nodes
        self._sockets = tempfile.TemporaryDirectory(prefix="sky-daemon-")
        socket = Path(self._sockets.name) / "daemon"
        self.client = ControlClient(socket)
        self.config, self._modules = directory / "pool.toml", directory / "modules.json"
        text = _CONFIG.format(
            state=directory / "state",
            socket=socket,
            listen=free_port(),
            pool=POOL,
            nodes=nodes,
            python=VENV / "bin" / "python",
            home=home,
            port=port,
            url=url,
            region=REGION,
            zones=json.dumps(ZONES),
            group=group,
        )
        self.config.write_text(text)
        (directory / "state").mkdir()
        (directory / "sitecustomize.py").write_text(_AT_EXIT.format(file=str(self._modules)))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. What it logs is in `log` of the directory."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "run", "--config", str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, **credentials(), "PYTHONPATH": str(self.directory)},
                preexec_fn=_as_in_the_unit,
            )

    def until_ready(self, patience: float = 300.0) -> float:
        """Wait until every node is ready; the seconds that it took."""
        began = time.monotonic()
        while (ready := self.ready()) < self.nodes:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() - began < patience, f"{ready} of {self.nodes} are ready\n{self.log()}"
            time.sleep(0.2)
        return time.monotonic() - began

    def ready(self) -> int:
        """How many nodes are ready."""
        try:
            status: Any = self.client.status()
        except (ClientError, OSError):
            return 0
        return int(sum(pool["ready"] for pool in status["pools"]))

    def most_memory(self) -> int:
        """The most bytes that it held so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the kernel does not say how much memory it held")

    def doctor(self) -> Any:
        """What `orchestrator doctor` finds beside it, of the group of SkyPilot."""
        words = ["doctor", "--config", str(self.config), "--only", "skypilot", "-o", "json"]
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            capture_output=True,
            cwd=self.directory,
            env={**os.environ, **credentials()},
            check=False,
        )
        return json.loads(done.stdout)

    def stop(self) -> set[str]:
        """End it as systemd does; the names of the packages that it had imported."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0, self.log()
        return {name.partition(".")[0] for name in json.loads(self._modules.read_text())}

    def close(self) -> None:
        """End it at once, where it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._sockets.cleanup()

    def log(self) -> str:
        """The end of what it logged."""
        return (self.directory / "log").read_text()[-3000:]

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """It, once it was started."""
        assert self._process is not None
        return self._process
