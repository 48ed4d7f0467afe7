"""What makes the helper's environment: the package carries all of it, and the daemon's user can read it."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

FAKE_PYTHON = """#!/bin/sh
echo "$0 $*" >>"$LOG"
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip" ;;
esac
[ -z "$FAILS" ] || ! echo "$*" | grep -q "$FAILS"
"""


def test_the_package_has_the_script_and_the_lock_in_one_place() -> None:
    lines = (ROOT / "tools/package/build.sh").read_text().splitlines()
    placed = {
        match[1]: match[2]
        for line in lines
        if (match := re.search(r'install -m \d+ "\$root/(\S+)" "\$tree(/usr/share/\S+)"', line))
    }
    assert {placed["tools/skypilot/install.sh"], placed["skypilot.lock"]} == {
        "/usr/share/spot-orchestrator/skypilot/"
    }


def run(directory: Path, *, fails: str = "") -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script as the package has it, alone with the lock; what it did."""
    here, log = directory / "usr" / "share", directory / "log"
    here.mkdir(parents=True, exist_ok=True)
    for name in ("tools/skypilot/install.sh", "skypilot.lock"):
        (here / Path(name).name).write_bytes((ROOT / name).read_bytes())
    python = directory / "python3"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    log.write_text("")
    done = subprocess.run(
        ["bash", here / "install.sh", directory / "opt"],
        env={"PATH": os.environ["PATH"], "PYTHON": str(python), "LOG": str(log), "FAILS": fails},
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, log.read_text().splitlines()


def test_it_installs_what_is_pinned_by_hash_for_everybody_to_read_and_once(tmp_path: Path) -> None:
    done, did = run(tmp_path)
    assert done.returncode == 0, done.stderr
    (pip,) = [line for line in did if "/pip install" in line]
    assert "--require-hashes" in pip
    assert pip.endswith(f"-r {tmp_path}/usr/share/skypilot.lock")
    made = [tmp_path / "opt", tmp_path / "opt" / "bin", tmp_path / "opt" / ".installed"]
    assert [oct(stat.S_IMODE(path.stat().st_mode)) for path in made] == ["0o755", "0o755", "0o644"]
    again, did = run(tmp_path)
    assert (again.returncode, did) == (0, [])
    assert "already installed" in again.stdout


@pytest.mark.parametrize("step", ["pip install", "import sky"])
def test_one_that_failed_is_made_anew(tmp_path: Path, step: str) -> None:
    failed, _ = run(tmp_path, fails=step.rpartition(" ")[2])
    assert failed.returncode != 0
    assert not (tmp_path / "opt" / ".installed").exists()
    done, did = run(tmp_path)
    assert (done.returncode, len([line for line in did if "/pip install" in line])) == (0, 1)
