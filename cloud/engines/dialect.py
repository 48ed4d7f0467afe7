"""What differs between engines where a probe looks: names of metrics, and what a 503 means.

| | vLLM 0.32 | llama.cpp (xllamacpp 2026.10) |
|---|---|---|
| while it loads | connection refused | 503 on every path |
| `/metrics` | always | with `--metrics`, between two batches: a long prompt delays it |
| progress | generation_tokens_total; pooling: prompt_tokens_total | n_decode_total |
| a model it does not have | 404 | served by the one it has |
| SIGTERM | drains for `--shutdown-timeout` | streams break or hang, and so may the process |
| ids of tokens | told and taken | not told in streams: what breaks cannot go on elsewhere |
| idle connections | closed after a variable's time | after 5 s, and some after a stream, without a word |

vLLM's other counter of a task stays 0 for ever. llama.cpp's tokens_predicted_total moves only when a request
ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cloud.ports import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How an engine tells what it does.

    `running` and `waiting` are its gauges of requests; `progress` counters that rise while it works at a task
    and fall only when its process is another one. `unready`: what a 503 of /health says, for operators.
    """

    running: str
    waiting: str
    progress: Mapping[Task, str]
    unready: str


VLLM: Final = Dialect(
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    progress=MappingProxyType(
        {"generate": "vllm:generation_tokens_total", "embed": "vllm:prompt_tokens_total"}
    ),
    unready="the engine is dead: /health answers 503",
)

LLAMACPP: Final = Dialect(
    running="llamacpp:requests_processing",
    waiting="llamacpp:requests_deferred",
    progress=MappingProxyType({"generate": "llamacpp:n_decode_total", "embed": "llamacpp:n_decode_total"}),
    unready="the engine loads its model: /health answers 503",
)

PROGRAMS: Final[Mapping[str, str]] = MappingProxyType({"vllm": "vllm", "llamacpp": "llama-server"})
"""The usual program of each kind of engine that is not part of this distribution."""
