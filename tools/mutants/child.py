"""What a forked child does: it runs tests in a copy of the tree and says how each of them went.

A child says what happens in lines of JSON: `{"starts": test}`, `{"fails": test}`, `{"done": reason}`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

MARKS = "not slow and not vllm and not llamacpp and not systemd and not bench and not debian"
"""The quick loop: tests that start no process of the product and need no program of the system."""

_OPTIONS = (
    "-q",
    "-p",
    "no:randomly",
    "-p",
    "no:xdist",
    "-p",
    "no:cacheprovider",
    "--hypothesis-seed=0",
    "-W",
    "ignore",
)
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

PRELOADED = (
    "aiohttp",
    "aiohttp.test_utils",
    "aiohttp.web",
    "anthropic",
    "boto3",
    "cyclopts",
    "hypothesis.strategies",
    "moto.server",
    "openai",
    "orjson",
    "prometheus_client",
    "psycopg",
    "pydantic",
    "pytest_asyncio",
    "rich.console",
    "structlog",
    "yaml",
)
"""What the product and its tests import of others: the parent has it before it forks."""

now = time.monotonic  # noqa: TID251 - a tool that waits for programs

_SLICE = 0.1  # seconds of processor time

Batch = Sequence[str]
"""Names of tests in the order in which they run."""


class Says:
    """Writes lines of JSON into a pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def __call__(self, **what: object) -> None:
        """Say this."""
        os.write(self._pipe, json.dumps(what).encode() + b"\n")


def settle(root: Path, temporary: Path, mark: str, log: Path) -> None:
    """Make this forked process one that works in a copy of the tree and ends with its parent."""
    os.setsid()
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(root)
    sys.path.insert(0, str(root))
    os.environ.update(
        PYTHONPATH=str(root), TMPDIR=str(temporary), TEMP=str(temporary), ORCHESTRATOR_MUTANT=mark
    )
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    empty = os.open(os.devnull, os.O_RDONLY)
    for stream, target in ((empty, 0), (out, 1), (out, 2)):
        os.dup2(stream, target)


class _Runs:
    """Runs chosen tests in a chosen order; the first that fails ends the session."""

    def __init__(self, batch: Batch, says: Says) -> None:
        self._rank = {test: number for number, test in enumerate(batch)}
        self._says = says

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self._rank), key=lambda i: self._rank[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._says(starts=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._says(fails=report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._says(fails=report.nodeid)


def run(batches: Sequence[Batch], says: Says, temporary: Path, *, all_of_them: bool = False) -> None:
    """Run the batches, each as one session of pytest; end at the first failure unless `all_of_them`."""
    for number, batch in enumerate(batches):
        modules = list(dict.fromkeys(test.split("::")[0] for test in batch))
        options = [*_OPTIONS, f"--basetemp={temporary / str(number)}", *([] if all_of_them else ["-x"])]
        says(starts="")
        code = pytest.main([*options, *modules], plugins=[_Runs(batch, says)])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not all_of_them:
            says(done="killed")
            return
    says(done="survived")


class _Covers:
    """Tells coverage.py which test runs, and takes the time of each.

    What a fixture of a module or of the session runs counts for every test of the module that asked first.
    A test that computes for more than a second does the same over and over, and is watched for a tenth of the
    time from then on: watching makes it several times slower.
    """

    def __init__(self, coverage: Any) -> None:
        self._coverage = coverage
        self._test = ""
        self._began = 0.0
        self._watches = False
        self.seconds: dict[str, float] = {}
        """The processor time of each test."""
        self.waited: dict[str, float] = {}
        """How long each test took by the clock on the wall."""
        self.bad: set[str] = set()

    def pytest_collection_finish(self) -> None:
        """Begin to watch: what runs on import runs for every test."""
        self._watch(True)
        signal.signal(signal.SIGPROF, self._turn)
        signal.setitimer(signal.ITIMER_PROF, _SLICE, _SLICE)

    def close(self) -> None:
        """Watch no more."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        self._watch(False)

    def _turn(self, _number: int, _frame: object) -> None:
        spent = time.process_time() - self._began
        self._watch(not self._test or spent < 1.0 or int(spent / _SLICE) % 10 == 0)

    def _watch(self, on: bool) -> None:
        if on != self._watches:
            self._watches = on
            if on:
                self._coverage.start()
                self._coverage.switch_context(self._test)
            else:
                self._coverage.stop()

    @contextmanager
    def _as(self, context: str) -> Iterator[None]:
        before = self._test
        try:
            self._is(context)
            yield
        finally:
            self._is(before)

    def _is(self, context: str) -> None:
        self._test = context
        if self._watches:
            self._coverage.switch_context(context)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._watch(True)
        self._began, began = time.process_time(), now()
        with self._as(item.nodeid):
            try:
                return (yield)
            finally:
                self.seconds[item.nodeid] = time.process_time() - self._began
                self.waited[item.nodeid] = now() - began

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, object, object]:
        if fixturedef.scope == "function":
            return (yield)
        with self._as(self._test.split("::")[0]):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.bad.add(report.nodeid)


def cover(modules: Sequence[str], sources: Sequence[str], says: Says, temporary: Path) -> None:
    """Run all quick tests of some modules under coverage.py; say which lines each of them ran."""
    import coverage

    data = temporary / "coverage"
    root = Path.cwd()
    measure = coverage.Coverage(
        data_file=str(data), include=[str(root / name) for name in sources], config_file=False, messages=False
    )
    covers = _Covers(measure)
    options = [*_OPTIONS, "-m", MARKS, f"--basetemp={temporary / 'covered'}"]
    pytest.main([*options, *modules], plugins=[covers])
    covers.close()
    measure.save()
    lines: dict[str, dict[str, str]] = {}
    with sqlite3.connect(data) as db:
        rows = db.execute(
            "select context.context, file.path, line_bits.numbits from line_bits"
            " join context on context.id = line_bits.context_id join file on file.id = line_bits.file_id"
        )
        for context, path, bits in rows:
            lines.setdefault(context, {})[Path(path).relative_to(root).as_posix()] = bits.hex()
    passed = {t: [s, covers.waited[t]] for t, s in covers.seconds.items() if t not in covers.bad}
    (temporary / "covered.json").write_text(json.dumps({"seconds": passed, "lines": lines}))
    says(done="covered")
