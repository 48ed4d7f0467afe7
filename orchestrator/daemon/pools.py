"""The pools of a daemon: they come and go, and each is looked after by a task of its own.

A pool that fails is stopped and raises an alarm, and starts again after a pause that grows; its nodes stay
as they are and the other pools go on. When the last running pool fails, the fault may be in the process
itself: the daemon exits, and the service manager starts a new one. So a daemon with one pool exits at its
first failure.

A pool that is removed wants no nodes any more. It stays until it has none, over restarts of the daemon too:
the journal keeps its settings until then, since no file has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from cloud.logger import structlog
from orchestrator.api.gauges import POOL_FAILED
from orchestrator.api.listeners import StartError
from orchestrator.config.load import Config
from orchestrator.daemon import leaving
from orchestrator.daemon.pool_run import Failure, Footing, PoolRun
from orchestrator.journal.store import StoreUnavailable, Superseded
from policies.events import AlarmRaised, PoolRemoved
from policies.memory import reduce

log = structlog.get_logger("daemon")

_FIRST, _MOST = 1.0, 60.0
"""Seconds until a failed pool starts again: the first time, and at most. Each failure doubles them."""

_CALM = 300.0
"""Seconds for which a pool must have run for its next failure to count as its first."""

_LOOKS = 6
"""Looks at whether a loop turns within the time after which it counts as one that does not. They are counted,
so that a process that was frozen does not find all its loops at a standstill when it wakes up."""

_WRITE_AGAIN: Final = 2.0
"""Seconds between two tries to write down that a pool comes or goes."""


class Pools:
    """`begin`, then `start`, then `stop`. `give_up` takes why the daemon must end, `gone` hears
    of each pool that was removed and has nothing any more."""

    def __init__(self, footing: Footing, *, give_up: Callable[[str], None], gone: Callable[[], None]) -> None:
        self.runs: dict[str, PoolRun] = {}
        self._footing, self._give_up, self._gone = footing, give_up, gone
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, config: Config) -> list[str]:
        """Begin every pool, and those that were being removed. Returns what is wrong with others, in words.

        Raises StartError where there are pools and none can begin, StoreUnavailable where the journal cannot
        be read: that is nobody's alone. A pool that cannot begin beside others is tried again.
        """
        self._footing.shares.budget = config.budget.shared
        for name in config.pools:
            self.runs[name] = PoolRun(config.only(name), self._footing)
        wrong = await self._resume_leaving(config)
        faults = await asyncio.gather(*(self._begin(run) for run in self.runs.values()))
        if faults and all(faults):
            raise StartError(next(iter(self.runs.values())).trouble)
        return wrong

    async def _begin(self, run: PoolRun) -> bool:
        """True where it cannot begin."""
        try:
            await run.begin()
        except StartError as error:
            run.trouble = str(error)
        return bool(run.trouble)

    async def _resume_leaving(self, config: Config) -> list[str]:
        """Pools of the journal that the file does not have: go on with those that were being removed."""
        store, wrong = self._footing.store, []
        settings = await store.leaving()
        for name in [n for n in await store.pools() if n not in config.pools and n not in settings]:
            if nodes := len((await store.load(name)).nodes):
                wrong.append(leaving.forgotten(name, nodes))
        for name, text in settings.items():
            if name in config.pools:
                await store.note_left(name)
            else:
                try:
                    run = PoolRun(leaving.decode(text, name, config), self._footing)
                except ValueError as error:
                    wrong.append(f"pool {name}: is being removed, and its settings cannot be read: {error}")
                else:
                    run.leaving, self.runs[name] = True, run
        return wrong

    def start(self) -> None:
        """Start the work of every pool that was begun, and look after all."""
        for run in self.runs.values():
            if not run.trouble:
                run.start()
            self._look_after(run)

    def _look_after(self, run: PoolRun) -> None:
        self._spawn(f"look after {run.name}", self._tend(run))

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        if (before := self._tasks.get(name)) is not None:
            before.cancel()
        self._tasks[name] = asyncio.create_task(work, name=name)

    def reconfigure(self, config: Config, *, wait: bool) -> Awaitable[object]:
        """Put a changed configuration into force: pools come, change and go. Which do is so at once.

        With `wait` what is returned is done once each pool that stays has turned under it.
        """
        self._footing.shares.budget = config.budget.shared
        waiting = []
        for name in dict.fromkeys((*self.runs, *config.pools)):
            run = self.runs.get(name)
            if run is None:
                run = self.runs[name] = PoolRun(config.only(name), self._footing)
                self._footing.shares.expect(name)
                self._look_after(run)
                continue
            if run.leaving is (name in config.pools):
                run.leaving = not run.leaving
                self._spawn(f"note whether {name} leaves", self._note_leaving(run))
            waiting.append(run.reconfigure(run.config if run.leaving else config.only(name), wait=wait))
        return asyncio.gather(*waiting)

    async def stop(self) -> None:
        """Stop every pool; touches no node and no target set. Idempotent."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(run.stop() for run in self.runs.values()))

    # -- looking after a pool --------------------------------------------------------------------------

    async def _tend(self, run: PoolRun) -> None:
        """Begin a pool again whenever it fails, until it is gone or the daemon has to end."""
        clock, wait = self._footing.clock, _FIRST
        while True:
            began = clock.now()
            failure = await self._begin_again(run) if run.loop is None else None
            ran = failure is None
            failure = failure or await self._failure(run)
            if failure.emptied:
                await self._remove(run)
                return
            if failure.superseded or (ran and not self._others_turn(run)):
                self._give_up(failure.text if len(self.runs) == 1 else f"pool {run.name}: {failure.text}")
                return
            wait = _FIRST if clock.now() - began > _CALM else wait
            run.trouble = (
                f"{failure.text}; its nodes stay as they are, and it begins again after {wait:.0f} s"
            )
            log.error("pool.failed", pool=run.name, reason=failure.text, retry_in=wait)
            run.failures += 1
            await run.stop()
            self._footing.shares.dead(run.ask())
            if wait == _FIRST:
                await self._alarm(run)
            await clock.sleep(wait)
            wait = min(_MOST, 2.0 * wait)

    async def _begin_again(self, run: PoolRun) -> Failure | None:
        try:
            await run.begin()
            run.start()
        except Superseded as error:
            return Failure(str(error), superseded=True)
        except Exception as error:
            log.warning("pool.start_failed", pool=run.name, error=str(error))
            return Failure(f"it cannot begin: {error}")
        return None

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
            log.warning("pool_failure.record_failed", pool=run.name, error=str(error))

    # -- pools that go -----------------------------------------------------------------------------------

    async def _note_leaving(self, run: PoolRun) -> None:
        """Write down that a pool is being removed, or is not any more, as soon as the journal takes it."""
        store = self._footing.store
        while True:
            try:
                if run.leaving:
                    await store.note_leaving(run.name, leaving.encode(run.config))
                else:
                    await store.note_left(run.name)
                return
            except StoreUnavailable:
                await self._footing.clock.sleep(_WRITE_AGAIN)

    async def _remove(self, run: PoolRun) -> None:
        """Close the stream of a pool that has nothing any more, and forget it."""
        clock, store, name = self._footing.clock, self._footing.store, run.name
        await run.stop()
        removed = PoolRemoved(at=clock.now())
        while True:
            try:
                memory = reduce(await store.load(name), removed)
                await store.append(name, [removed])
                await store.snapshot(name, memory, keep_after=clock.now() - run.config.daemon.keep_events)
                await store.note_left(name)
                break
            except StoreUnavailable as error:
                log.warning("pool.close_failed", pool=name, error=str(error))
                await clock.sleep(_WRITE_AGAIN)
        del self.runs[name]
        self._footing.shares.forget(name)
        log.info("pool.removed", pool=name)
        self._gone()
