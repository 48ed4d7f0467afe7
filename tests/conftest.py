"""What tests of more than one layer share: the stand-in for AWS, and what to do for want of a program."""

import contextlib
import ctypes
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from aws_stage import AwsShim, credentials, running_shim
from containers import REQUIRE_CONTAINERS, NoContainers, docker_stage, stage
from llama_servers import REQUIRE_LLAMACPP, missing_llamacpp
from long_first import LongFirst

REQUIRE_DEBIAN = "ORCHESTRATOR_REQUIRE_DEBIAN"
"""1 in the continuous check, which installs the Debian packages: what is missing there fails the test."""

# How long an example takes says something of the machine, and nothing of what is tested.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

# Nothing that a test asks has a certificate of a known authority, and every process would read all of these.
os.environ.setdefault("SSL_CERT_FILE", os.devnull)

# Nor has pydantic a plugin here, and every process would look for one in each package of this environment.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would everything they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _lacking(text: str, required: str = REQUIRE_DEBIAN) -> NoReturn:
    """Skip the test for want of what it needs, or fail it where the environment's `required` is 1."""
    if os.environ.get(required) == "1":
        pytest.fail(f"{text} ({required} is set)")
    pytest.skip(text)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests and all that they import stay to the end: no collection of garbage looks at them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.debian("promtool", package="prometheus")`: the test needs these programs.

    `@pytest.mark.llamacpp`: it needs what `make llamacpp-env` makes.
    """
    for mark in item.iter_markers("debian"):
        for program in mark.args:
            if shutil.which(program) is None:
                _lacking(f"{program} is not installed; on Debian: apt-get install {mark.kwargs['package']}")
    if item.get_closest_marker("llamacpp") is not None and (missing := missing_llamacpp()):
        _lacking(missing, REQUIRE_LLAMACPP)


@pytest.fixture(scope="module")
def real_podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A podman that runs containers for this process and all that it starts; without one the test is skipped.

    Programs may be installed and unable: a sandbox lacks rights, or groups of processes.
    """
    with contextlib.ExitStack() as running:
        try:
            running.enter_context(stage(tmp_path_factory.mktemp("podman")))
        except NoContainers as error:
            _lacking(f"no container can be run here: {error}", REQUIRE_CONTAINERS)
        yield


@pytest.fixture(scope="module")
def real_docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same with docker, whose daemon needs more of a machine than podman: nobody requires it."""
    with contextlib.ExitStack() as running:
        try:
            running.enter_context(docker_stage(tmp_path_factory.mktemp("docker")))
        except NoContainers as error:
            pytest.skip(f"no container can be run with docker here: {error}")
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LongFirst | None:
    """With `--dist loadfile`, modules are handed out by how long they take."""
    return LongFirst(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def lacking() -> Callable[[str], NoReturn]:
    """For what no program's name can tell, such as a right or a kernel's ability: `lacking("why")`."""
    return _lacking


@pytest.fixture(scope="session")
def aws_shim_process() -> Iterator[AwsShim]:
    """The stand-in's process, with credentials for it in the environment."""
    with pytest.MonkeyPatch.context() as patch, running_shim() as shim:
        for name, value in credentials().items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        yield shim


@pytest.fixture
def aws_shim(aws_shim_process: AwsShim) -> Iterator[AwsShim]:
    """The stand-in with no machines, targets, queues or rules, default settings and no faults.

    It is left so as well: the next to speak to it may be the set-up of a whole module, which resets nothing.
    """
    aws_shim_process.order("reset")
    yield aws_shim_process
    aws_shim_process.order("reset")


class PostgresServer:
    """A private PostgreSQL on a socket in its own directory, run by a user without rights."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory = directory
        self._programs = programs
        self._data = directory / "data"
        # PostgreSQL refuses to run as root; the package made a user for it.
        self._user = "postgres" if os.getuid() == 0 else None
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._user is not None:
            shutil.chown(self.directory, self._user, self._user)
        self._run("initdb", "-D", self._data, "-U", "orchestrator", "-A", "trust", "--no-sync", "-E", "UTF8")
        with (self._data / "postgresql.conf").open("a") as settings:
            # The tests end processes, not hosts: nothing has to be on a real disk.
            settings.write(
                "listen_addresses = ''\nfsync = off\nshared_buffers = 16MB\nautovacuum = off\n"
                f"unix_socket_directories = '{self.directory}'\nmax_connections = 60\n"
            )
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data],
                **self._as_user(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        until = time.monotonic() + 60
        while subprocess.run(
            [self._programs / "pg_isready", "-q", "-h", self.directory], check=False
        ).returncode:
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < until, "PostgreSQL does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)

    def _as_user(self) -> dict[str, Any]:
        root = self._user is not None
        return {
            "user": self._user,
            "group": self._user,
            "extra_groups": [] if root else None,
            "cwd": self.directory,
        }

    def socket(self) -> Path:
        """The unix socket that it listens on."""
        return self.directory / ".s.PGSQL.5432"

    def url(self, name: str, host: str = "") -> str:
        return f"postgresql://orchestrator@/{name}?host={host or self.directory}"

    def database(self) -> str:
        """The address of a new, empty database."""
        self._made += 1
        name = f"test_{self._made}"
        self.execute("postgres", f"CREATE DATABASE {name} STRATEGY file_copy")
        return self.url(name)

    def execute(self, name: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """One statement on a database, by its name or its address."""
        import psycopg

        address = name if "://" in name else self.url(name)
        with psycopg.connect(address, autocommit=True) as db:
            cursor = db.execute(sql.replace("?", "%s").encode(), values or None)
            return cursor.fetchall() if cursor.description is not None else []

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._programs / program, *map(str, arguments)],
            **self._as_user(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=90,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}"


def _die_with_parent() -> None:
    """Runs in the child before exec: the server goes down with tests that are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[4]))
    if not found:
        _lacking("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    directory = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a unix socket's path has 107 bytes
    server = PostgresServer(directory, found[-1].parent)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
