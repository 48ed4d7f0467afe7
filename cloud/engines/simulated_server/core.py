"""The scheduler of the simulated engine: slots, a first-come queue, one token per request and step.

All running requests advance together in steps of 1 / tokens-per-second, as in a real engine. When the machine
is late, a step delivers the tokens of every step that is due, so the rate holds and the chunks grow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloud.engines.simulated_server.metrics import Metrics
from cloud.engines.simulated_server.model import Sequencer
from cloud.engines.simulated_server.tokens import END_OF_TEXT

if TYPE_CHECKING:
    from cloud.ports import Clock

_VARIANT = 1 << 40  # between the seeds of two variants of the model
_LATE_RESET = 1.0  # s behind after which the time is lost, not caught up (a stopped process, a sleeping host)


class EngineDead(Exception):
    """The engine died under the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """How fast the engine is and how much it takes at once. Times in seconds, `seed` is the model.

    `pooling`: its steps make numbers for texts, which are no tokens.
    """

    tokens_per_second: float
    time_to_first_token: float
    max_num_seqs: int
    max_model_len: int
    seed: int = 0
    mean_length: int = 0
    pooling: bool = False


class Generation:
    """One output inside the engine: what it produced and nobody has read yet.

    `wake` is set whenever there is something to take; the outputs of one request can share it.
    """

    __slots__ = (
        "_error",
        "_finish",
        "_pending",
        "_sequencer",
        "arrived",
        "first_at",
        "last_at",
        "left",
        "prompt_length",
        "started",
        "wake",
    )

    def __init__(
        self,
        sequencer: Sequencer,
        prompt_length: int,
        max_tokens: int,
        arrived: float,
        wake: asyncio.Event | None = None,
    ) -> None:
        self._sequencer = sequencer
        self._pending: list[int] = []
        self._finish: str | None = None
        self._error: Exception | None = None
        self.wake = wake or asyncio.Event()
        self.prompt_length = prompt_length
        self.arrived = arrived
        self.first_at = arrived
        self.last_at = arrived
        self.left = max_tokens
        self.started = False

    @property
    def finish(self) -> str | None:
        """Why it ended, None while it runs."""
        return self._finish

    def produce(self, steps: int) -> int:
        """Make up to `steps` tokens; return how many."""
        made = 0
        while made < steps and self._finish is None:
            token = self._sequencer.next()
            self._pending.append(token)
            made += 1
            self.left -= 1
            if token == END_OF_TEXT:
                self._finish = "stop"
            elif self.left <= 0:
                self._finish = "length"
        if made:
            self.wake.set()
        return made

    def end(self, reason: str) -> None:
        """End it from outside."""
        self._finish = reason
        self.wake.set()

    def fail(self, error: Exception) -> None:
        """Make the reader see an error."""
        self._error = error
        self.wake.set()

    async def read(self) -> tuple[Sequence[int], str | None]:
        """Wait for new tokens; return them and, with the last of them, the reason of the end.

        Raises EngineDead.
        """
        await self.wake.wait()
        self.wake.clear()
        return self.take()

    def take(self) -> tuple[Sequence[int], str | None]:
        """What is new now, possibly nothing, and the reason of the end once it ended. Raises EngineDead."""
        if self._error is not None:
            raise self._error
        tokens, self._pending = self._pending, []
        return tokens, self._finish


