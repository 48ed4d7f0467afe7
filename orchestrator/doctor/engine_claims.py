"""A running engine, held against its row in the table of dialects: what it answers otherwise than it should.

For engines that were never run here above all. Nothing is changed there: some tokens are asked for, and one
input that is too long, where the engine tells how long one may be.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import aiohttp
import orjson

from cloud.engines.dialect import DIALECTS, Kind
from cloud.engines.recognise import PATHS, by_answer
from cloud.engines.wire import KeyRefused, LookFailed, Wire, sentence
from cloud.ports import Task
from cloud.sse import event_data, split_events
from orchestrator.doctor.findings import Check, Finding, Findings, fail, ok, skipped, warn

_NOBODY: Final = "a-model-that-nobody-has"
_TOKENS: Final = 8
_LONGEST: Final = 200_000  # tokens of a request beyond which nobody sends a longer one to try
_READ_AGAIN: Final = "compare its version with the row's (docs/reference/engines-replayed.md), and report it"
_WHERE: Final = "look at its address, and at its log"
_TIMES: Final = ("first_token", "between_tokens")
_LOAD: Final = ("running", "waiting")
_CONTEXTS: Final = ("max_total_tokens", "max_input_length")  # as TGI and TEI tell it in /info

Texts = Mapping[str, Any]


class EngineClaims:
    """One engine at an address. `name` is the model that is asked for; empty takes the first in its list.
    `scheme` is http or https."""

    def __init__(
        self, kind: Kind, address: str, *, task: Task, name: str = "", key: str = "", scheme: str = "http"
    ) -> None:
        self._kind, self._row, self._scheme = kind, DIALECTS[kind], scheme
        self._address, self._task, self._name, self._key = address, task, name, key
        self._wire = self._named(name)
        self._context = 0

    def _named(self, name: str) -> Wire:
        return Wire(self._row, name=name, task=self._task, key=self._key, scheme=self._scheme)

    async def close(self) -> None:
        """Release connections."""
        await self._wire.close()

    def checks(self) -> list[Check]:
        """What is asked, each after what it needs."""
        looks: list[tuple[str, Callable[[], Awaitable[Findings]], str]] = [
            ("task", self._does_task, ""),
            ("kind", self._is_of_its_kind, ""),
            ("health", self._healthy, "engine/task"),
            ("model", self._model, "engine/health"),
            ("life", self._life, "engine/model"),
            ("names", self._names, "engine/life"),
            ("too-long", self._too_long, "engine/life"),
            ("stream", self._stream, "engine/life"),
            ("stop", self._stop, ""),
        ]
        return [
            Check(group="engine", name=name, look=self._caught(look), needs=needs)
            for name, look, needs in looks
        ]

    async def _does_task(self) -> Findings:
        if self._task in self._row.capabilities.tasks:
            return [ok(f"{self._row.title} is known to {self._task}")]
        able = ", ".join(sorted(self._row.capabilities.tasks))
        return [fail(f"{self._row.title} is not known to {self._task}", f"write --task with one of {able}")]

    async def _is_of_its_kind(self) -> Findings:
        """Which engine it is by what it answers, whatever was said."""
        for path in PATHS:
            try:
                status, body = await self._wire.request("GET", self._address, path)
            except (LookFailed, aiohttp.ClientError, OSError):
                continue  # that does not tell, and what is wrong the other checks say
            seen = by_answer(path, body) if status == 200 else None
            if seen is None:
                continue
            title, told = DIALECTS[seen].title, DIALECTS[self._kind].title
            if seen == self._kind or (seen, self._kind) == ("vllm", "simulated"):
                return [ok(f"it is {told}, by its {path}")]
            advice = f"write --kind {seen}, and engine.kind in the pool's table"
            return [fail(f"it is {title} and not {told}, by its {path}", advice)]
        return [skipped("none of its answers tells which engine it is")]

    async def _healthy(self) -> Findings:
        await self._wire.healthy(self._address)
        return [ok(f"{self._row.health} answers 200")]

    async def _model(self) -> Findings:
        """Its list of models, and how long a request may be."""
        listed = await self._wire.listed(self._address)
        if not listed.names:
            return [fail(f"{self._row.listing} names no model", "load one")]
        if not self._name:
            await self._wire.close()
            self._name = listed.names[0]
            self._wire = self._named(self._name)
        await self._wire.serves(self._address)
        _, body = await self._wire.request("GET", self._address, self._row.listing)
        self._context = _context(orjson.loads(body))
        found = [ok(f"{self._row.listing} names {self._name}")]
        if listed.adapters:
            found.append(ok(f"it has {', '.join(listed.adapters)} beside it", "adapters"))
        return found

    async def _life(self) -> Findings:
        """A sign of life, and the metrics that it moves."""
        row = self._row
        if not row.metrics:
            await self._wire.works(self._address)
            status, _ = await self._wire.request("GET", self._address, "/metrics")
            more = [warn("/metrics answers 200, and its row says that there is none", _READ_AGAIN)]
            return [ok("it works"), *(more if status == 200 else [])]
        names = self._metric_names()
        before = await self._wire.samples(self._address, *(name for _, name in names))
        await self._wire.works(self._address)
        after = await self._wire.samples(self._address, *(name for _, name in names))
        found: list[Finding] = [ok("it works")]
        for field, name in names:
            if name in after:
                found.append(ok(f"{row.metrics} has {name}", field))
            elif row.sparse and field in _LOAD:
                text = f"{row.metrics} does not have {name}, also after it worked: its load is not seen"
                found.append(warn(text, row.measured, field))
            elif row.sparse:
                found.append(skipped(f"{row.metrics} does not have {name} yet", subject=field))
            else:
                found.append(fail(f"{row.metrics} lacks {name}", row.measured, field))
        counters = row.progress[self._task]
        if not any(after.get(name, 0.0) > before.get(name, 0.0) for name in counters):
            found.append(
                fail(f"it worked, and {' and '.join(counters)} did not move", _READ_AGAIN, "progress")
            )
        return found

    def _caught(self, look: Callable[[], Awaitable[Findings]]) -> Callable[[], Awaitable[Findings]]:
        """The look, with what goes wrong on the way as a finding."""

        async def caught() -> Findings:
            try:
                return await look()
            except KeyRefused as error:
                return [fail(str(error), "write --key-file FILE, with the key that it was started with")]
            except LookFailed as error:
                return [fail(str(error), _READ_AGAIN)]
            except (aiohttp.ClientError, OSError) as error:
                text = sentence(error, self._address)
                if _refused(error) and self._row.loading == "refused":
                    return [fail(f"{text}; {self._row.title} listens once its model is loaded", _WHERE)]
                return [fail(text, _WHERE)]
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                return [fail(f"an answer has another shape: {error!r}"[:200], _READ_AGAIN)]

        return caught

    def _metric_names(self) -> list[tuple[str, str]]:
        """Each field of the row that is a metric, with a series of it."""
        row = self._row
        gauges = [(field, getattr(row, field)) for field in ("running", "waiting", "kv")]
        counters = [(field, getattr(row, field)) for field in ("tokens_in", "tokens_out")]
        times = [(field, f"{getattr(row, field)}_count") for field in _TIMES if getattr(row, field)]
        made = [("progress", name) for name in row.progress[self._task]]
        return [(field, name) for field, name in (*made, *gauges, *counters, *times) if name]

    async def _names(self) -> Findings:
        """A model that it does not have."""
        path, body = self._question(("hi",))
        status, _ = await self._post(path, {**body, "model": _NOBODY})
        checks = self._row.capabilities.checks_names
        if checks and status == 404:
            return [ok("a model that it does not have is refused")]
        if not checks and status == 200:
            return [ok("a model that it does not have is answered by the one that it has")]
        expected = "404" if checks else "200"
        text = f"a model that it does not have is answered with {status}, and its row says {expected}"
        return [fail(text, _READ_AGAIN)]

    async def _too_long(self) -> Findings:
        if not self._context:
            return [skipped("it does not tell how long a request may be")]
        if self._context > _LONGEST:
            return [skipped(f"it takes {self._context} tokens: more would keep it busy, and are not sent")]
        path, body = self._question(("a " * (self._context + self._context // 4 + 64),))
        status, answer = await self._post(path, body)
        expected = self._row.too_long[self._task]
        if status == expected:
            cut = " (it is cut)" if status == 200 else ""
            return [ok(f"an input of more than {self._context} tokens is answered with {status}{cut}")]
        said = answer[:120].decode("utf-8", "replace")
        text = f"an input of more than {self._context} tokens is answered with {status} ({said})"
        return [fail(f"{text}, and its row says {expected}", _READ_AGAIN)]

    async def _stream(self) -> Findings:
        """A stream with its end, and, where that is claimed, with the ids of its tokens."""
        if self._task != "generate":
            return [skipped(f"nothing is streamed where the task is {self._task}")]
        exact = self._row.capabilities.token_ids == "exact"  # noqa: S105 - ids of tokens of a text
        path, body = self._question(("hi",))
        asked = {**body, "max_tokens": _TOKENS, "stream": True} | (
            {"return_token_ids": True} if exact else {}
        )
        status, answer = await self._post(path, asked)
        if status != 200:
            return [fail(f"a stream is answered with {status}", _READ_AGAIN)]
        data = [event_data(event) for event in split_events(answer)]
        chunks = [orjson.loads(one) for one in data if one.startswith(b"{")]
        choices = [choice for chunk in chunks for choice in chunk.get("choices") or ()]
        found: list[Finding] = []
        if not any(choice.get("finish_reason") for choice in choices):
            found.append(fail("a stream ends without a finish_reason", _READ_AGAIN))
        if b"[DONE]" not in [one.strip() for one in data]:
            found.append(warn("a stream ends without [DONE]", _READ_AGAIN))
        ids = sum(len(choice.get("token_ids") or ()) for choice in choices)
        if exact and ids < _TOKENS:
            text = f"a stream of {_TOKENS} tokens tells {ids} ids, and its row says all"
            found.append(fail(text, _READ_AGAIN, "ids"))
        return found or [ok("a stream ends with its reason and [DONE]")]

    async def _stop(self) -> Findings:
        drains = "answers what it has" if self._row.capabilities.drains else "cuts what it has"
        return [skipped(f"its row says that after SIGTERM it {drains}; only a stop shows that")]

    def _question(self, texts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The path and the body of a request of its task."""
        model = {"model": self._name}
        match self._task:
            case "generate":
                return "/v1/completions", {**model, "prompt": texts[0], "max_tokens": 1, "temperature": 0}
            case "embed":
                return "/v1/embeddings", {**model, "input": list(texts)}
            case "rerank":
                ranking = self._row.ranking
                return ranking.path, {**model, "query": "hi", ranking.texts: list(texts)}

    async def _post(self, path: str, body: Texts) -> tuple[int, bytes]:
        return await self._wire.request("POST", self._address, path, orjson.dumps(body))


def _refused(error: Exception) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED


def _context(listing: Any) -> int:
    """Tokens of the longest request, 0 where the listing does not say."""
    if "data" in listing:
        return max((row.get("max_model_len") or 0 for row in listing["data"]), default=0)
    return next((int(listing[name]) for name in _CONTEXTS if listing.get(name)), 0)
