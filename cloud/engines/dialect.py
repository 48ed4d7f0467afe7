"""What differs between engines, as one table: a row an engine, with source and version of each fact.

| | vLLM 0.32 | llama.cpp (xllamacpp 2026.10) |
|---|---|---|
| while it loads | connection refused | 503 on every path |
| `/metrics` | always | with `--metrics`, between two batches: a long prompt delays it |
| progress | generation_tokens_total; pooling: prompt_tokens_total | n_decode_total |
| a model it does not have | 404 | served by the one it has |
| SIGTERM | drains for `--shutdown-timeout` | streams break or hang, and so may the process |
| ids of tokens | sent and taken | not sent in streams: a broken stream cannot be continued |
| idle connections | closed after a variable's time | after 5 s, and some after a stream, without a word |

A vLLM that pools and is sent SIGTERM answers all that it holds with a 500 as soon as something comes.
vLLM's other counter of a task stays 0 for ever. llama.cpp's tokens_predicted_total moves only when a request
ends, and so do SGLang's, TGI's and TensorRT-LLM's counts of generated tokens: progress is what moves before.
TGI and TEI take a model that they do not have for an adapter, or ignore it, and answer. Ollama tells nothing
of its load at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final, Literal

from cloud.engines.row import Dialect, Ranking, Source
from cloud.ports import EngineCapabilities, Task

Kind = Literal["simulated", "vllm", "llamacpp", "sglang", "tgi", "tei", "ollama", "trtllm"]
"""What `engine.kind` may be: each has a row."""


def _by_task(**counters: str) -> Mapping[Task, tuple[str, ...]]:
    """Each task's counters, separated by spaces."""
    names: dict[str, Task] = {"generate": "generate", "embed": "embed", "rerank": "rerank"}
    return MappingProxyType({names[task]: tuple(counter.split()) for task, counter in counters.items()})


def _statuses(generate: int = 0, embed: int = 0, rerank: int = 0) -> Mapping[Task, int]:
    tasks: dict[Task, int] = {"generate": generate, "embed": embed, "rerank": rerank}
    return MappingProxyType({task: status for task, status in tasks.items() if status})


def _folder_name(model: str) -> str:
    """TensorRT-LLM calls a model in a folder by the folder's last name, any other by its own."""
    return PurePosixPath(model).name if model.startswith("/") else model


