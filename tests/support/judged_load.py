"""Requests whose right answers are known beforehand, and a client that judges every answer by its text.

A simulated engine's answer is a pure function of the request: what one that is asked directly says is what
every node says, and what a stream says that two nodes made.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import aiohttp
import orjson
from gateway_rig import MODEL

NODE = "X-Orchestrator-Node"
HUNG = 180.0
"""Seconds after which an answer counts as never coming."""

_DONE = b"[DONE]"
_STOPS = ("e m", "th", " s", "ou", "w")
_IDS = "return_token_ids"
_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request with the answer that it must get: a text with its end and usage, vectors, or scores.

    `vectors`: one for each input. `scores`: how well each document fits, in the order that was sent.
    `ids`: those of the text's tokens, where the request asks for them.
    """

    number: int
    path: str
    body: Mapping[str, Any]
    text: str = ""
    finish: str = ""
    usage: Mapping[str, int] = field(default_factory=dict)
    vectors: tuple[tuple[float, ...], ...] = ()
    scores: tuple[float, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def kind(self) -> str:
        """Its dialect and whether it streams, for tables."""
        return self.path.removeprefix("/v1/") + (", stream" if self.stream else "")


@dataclass(slots=True)
class Told:
    """What became of a question. `fault` is "" for an answer that is whole and right; times by perf_counter.

    `id` goes as X-Request-Id; `said` is the error's own words; `reads` are the times at which bytes came;
    `seams` is how often the stream went on elsewhere.
    """

    id: str
    question: Question
    began: float
    ended: float = 0.0
    fault: str = ""
    said: str = ""
    node: str = ""
    seams: int = 0
    reads: list[float] = field(default_factory=list)
    so_far: bytes = b""

    @property
    def over(self) -> bool:
        return self.ended > 0.0

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def asked(number: int, *, chat: bool, stream: bool, tokens: int, **more: Any) -> Question:
    """A question of so many tokens' answer, which is not known yet. `more` is added to the body."""
    prompt = f"Question number {number}: what comes then?"
    body = {"model": MODEL, "max_tokens": tokens, "ignore_eos": True, **more}
    if stream:
        body["stream"] = True
    if chat:
        body["messages"] = [{"role": "user", "content": prompt}]
        return Question(number=number, path="/v1/chat/completions", body=body)
    return Question(number=number, path="/v1/completions", body={**body, "prompt": prompt})


def mixed(rng: random.Random, count: int, tokens: tuple[int, int]) -> list[Question]:
    """So many questions whose answers are not known yet.

    Half of them streams, of chat and completions, some with usage or a stop string; one in ten for a vector.
    """
    found = []
    for number in range(count):
        if rng.random() < 0.1:
            body = {"model": MODEL, "input": f"Sentence number {number}"}
            found.append(Question(number=number, path="/v1/embeddings", body=body))
            continue
        stream = rng.random() < 0.6
        more: dict[str, Any] = {"stop": [rng.choice(_STOPS)]} if rng.random() < 0.15 else {}
        if stream and rng.random() < 0.3:
            more["stream_options"] = {"include_usage": True}
        chat = rng.random() < 0.6
        found.append(asked(number, chat=chat, stream=stream, tokens=rng.randint(*tokens), **more))
    return found


async def learnt(address: str, questions: Iterable[Question]) -> list[Question]:
    """The questions with their answers: what an engine that nothing disturbs says to their plain form.

    Raises aiohttp.ClientResponseError where it does not know the route.
    """
    async with aiohttp.ClientSession(raise_for_status=True) as session:

        async def one(question: Question) -> Question:
            plain = {k: v for k, v in question.body.items() if k not in ("stream", "stream_options")}
            async with session.post(f"http://{address}{question.path}", json=plain) as answer:
                said = await answer.json()
            if question.path == "/v1/embeddings":
                return replace(question, vectors=_vectors(said))
            if question.path == "/v1/rerank":
                return replace(question, scores=_scores(said))
            choice = said["choices"][0]
            usage = {key: said["usage"][key] for key in _USAGE}
            text = _text(choice)
            ids = _ids_asked_for(question, choice)
            return replace(question, text=text, finish=choice["finish_reason"], usage=usage, ids=ids)

        return [await one(question) for question in questions]


class Client:
    """Sends questions and keeps what became of them. Its connections are kept and used again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=HUNG)
        )
        self.told: list[Told] = []
        self._tasks: set[asyncio.Task[Told]] = set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def send(self, question: Question) -> asyncio.Task[Told]:
        """Ask without waiting for the answer."""
        task = asyncio.create_task(self.ask(question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def ask(self, question: Question) -> Told:
        """Ask, read the answer to its end and judge it. Raises nothing for whatever comes."""
        told = Told(f"{len(self.told)}-{question.number}", question, time.perf_counter())
        self.told.append(told)
        try:
            async with self._session.post(
                self._url + question.path,
                data=orjson.dumps(question.body),
                headers={**_JSON, "X-Request-Id": told.id},
            ) as answer:
                told.node = answer.headers.get(NODE, "")
                async for data in answer.content.iter_any():
                    told.reads.append(time.perf_counter())
                    told.so_far += data
                told.fault = judged(question, answer.status, told)
        except TimeoutError:
            told.fault = f"hung: nothing whole after {HUNG:.0f} s"
        except (aiohttp.ClientError, OSError) as error:
            told.fault = f"connection: {type(error).__name__}"
        told.ended = time.perf_counter()
        told.so_far = b""
        return told

    def open(self) -> list[Told]:
        """What is asked and not answered."""
        return [each for each in self.told if not each.over]


_JSON = {"Content-Type": "application/json"}


def judged(question: Question, status: int, told: Told) -> str:
    """What is wrong with an answer; "" where it is whole and says what it must."""
    body = told.so_far
    try:
        if status != 200:
            told.said = body.decode(errors="replace")[:300]
            return f"HTTP {status} {_code(body)}"
        if question.vectors:
            return "" if _vectors(orjson.loads(body)) == question.vectors else "other vectors"
        if question.scores:
            return "" if _scores(orjson.loads(body)) == question.scores else "other scores"
        return _of_stream(question, told) if question.stream else _of_text(question, orjson.loads(body))
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        return f"unreadable: {type(error).__name__}"


def faults(told: Iterable[Told]) -> Counter[str]:
    """How often each fault was met."""
    return Counter(each.fault for each in told if each.fault)


def longest_gap(told: Told, since: float) -> float:
    """The longest time without a byte after an instant, of an answer that had begun by then."""
    before = [at for at in told.reads if at <= since]
    times = [*before[-1:], *(at for at in told.reads if at > since)]
    return max((b - a for a, b in pairwise(times)), default=0.0)


def _code(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "without a code"


def _vectors(answer: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
    rows = sorted(answer["data"], key=lambda row: row["index"])
    return tuple(tuple(row["embedding"]) for row in rows)


def _scores(answer: Mapping[str, Any]) -> tuple[float, ...]:
    rows = sorted(answer["results"], key=lambda row: row["index"])
    return tuple(row["relevance_score"] for row in rows)


def _of_text(question: Question, answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    if choice["finish_reason"] != question.finish:
        return f"finish_reason {choice['finish_reason']}"
    if _text(choice) != question.text:
        return "another text"
    if _ids_asked_for(question, choice) != question.ids:
        return "other token ids"
    return _of_usage(question, answer["usage"])


def _text(choice: Mapping[str, Any]) -> str:
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


def _of_usage(question: Question, usage: Mapping[str, int]) -> str:
    wrong = [key for key, value in question.usage.items() if usage[key] != value]
    return f"usage: another {wrong[0]}" if wrong else ""


def _of_stream(question: Question, told: Told) -> str:
    lines = told.so_far.split(b"\n")
    told.seams = sum(line.startswith(b": continued") for line in lines)
    data = [line[6:] for line in lines if line.startswith(b"data: ")]
    events = [orjson.loads(each) for each in data if each != _DONE]
    chat = "messages" in question.body
    choices = [each["choices"][0] for each in events if each.get("choices")]
    broken = [each["error"] for each in events if "error" in each]
    if broken:
        told.said = str(broken[0].get("message"))
        right = question.text.startswith(_said(choices, chat)) and _DONE not in data
        return f"cut{'' if right else ' after another text'}: {broken[0].get('code')}"
    if data.count(_DONE) != 1 or data[-1] != _DONE:
        return "no [DONE] at the end"
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]
    usages = [each["usage"] for each in events if each.get("usage")]
    checks: Sequence[tuple[str, Callable[[], bool]]] = (
        ("more than one id", lambda: len({each["id"] for each in events}) == 1),
        ("not one role", lambda: not chat or sum("role" in c["delta"] for c in choices) == 1),
        (f"finish_reason {ends}", lambda: ends == [question.finish]),
        ("another text", lambda: _said(choices, chat) == question.text),
        ("other token ids", lambda: _ids_asked_for(question, *choices) == question.ids),
        (
            "token ids that nobody asked for",
            lambda: _IDS in question.body or not any(_ids(each) for each in (*events, *choices)),
        ),
        ("not the usage asked for", lambda: len(usages) == int("stream_options" in question.body)),
    )
    wrong = next((what for what, right in checks if not right()), "")
    return wrong or (_of_usage(question, usages[0]) if usages else "")


def _said(choices: Sequence[Mapping[str, Any]], chat: bool) -> str:
    if chat:
        return "".join(choice["delta"].get("content") or "" for choice in choices)
    return "".join(choice["text"] for choice in choices)


def _ids_asked_for(question: Question, *choices: Mapping[str, Any]) -> tuple[int, ...]:
    if _IDS not in question.body:
        return ()
    return tuple(token for choice in choices for token in choice.get("token_ids") or ())


def _ids(part: Mapping[str, Any]) -> bool:
    return bool(part.get("token_ids") or part.get("prompt_token_ids"))
