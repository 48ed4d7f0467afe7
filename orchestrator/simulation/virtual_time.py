"""Virtual time: an asyncio event loop in which waiting costs nothing and everything repeats from its seed.

The daemon runs on it unchanged. Time stands still while callbacks run and jumps to the next timer when none
is left, so an hour of waiting takes no longer than the work done in it. Callbacks that are ready at the same
instant run in an order drawn from the seed: the same seed gives the same run in any process, and another
seed another interleaving. A run that can go on no more is a `Deadlock`, not a hang. Threads, sockets,
subprocesses and signals would let the real world in and make a run unrepeatable; each raises
`LeftSimulation`.

Every task and callback belongs to the simulated process that created it (a context variable, inherited like
any other). `kill` is kill -9: nothing of the process runs again, no `finally` and no cancellation; what
belonged to it is kept until the loop is closed, so that no garbage collection runs its clean-up either.
`freeze` is SIGSTOP: its callbacks wait, time goes on, and `thaw` runs all that came due meanwhile at once.

Written for CPython 3.11 and later: it relies on `BaseEventLoop._run_once`, `_ready`, `_stopping` and
`_timer_cancelled_count`, which all of them have. Half of a simulation is waiting, so timers have a heap of
their own, which compares numbers and no objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, NoReturn, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

WORLD: Final = ""
"""The process of everything that belongs to no simulated process: the simulated world itself."""

_process: ContextVar[str] = ContextVar("simulated_process", default=WORLD)

_CLOSE_TRIES: Final = 8
"""How often a coroutine that awaits in its clean-up is told to end when the loop is closed."""

_REAL_WORLD: Final = (
    "add_reader",
    "add_signal_handler",
    "add_writer",
    "call_soon_threadsafe",
    "connect_accepted_socket",
    "connect_read_pipe",
    "connect_write_pipe",
    "create_connection",
    "create_datagram_endpoint",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "getaddrinfo",
    "getnameinfo",
    "remove_reader",
    "remove_writer",
    "run_in_executor",
    "sendfile",
    "sock_accept",
    "sock_connect",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendfile",
    "sock_sendto",
    "start_tls",
    "subprocess_exec",
    "subprocess_shell",
)


class LeftSimulation(RuntimeError):
    """Simulated code reached for the real world: a thread, a socket, a subprocess or a signal."""


class Deadlock(RuntimeError):
    """Nothing is ready, no timer runs, and the run is not over: every task waits for another."""


class _Task(asyncio.Task[T]):
    """A task hashed by its serial number.

    `TaskGroup` cancels its children in the order of a set, and the default hash is the object's address,
    which differs from process to process.
    """

    def __init__(self, serial: int, process: str, coro: Coroutine[Any, Any, T], **kwargs: Any) -> None:
        self._serial = serial  # before the base class, which adds the task to a weak set
        self.process = process
        super().__init__(coro, **kwargs)

    def __hash__(self) -> int:
        return self._serial

    def __eq__(self, other: object) -> bool:
        return self is other


class _Handle(asyncio.TimerHandle):
    """A callback, `when` if not soon, without what the base class does for debug mode, which is never on."""

    __slots__ = ()

    _callback: Any
    _args: Any
    _context: Context

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
        when: float | None = None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback, self._args = callback, args
        self._cancelled = False
        self._repr = self._source_traceback = None
        self._when, self._scheduled = when, when is not None


def current_process() -> str:
    """The simulated process that is running now; `WORLD` outside of all."""
    return _process.get()


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """The loop. `seed` orders what is ready at the same instant; `steps` counts callbacks run."""

    # Fields of the base class, which its stubs do not show.
    _ready: deque[Any]
    _stopping: bool
    _closed: bool
    _timer_cancelled_count: int
    _asyncgens: Any

    def __init__(self, seed: int | str = 0) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, Any]] = []
        self._timer_serials = itertools.count()
        self._order = random.Random(f"order of callbacks/{seed}")  # noqa: S311 - an order, not a secret
        self._dead: set[str] = set()
        self._frozen: set[str] = set()
        self._halted: set[str] = set()  # both together
        self._parked: list[Any] = []  # handles of frozen processes that came due
        self._kept: list[object] = []
        self._serials = itertools.count()
        self.steps = 0
        self._clock_resolution = 1e-9
        self.set_task_factory(self._new_task)  # type: ignore[arg-type]  # the stubs know no subclass

    def _new_task(
        self, _: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T], **kwargs: Any
    ) -> asyncio.Task[T]:
        context = kwargs.get("context")
        process = _process.get() if context is None else context.get(_process, WORLD)
        return _Task(next(self._serials), process, coro, loop=self, **kwargs)

    def _tasks(self) -> list[_Task[Any]]:
        """All tasks that are not done."""
        return [t for t in asyncio.all_tasks(self) if isinstance(t, _Task)]

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See BaseEventLoop."""
        if self._closed:
            self._check_closed()  # type: ignore[attr-defined]  # the stubs do not show it
        timer = _Handle(callback, args, self, context, when)
        heapq.heappush(self._timers, (when, next(self._timer_serials), timer))
        return timer

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """See BaseEventLoop."""
        if self._closed:
            self._check_closed()  # type: ignore[attr-defined]
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    # -- simulated processes -----------------------------------------------------------------------

    def spawn(
        self, process: str, coro: Coroutine[Any, Any, T], *, name: str | None = None
    ) -> asyncio.Task[T]:
        """Start a task that belongs to a simulated process, as does everything it starts."""
        if process in self._dead:
            raise ValueError(f"simulated process {process!r} was killed; start one of another name")
        context = Context()
        context.run(_process.set, process)
        return self.create_task(coro, name=name, context=context)

    def kill(self, process: str) -> None:
        """Kill -9: nothing that belongs to the process runs from now on. Idempotent.

        May be called by the process itself; the caller must then await `halted` at once, since the step
        that runs cannot be taken back.
        """
        if process == WORLD:
            raise ValueError("the simulated world itself cannot be killed")
        if process not in self._dead:
            self._dead.add(process)
            self.thaw(process)
            self._halted.add(process)
            self._kept += [t for t in self._tasks() if t.process == process]
            # Time must not jump to the timers of the dead.
            self._kept += [t for _, _, t in self._timers if _owner(t) == process]
            self._timers = [entry for entry in self._timers if _owner(entry[2]) != process]
            heapq.heapify(self._timers)

    def alive(self, process: str) -> bool:
        """False once the process was killed."""
        return process not in self._dead

    def freeze(self, process: str) -> None:
        """SIGSTOP: nothing of the process runs until `thaw`; what comes due for it waits. Idempotent.

        A step that runs goes on to its next await.
        """
        if process == WORLD:
            raise ValueError("the simulated world itself cannot be frozen")
        self._frozen.add(process)
        self._halted.add(process)

    def thaw(self, process: str) -> None:
        """SIGCONT: all that came due meanwhile is ready now. Idempotent."""
        self._frozen.discard(process)
        self._halted = self._dead | self._frozen
        parked, self._parked = self._parked, []
        for handle in parked:
            (self._parked if _owner(handle) in self._frozen else self._ready).append(handle)

    async def halted(self) -> NoReturn:
        """Wait for ever: how a step of a killed process ends without running its clean-up."""
        await self.create_future()
        raise AssertionError("a future that nobody resolves was resolved")

    # -- running -----------------------------------------------------------------------------------

    def _run_once(self) -> None:
        """Until the loop is stopped: jump to the next timer if nothing is ready, then run what is, shuffled.

        `BaseEventLoop` does one such turn at a time, and waits in its selector; here nothing is waited for.
        """
        while True:
            ready, timers, halted = self._ready, self._timers, self._halted
            if timers and timers[0][2]._cancelled:
                timers = self._drop_cancelled_timers()
            now = self._now
            if not ready and not self._stopping:
                if not timers:
                    raise Deadlock(f"nothing can happen any more at {now:.6f} s; {self._waiting()}")
                if timers[0][0] > now:
                    now = self._now = timers[0][0]
            while timers and timers[0][0] <= now:
                handle = heapq.heappop(timers)[2]
                handle._scheduled = False
                ready.append(handle)
            if len(ready) > 1:
                shuffled = list(ready)
                self._order.shuffle(shuffled)
                self._ready = ready = deque(shuffled)
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                if halted and handle._context.get(_process, WORLD) in halted:
                    self._set_aside(handle)
                    continue
                self.steps += 1
                try:
                    handle._context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self._failed(handle, error)
                halted = self._halted
            if self._stopping:
                return

    def _failed(self, handle: Any, error: BaseException) -> None:
        """A callback raised: nobody else hears of it."""
        name = getattr(handle._callback, "__qualname__", handle._callback)
        self.call_exception_handler(
            {"message": f"Exception in callback {name}", "exception": error, "handle": handle}
        )

    def _set_aside(self, handle: Any) -> None:
        """A callback of a dead process never runs, one of a frozen process waits."""
        (self._kept if _owner(handle) in self._dead else self._parked).append(handle)

    def _drop_cancelled_timers(self) -> list[tuple[float, int, Any]]:
        """Forget timers that were cancelled, time must not jump to them; returns those that are left."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)[2]._scheduled = False
            self._timer_cancelled_count -= 1
        if self._timer_cancelled_count > 100 and self._timer_cancelled_count * 2 > len(timers):
            timers = self._timers = [entry for entry in timers if not entry[2]._cancelled]
            heapq.heapify(timers)
            self._timer_cancelled_count = 0
        return timers

    def _waiting(self) -> str:
        """The living tasks, for the message of a deadlock."""
        names = sorted(t.get_name() for t in self._tasks() if t.process not in self._dead)
        return f"waiting: {', '.join(names) or 'no task'}"

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        # The base class goes through call_soon_threadsafe; here there is only one thread.
        self._asyncgens.discard(agen)
        if not self.is_closed():
            self.call_soon(self.create_task, agen.aclose())

    # -- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the loop and end every coroutine that was left, the killed ones too.

        Their clean-up runs now, after the run and with no loop to reach: it can start nothing and wait for
        nothing. What it raises is of no interest.
        """
        if self.is_closed():
            return
        left = self._tasks()
        super().close()
        self._timers.clear()
        for task in left:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coro = task.get_coro()
            for _ in range(_CLOSE_TRIES):
                try:
                    if coro is not None:
                        coro.close()
                except BaseException:  # noqa: S112 - whatever the clean-up of a dead process raises
                    continue
                break
        self._kept.clear()


