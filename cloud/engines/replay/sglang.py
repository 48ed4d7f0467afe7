"""SGLang 0.5.23: srt/entrypoints/http_server.py, openai/*.py, srt/observability/metrics_collector.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    ordered,
)

_LOG_EVERY: Final = 40  # decode steps between two updates of the count of tokens
_STATUS: Final = {Fault.FULL: 503, Fault.DIED: 500}


class Sglang(Shape):
    """SGLang's words."""

    kind = "sglang"
    takes_ids = True

    def gets(self, counts: Counts) -> Mapping[str, Reply]:
        """See Shape. /health makes no token: the variable that the adapter sets says so."""
        name = self.setup.name
        card = {"id": name, "object": "model", "created": 0, "owned_by": "sglang", "root": name}
        listed = {"object": "list", "data": [{**card, "parent": None, "max_model_len": self.setup.context}]}
        info = {"model_path": self.setup.model, "served_model_name": name, "weight_version": "default"}
        body = exposition(self._metrics(counts))
        return {
            "/health": Reply(200, b""),
            "/ready": Reply(200, b""),
            "/v1/models": Reply(200, listed),
            "/model_info": Reply(200, info),
            "/metrics": Reply(200, body, {"Content-Type": self.plain_text}),
        }

    def _metrics(self, counts: Counts) -> dict[str, float]:
        shown = f'engine_type="unified",model_name="{self.setup.name}"'
        streams = f'{shown},is_streaming="false"'
        rows: dict[str, float] = {
            f"sglang:num_running_reqs{{{shown}}}": counts.running,
            f"sglang:num_queue_reqs{{{shown}}}": counts.waiting,
            f"sglang:token_usage{{{shown}}}": min(1.0, counts.running / self.setup.most_running),
        }
        if counts.taken:
            rows[f'sglang:realtime_tokens_total{{{shown},mode="prefill_compute"}}'] = counts.taken
        if counts.made >= _LOG_EVERY:
            decoded = counts.made // _LOG_EVERY * _LOG_EVERY
            rows[f'sglang:realtime_tokens_total{{{shown},mode="decode"}}'] = decoded
        if counts.ended:
            rows[f"sglang:prompt_tokens_total{{{streams}}}"] = counts.tokens_in
            rows[f"sglang:generation_tokens_total{{{streams}}}"] = counts.tokens_out
        first = "sglang:time_to_first_token_seconds"
        rows |= histogram(first, streams, counts.first_seconds, counts.first_count)
        rows |= histogram("sglang:inter_token_latency_seconds", shown, counts.gap_seconds, counts.gap_count)
        return rows

    def loading(self) -> Reply | None:
        """See Shape."""
        return Reply(503, b"")

    def draining(self) -> Mapping[str, Reply]:
        """See Shape."""
        return {"/health": Reply(503, b""), "/ready": Reply(503, b"")}

    def failed(self, failed: Failed, _path: str) -> Reply:
        """See Shape. Errors are flat, without an `error` around them."""
        status = _STATUS.get(failed.fault, 400)
        return Reply(status, {**self._error(failed, status), "object": "error"})

    def _error(self, failed: Failed, status: int) -> dict[str, Any]:
        words = {
            Fault.FULL: "The request queue is full.",
            Fault.TOO_LONG: f"The input ({failed.text} tokens) is longer than the model's context length "
            f"({self.setup.context} tokens).",
        }
        kind = {400: "BadRequest", 503: "503", 500: "InternalServerError"}[status]
        message = words.get(failed.fault, failed.text)
        return {"message": message, "type": kind, "param": None, "code": status}

    def chunks(self, made: Made, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        """See Shape. A chat opens with the role and an empty text; chunks tell no usage."""
        rows = super().chunks(made, piece, first=False)
        for row in rows:
            row["choices"][0]["matched_stop"] = None
            row["usage"] = None
        if first and made.chat:
            role = super().chunks(made, Piece(""), first=True)
            return [*role, *rows]
        return rows

    def broken(self, failed: Failed) -> list[dict[str, Any]]:
        """See Shape. An abort by the engine itself with a status; one by a person is a finish_reason."""
        if failed.fault is Fault.FULL:
            return [{"error": {**self._error(failed, 503), "object": "error"}}]
        return []

    def cut_off(self, _path: str) -> Reply | None:
        """See Shape. The whole tree of its processes is killed."""
        return None

    def vectors(self, made: Made, vectors: Sequence[Sequence[float]], encoding: str) -> Any:
        """See Shape. The model is called by its path."""
        return {**super().vectors(made, vectors, encoding), "model": self.setup.model}

    def ranks(
        self, made: Made, scores: Sequence[float], texts: Sequence[str], body: Mapping[str, Any]
    ) -> Any:
        """See Shape. A bare list; the texts are in it unless they are not wanted."""
        shown = body.get("return_documents", True)
        most = body.get("top_n") or len(scores)
        rows = [
            {"score": scores[index], "index": index, "meta_info": {"id": made.id}}
            | ({"document": texts[index]} if shown else {})
            for index in ordered(scores)
        ]
        return rows[:most]

    def routes(self) -> Mapping[str, str]:
        """See Shape."""
        more = {"/v1/embeddings": "embed", "/v1/rerank": "rank", "/abort_request": "abort"}
        return {**super().routes(), **more}

    def unauthorized(self) -> Reply:
        """See Shape."""
        return Reply(401, {"error": "Unauthorized"})
