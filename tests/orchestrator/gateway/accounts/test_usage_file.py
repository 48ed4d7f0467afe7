"""The usage file: sums that all who write it add to, right after kills, full disks and damage too."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from orchestrator.gateway.accounts import shared_file
from orchestrator.gateway.accounts.shared_file import SharedFile
from orchestrator.gateway.accounts.usage_file import (
    KEPT_DAYS,
    VERSION,
    Sums,
    Unusable,
    UsageFile,
    read_usage,
)
from policies.cost_rows import UsageHour

HOUR = 498_900
NOW = HOUR * 3600.0 + 7
LONG = 90.0
ALL = (0, 10**9)


def one(fresh: int = 7, *, failed: int = 0) -> Sums:
    return [1, failed, 0, fresh, 2, 1, 5, 0.25, 1.5]


def names(
    hour: int = HOUR, key: str = "team-a", model: str = "", *, backend: str = "pool/chat"
) -> tuple[int, str, str, str, str]:
    return hour, key, "assistant", backend, model


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no test fail: what waits, waits."""
    monkeypatch.setattr(shared_file, "BUSY_WAIT", LONG)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


@pytest.fixture
def file(path: Path) -> UsageFile:
    return UsageFile(path)


class TestSums:
    def test_rows_add_up_by_hour_key_route_backend_and_model(self, file: UsageFile, path: Path) -> None:
        file.add([(names(), one(7)), (names(model="narrow"), one(1))], NOW)
        file.add([(names(), one(8, failed=1)), (names(HOUR + 1), one(100))], NOW)
        own, narrow, later = read_usage(path, *ALL)
        assert own == UsageHour(
            hour=HOUR,
            key="team-a",
            route="assistant",
            backend="pool/chat",
            model="",
            requests=2,
            failed=1,
            estimated=0,
            fresh=15,
            cached=4,
            written=2,
            output=10,
            first_token_s=0.5,
            seconds=3.0,
        )
        assert (narrow.model, narrow.fresh) == ("narrow", 1)
        assert (later.hour, later.fresh) == (HOUR + 1, 100)

    def test_a_reader_says_which_hours(self, file: UsageFile, path: Path) -> None:
        file.add([(names(HOUR + n), one(n)) for n in range(5)], NOW)
        assert [row.fresh for row in read_usage(path, HOUR + 1, HOUR + 3)] == [1, 2]

    def test_old_hours_are_forgotten_with_the_first_writing_of_a_day(
        self, file: UsageFile, path: Path
    ) -> None:
        file.add([(names(), one()), (names(HOUR + 24), one())], NOW)
        last = NOW + KEPT_DAYS * 86_400
        file.add([(names(HOUR + 24 * KEPT_DAYS), one())], last - 86_400)
        assert len(read_usage(path, *ALL)) == 3
        file.add([], last + 86_400)
        assert [row.hour for row in read_usage(path, *ALL)] == [HOUR + 24, HOUR + 24 * KEPT_DAYS]

    def test_a_clock_that_is_years_ahead_for_a_while_empties_nothing(
        self, file: UsageFile, path: Path
    ) -> None:
        days = [HOUR + 24 * day for day in range(10)]
        file.add([(names(hour), one()) for hour in days], NOW)
        file.add([], NOW + 4000 * 86_400)
        assert [row.hour for row in read_usage(path, *ALL)] == days[2:]

    def test_readers_need_no_writer_and_make_no_file(self, file: UsageFile, path: Path) -> None:
        assert read_usage(path, *ALL) == []
        assert not path.exists()
        path.touch()
        assert read_usage(path, *ALL) == []  # whoever made it writes its tables next
        file.add([(names(), one())], NOW)
        assert len(read_usage(path, *ALL)) == 1
        file.close()
        assert len(read_usage(path, *ALL)) == 1
        assert [each.name for each in path.parent.iterdir()] == ["usage.db"]

    def test_nothing_is_lost_where_somebody_takes_the_log_away(self, file: UsageFile, path: Path) -> None:
        file.add([(names(), one())], NOW)
        for end in ("-wal", "-shm"):
            path.with_name(path.name + end).unlink()
        file.add([(names(), one())], NOW)
        assert [row.fresh for row in read_usage(path, *ALL)] == [14]
        file.close()
        assert [row.fresh for row in read_usage(path, *ALL)] == [14]

    def test_others_may_have_tables_of_their_own_in_it(self, file: UsageFile, path: Path) -> None:
        other = SharedFile(path, what="window", schema="CREATE TABLE IF NOT EXISTS mine (x)", version=VERSION)
        with other.writing() as db:
            db.execute("INSERT INTO mine VALUES (1)")
        assert read_usage(path, *ALL) == []
        file.add([(names(), one())], NOW)
        with other.writing() as db:
            assert db.execute("SELECT x FROM mine").fetchall() == [(1,)]
        assert len(read_usage(path, *ALL)) == 1

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
    @pytest.mark.parametrize("writing", [True, False])
    def test_the_daemon_reads_where_it_may_write_nothing(self, writing: bool) -> None:
        """It runs as another user, and reads by its group, whether the gateway runs or not."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "usage.db"
            file = UsageFile(path)
            file.add([(names(), one(3))], NOW)
            if not writing:
                file.close()
            os.chmod(directory, 0o755)  # noqa: S103 - so that the other user can look
            for each in Path(directory).iterdir():
                each.chmod(0o644)
            pid = os.fork()
            if pid == 0:
                os.setuid(65534)
                try:
                    code = read_usage(path, *ALL)[0].fresh
                except BaseException:
                    code = 99
                os._exit(code)
            _, status = os.waitpid(pid, 0)
            file.close()
        assert os.waitstatus_to_exitcode(status) == 3


class TestTrouble:
    def test_a_damaged_file_is_refused_and_left_as_it_is(self, file: UsageFile, path: Path) -> None:
        path.write_bytes(b"no database at all, but longer than a header" * 100)
        before = path.read_bytes()
        for _ in range(2):
            with pytest.raises(Unusable, match=r"usage file .*usage\.db: file is not a database"):
                file.add([(names(), one())], NOW)
        with pytest.raises(Unusable):
            read_usage(path, *ALL)
        assert path.read_bytes() == before

    def test_damage_inside_is_found_when_it_is_opened(self, path: Path) -> None:
        file = UsageFile(path)
        file.add([(names(model=f"model-{n}" * 10), one()) for n in range(400)], NOW)
        file.close()
        data = bytearray(path.read_bytes())
        data[4096 * 3 : 4096 * 9] = os.urandom(4096 * 6)
        path.write_bytes(data)
        with pytest.raises(Unusable):
            UsageFile(path).add([(names(), one())], NOW)

    def test_a_file_of_a_later_version_is_refused(self, file: UsageFile, path: Path) -> None:
        file.add([(names(), one())], NOW)
        file.close()
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {VERSION + 1}")
        with pytest.raises(Unusable, match="later version"):
            file.add([(names(), one())], NOW)
        with pytest.raises(Unusable, match="later version"):
            read_usage(path, *ALL)

    def test_a_folder_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(Unusable, match=r"nowhere/usage\.db"):
            UsageFile(tmp_path / "nowhere" / "usage.db").add([(names(), one())], NOW)

    def test_another_file_at_its_place_is_written(self, file: UsageFile, path: Path) -> None:
        file.add([(names(), one(1))], NOW)
        path.rename(path.with_suffix(".old"))
        file.add([(names(), one(2))], NOW)
        assert [row.fresh for row in read_usage(path, *ALL)] == [2]

    def test_a_full_disk_adds_all_of_a_batch_or_nothing(self, path: Path) -> None:
        """The limit on the size of a process's files is as a full disk to it."""
        script = """
            import resource
            batch = [(names(model=f"m{n}"), one(1)) for n in range(20)]
            file.add(batch, NOW)
            size = max(path.stat().st_size, path.with_name("usage.db-wal").stat().st_size)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            refused = 0
            for _ in range(40):
                try:
                    file.add(batch, NOW)
                except Unusable:
                    refused += 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            file.add(batch, NOW)
            print(refused, *{row.requests for row in read_usage(path, *ALL)})
        """
        with started(script, path) as other:
            refused, *counts = map(int, other.communicate(timeout=100)[0].split())
        assert refused > 0
        assert counts == [42 - refused]


