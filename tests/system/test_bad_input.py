"""What users and machines get wrong: each gives clear lines, no traceback, the right exit code, no harm."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TABLES: dict[str, dict[str, object]] = {
    "daemon": {"listen": "off"},
    "pool.test": {"replicas": 2},
    "pool.test.gateway": {},
}


@dataclass
class Place:
    """A short directory (sockets lie in it) and a configuration in it."""

    directory: Path
    write: Any

    @property
    def state(self) -> Path:
        return self.directory / "state"

    def configure(self, **tables: dict[str, object]) -> None:
        """Write pool.toml; `daemon`, `pool`, `engine`, `gateway` add to or change its tables."""
        names = {"daemon": "daemon", "pool": "pool.test"}
        changes = {names.get(name, f"pool.test.{name}"): values for name, values in tables.items()}
        self.write(self.directory / "pool.toml", TABLES, changes)

    def run(self, command: str = "run", **options: Any) -> subprocess.CompletedProcess[str]:
        """A command that is expected to refuse; it would run on otherwise."""
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", command, "--config", str(self.directory / "pool.toml")],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            **options,
        )


@pytest.fixture
def place(toml_writer: Any) -> Iterator[Place]:
    directory = Path(tempfile.mkdtemp(prefix="orch-"))
    try:
        yield Place(directory, toml_writer)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def refused(done: subprocess.CompletedProcess[str], *parts: str, lines: int = 1) -> None:
    """One line for each fault, on standard error, and exit code 1."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == lines, done.stderr
    for part in parts:
        assert part in done.stderr
    for noise in ("Traceback", "RuntimeWarning", "Errno"):
        assert noise not in done.stderr


# -- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "gateway", "local-cloud"])
def test_an_unknown_key(place: Place, command: str) -> None:
    place.configure(daemon={"tik": "1s"})
    refused(place.run(command), "pool.toml:3: daemon.tik: is not a key; did you mean tick?")


def test_a_number_without_its_unit(place: Place) -> None:
    place.configure(daemon={"tick": 5})
    refused(place.run(), 'pool.toml:3: daemon.tick: 5 has no unit; write "5s"')


def test_a_floor_above_wanted(place: Place) -> None:
    place.configure(pool={"on_demand_floor": 3})
    refused(place.run(), "pool.test.on_demand_floor: the floor of 3", "lower the floor or raise replicas")


def test_every_fault_has_a_line_of_its_own(place: Place) -> None:
    place.configure(daemon={"tik": "1s", "tick": 5}, pool={"on_demand_floor": "many"})
    refused(place.run(), "tik", "tick", "on_demand_floor", lines=3)


@pytest.mark.parametrize(
    "command",
    [
        "run -c",
        "gateway -c",
        "local-cloud -c",
        "status -c",
        "doctor -c",
        "validate",
        "config show",
        "aws policy",
    ],
)
@pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, "0x" + "f" * 5_000], ids=["deep", "digits"])
def test_what_no_reader_of_toml_can_take(place: Place, command: str, value: str) -> None:
    """One line with its place, whichever command reads the file; the library's reader ends in a traceback."""
    file = place.directory / "pool.toml"
    file.write_text(f"[pool.test]\nreplicas = {value}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *command.split(), str(file)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done
    assert sum(f"{file}:2: " in line for line in (done.stderr + done.stdout).splitlines()) == 1, done
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_configuration(place: Place) -> None:
    """A hundred megabytes are not read to be refused."""
    with (place.directory / "pool.toml").open("wb") as file:
        file.truncate(100 * 2**20)
    refused(place.run(), "pool.toml: is larger than 256 KiB", "the right file")


def test_a_missing_file(place: Place) -> None:
    refused(place.run(), "pool.toml: cannot be read (no such file or directory)")


def test_an_engine_that_is_not_there(place: Place) -> None:
    place.configure(engine={"executable": str(place.directory / "no-engine")})
    refused(place.run(), "pool.test.engine.executable: there is no file", "install the engine")


def test_a_socket_path_that_is_too_long(place: Place) -> None:
    place.configure(daemon={"socket": str(place.directory / ("s" * 120))})
    refused(place.run(), "daemon.socket:", "a unix socket's path may have 107")


def test_no_configuration_is_wrong_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "--config" in done.stderr


# -- the machine ----------------------------------------------------------------------------------


def test_a_port_in_use_for_monitoring(place: Place) -> None:
    with taken_port() as port:
        place.configure(daemon={"listen": f"127.0.0.1:{port}"})
        refused(place.run(), f"127.0.0.1:{port}: ", "address already in use", "daemon.listen")
    assert not (place.state / "orchestrator.sock").exists()


def test_a_port_in_use_for_clients(place: Place) -> None:
    place.state.mkdir()
    with taken_port() as port:
        place.configure(gateway={"listen": f"127.0.0.1:{port}"})
        refused(place.run("gateway"), f"127.0.0.1:{port}: ", "in use", "choose another port")
    assert not (place.state / "gateway.sock").exists()


def test_a_state_directory_below_a_file(place: Place) -> None:
    (place.directory / "file").touch()
    place.configure(daemon={"state_dir": str(place.directory / "file" / "state")})
    refused(place.run(), "daemon.state_dir:", "file is a file", "name another directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_directory_that_is_not_writable(place: Place) -> None:
    place.state.mkdir(mode=0o500)
    place.configure()
    refused(place.run(), "daemon.state_dir:", "cannot be written by this user")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("lease", "check its owner and mode"),
        ("journal.db", "journal.db: cannot be opened"),
        ("orchestrator.sock", "it is not a socket"),
    ],
)
def test_a_directory_where_a_file_should_be(place: Place, name: str, advice: str) -> None:
    (place.state / name).mkdir(parents=True)
    place.configure()
    refused(place.run(), name if name != "lease" else "state", advice)
    assert (place.state / name).is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_lease_that_cannot_be_read(place: Place) -> None:
    place.state.mkdir()
    (place.state / "lease").touch(mode=0o000)
    place.configure()
    refused(place.run(), "state", "check its owner and mode")


