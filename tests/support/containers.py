"""A real podman or docker with a store of its own, and an image whose programs are those of this machine.

Nothing is fetched: the image is a few links and a program, and its system comes in as volumes. The runtime of
containers (runc or crun) and the way to groups of processes are tried, since a sandbox lets few of them work.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cloud.local.processes import dying_with_parent

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/stage/engine:1"
VOLUMES = tuple(
    f"{path}:{path}:ro"
    for path in dict.fromkeys(("/usr", sys.base_prefix, str(Path(sys.prefix).resolve()), str(ROOT)))
)
_LIMITS = '["nofile=1024:1024", "nproc=4096:4096"]'
_WAYS = (("crun", "enabled"), ("runc", "enabled"), ("crun", "disabled"))
_PATIENCE = 60


RUNTIME = "ORCHESTRATOR_TEST_RUNTIME"
"""In the environment of a stage: podman or docker."""

REQUIRE_CONTAINERS = "ORCHESTRATOR_REQUIRE_CONTAINERS"
"""1 in the continuous check where a container runs: a test that has none there fails."""


class NoContainers(Exception):
    """Why no container can be run here."""


def ask(*words: str) -> str:
    """What the stage's runtime prints. Raises NoContainers."""
    command = [os.environ.get(RUNTIME, "podman"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    if done.returncode:
        raise NoContainers(f"{' '.join(command[:2])}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def listed() -> list[str]:
    """The names of all containers, whatever they do."""
    return ask("ps", "--all", "--format", "{{.Names}}").split()


def minders(text: str) -> list[int]:
    """The processes with which podman minds its containers, of which a word holds this text."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if words.partition(b"\0")[0].endswith(b"/conmon") and text.encode() in words:
                found.append(int(entry.name))
    return found


def freeze(name: str) -> None:
    """Stop everything in a container as a user can; its main process where groups are closed."""
    try:
        ask("pause", name)
    except NoContainers:
        ask("kill", "--signal", "STOP", name)


@contextmanager
def stage(directory: Path) -> Iterator[None]:
    """A podman that runs `IMAGE`, for every process that is started meanwhile. Raises NoContainers."""
    (directory / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{directory}/store"\nrunroot = "{directory}/run"\n'
    )
    # A registry of a test speaks no TLS.
    (directory / "registries.conf").write_text('[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n')
    configured = {
        RUNTIME: "podman",
        "CONTAINERS_CONF": str(directory / "containers.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf"),
        "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
    }
    with _set(configured):
        faults = list(_tried(directory))
        if faults and faults[-1]:
            raise NoContainers("; ".join(faults))
        with _left_empty():
            yield
            assert minders(str(directory)) == []


@contextmanager
def docker_stage(directory: Path) -> Iterator[None]:
    """The same with a docker of its own. Raises NoContainers."""
    log, socket = directory / "dockerd.log", directory / "docker.sock"
    words = ["--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec", "-p", f"{directory}/pid"]
    words += ["--host", f"unix://{socket}", "--storage-driver", "vfs", "--bridge", "none"]
    words += ["--iptables=false", "--ip6tables=false", "--ip-forward=false"]
    with contextlib.ExitStack() as running:
        running.callback(_unmount, directory)
        try:
            with log.open("wb") as out:
                daemon = subprocess.Popen(
                    ["dockerd", *words], stdout=out, stderr=out, preexec_fn=dying_with_parent()
                )
        except OSError as error:
            raise NoContainers(f"dockerd: {error}") from error
        running.callback(daemon.wait)
        running.callback(daemon.terminate)
        running.enter_context(_set({RUNTIME: "docker", "DOCKER_HOST": f"unix://{socket}"}))
        until = time.monotonic() + _PATIENCE
        while not socket.exists() and daemon.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if not socket.exists() or daemon.poll() is not None:
            raise NoContainers(f"dockerd: {log.read_text()[-300:]}")
        _image(directory / "image.tar")
        _run_once()
        with _left_empty():
            yield


def _unmount(directory: Path) -> None:
    """What docker leaves mounted, so that the directory can be removed."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4].startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", line.split()[4]], check=False)


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= variables
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _left_empty() -> Iterator[None]:
    """No container and no volume is left; if it is, it goes."""
    try:
        yield
        left = listed() + ask("volume", "ls", "--quiet").split()
        assert left == [], f"left behind: {left}"
    finally:
        for name in listed():
            ask("rm", "--force", "--volumes", name)


def _tried(directory: Path) -> Iterator[str]:
    """Configures one way after the other until a container runs: why each did not, empty for one that did."""
    made = False
    for runtime, groups in _WAYS:
        (directory / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = {_LIMITS}\ncgroups = "{groups}"\n'
            f'[engine]\nruntime = "{runtime}"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
            f'tmp_dir = "{directory}/libpod"\nlock_type = "file"\n'  # two stages share nothing
        )
        try:
            if not made:
                _image(directory / "image.tar")
                made = True
            _run_once()
        except (NoContainers, OSError, subprocess.TimeoutExpired) as error:
            yield f"{runtime}: {error}"
            continue
        yield ""
        return


def _run_once() -> None:
    volumes = [word for volume in VOLUMES for word in ("--volume", volume)]
    ask("run", "--rm", "--network=host", "--log-driver=none", *volumes, IMAGE, "true")


def _image(archive: Path) -> None:
    """Links to the system, and ``python3``, which is this interpreter."""
    program = f'#!/bin/sh\nexec "{sys.executable}" -I "$@"\n'.encode()
    with tarfile.open(archive, "w") as out:
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path(f"/{name}").is_symlink():
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
                out.addfile(link)
        for name in ("tmp", "engine", "data"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
            out.addfile(folder)
        file = tarfile.TarInfo("engine/python3")
        file.size, file.mode = len(program), 0o755
        out.addfile(file, io.BytesIO(program))
    changes = ("--change", "ENV PATH=/engine:/usr/bin:/bin", "--change", "VOLUME /data")
    ask("import", *changes, str(archive), IMAGE)


if __name__ == "__main__":  # whether this machine can
    with tempfile.TemporaryDirectory() as own:
        try:
            with stage(Path(own)):
                print("containers run here")
        except NoContainers as lack:
            sys.exit(f"no container can be run here: {lack}")