def started(script: str, path: Path) -> subprocess.Popen[str]:
    """Another process, which runs a script with the names of this module, `path` and `file`."""
    head = f"""
        import os
        from pathlib import Path
        from {__name__} import *
        shared_file.BUSY_WAIT = LONG
        path = Path({str(path)!r})
        file = UsageFile(path)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
        stdout=subprocess.PIPE,
        text=True,
    )


class TestProcesses:
    def test_processes_add_to_the_same_rows_and_nothing_is_lost(self, path: Path) -> None:
        script = """
            for _ in range(60):
                file.add([(names(), one(1)), (names(key="team-b"), one(2))], NOW)
        """
        workers = [started(script, path) for _ in range(3)]
        assert [worker.wait(timeout=100) for worker in workers] == [0, 0, 0]
        for worker in workers:
            worker.communicate()
        assert [(row.requests, row.fresh) for row in read_usage(path, *ALL)] == [(180, 180), (180, 360)]

    def test_what_was_added_survives_a_kill(self, path: Path) -> None:
        with started("file.add([(names(), one(9))], NOW); os.kill(os.getpid(), 9)", path) as other:
            assert other.wait(timeout=100) == -signal.SIGKILL
        assert [row.fresh for row in read_usage(path, *ALL)] == [9]
        UsageFile(path).add([(names(), one(1))], NOW)
        assert [row.fresh for row in read_usage(path, *ALL)] == [10]
