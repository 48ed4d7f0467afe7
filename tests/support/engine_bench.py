"""Engines under test as processes: the simulated one, llama.cpp and vLLM where they are installed, and the
others as the replay server plays them.

vLLM needs what tools/vllm/install.sh makes, llama.cpp what tools/llamacpp/install.sh does. Without it tests
of that engine are skipped, unless ORCHESTRATOR_REQUIRE_VLLM=1 or ORCHESTRATOR_REQUIRE_LLAMACPP=1 makes its
absence a failure. A kind of engine is its name, with "-embed" or "-rerank" where it is started for that task.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from llama_servers import CONTEXT as LLAMA_CONTEXT
from llama_servers import MODEL as LLAMA_MODEL
from llama_servers import PROGRAM as LLAMA_SERVER
from llama_servers import RANKER as LLAMA_RANKER

from cloud.clock import SystemClock
from cloud.engines.dialect import DIALECTS
from cloud.engines.llamacpp import LlamaCppEngine
from cloud.engines.ollama import OllamaEngine
from cloud.engines.openai_probe import OpenAiProbe
from cloud.engines.row import Dialect
from cloud.engines.sglang import SglangEngine
from cloud.engines.simulated import SimulatedEngine
from cloud.engines.tei import TeiEngine
from cloud.engines.tgi import TgiEngine
from cloud.engines.trtllm import TrtllmEngine
from cloud.engines.vllm import VllmEngine
from cloud.engines.vllm_cpu import CONTEXT, CPU_ARGS, CPU_ENV
from cloud.ports import Engine, EngineCommand, EngineSpec, Task
from policies.model import EngineReading

ROOT = Path(__file__).resolve().parents[2]
SERVED_NAME = "tiny"
SLOTS = 2  # requests that run at once, in every engine of this suite
PATIENCE = 60.0  # s for anything that happens within moments on an idle machine

VLLM = Path(os.environ.get("VLLM_VENV", ROOT / ".venv-vllm")) / "bin" / "vllm"
MODEL = Path(os.environ.get("VLLM_MODEL", ROOT / ".cache" / "tiny-model"))
ENCODER = MODEL.with_name("tiny-bert")
EXTRAS = (
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    "--enable-tokenizer-info-endpoint",
)
ENCODER_ARGS = (
    *("--dtype", "float32", "--enforce-eager", "--distributed-executor-backend", "uni"),
    *("--gpu-memory-utilization", "0.2"),  # of the machine's memory, which others use too
)
SIMULATED_ARGS = (*EXTRAS, "--faults", "--max-model-len", str(CONTEXT))


def _real(task: str) -> tuple[Any, ...]:
    vllm = pytest.param(f"vllm{task}", marks=[pytest.mark.vllm, pytest.mark.timeout(1800)])
    return (f"simulated{task}", pytest.param(f"llamacpp{task}", marks=pytest.mark.llamacpp), vllm)


REPLAYED = ("sglang", "tgi", "trtllm")
BLIND = ("ollama", "ollama-embed")
"""What shows nobody what it holds."""
GENERATING = (*_real(""), *REPLAYED)
NUMBERS = (
    *_real("-embed"),
    *_real("-rerank")[:2],
    *("sglang-embed", "sglang-rerank", "tei-embed", "tei-rerank"),
)
EMBEDDING = _real("-embed")[2:]
"""vLLM alone: a batch takes it long enough to be met by something."""
MEASURED = (*GENERATING, *NUMBERS)
BOUNDED = ("sglang", "tgi", "sglang-embed", "sglang-rerank", "tei-embed", "tei-rerank")
"""Those of them whose queue has a bound in this suite."""
EVERY_KIND = (*MEASURED, *BLIND)
VLLM_KINDS = (_real("")[0], _real("")[2])
"""The engines that speak vLLM's dialect."""


@dataclass
class Subject:
    """One kind of engine under test: how to make its adapter and how to hurt its servers.

    `longest`: tokens of the longest text that it makes.
    """

    kind: str
    engine: Engine
    spec: EngineSpec
    start_timeout: float
    longest: int

    @property
    def row(self) -> Dialect:
        """What is known of the engine."""
        return DIALECTS[self.engine.name]

    @property
    def task(self) -> Task:
        return self.spec.task

    @staticmethod
    def of(kind: str, served_name: str = SERVED_NAME) -> Subject:
        name, _, other = kind.partition("-")
        task: Task = other or "generate"
        make = {"simulated": _simulated, "llamacpp": _llamacpp, "vllm": _vllm}.get(name, _replayed)
        return make(kind, task, served_name)


