"""What happens to the daemon itself, its host and its state directory."""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

from scenarios import config, offer

from orchestrator.journal.store import StoreUnavailable
from orchestrator.simulation.simulate import SimProcess, Simulation


def awake(sim: Simulation) -> SimProcess | None:
    """The daemon that is up, unless it is frozen."""
    process = sim.running
    return None if process is None or process.frozen else process


def journal(sim: Simulation) -> Path:
    return sim.config.daemon.state_dir / "journal.db"


async def killed(sim: Simulation, rng: random.Random) -> None:
    process = awake(sim)
    if process is not None:
        sim.kill(process)
        sim.restart_later()


async def stopped(sim: Simulation, rng: random.Random) -> None:
    process = awake(sim)
    if process is not None:
        try:
            await sim.stop(process)
        finally:
            sim.restart_later()


async def down_for_long(sim: Simulation, rng: random.Random) -> None:
    """No daemon for some minutes."""
    process = awake(sim)
    if process is not None:
        sim.kill(process)
        await sim.clock.sleep(rng.uniform(60, 600))
        if sim.running is None:
            sim.boot(supervised=True)


async def frozen(sim: Simulation, rng: random.Random) -> None:
    """SIGSTOP, or a host that is suspended; sometimes it never wakes up and is killed."""
    process = awake(sim)
    if process is None:
        return
    sim.freeze(process)
    await sim.clock.sleep(rng.choice((1.0, 15.0, 130.0, 700.0)))
    if not process.ended and rng.random() < 0.3:
        sim.kill(process)
        sim.restart_later()
    else:
        sim.thaw(process)


async def second_daemon(sim: Simulation, rng: random.Random) -> None:
    """Somebody starts one more on the same state directory."""
    sim.boot()


async def usurped(sim: Simulation, rng: random.Random) -> None:
    """A daemon hangs, somebody removes its lease by hand and starts another; then the first wakes up."""
    process = awake(sim)
    if process is None:
        return
    if rng.random() < 0.7:
        sim.freeze(process)
        await sim.clock.sleep(rng.uniform(1, 60))
    (sim.config.daemon.state_dir / "lease").unlink(missing_ok=True)
    sim.world.trace.add("lease removed")
    sim.boot(supervised=True)
    await sim.clock.sleep(rng.uniform(0, 60))
    sim.thaw(process)


async def journal_lost(sim: Simulation, rng: random.Random) -> None:
    process = awake(sim)
    if process is not None and len([p for p in sim.processes if not p.ended]) == 1:
        sim.kill(process)
        sim.lose_journal()
        sim.restart_later()


async def journal_corrupt(sim: Simulation, rng: random.Random) -> None:
    process = awake(sim)
    if process is None or len([p for p in sim.processes if not p.ended]) != 1:
        return
    sim.kill(process)
    data = bytearray(journal(sim).read_bytes())
    for _ in range(8):
        start = rng.randrange(max(1, len(data) - 64))
        data[start : start + 64] = rng.randbytes(64)
    journal(sim).write_bytes(data)
    sim.world.trace.add("journal corrupt")
    sim.forget()
    sim.restart_later()


async def journal_restored(sim: Simulation, rng: random.Random) -> None:
    """Somebody puts back a copy of the journal that is some minutes old."""
    copy = journal(sim).with_name("backup")
    if awake(sim) is None:
        return
    copy.mkdir(exist_ok=True)
    for part in journal(sim).parent.glob("journal.db*"):
        if not part.name.endswith("-shm") and ".corrupt" not in part.name:
            shutil.copy(part, copy)
    books = sim.checker.written
    await sim.clock.sleep(rng.uniform(10, 400))
    process = awake(sim)
    if process is None or len([p for p in sim.processes if not p.ended]) != 1:
        return
    sim.kill(process)
    sim.lose_journal(books)
    for part in copy.iterdir():
        shutil.copy(part, journal(sim).parent)
    sim.world.trace.add("journal restored")
    sim.restart_later()


async def disk_full(sim: Simulation, rng: random.Random) -> None:
    process = awake(sim)
    if process is None:
        return
    store = process.stores[-1]
    for pages, wait in ((1, rng.uniform(10, 120)), (10**6, 0.0)):
        if sim.loop.alive(process.name) and not process.ended:
            with contextlib.suppress(StoreUnavailable):  # another daemon may have taken over
                await store._writer.run(
                    lambda db, n=pages: db.execute(f"PRAGMA max_page_count={n}").fetchall()
                )
            await sim.clock.sleep(wait)


async def slow_disk(sim: Simulation, rng: random.Random) -> None:
    """Every write of the journal takes seconds, and the daemon may be killed while one is under way."""
    sim.world.faults.slow_disk = rng.choice((0.2, 1.0, 4.0))
    await sim.clock.sleep(rng.uniform(30, 300))
    if rng.random() < 0.3:
        await killed(sim, rng)
    sim.world.faults.slow_disk = 0.0


async def clock_stepped(sim: Simulation, rng: random.Random) -> None:
    """The host's clock is set, forward or back; the next daemon starts with it."""
    sim.ahead = rng.choice((0.0, 1.0, -1.0)) * rng.choice((5.0, 120.0, 3600.0, 86_400.0))
    sim.world.trace.add("clock", sim.ahead)
    if rng.random() < 0.7:
        await killed(sim, rng)


def _was_whole(sim: Simulation) -> bool:
    """Whether the running daemon knows that the pool was whole: what it never had, it may give up unasked."""
    loop = sim.running.loop(sim.pool.name) if sim.running is not None else None
    return loop is not None and loop.memory.whole_with == sim.pool.replicas and not sim.pool.weighted


async def bad_reload(sim: Simulation, rng: random.Random) -> None:
    """A configuration is reloaded that cannot be read, or that resizes the pool out of proportion."""
    faulty: dict[str, object] = {"replicas": rng.choice((-1, "many"))}
    resized: dict[str, object] = {"replicas": 1 if _was_whole(sim) else 1000}
    wrong = rng.choice((faulty, resized)) if sim.pool.replicas > 2 else faulty
    await offer(sim, lambda: config(sim.config.daemon.state_dir.parent, **wrong))


HOST = (
    (killed, 0.4, 300.0), (stopped, 0.3, 300.0), (down_for_long, 0.2, 600.0), (frozen, 0.3, 300.0),
    (second_daemon, 0.2, 600.0), (usurped, 0.2, 600.0), (journal_lost, 0.2, 600.0),
    (journal_corrupt, 0.2, 600.0), (journal_restored, 0.2, 600.0), (disk_full, 0.3, 300.0),
    (slow_disk, 0.3, 300.0),    (clock_stepped, 0.2, 600.0), (bad_reload, 0.2, 300.0),
)  # fmt: skip
"""Strikes, the share of all seeds that know each, and the mean pause between two of them, seconds."""
