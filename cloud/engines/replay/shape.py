"""What an engine says over HTTP, as pure functions of what it did: what differs from kind to kind."""

from __future__ import annotations

import base64
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple

import orjson


class Fault(Enum):
    """Why a request is answered with an error."""

    TOO_LONG = auto()  # its input does not fit into the model's context
    MALFORMED = auto()  # its body cannot be read
    EMPTY = auto()  # a batch with nothing in it
    BATCH = auto()  # a batch with too much in it
    FULL = auto()  # the queue has no place
    DIED = auto()  # the model's process ended under it
    UNKNOWN_MODEL = auto()  # it names a model that is not here
    WRONG_TASK = auto()  # the model does something else


class Failed(Exception):
    """A request that ends with an error. `text` is the engine's own word for what is wrong."""

    def __init__(self, fault: Fault, text: str = "") -> None:
        super().__init__(text)
        self.fault = fault
        self.text = text


class Reply(NamedTuple):
    """An answer: status, what is its JSON (bytes go as they are), and headers beside the type."""

    status: int
    body: Any
    headers: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How the engine was started."""

    model: str
    name: str  # of the model, for clients
    task: str
    host: str
    port: int
    key: str = ""
    most_running: int = 8  # requests that run at once
    most_waiting: int | None = None  # requests that wait besides; None: any number
    context: int = 2048  # of the model, in tokens
    most_batched: int | None = None  # inputs of one request; None: any number
    cuts: bool = False  # it shortens what is too long
    grace: float | None = None


@dataclass(slots=True)
class Counts:
    """What the engine did since it started. `steps` of the model; the sums are of requests that ended."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    made: int = 0  # tokens, of all requests and so far
    taken: int = 0  # tokens of prompts of requests that began
    asked: int = 0
    ended: int = 0
    done: int = 0  # inputs that were embedded or ranked
    tokens_in: int = 0
    tokens_out: int = 0
    first_seconds: float = 0.0
    first_count: int = 0
    gap_seconds: float = 0.0
    gap_count: int = 0


class Piece(NamedTuple):
    """A part of a generated text. `finish` is set with the last one, "stop" or "length"."""

    text: str
    finish: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A request and what became of it: its id, the model that it named, and its tokens."""

    id: str
    asked: str
    created: int
    chat: bool
    tokens_in: int
    tokens_out: int


class Shape(ABC):
    """The words of one kind of engine. Defaults are OpenAI's shapes, which most of them share."""

    kind: ClassVar[str]
    outlives: ClassVar[bool] = False  # the server stays when the model's process ends
    takes_ids: ClassVar[bool] = False  # an input to embed may be ids of tokens
    listens_first: ClassVar[bool] = False  # it listens at once, and loads for the first request
    plain_text: ClassVar[str] = "text/plain; version=0.0.4"
    space: ClassVar[bytes] = b""  # between an event's data and its end

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @abstractmethod
    def gets(self, counts: Counts) -> Mapping[str, Reply]:
        """What it answers to GET, by path, while it is well."""

    @abstractmethod
    def failed(self, failed: Failed, _path: str) -> Reply:
        """An error answer."""

    def loading(self) -> Reply | None:
        """What it answers to every request until the model is loaded; None where it does not listen."""
        return None

    def died(self) -> Mapping[str, Reply]:
        """What it answers to GET, by path, once the model's process ended, where the server outlives it."""
        return {}

    def draining(self) -> Mapping[str, Reply]:
        """What it answers to GET, by path, while it drains."""
        return {}

    def named(self, made: Made) -> str:
        """The model as an answer tells it."""
        return made.asked

    def plain(self, made: Made, text: str, finish: str) -> dict[str, Any]:
        """A whole answer."""
        said = {"message": {"role": "assistant", "content": text}} if made.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        kind = "chat.completion" if made.chat else "text_completion"
        return {**self.head(made, kind), "choices": [choice], "usage": usage(made)}

    def chunks(self, made: Made, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        """The events of a stream for one piece."""
        if made.chat:
            role = {"role": "assistant"} if first else {}
            said: dict[str, Any] = {"delta": {**role, "content": piece.text}}
        else:
            said = {"text": piece.text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": piece.finish}
        kind = "chat.completion.chunk" if made.chat else "text_completion"
        return [{**self.head(made, kind), "choices": [choice]}]

    def used(self, made: Made) -> list[dict[str, Any]]:
        """The events that tell the usage of a stream whose client asked for it."""
        kind = "chat.completion.chunk" if made.chat else "text_completion"
        return [{**self.head(made, kind), "choices": [], "usage": usage(made)}]

    def broken(self, _failed: Failed) -> list[dict[str, Any]]:
        """The events of a stream that breaks; none where the connection just ends."""
        return []

    def head(self, made: Made, kind: str) -> dict[str, Any]:
        """How every answer begins."""
        return {"id": made.id, "object": kind, "created": made.created, "model": self.named(made)}

    def vectors(self, made: Made, vectors: Sequence[Sequence[float]], encoding: str) -> Any:
        """An answer of /v1/embeddings."""
        rows = [
            {"object": "embedding", "embedding": encoded(vector, encoding), "index": index}
            for index, vector in enumerate(vectors)
        ]
        told = {"prompt_tokens": made.tokens_in, "total_tokens": made.tokens_in}
        return {"object": "list", "data": rows, "model": self.named(made), "usage": told}

    def ranks(
        self, made: Made, scores: Sequence[float], texts: Sequence[str], body: Mapping[str, Any]
    ) -> Any:
        """An answer of its route that ranks, the best first."""
        raise NotImplementedError(f"{self.kind} ranks nothing")

    def routes(self) -> Mapping[str, str]:
        """POST paths and what they do: "text", "chat", "embed", "embed-native", "rank" or "abort"."""
        return {"/v1/completions": "text", "/v1/chat/completions": "chat"}

    def guarded(self, path: str) -> bool:
        """Whether the path asks for the key."""
        return path.startswith("/v1")

    def cut_off(self, path: str) -> Reply | None:
        """What a plain request gets under which the model's process ends; None for a closed connection."""
        return self.failed(Failed(Fault.DIED), path)

    def unauthorized(self) -> Reply:
        """What a request without the key gets."""
        return Reply(401, b"")


def usage(made: Made) -> dict[str, int]:
    """The usage of a generated text as OpenAI tells it."""
    total = made.tokens_in + made.tokens_out
    return {
        "prompt_tokens": made.tokens_in,
        "completion_tokens": made.tokens_out,
        "total_tokens": total,
    }


def encoded(vector: Sequence[float], encoding: str) -> Any:
    """Numbers as they are, or little-endian float32 as base64."""
    if encoding != "base64":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def ordered(scores: Sequence[float]) -> list[int]:
    """Places of the texts, the best first."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def exposition(rows: Mapping[str, float]) -> bytes:
    """Lines of a Prometheus exposition: names with their labels, and values."""
    return "".join(f"{name} {value:g}\n" for name, value in rows.items()).encode()


def histogram(name: str, labels: str, seconds: float, count: int) -> dict[str, float]:
    """The lines of a histogram that a reader of means needs."""
    inner = f"{labels}," if labels else ""
    shown = f"{{{labels}}}" if labels else ""
    return {
        f'{name}_bucket{{{inner}le="+Inf"}}': count,
        f"{name}_sum{shown}": seconds,
        f"{name}_count{shown}": count,
    }


def event(body: Mapping[str, Any], space: bytes = b"") -> bytes:
    """One event of a stream."""
    return b"data: " + orjson.dumps(body) + space + b"\n\n"
