"""Log lines: what they look like, and that nobody ever waits for them."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from orchestrator.logs import LogWriter, configure_logging


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    _remove_writers(root)  # commands that other modules run in this process leave one
    level, handlers = root.level, list(root.handlers)
    yield
    _remove_writers(root)
    root.setLevel(level)
    assert root.handlers == handlers
    structlog.reset_defaults()


def _remove_writers(root: logging.Logger) -> None:
    for handler in [item for item in root.handlers if isinstance(item, LogWriter)]:
        root.removeHandler(handler)
        handler.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO, writer: LogWriter) -> list[str]:
    writer.close()
    return stream.getvalue().splitlines()


def test_json_lines_from_both_libraries() -> None:
    stream = io.StringIO()
    writer = configure_logging("auto", "info", stream=stream)
    structlog.get_logger("loop").info("turn.done", actions=3, odd={1: object})
    logging.getLogger("aiohttp.server").warning("slow %s", "client")
    structlog.get_logger().debug("not shown")
    first, second = (json.loads(line) for line in lines(stream, writer))
    assert (first["event"], first["level"], first["logger"], first["actions"]) == (
        "turn.done",
        "info",
        "loop",
        3,
    )
    assert first["timestamp"].endswith("Z")
    assert list(first)[:4] == ["timestamp", "level", "logger", "event"]
    assert (second["event"], second["level"], second["logger"]) == (
        "slow client",
        "warning",
        "aiohttp.server",
    )


def test_an_exception_is_one_json_line() -> None:
    stream = io.StringIO()
    writer = configure_logging("json", "info", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(stream, writer)
    assert "ValueError: broken" in json.loads(line)["exception"]


@pytest.mark.parametrize(
    ("stream", "no_color", "coloured"),
    [(io.StringIO(), False, False), (Terminal(), False, True), (Terminal(), True, False)],
)
def test_console_has_colours_only_on_a_terminal(
    stream: io.StringIO, no_color: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    writer = configure_logging("console", "info", stream=stream)
    structlog.get_logger().info("turn", actions=3)
    (line,) = lines(stream, writer)
    assert ("\x1b[" in line) is coloured
    assert "turn" in line


def test_auto_is_console_on_a_terminal() -> None:
    stream = Terminal()
    writer = configure_logging("auto", "debug", stream=stream)
    structlog.get_logger().debug("seen")
    (line,) = lines(stream, writer)
    assert not line.startswith("{")
    assert "debug" in line


def test_configuring_again_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("json", "info", stream=first)
    writer = configure_logging("json", "error", stream=second)
    structlog.get_logger().error("only once")
    assert len(lines(second, writer)) == 1
    assert first.getvalue() == ""


def test_a_full_queue_drops_and_counts_and_says_so() -> None:
    class Stuck(io.StringIO):
        gate = threading.Event()

        def write(self, text: str) -> int:
            self.gate.wait(60)
            return super().write(text)

    stream = Stuck()
    writer = LogWriter(stream, capacity=10)
    record = logging.LogRecord("x", logging.INFO, "", 0, "line", None, None)
    for _ in range(100):
        writer.emit(record)
    assert writer.dropped >= 89  # ten wait, one may be in the writer's hands
    lost = writer.dropped
    stream.gate.set()
    written = lines(stream, writer)
    assert f"log: {lost} lines were dropped because standard error was not read" in written
    assert written.count("line") == 100 - lost


def test_a_value_that_cannot_be_rendered_is_a_line_too() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

        __str__ = __repr__

    stream = io.StringIO()
    writer = configure_logging("json", "info", stream=stream)
    writer.emit(logging.LogRecord("odd", logging.INFO, "", 0, "%s", (Odd(),), None))
    (line,) = lines(stream, writer)
    assert "could not be rendered" in line


def test_a_closed_reader_is_counted_not_raised() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        writer = LogWriter(stream)
        writer.emit(logging.LogRecord("x", logging.INFO, "", 0, "line", None, None))
        writer.close()
    assert writer.dropped == 1


@pytest.mark.slow
def test_a_process_whose_standard_error_nobody_reads_goes_on_and_ends() -> None:
    program = (
        "import structlog\n"
        "from orchestrator.logs import configure_logging\n"
        "writer = configure_logging('json')\n"
        "log = structlog.get_logger()\n"
        "for number in range(20000): log.info('turn', text='x' * 100)\n"
        "print(writer.dropped)\n"
    )
    read_end, write_end = os.pipe()  # nobody reads: it holds 64 KiB and then blocks its writer
    try:
        done: Any = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=write_end, timeout=60, check=True
        )
    finally:
        os.close(read_end)
        os.close(write_end)
    assert int(done.stdout) > 10_000
