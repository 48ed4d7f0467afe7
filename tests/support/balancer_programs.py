"""Real balancers, started with the configurations that `orchestrator balancer example` prints.

They are in tools/balancers/install.sh's environment. Tests that use one are skipped without it, unless
ORCHESTRATOR_REQUIRE_BALANCERS=1 makes its absence a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import random
import shlex
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest

from cloud.balancers.envoy import EnvoyCluster
from cloud.balancers.examples import Place, example
from cloud.balancers.haproxy import HaproxyBackend
from cloud.balancers.ledger import Ledger
from cloud.balancers.nginx import NginxUpstream
from cloud.balancers.routers import Router, RouterWorkers
from cloud.clock import SystemClock
from cloud.errors import CloudError
from cloud.ports import LoadBalancer

ROOT = Path(__file__).resolve().parents[2]
REQUIRE_BALANCERS = "ORCHESTRATOR_REQUIRE_BALANCERS"
VENV = Path(os.environ.get("BALANCERS_VENV", ROOT / ".venv-balancers"))
PATIENCE = 30.0


def missing(*programs: str) -> str:
    """What cannot be had here, in words; empty where everything is there."""
    absent = [name for name in programs if not (VENV / "bin" / name).exists()]
    return f"no {', '.join(absent)} in {VENV}: make balancers-env" if absent else ""


def need(*programs: str) -> None:
    """Skip the test without these programs, or fail where they are required."""
    if why := missing(*programs):
        if os.environ.get(REQUIRE_BALANCERS):
            pytest.fail(why)
        pytest.skip(why)


_PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to clients and to servers that ask for any: a program that starts slowly
would find its port taken by one of them."""

_taken: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """Ports that no other test has, of this process or another, for as long as this process lives."""
    return [_free_port() for _ in range(count)]


def _free_port() -> int:
    for port in random.sample(_PORTS, len(_PORTS)):
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f"\0spot-orchestrator-port-{port}")  # gone with the process
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            continue
        _taken.append(mark)
        return port
    raise RuntimeError("no port is free")


