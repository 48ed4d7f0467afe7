"""One daemon per state directory, and a second one is told who the first is."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cloud.errors import Denied
from orchestrator.lease import FileLease

HOLD = textwrap.dedent("""
    import sys
    from pathlib import Path
    from orchestrator.lease import FileLease

    lease = FileLease(Path(sys.argv[1]), now=1.0)
    lease.acquire()
    lease.record(7)
    print("held", flush=True)
    sys.stdin.read()
""")


def test_the_second_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    first, second = FileLease(tmp_path / "lease", now=1.0), FileLease(tmp_path / "lease", now=2.0)
    holder = first.acquire()
    assert f"pid {os.getpid()}" in holder.who
    with pytest.raises(Denied, match=rf"pid {os.getpid()} on .*; stop it first") as refused:
        second.acquire()
    assert str(tmp_path) in str(refused.value)
    assert first.valid()
    assert not second.valid()
    first.release()
    assert not first.valid()
    second.acquire()
    assert second.valid()
    second.release()


def test_release_may_be_repeated(tmp_path: Path) -> None:
    lease = FileLease(tmp_path / "lease", now=1.0)
    lease.release()
    lease.acquire()
    lease.release()
    lease.release()
    assert not lease.valid()


def test_the_epoch_is_recorded(tmp_path: Path) -> None:
    lease = FileLease(tmp_path / "lease", now=1.0)
    lease.acquire()
    assert lease.record(42).epoch == 42
    assert '"epoch": 42' in (tmp_path / "lease").read_text()
    lease.release()


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_lease_whose_file_was_taken_away_holds_no_more(tmp_path: Path, change: str) -> None:
    path = tmp_path / "lease"
    lease = FileLease(path, now=1.0)
    lease.acquire()
    path.unlink()
    if change == "replaced":
        path.write_text("{}")
    assert not lease.valid()
    lease.release()


def test_a_directory_that_is_missing_or_not_writable_is_named(tmp_path: Path) -> None:
    with pytest.raises(Denied, match=r"missing: the state directory is not writable .*set daemon.state_dir"):
        FileLease(tmp_path / "missing" / "lease", now=1.0).acquire()


@pytest.mark.parametrize("body", ["", "nonsense", "[]", "{}", "\x00\xff"])
def test_an_unreadable_lease_is_still_held(tmp_path: Path, body: str) -> None:
    first = FileLease(tmp_path / "lease", now=1.0)
    first.acquire()
    (tmp_path / "lease").write_bytes(body.encode("latin-1"))
    with pytest.raises(Denied, match="unknown process"):
        FileLease(tmp_path / "lease", now=1.0).acquire()
    first.release()


@pytest.mark.slow
def test_a_killed_holder_frees_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Denied, match=f"pid {holder.pid} on"):
            FileLease(path, now=2.0).acquire()
    finally:
        holder.kill()
        holder.communicate(timeout=60)
    mine = FileLease(path, now=3.0)
    mine.acquire()
    assert mine.valid()
    mine.release()


@pytest.mark.slow
def test_a_full_disk_does_not_cost_the_lease(tmp_path: Path) -> None:
    """A limit of no bytes on files stands for the disk: the lock is taken, who holds it is not written."""
    code = HOLD.replace("sys.stdin.read()", "assert lease.valid(); lease.release()")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "lease")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "held\n", "")
