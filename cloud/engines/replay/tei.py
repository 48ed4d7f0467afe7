"""Text Embeddings Inference 1.9.3: router/src/http/server.rs, router/src/lib.rs, core/src."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloud.engines.replay.shape import (
    Counts,
    Failed,
    Fault,
    Made,
    Reply,
    Shape,
    exposition,
    histogram,
    ordered,
)

_KINDS: Final = {
    Fault.FULL: (429, "Overloaded", "Model is overloaded"),
    Fault.DIED: (424, "Backend", "Inference error: backend is gone"),
    Fault.WRONG_TASK: (424, "Backend", ""),
    Fault.EMPTY: (400, "Empty", "`inputs` cannot be empty"),
}
_OPENAI: Final = ("/v1/embeddings", "/embeddings")


class Tei(Shape):
    """TEI's words."""

    kind = "tei"
    takes_ids = True
    outlives = True

    def gets(self, counts: Counts) -> Mapping[str, Reply]:
        """See Shape. A metric is not there before it first had a value."""
        kind = "reranker" if self.setup.task == "rerank" else "embedding"
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        info = {
            "model_id": self.setup.model,
            "model_sha": "fca14538aa9956a46526bd1d0d11d69e19b5a101",
            "model_dtype": "float16",
            "served_model_name": self.setup.name,
            "model_type": {kind: {"pooling": "cls"} if kind == "embedding" else labels},
            "max_concurrent_requests": self.setup.most_running + (self.setup.most_waiting or 0),
            "max_input_length": self.setup.context,
            "max_batch_tokens": 16384,
            "max_batch_requests": None,
            "max_client_batch_size": self.setup.most_batched,
            "auto_truncate": self.setup.cuts,
            "tokenization_workers": 2,
            "version": "1.9.3",
            "sha": None,
            "docker_label": None,
        }
        body = exposition(self._metrics(counts))
        return {
            "/health": Reply(200, b""),
            "/": Reply(200, b""),
            "/info": Reply(200, info),
            "/metrics": Reply(200, body, {"Content-Type": self.plain_text}),
        }

    def _metrics(self, counts: Counts) -> dict[str, float]:
        if not counts.asked:
            return {}
        rows: dict[str, float] = {
            'te_request_count{method="batch"}': counts.asked,
            "te_queue_size": counts.waiting,
        }
        if counts.ended:
            name = "te_predict_success" if self.setup.task == "rerank" else "te_embed_success"
            rows['te_request_success{method="batch"}'] = counts.ended
            rows[name] = counts.done
            rows |= histogram("te_request_input_length", "", counts.tokens_in, counts.done)
        return rows

    def failed(self, failed: Failed, path: str) -> Reply:
        """See Shape. OpenAI's route has a flat error with other names than the rest."""
        status, kind, words = _KINDS.get(failed.fault, (422, "Validation", ""))
        if failed.fault is Fault.TOO_LONG:
            words = f"Input validation error: `inputs` must have less than {self.setup.context} tokens. "
            words += f"Given: {failed.text}"
        if failed.fault is Fault.BATCH:
            words = f"batch size {failed.text} > maximum allowed batch size {self.setup.most_batched}"
        words = words or failed.text
        if path in _OPENAI:
            return Reply(status, {"message": words, "code": status, "type": kind})
        return Reply(status, {"error": words, "error_type": kind})

    def died(self) -> Mapping[str, Reply]:
        """See Shape."""
        return {"/health": Reply(503, {"error": "unhealthy", "error_type": "Unhealthy"})}

    def named(self, _made: Made) -> str:
        """See Shape."""
        return self.setup.name

    def ranks(
        self, _made: Made, scores: Sequence[float], texts: Sequence[str], body: Mapping[str, Any]
    ) -> Any:
        """See Shape. A bare list."""
        rows = []
        for index in ordered(scores):
            text = {"text": texts[index]} if body.get("return_text") else {}
            rows.append({"index": index, **text, "score": scores[index]})
        return rows

    def routes(self) -> Mapping[str, str]:
        """See Shape. There is no chat."""
        openai = dict.fromkeys(_OPENAI, "embed")
        return {**openai, "/embed": "embed-native", "/rerank": "rank"}

    def guarded(self, path: str) -> bool:
        """See Shape."""
        return path not in ("/health", "/", "/ping", "/metrics")
