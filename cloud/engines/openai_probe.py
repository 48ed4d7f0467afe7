"""Looks at an OpenAI-compatible engine with metrics: is it ready, is it alive, what does it hold?

`/health` alone proves little: a vLLM whose engine process is frozen keeps answering 200, and so do its
metrics and its model list. What proves life is a token, or an embedding or a ranking where that is the
engine's task. So a look is cheap (health and metrics) while tokens are seen to flow, and deep (the model list
and one sign of life) when there is no such evidence:

* until the engine is ready, and after a restart (the token count fell);
* after any look that failed;
* when requests are in flight and the token count has not moved for `stall_after` seconds;
* when nothing has proved life for `deep_every` seconds: an idle engine freezes too.

A deep look at a busy engine may wait in its queue. If its time is over but the token count moved meanwhile,
the engine is alive. Of an engine without metrics only deep looks tell anything. Where adapters come and go
while the engine runs, or are others after it was started again, they are listed every few seconds as well.

`ready` stays as it was through failed looks, but not through a refused connection: then no engine listens
there, and whatever comes up next has to prove itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

from cloud.engines.adapter_calls import AdapterCalls
from cloud.engines.dialect import VLLM
from cloud.engines.row import Dialect
from cloud.engines.wire import SIGNS, Listed, LookFailed, NotListening, Until, Wire
from cloud.ports import Clock, EngineCapabilities, Task
from policies.model import EngineReading

_DEEP_SHARE = 0.8  # of a look's time, until which it waits for its token
_LIST_EVERY = 5.0  # s after which the models are listed again, where its adapters may be others
_FORGET_AFTER = 600.0  # s without a look after which a node's memory is dropped


class Step(StrEnum):
    """How far an engine has come. Each step is asked for by itself, where a look asks for all."""

    HEALTHY = "healthy"
    MODEL = "model listed"
    SPEAKS = "first token"


@dataclass(frozen=True, slots=True)
class _Load:
    """What the metrics say now. `sums`: of the dialect's two histograms, seconds and how many; empty before
    they were read."""

    running: int
    waiting: int
    progress: float
    kv: float | None = None
    tokens_in: float | None = None
    tokens_out: float | None = None
    sums: tuple[tuple[float, float], ...] = ()

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
    load: _Load = field(default_factory=lambda: _Load(0, 0, 0.0))
    times: tuple[float | None, ...] = (None, None)
    listed: Listed = field(default_factory=lambda: Listed(names=()))
    listed_at: float | None = None


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
        self.capabilities: EngineCapabilities = self.dialect.capabilities
        self._clock = clock
        self._wire = Wire(self.dialect, name=model_name, task=task, key=api_key)
        self._adapters = AdapterCalls(self.dialect, self._wire)
        self._task: Task = task
        self._sign = SIGNS[task]
        self._probe_timeout = probe_timeout
        self._stall_after = stall_after
        self._deep_every = deep_every
        self._memories: dict[str, _Memory] = {}

    async def probe(self, node: str, address: str, previous: EngineReading | None) -> EngineReading:
        """Look once. A failed look is a reading with `ok` False; only cancellation escapes."""
        memory = self._remember(node, address)
        deadline = asyncio.get_running_loop().time() + self._probe_timeout
        load = _Load(0, 0, memory.load.progress)
        if previous is not None:  # what cannot be seen is still owed
            load = _Load(previous.running, previous.waiting, memory.load.progress)
        failure = ""
        try:
            load = await self._cheap(address, memory, deadline)
            if reason := self._doubt(memory, load):
                await self._deep(address, memory, load, reason, deadline)
        except LookFailed as error:
            failure = str(error)
            memory.suspect = True
            if isinstance(error, NotListening):
                memory.proven = False
                load = _Load(0, 0, memory.load.progress)
        now = self._clock.now()
        memory.seen_at = now
        failing_since = None
        if failure:
            earlier = previous.failing_since if previous is not None and not previous.ok else None
            failing_since = now if earlier is None else earlier
        first_token, between_tokens = memory.times if not failure else (None, None)
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
            kv=load.kv,
            tokens_in=load.tokens_in,
            tokens_out=load.tokens_out,
            first_token=first_token,
            between_tokens=between_tokens,
            adapters=memory.listed.adapters,
            adapters_at=memory.listed_at,
            revision=memory.listed.revision,
        )

    async def load_adapter(self, address: str, served_as: str, source: str) -> None:
        """See `Engine.load_adapter`."""
        await self._adapters.load(address, served_as, source)

    async def unload_adapter(self, address: str, served_as: str) -> None:
        """See `Engine.unload_adapter`."""
        await self._adapters.unload(address, served_as)

    async def came_to(self, step: Step, address: str) -> None:
        """Ask an engine for one step, for an operator who wants to know which one is missing.

        Raises LookFailed with the reason; a look of `probe` is what the daemon goes by.
        """
        deadline = asyncio.get_running_loop().time() + self._probe_timeout
        async with Until(deadline, address, f"no answer within {self._probe_timeout:g} s"):
            match step:
                case Step.HEALTHY:
                    await self._wire.healthy(address)
                case Step.MODEL:
                    await self._wire.serves(address)
                case Step.SPEAKS:
                    await self._wire.works(address)

    def forget(self, node: str) -> None:
        """Drop what is remembered of a node that is gone. Idempotent."""
        self._memories.pop(node, None)

    async def close(self) -> None:
        """Release connections."""
        await self._wire.close()

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
        """Health and metrics, and now and then the models. Raises LookFailed."""
        async with Until(deadline, address, f"no answer within {self._probe_timeout:g} s"):
            await self._wire.healthy(address)
            load = await self._load(address)
            may_change = self.capabilities.adapters in ("runtime", "request")
            due = self._clock.now() - (memory.listed_at or 0.0) >= _LIST_EVERY
            if memory.proven and may_change and due:
                await self._list(address, memory)
        now = self._clock.now()
        if load.progress < memory.load.progress:  # a counter only falls when its process is a new one
            memory.proven = False
            memory.suspect = True
        elif load.progress > memory.load.progress:
            memory.alive_at = now
        memory.times = tuple(map(_mean, memory.load.sums, load.sums)) or (None, None)
        memory.load = load
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
            async with Until(deadline - self._probe_timeout * (1.0 - _DEEP_SHARE), address, reason):
                await self._list(address, memory)
                await self._wire.works(address)
        except LookFailed:
            if load.in_flight == 0 or not await self._moved(address, load, deadline):
                raise
        memory.proven = True
        memory.suspect = False
        memory.alive_at = self._clock.now()

    async def _list(self, address: str, memory: _Memory) -> None:
        asked_at = self._clock.now()
        listed = await self._wire.serves(address)
        if self.dialect.numbered:
            listed = replace(listed, adapters=await self._wire.numbered(address))
        memory.listed, memory.listed_at = listed, asked_at

    async def _moved(self, address: str, before: _Load, deadline: float) -> bool:
        """True when tokens flowed since the load was read: the probe only waited in the queue."""
        try:
            async with Until(deadline, address, ""):
                return (await self._load(address)).progress > before.progress
        except LookFailed:
            return False

    async def _load(self, address: str) -> _Load:
        dialect = self.dialect
        if not dialect.metrics:
            return _Load(0, 0, 0.0)
        names = (dialect.running, dialect.waiting, *dialect.progress[self._task])
        times = (dialect.first_token, dialect.between_tokens)
        told = (dialect.kv, dialect.tokens_in, dialect.tokens_out)
        halves = (f"{name}_{half}" for name in times if name for half in ("sum", "count"))
        samples = await self._wire.samples(address, *filter(None, {*names, *told, *halves}))
        missing = [name for name in names if name and name not in samples]
        if missing and not dialect.sparse:
            raise LookFailed(f"{dialect.metrics} lacks {missing[0]}: {dialect.measured}")
        running, waiting, *counted = (samples.get(name, 0.0) for name in names)
        kv, tokens_in, tokens_out = (samples.get(name) for name in told)
        sums = tuple((samples.get(f"{name}_sum", 0.0), samples.get(f"{name}_count", 0.0)) for name in times)
        return _Load(int(running), int(waiting), sum(counted), kv, tokens_in, tokens_out, sums)


def _mean(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    """Mean seconds of what ended between two looks at a histogram; None when nothing did."""
    seconds, count = after[0] - before[0], after[1] - before[1]
    return seconds / count if count > 0 and seconds >= 0 else None


def _requests(load: _Load) -> str:
    """The requests in flight as words: "3 requests run", "1 request runs and 2 wait"."""
    runs = f"{load.running} request{'' if load.running == 1 else 's'} run{'s' if load.running == 1 else ''}"
    if load.waiting == 0:
        return runs
    return f"{runs} and {load.waiting} wait{'s' if load.waiting == 1 else ''}"
