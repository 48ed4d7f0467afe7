"""What each shape that is played was read from, and what would break if it were wrong. For the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cloud.engines.dialect import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One shape: what is played, the file that says it, and what would go wrong where it is otherwise."""

    shape: str
    where: str
    if_wrong: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What was read: its version, the date of it, and its notes."""

    version: str
    date: str
    notes: tuple[Note, ...]


def _note(shape: str, where: str, if_wrong: str) -> Note:
    return Note(shape=shape, where=where, if_wrong=if_wrong)


ORIGINS: Final[Mapping[Kind, Origin]] = MappingProxyType(
    {
        "sglang": Origin(
            version="0.5.23",
            date="2026-10-30 (wheel)",
            notes=(
                _note(
                    "connections refused, then /health and /ready 503 until the warm-up ended, and 503 while "
                    "it drains",
                    "srt/entrypoints/http_server.py",
                    "a node would be ready too early; the token that is asked for would still show it",
                ),
                _note(
                    "/health makes a token, which takes a second, unless "
                    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION is 0",
                    "srt/entrypoints/http_server.py",
                    "looks and the gateway's checks would be slow, not wrong",
                ),
                _note(
                    "sglang:generation_tokens_total moves when a request ends; sglang:realtime_tokens_total "
                    "every 40 steps",
                    "srt/observability/metrics_collector.py",
                    "an engine with long texts would be asked for a token every 10 s, and fail where its "
                    "slots are all taken",
                ),
                _note(
                    "errors are flat; a full queue is 503, in a stream an error event",
                    "srt/entrypoints/openai/serving_base.py, srt/managers/scheduler.py",
                    "a full node would be asked again later than it could be, and clients see other words",
                ),
                _note(
                    "an abort by a person ends a stream with finish_reason abort and [DONE]",
                    "srt/entrypoints/openai/serving_completions.py",
                    "a cut text would be passed off as whole: the gateway takes this for broken",
                ),
                _note(
                    "chats refuse return_token_ids in streams",
                    "srt/entrypoints/openai/serving_chat.py",
                    "nothing: streams are not continued by ids, and nobody asks for them",
                ),
                _note(
                    "an input to embed may be ids of tokens, and no request has too many inputs",
                    "srt/entrypoints/openai/protocol.py",
                    "clients that send ids, or many texts, would get errors of the engine's",
                ),
                _note(
                    "/v1/rerank answers with a bare list",
                    "srt/entrypoints/openai/serving_rerank.py, protocol.py",
                    "a pool that reranks would never be ready",
                ),
                _note(
                    "SIGTERM: all requests are answered, new ones too; it looks every 5 s, without a limit",
                    "srt/managers/tokenizer_manager.py",
                    "what is left at the end of the drain budget is cut by the kill of the group",
                ),
            ),
        ),
        "tgi": Origin(
            version="3.3.6-dev0 (db931fcf)",
            date="2026-01-08 (last commit; it is in maintenance)",
            notes=(
                _note(
                    "connections refused until the shards are ready",
                    "launcher/src/main.rs",
                    "nothing: a token is asked for",
                ),
                _note(
                    "/info tells model_id and model_sha; there is no other name",
                    "router/src/server.rs, lib.rs",
                    "a pool would never be ready, and say which name it found",
                ),
                _note(
                    "a model that it does not know is taken for an adapter, and answered by the model",
                    "router/src/server.rs, server/text_generation_server/models/flash_causal_lm.py",
                    "requests by the pool's name would be refused; the first look would show it",
                ),
                _note(
                    "tgi_batch_inference_count moves with every step, counts of tokens at a request's end; "
                    "a metric is not there before its first value",
                    "backends/v3/src/backend.rs, queue.rs",
                    "as for SGLang",
                ),
                _note(
                    "texts: finish_reason is empty until the end, and eos_token in streams where a plain "
                    "answer says stop",
                    "router/src/server.rs, lib.rs",
                    "a stream would count as ended too early, or never",
                ),
                _note(
                    "an error in a stream has http_status_code 422 whatever it is, and [DONE] follows",
                    "router/src/infer/mod.rs",
                    "an engine's fault would be passed on as the client's",
                ),
                _note(
                    "429 when full, 422 for what cannot be, 424 when a shard failed; `error` is a text",
                    "router/src/server.rs",
                    "which failure is whose; a peer is asked in any case",
                ),
                _note(
                    "SIGTERM: no new connections; requests in flight get 90 s, or as long as configured",
                    "launcher/src/main.rs, router/src/server.rs",
                    "requests would be cut by a drain",
                ),
            ),
        ),
        "tei": Origin(
            version="1.9.3 (0d124dc)",
            date="2026-07-24",
            notes=(
                _note(
                    "connections refused until it is ready; /health asks the backend, 503 when that is gone, "
                    "and the process stays",
                    "router/src/http/server.rs, core/src/infer.rs",
                    "a dead backend would be found by the next embedding that is asked for, within 30 s",
                ),
                _note(
                    "/info tells served_model_name; any name is answered",
                    "router/src/http/server.rs",
                    "a pool would never be ready, and say which name it found",
                ),
                _note(
                    "there is no gauge of what runs; te_queue_size waits; te_embed_success and "
                    "te_predict_success count inputs; a metric is not there before its first value",
                    "core/src/infer.rs, core/src/queue.rs",
                    "an idle one would be asked for an embedding more often than needed",
                ),
                _note(
                    "/v1/embeddings has an error of its own shape: message, code, type",
                    "router/src/http/types.rs",
                    "clients see other words",
                ),
                _note(
                    "an input to embed may be ids of tokens; 32 inputs a request, 422 for more",
                    "router/src/http/types.rs, router/src/main.rs",
                    "clients that send ids, or many texts, would get other answers",
                ),
                _note(
                    "/rerank takes texts and answers with a bare list of index and score",
                    "router/src/http/types.rs",
                    "a pool that reranks would never be ready",
                ),
                _note(
                    "what is too long is cut, unless --auto-truncate false: then 422; 413 is not used",
                    "router/src/main.rs, core/src/tokenization.rs",
                    "nothing: a client's fault is passed on with whatever status it has",
                ),
                _note(
                    "SIGTERM: no new connections, what runs is answered, without a limit",
                    "router/src/shutdown.rs, http/server.rs",
                    "requests would be cut by a drain",
                ),
            ),
        ),
        "ollama": Origin(
            version="0.33.0-rc2 (fb30760)",
            date="2026-08-21",
            notes=(
                _note(
                    "it listens at once; the model is loaded by the first request",
                    "server/routes.go, sched.go",
                    "nothing: a token is asked for",
                ),
                _note(
                    "no metrics: nobody sees what it holds",
                    "server/routes.go",
                    "nothing; with metrics it could be watched better",
                ),
                _note(
                    "one request at once unless OLLAMA_NUM_PARALLEL says otherwise; 512 wait, then 503",
                    "envconfig/config.go, server/sched.go",
                    "a look would wait behind requests, and a busy node be taken for frozen",
                ),
                _note(
                    "a stream whose runner died just ends, without a reason",
                    "middleware/openai.go, server/routes.go",
                    "a cut text would be passed off as whole",
                ),
                _note(
                    "a model that it does not have is 404; names without a tag are those with :latest",
                    "server/routes.go, openai/openai.go",
                    "a pool would never be ready, and say which name it found",
                ),
                _note(
                    "inputs that are too long are cut",
                    "server/routes.go",
                    "nothing: a client's fault is passed on",
                ),
                _note(
                    "SIGTERM cuts every connection",
                    "server/routes.go",
                    "nothing: the daemon drains before it stops",
                ),
            ),
        ),
        "trtllm": Origin(
            version="main (e7f7345, 01bf192, e6c89c0, 050f80d)",
            date="late 2025 to 2026",
            notes=(
                _note(
                    "503 on every path until it is ready; older ones refuse connections",
                    "tensorrt_llm/serve/readiness.py",
                    "nothing: both are failed looks",
                ),
                _note(
                    "/metrics is a list of iterations; /prometheus/metrics is there with "
                    "return_perf_metrics, and in it what runs and waits with enable_iter_perf_stats as well; "
                    "1.1 has neither gauge",
                    "tensorrt_llm/serve/openai_server.py, "
                    "tests/unittest/llmapi/apps/_test_openai_prometheus.py",
                    "a pool would never be ready, and say which path answers what",
                ),
                _note(
                    "counts of tokens move at a request's end; trtllm_kv_cache_gen_alloc_blocks_total before",
                    "tensorrt_llm/metrics/collector.py",
                    "as for SGLang",
                ),
                _note(
                    "a plain request under which the executor dies is answered 200 with null, or 400",
                    "tensorrt_llm/serve/openai_server.py",
                    "nothing would be passed off as an answer: the gateway takes null for none",
                ),
                _note(
                    "fields that it does not know are refused with 400",
                    "tensorrt_llm/serve/openai_protocol.py",
                    "nothing: nothing is added that it does not know",
                ),
                _note(
                    "a model in a folder is called by the folder's last name; any name is answered",
                    "tensorrt_llm/serve/openai_server.py",
                    "a pool would never be ready, and say which name it found",
                ),
                _note(
                    "SIGTERM: no new connections, what runs is answered, without a limit",
                    "uvicorn's default, tensorrt_llm/serve/lifecycle.py",
                    "requests would be cut by a drain",
                ),
            ),
        ),
    }
)
"""By kind, in the words of the reference page."""
