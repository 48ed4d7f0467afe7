"""The last answers: which status, whose words, when to come again, and how it is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from orchestrator.gateway.asked import ask
from orchestrator.gateway.endings import Answer, Endings, shape_for
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.metrics import Outcome

ENDINGS = Endings(retry_after=7)


class Edge:
    """Passes errors on as they are, or in other words."""

    def __init__(self, words: bytes | None = None) -> None:
        self.words = words

    def failed(self, status: int, body: bytes, request_id: str) -> bytes:
        return body if self.words is None else self.words


def job(path: str = "/v1/chat/completions", **more: Any) -> Any:
    fields: dict[str, Any] = {"exchange": SimpleNamespace(id="r-1"), "edge": Edge(), "response": None}
    return SimpleNamespace(asked=ask("POST", path, "application/json", b"{}"), **{**fields, **more})


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("", None),
        ("soon", None),
        ("-1", None),
        ("nan", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("0", 0.0),
        ("2.5", 2.5),
        ("3600", 3600.0),
        ("1e9", 3600.0),
    ],
)
def test_when_a_backend_wants_to_be_asked_again(said: str, seconds: float | None) -> None:
    headers = CIMultiDict({"retry-after": said}) if said else CIMultiDict[str]()
    assert Answer(503, headers, b"").retry_after == seconds


@pytest.mark.parametrize(
    ("status", "outcome", "again"),
    [
        (400, Outcome.BAD_REQUEST, None),
        (404, Outcome.BAD_REQUEST, None),
        (500, Outcome.FAILED, "7"),
        (502, Outcome.FAILED, "7"),
        (503, Outcome.REFUSED, "7"),
        (504, Outcome.FAILED, "7"),
    ],
)
def test_an_error_of_ours(status: int, outcome: Outcome, again: str | None) -> None:
    turned = ENDINGS.turned(job(), status, "code", "words", node="n-1", param="model")
    answer = turned.response
    assert (answer.status, turned.outcome) == (status, outcome)
    assert answer.headers.get("Retry-After") == again
    assert (answer.headers["X-Orchestrator-Node"], answer.headers["X-Request-Id"]) == ("n-1", "r-1")
    error = orjson.loads(answer.body)["error"]  # type: ignore[arg-type]
    assert (error["code"], error["param"]) == ("code", "model")
    assert "words" in error["message"]
    assert "X-Orchestrator-Node" not in ENDINGS.turned(job(), status, "code", "words").response.headers


def test_an_error_of_ours_has_the_shape_of_the_clients_dialect() -> None:
    body = orjson.loads(ENDINGS.turned(job("/v1/messages"), 502, "code", "words").response.body)  # type: ignore[arg-type]
    assert body["type"] == "error"
    assert shape_for(None) is shape_for(job())
    assert shape_for(job("/v1/messages")) is not shape_for(None)


@pytest.mark.parametrize(
    ("status", "asked", "again", "outcome"),
    [
        (400, None, None, Outcome.CLIENT_ERROR),
        (429, None, "7", Outcome.CLIENT_ERROR),
        (429, "2", "2", Outcome.CLIENT_ERROR),
        (499, None, None, Outcome.CLIENT_ERROR),
        (500, None, None, Outcome.UPSTREAM_ERROR),
        (503, None, "7", Outcome.UPSTREAM_ERROR),
        (503, "30", "30", Outcome.UPSTREAM_ERROR),
    ],
)
def test_an_error_that_a_backend_gave(
    status: int, asked: str | None, again: str | None, outcome: Outcome
) -> None:
    headers = CIMultiDict({"Content-Type": "text/plain", "Content-Encoding": "gzip"})
    if asked is not None:
        headers["Retry-After"] = asked
    turned = ENDINGS.said(job(), Answer(status, headers, b"theirs"))
    answer = turned.response
    assert (answer.status, answer.body, turned.outcome) == (status, b"theirs", outcome)
    assert answer.headers.get("Retry-After") == again
    assert answer.headers["X-Request-Id"] == "r-1"
    assert (answer.headers["Content-Type"], answer.headers["Content-Encoding"]) == ("text/plain", "gzip")


def test_an_error_in_other_words_is_json_that_nothing_encodes() -> None:
    headers = CIMultiDict({"Content-Type": "text/plain", "Content-Encoding": "gzip"})
    answer = ENDINGS.said(job(edge=Edge(b"{}")), Answer(500, headers, b"theirs")).response
    assert (answer.body, answer.headers["Content-Type"]) == (b"{}", "application/json")
    assert "Content-Encoding" not in answer.headers


class Out:
    """An answer under way."""

    def __init__(self, kind: str, error: Exception | None = None) -> None:
        self.content_type, self.error, self.written = kind, error, list[bytes]()

    async def write(self, data: bytes) -> None:
        self.written.append(data)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_a_stream_of_events_says_that_the_rest_will_not_come(error: Exception | None) -> None:
    aborted: list[int] = []
    transport = SimpleNamespace(abort=lambda: aborted.append(1))
    out: Any = Out("text/event-stream", error)
    one = job(
        response=out,
        request=SimpleNamespace(transport=transport),
        interrupted=lambda failure, detail: f"{failure}: {detail}".encode(),
    )
    assert await ENDINGS.cut(one, Failure.LOST, "gone") is out
    assert (out.written, one.outcome, aborted) == ([b"lost: gone"], Outcome.CUT, [])


@pytest.mark.parametrize("there", [True, False])
async def test_other_bytes_end_with_their_connection(there: bool) -> None:
    aborted: list[int] = []
    transport = SimpleNamespace(abort=lambda: aborted.append(1)) if there else None
    out: Any = Out("audio/mpeg")
    one = job(response=out, request=SimpleNamespace(transport=transport))
    assert await ENDINGS.cut(one, Failure.LOST, "gone") is out
    assert (out.written, one.outcome, aborted) == ([], Outcome.CUT, [1] * there)
    with pytest.raises(AssertionError, match="nothing was begun"):
        await ENDINGS.cut(job(), Failure.LOST, "gone")
