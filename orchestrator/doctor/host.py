"""This machine, judged: Python, SQLite, the package names, files that may be open."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from typing import Final

from orchestrator.doctor.findings import Findings, fail, ok, skipped, warn

_PYTHON: Final = (3, 11)
_SQLITE: Final = (3, 24, 0)  # the first with ON CONFLICT DO UPDATE, which the journal uses
_SPARE: Final = 128  # files that a process has open for itself: logs, libraries, sockets of its own


def python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Findings:
    """The interpreter."""
    text = f"Python {_dotted(version)}"
    if version < _PYTHON:
        return [fail(f"{text} is too old", f"install Python {_dotted(_PYTHON)} or newer and make setup")]
    return [ok(text)]


def sqlite(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> Findings:
    """The library that keeps the journal."""
    text = f"SQLite {_dotted(version)}"
    if version < _SQLITE:
        return [fail(f"{text} is too old", f"use a Python with SQLite {_dotted(_SQLITE)} or newer")]
    return [ok(text)]


def packages(faults: Sequence[str]) -> Findings:
    """The faults that `orchestrator.packaging.check_names` finds."""
    advice = "install it in an environment of its own"
    found = [fail(fault, advice) for fault in faults]
    return found or [ok("orchestrator, cloud and policies belong to this distribution alone")]


def open_files(limit: int | None, needed: int, process: str, *, always: bool) -> Findings:
    """Files that a process may have open. `needed` are those that it may come to need for its connections;
    `always`: it needs them even without load. None: this user may not see the limit."""
    if limit is None:
        return [
            skipped("it belongs to another user, so its limit of open files cannot be seen", subject=process)
        ]
    needed += _SPARE
    if limit < needed:
        text = f"it may open {limit} files, and needs up to {needed}"
        advice = "raise it: LimitNOFILE=65536 in the unit, or ulimit -n 65536"
        return [fail(text, advice, process) if always else warn(f"{text} under full load", advice, process)]
    return [ok(f"it may open {limit} files and needs up to {needed}", process)]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