def test_a_socket_that_somebody_else_serves(place: Place) -> None:
    place.state.mkdir()
    path = place.state / "orchestrator.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        place.configure()
        refused(place.run(), f"{path}: ", "another process serves it", "set daemon.socket")
        with socket.socket(socket.AF_UNIX) as still:
            still.connect(str(path))


def test_a_garbled_lease_is_no_obstacle_but_names_nobody(place: Place) -> None:
    """Whoever holds the lock holds the lease, whatever the file says."""
    import fcntl

    place.state.mkdir()
    place.configure()
    with (place.state / "lease").open("w") as lease:
        lease.write("{ not json")
        lease.flush()
        fcntl.flock(lease, fcntl.LOCK_EX)
        refused(place.run(), "another daemon holds the lease: unknown process", "stop it first")


# -- disks ----------------------------------------------------------------------------------------


def test_a_full_disk_at_the_start(place: Place) -> None:
    """A limit on the size of files stands for the disk: SQLite calls both an error of the disk."""
    place.state.mkdir()
    place.configure()

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = place.run(preexec_fn=limit)
    refused(done, "journal.db: ", "disk", "no notice is acted on until this daemon runs")
    assert "still acted on" not in done.stderr


def test_a_full_disk_of_the_local_cloud_at_its_start(place: Place) -> None:
    """The advice is not to remove a file that only cannot be written now."""
    place.state.mkdir()
    place.configure()

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = place.run("local-cloud", preexec_fn=limit)
    refused(done, "cloud.db: cannot be opened", "is the disk full")
    assert "remove" not in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB of its own."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_really_full_disk_at_the_start(place: Place, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 60 * 1024)
    place.configure(
        daemon={"state_dir": str(small_disk), "socket": str(place.directory / "d.sock")},
        gateway={"socket": str(place.directory / "g.sock")},
        cloud={"socket": str(place.directory / "c.sock")},
    )
    refused(place.run(), "journal.db: the disk is full: free some space")


# -- a world that is not there --------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="function")
async def test_a_cloud_that_comes_later(new_stack: Any) -> None:
    """The daemon starts without its cloud, says so, and begins its work once the cloud is there."""
    async with new_stack(parts=("gateway", "daemon")) as stack:
        pool = await stack.until_pool(
            "the status says that the cloud is missing",
            lambda pool: any("instances cannot be listed" in p for p in pool["problems"]),
        )
        assert (pool["state"], pool["nodes"]) == ("starting", [])
        done = await stack.cli("status")
        assert done.code == 4
        assert "is it running?" in done.out
        assert " 503 " in (await stack.get(stack.monitoring_port, "/readyz")).splitlines()[0]
        await stack.start("local-cloud")
        pool = await stack.settled()
        assert pool["problems"] == []
        assert (await stack.statistics())["launches"] == 4


@pytest.mark.asyncio(loop_scope="function")
async def test_an_engine_that_cannot_be_started_on_its_node(new_stack: Any) -> None:
    """The program is not on the PATH: the daemon says so, goes on, and the status tells what comes of it."""
    changes = {
        "pool.test.engine": {"executable": "no-such-engine"},
        # A boot is given up once it was watched for as long as a silent node is.
        "pool.test.health": {
            "unhealthy_after": "500ms",
            "replace_after": "1s",
            "boot_timeout": "1s",
            "boot_failures": 1,
        },
        "pool.test.placement": {"refusal_half_life": "10m"},
    }
    async with new_stack(changes) as stack:
        pool = await stack.until_pool(
            "the status tells that the pool never started, and what to do",
            lambda pool: any("`orchestrator resume`" in problem for problem in pool["problems"]),
        )
        assert (pool["state"], pool["ready"]) == ("down", 0)
        assert (await stack.cli("status")).code == 7
        # Three failed boots, and those on their way meanwhile: no fault becomes a bill.
        await stack.until_pool("nothing is left of what was tried", lambda pool: not pool["nodes"])
        launches = (await stack.statistics())["launches"]
        assert 3 <= launches <= 6
        await stack.turns(6)
        assert (await stack.statistics())["launches"] == launches
        warning = stack.parts["daemon"].log.read_text(encoding="utf-8").splitlines()[0]
        assert warning.startswith("warning: ")
        assert "pool.test.engine.executable: no-such-engine is not on the PATH" in warning
