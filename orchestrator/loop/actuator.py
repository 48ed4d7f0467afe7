"""Carries out actions: bounded, in order per node, and reports every outcome as an event.

Balancers have a lane of their own: the newest wanted set wins and is written without waiting for anything
else. Calls on machines run a few at a time. An outcome that is not known (`Uncertain`, a time-out, a crash of
the call) is reported as such and asked again, with the same token, by a later turn.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.logger import structlog
from cloud.ports import Clock, Engine, EngineCommand, Instances, LaunchRequest, LoadBalancer
from orchestrator.loop.balancer_call import kept_apart
from orchestrator.loop.last_words import LastWords
from orchestrator.metrics.calls import counted
from policies.actions import Action, Cause, Launch, LoadAdapter, Start, Stop, Terminate, UnloadAdapter
from policies.adapter_events import AdapterAnswered
from policies.events import Event, IntentClosed, Outcome, TargetsApplied
from policies.model import Ending, InstanceState, Placement, TargetPhase, TargetSpec

log = structlog.get_logger("loop")

CALLS_AT_ONCE = 8
"""Calls on the machines of a region that run at the same time: one that hangs keeps no other waiting.

Ends of machines are counted apart: they wait for no launch. As many launches as this wait for EC2's rate less
long than a call may take, so the rest of a wave waits here and is not refused (`cloud.aws.pacing`).
"""

ADAPTER_WITHIN = 120.0
"""Seconds that an engine gets to load an adapter, or to unload one: its files may come from afar."""

_RETRY_FIRST, _RETRY_MOST = 0.1, 5.0

_OUTCOMES: tuple[tuple[type[CloudError], Outcome], ...] = (
    (InsufficientCapacity, Outcome.REFUSED),
    (QuotaExceeded, Outcome.QUOTA),
    (Throttled, Outcome.THROTTLED),
    (Denied, Outcome.DENIED),
    (Misconfigured, Outcome.MISCONFIGURED),
    (Uncertain, Outcome.UNCERTAIN),
)
"""What an error says of its call. Any other did nothing, as where a describe lags and finds no machine."""


class _Withheld(Exception):
    """Why a call that was decided is not made."""


def outcome_of(error: CloudError) -> Outcome:
    """How a call ended that raised this."""
    return next((found for kind, found in _OUTCOMES if isinstance(error, kind)), Outcome.FAILED)


class Actuator:
    """The hands of one pool's loop. `emit` takes outcomes; it must not block. New nodes run `command`.

    `leading` says whether this process still holds the lease, `failsafe` whether it may take noticed nodes
    out of balancers without it, `sees` whether the list of a region's machines is not too old to act on. They
    are asked right before every call, since a call may have waited long for its turn, and the process may
    have been frozen. `node_says` gives what a node said of its own start.
    `generations`: of the newest set that this process wrote before, by balancer.
    """

    def __init__(
        self,
        *,
        pool: str,
        clock: Clock,
        instances: Instances,
        balancers: tuple[LoadBalancer, ...],
        engine: Engine,
        command: EngineCommand,
        call_timeout: float,
        emit: Callable[[Event], object],
        leading: Callable[[], bool],
        failsafe: Callable[[], bool],
        sees: Callable[[str], bool],
        node_says: Callable[[str], str] = lambda _: "",
        generations: Mapping[str, int] = {},
    ) -> None:
        self._pool, self._clock, self._instances, self.command = pool, clock, instances, command
        self._engine = engine
        self._timeout, self._emit, self._leading, self._sees = call_timeout, emit, leading, sees
        self._slots: defaultdict[tuple[str, bool], asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(CALLS_AT_ONCE)
        )
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._last_words = LastWords(
            pool=pool, clock=clock, instances=instances, emit=emit, node_says=node_says
        )
        self.writers = {
            b.name: TargetWriter(
                b,
                pool=pool,
                clock=clock,
                emit=emit,
                call_timeout=call_timeout,
                leading=leading,
                failsafe=failsafe,
                above=generations.get(b.name, 0),
            )
            for b in balancers
        }

    def perform(self, actions: Sequence[Action], *, place_of: Callable[[str], Placement | None]) -> None:
        """Start the calls that the actions need. A token whose call still runs is left alone.

        `place_of` tells where a node is.
        """
        for action in actions:
            if isinstance(action, Launch | Start | Stop | Terminate) and action.token not in self._busy:
                place = action.placement if isinstance(action, Launch) else place_of(action.node)
                where = "" if place is None else place.region
                call = self._call(action, place, self._slots[where, isinstance(action, Terminate)])
                task = asyncio.create_task(call, name=f"{action.kind} {action.token}")
                self._busy[action.token] = task
                task.add_done_callback(partial(self._forget, action.token))
            elif isinstance(action, LoadAdapter | UnloadAdapter) and action.token not in self._busy:
                task = asyncio.create_task(self._adapter_call(action), name=action.token)
                self._busy[action.token] = task
                task.add_done_callback(partial(self._forget, action.token))

    def ended_unready(self, node: str, place: Placement, why: str) -> None:
        """Read the console of a machine that ended before it was ready, and report its failed boot."""
        token = f"{node}:console"
        if token not in self._busy:
            task = asyncio.create_task(self._last_words.hear(node, place, why), name=f"console {node}")
            self._busy[token] = task
            task.add_done_callback(partial(self._forget, token))

    def _forget(self, token: str, _: asyncio.Task[None]) -> None:
        self._busy.pop(token, None)

    def write(
        self, balancers: Sequence[str], targets: Sequence[TargetSpec], epoch: int, *, leading: bool
    ) -> None:
        """Have the named balancers hold exactly these targets; without the lease, write nothing any more.

        A write that fails is tried again, and by then another set may be wanted, so every writer hears of it.
        """
        for name, writer in self.writers.items():
            if not leading:
                writer.forget()
            elif name in balancers:
                writer.want(targets, epoch)
            else:
                writer.revise(targets, epoch)

    def take_out(self, balancers: Sequence[str], leaving: Sequence[TargetSpec], epoch: int) -> None:
        """Have the named balancers send nothing new to these targets, beyond the lease."""
        for name, writer in self.writers.items():
            if name in balancers:
                writer.take_out(leaving, epoch)
            else:
                writer.forget()

    @property
    def writing(self) -> dict[str, tuple[str, ...]]:
        """By balancer: the nodes that would get requests by sets that it did not acknowledge yet."""
        return {name: tuple(sorted(w.unsettled)) for name, w in self.writers.items() if w.unsettled}

    async def stop(self) -> None:
        """Let nothing new begin and end what runs. Touches no node: the outcome of a call that was cut off
        is unknown and is asked again after the next start."""
        tasks = [*self._busy.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _call(
        self, action: Launch | Start | Stop | Terminate, place: Placement | None, slots: asyncio.Semaphore
    ) -> None:
        outcome, node, detail = Outcome.UNCERTAIN, getattr(action, "node", ""), ""
        try:
            if isinstance(action, Terminate) and action.cause is Cause.BOOT and place is not None:
                await self._last_words.hear(action.node, place, action.reason)
            async with slots:
                if not self._leading():
                    raise _Withheld("the lease was lost before the call")
                if place is not None and not self._sees(place.region):
                    raise _Withheld("the list of the region's machines grew old before the call")
                with counted(self._pool, "instances", str(action.kind)):
                    async with asyncio.timeout(self._timeout):
                        outcome, node, detail = await self._do(action)
        except TimeoutError:
            detail = f"no answer within {self._timeout:.0f} s"
        except _Withheld as why:
            outcome, detail = Outcome.FAILED, str(why)
        except CloudError as error:
            outcome, detail = outcome_of(error), str(error)
        except Exception as error:
            # A fault of the adapter: whether the call took effect is not known.
            log.exception("call.crashed", kind=str(action.kind), token=action.token)
            detail = f"{type(error).__name__}: {error}"
        if outcome is not Outcome.DONE:
            log.warning(
                "call.failed",
                kind=str(action.kind),
                token=action.token,
                outcome=str(outcome),
                detail=detail,
            )
        self._emit(
            IntentClosed(at=self._clock.now(), token=action.token, outcome=outcome, node=node, detail=detail)
        )

    async def _adapter_call(self, action: LoadAdapter | UnloadAdapter) -> None:
        """Ask an engine for an adapter, and report how it went. A policy says how many are asked at once."""
        failure, certain = "the lease was lost before the call", True
        try:
            if self._leading():
                with counted(self._pool, "engine", str(action.kind)):
                    async with asyncio.timeout(ADAPTER_WITHIN):
                        await self._ask_engine(action)
                failure = ""
        except TimeoutError:
            failure, certain = f"no answer within {ADAPTER_WITHIN:.0f} s", False
        except CloudError as error:
            failure, certain = str(error) or type(error).__name__, not isinstance(error, Uncertain)
        except Exception as error:
            log.exception("call.crashed", kind=str(action.kind), token=action.token)
            failure, certain = f"{type(error).__name__}: {error}", False
        if failure:
            log.warning("call.failed", kind=str(action.kind), token=action.token, detail=failure)
        self._emit(
            AdapterAnswered(
                at=self._clock.now(),
                node=action.node,
                adapter=action.served_as,
                load=isinstance(action, LoadAdapter),
                failure=failure,
                certain=certain,
            )
        )

    async def _ask_engine(self, action: LoadAdapter | UnloadAdapter) -> None:
        if isinstance(action, LoadAdapter):
            await self._engine.load_adapter(action.address, action.served_as, action.source)
        else:
            await self._engine.unload_adapter(action.address, action.served_as)

    async def _do(self, action: Launch | Start | Stop | Terminate) -> tuple[Outcome, str, str]:
        """The outcome, the machine, and the provider's words where it has ended already."""
        match action:
            case Launch():
                request = LaunchRequest(
                    token=action.token,
                    pool=self._pool,
                    placement=action.placement,
                    command=self.command.at(action.placement.instance_type),
                    standby=action.standby,
                )
                instance = await self._instances.launch(request)
                if instance.state not in (InstanceState.TERMINATED, InstanceState.SHUTTING_DOWN):
                    return Outcome.DONE, instance.id, ""
                if instance.id and instance.ending is Ending.FAULT:
                    self.ended_unready(instance.id, instance.placement, instance.ending_why)
                not_given = instance.ending in (Ending.CAPACITY, Ending.RECLAIM)
                return (Outcome.REFUSED if not_given else Outcome.DIED), instance.id, instance.ending_why
            case Start():
                await self._instances.start(action.node)
            case Stop():
                await self._instances.stop(action.node)
            case Terminate():
                await self._instances.terminate(action.node)
        return Outcome.DONE, action.node, ""


