"""Text Generation Inference 3.3.6-dev0: router/src/server.rs, lib.rs, infer/mod.rs, backends/v3/src."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloud.engines.replay.shape import (
    Counts,
    Failed,
    Fault,
    Made,
    Piece,
    Reply,
    Shape,
    exposition,
    histogram,
    usage,
)

_VERSION: Final = "3.3.6-dev0"
_KINDS: Final = {
    Fault.FULL: (429, "overloaded", "Model is overloaded"),
    Fault.DIED: (424, "generation", "Request failed during generation: Server error: transport error"),
    Fault.TOO_LONG: (422, "validation", "Input validation error: "),
    Fault.MALFORMED: (422, "validation", ""),
}


class Tgi(Shape):
    """TGI's words."""

    kind = "tgi"

    def gets(self, counts: Counts) -> Mapping[str, Reply]:
        """See Shape. A metric is not there before it first had a value."""
        model = self.setup.model
        card = {"id": model, "object": "model", "created": 0, "owned_by": model}
        info = {
            "model_id": model,
            "model_sha": "e985a63cdc139290c5f700ff1929f0b5942cced2",
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": self.setup.most_running + (self.setup.most_waiting or 0),
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": self.setup.context - 1,
            "max_total_tokens": self.setup.context,
            "validation_workers": 2,
            "max_client_batch_size": self.setup.most_batched,
            "router": "text-generation-router",
            "version": _VERSION,
            "sha": None,
            "docker_label": None,
        }
        body = exposition(self._metrics(counts))
        return {
            "/health": Reply(200, b""),
            "/": Reply(200, b""),
            "/info": Reply(200, info),
            "/v1/models": Reply(200, {"object": "list", "data": [card]}),
            "/metrics": Reply(200, body, {"Content-Type": self.plain_text}),
        }

    def _metrics(self, counts: Counts) -> dict[str, float]:
        rows: dict[str, float] = {}
        if not counts.asked:
            return rows
        rows["tgi_request_count"] = counts.asked
        rows["tgi_queue_size"] = counts.waiting
        if counts.steps:
            rows["tgi_batch_current_size"] = counts.running
            rows['tgi_batch_inference_count{method="prefill"}'] = counts.first_count
            rows['tgi_batch_inference_count{method="decode"}'] = counts.steps
        rows |= histogram("tgi_request_input_length", "", counts.tokens_in, counts.ended)
        if counts.ended:
            rows["tgi_request_success"] = counts.ended
            rows |= histogram("tgi_request_generated_tokens", "", counts.tokens_out, counts.ended)
            mean = counts.gap_seconds / max(1, counts.gap_count)
            name = "tgi_request_mean_time_per_token_duration"
            rows |= histogram(name, "", mean * counts.ended, counts.ended)
        return rows

    def failed(self, failed: Failed, _path: str) -> Reply:
        """See Shape. `error` is a text, in chats too."""
        status, kind, words = _KINDS.get(failed.fault, (422, "validation", ""))
        if failed.fault is Fault.TOO_LONG:
            words += f"`inputs` must have less than {self.setup.context} tokens. Given: {failed.text}"
        return Reply(status, {"error": words or failed.text, "error_type": kind})

    def head(self, made: Made, kind: str) -> dict[str, Any]:
        """See Shape. No answer has an id."""
        return {
            "object": kind,
            "id": "",
            "created": made.created,
            "model": self.named(made),
            "system_fingerprint": f"{_VERSION}-native",
        }

    def named(self, made: Made) -> str:
        """See Shape. A text is by the model itself, a chat by whatever was asked for."""
        return made.asked if made.chat and made.asked != "tgi" else self.setup.model

    def chunks(self, made: Made, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        """See Shape. Every delta tells the role; a text that goes on has an empty finish_reason, and one that
        ends by itself another word than a plain answer."""
        rows = super().chunks(made, piece, first=first or made.chat)
        for row in rows:
            if made.chat:
                row["usage"] = None
            else:
                row["choices"][0]["finish_reason"] = {"stop": "eos_token"}.get(
                    piece.finish or "", piece.finish or ""
                )
                if piece.finish:
                    row["usage"] = usage(made)
        return rows

    def used(self, made: Made) -> list[dict[str, Any]]:
        """See Shape. A text has it in its last chunk."""
        return super().used(made) if made.chat else []

    def broken(self, failed: Failed) -> list[dict[str, Any]]:
        """See Shape. The status in it is 422 whatever happened."""
        words = str(_KINDS.get(failed.fault, (0, "", failed.text))[2])
        return [{"error": {"message": words, "http_status_code": 422}}]

    def guarded(self, path: str) -> bool:
        """See Shape."""
        return path in ("/v1/completions", "/v1/chat/completions")
