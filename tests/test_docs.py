"""The documentation: its links lead somewhere, its pages follow the code, its commands run."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from orchestrator import metrics
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.targets import TargetTable

ROOT = Path(__file__).parents[1]
SKIPPED = {".venv", ".venv-vllm", ".git", ".cache", "node_modules", "build", "dist"}
PAGES = sorted(f for f in ROOT.rglob("*.md") if not set(f.relative_to(ROOT).parts) & SKIPPED)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")


def prose(page: Path) -> str:
    """A page without its code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What can be linked to inside a page, as forges name it."""
    heads = re.findall(r"(?m)^#+ (.*)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_reference_page_is_linked_from_the_readme() -> None:
    linked = {
        (ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(prose(ROOT / "README.md"))
    }
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        assert page in linked, f"README.md does not name {page.name}"


def test_every_decision_is_in_the_list() -> None:
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs" / "decisions").glob("[0-9]*.md"):
        assert f"({page.name})" in listed


# -- metrics --------------------------------------------------------------------------------------


def shown_by_daemon() -> set[str]:
    return _families(generate_latest(metrics.REGISTRY).decode())


def shown_by_gateway() -> set[str]:
    import random

    table = TargetTable(
        now=lambda: 0.0,
        rng=random.Random(0),
        max_in_flight=1,
        breaker_failures=1,
        breaker_open=1.0,
        pool="",
    )
    return _families(GatewayMetrics(table, queued=lambda: 0, now=lambda: 0.0).exposition().decode())


def _families(exposition: str) -> set[str]:
    found = re.findall(r"(?m)^# TYPE (\S+) \w+$", exposition)
    return {name for name in found if not name.endswith("_created")}


def test_every_metric_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    daemon, gateway = shown_by_daemon(), shown_by_gateway()
    assert len(daemon) > 30
    assert len(gateway) > 15
    assert {name for name in daemon | gateway if f"| `{name}` |" not in page} == set()
    rows = re.findall(r"(?m)^\| `(orchestrator_\w+)` \|", page)
    own = {name for name in daemon | gateway if not name.startswith("process_")}  # each process has those
    assert sorted(rows) == sorted(own), "a row that no metric has, or one given twice"


def test_every_metric_of_the_daemon_is_moved_somewhere() -> None:
    """A metric that nothing sets is a promise that nobody keeps."""
    tree = ast.parse((ROOT / "orchestrator" / "metrics.py").read_text(encoding="utf-8"))
    named = {
        target.id
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and not target.id.startswith("_")
    }
    used = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "orchestrator").rglob("*.py"))
    assert {name for name in named if f"metrics.{name}" not in used} == set()


# -- the readme's commands ------------------------------------------------------------------------


def shell_lines(page: Path) -> list[str]:
    """Every command of a page's `sh` blocks."""
    found = []
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "sh":
            found += [line for line in body.splitlines() if line and not line.startswith("#")]
    return found


COMMANDS = shell_lines(ROOT / "README.md")
MADE = [line for line in COMMANDS if line.startswith("make ")]
RUN = [line for line in COMMANDS if line.startswith(".venv/bin/orchestrator ")]


def test_the_readme_shows_only_commands_that_are_tried_here() -> None:
    assert MADE
    assert RUN
    assert sorted(MADE + RUN) == sorted(COMMANDS)


@pytest.mark.parametrize("line", MADE)
def test_make_commands_of_the_readme_are_targets(line: str) -> None:
    done = subprocess.run(["bash", "-c", f"{line} -n"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def clone() -> Iterator[Path]:
    """A directory where the readme's commands can run: the example with ports of its own, and `.venv/bin`."""
    directory = Path(tempfile.mkdtemp(prefix="orch-"))
    try:
        (directory / ".venv").mkdir()
        (directory / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
        (directory / "examples").mkdir()
        text = (ROOT / "examples" / "pool.toml").read_text(encoding="utf-8")
        with contextlib.ExitStack() as stack:
            for port in ("9477", "8000"):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                assert f'"127.0.0.1:{port}"' in text
                text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{probe.getsockname()[1]}")
        (directory / "examples" / "pool.toml").write_text(text, encoding="utf-8")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_readme_runs_as_it_stands(clone: Path) -> None:
    """Line by line, as typed: those that end in & go on in the background, all others must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    background: list[subprocess.Popen[bytes]] = []
    log = clone / "log"
    try:
        for line in RUN:
            if line.endswith("&"):
                with log.open("ab") as out:
                    background.append(
                        subprocess.Popen(
                            line.rstrip("& ").split(),
                            cwd=clone,
                            stdout=out,
                            stderr=out,
                            env=environment,
                            start_new_session=True,
                        )
                    )
                continue
            deadline = time.monotonic() + 60
            while True:
                done = subprocess.run(
                    ["bash", "-c", line],
                    cwd=clone,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    env=environment,
                )
                # what was started in the background needs a moment, as it does when a person types
                if done.returncode != 3 or time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            assert done.returncode == 0, f"{line}\n{done.stderr}\n{log.read_text()[-2000:]}"
            assert done.stdout
        assert all(process.poll() is None for process in background), log.read_text()[-2000:]
    finally:
        for process in reversed(background):
            process.send_signal(signal.SIGTERM)
        for process in reversed(background):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_the_example_is_valid_as_it_stands(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "validate", str(tmp_path / "examples" / "pool.toml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- benches --------------------------------------------------------------------------------------

BENCHES = sorted((ROOT / "bench").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", BENCHES, ids=lambda script: script.stem)
def test_every_bench_explains_itself_and_has_a_quick_run(script: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=110,
            env=environment,
        )

    usage = run("--help")
    assert usage.returncode == 0
    assert "--quick" in usage.stdout
    quick = run("--quick")
    assert quick.returncode == 0, quick.stderr
    assert len(quick.stdout.splitlines()) >= 2
    assert list(tmp_path.iterdir()) == [], "a bench left something behind"