def state_of(pid: int) -> str:
    """The letter of ps for a process; empty for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""


async def _gone(pid: int) -> None:
    """Wait until a process that is nobody's child here has ended."""
    async with asyncio.timeout(PATIENCE):
        while state_of(pid) not in ("", "Z"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class BalancerProgram:
    """One real balancer in a folder of its own; started again, it is another process with the same files."""

    kind: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]

    def __init__(self, directory: Path | None = None, account: Any = None, **place: Any) -> None:
        # Paths of sockets are short.
        self.folder = Path(tempfile.mkdtemp(prefix="so-balancer-"))
        self._place = place
        self.place: Place | None = None
        self.process: asyncio.subprocess.Process | None = None
        self._adapters: list[Any] = []

    @property
    def url(self) -> str:
        """Where clients send their requests."""
        assert self.place is not None
        return f"http://127.0.0.1:{self.place.listen_port}"

    def write(self) -> Place:
        """Write the example, once."""
        if self.place is None:
            listen, admin = free_ports(2)
            given = {"interval": 0.05, "fall": 1} | self._place
            self.place = Place(
                pool="test",
                listen_host="127.0.0.1",
                listen_port=listen,
                admin_port=admin,
                folder=str(self.folder),
                run=str(self.folder),
                **given,
            )
            for name, text in example(self.kind, self.place).items():
                (self.folder / name).write_text(text, encoding="utf-8")
        return self.place

    async def start(self) -> None:
        """Start it and wait until it answers."""
        for program in self.programs:
            need(program)
        await self._run()
        async with asyncio.timeout(PATIENCE):
            while not await self.answers() or self._failed():
                if self._failed():
                    raise AssertionError((self.folder / "log").read_text()[-2000:])
                await asyncio.sleep(0.02)

    async def _run(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command(self.write()),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def _failed(self) -> bool:
        """Whether it ended instead of serving."""
        return self.process is not None and self.process.returncode is not None

    @property
    def pid(self) -> int:
        """Its first process. Raises ProcessLookupError where it does not run."""
        if self.process is None:
            raise ProcessLookupError
        return self.process.pid

    async def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it, with its group."""
        for adapter in self._adapters:
            if hasattr(adapter, "flush"):
                await adapter.flush()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(self.pid), how)
        if self.process is not None:
            await self.process.wait()
            self.process = None

    def signal(self, what: signal.Signals) -> None:
        """Send its group a signal; SIGSTOP has stopped it when this returns."""
        os.killpg(os.getpgid(self.pid), what)
        while what is signal.SIGSTOP and state_of(self.pid) != "T":
            time.sleep(0.001)

    def remove(self) -> None:
        """Remove its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def know(self, name: str, address: str) -> None:
        """Its targets carry their ids, or are written down by the adapter."""

    def adapter(self) -> LoadBalancer:
        """A new adapter, as another daemon would make it."""
        made = self.make(self.write())
        self._adapters.append(made)
        return made

    def ledger(self) -> Ledger:
        """What the daemon keeps beside it."""
        return Ledger(self.folder / "ledger" / "test.json", pool="test", clock=SystemClock())

    async def restart(self) -> str:
        """Have it start anew while clients ask, as its own tools do. How; empty where it has no such way."""
        return ""

    async def _until_another(self, before: str) -> None:
        """Wait until the adapter sees another incarnation."""
        looks = self.make(self.write())
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(CloudError):
                    if (await looks.observe()).incarnation != before:
                        break
                await asyncio.sleep(0.02)
        await looks.close()

    async def _incarnation(self) -> str:
        looks = self.make(self.write())
        try:
            return (await looks.observe()).incarnation
        finally:
            await looks.close()

    def make(self, place: Place) -> LoadBalancer:
        raise NotImplementedError

    def command(self, place: Place) -> list[str]:
        raise NotImplementedError

    async def answers(self) -> bool:
        """Whether clients get an answer, an error included."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self.url + "/v1/none"):
                return True
        except (aiohttp.ClientError, OSError):
            return False


class Haproxy(BalancerProgram):
    """HAProxy with its two files."""

    kind = "haproxy"
    programs = ("haproxy",)
    check = "check inter 50ms fastinter 20ms fall 1 rise 1"

    def command(self, place: Place) -> list[str]:
        files = [word for name in ("haproxy.cfg", "servers.cfg") for word in ("-f", f"{place.folder}/{name}")]
        return [str(VENV / "bin" / "haproxy"), "-W", "-db", *files]

    async def restart(self) -> str:
        for adapter in self._adapters:
            await adapter.flush()
        before = await self._incarnation()
        os.kill(self.pid, signal.SIGUSR2)
        await self._until_another(before)
        return "reload"

    def make(self, place: Place) -> LoadBalancer:
        return HaproxyBackend(
            socket=self.folder / "haproxy.sock",
            backend="test",
            clock=SystemClock(),
            servers_file=self.folder / "servers.cfg",
            check=self.check,
        )


class Envoy(BalancerProgram):
    """Envoy with its file of endpoints."""

    kind = "envoy"
    programs = ("envoy",)

    def __init__(self, directory: Path | None = None, account: Any = None, **place: Any) -> None:
        super().__init__(directory, account, **place)
        self._before: list[asyncio.subprocess.Process] = []

    def command(self, place: Place) -> list[str]:
        own = ["--concurrency", "1", "--base-id", str(place.listen_port), "-l", "warning"]
        again = f"--restart-epoch {len(self._before)} --drain-time-s 2 --parent-shutdown-time-s 4".split()
        return [str(VENV / "bin" / "envoy"), "-c", f"{place.folder}/envoy.yaml", *own, *again]

    async def restart(self) -> str:
        before = await self._incarnation()
        assert self.process is not None
        self._before.append(self.process)
        await self._run()
        await self._until_another(before)
        return "hot restart"

    async def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        await super().stop(how)
        for process in self._before:
            if process.returncode is None:
                process.send_signal(how)
            await process.wait()
        self._before.clear()

    async def answers(self) -> bool:
        assert self.place is not None
        try:
            url = f"http://127.0.0.1:{self.place.admin_port}/ready"
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                return answer.status == 200 and await super().answers()
        except (aiohttp.ClientError, OSError):
            return False

    def make(self, place: Place) -> LoadBalancer:
        return EnvoyCluster(
            admin=f"http://127.0.0.1:{place.admin_port}",
            file=self.folder / "endpoints.json",
            cluster="test",
            clock=SystemClock(),
        )


class Nginx(BalancerProgram):
    """nginx with the file that it includes."""

    kind = "nginx"
    programs = ("nginx",)

    def command(self, place: Place) -> list[str]:
        return [*self._nginx(place), "-g", f"user {getpass.getuser()};"]

    def _failed(self) -> bool:
        """What was started ends once its daemon runs."""
        return self.process is not None and self.process.returncode not in (None, 0)

    @property
    def pid(self) -> int:
        try:
            found = int((self.folder / "nginx.pid").read_text())
            if str(self.folder) in Path(f"/proc/{found}/cmdline").read_text():
                return found
        except (OSError, ValueError):
            pass
        raise ProcessLookupError  # the file may name a process that ended, and by now another one

    async def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            master = self.pid
            await super().stop(how)
            await _gone(master)

    async def restart(self) -> str:
        old = self.pid
        os.kill(old, signal.SIGUSR2)
        async with asyncio.timeout(PATIENCE):
            while not (self.folder / "nginx.pid.oldbin").exists() or self._one_of(old):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        os.kill(old, signal.SIGQUIT)
        await _gone(old)
        return "upgrade of its binary"

    def _one_of(self, old: int) -> bool:
        """Whether the new one does not serve yet."""
        with contextlib.suppress(ProcessLookupError):
            return self.pid == old
        return True

    def _nginx(self, place: Place) -> list[str]:
        return [str(VENV / "bin" / "nginx"), "-p", place.folder, "-c", f"{place.folder}/nginx.conf"]

    def make(self, place: Place) -> LoadBalancer:
        return NginxUpstream(
            url=f"http://127.0.0.1:{place.admin_port}/orchestrator",
            file=self.folder / "targets.conf",
            upstream="test",
            reload=[*self._nginx(place), "-s", "reload"],
            ledger=self.ledger(),
            clock=SystemClock(),
        )


class RouterProgram(BalancerProgram):
    """A router for inference engines, started as its page says."""

    router: ClassVar[Router]

    def command(self, place: Place) -> list[str]:
        text = (self.folder / "command.txt").read_text(encoding="utf-8")
        (line,) = (line for line in text.splitlines() if line and not line.startswith("#"))
        program, *words = shlex.split(line)
        return [str(VENV / "bin" / program), *words, "--prometheus-port", str(place.admin_port)]

    def make(self, place: Place) -> LoadBalancer:
        return RouterWorkers(kind=self.router, url=self.url, ledger=self.ledger(), clock=SystemClock())


class Smg(RouterProgram):
    """smg."""

    kind = router = "smg"
    programs = ("smg",)


class SglangRouter(RouterProgram):
    """sglang-router."""

    kind = router = "sglang-router"
    programs = ("sglang-router",)


class VllmRouter(RouterProgram):
    """vllm-router."""

    kind = router = "vllm-router"
    programs = ("vllm-router",)


PROGRAMS: dict[str, type[BalancerProgram]] = {
    "haproxy": Haproxy,
    "envoy": Envoy,
    "nginx": Nginx,
    "smg": Smg,
    "sglang-router": SglangRouter,
    "vllm-router": VllmRouter,
}
