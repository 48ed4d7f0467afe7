"""What is read of this machine: the tables of /proc as they are written, and the real ones."""

import fcntl
import os
import resource
import socket
from pathlib import Path

import pytest

from orchestrator.doctor import machine

MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
30 22 0:40 / /srv rw - nfs4 server:/export rw
31 30 0:41 / /srv/fast rw shared:1 - xfs /dev/sdb rw
32 22 0:42 / /with\040space rw - tmpfs tmpfs rw
33 22 0:43 / /twice rw - xfs /dev/sdc rw
34 33 0:44 / /twice rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/srv/state", "nfs4"),
        ("/srv/fast/state", "xfs"),
        ("/srv/faster", "nfs4"),
        ("/with space/x", "tmpfs"),
        ("/twice", "tmpfs"),
    ],
)
def test_the_deepest_and_newest_mount_holds_a_path(tmp_path, path, kind):
    assert machine.file_system(tmp_path.__class__(path), MOUNTS) == kind


def test_a_table_that_says_nothing_tells_nothing(tmp_path):
    assert machine.file_system(tmp_path, "nonsense\n") == ""
    assert machine.file_system(tmp_path) != ""


def test_a_lock_is_seen_without_taking_it(tmp_path):
    file = tmp_path / "lease"
    file.write_text("{}")
    assert machine.lock_holder(file, -1) == 0
    with file.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert machine.lock_holder(file, -1) == os.getpid()
    assert machine.lock_holder(file, -1) == 0
    assert machine.lock_holder(tmp_path / "none", -1) is None


def test_a_lock_on_another_device_is_ours_only_if_the_file_names_its_process(tmp_path):
    file = tmp_path / "lease"
    file.write_text("{}")
    table = f"1: FLOCK  ADVISORY  WRITE 4711 00:99:{file.stat().st_ino} 0 EOF\n"
    assert machine.lock_holder(file, 4711, table) == 4711
    assert machine.lock_holder(file, 12, table) == 0


def test_who_listens():
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        found = {(item.host, item.port): item for item in machine.listeners()}
        for host, server in (("127.0.0.1", four), ("::1", six)):
            item = found[host, server.getsockname()[1]]
            assert item.pid == os.getpid()
            assert item.command == Path("/proc/self/cmdline").read_text().replace("\0", " ").strip()


def test_limits_of_this_process_and_of_one_by_its_id():
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert machine.open_files_limit() == soft
    assert machine.open_files_limit(os.getpid()) == soft
    assert machine.open_files_limit(2**30) is None


def test_room(tmp_path):
    found = machine.room(tmp_path)
    assert found.bytes > 0
    assert found.files > 0
    assert not found.read_only
