"""What a pool's engine can do at all, by its row in the table of dialects, and the settings of each kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from cloud.engines.dialect import DIALECTS, Kind
from cloud.engines.flags import flag_value, has_flag
from cloud.ports import Task
from orchestrator.config.checks.listeners import takes_requests
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import shown
from orchestrator.words import plural

Found = tuple[tuple[str, ...], str]  # key path, sentence

_MODELS: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        "llamacpp": "/srv/models/llama-3.1-8b-Q4_K_M.gguf",
        "tei": "BAAI/bge-large-en-v1.5",
        "ollama": "llama3.2:3b",
    }
)
_MODEL: Final = "meta-llama/Llama-3.1-8B-Instruct"
_SWITCHES: Final[Mapping[Kind, Mapping[str, Task]]] = MappingProxyType(
    {
        "llamacpp": {
            "--embedding": "embed",
            "--embeddings": "embed",
            "--reranking": "rerank",
            "--rerank": "rerank",
        },
        "sglang": {"--is-embedding": "embed"},
    }
)
"""Flags that turn an engine from generating to another task."""
_FLAGS: Final[Mapping[Kind, Mapping[str, str]]] = MappingProxyType(
    {
        "llamacpp": {
            "--max-model-len": "write --ctx-size, which all requests that run at once share",
            "--max-num-seqs": "write --parallel",
            "--served-model-name": "write engine.served_name",
            "--tensor-parallel-size": "it uses all GPUs that it finds; leave it out",
            "--gpu-memory-utilization": "write --gpu-layers, or leave it out",
            "--quantization": "the quantisation is the file's; leave it out",
            "--enable-lora": "write --lora FILE",
            "--dtype": "the type is the file's; leave it out",
        },
        "sglang": {
            "--max-model-len": "write --context-length",
            "--max-num-seqs": "write --max-running-requests",
            "--gpu-memory-utilization": "write --mem-fraction-static",
        },
        "tgi": {
            "--max-model-len": "write --max-total-tokens",
            "--max-num-seqs": "write --max-concurrent-requests",
            "--served-model-name": "it calls itself by its model; leave it out",
            "--tensor-parallel-size": "write --num-shard",
            "--gpu-memory-utilization": "write --cuda-memory-fraction",
            "--quantization": "write --quantize",
            "--enable-lora": "write --lora-adapters",
        },
        "tei": {
            "--max-model-len": "the model decides; leave it out",
            "--max-num-seqs": "write --max-batch-requests",
        },
        "trtllm": {
            "--max-model-len": "write --max_seq_len",
            "--max-num-seqs": "write --max_batch_size",
            "--tensor-parallel-size": "write --tp_size",
            "--gpu-memory-utilization": "write --kv_cache_free_gpu_memory_fraction",
        },
    }
)
"""Flags that people know from vLLM and that end another engine at once."""
_OPTIONS: Final = ("--extra-llm-api-options", "--config")  # of trtllm-serve: the file with its other settings
_PARALLEL: Final = "OLLAMA_NUM_PARALLEL"


def kind_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What an engine of this kind cannot do. `at` ends with the pool's name."""
    kind, row = pool.engine.kind, DIALECTS[pool.engine.kind]
    if pool.engine.task not in row.capabilities.tasks:
        able = " or ".join(f'"{task}"' for task in sorted(row.capabilities.tasks))
        yield (
            (*at, "engine", "task"),
            f"is {shown(pool.engine.task)}, which {row.title} does not do; write {able}, or another kind",
        )
    if kind != "simulated" and not pool.model:
        named = _MODELS.get(kind, _MODEL)
        yield (*at, "model"), f'is missing; {row.title} needs a model, such as model = "{named}"'
    elif row.own_name is not None and pool.served_name != (own := row.own_name(pool.model_name)):
        yield (
            (*at, "engine", "served_name"),
            f"{row.title} would call the model {shown(own)}, not {shown(pool.served_name)}, and never be "
            f'ready; write served_name = "{own}", and a [[route]] for other names',
        )
    yield from _flag_errors(at, pool)
    if kind == "ollama":
        yield from _ollama_errors(at, pool)
    if kind == "trtllm" and not any(has_flag(pool.engine.args, flag) for flag in _OPTIONS):
        yield (
            (*at, "engine", "args"),
            "TensorRT-LLM tells what it holds only with return_perf_metrics: true and "
            "enable_iter_perf_stats: true in a file of settings, and "
            'without that it would never be ready; write args = ["--extra_llm_api_options", "FILE"]',
        )


def _flag_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    kind, row, args = pool.engine.kind, DIALECTS[pool.engine.kind], pool.engine.args
    for flag, own in _FLAGS.get(kind, {}).items():
        if has_flag(args, flag):
            yield (*at, "engine", "args"), f"{flag} is a flag of vLLM, and {row.title} ends with it; {own}"
    pools = flag_value(args, "--runner") == "pooling" and kind in ("vllm", "simulated")
    turned = {task for flag, task in _SWITCHES.get(kind, {}).items() if has_flag(args, flag)}
    if pool.engine.task == "generate" and (pools or turned):
        task = next(iter(turned), "embed")
        yield (
            (*at, "engine", "task"),
            f'is "generate", but the flags say that the engine {task}s, and it would never be ready; write '
            f'task = "{task}"',
        )


def _ollama_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """It shows nobody what it holds, and a look that asks for a token waits behind what it does."""
    if pool.engine.args:
        yield (*at, "engine", "args"), "`ollama serve` takes none; write its variables into engine.env"
    if pool.cloud.target_group:
        yield (
            (*at, "cloud", "aws", "target_group"),
            "does not say which requests a node still answers, and neither does Ollama: a drain would cut "
            "them; leave it out, and let the gateway carry the requests",
        )
    written = pool.engine.env.get(_PARALLEL, "1")
    slots = int(written) if written.isdecimal() else 1
    sent = pool.gateway.max_in_flight
    if pool.engine.task == "generate" and takes_requests(pool) and sent >= slots:
        yield (
            (*at, "gateway", "max_in_flight"),
            f"is {sent}, and Ollama answers {plural(slots, 'request')} at once ({_PARALLEL}): a look at the "
            "node would wait behind them, and the node be taken for frozen; write max_in_flight = 4 and "
            f'engine.env = {{ {_PARALLEL} = "5" }}, so that one place is left for looks',
        )


def kind_warnings(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What may surprise of an engine of this kind."""
    kind, row = pool.engine.kind, DIALECTS[pool.engine.kind]
    if not row.capabilities.ran:
        yield (
            (*at, "engine", "kind"),
            f"{row.title} was not run against the real one: what is known of it was read in its sources "
            f"({row.sources[0].version}). Ask a running one with `orchestrator doctor --engine URL --kind "
            f"{kind}`, which says what differs",
        )
    if (
        (kind, pool.engine.task) == ("llamacpp", "embed")
        and flag_value(pool.engine.args, "--pooling") != "last"
        and not has_flag(pool.engine.args, "--ubatch-size")
    ):
        yield (
            (*at, "engine", "args"),
            "an input of more than 512 tokens is refused, as the engine reads each in one piece; write "
            '"--batch-size", "N", "--ubatch-size", "N" for inputs of up to N tokens',
        )
    if kind == "tei" and flag_value(pool.engine.args, "--auto-truncate") != "false":
        yield (
            (*at, "engine", "args"),
            "an input that is too long is cut without a word, and its vector is that of its beginning; write "
            '"--auto-truncate", "false" for an error that the client sees',
        )
