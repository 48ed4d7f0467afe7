"""A load generator: chats and completions, half of them streamed, and an honest count of the ends.

Open loop: requests arrive at random (a Poisson process, seeded) whether or not earlier ones are answered, as
users do. A request has failed when its client got an error, no answer at all, or one with fewer or more
tokens than it asked for; a stream that broke after a part had arrived is counted on its own. A stream that
the gateway continued on another node says so in a comment; the wait around it is its seam.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import aiohttp
import orjson

from cloud.ports import Clock
from orchestrator.demo.options import PROVIDER

_FINISHED = ("stop", "length")
_EVENT = b"data: "
_CONTINUED = b": continued"
_BACKEND = "X-Orchestrator-Backend"  # names the pool that answered, or the provider and its model
_PROVIDER = f"{PROVIDER}/"

_Began: TypeAlias = tuple[float, str]


@dataclass
class LoadReport:
    """What became of the requests. `seams`: seconds that clients waited where their stream changed nodes.

    `began`: for each request that was answered in full, when its answer began, in seconds of the clock, and
    the backend that its header names ("" where it names none).
    """

    sent: int = 0
    answered: int = 0
    failed: int = 0
    streams: int = 0
    streams_cut: int = 0
    streams_continued: int = 0
    tokens: int = 0
    seams: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    began: list[_Began] = field(default_factory=list)

    @property
    def backends(self) -> Counter[str]:
        """Answers by the backend that they came from."""
        return Counter(backend for _, backend in self.began)

    @property
    def by_provider(self) -> int:
        """Answers of the API outside."""
        return sum(count for backend, count in self.backends.items() if backend.startswith(_PROVIDER))


def total(reports: Iterable[LoadReport]) -> LoadReport:
    """All of them as one."""
    found = LoadReport()
    for report in reports:
        for one in fields(LoadReport):
            setattr(found, one.name, getattr(found, one.name) + getattr(report, one.name))
    return found


class ClientStream:
    """One stream as its client sees it, line by line. `now` is seconds of any clock.

    `began`: text has come. `continued`: the gateway said that another node goes on. `finish`: the reason that
    ended it, None while there is none. `counted`: the tokens that its usage names.
    """

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._broke_at: float | None = None
        self.began = self.continued = False
        self.finish: str | None = None
        self.counted: int | None = None
        self.seams: list[float] = []

    def line(self, line: bytes, now: float) -> None:
        """One more line. Raises ValueError, LookupError, TypeError for an event that is no JSON object."""
        if line.startswith(_CONTINUED):
            self.continued = True
            self._broke_at = self._heard_at
        elif line.startswith(_EVENT) and line.strip() != b"data: [DONE]":
            self._chunk(orjson.loads(line[len(_EVENT) :]), now)

    def _chunk(self, chunk: dict[str, Any], now: float) -> None:
        if usage := chunk.get("usage"):
            self.counted = usage["completion_tokens"]
        for choice in chunk.get("choices", ()):
            self.began = self.began or bool(choice.get("text") or (choice.get("delta") or {}).get("content"))
            self.finish = choice.get("finish_reason") or self.finish
        if self._broke_at is not None:
            self.seams.append(now - self._broke_at)
            self._broke_at = None
        self._heard_at = now


class Load:
    """Sends `rate` requests per second to a gateway until it is stopped.

    An answer has so many `tokens`, the least and the most; a streamed one as many as `streamed` says. With
    `chats` it sends nothing but chats in words that every provider knows; then texts may end before, as
    their model likes.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        rate: float,
        tokens: tuple[int, int],
        seed: int,
        clock: Clock,
        streamed: tuple[int, int] | None = None,
        chats: bool = False,
    ) -> None:
        self._chats = chats
        self._url, self._model, self._rate, self._tokens = url, model, rate, tokens
        self._streamed = streamed or tokens
        self._rng = random.Random(seed)  # noqa: S311 - a demo's load, not a secret
        self._clock = clock
        self._open: set[asyncio.Task[None]] = set()
        self.report = LoadReport()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop`, then wait for the answers that are still owed."""
        timeout = aiohttp.ClientTimeout(total=120.0)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            while not stop.is_set():
                await self._clock.sleep(self._rng.expovariate(self._rate))
                task = asyncio.create_task(self._one(session, self._request()))
                self._open.add(task)
                task.add_done_callback(self._open.discard)
            await asyncio.gather(*self._open, return_exceptions=True)

    def _request(self) -> tuple[str, dict[str, Any]]:
        """One request: where to and what."""
        number = self.report.sent
        streamed = self._rng.random() < 0.5
        common: dict[str, Any] = {
            "model": self._model,
            "max_tokens": self._rng.randint(*(self._streamed if streamed else self._tokens)),
            "stream": streamed,
        }
        if not self._chats:
            common["ignore_eos"] = True
        if streamed:
            common["stream_options"] = {"include_usage": True}
        if self._chats or self._rng.random() < 0.5:
            messages = [{"role": "user", "content": f"Question number {number}, please."}]
            return "/v1/chat/completions", {**common, "messages": messages}
        return "/v1/completions", {**common, "prompt": f"Sentence number {number} goes on"}

    async def _one(self, session: aiohttp.ClientSession, request: tuple[str, dict[str, Any]]) -> None:
        path, body = request
        self.report.sent += 1
        stream = ClientStream(self._clock.steady())
        try:
            async with session.post(self._url + path, json=body) as response:
                began = self._clock.now(), response.headers.get(_BACKEND, "")
                if response.status != 200:
                    self._fail(f"HTTP {response.status}")
                elif body["stream"]:
                    self.report.streams += 1
                    async for line in response.content:
                        stream.line(line, self._clock.steady())
                    self._end_stream(stream, body["max_tokens"], began)
                else:
                    answer = orjson.loads(await response.read())
                    self._end(answer, body["max_tokens"], began)
        except (aiohttp.ClientError, TimeoutError, OSError, LookupError, TypeError, ValueError) as error:
            if stream.began:
                self.report.streams_cut += 1
            else:
                self._fail(type(error).__name__)

    def _end(self, answer: dict[str, Any], asked: int, began: _Began) -> None:
        finish, tokens = answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]
        if finish in _FINISHED:
            self._answered(tokens, asked, finish, began)
        else:
            self._fail("answer without an end")

    def _end_stream(self, stream: ClientStream, asked: int, began: _Began) -> None:
        if stream.continued:
            self.report.streams_continued += 1
            self.report.seams += stream.seams
        if stream.finish in _FINISHED:
            self._answered(stream.counted, asked, stream.finish, began)
        elif stream.began:
            self.report.streams_cut += 1
        else:
            self._fail("empty stream")

    def _answered(self, tokens: int | None, asked: int, finish: str | None, began: _Began) -> None:
        """A whole answer; no token of it may be missing or come twice, and none can be left out.

        A provider may not say how many they were: llama.cpp's streams of messages sometimes begin without
        their beginning, which holds the count.
        """
        self.report.tokens += tokens or 0
        untold = began[1].startswith(_PROVIDER) and tokens is None
        ended = self._chats and finish == "stop" and tokens is not None and tokens < asked
        if tokens == asked or ended or untold:
            self.report.answered += 1
            self.report.began.append(began)
        else:
            self._fail("answer of another length")

    def _fail(self, why: str) -> None:
        self.report.failed += 1
        self.report.failures[why] += 1
