"""A load generator: chat and completion requests, half of them streamed, and an honest count of the ends.

Open loop: requests arrive at random (a Poisson process, seeded) whether or not earlier ones are answered, as
users do. A request has failed when its client got an error or no answer at all; a stream that broke after a
part had arrived is counted on its own.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import orjson

from cloud.ports import Clock

_FINISHED = ("stop", "length")
_EVENT = b"data: "


@dataclass
class LoadReport:
    """What became of the requests."""

    sent: int = 0
    answered: int = 0
    failed: int = 0
    streams: int = 0
    streams_cut: int = 0
    tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)


class Load:
    """Sends `rate` requests per second to a gateway until told to stop."""

    def __init__(
        self, *, url: str, model: str, rate: float, tokens: tuple[int, int], seed: int, clock: Clock
    ) -> None:
        self._url, self._model, self._rate, self._tokens = url, model, rate, tokens
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

    def _request(self) -> tuple[str, dict[str, object]]:
        """One request: where to and what."""
        streamed = self._rng.random() < 0.5
        number = self.report.sent
        common = {
            "model": self._model,
            "max_tokens": self._rng.randint(*self._tokens),
            "ignore_eos": True,
            "stream": streamed,
        }
        if self._rng.random() < 0.5:
            messages = [{"role": "user", "content": f"Question number {number}, please."}]
            return "/v1/chat/completions", {**common, "messages": messages}
        return "/v1/completions", {**common, "prompt": f"Sentence number {number} goes on"}

    async def _one(self, session: aiohttp.ClientSession, request: tuple[str, dict[str, object]]) -> None:
        path, body = request
        report = self.report
        report.sent += 1
        began = False
        try:
            async with session.post(self._url + path, json=body) as response:
                if response.status != 200:
                    self._fail(f"HTTP {response.status}")
                elif body["stream"]:
                    report.streams += 1
                    finished = False
                    async for line in response.content:
                        if not line.startswith(_EVENT) or line.strip() == b"data: [DONE]":
                            continue
                        reason, tokens = _event(line[len(_EVENT) :])
                        began = began or tokens > 0
                        report.tokens += tokens
                        finished = finished or reason in _FINISHED
                    self._end_stream(finished=finished, began=began)
                else:
                    answer = orjson.loads(await response.read())
                    report.tokens += answer["usage"]["completion_tokens"]
                    if answer["choices"][0]["finish_reason"] in _FINISHED:
                        report.answered += 1
                    else:
                        self._fail("answer without an end")
        except (aiohttp.ClientError, TimeoutError, OSError, KeyError, orjson.JSONDecodeError) as error:
            if began:
                report.streams_cut += 1
            else:
                self._fail(type(error).__name__)

    def _end_stream(self, *, finished: bool, began: bool) -> None:
        if finished:
            self.report.answered += 1
        elif began:
            self.report.streams_cut += 1
        else:
            self._fail("empty stream")

    def _fail(self, why: str) -> None:
        self.report.failed += 1
        self.report.failures[why] += 1


def _event(data: bytes) -> tuple[str | None, int]:
    """The finish reason of one SSE event, and whether it carried text (1) or not (0)."""
    try:
        choice = orjson.loads(data)["choices"][0]
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        return None, 0
    text = choice.get("text") or (choice.get("delta") or {}).get("content")
    return choice.get("finish_reason"), 1 if text else 0
