"""Reads from an engine's log what its start took. Pure; standard library only, Python 3.9 or newer.

It is part of the node agent, and reads the logs of the local cloud's engines too. Lines that it does not know
are passed over, and what no line says stays unknown. Lines after the engine serves are read for one thing
only, that it starts again: by then they may hold anything that users write.

Sources: vLLM 0.32 (ran: `default_loader.py`, `weight_utils.py`, `gpu_model_runner.py`, `monitor.py`,
`core.py`), with the words of 0.9 to 0.31 where they differ; llama.cpp of October 2026 (ran), whose lines
begin with the time since the process did, and of 2024 and 2025 (published logs), whose lines do not, so that
it counts when they were written; SGLang 0.5 (published logs). A message of several ranks counts
once, with the slowest.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import re
from typing import Any

BEGINS = "node-start: start:"
"""The line with which `cloud.node_start` becomes the engine: what was read before is of another start."""

PARTS = ("fetch", "load", "compile", "graphs", "warm_up")
"""What a log may tell: weights brought by the engine itself, weights to the GPU, compilation, CUDA graphs,
and the rest before it serves (profiling, the KV cache, warm-up)."""

_SECONDS = r"(\d{1,6}(?:\.\d{1,9})?)"
_TOOK = (
    ("fetch", re.compile(rf"Time spent downloading weights for .{{1,300}}?: {_SECONDS} seconds")),
    ("model", re.compile(rf"Model loading took {_SECONDS} Gi?B(?: memory)? and {_SECONDS} seconds")),
    ("load", re.compile(rf"Loading weights took {_SECONDS} seconds")),
    ("load", re.compile(rf"Load weight end\. elapsed={_SECONDS} s\b")),
    ("compile", re.compile(rf"torch\.compile (?:took|takes) {_SECONDS} s in total")),
    ("compile", re.compile(rf"warmup run together took {_SECONDS} s in total")),
    ("graphs", re.compile(rf"Graph capturing finished in {_SECONDS} secs")),
    (
        "graphs",
        re.compile(rf"(?i:capture [a-z ]{{0,30}}cuda graph) end\. (?:Time elapsed: |elapsed=){_SECONDS} s"),
    ),
    ("init", re.compile(rf"init engine \(profile, create kv cache, warmup model\) took {_SECONDS} s")),
)
_COMPILED = re.compile(rf"init engine \(.{{1,60}}\) took [\d.]{{1,12}} s \(compilation: {_SECONDS} s\)")
_SERVES = (
    "Application startup complete",
    "server is listening on http",
    "init: listening on http",
    "The server is fired up and ready to roll",
)
_SINCE_BEGUN = re.compile(r"(?:^|\s)(\d{1,4})\.([0-5]\d)\.(\d{3})\.(\d{3}) [A-Z] ")
_STEPS = (("loads", "loading model '"), ("warms", "warming up the model"), ("loaded", "model loaded"))


class StartLog:
    """One engine's log, line by line, as far as it is about the newest start."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.serves = False
        self._serves_at: float | None = None
        self._took: dict[str, float] = {}
        self._steps: dict[str, tuple[bool, float]] = {}  # whether by its own clock, and when

    def take(self, line: str, at: float | None = None) -> None:
        """One line. `at`: when it was written, in seconds since the epoch, None where nobody knows."""
        if BEGINS in line:
            self._begin()
        if self.serves:
            return
        for name, pattern in _TOOK:
            found = pattern.search(line)
            if found is not None:
                self._took[name] = max(self._took.get(name, 0.0), float(found[found.lastindex or 1]))
        found = _COMPILED.search(line)
        if found is not None:
            self._took["compile"] = float(found[1])  # the engine's own sum, of all its models
        clock, when = _SINCE_BEGUN.search(line), at
        if clock is not None:
            minutes, seconds, milli, micro = map(int, clock.groups())
            when = minutes * 60.0 + seconds + milli / 1e3 + micro / 1e6
        for name, words in _STEPS:
            if words in line and when is not None:
                self._steps.setdefault(name, (clock is not None, when))
        if any(words in line for words in _SERVES):
            self.serves, self._serves_at = True, at

    def told(self) -> dict[str, Any]:
        """What is known: {"serves": bool, "serves_at": time or None, "took": seconds by `PARTS`}.

        No part holds another.
        """
        took = {part: self._took[part] for part in PARTS if part in self._took}
        if "model" in self._took:  # it holds the download, and more of the loading than the weights
            took["load"] = max(0.0, self._took["model"] - took.get("fetch", 0.0))
        if "init" in self._took:
            known = took.get("compile", 0.0) + took.get("graphs", 0.0)
            took["warm_up"] = max(0.0, self._took["init"] - known)
        own = "loaded" in self._steps and self._steps["loaded"][0]
        same = {name: when for name, (its_own, when) in self._steps.items() if its_own is own}
        loads, warms, loaded = (same.get(name) for name, _ in _STEPS)
        if loads is not None and loaded is not None and loaded >= loads:
            warms = loaded if warms is None or not loads <= warms <= loaded else warms
            took["load"] = warms - loads
            if warms < loaded:
                took["warm_up"] = loaded - warms
        return {"serves": self.serves, "serves_at": self._serves_at, "took": took}
