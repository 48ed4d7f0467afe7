"""Blocking work in a few threads of its own."""

import asyncio
import contextlib
import subprocess
import sys
import threading

import pytest

from cloud.threads import WorkerThreads

PATIENCE = 30.0


async def test_results_and_errors_come_back():
    threads = WorkerThreads("test", 2)

    def fail():
        raise KeyError("x")

    assert await threads.run(lambda: 7) == 7
    with pytest.raises(KeyError, match="x"):
        await threads.run(fail)
    threads.close()


async def test_no_more_threads_than_the_limit_and_none_needlessly():
    threads = WorkerThreads("test", 3)
    for _ in range(5):
        await threads.run(lambda: None)
    used = {await threads.run(threading.get_ident) for _ in range(5)}
    assert len(used) == 1
    release, running = threading.Event(), threading.Semaphore(0)

    def hold():
        running.release()
        assert release.wait(PATIENCE)
        return threading.get_ident()

    tasks = [asyncio.create_task(threads.run(hold)) for _ in range(10)]
    for _ in range(3):
        await asyncio.to_thread(running.acquire, timeout=PATIENCE)
    assert not running.acquire(blocking=False)
    release.set()
    assert len(set(await asyncio.gather(*tasks))) == 3
    threads.close()


async def test_a_cancelled_wait_leaves_the_thread_usable():
    threads = WorkerThreads("test", 1)
    release, begun = threading.Event(), threading.Event()

    def hold():
        begun.set()
        assert release.wait(PATIENCE)

    first = asyncio.create_task(threads.run(hold))
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    never = []
    second = asyncio.create_task(threads.run(lambda: never.append(1)))
    await asyncio.sleep(0)
    for task in (first, second):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    release.set()
    assert await threads.run(lambda: "again") == "again"
    assert never == []
    threads.close()


async def test_closed_threads_refuse_work_and_end():
    threads = WorkerThreads("closing-test", 2)
    await threads.run(lambda: None)
    threads.close()
    threads.close()
    with pytest.raises(RuntimeError, match="closed"):
        await threads.run(lambda: None)
    async with asyncio.timeout(PATIENCE):
        while any(t.name.startswith("closing-test") for t in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.slow
def test_work_under_way_does_not_hold_up_the_end_of_the_process():
    code = (
        "import asyncio, threading\n"
        "from cloud.threads import WorkerThreads\n"
        "async def main():\n"
        "    task = asyncio.create_task(WorkerThreads('t', 1).run(threading.Event().wait))\n"
        "    await asyncio.sleep(0.1)\n"
        "    task.cancel()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
