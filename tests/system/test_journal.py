"""The journal lost, from another version, or on a full disk: nodes are kept, notices obeyed, no harm done."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud.errors import CloudError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
]


async def test_a_corrupt_journal_is_set_aside_and_the_nodes_adopted(stack: Any) -> None:
    """The daemon then knows nothing, and the cloud cannot be listed at first: nothing may be done yet."""
    before = await stack.nodes()
    groups = (await stack.statistics())["groups"]
    launches = (await stack.statistics())["launches"]
    assert await stack.stop("daemon") == 0
    for suffix in ("-wal", "-shm"):
        (stack.state / f"journal.db{suffix}").unlink(missing_ok=True)
    garbage = os.urandom(64 * 1024)
    (stack.state / "journal.db").write_bytes(garbage)
    await stack.admin("fail-list", times=4)
    async with stack.traffic() as traffic:
        await stack.start("daemon")
        pool = await stack.until_pool("the daemon is back", lambda pool: True)
        while not pool["nodes"]:
            # nothing was observed yet: no plan may launch, end or detach anything
            plan = json.loads((await stack.cli("plan", "-o", "json")).out)["pools"][0]
            if not plan["targets"]:
                assert [a for a in plan["actions"] if a["kind"] != "alarm"] == []
            pool = await stack.until_pool("the daemon answers", lambda pool: True)
        await stack.settled()
    (aside,) = stack.state.glob("journal.db.corrupt-*")
    assert aside.read_bytes() == garbage
    assert "journal.set_aside" in stack.parts["daemon"].log.read_text(encoding="utf-8")
    after = await stack.nodes()
    assert {n: v["token"] for n, v in after.items()} == {n: v["token"] for n, v in before.items()}
    seen = await stack.statistics()
    assert (seen["groups"], seen["launches"]) == (groups, launches)
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0
    aside.unlink()


async def test_a_journal_of_a_newer_version_is_left_alone(stack: Any) -> None:
    assert await stack.stop("daemon") == 0
    path = stack.state / "journal.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        (known,) = db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()
        db.execute("UPDATE meta SET value='999' WHERE key='schema'")
    try:
        done = await stack.cli("run")
        assert done.code == 1
        assert len(done.err.splitlines()) == 1, done.err
        assert f"{path}: written by a newer version (schema 999, this one knows {known})" in done.err
        assert list(stack.state.glob("journal.db.corrupt-*")) == []
    finally:
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            (still,) = db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()
            db.execute("UPDATE meta SET value=? WHERE key='schema'", (known,))
    assert still == "999"


async def test_a_disk_that_fills_up_and_is_freed(stack: Any) -> None:
    """A limit on the size of the daemon's files stands for the disk, for its journal and its log alike."""
    pid = stack.parts["daemon"].pid

    def limit(size: int) -> None:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    await _lives_through_a_full_disk(stack, lambda: limit(1), lambda: limit(resource.RLIM_INFINITY))


async def test_a_disk_that_is_really_full(new_stack: Any, small_disk: Any) -> None:
    """The same on a file system with no block left."""
    async with new_stack({"daemon": {"state_dir": str(small_disk)}}) as stack:
        await stack.settled()
        ballast = small_disk / "ballast"

        def fill() -> None:
            with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                for size in (65536, 4096, 512, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(b"x" * size)

        await _lives_through_a_full_disk(stack, fill, ballast.unlink)


async def test_a_full_disk_of_the_local_cloud_is_said_in_words(stack: Any) -> None:
    """Its table cannot be written, so nothing is done; the answer says why, and it recovers."""
    pid = stack.parts["local-cloud"].pid
    node = (await stack.a_node("spot"))["id"]
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(CloudError, match="the local cloud cannot write its state"):
            await stack.admin("reclaim", node=node, notice_s=4)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    assert node in {n["id"] for n in (await stack.settled())["nodes"]}


async def _lives_through_a_full_disk(stack: Any, fill: Any, free: Any) -> None:
    """Without a journal the daemon drains what is noticed and launches nothing; afterwards it catches up."""
    node = (await stack.a_node("spot"))["id"]
    launches = (await stack.statistics())["launches"]
    first = (await stack.events())[-1]["seq"]
    async with stack.traffic() as traffic:
        fill()
        try:
            await stack.admin("reclaim", node=node, notice_s=4)
            pool = await stack.until_pool(
                "the status says that the journal cannot be written",
                lambda pool: any("journal cannot be written" in p for p in pool["problems"]),
            )
            await stack.until_pool(
                "the noticed node gets no new requests",
                lambda pool: all(n["target"] in (None, "draining") for n in pool["nodes"] if n["id"] == node),
            )
            await stack.until_pool("the node is gone", lambda p: node not in {n["id"] for n in p["nodes"]})
            assert (await stack.statistics())["launches"] == launches
            assert (await stack.status())["daemon"]["journal_ok"] is False
            pool = await stack.pool()
            assert pool["ready"] == 3
            paused = await stack.cli("pause", "-m", "the disk is full")
            assert (paused.code, paused.out) == (1, "")
            assert len(paused.err.splitlines()) == 1
            assert "the journal cannot be written" in paused.err
            assert (await stack.status())["daemon"]["paused"]["reason"] == "the disk is full"
        finally:
            free()
        assert (await stack.cli("resume")).code == 0
        await stack.settled()
    assert traffic.report.failures == {}
    assert traffic.report.streams_cut == 0

    async def written() -> bool:
        return bool((await stack.status())["daemon"]["journal_ok"])

    await stack.until("the journal is written again", written)
    kinds = [e["kind"] for e in await stack.events() if e["seq"] > first and e["node"] == node]
    assert "NoticeSeen" in kinds, "what happened meanwhile was written later"
    assert "DrainStarted" in kinds


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte of its own."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
