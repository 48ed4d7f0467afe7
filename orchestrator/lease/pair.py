"""What the two daemons of a pair of control hosts have in common: the journal and the lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cloud.ports import Clock
from orchestrator.config.load import Config
from orchestrator.journal.store import Store
from orchestrator.lease.shared import SharedLease


@dataclass(frozen=True, slots=True)
class Shared:
    """A journal that both may write, and the lease that says which one does."""

    store: Store
    lease: SharedLease


class OpenShared(Protocol):
    """Opens what a pair shares; see `open_shared`."""

    def __call__(self, config: Config, *, clock: Clock, seat: str) -> Shared:
        """The journal and the lease, not acquired yet. Raises StoreUnavailable."""
        ...


def open_shared(config: Config, *, clock: Clock, seat: str) -> Shared:
    """Open the database of `daemon.store`. Raises StoreUnavailable."""
    from orchestrator.journal.postgres import PostgresDatabase, PostgresStore

    database = PostgresDatabase(config.daemon.store)
    lease = SharedLease(
        database, clock=clock, seat=seat, pools=tuple(config.pools), seconds=config.daemon.lease
    )
    return Shared(store=PostgresStore.open(database), lease=lease)
