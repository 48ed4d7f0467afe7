"""A real vLLM server with the tiny model, for tests marked `vllm` (tools/vllm/install.sh makes it)."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
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


@contextlib.contextmanager
def running_vllm(folder: Path, args: Sequence[str] = ()) -> Iterator[str]:
    """The address of a ready server that serves `tiny`, started as our engine starts it, with more flags."""
    skip_without_vllm()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = (*CPU_ARGS, *args)
    spec = EngineSpec(model=str(MODEL), served_name="tiny", args=words, env=CPU_ENV, executable=str(VLLM))
    command = VllmEngine(SystemClock(), model_name="tiny").command(spec)
    argv = [word.replace("{host}", "127.0.0.1").replace("{port}", port) for word in command.argv]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, env={**os.environ, **command.env}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while not _answers(f"127.0.0.1:{port}"):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


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
