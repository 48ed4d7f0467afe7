"""The lock of a state directory: one daemon, and a second one is told who the first is."""

from __future__ import annotations

import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cloud.errors import Denied
from orchestrator.lease.file import FileLease

HOLD = textwrap.dedent("""
    import asyncio
    import sys
    from pathlib import Path
    from orchestrator.lease.file import FileLease

    lease = FileLease(Path(sys.argv[1]), now=1.0)
    asyncio.run(lease.acquire())
    lease.record(7)
    print("held", flush=True)
    sys.stdin.read()
""")


async def test_the_directory_and_what_to_do_are_named(tmp_path: Path) -> None:
    first = FileLease(tmp_path / "lease", now=1.0)
    await first.acquire()
    with pytest.raises(Denied, match=r"; stop it first, or give this one a state directory") as refused:
        await FileLease(tmp_path / "lease", now=2.0).acquire()
    assert str(tmp_path) in str(refused.value)
    await first.release()


async def test_a_seat_belongs_to_one_lock(tmp_path: Path) -> None:
    leases = [FileLease(tmp_path / name, now=1.0) for name in ("a", "b")]
    for lease in leases:
        await lease.acquire()
    first, second = (lease.seat for lease in leases)
    assert first != second
    await leases[0].release()
    again = FileLease(tmp_path / "a", now=2.0)
    await again.acquire()
    assert again.seat == first
    for lease in (again, leases[1]):
        await lease.release()


async def test_release_may_be_repeated(tmp_path: Path) -> None:
    lease = FileLease(tmp_path / "lease", now=1.0)
    await lease.release()
    await lease.acquire()
    await lease.release()
    await lease.release()
    assert not lease.valid()


async def test_the_epoch_is_recorded(tmp_path: Path) -> None:
    lease = FileLease(tmp_path / "lease", now=1.0)
    await lease.acquire()
    assert lease.record(42).epoch == 42
    assert '"epoch": 42' in (tmp_path / "lease").read_text()
    await lease.release()


@pytest.mark.parametrize(("body", "epoch"), [(None, 42), ("", 0), ("no json", 0), ('{"epoch": "x"}', 0)])
async def test_the_epoch_of_the_last_holder_is_told(tmp_path: Path, body: str | None, epoch: int) -> None:
    path = tmp_path / "lease"
    for _ in range(2):  # the second takes the lease, and ends before it begins an epoch of its own
        lease = FileLease(path, now=1.0)
        await lease.acquire()
        if body is None and '"epoch": 42' not in path.read_text():
            lease.record(42)
        await lease.release()
    if body is not None:
        path.write_text(body)
    last = FileLease(path, now=2.0)
    assert (await last.acquire()).epoch == epoch
    await last.release()


@pytest.mark.parametrize("change", ["removed", "replaced"])
async def test_a_lease_whose_file_was_taken_away_holds_no_more(tmp_path: Path, change: str) -> None:
    path = tmp_path / "lease"
    lease = FileLease(path, now=1.0)
    await lease.acquire()
    path.unlink()
    if change == "replaced":
        path.write_text("{}")
    assert not lease.valid()
    await lease.release()


async def test_a_directory_that_is_missing_or_not_writable_is_named(tmp_path: Path) -> None:
    with pytest.raises(Denied, match=r"missing: the state directory is not writable .*set daemon.state_dir"):
        await FileLease(tmp_path / "missing" / "lease", now=1.0).acquire()


@pytest.mark.parametrize("body", ["", "nonsense", "[]", "{}", "\x00\xff"])
async def test_an_unreadable_lease_is_still_held(tmp_path: Path, body: str) -> None:
    first = FileLease(tmp_path / "lease", now=1.0)
    await first.acquire()
    (tmp_path / "lease").write_bytes(body.encode("latin-1"))
    with pytest.raises(Denied, match="unknown process"):
        await FileLease(tmp_path / "lease", now=1.0).acquire()
    await first.release()


@pytest.mark.slow
async def test_a_killed_holder_frees_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    holder = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Denied, match=f"pid {holder.pid} on"):
            await FileLease(path, now=2.0).acquire()
    finally:
        holder.kill()
        holder.communicate(timeout=60)
    mine = FileLease(path, now=3.0)
    await mine.acquire()
    assert mine.valid()
    await mine.release()


@pytest.mark.slow
def test_a_full_disk_does_not_cost_the_lease(tmp_path: Path) -> None:
    """A limit of no bytes on files stands for the disk: the lock is taken, who holds it is not written."""
    code = HOLD.replace("sys.stdin.read()", "assert lease.valid(); lease.close()")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "lease")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "held\n", "")