def _simulated(kind: str, task: Task, served_name: str) -> Subject:
    engine = SimulatedEngine(
        SystemClock(),
        model_name=served_name,
        task=task,
        load_time=0.5,
        tokens_per_second=200.0,
        max_num_seqs=SLOTS,
        probe_timeout=1.0,
        stall_after=0.5,
        deep_every=1.0,
    )
    spec = EngineSpec(
        model="none", served_name=SERVED_NAME, task=task, args=SIMULATED_ARGS, drain_budget=PATIENCE
    )
    return Subject(kind, engine, spec, start_timeout=PATIENCE, longest=CONTEXT - 64)


def _llamacpp(kind: str, task: Task, served_name: str) -> Subject:
    engine = LlamaCppEngine(
        SystemClock(), model_name=served_name, task=task, probe_timeout=1.0, stall_after=0.5, deep_every=1.0
    )
    args = ("--parallel", str(SLOTS), "--ctx-size", str(SLOTS * LLAMA_CONTEXT), "--threads", "1")
    spec = EngineSpec(
        model=str(LLAMA_RANKER if task == "rerank" else LLAMA_MODEL),
        served_name=SERVED_NAME,
        task=task,
        args=(*args, "--pooling", "mean") if task == "embed" else args,
        executable=str(LLAMA_SERVER),
        drain_budget=PATIENCE,
    )
    return Subject(kind, engine, spec, start_timeout=PATIENCE, longest=LLAMA_CONTEXT - 64)


def _vllm(kind: str, task: Task, served_name: str) -> Subject:
    engine = VllmEngine(SystemClock(), model_name=served_name, task=task, stall_after=1.0, deep_every=2.0)
    slots = ("--max-num-seqs", str(SLOTS))
    spec = EngineSpec(
        model=str(MODEL if task == "generate" else ENCODER),
        served_name=SERVED_NAME,
        task=task,
        args=(*CPU_ARGS, *EXTRAS, *slots) if task == "generate" else (*ENCODER_ARGS, *slots),
        env=CPU_ENV,
        executable=str(VLLM),
        drain_budget=PATIENCE,
    )
    return Subject(kind, engine, spec, start_timeout=900.0, longest=CONTEXT - 64)


_PLAYED: dict[str, type[OpenAiProbe]] = {
    engine.name: engine for engine in (SglangEngine, TgiEngine, TeiEngine, OllamaEngine, TrtllmEngine)
}
_SLOTS: dict[str, tuple[str, ...]] = {
    "sglang": ("--max-running-requests", str(SLOTS), "--max-queued-requests", "8"),
    "tgi": ("--max-batch-size", str(SLOTS), "--max-concurrent-requests", str(SLOTS + 8)),
    "tei": ("--max-batch-requests", str(SLOTS), "--max-concurrent-requests", str(SLOTS + 8)),
    "trtllm": ("--max_batch_size", str(SLOTS)),
}


def _replayed(kind: str, task: Task, served_name: str) -> Subject:
    name = kind.partition("-")[0]
    made = _PLAYED[name]
    engine = made(
        SystemClock(), model_name=served_name, task=task, probe_timeout=1.0, stall_after=0.5, deep_every=1.0
    )
    spec = EngineSpec(
        model=SERVED_NAME,
        served_name=SERVED_NAME,
        task=task,
        args=_SLOTS.get(name, ()),
        env={"OLLAMA_NUM_PARALLEL": str(SLOTS), "OLLAMA_MAX_QUEUE": "8"} if name == "ollama" else {},
        executable=str(player(name, task)),
        drain_budget=PATIENCE,
    )
    return Subject(kind, engine, spec, start_timeout=PATIENCE, longest=CONTEXT - 64)


