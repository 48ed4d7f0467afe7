"""What a balancer was given, for balancers that keep no ids or no generation themselves.

It is a file with a checksum and a copy beside it (`cloud.balancers.targets_file`), so at every instant one of
the two is whole: a process that is killed, a full disk or a damaged file loses the newest set at most. A lost
ledger is an empty one: what the balancer then holds counts as foreign until it is given that again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cloud.balancers import targets_file as files
from cloud.balancers.targets import SCHEMAS, TargetsError, TargetSet
from cloud.errors import Uncertain
from cloud.ports import Clock
from cloud.threads import WorkerThreads
from policies.model import TargetSpec
from policies.value import replace


class Ledger:
    """The newest set that one balancer of one pool was given."""

    def __init__(self, file: Path, *, pool: str, clock: Clock) -> None:
        self._file, self._pool, self._clock = file, pool, clock
        self._thread = WorkerThreads(f"ledger-{file.stem}", 1)

    async def read(self) -> TargetSet:
        """The set; one of generation 0 where there is none, or none that can be believed."""
        return await self._thread.run(self._read)

    async def write(self, targets: Sequence[TargetSpec], generation: int) -> None:
        """Keep a set. Raises Denied where a higher generation is held, Uncertain where it cannot be kept."""
        document = replace(
            self._empty(), generation=generation, targets=tuple(sorted(targets, key=lambda spec: spec.id))
        )
        try:
            await self._thread.run(partial(self._write, document))
        except (OSError, TargetsError) as error:
            raise Uncertain(f"{self._file} cannot be written: {error}") from None

    def close(self) -> None:
        """End its thread."""
        self._thread.close()

    def _empty(self) -> TargetSet:
        return TargetSet(
            generation=0, pool=self._pool, written_at=self._clock.now(), targets=(), schema=SCHEMAS[-1]
        )

    def _read(self) -> TargetSet:
        found = [self._empty()]
        for path in (self._file, files.copy_of(self._file)):
            with contextlib.suppress(OSError, TargetsError):
                held = files.read(path)
                if held.pool == self._pool:
                    found.append(held)
        return max(found, key=lambda held: held.generation)

    def _write(self, document: TargetSet) -> None:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write(self._file, document)
