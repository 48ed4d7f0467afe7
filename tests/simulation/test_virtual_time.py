"""The virtual-time loop: time costs nothing, runs repeat, the real world is out of reach, a kill is final."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from orchestrator.simulation.virtual_time import (
    WORLD,
    Deadlock,
    LeftSimulation,
    VirtualClock,
    VirtualTimeLoop,
    current_process,
    virtual_time,
)

ROOT = Path(__file__).resolve().parents[2]


def run(work: Callable[[VirtualTimeLoop], Coroutine[Any, Any, Any]], seed: int = 0) -> Any:
    with virtual_time(seed) as loop:
        return loop.run_until_complete(work(loop))


def test_a_year_of_sleeping_takes_no_time() -> None:
    async def work(loop: VirtualTimeLoop) -> float:
        clock = VirtualClock(loop, epoch=1000.0)
        await clock.sleep(365 * 86_400.0)
        return clock.now()

    assert run(work) == 1000.0 + 365 * 86_400.0


def test_timers_fire_in_order_at_exactly_their_time() -> None:
    async def work(loop: VirtualTimeLoop) -> list[tuple[float, str]]:
        found: list[tuple[float, str]] = []

        async def at(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            found.append((loop.time(), name))

        await asyncio.gather(at(0.3, "c"), at(0.1, "a"), at(0.2, "b"))
        return found

    assert run(work) == [(0.1, "a"), (0.2, "b"), (0.3, "c")]


def test_timeouts_and_wait_for_work() -> None:
    async def work(loop: VirtualTimeLoop) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await asyncio.sleep(100.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 2.0)
        assert await asyncio.wait_for(asyncio.sleep(1.0, "done"), 2.0) == "done"
        return loop.time()

    assert run(work) == 8.0


def order_of(seed: int) -> list[int]:
    async def work(_: VirtualTimeLoop) -> list[int]:
        found: list[int] = []

        async def one(number: int) -> None:
            await asyncio.sleep(1.0)
            found.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(one(number))
        return found

    result: list[int] = run(work, seed)
    return result


def test_the_seed_draws_the_order_of_what_happens_at_once() -> None:
    assert order_of(1) == order_of(1)
    assert len({tuple(order_of(seed)) for seed in range(20)}) > 10


CANCEL_ORDER = """
import asyncio
from orchestrator.simulation.virtual_time import virtual_time

async def child(number, found):
    try:
        await asyncio.sleep(100)
    finally:
        found.append(number)

async def main():
    found = []
    garbage = [object() for _ in range({objects})]
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(child(number, found))
            await asyncio.sleep(1)
            raise ValueError
    except* ValueError:
        pass
    done, _ = await asyncio.wait({{asyncio.create_task(asyncio.sleep(1, n)) for n in range(20)}})
    return found, [task.result() for task in done]

with virtual_time(3) as loop:
    print(loop.run_until_complete(main()))
