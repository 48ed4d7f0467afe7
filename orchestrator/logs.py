"""Log lines of the daemon: one event name a line, for people or for machines, and never a reason to wait.

A line goes into a bounded queue and a thread writes it to standard error. When nobody reads standard error
the queue fills, lines are dropped and counted, and the loop goes on: a full pipe must not delay a drain.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, MutableMapping
from typing import Any, Final, Literal, TextIO

import orjson

from cloud.logger import structlog

LogFormat = Literal["auto", "console", "json"]

_QUEUE_LINES: Final = 4096
_CLOSE_WAIT: Final = 2.0  # s that the last lines get at the end of the process

_Processor = Callable[[Any, str, MutableMapping[str, Any]], Any]


class LogWriter(logging.Handler):
    """Takes lines without waiting and writes them from its own thread.

    `dropped` counts the lines that found the queue full or could not be written. The next line that gets
    through says how many were lost before it.
    """

    def __init__(self, stream: TextIO, capacity: int = _QUEUE_LINES) -> None:
        super().__init__()
        self.dropped = 0
        self._reported = 0
        self._stream = stream
        try:
            self._descriptor: int | None = stream.fileno()
        except (OSError, ValueError):  # not a file: a test's StringIO
            self._descriptor = None
        self._lines: queue.Queue[str | None] = queue.Queue(maxsize=capacity)
        self._closed = False
        self._thread = threading.Thread(target=self._write_lines, name="log writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line, or drop and count it."""
        try:
            line = self.format(record)
        except Exception as error:  # a value that cannot be rendered must not stop the daemon
            line = f"a log line of {record.name} could not be rendered: {error!r}"
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued, waiting a short while at most, and end the thread."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_CLOSE_WAIT)
            self._thread.join(timeout=_CLOSE_WAIT)
        super().close()

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            lost = self.dropped - self._reported
            if lost:
                self._reported += lost
                self._write(f"log: {lost} lines were dropped because standard error was not read")
            self._write(line)

    def _write(self, line: str) -> None:
        try:
            if self._descriptor is None:
                self._stream.write(line + "\n")
            else:
                # past the stream's buffer: a thread that blocks inside it would block the end of the process
                left = memoryview((line + "\n").encode("utf-8", "backslashreplace"))
                while left:
                    left = left[os.write(self._descriptor, left) :]
        except (OSError, ValueError):  # the other end is closed
            self.dropped += 1
            self._reported += 1


def configure_logging(
    format: LogFormat = "auto", level: str = "info", *, stream: TextIO | None = None
) -> LogWriter:
    """Send all log lines of the process, structlog's and the standard library's, to standard error.

    `auto` means console lines on a terminal and JSON lines elsewhere. Colours only on a terminal, and never
    when NO_COLOR is set. May be called again; the newest call counts. Returns the writer, whose `dropped` is
    the number of lost lines.
    """
    target = sys.stderr if stream is None else stream
    terminal = target.isatty()
    as_json = format == "json" or (format == "auto" and not terminal)
    shared: list[_Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    writer = LogWriter(target)
    colours = terminal and "NO_COLOR" not in os.environ
    writer.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_json_renderers() if as_json else _console_renderers(colours)),
            ],
        )
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, LogWriter)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(writer)
    root.setLevel(level.upper())
    atexit.register(writer.close)
    return writer


def dropped_lines() -> int:
    """Log lines of this process that were lost since logging was configured."""
    return sum(h.dropped for h in logging.getLogger().handlers if isinstance(h, LogWriter))


def _json_renderers() -> list[_Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_to_json),
    ]


def _console_renderers(colours: bool) -> list[_Processor]:
    return [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)]


def _to_json(event: MutableMapping[str, Any], **_: Any) -> str:
    first = ("timestamp", "level", "logger", "event")
    ordered = {key: event[key] for key in first if key in event}
    return orjson.dumps(
        ordered | {key: value for key, value in event.items() if key not in ordered},
        default=str,
        option=orjson.OPT_NON_STR_KEYS,
    ).decode()
