"""A lane: one pool inside the gateway, with targets, queue, retries, health checks and clocks of its own.

Nothing of a lane is shared with another but the process: what one of its tasks raises is logged and the task
begins again, so that the trouble of one pool stays its own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
from aiohttp import web

from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.gateway.accounts.charge import Charge
from orchestrator.gateway.adapters import Adapters
from orchestrator.gateway.admission import Admission
from orchestrator.gateway.attempt import Attempts
from orchestrator.gateway.blame import RetryBudget
from orchestrator.gateway.config import GatewayConfig, PoolGate
from orchestrator.gateway.dialects import Unfit
from orchestrator.gateway.dialects.table import row_of
from orchestrator.gateway.endings import Endings, Unserved
from orchestrator.gateway.entry import Entry
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.headers import Forwarding
from orchestrator.gateway.health import HealthChecker
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.retry_policy import RetryPolicy
from orchestrator.gateway.source import TargetSource
from orchestrator.gateway.targets import TargetTable
from orchestrator.gateway.tries import Tries
from orchestrator.gateway.upstream import make_session
from orchestrator.gateway.watch import Watch
from policies.routing import BackendView, Candidate, Trouble

log = structlog.get_logger("gateway")

_AGAIN: Final = 1.0  # s after which a task that raised begins again


class Lane:
    """One pool. Make it inside the running event loop; `stopping` tells whether clients should reconnect,
    `charge` what its requests cost their keys.

    It is a `backend.Backend`.
    """

    def __init__(
        self,
        *,
        config: GatewayConfig,
        gate: PoolGate,
        metrics: GatewayMetrics,
        endings: Endings,
        clock: Clock,
        rng: random.Random,
        stopping: Callable[[], bool],
        charge: Charge | None = None,
    ) -> None:
        self.name = gate.name
        self.gate = gate
        self._poll_interval = config.poll_interval
        self._clock = clock
        self._endings = endings
        self._charge = charge
        self.table = TargetTable(now=clock.now, rng=rng, gate=gate)
        self.adapters = Adapters(gate.loaded, self.table, clock.now)
        self.admission = Admission(
            self.table,
            limit=gate.queue_limit,
            deadline=gate.queue_deadline,
            hopeless=gate.no_target_wait,
            missed=self.adapters.missed,
        )
        self.metrics = metrics.lane(gate.name, self.table, self.admission.__len__, self.adapters)
        self.table.on_breaker_open.append(self._breaker_opened)
        self._watch = Watch(self.table, self.admission, clock, drain_margin=gate.drain_margin)
        own_keys = config.keys_file is not None
        self._forwarding = Forwarding(config.trusted_proxies, gate.api_key, own_keys=own_keys)
        self._session: aiohttp.ClientSession = make_session(gate.connect_timeout)
        parts: dict[str, Any] = {"table": self.table, "metrics": self.metrics, "clock": clock}
        self.health = HealthChecker(gate=gate, rng=rng, **parts)
        self.source = TargetSource(file=gate.targets_file, on_set=self.health.sync, **parts)
        self._tries = Tries(
            admission=self.admission,
            attempts=Attempts(
                answer_limit=config.answer_limit,
                session=self._session,
                watch=self._watch,
                stopping=stopping,
                **parts,
            ),
            policy=RetryPolicy(
                self.table, RetryBudget(gate.retry_budget, gate.retry_reserve), gate.max_retries
            ),
            endings=endings,
            **parts,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Read the targets file, and look at it and at every request from then on."""
        self.source.look()
        for name, run in (("targets-file", self._look_at_file), ("watch", self._watch.run)):
            task = asyncio.create_task(self._kept(name, run), name=f"{name} {self.name}".strip())
            self._tasks.append(task)

    async def close(self) -> None:
        """Stop. Requests must have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.health.close()
        await self._session.close()

    def view(self, model: str = "", /) -> BackendView:
        """See Backend."""
        hopeful = not self.table.down()
        why = "" if hopeful or self.table.accepted is not None else "has no target set yet"
        if hopeful and model in self.adapters and not self.adapters.holders(model):
            why = "holds the adapter nowhere, and has it loaded when it is asked for"
        return BackendView(
            hopeful=hopeful, sound=self.table.any_sound(), saturated=not self.table.has_room(), why=why
        )

    async def serve(self, job: Job, candidate: Candidate) -> web.StreamResponse:
        """See Backend."""
        gate, exchange = self.gate, job.exchange
        model = job.asked.model
        job.use = self.adapters.of(model)
        known = job.use is not None or model in gate.adapters
        job.meter.aim("pool", self.name, model if known else "")
        try:
            row_of(job.request.method, job.asked.path, gate.allow_paths)
        except Unfit as closed:
            raise self._endings.turned(job, closed.status, closed.code, closed.message) from None
        if (unfit := job.asked.unfit) is not None:
            turned = self._endings.turned(job, unfit.status, unfit.code, unfit.message, param=unfit.param)
            raise Unserved(Trouble.FAILED, f"cannot have it: {unfit.message}", turned, said=True)
        job.pool, job.gate = self.name, gate
        job.headers = self._forwarding.to_node(job.request, exchange.id)
        job.speaks(gate.ranking)
        job.may_continue(gate.continuation)
        exchange.patience, exchange.leaves = candidate.patience, candidate.leaves
        exchange.deadline = exchange.read_at + (
            gate.stream_timeout if job.asked.stream else gate.answer_timeout
        )
        exchange.wish.tokens = job.asked.tokens if gate.tokens_in_flight else 0
        if job.use is not None:
            exchange.wish.adapter = model
            job.use.asked += 1
        if self._charge is not None:
            return await self._charge.serve(job, self._tries.run)
        return await self._tries.run(job)

    def keeps(self, stored: str) -> bool:
        """Whether the stored thing of this id is here."""
        return self._tries.keeps(stored)

    async def cut(self, job: Job, failure: Failure, detail: str) -> web.StreamResponse:
        """End a stream of which the client has a part."""
        return await self._tries.cut(job, failure, detail)

    def describe(self) -> str:
        """How many of its targets are sound, in words."""
        now = self._clock.now()
        sound = [entry.sound(now) for entry in self.table]
        return f"{sum(sound)} of {len(sound)} targets healthy"

    async def _look_at_file(self) -> None:
        while True:
            await self._clock.sleep(self._poll_interval)
            self.source.look()

    async def _kept(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Keep a task of this lane going, whatever it raises."""
        while True:
            try:
                await run()
            except Exception:
                log.exception("lane_task.failed", pool=self.name, task=name, retry_in=_AGAIN)
            await self._clock.sleep(_AGAIN)

    def _breaker_opened(self, entry: Entry) -> None:
        self.metrics.breaker_opened()
        log.warning("breaker.opened", node=entry.spec.id, failures=entry.breaker.failures)
