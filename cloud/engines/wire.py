"""Asks a running engine one thing at a time, in the words of its dialect: health, models, metrics, a sign.

What goes wrong is a `LookFailed` with a sentence for an operator.
"""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from cloud.engines.dialect import DIALECTS
from cloud.engines.metrics_text import read_samples
from cloud.engines.recognise import by_metrics
from cloud.engines.row import Dialect
from cloud.ports import Task

_KEY = (401, 403)  # statuses of a key that is missing or wrong
_KEEP_ALIVE = 2.0  # s; shorter than any server's own limit, so that no probe meets a closing connection
_MAX_BODY = 16 * 2**20  # bytes of an answer: vLLM's metrics have 50 kB, with hundreds of adapters some MB
_MAX_TEXT = 160  # characters of a server's own error in a failure text
SIGNS: dict[Task, str] = {"generate": "token", "embed": "embedding", "rerank": "ranking"}
"""What proves that an engine works, by its task."""


class LookFailed(Exception):
    """A look that did not succeed; the message is a sentence for an operator."""


class KeyRefused(LookFailed):
    """It asks for another key than it was given, or for one at all."""


class NotListening(LookFailed):
    """Nothing listens at the address: the engine is not up, or no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What an engine says that it serves: all names, those among them that are adapters, and the revision of
    the model, empty where it does not say."""

    names: tuple[str, ...]
    adapters: tuple[str, ...] = ()
    revision: str = ""


