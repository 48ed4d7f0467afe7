"""Audio and images: forms and files go in, text, JSON or bytes come out.

https://platform.openai.com/docs/api-reference/audio and .../images
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.gateway.dialects import Dialect, Same, Verdict
from orchestrator.gateway.dialects.rules import always, holds, json_rule
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.stream import TypedJudge

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

_PAGE_HEAD = 64  # bytes in which a page of HTML shows what it is
_AUDIO_ENDS = frozenset({"transcript.text.done", "speech.audio.done"})
_IMAGE_ENDS = frozenset({"image_generation.completed", "image_edit.completed"})


def _transcript(_: Asked, answer: dict[str, Any]) -> Failure | None:
    return None if isinstance(answer.get("text"), str) else Failure.INCOMPLETE


_json_transcript = json_rule(_transcript)


def _heard(asked: Asked, body: bytes) -> Verdict:
    """Speech and transcripts of plain text are taken as they are, JSON must be a transcript."""
    if not body:
        return Verdict(Failure.INCOMPLETE)
    if body[:_PAGE_HEAD].lstrip().lower().startswith((b"<!doctype", b"<html")):
        return Verdict(Failure.BAD_RESPONSE)  # a page of something that stands before the engine
    return _json_transcript(asked, body) if body.startswith(b'{"') else Verdict()


def _pictures(asked: Asked, answer: dict[str, Any]) -> Failure | None:
    return holds(answer, "data", asked.choices, "b64_json", "url")


AUDIO = Dialect(
    name="audio",
    judge=lambda _: TypedJudge(_AUDIO_ENDS),
    whole=_heard,
    edge=lambda _: Same(),
    json=False,
    repeats=always,
)
IMAGES = Dialect(
    name="images",
    judge=lambda _: TypedJudge(_IMAGE_ENDS),
    whole=json_rule(_pictures),
    edge=lambda _: Same(),
    json=False,
    repeats=always,
)