"""


def test_a_task_group_cancels_in_the_same_order_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", CANCEL_ORDER.format(objects=objects)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed, objects in (("0", 1), ("1", 1000), ("77", 33))
    }
    assert len(outputs) == 1


def test_nothing_left_to_happen_is_an_error_and_names_who_waits() -> None:
    async def work(_: VirtualTimeLoop) -> None:
        await asyncio.gather(asyncio.create_task(asyncio.Event().wait(), name="the one that waits"))

    with pytest.raises(Deadlock, match="the one that waits"):
        run(work)


@pytest.mark.parametrize(
    "reach",
    [
        lambda loop: asyncio.to_thread(print),
        lambda loop: asyncio.open_connection("127.0.0.1", 1),
        lambda loop: asyncio.start_server(print, "127.0.0.1", 0),
        lambda loop: asyncio.open_unix_connection("x"),
        lambda loop: asyncio.create_subprocess_exec("true"),
        lambda loop: loop.getaddrinfo("localhost", 1),
        lambda loop: loop.call_soon_threadsafe(print),
        lambda loop: loop.add_signal_handler(15, print),
    ],
    ids=["thread", "tcp", "listen", "unix", "subprocess", "dns", "threadsafe", "signal"],
)
def test_the_real_world_is_refused(reach: Callable[[VirtualTimeLoop], Any]) -> None:
    async def work(loop: VirtualTimeLoop) -> None:
        with pytest.raises(LeftSimulation):
            await reach(loop)

    run(work)


class Victim:
    """A simulated process with everything that could wrongly run after a kill."""

    def __init__(self, loop: VirtualTimeLoop, *, dies_in_step: bool = False) -> None:
        self.loop, self.dies_in_step = loop, dies_in_step
        self.log: list[str] = []
        self.ticks = 0

    async def main(self) -> None:
        assert current_process() == "victim"
        self.loop.call_later(10.0, self.log.append, "timer ran")
        task = asyncio.create_task(self.child())
        task.add_done_callback(lambda _: self.log.append("callback ran"))
        try:
            async with asyncio.timeout(20.0):
                while True:
                    await asyncio.sleep(1.0)
                    self.ticks += 1
                    if self.dies_in_step and self.ticks == 3:
                        self.loop.kill("victim")
                        await self.loop.halted()
        except BaseException:
            self.log.append("except ran")
            raise
        finally:
            self.log.append("finally ran")

    async def child(self) -> None:
        try:
            async for _ in self.stream():
                pass
        finally:
            self.log.append("the child's finally ran")

    async def stream(self) -> Any:
        try:
            while True:
                await asyncio.sleep(0.5)
                yield 1
        finally:
            self.log.append("the generator's finally ran")


@pytest.mark.parametrize("dies_in_step", [False, True])
def test_a_killed_process_runs_nothing_more(dies_in_step: bool) -> None:
    async def work(loop: VirtualTimeLoop) -> None:
        victim = Victim(loop, dies_in_step=dies_in_step)
        loop.spawn("victim", victim.main())
        await asyncio.sleep(3.5)
        if not dies_in_step:
            loop.kill("victim")
        assert not loop.alive("victim")
        log, victim_ticks = victim.log, victim
        del victim
        gc.collect()  # a collected coroutine would run its finally blocks
        await asyncio.sleep(100.0)
        gc.collect()
        assert log == []
        assert victim_ticks.ticks == 3

    run(work)


def test_the_dead_neither_hold_up_time_nor_hide_a_deadlock() -> None:
    async def sleeper() -> None:
        await asyncio.sleep(1e9)

    async def work(loop: VirtualTimeLoop) -> None:
        loop.spawn("victim", sleeper())
        await asyncio.sleep(1.0)
        loop.kill("victim")
        await asyncio.Event().wait()

    with virtual_time() as loop:
        with pytest.raises(Deadlock, match=r"at 1\.000000 s"):
            loop.run_until_complete(work(loop))
        assert loop.time() == 1.0


def test_others_live_on_and_a_dead_name_is_not_used_again() -> None:
    async def work(loop: VirtualTimeLoop) -> list[str]:
        found: list[str] = []

        async def worker(name: str) -> None:
            while True:
                await asyncio.sleep(1.0)
                found.append(name)

        loop.spawn("a", worker("a"))
        loop.spawn("b", worker("b"))
        await asyncio.sleep(1.5)
        loop.kill("a")
        loop.kill("a")
        await asyncio.sleep(2.0)
        with pytest.raises(ValueError, match="was killed"):
            loop.spawn("a", None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="cannot be killed"):
            loop.kill(WORLD)
        return found

    found = run(work)
    assert sorted(found[:2]) == ["a", "b"]
    assert found[2:] == ["b", "b"]


def test_closing_ends_what_was_killed_and_what_still_ran() -> None:
    log: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            log.append("ended")
            await asyncio.sleep(1.0)  # a clean-up that wants to wait cannot keep the loop open

    async def work(loop: VirtualTimeLoop) -> None:
        loop.spawn("a", stubborn())
        loop.spawn("b", stubborn())
        await asyncio.sleep(1.0)
        loop.kill("a")

    with virtual_time() as loop:
        loop.run_until_complete(work(loop))
        assert log == []
    assert log == ["ended", "ended"]


def test_a_frozen_process_runs_all_that_came_due_when_it_is_thawed() -> None:
    async def work(loop: VirtualTimeLoop) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = []

        async def tick(name: str) -> None:
            while True:
                await asyncio.sleep(1.0)
                found.append((name, loop.time()))

        for name in ("frozen", "free"):
            loop.spawn(name, tick(name))
        await asyncio.sleep(1.5)
        loop.freeze("frozen")
        loop.freeze("frozen")
        await asyncio.sleep(3.0)
        loop.thaw("frozen")
        await asyncio.sleep(1.2)
        return found

    found = run(work)
    assert [at for name, at in found if name == "frozen"] == [1.0, 4.5, 5.5]
    assert [at for name, at in found if name == "free"] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_frozen_process_can_be_killed_and_the_world_cannot_be_frozen() -> None:
    async def work(loop: VirtualTimeLoop) -> list[str]:
        found: list[str] = []

        async def late() -> None:
            await asyncio.sleep(1.0)
            found.append("ran")

        loop.spawn("a", late())
        loop.freeze("a")
        await asyncio.sleep(2.0)
        loop.kill("a")
        loop.thaw("a")
        await asyncio.sleep(2.0)
        with pytest.raises(ValueError, match="cannot be frozen"):
            loop.freeze(WORLD)
        return found

    assert run(work) == []