def _owner(handle: Any) -> str:
    """The simulated process that a callback belongs to."""
    process: str = handle._context.get(_process, WORLD)
    return process


def _refusal(name: str) -> Any:
    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        raise LeftSimulation(
            f"{name} is not to be had in the simulation: the code under test may use no thread, socket, "
            "subprocess or signal there; hand it a simulated port instead"
        )

    refuse.__name__ = name
    refuse.__doc__ = "Refused: raises LeftSimulation."
    return refuse


for _name in _REAL_WORLD:
    setattr(VirtualTimeLoop, _name, _refusal(_name))


class VirtualClock:
    """`cloud.ports.Clock` on a virtual-time loop. `epoch` is the time of day at the loop's zero."""

    def __init__(self, loop: VirtualTimeLoop, *, epoch: float = 1_700_000_000.0) -> None:
        self._loop, self.epoch = loop, epoch

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.epoch + self._loop.time()

    def steady(self) -> float:
        """Seconds since the loop's zero."""
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """Wait, at no cost; zero or less yields once."""
        if seconds <= 0:
            await asyncio.sleep(0)  # noqa: TID251 - this is the clock
            return
        # What asyncio.sleep does, with fewer steps: half of a simulation is waiting.
        loop = self._loop
        future: asyncio.Future[None] = asyncio.Future(loop=loop)
        timer = loop.call_at(loop.time() + seconds, _wake, future)
        try:
            await future
        except BaseException:
            timer.cancel()
            raise


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextlib.contextmanager
def virtual_time(seed: int | str = 0) -> Iterator[VirtualTimeLoop]:
    """A loop for one run, set as the current one and closed at the end."""
    loop = VirtualTimeLoop(seed)
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()
