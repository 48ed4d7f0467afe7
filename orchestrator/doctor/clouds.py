"""The doctor of each kind of cloud: the groups that its checks are in, and who makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from cloud.kinds import CloudName
from cloud.ports import Clock
from orchestrator.config.load import Config
from orchestrator.doctor.findings import Check, CheckGroup


class CloudDoctor(Protocol):
    """What can be found out of one pool by asking its cloud."""

    def checks(self) -> list[Check]:
        """Every check. Asks nobody yet."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudLooks:
    """The first of `groups` is the kind's own; the others are skipped for pools elsewhere only when asked
    for. `doctor` is of the only pool of a configuration, which is in the file of that name."""

    groups: Sequence[CheckGroup]
    doctor: Callable[[Config, str, Clock], CloudDoctor]


def _aws(config: Config, file: str, clock: Clock) -> CloudDoctor:
    from orchestrator.doctor.on_aws import AwsDoctor

    return AwsDoctor(config, file, clock)


LOOKS: Final[Mapping[CloudName, CloudLooks | None]] = MappingProxyType(
    {
        "local": None,
        "aws": CloudLooks(groups=("aws", "money", "notices", "launch", "balancer"), doctor=_aws),
    }
)
"""By kind; None where there is nobody to ask."""


def groups_elsewhere(kind: CloudName, only: Sequence[str]) -> list[CheckGroup]:
    """The groups of other kinds that are shown as skipped for a pool of that kind: those that were asked for,
    and for a pool of a kind without any, the own groups of the others."""
    here = LOOKS[kind]
    own = frozenset(() if here is None else here.groups)
    found: dict[CheckGroup, None] = {}
    for looks in LOOKS.values():
        for number, group in enumerate(() if looks is None else looks.groups):
            if group not in own and (group in only or (here is None and number == 0 and not only)):
                found[group] = None
    return list(found)
