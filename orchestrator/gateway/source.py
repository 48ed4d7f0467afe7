"""Where target sets come from: pushes over the control socket, and the targets file as the second path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cloud.balancers import targets_file as files
from cloud.balancers.targets import TargetsError, TargetSet
from cloud.logger import structlog
from cloud.ports import Clock
from orchestrator.gateway.metrics import LaneMetrics
from orchestrator.gateway.targets import Change, StaleGeneration, TargetTable, WrongPool

log = structlog.get_logger("gateway")

_SAY_AGAIN: Final = 3600.0
"""Seconds after which a fault of the file that lasts is logged again."""

_SAY_NEXT: Final = 10.0
"""Seconds between two log lines about faults of one file, at least."""

_LAG: Final = 2.0
"""Seconds after a push in which an older set in the file is no fault: the file follows."""


class TargetSource:
    """Offers every set that arrives to the table and tells `on_set` after each one accepted.

    The file's second copy is looked at while there is no set at all: what was wanted last is better than
    nothing where the file was damaged, or put back from a backup, and no daemon runs to write it again.
    """

    def __init__(
        self,
        *,
        table: TargetTable,
        metrics: LaneMetrics,
        file: Path,
        clock: Clock,
        on_set: Callable[[], None],
    ) -> None:
        self._table = table
        self._metrics = metrics
        self._clock = clock
        self._pushed_at = -_LAG
        self._file = _Watched(file, "file", clock, metrics)
        self._copy = _Watched(files.copy_of(file), "copy", clock, metrics)
        self._on_set = on_set

    @property
    def fault(self) -> str:
        """Why the file is not taken, in words; empty while nothing is wrong with it."""
        return self._file.fault

    def push(self, document: TargetSet) -> Change:
        """Accept a set from the control socket.

        Raises StaleGeneration, WrongPool; the set in use stays then.
        """
        try:
            change = self._accept(document, "push")
        except StaleGeneration:
            self._metrics.target_set("push", "stale")
            raise
        except WrongPool:
            self._metrics.target_set("push", "wrong_pool")
            raise
        self._pushed_at = self._clock.steady()
        return change

    def look(self) -> None:
        """Read the file if it changed. One that is damaged, foreign or old is reported and otherwise ignored.

        The set that is in use already, because it was pushed, is no change.
        """
        found = [(self._file, self._file.news())]
        if self._table.accepted is None:
            found.append((self._copy, self._copy.news()))
            found.sort(key=lambda one: 0 if one[1] is None else one[1].generation, reverse=True)
        for file, document in found:
            if document is not None and (file is self._file or self._table.accepted is None):
                self._take(file, document)
        self._metrics.file_generation = self._file.generation
        self._metrics.file_refused = bool(self._file.fault)

    def _take(self, file: _Watched, document: TargetSet) -> None:
        try:
            if self._table.accepted is None or document.generation > self._table.generation:
                self._accept(document, file.via)
            elif document.generation < self._table.generation:
                if self._clock.steady() - self._pushed_at < _LAG:
                    file.look_again()
                else:
                    raise StaleGeneration(document.generation, self._table.generation)
        except StaleGeneration as error:
            file.refuse("stale", str(error))
        except WrongPool as error:
            file.refuse("wrong_pool", str(error))

    def _accept(self, document: TargetSet, via: str) -> Change:
        change = self._table.apply(document)
        self._metrics.target_set(via, "accepted")
        log.info(
            "targets.accepted",
            via=via,
            generation=document.generation,
            targets=len(document.targets),
            added=change.added,
            drained=change.drained,
            removed=change.removed,
        )
        self._on_set()
        return change


class _Watched:
    """One file that may hold a set. `via` names it in metrics and log lines.

    `generation` is that of the set in it, 0 while there is none to be believed; `fault` says why not.
    """

    def __init__(self, path: Path, via: str, clock: Clock, metrics: LaneMetrics) -> None:
        self._path, self._clock, self._metrics = path, clock, metrics
        self.via = via
        self.generation = 0
        self.fault = ""
        self._seen: Any = None
        self._said = ""
        self._said_at = -_SAY_AGAIN

    def news(self) -> TargetSet | None:
        """The set in the file if the file changed since the last look and can be believed."""
        try:
            stamp = files.stamp(self._path)
            if stamp == self._seen:
                self._say()
                return None
            document = files.read(self._path)
        except FileNotFoundError:
            self._seen, self.generation, self.fault = None, 0, ""
            return None
        except TargetsError as error:
            self._seen = stamp
            self.refuse("invalid", str(error))
            return None
        except OSError as error:  # may end without a change of the file, so it is tried at every look
            self.refuse("unreadable", error.strerror or str(error))
            return None
        self._seen, self.generation, self.fault = stamp, document.generation, ""
        return document

    def look_again(self) -> None:
        """Take the file for a changed one at the next look."""
        self._seen = None

    def refuse(self, result: str, fault: str) -> None:
        """Count and log why this file is not taken; the same fault is counted once."""
        if fault != self.fault:
            self._metrics.target_set(self.via, result)
        self.generation, self.fault = 0, fault
        self._say()

    def _say(self) -> None:
        """Log the fault: at once where it is a new one, but only so often."""
        since = self._clock.steady() - self._said_at
        if self.fault and since >= (_SAY_AGAIN if self.fault == self._said else _SAY_NEXT):
            self._said, self._said_at = self.fault, self._clock.steady()
            log.warning("targets_file.refused", file=str(self._path), error=self.fault)
