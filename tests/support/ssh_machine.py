"""A machine that is reached over SSH: a real sshd in a file system of its own, on this host's loopback.

The user of the machine's image is root there. `/opt`, `/run` and the users are the machine's own, everything
else is this host's, so a script that runs there starts real programs. Needs root and the right to mount.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SSHD = "/usr/sbin/sshd"
RELAY = (
    "import os, socket, sys, threading\n"
    "there = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
    "def back():\n"
    "    while data := there.recv(65536): os.write(1, data)\n"
    "    os._exit(0)\n"
    "threading.Thread(target=back, daemon=True).start()\n"
    "while data := os.read(0, 65536): there.sendall(data)\n"
)


def may_mount() -> bool:
    """Whether this process may have mounts of its own."""
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return os.geteuid() == 0 and done.returncode == 0


def relay(directory: Path, port: int) -> str:
    """A proxy command of SSH that leads to that port here, whatever address is meant."""
    file = directory / "relay.py"
    file.write_text(RELAY)
    return shlex.join([sys.executable, str(file), str(port)])


@contextlib.contextmanager
def running_sshd(directory: Path, port: int, user: str, public_key: str) -> Iterator[Path]:
    """It answers at the port, and lets that user in by that key; the machine's /opt, as seen from here."""
    opt = directory / "opt"
    opt.mkdir()
    (directory / "keys").write_text(f"{public_key}\n")
    (directory / "passwd").write_text(
        f"{Path('/etc/passwd').read_text()}{user}:*:0:0::{directory}:/bin/bash\n"
    )
    host_key = directory / "host-key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": host_key,
        "AuthorizedKeysFile": directory / "keys",
        "PidFile": "none",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "UsePAM": "no",
    }
    (directory / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    inside = (
        f"mount --bind {opt} /opt && mount --bind {directory}/passwd /etc/passwd && mount -t tmpfs none /run "
        f"&& mkdir /run/sshd && exec {SSHD} -D -e -f {directory}/sshd_config"
    )
    log = (directory / "sshd.log").open("wb")
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", inside], stderr=log, start_new_session=True)
    try:
        _until_it_listens(process, directory / "sshd.log")
        yield opt
    finally:
        process.kill()
        process.wait()
        log.close()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.killpg(int((opt / "orchestrator" / "pid").read_text()), signal.SIGKILL)


def _until_it_listens(process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while "listening" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