def _with_tag(model: str) -> str:
    """Ollama gives a model without a tag the tag "latest"."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _as_it_is(model: str) -> str:
    return model


_ALL_OF_VLLM: Final = (
    *("health", "listing", "metrics", "running", "waiting", "progress", "kv", "tokens_in", "tokens_out"),
    *("first_token", "between_tokens", "loading", "full", "too_long", "capabilities", "ranking", "load"),
    "unload",
)

VLLM: Final = Dialect(
    title="vLLM",
    program="vllm",
    capabilities=EngineCapabilities(
        tasks=frozenset({"generate", "embed", "rerank"}),
        token_ids="exact",
        adapters="runtime",
        drains=True,
        besides=MappingProxyType({"embed": frozenset({"rerank"})}),  # by the likeness of vectors
        ran=True,
    ),
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    progress=_by_task(
        generate="vllm:generation_tokens_total",
        embed="vllm:prompt_tokens_total",
        rerank="vllm:prompt_tokens_total",
    ),
    kv="vllm:kv_cache_usage_perc",
    tokens_in="vllm:prompt_tokens_total",
    tokens_out="vllm:generation_tokens_total",
    first_token="vllm:time_to_first_token_seconds",
    between_tokens="vllm:inter_token_latency_seconds",
    unready="the engine is dead: /health answers 503",
    full=503,
    too_long=_statuses(400, 400, 400),
    ranking=Ranking(every=True),
    load="/v1/load_lora_adapter",
    unload="/v1/unload_lora_adapter",
    sources=(Source(facts=_ALL_OF_VLLM, version="0.32.0", date="2026-11", where="run on a CPU"),),
)

SIMULATED: Final = Dialect(
    title="the simulated engine",
    program="",
    capabilities=EngineCapabilities(
        tasks=frozenset({"generate", "embed", "rerank"}),
        token_ids="exact",
        adapters="runtime",
        drains=True,
        besides=MappingProxyType({"generate": frozenset({"embed", "rerank"})}),
        ran=True,
    ),
    running=VLLM.running,
    waiting=VLLM.waiting,
    progress=VLLM.progress,
    kv=VLLM.kv,
    tokens_in=VLLM.tokens_in,
    tokens_out=VLLM.tokens_out,
    first_token=VLLM.first_token,
    between_tokens=VLLM.between_tokens,
    unready=VLLM.unready,
    full=VLLM.full,
    too_long=VLLM.too_long,
    ranking=VLLM.ranking,
    load=VLLM.load,
    unload=VLLM.unload,
    sources=(Source(facts=_ALL_OF_VLLM, version="this one", date="", where="it behaves like vLLM"),),
)

LLAMACPP: Final = Dialect(
    title="llama.cpp",
    program="llama-server",
    capabilities=EngineCapabilities(
        tasks=frozenset({"generate", "embed", "rerank"}),
        token_ids="lossy",
        adapters="request",
        checks_names=False,
        ran=True,
    ),
    running="llamacpp:requests_processing",
    waiting="llamacpp:requests_deferred",
    progress=_by_task(
        generate="llamacpp:n_decode_total",
        embed="llamacpp:n_decode_total",
        rerank="llamacpp:n_decode_total",
    ),
    tokens_in="llamacpp:prompt_tokens_total",
    tokens_out="llamacpp:tokens_predicted_total",
    loading="503",
    unready="the engine loads its model: /health answers 503",
    measured="start it with --metrics",
    too_long=_statuses(400, 500, 400),
    numbered="/lora-adapters",
    closes_after=5.0,
    sources=(
        Source(
            facts=(
                *("health", "listing", "metrics", "running", "waiting", "progress", "tokens_in"),
                *("tokens_out", "loading", "too_long", "capabilities", "ranking", "numbered", "closes_after"),
            ),
            version="xllamacpp 2026.10",
            date="2026-10",
            where="run on a CPU",
        ),
    ),
)

SGLANG: Final = Dialect(
    title="SGLang",
    program="sglang",
    capabilities=EngineCapabilities(
        tasks=frozenset({"generate", "embed", "rerank"}),
        adapters="runtime",
        drains=True,
        checks_names=False,
    ),
    running="sglang:num_running_reqs",
    waiting="sglang:num_queue_reqs",
    progress=_by_task(
        generate="sglang:realtime_tokens_total",
        embed="sglang:prompt_tokens_total",
        rerank="sglang:prompt_tokens_total",
    ),
    kv="sglang:token_usage",
    tokens_in="sglang:prompt_tokens_total",
    tokens_out="sglang:generation_tokens_total",
    first_token="sglang:time_to_first_token_seconds",
    between_tokens="sglang:inter_token_latency_seconds",
    sparse=True,
    loading="503",
    unready="the engine starts, or ends: /health answers 503",
    measured="start it with --enable-metrics",
    full=503,
    too_long=_statuses(400, 400, 400),
    ranking=Ranking(score="score", bare=True),
    sources=(
        Source(
            facts=("health", "listing", "ranking", "loading"),
            version="0.5.23",
            date="2026-10-30",
            where="srt/entrypoints/http_server.py and openai/protocol.py",
        ),
        Source(
            facts=(
                *("metrics", "running", "waiting", "progress", "kv", "tokens_in", "tokens_out"),
                *("first_token", "between_tokens", "sparse"),
            ),
            version="0.5.23",
            date="2026-10-30",
            where="srt/observability/metrics_collector.py",
        ),
        Source(
            facts=("capabilities", "full", "too_long"),
            version="0.5.23",
            date="2026-10-30",
            where="srt/managers/tokenizer_manager.py and scheduler.py, srt/entrypoints/openai",
        ),
    ),
)

TGI: Final = Dialect(
    title="Text Generation Inference",
    program="text-generation-launcher",
    capabilities=EngineCapabilities(
        tasks=frozenset({"generate"}), adapters="start", drains=True, checks_names=False
    ),
    listing="/info",
    running="tgi_batch_current_size",
    waiting="tgi_queue_size",
    progress=_by_task(generate="tgi_batch_inference_count"),
    tokens_in="tgi_request_input_length_sum",
    tokens_out="tgi_request_generated_tokens_sum",
    between_tokens="tgi_request_mean_time_per_token_duration",
    sparse=True,
    unready="the engine is unhealthy: /health answers 503",
    full=429,
    too_long=_statuses(422),
    own_name=_as_it_is,
    sources=(
        Source(
            facts=("health", "listing", "too_long", "full", "loading", "capabilities", "own_name"),
            version="3.3.6-dev0",
            date="2026-01-08",
            where="router/src/server.rs and infer/mod.rs, launcher/src/main.rs",
        ),
        Source(
            facts=(
                *("metrics", "running", "waiting", "progress", "tokens_in", "tokens_out"),
                *("between_tokens", "sparse"),
            ),
            version="3.3.6-dev0",
            date="2026-01-08",
            where="backends/v3/src/backend.rs and queue.rs, router/src/server.rs",
        ),
    ),
)

TEI: Final = Dialect(
    title="Text Embeddings Inference",
    program="text-embeddings-router",
    capabilities=EngineCapabilities(tasks=frozenset({"embed", "rerank"}), drains=True, checks_names=False),
    listing="/info",
    waiting="te_queue_size",
    progress=_by_task(embed="te_embed_success", rerank="te_predict_success"),
    tokens_in="te_request_input_length_sum",
    sparse=True,
    unready="the engine is unhealthy: /health answers 503",
    full=429,
    too_long=_statuses(embed=200, rerank=200),
    ranking=Ranking(path="/rerank", texts="texts", score="score", bare=True),
    sources=(
        Source(
            facts=("health", "listing", "ranking", "full", "too_long", "loading", "capabilities"),
            version="1.9.3",
            date="2026-07-24",
            where="router/src/http/server.rs, types.rs, main.rs and shutdown.rs",
        ),
        Source(
            facts=("metrics", "waiting", "progress", "tokens_in", "sparse"),
            version="1.9.3",
            date="2026-07-24",
            where="core/src/infer.rs and queue.rs, router/src/http/server.rs",
        ),
    ),
)

OLLAMA: Final = Dialect(
    title="Ollama",
    program="ollama",
    capabilities=EngineCapabilities(
        tasks=frozenset({"generate", "embed"}),
        besides=MappingProxyType({"generate": frozenset({"embed"})}),
    ),
    health="/api/version",
    metrics="",
    unready="the engine is down: /api/version answers 503",
    full=503,
    too_long=_statuses(generate=200, embed=200),
    own_name=_with_tag,
    sources=(
        Source(
            facts=("health", "listing", "full", "too_long", "own_name", "capabilities", "loading", "metrics"),
            version="0.33.0-rc2",
            date="2026-08-21",
            where="server/routes.go and sched.go, envconfig/config.go, openai/openai.go",
        ),
    ),
)

TRTLLM: Final = Dialect(
    title="TensorRT-LLM",
    program="trtllm-serve",
    capabilities=EngineCapabilities(
        tasks=frozenset({"generate"}), adapters="request", drains=True, checks_names=False
    ),
    metrics="/prometheus/metrics",
    running="trtllm_num_requests_running",
    waiting="trtllm_num_requests_waiting",
    progress=_by_task(generate="trtllm_generation_tokens_total trtllm_kv_cache_gen_alloc_blocks_total"),
    kv="trtllm_kv_cache_utilization",
    tokens_in="trtllm_prompt_tokens_total",
    tokens_out="trtllm_generation_tokens_total",
    first_token="trtllm_time_to_first_token_seconds",
    between_tokens="trtllm_time_per_output_token_seconds",
    sparse=True,
    loading="503",
    unready="the engine loads its model: /health answers 503",
    measured="write return_perf_metrics: true and enable_iter_perf_stats: true in the file of "
    "--extra_llm_api_options; 1.1 and older ones have five metrics, none of them of their load",
    too_long=_statuses(400),
    closes_after=5.0,
    own_name=_folder_name,
    sources=(
        Source(
            facts=("health", "listing", "metrics", "capabilities", "too_long", "own_name", "closes_after"),
            version="main at e7f7345",
            date="2025-11",
            where="tensorrt_llm/serve/openai_server.py",
        ),
        Source(
            facts=("loading",),
            version="main at e6c89c0",
            date="2026",
            where="tensorrt_llm/serve/readiness.py",
        ),
        Source(
            facts=(
                *("running", "waiting", "progress", "kv", "tokens_in", "tokens_out", "first_token"),
                *("between_tokens", "sparse"),
            ),
            version="main at 050f80d",
            date="2026",
            where="tensorrt_llm/metrics/collector.py",
        ),
    ),
)

DIALECTS: Final[Mapping[Kind, Dialect]] = MappingProxyType(
    {
        "vllm": VLLM,
        "llamacpp": LLAMACPP,
        "sglang": SGLANG,
        "tgi": TGI,
        "tei": TEI,
        "ollama": OLLAMA,
        "trtllm": TRTLLM,
        "simulated": SIMULATED,
    }
)
"""By the name of the kind, as `engine.kind` says it."""

PROGRAMS: Final[Mapping[str, str]] = MappingProxyType(
    {kind: dialect.program for kind, dialect in DIALECTS.items() if dialect.program}
)
"""The usual program of each kind of engine that is not part of this distribution."""
