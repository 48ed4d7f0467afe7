"""TensorRT-LLM (main): serve/openai_server.py, openai_protocol.py, readiness.py, metrics/collector.py."""

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
)

_STARTING: Final = {
    "error": {
        "message": "The server is still initializing the model and cannot serve requests yet.",
        "type": "ServiceUnavailableError",
        "code": "starting",
    }
}
_BLOCK: Final = 32  # tokens of a block of the cache
_LABELS: Final = 'engine_type="undefined",model_name="undefined"'


class Trtllm(Shape):
    """TensorRT-LLM's words."""

    kind = "trtllm"
    space = b" "

    def gets(self, counts: Counts) -> Mapping[str, Reply]:
        """See Shape. /metrics is no exposition, but a list of what the last iterations did."""
        card = {"id": self.setup.name, "object": "model", "created": 0, "owned_by": "tensorrt_llm"}
        body = exposition(self._metrics(counts))
        return {
            "/health": Reply(200, b""),
            "/version": Reply(200, {"version": "1.2.0"}),
            "/v1/models": Reply(200, {"object": "list", "data": [card]}),
            "/metrics": Reply(200, [{"iter": counts.steps, "numActiveRequests": counts.running}]),
            "/prometheus/metrics": Reply(200, body, {"Content-Type": self.plain_text}),
        }

    def _metrics(self, counts: Counts) -> dict[str, float]:
        shown = f"{{{_LABELS}}}"
        rows: dict[str, float] = {}
        if counts.steps:
            rows[f"trtllm_num_requests_running{shown}"] = counts.running
            rows[f"trtllm_num_requests_waiting{shown}"] = counts.waiting
            rows[f"trtllm_kv_cache_gen_alloc_blocks_total{shown}"] = counts.made // _BLOCK
            rows[f"trtllm_kv_cache_utilization{shown}"] = min(1.0, counts.running / self.setup.most_running)
        if counts.ended:
            rows[f"trtllm_prompt_tokens_total{shown}"] = counts.tokens_in
            rows[f"trtllm_generation_tokens_total{shown}"] = counts.tokens_out
        first, gaps = "trtllm_time_to_first_token_seconds", "trtllm_time_per_output_token_seconds"
        rows |= histogram(first, _LABELS, counts.first_seconds, counts.first_count)
        rows |= histogram(gaps, _LABELS, counts.gap_seconds, counts.gap_count)
        return rows

    def loading(self) -> Reply | None:
        """See Shape."""
        return Reply(503, _STARTING, {"Retry-After": "1", "x-trtllm-server-state": "starting"})

    def failed(self, failed: Failed, _path: str) -> Reply:
        """See Shape. Errors are flat."""
        status = 500 if failed.fault is Fault.DIED else 400
        kind = "InternalServerError" if status == 500 else "BadRequestError"
        words = failed.text
        if failed.fault is Fault.TOO_LONG:
            words = f"The prompt length ({failed.text}) exceeds the maximum of {self.setup.context} tokens"
        return Reply(
            status, {"object": "error", "message": words, "type": kind, "param": None, "code": status}
        )

    def cut_off(self, _path: str) -> Reply | None:
        """See Shape. The handler ends without an answer, which its framework makes an answer of."""
        return Reply(200, None)

    def chunks(self, made: Made, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        """See Shape. What is null is left out; a chat opens with the role and no text."""
        rows = super().chunks(made, piece, first=False)
        if first and made.chat:
            (role,) = super().chunks(made, Piece(""), first=True)
            del role["choices"][0]["delta"]["content"]
            rows = [role, *rows]
        for row in rows:
            choice = row["choices"][0]
            row["choices"] = [{key: value for key, value in choice.items() if value is not None}]
        return rows
