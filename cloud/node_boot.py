"""The boot report: how far a node came with starting its engine, in a file that the node agent passes on.

Each step is printed too, so that the journal and the console show it. Standard library and its neighbours
`cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.

The file: {"schema": 1, "stage", "ok", "detail", "checks": [{"name", "ok", "text"}], "at", "restarts",
"first", "times": {stage: time}}, as docs/reference/aws-notices.md describes it. It lies in /run, so a reboot
begins with none.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any

BOOT_FILE = "/run/orchestrator-engine/boot.json"
SETTLED = 600.0  # s: an engine that ran so long started well; its end is not counted as a failed start
_LONGEST_PAUSE = 300.0
_MOST_READ = 2**20  # characters of a report: the engine's user can put anything in its place


def pause(restarts: int) -> float:
    """Seconds to wait before the start after so many that ended early: the first one is tried again at once.

    >>> [pause(n) for n in (0, 1, 2, 3, 7, 8, 10**9)]
    [0.0, 0.0, 5.0, 10.0, 160.0, 300.0, 300.0]
    """
    return 0.0 if restarts < 2 else min(_LONGEST_PAUSE, 5.0 * 2.0 ** min(restarts - 2, 30))


def restarts_after(before: dict[str, Any], now: float) -> int:
    """How many starts in a row ended early, by the report of the last one; a clock that ran back counts."""
    count, at, stage = before.get("restarts"), before.get("at"), before.get("stage")
    if stage not in ("checks", "secrets", "weights", "image", "start", "failed"):
        return 0
    started = stage == "start" and before.get("ok") is True
    if started and isinstance(at, (int, float)) and at <= now - SETTLED:
        return 0
    return (count if isinstance(count, int) and 0 <= count < 10**6 else 0) + 1


class Boot:
    """Writes the report. A file that cannot be written stops nothing.

    `restarts`: starts before this one that ended early, one after another; `before`: why the last one did.
    What was checked stays in the report until it is checked again, what the disks' unit found (the check
    "local-disk") throughout. `first` is when the machine began since it booted, `times` when each stage of
    this start did.
    """

    def __init__(self, path: str, who: str = "node-start") -> None:
        before = read(path)
        self._path, self._who = path, who
        self._told: dict[str, Any] = {"schema": 1, "stage": "", "ok": True, "detail": ""}
        self._checks = list(before.get("checks") or ())
        self.restarts = restarts_after(before, time.time())  # noqa: TID251
        times, disks = before.get("times"), before.get("stage") == "disks"
        self._first = before.get("first")
        self._times: dict[str, float] = dict(times) if disks and isinstance(times, dict) else {}
        self.before = str(before.get("detail")) if before.get("stage") == "failed" else _ended(path)

    def stage(self, stage: str, detail: str = "", ok: bool = True, aloud: bool = True) -> None:
        """What is done now. Not `aloud`: progress, which is written and not printed."""
        self._told.update(stage=stage, ok=ok, detail=detail)
        now = time.time()  # noqa: TID251
        self._first = self._first or now
        self._times.setdefault(stage, now)
        if stage == "checks":
            self._checks = [check for check in self._checks if check["name"] == "local-disk"]
        if aloud:
            self._say(f"{stage}: {detail or 'begins'}")
        self._write()

    def check(self, name: str, ok: bool, text: str) -> None:
        """What one check saw."""
        others = [check for check in self._checks if check["name"] != name]
        self._checks = [*others, {"name": name, "ok": ok, "text": text}]
        self._say(f"{'ok' if ok else 'WARNING'}: {name}: {text}")
        self._write()

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"{self._who}: {text}", file=sys.stderr, flush=True)

    def _write(self) -> None:
        told = {**self._told, "checks": self._checks, "restarts": self.restarts, "at": time.time()}  # noqa: TID251
        told.update(first=self._first, times=self._times)
        new = f"{self._path}.new"
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "w") as out:
                json.dump(told, out)
            os.replace(new, self._path)
        except OSError as error:
            self._say(f"the boot report cannot be written: {error}")


def _ended(path: str) -> str:
    """How the engine ended, as its unit noted it beside the report."""
    try:
        with open(os.path.join(os.path.dirname(path), "ended"), encoding="utf-8") as file:
            return f"the engine ended ({' '.join(file.read(200).split())}); its log says why"
    except (OSError, ValueError):
        return "the engine ended; its log says why"


def read(path: str) -> dict[str, Any]:
    """The report in that file, empty where there is none that can be read."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8") as file:
            found = json.loads(file.read(_MOST_READ) or "")
        if all(isinstance(check, dict) and "name" in check for check in found.get("checks") or ()):
            return dict(found)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        pass
    return {}
