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
    """The groups that are skipped for pools of other kinds. `doctor` is of the only pool of a configuration,
    which is in the file of that name."""

    groups: Sequence[CheckGroup]
    doctor: Callable[[Config, str, Clock], CloudDoctor]


def _aws(config: Config, file: str, clock: Clock) -> CloudDoctor:
    from orchestrator.doctor.on_aws import AwsDoctor

    return AwsDoctor(config, file, clock)


def _gcp(config: Config, _file: str, clock: Clock) -> CloudDoctor:
    from orchestrator.doctor.on_gcp import GcpDoctor

    return GcpDoctor(config, clock)


def _azure(config: Config, _file: str, clock: Clock) -> CloudDoctor:
    from orchestrator.doctor.on_azure import AzureDoctor

    return AzureDoctor(config, clock)


def _skypilot(config: Config, _file: str, clock: Clock) -> CloudDoctor:
    from orchestrator.doctor.on_skypilot import SkyPilotDoctor

    return SkyPilotDoctor(config, clock)


LOOKS: Final[Mapping[CloudName, CloudLooks | None]] = MappingProxyType(
    {
        "local": None,
        "gcp": CloudLooks(groups=("gcp",), doctor=_gcp),
        "azure": CloudLooks(groups=("azure",), doctor=_azure),
        "aws": CloudLooks(groups=("aws", "money", "notices", "launch", "balancer"), doctor=_aws),
        "skypilot": CloudLooks(groups=("skypilot",), doctor=_skypilot),
    }
)
"""By kind; None where there is nobody to ask."""


def groups_elsewhere(kinds: Sequence[CloudName], only: Sequence[str]) -> list[CheckGroup]:
    """The groups of other kinds that were asked for, and that are skipped for a pool of these kinds."""
    groups = {kind: () if looks is None else looks.groups for kind, looks in LOOKS.items()}
    own = {group for kind in kinds for group in groups[kind]}
    others = dict.fromkeys(group for each in groups.values() for group in each)
    return [group for group in others if group in only and group not in own]
