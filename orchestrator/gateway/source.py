"""Where target sets come from: pushes over the control socket, and the targets file as the second path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import structlog

from cloud.balancers.targets import TargetsError, TargetSet, parse
from cloud.ports import Clock
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.targets import Change, StaleGeneration, TargetTable, WrongPool

log = structlog.get_logger("orchestrator.gateway")

_Stamp = tuple[int, int, int]  # inode, size, modification time: what changes when a file is replaced


class TargetSource:
    """Offers every set that arrives to the table and tells `on_set` after each one accepted."""

    def __init__(
        self,
        *,
        table: TargetTable,
        metrics: GatewayMetrics,
        file: Path,
        clock: Clock,
        on_set: Callable[[], None],
    ) -> None:
        self._table = table
        self._metrics = metrics
        self._file = file
        self._clock = clock
        self._on_set = on_set
        self._seen: _Stamp | None = None

    def push(self, data: bytes) -> Change:
        """Accept a set from the control socket.

        Raises TargetsError, StaleGeneration, WrongPool; the set in use stays then.
        """
        try:
            document = parse(data)
            return self._accept(document, "push")
        except TargetsError:
            self._metrics.target_set("push", "invalid")
            raise
        except StaleGeneration:
            self._metrics.target_set("push", "stale")
            raise
        except WrongPool:
            self._metrics.target_set("push", "wrong_pool")
            raise

    def look(self) -> None:
        """Read the file if it changed. A bad or old file is reported and otherwise ignored.

        The set that is in use already, because it was pushed, is no change.
        """
        try:
            status = os.stat(self._file)
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if stamp == self._seen:
                return
            data = self._file.read_bytes()
        except FileNotFoundError:
            self._seen = None
            return
        except OSError as error:
            log.warning("targets_file_unreadable", file=str(self._file), error=str(error))
            return
        self._seen = stamp
        try:
            document = parse(data)
            self._metrics.file_generation = document.generation
            if self._table.accepted is None or document.generation > self._table.generation:
                self._accept(document, "file")
            elif document.generation < self._table.generation:
                raise StaleGeneration(document.generation, self._table.generation)
        except TargetsError as error:
            self._metrics.target_set("file", "invalid")
            log.warning("targets_file_invalid", file=str(self._file), error=str(error))
        except StaleGeneration as error:
            self._metrics.target_set("file", "stale")
            log.warning("targets_file_stale", file=str(self._file), error=str(error))
        except WrongPool as error:
            self._metrics.target_set("file", "wrong_pool")
            log.warning("targets_file_wrong_pool", file=str(self._file), error=str(error))

    def _accept(self, document: TargetSet, via: str) -> Change:
        change = self._table.apply(document)
        self._metrics.target_set(via, "accepted")
        log.info(
            "targets_accepted",
            via=via,
            generation=document.generation,
            targets=len(document.targets),
            added=change.added,
            drained=change.drained,
            removed=change.removed,
        )
        self._on_set()
        return change
