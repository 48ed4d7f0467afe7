"""Looks at an OpenAI-compatible engine with metrics: is it ready, is it alive, what does it hold?

`/health` alone proves little: a vLLM whose engine process is frozen keeps answering 200, and so do its
metrics and its model list. What proves life is a token, or an embedding where that is the engine's task. So a
look is cheap (health and metrics) while tokens are seen to flow, and deep (the model list and a completion of
one token, or one embedding) when there is no such evidence:

* until the engine is ready, and after a restart (the token count fell);
* after any look that failed;
* when requests are in flight and the token count has not moved for `stall_after` seconds;
* when nothing has proved life for `deep_every` seconds: an idle engine freezes too.

A deep look at a busy engine may wait in its queue. If its time is over but the token count moved meanwhile,
the engine is alive.

`ready` stays as it was through failed looks, but not through a refused connection: then no engine listens
there, and whatever comes up next has to prove itself.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import aiohttp
import orjson

from cloud.engines.dialect import VLLM, Dialect
from cloud.engines.metrics_text import read_samples
from cloud.ports import Clock, Task
from policies.model import EngineReading

_KEEP_ALIVE = 2.0  # s; shorter than any server's own limit, so that no probe meets a closing connection
_DEEP_SHARE = 0.8  # of a look's time, until which it waits for its token
_FORGET_AFTER = 600.0  # s without a look after which a node's memory is dropped
_MAX_TEXT = 160  # characters of a server's own error in a failure text


class Step(StrEnum):
    """How far an engine has come. Each step is asked for by itself, where a look asks for all."""

    HEALTHY = "healthy"
    MODEL = "model listed"
    SPEAKS = "first token"


class LookFailed(Exception):
    """A look that did not succeed; the message is a sentence for an operator."""


class _NotListening(LookFailed):
    """Nothing listens at the address: the engine is not up, or no longer."""


@dataclass(frozen=True, slots=True)
class _Load:
    """What the metrics say now."""

    running: int
    waiting: int
    progress: float

    @property
    def in_flight(self) -> int:
        return self.running + self.waiting


@dataclass(slots=True)
class _Memory:
    """What one node's looks need from the ones before."""

    address: str
    seen_at: float
    alive_at: float
    proven: bool = False
    suspect: bool = True
    progress: float = 0.0


