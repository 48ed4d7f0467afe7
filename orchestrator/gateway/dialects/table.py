"""The paths that are served, and the dialect of each.

Engines have routes that must not be reached from outside: pause, sleep, LoRA loading, collective calls, and
vLLM's scale-out routes, which take and give raw token ids. Outside `/v1/` only the paths listed here are
served; under it everything without a segment of `CLOSED`.
"""

from __future__ import annotations

import functools
from urllib.parse import unquote

from orchestrator.gateway.dialects import Dialect, Unfit
from orchestrator.gateway.dialects.anthropic import COUNT_TOKENS, MESSAGES
from orchestrator.gateway.dialects.media import AUDIO, IMAGES
from orchestrator.gateway.dialects.openai import CHAT, COMPLETIONS, RESPONSE, RESPONSES
from orchestrator.gateway.dialects.other import BATCHES, FILES, OTHER
from orchestrator.gateway.dialects.pooling import (
    CLASSIFY,
    COHERE_EMBED,
    COHERE_RERANK,
    EMBEDDINGS,
    POOLING,
    RERANK,
    SCORE,
)
from orchestrator.gateway.dialects.tokenize import DETOKENIZE, TOKENIZE

# By path, for POST; other methods ask for nothing that a rule could judge.
ROWS: dict[str, Dialect] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/chat/completions/batch": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
    "/v1/embeddings": EMBEDDINGS,
    "/v2/embed": COHERE_EMBED,
    "/rerank": RERANK,
    "/v1/rerank": RERANK,
    "/v2/rerank": COHERE_RERANK,
    "/score": SCORE,
    "/v1/score": SCORE,
    "/pooling": POOLING,
    "/classify": CLASSIFY,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
    "/v1/files": FILES,
    "/v1/uploads": FILES,
    "/v1/batches": BATCHES,
}
# By the beginning of the path; what follows is the id of a stored thing, or an operation.
FAMILIES: tuple[tuple[str, Dialect], ...] = (
    ("/v1/responses/", RESPONSE),
    ("/v1/audio/", AUDIO),
    ("/v1/images/", IMAGES),
    ("/v1/files/", FILES),
    ("/v1/uploads/", FILES),
    ("/v1/batches/", BATCHES),
)
_ASKING = frozenset({"GET", "POST", "DELETE"})
CLOSED = frozenset(
    {
        "render", "derender", "inference", "abort_requests",  # scale-out
        "load_lora_adapter", "unload_lora_adapter", "tokenizer_info",
        "pause", "resume", "is_paused", "sleep", "wake_up", "is_sleeping", "collective_rpc", "server_info",
        "reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache", "release_kv_cache_memory",
        "init_weight_transfer_engine", "shutdown_weight_transfer_engine", "start_weight_update",
        "start_draft_weight_update", "finish_weight_update", "update_weights", "update_weight_version",
        "weight_info", "weight_checker", "get_world_size", "kv_event_sources", "fault_tolerance",
        "scale_elastic_ep", "is_scaling_elastic_ep", "start_profile", "stop_profile",
    }
)  # fmt: skip


@functools.lru_cache(1024)
def row_of(method: str, path: str, allow_paths: tuple[str, ...] = ()) -> Dialect:
    """The row for a path as it was sent, without the query. Raises Unfit (404) when it is not served.

    `path` must read the same before and after decoding and hold no dots, empty segments or fragment to
    resolve: otherwise the gateway and the engine could read two different paths.
    """
    decoded = unquote(path)
    segments = decoded.split("/")[1:]
    if (
        not path.startswith("/")
        or any(sign in decoded for sign in "\\%#")
        or decoded.count("/") != path.count("/")
        or any(segment in ("", ".", "..") or segment in CLOSED for segment in segments)
    ):
        raise _not_served(path)
    if decoded in ROWS:
        return ROWS[decoded] if method == "POST" else OTHER
    for family, dialect in FAMILIES:
        if decoded.startswith(family):
            return dialect if method in _ASKING else OTHER
    if (segments[0] == "v1" and len(segments) > 1) or path in allow_paths:
        return OTHER
    raise _not_served(path)


def _not_served(path: str) -> Unfit:
    return Unfit(404, "not_found", f"{path} is not served by this gateway")
