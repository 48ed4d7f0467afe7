"""Real llama.cpp servers with the tiny model: engines of pools, and providers of every dialect they speak.

One server answers `/v1/chat/completions`, `/v1/completions`, `/v1/messages` and `/v1/models`, or, started for
the task "embed", `/v1/embeddings`. It is ready 0.4 s after its start, takes 40 MB, gives up to 10,000 tokens
a second, and serves whatever model a request names. Tests that use one are marked `llamacpp`: without
tools/llamacpp/install.sh's environment they are skipped, unless ORCHESTRATOR_REQUIRE_LLAMACPP=1 makes its
absence a failure.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import runpy
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
REQUIRE_LLAMACPP = "ORCHESTRATOR_REQUIRE_LLAMACPP"
VENV = Path(os.environ.get("LLAMACPP_VENV", ROOT / ".venv-llamacpp"))
PROGRAM = VENV / "bin" / "llama-server"
MODEL = Path(os.environ.get("LLAMACPP_MODEL", ROOT / ".cache" / "tiny-model.gguf"))
RANKER = MODEL.with_name("tiny-ranker.gguf")
CONTEXT = 16384
"""Tokens of the longest request of the tiny model."""
WIDTH = 64
"""Numbers in an embedding of the tiny model."""

Task = Literal["generate", "embed"]

_READY = re.compile(r"^llama-server: ready at http://127\.0\.0\.1:(\d+)$", re.MULTILINE)
_PATIENCE = 60.0  # s for what takes half a second on an idle machine

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Bergen"]}},
    "required": ["city"],
    "additionalProperties": False,
}
"""The schema of a tool's arguments that the tiny model can call: a required call is one of the two cities."""


def make_adapters(folder: Path, count: int) -> list[str]:
    """Files of so many LoRA adapters of the tiny model, each of which says something else."""
    tool = runpy.run_path(str(ROOT / "tools" / "llamacpp" / "make_tiny_model.py"))
    files = [folder / f"{seed}.gguf" for seed in range(1, count + 1)]
    for seed, file in enumerate(files, 1):
        file.write_bytes(tool["gguf"](tool["adapter_settings"](), tool["adapter_weights"](seed)))
    return [str(file) for file in files]


def missing_llamacpp() -> str:
    """What a test cannot have here, in words; empty where everything is there."""
    for path in (PROGRAM, MODEL, RANKER):
        if not path.exists():
            return f"no real llama.cpp: {path} is missing (make llamacpp-env makes it)"
    return ""


class LlamaServer:
    """One server, started again at the same port as often as a test likes.

    `name` is what its model list calls the model, `key` what clients have to send ("" for nothing), `slots`
    how many requests run at once; `words` are more of llama-server's flags, of its next start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "tiny",
        task: Task = "generate",
        key: str = "",
        slots: int = 4,
        words: Sequence[str] = (),
    ) -> None:
        self.name, self.key, self.slots = name, key, slots
        self.port = 0
        self.log = folder / f"llama-{name}.log"
        self._words = [*("--parallel", str(slots), "--ctx-size", str(slots * CONTEXT), "--threads", "1")]
        self._words += ["--metrics", "--no-webui"]
        self._words += ["--embedding", "--kv-unified", "--pooling", "mean"] if task == "embed" else []
        self._words += ["--api-key", key] if key else []
        self.words = [*words]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where it is, without the `/v1`."""
        return f"http://{self.address}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was not started"
        return self._process

    def start(self) -> None:
        """Start it and wait until it is ready; the system chooses its port the first time."""
        words = ["--model", str(MODEL), "--alias", self.name, "--port", str(self.port)]
        words += [*self._words, *self.words]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [PROGRAM, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        until = time.monotonic() + _PATIENCE
        while (found := _READY.search(self._said())) is None:
            assert self._process.poll() is None, self._said()[-2000:]
            assert time.monotonic() < until, f"not ready: {self._said()[-2000:]}"
            time.sleep(0.01)
        self.port = int(found.group(1))

    def kill(self) -> None:
        """End it at once, with all that it answers. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_PATIENCE)

    def terminate(self) -> None:
        """Ask it to end, and do not wait: streams end without a word, plain requests hang."""
        self.process.terminate()

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does: connections stay open, nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it go on."""
        self.process.send_signal(signal.SIGCONT)

    def ask(
        self, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """GET, or POST of a JSON body; its own key is sent where no headers say otherwise."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)
        sent = {"Authorization": f"Bearer {self.key}"} if headers is None else headers
        try:
            if body is None:
                connection.request("GET", path, headers=dict(sent))
            else:
                sent = {**sent, "Content-Type": "application/json"}
                connection.request("POST", path, json.dumps(body), sent)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """A number of its /metrics, such as "requests_processing" or "tokens_predicted_total"."""
        _, text = self.ask("/metrics")
        found = re.search(rf"^llamacpp:{name} (\S+)$", text, re.MULTILINE)
        assert found is not None, text
        return float(found.group(1))

    def _said(self) -> str:
        return self.log.read_text(errors="replace")


@contextlib.contextmanager
def running_llama(
    folder: Path,
    *,
    name: str = "tiny",
    task: Task = "generate",
    key: str = "",
    slots: int = 4,
    words: Sequence[str] = (),
) -> Iterator[LlamaServer]:
    """A ready server (see `LlamaServer`), gone at the end. `folder` gets its log."""
    server = LlamaServer(folder, name=name, task=task, key=key, slots=slots, words=words)
    try:
        server.start()
        yield server
    finally:
        server.kill()