@dataclass(frozen=True, slots=True)
class _Wish:
    """What to write to a balancer: the `whole` set, or which targets it should drop."""

    targets: tuple[TargetSpec, ...]
    epoch: int
    whole: bool


class TargetWriter:
    """Keeps one balancer's set equal to the newest wanted one. Its `run` is a root task.

    `unsettled` are the nodes that get requests by sets that were tried since the last acknowledgement: one
    whose answer is lost or not there yet may have landed. `generation` is that of the set written last.
    """

    def __init__(
        self,
        balancer: LoadBalancer,
        *,
        pool: str,
        clock: Clock,
        emit: Callable[[Event], object],
        call_timeout: float,
        leading: Callable[[], bool],
        failsafe: Callable[[], bool],
        above: int = 0,
    ) -> None:
        self._balancer, self._pool, self._clock, self._emit = balancer, pool, clock, emit
        self._timeout, self._leading, self._failsafe = call_timeout, leading, failsafe
        self._wanted: _Wish | None = None
        self._news = asyncio.Event()
        self._changed = asyncio.Event()  # the wanted set is another one than the one last tried
        self._tried: _Wish | None = None
        self._held: dict[str, TargetPhase] | None = None  # by the last whole set, as changed since
        self.generation = above
        self.unsettled: frozenset[str] = frozenset()
        self.error = ""

    def want(self, targets: Sequence[TargetSpec], epoch: int) -> None:
        """Ask for a set. An older wish that was not written yet is forgotten."""
        self._wish(_Wish(tuple(targets), epoch, whole=True))
        self._news.set()

    def take_out(self, leaving: Sequence[TargetSpec], epoch: int) -> None:
        """Ask that these targets get no new requests, and that nothing else is changed."""
        self._wish(_Wish(tuple(leaving), epoch, whole=False))
        self._news.set()

    def revise(self, targets: Sequence[TargetSpec], epoch: int) -> None:
        """Put this set in the place of one that was asked for and is not acknowledged yet."""
        if self._wanted is not None:
            self._wish(_Wish(tuple(targets), epoch, whole=True))

    def _wish(self, wish: _Wish) -> None:
        self._wanted = wish
        if wish != self._tried:
            self._changed.set()

    def forget(self) -> None:
        """Write nothing until a set is asked for again."""
        self._wanted = None
        self._news.clear()

    async def run(self) -> None:
        """Write what is wanted, for ever; a failure is tried again with the newest wish.

        The wait between tries grows, and ends early when another set is wanted: a noticed node does not wait
        for the failure of an older wish. A write that is given up may still land: the balancer refuses it
        once it has accepted a newer one.
        """
        wait = _RETRY_FIRST
        while True:
            await self._news.wait()
            self._news.clear()
            wish = self._wanted
            if wish is None or not (self._leading() or (self._failsafe() and not wish.whole)):
                continue  # asked for again by the first turn that may
            self._tried = wish
            self.unsettled |= {t.id for t in wish.targets if t.phase is TargetPhase.ACTIVE}
            self._changed.clear()
            # Rises over restarts, since every start has a higher epoch.
            self.generation = max(self.generation, wish.epoch << 20) + 1
            try:
                with counted(self._pool, self._balancer.name, "write"):
                    async with asyncio.timeout(self._timeout):
                        write = self._balancer.apply if wish.whole else self._balancer.detach
                        call = write(wish.targets, self.generation)
                        await kept_apart(self._balancer.name, "write", call)
            except (CloudError, TimeoutError) as error:
                self.error = str(error) or f"no acknowledgement within {self._timeout:.0f} s"
                log.warning("balancer.write_failed", balancer=self._balancer.name, error=self.error)
                await self._catch_up()
                await self._back_off(wait)
                wait = min(_RETRY_MOST, wait * 2)
                self._news.set()
                continue
            wait, self.error = _RETRY_FIRST, ""
            if self._wanted == wish:
                self._news.clear()  # asked for again while it was being written
                self._wanted = None
            self._acknowledge(wish)

    async def _back_off(self, seconds: float) -> None:
        """Wait before the next try, or until another set is wanted."""
        waits = [
            asyncio.ensure_future(self._clock.sleep(seconds)),
            asyncio.ensure_future(self._changed.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _catch_up(self) -> None:
        """A balancer that was given a higher generation by hand: we hold the lease, so ours goes on top.

        Without the lease it may be another daemon's, and goes on top of ours.
        """
        if not self._leading():
            return
        try:
            with counted(self._pool, self._balancer.name, "read"):
                async with asyncio.timeout(self._timeout):
                    view = await kept_apart(self._balancer.name, "read", self._balancer.observe())
        except (CloudError, TimeoutError):
            return
        if self._leading():
            self.generation = max(self.generation, view.generation)

    def _acknowledge(self, wish: _Wish) -> None:
        now, held = {t.id: t.phase for t in wish.targets}, self._held or {}
        if not wish.whole:
            if self._held is None:
                return  # what an acknowledgement says is counted from the first whole set
            now = held | now
        changed: list[tuple[str, TargetPhase | None]] = [
            (node, phase) for node, phase in now.items() if held.get(node) is not phase
        ]
        changed += [(node, None) for node in held if node not in now]
        self._held = now
        self.unsettled = frozenset() if wish.whole else self.unsettled - now.keys()
        self._emit(
            TargetsApplied(
                at=self._clock.now(),
                balancer=self._balancer.name,
                generation=self.generation,
                changes=tuple(changed),
            )
        )