def player(name: str, task: Task = "generate", *words: str) -> Path:
    """A program that takes an engine's command line and plays it."""
    folder = Path(tempfile.mkdtemp(prefix="played-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    script = folder / name
    own = f"{name} --task {task} --model {SERVED_NAME} --load-time 0.6 --tokens-per-second 200 --faults"
    own += f" --watch-every 0.2 {' '.join(words)}"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m cloud.engines.replay {own} -- "$@"\n')
    script.chmod(0o755)
    return script


@dataclass
class Server:
    """A started engine: its process group, its address and what was seen while it loaded."""

    subject: Subject
    command: EngineCommand
    process: subprocess.Popen[bytes]
    address: str
    log: Path
    readings: list[EngineReading] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def plays(self) -> bool:
        """Whether it can be told to do what a real engine has to be hurt for."""
        return not self.subject.kind.startswith(("vllm", "llamacpp"))

    def members(self) -> list[int]:
        """Living processes of its group."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                    if int(group) == self.process.pid and state not in "ZX":
                        found.append(int(entry.name))
        return found

    def core(self) -> int | None:
        """The process that computes, where it is not the one that answers HTTP."""
        for member in self.members():
            with contextlib.suppress(OSError):
                if b"EngineCore" in Path(f"/proc/{member}/cmdline").read_bytes():
                    return member
        return None

    async def all_gone(self) -> None:
        """Wait for the end of its last process: helpers may outlive the leader by a moment."""
        for _ in range(int(PATIENCE / 0.05)):
            if not self.members():
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"processes are left: {self.members()}")

    def kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    async def probe(self, previous: EngineReading | None = None) -> EngineReading:
        return await self.subject.engine.probe("node-1", self.address, previous)

    async def until(
        self,
        what: str,
        holds: Callable[[EngineReading], bool],
        within: float = PATIENCE,
        reading: EngineReading | None = None,
    ) -> EngineReading:
        """Probe until a reading has a property; fail with the last reading and the server's log.

        `reading` is the one before the first.
        """
        try:
            async with asyncio.timeout(within):
                while True:
                    reading = await self.probe(reading)
                    if holds(reading):
                        return reading
                    await asyncio.sleep(0.05)
        except TimeoutError:
            tail = self.log.read_text(errors="replace")[-2000:]
            pytest.fail(f"not {what} within {within:g} s; last reading {reading}; log:\n{tail}")

    async def slow(self, factor: float) -> None:
        """Stretch the time of a token where that is possible; real work takes the time it takes."""
        if self.plays:
            await self.fault("slow", {"factor": factor})

    async def fault(self, name: str, body: Any = None) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/faults/{name}", json=body) as response,
        ):
            assert response.status == 200

    async def hurt(self, fault: str) -> None:
        """Freeze, thaw or crash the engine behind the HTTP server."""
        if self.plays:
            return await self.fault(fault)
        signals = {"freeze": signal.SIGSTOP, "thaw": signal.SIGCONT, "crash-engine": signal.SIGKILL}
        core = self.core() if self.subject.kind.startswith("vllm") else self.process.pid
        assert core is not None
        os.kill(core, signals[fault])

    def stop(self) -> None:
        """The signal that a node gets when its machine is to end."""
        self.process.send_signal(signal.Signals[self.command.stop_signal])


def start(subject: Subject, folder: Path) -> Server:
    """Start an engine from its command, as a node does: placeholders filled in, in a group of its own."""
    command = subject.engine.command(subject.spec)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    filled = [word.replace("{host}", "127.0.0.1").replace("{port}", str(port)) for word in command.argv]
    log = folder / f"{subject.kind}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            filled,
            cwd=ROOT,
            env={**os.environ, **command.env},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Server(subject, command, process, f"127.0.0.1:{port}", log)


async def load(server: Server) -> None:
    """Wait until it is ready, keeping every reading on the way."""

    def ready(reading: EngineReading) -> bool:
        server.readings.append(reading)
        assert server.process.poll() is None, server.log.read_text(errors="replace")[-2000:]
        return reading.ready

    await server.until("ready", ready, within=server.subject.start_timeout)
    await server.subject.engine.close()  # the connections belong to this loop


def available(kind: str) -> str:
    """The kind, where it is installed; else the test is skipped, or fails where it has to be."""
    if kind.startswith("vllm"):
        missing = [path for path in (VLLM, MODEL / "model.safetensors") if not path.exists()]
        if missing:
            reason = f"no real vLLM: {missing[0]} is missing (tools/vllm/install.sh makes it)"
            if os.environ.get("ORCHESTRATOR_REQUIRE_VLLM") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
    if kind == "vllm-embed" and not (ENCODER / "model.safetensors").exists():
        maker = ROOT / "tools" / "equal_results" / "make_tiny_bert.py"
        subprocess.run([VLLM.with_name("python"), maker, MODEL, ENCODER], check=True, timeout=300)
    return kind


@pytest.fixture(scope="session", params=VLLM_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return available(request.param)


@pytest.fixture(scope="session")
def shared(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One ready server for all tests that leave it as they found it."""
    server = start(Subject.of(kind), tmp_path_factory.mktemp("engine"))
    try:
        asyncio.run(load(server))
        yield server
    finally:
        server.kill_group()


@pytest.fixture
async def server(shared: Server) -> AsyncIterator[Server]:
    """The shared server, with a fresh adapter that has not seen it yet."""
    shared.subject = Subject.of(shared.subject.kind)
    yield shared
    await shared.subject.engine.close()


@pytest.fixture
async def victim(kind: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A ready server of its own for a test that ends it."""
    subject = Subject.of(kind)
    victim = start(subject, tmp_path)
    try:
        await load(victim)
        yield victim
    finally:
        await subject.engine.close()
        victim.kill_group()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session
