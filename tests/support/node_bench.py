"""A node with its agent, for tests: the metadata that it asks, and the receiver that it reports to."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

import cloud.node_agent
from cloud.agent_keys import NodeKeys
from cloud.agent_receiver import AgentReceiver
from cloud.clock import SystemClock
from cloud.node_agent import node_key
from tests.support.certificates import pair

SECRET = b"the secret of a pool, in a test"
_STANDIN = Path(__file__).parent / "imds"
REPOSITORY = Path(cloud.node_agent.__file__).parents[1]
BARE_PYTHON = ("env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-S")  # no library is installed on a node
AGENT = (*BARE_PYTHON, "-m", "cloud.node_agent")
SELDOM = ("--interval", "0.5", "--gpu-interval", "0.5", "--heartbeat", "0.5")
RECORDED = Path(__file__).parent / "gpus"
_numbers = itertools.count(1)


def fake_nvml(directory: Path) -> Path | None:
    """The library of fake_nvml.c, made in a directory; None where there is no C compiler."""
    compiler, library = shutil.which("cc"), directory / "libnvidia-ml.so.1"
    if compiler is None:
        return None
    source = Path(__file__).parent / "fake_nvml.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


class Imds:
    """The stand-in's process. `order` gives it orders, see tests/support/imds/__main__.py."""

    def __init__(self, url: str) -> None:
        self._url = url

    def order(self, name: str, **values):
        request = urllib.request.Request(f"{self._url}/_imds/{name}", json.dumps(values).encode())  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{name} {values}: {error.read().decode()}") from None


@contextmanager
def running_imds() -> Iterator[Imds]:
    """A stand-in for the metadata service, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(_STANDIN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line, "the stand-in for the metadata service did not start"
        yield Imds(json.loads(line)["url"])
    finally:
        process.kill()
        process.wait()


class Machine:
    """One node: its metadata, and agents that run on it. Its systemd runs, until `stop_system`."""

    def __init__(self, imds: Imds, directory: Path, id: str = "", **values) -> None:
        self.id = id or f"i-{next(_numbers):017x}"
        self._imds = imds
        self.url = imds.order("node", id=self.id, **values)["url"]
        self.directory = directory / self.id
        self.directory.mkdir()
        self.log = self.directory / "kmsg"
        self.log.write_text("")
        self.gpus = self.directory / "nvidia-smi"
        self.nvml = self.directory / "nvml"
        self.show_gpus(
            'case "$1" in --query-remapped-rows=*) what=rows;; *) what=csv;; esac; '
            f"cat {self.directory}/gpus.$what"
        )
        (self.directory / "gpus.csv").write_text(
            "0, GPU-1, NVIDIA L40S, 37, 40960, 46068, 61, 212.50, 350.00, 2490, 2520, 0x0000000000000004, "
            "0, 0, [N/A], [N/A]\n"
        )
        (self.directory / "gpus.rows").write_text("")
        self.key = self.directory / "key"
        self.key.write_text(node_key(SECRET, self.id).hex() + "\n")
        self.boot = self.directory / "boot.json"
        self.systemctl = self.directory / "systemctl"
        self._system_is("running")
        self._processes: list[subprocess.Popen] = []

    def order(self, name: str, **values):
        return self._imds.order(name, node=self.id, **values)

    def give_role(self, role: str, credentials: dict[str, str]) -> None:
        """The credentials of an instance role, as STS gave them."""
        held = {name: credentials[name] for name in ("AccessKeyId", "SecretAccessKey")}
        text = json.dumps({"Code": "Success", "Token": credentials["SessionToken"], **held})
        self.order("put", path=f"meta-data/iam/security-credentials/{role}", text=text)

    def show_gpus(self, script: str) -> None:
        self.gpus.write_text(f"#!/bin/sh\n{script}\n")
        self.gpus.chmod(0o755)

    def stop_system(self, *, signals: bool = True) -> None:
        """Have its systemd stop the machine: it says so, and ends the agents with signals."""
        self._system_is("stopping")
        for process in self._processes if signals else ():
            process.terminate()

    def _system_is(self, state: str) -> None:
        self.systemctl.write_text(f"#!/bin/sh\necho {state}\n[ {state} = running ]\n")
        self.systemctl.chmod(0o755)

    def record(self, name: str, directory: Path = RECORDED) -> None:
        """Have its GPUs say what was recorded under a name: to nvidia-smi, to NVML, or in the kernel log."""
        if (directory / f"{name}.csv").exists():
            shutil.copy(directory / f"{name}.csv", self.directory / "gpus.csv")
        if (directory / f"{name}.rows").exists():
            shutil.copy(directory / f"{name}.rows", self.directory / "gpus.rows")
        if (directory / f"{name}.nvml").exists():
            # As one step: the library reads it at any time.
            shutil.copy(directory / f"{name}.nvml", self.nvml.with_suffix(".new"))
            self.nvml.with_suffix(".new").replace(self.nvml)
        if (directory / f"{name}.kmsg").exists():
            with self.log.open("a") as log:
                log.write((directory / f"{name}.kmsg").read_text())

    def options(self, *more: str) -> list[str]:
        """Options of an agent that looks at this machine, often."""
        return [
            *("--imds", self.url, "--nvidia-smi", str(self.gpus), "--kernel-log", str(self.log)),
            *("--systemctl", str(self.systemctl)),
            *("--nvml", "off"),  # this machine may have a GPU
            *(
                "--key-file",
                str(self.key),
                "--boot-file",
                str(self.boot),
                "--interval",
                "0.05",
                "--gpu-interval",
                "0.1",
                "--heartbeat",
                "0.2",
            ),
            *more,
        ]

    def start(self, *more: str) -> subprocess.Popen:
        """Start an agent as a process. With `*SELDOM` it takes less of the machine from a whole system."""
        with (self.directory / "agent.log").open("a") as log:
            process = subprocess.Popen(
                [*AGENT, *self.options(*more)],
                stderr=log,
                stdout=log,
                env={**os.environ, "FAKE_NVML": str(self.nvml)},
            )
        self._processes.append(process)
        return process

    def said(self) -> str:
        """What its agents wrote."""
        return (self.directory / "agent.log").read_text()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


class Served:
    """A receiver and where it listens."""

    def __init__(self, clock=None, *, identify=None, **settings) -> None:
        clock = clock or SystemClock()
        self.receiver = AgentReceiver(clock, secret=SECRET, **settings)
        if identify is not None:
            owned = self.receiver.owned
            self.receiver.keys = NodeKeys(clock, secret=SECRET, identify=identify, owned=owned)
        self._runner = web.AppRunner(
            self.receiver.application(), access_log=None, shutdown_timeout=0.2, lingering_time=0.0
        )
        self.url = ""

    async def open(self, port: int = 0, tls=None) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True, ssl_context=tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"

    async def close(self) -> None:
        await self._runner.cleanup()


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key, both PEM."""
    made = pair(directory, names=("127.0.0.1",), common="control").write()
    return made.certificate, made.key


def pythons() -> list[str]:
    """This Python, and those of other versions that are here and start."""
    named = [shutil.which(f"python3.{minor}") for minor in range(11, 16)]
    return [
        sys.executable,
        *(p for p in named if p and subprocess.run([p, "-c", ""], capture_output=True).returncode == 0),
    ]