class OpenAiProbe:
    """The probing half of the `Engine` port, for every engine with OpenAI's paths.

    `dialect` says where it differs from others. `model_name` is the name clients ask for. All times in
    seconds. `probe_timeout` bounds a whole look; its last fifth is kept for a second reading of the token
    count, should the deep half come to nothing.
    """

    dialect: ClassVar[Dialect] = VLLM

    def __init__(
        self,
        clock: Clock,
        *,
        model_name: str,
        task: Task = "generate",
        api_key: str = "",
        probe_timeout: float = 5.0,
        stall_after: float = 10.0,
        deep_every: float = 30.0,
    ) -> None:
        self._clock = clock
        self._model_name = model_name
        self._task: Task = task
        self._sign = {"generate": "token", "embed": "embedding"}[task]
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._probe_timeout = probe_timeout
        self._stall_after = stall_after
        self._deep_every = deep_every
        self._memories: dict[str, _Memory] = {}
        self._session: aiohttp.ClientSession | None = None

    async def probe(self, node: str, address: str, previous: EngineReading | None) -> EngineReading:
        """Look once. A failed look is a reading with `ok` False; only cancellation escapes."""
        memory = self._remember(node, address)
        deadline = asyncio.get_running_loop().time() + self._probe_timeout
        load = _Load(0, 0, memory.progress)
        if previous is not None:  # what cannot be seen is still owed
            load = _Load(previous.running, previous.waiting, memory.progress)
        failure = ""
        try:
            load = await self._cheap(address, memory, deadline)
            if reason := self._doubt(memory, load):
                await self._deep(address, memory, load, reason, deadline)
        except LookFailed as error:
            failure = str(error)
            memory.suspect = True
            if isinstance(error, _NotListening):
                memory.proven = False
                load = _Load(0, 0, memory.progress)
        now = self._clock.now()
        memory.seen_at = now
        failing_since = None
        if failure:
            earlier = previous.failing_since if previous is not None and not previous.ok else None
            failing_since = now if earlier is None else earlier
        return EngineReading(
            node=node,
            at=now,
            ready=memory.proven,
            ok=not failure,
            failing_since=failing_since,
            running=load.running,
            waiting=load.waiting,
            progress=load.progress,
            failure=failure,
        )

    async def came_to(self, step: Step, address: str) -> None:
        """Ask an engine for one step, for an operator who wants to know which one is missing.

        Raises LookFailed with the reason; a look of `probe` is what the daemon goes by.
        """
        deadline = asyncio.get_running_loop().time() + self._probe_timeout
        async with _Until(deadline, address, f"no answer within {self._probe_timeout:g} s"):
            match step:
                case Step.HEALTHY:
                    await self._healthy(address)
                case Step.MODEL:
                    await self._lists_model(address)
                case Step.SPEAKS:
                    await self._works(address)

    def forget(self, node: str) -> None:
        """Drop what is remembered of a node that is gone. Idempotent."""
        self._memories.pop(node, None)

    async def close(self) -> None:
        """Release connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _remember(self, node: str, address: str) -> _Memory:
        """The node's memory; a new one for a new node or address, and old ones are swept out then."""
        memory = self._memories.get(node)
        if memory is None or memory.address != address:
            now = self._clock.now()
            oldest = now - _FORGET_AFTER
            self._memories = {name: kept for name, kept in self._memories.items() if kept.seen_at >= oldest}
            memory = _Memory(address, seen_at=now, alive_at=now)
            self._memories[node] = memory
        return memory

    async def _cheap(self, address: str, memory: _Memory, deadline: float) -> _Load:
        """Health and metrics. Raises LookFailed."""
        async with _Until(deadline, address, f"no answer within {self._probe_timeout:g} s"):
            await self._healthy(address)
            load = await self._load(address)
        now = self._clock.now()
        if load.progress < memory.progress:  # a counter only falls when its process is a new one
            memory.proven = False
            memory.suspect = True
        elif load.progress > memory.progress:
            memory.alive_at = now
        memory.progress = load.progress
        return load

    def _doubt(self, memory: _Memory, load: _Load) -> str:
        """Why a deep look is due, in the words of its failure; empty when tokens prove life."""
        silent = self._clock.now() - memory.alive_at
        within = f"{self._probe_timeout * _DEEP_SHARE:g} s"
        if not memory.proven:
            return f"loaded, but gave no {self._sign} within {within}"
        if load.in_flight > 0 and silent >= self._stall_after:
            busy = f"no {self._sign} for {silent:.0f} s while {_requests(load)}"
            return f"{busy}, nor within {within} for the probe"
        if memory.suspect or silent >= self._deep_every:
            return f"healthy, but gave no {self._sign} within {within}: the engine is frozen"
        return ""

    async def _deep(self, address: str, memory: _Memory, load: _Load, reason: str, deadline: float) -> None:
        """Demand one sign of life, unless the count of them moves by itself. Raises LookFailed."""
        try:
            async with _Until(deadline - self._probe_timeout * (1.0 - _DEEP_SHARE), address, reason):
                await self._lists_model(address)
                await self._works(address)
        except LookFailed:
            if load.in_flight == 0 or not await self._moved(address, load, deadline):
                raise
        memory.proven = True
        memory.suspect = False
        memory.alive_at = self._clock.now()

    async def _moved(self, address: str, before: _Load, deadline: float) -> bool:
        """True when tokens flowed since the load was read: the probe only waited in the queue."""
        try:
            async with _Until(deadline, address, ""):
                return (await self._load(address)).progress > before.progress
        except LookFailed:
            return False

    async def _load(self, address: str) -> _Load:
        status, body = await self._request("GET", address, "/metrics")
        if status != 200:
            raise LookFailed(f"/metrics answers {status}")
        running, waiting, made = self.dialect.running, self.dialect.waiting, self.dialect.progress[self._task]
        samples = read_samples(body.decode("utf-8", errors="replace"), (running, waiting, made))
        missing = [name for name in (running, waiting, made) if name not in samples]
        if missing:
            raise LookFailed(f"/metrics lacks {missing[0]}: its statistics must not be switched off")
        return _Load(int(samples[running]), int(samples[waiting]), samples[made])

    async def _healthy(self, address: str) -> None:
        status, _ = await self._request("GET", address, "/health")
        if status == 503:
            raise LookFailed(self.dialect.unready)
        if status != 200:
            raise LookFailed(f"/health answers {status}")

    async def _lists_model(self, address: str) -> None:
        status, body = await self._request("GET", address, "/v1/models")
        if status == 401:
            raise LookFailed("the API key was refused: /v1/models answers 401")
        if status != 200:
            raise LookFailed(f"/v1/models answers {status}")
        try:
            models = orjson.loads(body)["data"]
            names = [str(name) for model in models for name in (model["id"], *model.get("aliases", ()))]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise LookFailed("/v1/models answers something that is no model list") from None
        if self._model_name not in names:
            served = ", ".join(dict.fromkeys(names)) or "nothing"
            raise LookFailed(f"does not serve {self._model_name}, only {served}")

    async def _works(self, address: str) -> None:
        """Ask for one sign of life."""
        if self._task == "embed":
            await self._embed(address)
        else:
            await self._complete(address)

    async def _embed(self, address: str) -> None:
        """Ask for one embedding."""
        body = orjson.dumps({"model": self._model_name, "input": "hi"})
        status, answer = await self._request("POST", address, "/v1/embeddings", body)
        if status != 200:
            raise LookFailed(f"one embedding answers {status}: {_own_words(answer)}")
        try:
            numbers = orjson.loads(answer)["data"][0]["embedding"]
            whole = all(isinstance(number, float | int) for number in numbers)
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
            raise LookFailed("one embedding answers something else than an embedding") from None
        if not numbers or not whole:
            raise LookFailed("one embedding answers without its numbers")

    async def _complete(self, address: str) -> None:
        """Ask for one token."""
        body = orjson.dumps(
            {
                "model": self._model_name,
                "prompt": "hi",
                "max_tokens": 1,
                "temperature": 0,
                "ignore_eos": True,
            }
        )
        status, answer = await self._request("POST", address, "/v1/completions", body)
        if status != 200:
            raise LookFailed(f"a completion of one token answers {status}: {_own_words(answer)}")
        try:
            data = orjson.loads(answer)
            finish = data["choices"][0]["finish_reason"]
            tokens = int(data["usage"]["completion_tokens"])
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, ValueError):
            raise LookFailed("a completion of one token answers something else than a completion") from None
        if finish == "abort":
            raise LookFailed("shutting down: it answers with finish_reason abort")
        if tokens < 1:
            raise LookFailed(f"a completion of one token gave none (finish_reason {finish})")

    async def _request(
        self, method: str, address: str, path: str, body: bytes | None = None
    ) -> tuple[int, bytes]:
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        async with self._client().request(
            method, f"http://{address}{path}", data=body, headers=headers, allow_redirects=False
        ) as response:
            return response.status, await response.read()

    def _client(self) -> aiohttp.ClientSession:
        """The one session, made inside the running loop."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE)
            timeout = aiohttp.ClientTimeout(total=None)  # `_Until` bounds every look
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session


class _Until:
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
            raise _NotListening(f"connection refused at {self._address}") from error
        if isinstance(error, (aiohttp.ClientError, OSError, ValueError)):
            raise LookFailed(_sentence(error, self._address)) from error


def _sentence(error: Exception, address: str) -> str:
    """What a failed connection means, in an operator's words."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {address}: {error.os_error.strerror or error.os_error}"
    hung_up = isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE)
    if hung_up or isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before an answer came"
    if isinstance(error, aiohttp.InvalidURL):
        return f"{address!r} is not an address"
    return f"unreadable answer: {str(error)[:_MAX_TEXT]}"


def _own_words(body: bytes) -> str:
    """The message of a server's error body, shortened."""
    try:
        message = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = body.decode("utf-8", errors="replace") or "no text"
    return " ".join(str(message).split())[:_MAX_TEXT]


def _requests(load: _Load) -> str:
    """The requests in flight as words: "3 requests run", "1 request runs and 2 wait"."""
    runs = f"{load.running} request{'' if load.running == 1 else 's'} run{'s' if load.running == 1 else ''}"
    if load.waiting == 0:
        return runs
    return f"{runs} and {load.waiting} wait{'s' if load.waiting == 1 else ''}"
