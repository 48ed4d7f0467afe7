"""Which engine it is that answers: for one that answers otherwise than its row in the table says.

Metrics tell it best: each engine has names of its own. A list of models tells by whom its models are owned,
/info by what only one engine says there, and Ollama by a version on a path that no other has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson

from cloud.engines.dialect import DIALECTS, Kind
from cloud.engines.metrics_text import read_samples

_OWNERS: Final[Mapping[str, Kind]] = MappingProxyType(
    {"vllm": "vllm", "llamacpp": "llamacpp", "sglang": "sglang", "tensorrt_llm": "trtllm"}
)
"""What ``owned_by`` says in a list of models. Source: vLLM 0.32, entrypoints/openai/models; llama.cpp, run;
SGLang 0.5.23, openai/protocol.py; TensorRT-LLM, serve/openai_protocol.py. TGI and Ollama say a name."""


def by_metrics(text: str) -> Kind | None:
    """The engine that shows such metrics; None for none that is known. What behaves like vLLM is vLLM."""
    for kind, row in DIALECTS.items():
        told = (
            row.running,
            row.waiting,
            row.kv,
            row.tokens_in,
            row.tokens_out,
            *sum(row.progress.values(), ()),
        )
        if read_samples(text, tuple(filter(None, told))):
            return kind
    return None


def _by_owner(answer: Any) -> Kind | None:
    return next((_OWNERS[row["owned_by"]] for row in answer["data"] if row.get("owned_by") in _OWNERS), None)


def _by_info(answer: Any) -> Kind | None:
    if "model_type" in answer and "max_client_batch_size" in answer:
        return "tei"
    return "tgi" if "max_total_tokens" in answer and "model_id" in answer else None


def _by_version(answer: Any) -> Kind | None:
    return "ollama" if set(answer) == {"version"} else None


_READERS: Final[Mapping[str, Callable[[Any], Kind | None]]] = MappingProxyType(
    {"/v1/models": _by_owner, "/info": _by_info, "/api/version": _by_version}
)
_METRICS: Final = ("/metrics", "/prometheus/metrics")

PATHS: Final = (*_METRICS, *_READERS)
"""What to ask, the most telling first."""


def by_answer(path: str, body: bytes) -> Kind | None:
    """The engine that answers so on one of `PATHS`; None where that does not tell."""
    if path in _METRICS:
        return by_metrics(body.decode("utf-8", errors="replace"))
    try:
        return _READERS[path](orjson.loads(body))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
