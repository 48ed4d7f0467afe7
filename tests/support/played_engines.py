"""Engines that cannot be had here, as the replay server plays them, at ports of the system's choice."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

PATIENCE = 60.0
WORDS = {
    "sglang": ("serve", "--model-path", "tiny"),
    "tgi": ("--model-id", "tiny"),
    "tei": ("--model-id", "tiny"),
    "trtllm": ("tiny",),
}
"""The least that each engine has to be told. Ollama is told by variables."""


@contextlib.contextmanager
def played(kind: str, *own: str, args: tuple[str, ...] = ()) -> Iterator[str]:
    """A server that is ready, but for Ollama, which loads at its first request; its address."""
    rest = ("serve",) if kind == "ollama" else (*WORDS[kind], "--port", "0", *args)
    rate = ("--tokens-per-second", "500", "--faults", "--model", "tiny")
    process = subprocess.Popen(
        [sys.executable, "-m", "cloud.engines.replay", kind, *rate, *own, "--", *rest],
        stderr=subprocess.PIPE,
        env={"OLLAMA_HOST": "127.0.0.1:0"},
        text=True,
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "listens on" in line)
        if kind != "ollama":
            assert any("ready" in line for line in process.stderr)
        yield line.split()[-1]
    finally:
        process.kill()
        process.wait(PATIENCE)