class Wire:
    """Requests to engines of one dialect. `name` is the one that clients ask for; `key` may be empty.

    `scheme` is http for nodes; an engine that somebody put behind TLS has https."""

    def __init__(
        self, dialect: Dialect, *, name: str, task: Task, key: str = "", scheme: str = "http"
    ) -> None:
        self._dialect = dialect
        self._scheme = scheme
        self._name = name
        self._task: Task = task
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Release connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def healthy(self, address: str) -> None:
        """Ask whether it says that it is well."""
        path = self._dialect.health
        status, _ = await self.request("GET", address, path)
        if status == 503:
            raise LookFailed(self._dialect.unready)
        _must_be_well(path, status)

    async def samples(self, address: str, *names: str) -> dict[str, float]:
        """The metrics of these names, those left out that it does not show."""
        path = self._dialect.metrics
        status, body = await self.request("GET", address, path)
        if status in _KEY:
            _must_be_well(path, status)
        if status != 200:
            raise LookFailed(f"{path} answers {status}: {self._dialect.measured}")
        text = body.decode("utf-8", errors="replace")
        samples = read_samples(text, names)
        if not samples and (kind := by_metrics(text)) is not None:
            raise LookFailed(
                f"{path} shows metrics of {DIALECTS[kind].title}: this is not {self._dialect.title}, as "
                "engine.kind says"
            )
        return samples

    async def listed(self, address: str) -> Listed:
        """Ask what it serves."""
        path = self._dialect.listing
        status, body = await self.request("GET", address, path)
        _must_be_well(path, status)
        try:
            return _listed(orjson.loads(body))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise LookFailed(f"{path} answers something that is no model list") from None

    async def serves(self, address: str) -> Listed:
        """What it serves, once the name that clients ask for is among it."""
        listed = await self.listed(address)
        if self._name not in listed.names:
            served = ", ".join(dict.fromkeys(listed.names)) or "nothing"
            raise LookFailed(f"does not serve {self._name}, only {served}")
        return listed

    async def numbered(self, address: str) -> tuple[str, ...]:
        """The files of the adapters that it knows by number, in that order; none without such a path."""
        path = self._dialect.numbered
        status, body = await self.request("GET", address, path)
        if status == 404:
            return ()
        _must_be_well(path, status)
        try:
            rows = sorted(orjson.loads(body), key=lambda row: int(row["id"]))
            return tuple(str(row["path"]) for row in rows)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise LookFailed(f"{path} answers something that is no list of adapters") from None

    async def works(self, address: str, name: str = "") -> None:
        """Ask for one sign of life: of the model, or of the adapter with this name."""
        match self._task:
            case "generate":
                await self._complete(address, name)
            case "embed":
                await self._embed(address, name)
            case "rerank":
                await self._rank(address, name)

    async def _complete(self, address: str, name: str) -> None:
        """Ask for one token."""
        what = "a completion of one token"
        asked = {"prompt": "hi", "max_tokens": 1, "temperature": 0, "ignore_eos": True}
        answer = await self._post(address, "/v1/completions", asked, what, name)
        try:
            finish = answer["choices"][0]["finish_reason"]
            tokens = int(answer["usage"]["completion_tokens"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise LookFailed(f"{what} answers something else than a completion") from None
        if finish == "abort":
            raise LookFailed("shutting down: it answers with finish_reason abort")
        if tokens < 1:
            raise LookFailed(f"{what} gave none (finish_reason {finish})")

    async def _embed(self, address: str, name: str) -> None:
        """Ask for one embedding."""
        answer = await self._post(address, "/v1/embeddings", {"input": "hi"}, "one embedding", name)
        try:
            numbers = answer["data"][0]["embedding"]
            whole = all(isinstance(number, float | int) for number in numbers)
        except (KeyError, IndexError, TypeError):
            raise LookFailed("one embedding answers something else than an embedding") from None
        if not numbers or not whole:
            raise LookFailed("one embedding answers without its numbers")

    async def _rank(self, address: str, name: str) -> None:
        """Ask for the order of two texts."""
        ranking = self._dialect.ranking
        asked = {"query": "hi", ranking.texts: ["hi", "no"]}
        answer = await self._post(address, ranking.path, asked, "one ranking", name)
        try:
            rows = answer if ranking.bare else answer["results"]
            places = sorted(int(row["index"]) for row in rows if float(row[ranking.score]) is not None)
        except (KeyError, TypeError, ValueError):
            raise LookFailed("one ranking answers something else than a ranking") from None
        if places != [0, 1]:
            raise LookFailed("one ranking answers without a place for each text")

    async def _post(self, address: str, path: str, asked: dict[str, Any], what: str, name: str) -> Any:
        body = orjson.dumps({"model": name or self._name, **asked})
        status, answer = await self.request("POST", address, path, body)
        if status != 200:
            raise LookFailed(f"{what} answers {status}: {own_words(answer)}")
        try:
            return orjson.loads(answer)
        except orjson.JSONDecodeError:
            raise LookFailed(f"{what} answers something else than JSON") from None

    async def request(
        self, method: str, address: str, path: str, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """One request; its status and its body. Raises what aiohttp raises (see `Until`), and LookFailed for
        a body that does not end."""
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        async with self._client().request(
            method, f"{self._scheme}://{address}{path}", data=body, headers=headers, allow_redirects=False
        ) as response:
            body_ = bytearray()
            async for part in response.content.iter_any():
                body_ += part
                if len(body_) > _MAX_BODY:
                    raise LookFailed(f"{path} answers with more than {_MAX_BODY // 2**20} MiB")
            return response.status, bytes(body_)

    def _client(self) -> aiohttp.ClientSession:
        """The one session, made inside the running loop."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
            timeout = aiohttp.ClientTimeout(total=None)  # `Until` bounds every look
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session


def _must_be_well(path: str, status: int) -> None:
    """Raise LookFailed for every answer but 200."""
    if status in _KEY:
        raise KeyRefused(f"the API key was refused: {path} answers {status}")
    if status != 200:
        raise LookFailed(f"{path} answers {status}")


def _listed(answer: Any) -> Listed:
    """A list of models as OpenAI has it (llama.cpp adds `aliases`, vLLM and SGLang give an adapter a
    `parent`), or the one model of /info, as TGI and TEI tell it."""
    if "data" not in answer:
        name = answer.get("served_model_name") or answer["model_id"]
        return Listed(names=(str(name),), revision=str(answer.get("model_sha") or ""))
    rows = answer["data"]
    names = tuple(str(name) for row in rows for name in (row["id"], *row.get("aliases", ())))
    return Listed(names=names, adapters=tuple(str(row["id"]) for row in rows if row.get("parent")))


class Until:
    """Bounds a part of a look (by the loop's time) and turns what can go wrong on the wire into sentences."""

    def __init__(self, deadline: float, address: str, late: str) -> None:
        self._timeout = asyncio.timeout_at(deadline)
        self._address = address
        self._late = late

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, None)
        except TimeoutError:
            raise LookFailed(self._late) from None
        if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED:
            raise NotListening(f"connection refused at {self._address}") from error
        if isinstance(error, (aiohttp.ClientError, OSError, ValueError)):
            raise LookFailed(sentence(error, self._address)) from error


def sentence(error: Exception, address: str) -> str:
    """What a failed connection means, in an operator's words."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the certificate of {address} is not trusted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientSSLError):
        return f"{address} does not speak TLS: write http:// for it"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        why = os.strerror(number) if number > 0 else error.os_error.strerror or error.os_error
        return f"cannot connect to {address}: {why}"
    hung_up = isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE)
    if hung_up or isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before an answer came"
    if isinstance(error, aiohttp.InvalidURL):
        return f"{address!r} is not an address"
    return f"unreadable answer: {str(error)[:_MAX_TEXT]}"


def own_words(body: bytes) -> str:
    """The message of a server's error body, shortened: OpenAI's shape, SGLang's and TEI's flat one, or TGI's
    and Ollama's plain text under `error`."""
    try:
        answer = orjson.loads(body)
        error = answer.get("error", answer)
        message = error if isinstance(error, str) else error["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        message = body.decode("utf-8", errors="replace") or "no text"
    return " ".join(str(message).split())[:_MAX_TEXT]
