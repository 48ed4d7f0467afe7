"""A Debian with a real systemd, booted in a container on an overlay of this machine; nothing here is changed.

    python tests/systemd/machine.py        boot one and end it; exit code 0, or 1 and why it cannot be

Needs root and systemd-nspawn. The container has a network of its own with a loopback and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

BOOT_WITHIN = 60.0
DISK = "1g"


class NoMachine(Exception):
    """This host cannot boot one. The message says why."""


class Machine:
    """A booted system. `leader` is its systemd, seen from outside."""

    def __init__(self, leader: int) -> None:
        self.leader = leader

    def command(self, *words: str) -> list[str]:
        """The words that run a command inside."""
        return ["nsenter", "-t", str(self.leader), "-a", "--", *words]

    def outside(self, *words: str) -> list[str]:
        """The words that run a program of this host on the container's network."""
        return ["nsenter", "-t", str(self.leader), "-n", "--", *words]

    def run(self, *words: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end, whatever its exit code."""
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )

    def must(self, *words: str, timeout: float = 120.0) -> str:
        """The same for one that must succeed; its standard output."""
        done = self.run(*words, timeout=timeout)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def write(self, path: str, content: str | bytes) -> None:
        """Write a file inside."""
        done = subprocess.run(
            self.command("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat > "$1"', "sh", path),
            input=content.encode() if isinstance(content, str) else content,
            capture_output=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr.decode()


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """A running system, gone without a trace afterwards. Raises NoMachine."""
    if os.geteuid() != 0:
        raise NoMachine("only root can boot a container")
    if shutil.which("systemd-nspawn") is None:
        raise NoMachine("systemd-nspawn is not installed; on Debian: apt-get install systemd-container dbus")
    with tempfile.TemporaryDirectory(prefix="orch-machine-") as name, contextlib.ExitStack() as stack:
        root = _overlay(Path(name), stack)
        with (Path(name) / "console").open("w+b") as console:
            yield stack.enter_context(_systemd(root, console))


def _overlay(base: Path, stack: contextlib.ExitStack) -> Path:
    """This machine's file system below a writable layer in memory, without the services that it starts."""
    disk = base / "disk"
    disk.mkdir()
    _mount(stack, disk, "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs")
    upper, work, root = disk / "upper", disk / "work", disk / "root"
    for directory in (upper, work, root):
        directory.mkdir()
    _mount(stack, root, "-t", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", "overlay")
    for wanted in (root / "etc/systemd/system").glob("*.wants/*"):
        wanted.unlink()
    (root / "etc/machine-id").write_text("")
    return root


def _mount(stack: contextlib.ExitStack, place: Path, *words: str) -> None:
    done = subprocess.run(["mount", *words, str(place)], capture_output=True, text=True)
    if done.returncode != 0:
        raise NoMachine(f"this host permits no mount: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def _systemd(root: Path, console: object) -> Iterator[Machine]:
    before = _groups()
    nspawn = subprocess.Popen(
        [
            *(
                "systemd-nspawn",
                "-D",
                str(root),
                "--boot",
                "--private-network",
                "--register=no",
                "--keep-unit",
            ),
            *(f"--machine=orch{os.getpid()}", "--console=pipe", "systemd.unit=basic.target"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=console,  # type: ignore[arg-type]
        stderr=subprocess.STDOUT,
    )
    try:
        yield _wait(nspawn, console)
    finally:
        if nspawn.poll() is None:
            nspawn.send_signal(signal.SIGTERM)
            try:
                nspawn.wait(timeout=30)
            except subprocess.TimeoutExpired:
                nspawn.kill()
                nspawn.wait()
        for group in _groups() - before:
            for directory, *_ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):  # a process in it is still ending
                    os.rmdir(directory)


def _groups() -> set[Path]:
    """Control groups that nspawn leaves where no systemd of this host looks after them."""
    return {
        g for kind in ("systemd", "unified") for g in Path("/sys/fs/cgroup", kind).glob("*") if g.is_dir()
    }


def _wait(nspawn: subprocess.Popen[bytes], console: object) -> Machine:
    deadline = time.monotonic() + BOOT_WITHIN
    while time.monotonic() < deadline and nspawn.poll() is None:
        for leader in _children(nspawn.pid):
            machine = Machine(leader)
            state = machine.run("systemctl", "is-system-running").stdout.strip()
            if state in ("running", "degraded"):
                return machine
        time.sleep(0.1)
    console.seek(0)  # type: ignore[attr-defined]
    said = console.read().decode(errors="replace").strip()[-500:]  # type: ignore[attr-defined]
    raise NoMachine(f"no systemd came up within {BOOT_WITHIN:.0f} s: {said or 'it said nothing'}")


def _children(pid: int) -> Sequence[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def main() -> int:
    """Whether this host can do it."""
    try:
        with booted() as machine:
            print(machine.must("systemctl", "--version").splitlines()[0])
    except NoMachine as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
