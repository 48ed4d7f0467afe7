"""A file that remembers the launch of a field test until its machine has certainly ended.

It is on disk before the cloud is asked, so the next test finds what a killed one left. One test at a time has
the file, by flock(2) on a file beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from cloud.durable import sync_directory, write_atomic
from cloud.kinds import CloudName
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Market, Placement


class Busy(Exception):
    """Another test has the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A launch whose machine may live. `node` is its id, empty where no answer was written down."""

    kind: CloudName
    pool: str
    token: str
    placement: Placement
    node: str = ""

    def request(self, command: EngineCommand) -> LaunchRequest:
        """The launch, as it can be asked for again."""
        return LaunchRequest(token=self.token, pool=self.pool, placement=self.placement, command=command)


class Notebook:
    """The file in a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "field-test.json"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The file alone. Raises Busy, OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"another field test runs: it holds {self.path.with_suffix('.lock')}") from None
            yield
        finally:
            os.close(handle)

    def read(self) -> Unfinished | None:
        """What is unfinished; None for nothing. Raises OSError, ValueError for a file that cannot be read."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            row = json.loads(text)
            place = row.pop("placement")
            found = Unfinished(**row, placement=Placement(**{**place, "market": Market(place["market"])}))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.path} cannot be read: {error}") from error
        if found.kind not in get_args(CloudName):
            raise ValueError(f"{self.path} names no kind of cloud: {found.kind}")
        return found

    def write(self, one: Unfinished) -> None:
        """Have it on disk. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(asdict(one)).encode())

    def forget(self) -> None:
        """It is finished. Raises OSError."""
        self.path.unlink(missing_ok=True)
        sync_directory(self.path.parent)
