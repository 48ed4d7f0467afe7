"""A real vLLM server with the tiny model, for tests marked `vllm` (tools/vllm/install.sh makes it)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from cloud.clock import SystemClock
from cloud.engines.vllm import VllmEngine
from cloud.engines.vllm_cpu import CPU_ARGS, CPU_ENV
from cloud.ports import EngineSpec

ROOT = Path(__file__).resolve().parents[2]
VLLM = Path(os.environ.get("VLLM_VENV", ROOT / ".venv-vllm")) / "bin" / "vllm"
MODEL = Path(os.environ.get("VLLM_MODEL", ROOT / ".cache" / "tiny-model"))


def skip_without_vllm() -> None:
    """Skip where there is none, or fail where ORCHESTRATOR_REQUIRE_VLLM=1 says there is."""
    missing = [path for path in (VLLM, MODEL / "model.safetensors") if not path.exists()]
    if missing:
        reason = f"no real vLLM: {missing[0]} is missing (tools/vllm/install.sh makes it)"
        if os.environ.get("ORCHESTRATOR_REQUIRE_VLLM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


class VllmServer:
    """One server that serves `tiny`, started as our engine starts it, with more flags and variables; on a
    port that it keeps over its lives.
    """

    def __init__(
        self, folder: Path, name: str = "vllm", args: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.name = name
        self.log = folder / f"{name}.log"
        words = (*CPU_ARGS, *args)
        spec = EngineSpec(model=str(MODEL), served_name="tiny", args=words, env=CPU_ENV, executable=str(VLLM))
        command = VllmEngine(SystemClock(), model_name="tiny").command(spec)
        self._argv = [
            word.replace("{host}", "127.0.0.1").replace("{port}", str(self.port)) for word in command.argv
        ]
        self._env = {**os.environ, **command.env, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Start it, and do not wait."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._argv, env=self._env, stdout=out, stderr=out, start_new_session=True
            )

    def ready(self) -> bool:
        """Whether it answers. Fails where it has ended."""
        assert self._process is not None, "it was not started"
        assert self._process.poll() is None, self.log.read_text(errors="replace")[-2000:]
        return _answers(self.address)

    async def start(self) -> None:
        """Start it if it does not run, and wait until it answers."""
        if self._process is None:
            self.begin()
        while not await asyncio.to_thread(self.ready):  # noqa: ASYNC110 - a process is asked
            await asyncio.sleep(0.2)

    async def kill(self) -> None:
        """kill -9 of all its processes."""
        self.end()

    def end(self) -> None:
        """The same. Idempotent."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def running_vllm(folder: Path, args: Sequence[str] = ()) -> Iterator[str]:
    """The address of a ready server with more flags, gone at the end."""
    skip_without_vllm()
    server = VllmServer(folder, args=args)
    try:
        server.begin()
        while not server.ready():
            time.sleep(0.5)
        yield server.address
    finally:
        server.end()


def counter(address: str, name: str) -> float:
    """The sum of a counter of its /metrics over all labels, such as "generation_tokens_total"."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return sum(float(found) for found in re.findall(rf"^vllm:{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
