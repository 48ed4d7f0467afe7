"""Ollama 0.33.0-rc2: server/routes.go, server/sched.go, middleware/openai.go, openai/openai.go.

A stream whose runner died just ends: the word of its end is read as an empty part of the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloud.engines.replay.shape import Counts, Failed, Fault, Made, Piece, Reply, Shape


class Ollama(Shape):
    """Ollama's words."""

    kind = "ollama"
    listens_first = True
    outlives = True

    def gets(self, counts: Counts) -> Mapping[str, Reply]:
        """See Shape. Nothing reports its load."""
        name = self.setup.name
        card = {"id": name, "object": "model", "created": 1755734400, "owned_by": "library"}
        loaded = (
            [{"name": name, "model": name, "size": 1, "digest": "0", "size_vram": 0}] if counts.steps else []
        )
        return {
            "/": Reply(200, b"Ollama is running"),
            "/api/version": Reply(200, {"version": "0.33.0-rc2"}),
            "/v1/models": Reply(200, {"object": "list", "data": [card]}),
            "/api/tags": Reply(200, {"models": [{"name": name, "model": name}]}),
            "/api/ps": Reply(200, {"models": loaded}),
        }

    def failed(self, failed: Failed, _path: str) -> Reply:
        """See Shape."""
        words = {
            Fault.FULL: "server busy, please try again.  maximum pending requests exceeded",
            Fault.UNKNOWN_MODEL: f"model '{failed.text}' not found",
            Fault.TOO_LONG: "the input length exceeds the context length",
            Fault.DIED: "llama runner process has terminated: signal: killed",
        }
        status = {Fault.FULL: 503, Fault.UNKNOWN_MODEL: 404, Fault.DIED: 500}.get(failed.fault, 400)
        kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
        message = words.get(failed.fault, failed.text)
        return Reply(status, {"error": {"message": message, "type": kind, "param": None, "code": None}})

    def head(self, made: Made, kind: str) -> dict[str, Any]:
        """See Shape."""
        return {**super().head(made, kind), "system_fingerprint": "fp_ollama"}

    def chunks(self, made: Made, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        """See Shape. A chat ends with a chunk of its own."""
        if not (made.chat and piece.finish):
            return super().chunks(made, piece, first=first)
        said = super().chunks(made, Piece(piece.text), first=first)
        (end,) = super().chunks(made, piece, first=False)
        end["choices"][0]["delta"] = {}
        return [*said, end]

    def routes(self) -> Mapping[str, str]:
        """See Shape."""
        return {**super().routes(), "/v1/embeddings": "embed"}