class Core:
    """The engine behind the HTTP server."""

    def __init__(self, clock: Clock, settings: CoreSettings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.dead = False
        self._clock = clock
        self._running: list[Generation] = []
        self._waiting: deque[Generation] = deque()
        self._work = asyncio.Event()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._slowness = 1.0

    @property
    def in_flight(self) -> int:
        """Requests that run or wait."""
        return len(self._running) + len(self._waiting)

    def submit(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        seed: int | None,
        ignore_eos: bool,
        variant: int = 0,
        grammar: str = "",
        wake: asyncio.Event | None = None,
    ) -> Generation:
        """Take a request for one output; it runs as soon as a slot is free. Raises EngineDead.

        `variant` 0 is the model itself; other numbers say other things.
        """
        if self.dead:
            raise EngineDead
        model = self.settings.seed if seed is None else self.settings.seed * 1_000_003 + seed + 1
        sequencer = Sequencer(
            prompt,
            model + variant * _VARIANT,
            self.settings.mean_length,
            endless=ignore_eos,
            grammar=grammar,
        )
        generation = Generation(sequencer, len(prompt), max_tokens, self._clock.now(), wake)
        self._waiting.append(generation)
        if self._thawed.is_set():
            self._admit(generation.arrived)
            self._publish()
        self._work.set()
        return generation

    def turn_away(self, prompt: Sequence[int], wake: asyncio.Event | None = None) -> Generation:
        """A request that ends at once with nothing, as an engine that drains answers. Touches no counter."""
        generation = Generation(Sequencer((), 0), len(prompt), 1, self._clock.now(), wake)
        generation.end("abort")
        return generation

    def abort(self, generation: Generation) -> None:
        """End a request from outside: its reader gets what there is and the reason "abort"."""
        if generation.finish is None:
            generation.end("abort")
            self.drop(generation)

    def drop(self, generation: Generation) -> None:
        """Free the slot of a request whose client went away. Idempotent."""
        if generation in self._running:
            self._running.remove(generation)
        elif generation in self._waiting:
            self._waiting.remove(generation)
        else:
            return
        if self._thawed.is_set():
            self._admit(self._clock.now())
            self._publish()

    def kill(self) -> None:
        """The engine dies: every request fails, now and from now on."""
        self.dead = True
        for generation in (*self._running, *self._waiting):
            generation.fail(EngineDead())
        self._running.clear()
        self._waiting.clear()

    def freeze(self) -> None:
        """Produce nothing any more and say nothing about it."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Go on after a freeze."""
        self._thawed.set()
        self._admit(self._clock.now())
        self._publish()
        self._work.set()

    def slow(self, factor: float) -> None:
        """Make every step this many times longer than the settings say."""
        self._slowness = factor

    async def run(self) -> None:
        """Step for ever; idle while there is nothing to do."""
        while True:
            await self._work.wait()
            self._work.clear()
            last = self._clock.now()
            while self._running or self._waiting:
                await self._thawed.wait()
                step = self._slowness / self.settings.tokens_per_second
                await self._clock.sleep(last + step - self._clock.now())
                if not self._thawed.is_set():
                    continue
                now = self._clock.now()
                if now - last > _LATE_RESET + step:
                    last = now - step
                due = int((now - last) / step + 1e-9)
                last += due * step
                self._step(now, due)

    def _step(self, now: float, due: int) -> None:
        """Let every running request make the tokens that are due, then fill the free slots."""
        total, ended = 0, False
        gaps: dict[float, int] = {}  # between tokens, and how many of each: most requests have the same
        for generation in self._running:
            if not generation.started and now < generation.first_at:
                continue
            made = generation.produce(due if generation.started else min(due, 1))
            if made == 0:
                continue
            total += made
            if generation.started:
                gap = (now - generation.last_at) / made
                gaps[gap] = gaps.get(gap, 0) + made
            else:
                generation.started = True
                self.metrics.time_to_first_token.observe(now - generation.arrived)
            generation.last_at = now
            if generation.finish is not None:
                ended = True
                self.metrics.e2e_latency.observe(now - generation.arrived)
                self.metrics.finished(generation.finish)
        if not self.settings.pooling:
            self.metrics.generation_tokens.inc(total)
        for gap, times in gaps.items():
            self.metrics.inter_token_latency.observe(gap, times)
        if ended:
            self._running = [generation for generation in self._running if generation.finish is None]
            self._admit(now)
        self._publish()

    def _admit(self, now: float) -> None:
        """Move requests from the queue into free slots, first come first served."""
        while self._waiting and len(self._running) < self.settings.max_num_seqs:
            generation = self._waiting.popleft()
            generation.first_at = now + self.settings.time_to_first_token * self._slowness
            self._running.append(generation)
            self.metrics.queue_time.observe(now - generation.arrived)
            self.metrics.prompt_tokens.inc(generation.prompt_length)

    def _publish(self) -> None:
        """Set the gauges; a frozen engine does not come here."""
        capacity = self.settings.max_num_seqs * self.settings.max_model_len
        self.metrics.running.set(len(self._running))
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.kv_cache_usage.set(sum(g.prompt_length for g in self._running) / capacity)
