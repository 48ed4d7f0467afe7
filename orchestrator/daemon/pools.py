"""The pools of a daemon: begun together, each looked after by a task of its own.

A pool that fails is stopped, an alarm is raised, and it is begun again after a while that grows; its nodes
stay as they are and the other pools go on. Where no other pool turns there is nothing left that the daemon
keeps alive, and what failed may well be the process itself: then the daemon ends, and whoever supervises it
starts a new one. So a daemon with one pool ends with its first failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from orchestrator.api.gauges import POOL_FAILED
from orchestrator.api.listeners import StartError
from orchestrator.config.load import Config
from orchestrator.daemon.pool_run import Failure, Footing, PoolRun
from orchestrator.journal.store import StoreUnavailable, Superseded
from policies.events import AlarmRaised

log = structlog.get_logger("daemon")

_FIRST, _MOST = 1.0, 60.0
"""Seconds before a pool is begun again: after its first failure, and at most. Each failure doubles them."""

_CALM = 300.0
"""Seconds for which a pool must have run for its next failure to count as its first."""

_LOOKS = 6
"""Looks at whether a loop turns within the time after which it counts as one that does not. They are counted,
so that a process that was frozen does not find all its loops at a standstill when it wakes up."""


class Pools:
    """`begin`, then `start`, then `stop`. `give_up` takes why the daemon must end."""

    def __init__(self, footing: Footing, *, give_up: Callable[[str], None]) -> None:
        self.runs: dict[str, PoolRun] = {}
        self._footing, self._give_up = footing, give_up
        self._tending: dict[str, asyncio.Task[None]] = {}

    async def begin(self, configs: Iterable[Config]) -> None:
        """Begin every pool. One that cannot begin is tried again once all are started.

        Raises StartError where there are pools and none can begin, StoreUnavailable where the journal cannot
        be read: that is nobody's alone.
        """
        runs = [PoolRun(config, self._footing) for config in configs]
        self.runs.update((run.name, run) for run in runs)
        faults = await asyncio.gather(*(self._begin(run) for run in runs))
        if runs and all(fault is not None for fault in faults):
            raise StartError(runs[0].trouble)

    async def _begin(self, run: PoolRun) -> StartError | None:
        try:
            await run.begin()
        except StartError as error:
            run.trouble = str(error)
            return error
        return None

    def start(self) -> None:
        """Start the work of every pool that was begun, and look after all."""
        for run in self.runs.values():
            if not run.trouble:
                run.start()
            name = f"look after {run.name}"
            self._tending[run.name] = asyncio.create_task(self._tend(run), name=name)

    async def reconfigure(self, config: Config, *, wait: bool) -> None:
        """Put a changed configuration into force in every pool; `wait` until each has turned under it."""
        pools = (run.reconfigure(config.only(name), wait=wait) for name, run in self.runs.items())
        await asyncio.gather(*pools)

    async def stop(self) -> None:
        """Stop every pool; touches no node and no target set. Idempotent."""
        for task in self._tending.values():
            task.cancel()
        await asyncio.gather(*self._tending.values(), return_exceptions=True)
        self._tending.clear()
        await asyncio.gather(*(run.stop() for run in self.runs.values()))

    # -- looking after a pool --------------------------------------------------------------------------

    async def _tend(self, run: PoolRun) -> None:
        """Begin a pool again whenever it fails, until the daemon has to end."""
        clock, wait = self._footing.clock, _FIRST
        while True:
            began = clock.now()
            failure = Failure(run.trouble) if run.trouble else await self._failure(run)
            if failure.superseded or not self._others_turn(run):
                self._give_up(failure.text if len(self.runs) == 1 else f"pool {run.name}: {failure.text}")
                return
            wait = _FIRST if clock.now() - began > _CALM else wait
            run.trouble = (
                f"{failure.text}; its nodes stay as they are, and it begins again after {wait:.0f} s"
            )
            log.error("pool.failed", pool=run.name, why=failure.text, again_after=wait)
            run.failures += 1
            await run.stop()
            if wait == _FIRST:
                await self._alarm(run)
            await clock.sleep(wait)
            wait = min(_MOST, 2.0 * wait)
            try:
                await run.begin()
            except Superseded as error:
                self._give_up(str(error))
                return
            except Exception as error:
                run.trouble = f"it cannot begin: {error}"
            else:
                run.start()

    async def _failure(self, run: PoolRun) -> Failure:
        """Wait for a pool to fail, or to stand still while others turn."""
        failure, still = asyncio.ensure_future(run.wait()), 0
        try:
            while True:
                turns = run.turns
                await asyncio.wait({failure}, timeout=run.patience / _LOOKS)
                if failure.done():
                    return failure.result()
                still = still + 1 if run.turns == turns else 0
                if still >= _LOOKS and self._others_turn(run):
                    return Failure(f"its loop has not turned for {run.patience:.0f} s")
        finally:
            failure.cancel()

    def _others_turn(self, run: PoolRun) -> bool:
        return any(other.turning() for other in self.runs.values() if other is not run)

    async def _alarm(self, run: PoolRun) -> None:
        """Write down that a pool failed, once for failures that follow each other."""
        alarm = AlarmRaised(at=self._footing.clock.now(), name=POOL_FAILED, text=run.trouble)
        try:
            await self._footing.store.append(run.name, [alarm])
        except StoreUnavailable as error:  # also Superseded, of which its next beginning hears
            log.warning("pool.failure_not_journalled", pool=run.name, error=str(error))
