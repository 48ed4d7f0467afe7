"""The README, the tutorial and the how-tos, typed as they stand into a shell.

A page is one script, so what one block makes the next one finds. Ports are replaced by free ones. A how-to
begins beside the `pool.toml` of a pool that runs, where /etc/spot-orchestrator, /var/lib/spot-orchestrator
and `systemctl` are those of that pool. Of a block that is not run tests/test_docs.py checks the words.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from counted import count_usage
from doc_blocks import ROOT, blocks, script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.debian("curl", package="curl"),
    pytest.mark.debian("jq", package="jq"),
]

SUPPORT = Path(__file__).parents[1] / "support"
HOW_TOS = sorted((ROOT / "docs" / "how-to").glob("*.md"))
PLAYED = [page for page in HOW_TOS if any(b.language == "sh" and not b.not_run for b in blocks(page))]
BEGINNING = """set -Eeuo pipefail; trap 'echo "{page}:$LINENO: exit $?: $BASH_COMMAND" >&2' ERR"""
PATIENCE = 200.0
CHANGES: Mapping[str, Mapping[str, object]] = {
    "pool.test": {"replicas": 3},
    "pool.test.cost": {"tokens_per_second": 50.0},
}


@dataclass(frozen=True)
class Typed:
    """What a page printed."""

    code: int
    out: str
    err: str


@dataclass
class Reader:
    """Somebody who types a page's commands in `directory`; leaves nothing running."""

    directory: Path
    environment: dict[str, str]
    left: Callable[..., list[str]]
    mark: str

    def types(self, page: Path, replace: Mapping[str, str], *, ends_by_itself: bool) -> Typed:
        """Play a page. Where it does not stop what it started, that is stopped here."""
        text = script(page, BEGINNING.format(page=page.relative_to(ROOT)))
        for old, new in replace.items():
            text = text.replace(old, new)
        file = self.directory / ".script"
        file.write_text(text, encoding="utf-8")
        out, err = self.directory / ".out", self.directory / ".err"
        with out.open("wb") as to, err.open("wb") as errors:
            shell = subprocess.Popen(
                ["bash", str(file)],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=errors,
                env=self.environment,
                start_new_session=True,
            )
            try:
                code = shell.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                if not ends_by_itself or code != 0:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(shell.pid, signal.SIGTERM)
                shell.wait()
        left = self.left(self.mark, patience=30.0)
        typed = Typed(code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))
        assert typed.code == 0, f"{page.name}: exit {typed.code}\n{typed.out[-3000:]}\n{typed.err[-3000:]}"
        assert left == [], f"{page.name} leaves processes behind"
        return typed


@pytest.fixture
def reader(tmp_path: Path, marked_processes: Any) -> Reader:
    """Somebody in an empty directory with the program on the path."""
    mark = uuid.uuid4().hex
    programs = f"{Path(sys.executable).parent}:{SUPPORT}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, marked_processes.variable: mark}
    return Reader(tmp_path, environment, marked_processes.after, mark)


@pytest.fixture
def ports(port_finder: Callable[[int], list[int]]) -> dict[str, str]:
    """Free ports in the place of those that pages name."""
    free = zip((9477, 9478, 8000), port_finder(3), strict=True)
    return {f"127.0.0.1:{known}": f"127.0.0.1:{port}" for known, port in free}


def test_the_readme(reader: Reader, ports: Mapping[str, str]) -> None:
    directory = reader.directory
    (directory / ".venv").mkdir()
    (directory / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (directory / "examples").mkdir()
    text = (ROOT / "examples" / "pool.toml").read_text(encoding="utf-8")
    for old, new in ports.items():
        assert f'"{old}"' in text
        text = text.replace(old, new)
    (directory / "examples" / "pool.toml").write_text(text, encoding="utf-8")
    typed = reader.types(ROOT / "README.md", ports, ends_by_itself=False)
    assert "10 nodes are wanted" in typed.out
    assert "Resumed." in typed.out


def test_the_tutorial(reader: Reader, ports: Mapping[str, str]) -> None:
    page = ROOT / "docs" / "tutorial" / "README.md"
    typed = reader.types(page, ports, ends_by_itself=True)
    codes = (reader.directory / "codes").read_text(encoding="utf-8").split()
    assert set(codes) == {"200"}, "a request of the tutorial failed"
    (counted,) = re.findall(r"(?m)^ *(\d+) 200$", typed.out)
    assert int(counted) == len(codes) > 5
    assert re.search(r"\bnotice\b.*\d(ms|s)", typed.out), "no swap in the history"
    assert re.findall(r"exit code (\d)", typed.out) == ["3", "6"]
    assert "Game day passed" in typed.out
    assert "Every plan came out the same, byte for byte." in typed.out


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(module_stack: Any) -> AsyncIterator[Any]:
    """A pool whose daemon is the unit spot-orchestrator, and which was asked in the weeks before."""
    await module_stack.settled()
    assert await module_stack.stop("daemon") == 0
    count_usage(module_stack.state, "test", time.time(), lambda hour: 20.0)
    yield module_stack


@pytest.mark.long
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("page", PLAYED, ids=lambda page: page.stem)
async def test_a_how_to(page: Path, service: Any, reader: Reader) -> None:
    etc = service.directory
    reader.environment |= {
        "SERVICE_DIR": str(etc),
        "ORCHESTRATOR_SOCKET": str(service.sockets / "daemon"),
    }
    unit = {**reader.environment, **service.environment}
    (reader.directory / "pool.toml").symlink_to(service.config)

    def systemctl(verb: str) -> None:
        subprocess.run([SUPPORT / "systemctl", verb, "spot-orchestrator"], env=unit, check=True, timeout=60)

    replace = {
        "/etc/spot-orchestrator": str(etc),
        "/var/lib/spot-orchestrator": str(service.state),
        "/opt/spot-orchestrator/bin/": "",
        "systemctl ": f"env {' '.join(f'{k}={v}' for k, v in service.environment.items())} systemctl ",
        "127.0.0.1:9477": f"127.0.0.1:{service.monitoring_port}",
        "127.0.0.1:9478": f"127.0.0.1:{service.gateway_metrics_port}",
        "127.0.0.1:8000": f"127.0.0.1:{service.gateway_port}",
    }
    systemctl("start")
    try:
        await service.settled()
        before = set(await service.nodes())
        reader.types(page, replace, ends_by_itself=True)
        assert await service.status() is not None, "the page leaves the daemon stopped"
        await service.settled()
        assert set(await service.nodes()) == before, "the page cost a node"
    finally:
        systemctl("stop")
