"""What a field test knows of each kind of cloud: versions to report, what to hide, and what is a stand-in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cloud.kinds import CloudName
from orchestrator.config.load import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldKind:
    """One kind. Each function takes the configuration of one pool on that kind alone.

    `versions`: of what speaks to the cloud. `private`: names of the account, which a report hides.
    `stand_in`: where a stand-in for the cloud answers; empty for the cloud itself. `one_process`: a daemon of
    the same configuration must not run meanwhile.
    """

    versions: Callable[[Config], Mapping[str, str]]
    private: Callable[[Config], Sequence[str]]
    stand_in: Callable[[Config], str]
    one_process: bool = False
    cloud: Callable[[Config], str] = lambda _config: ""  # the cloud behind it, where it is another


def _installed(*names: str) -> Callable[[Config], Mapping[str, str]]:
    """The versions of these distributions in this environment."""

    def found(_config: Config) -> Mapping[str, str]:
        return dict(_versions(names))

    return found


def _versions(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _skypilot(config: Config) -> Mapping[str, str]:
    """That of SkyPilot, in the environment of its helper."""
    root = config.pool.cloud.skypilot.python.parent.parent
    places = [str(place) for place in Path(root).glob("lib/python3*/site-packages")]
    return {one.name: one.version for one in distributions(name="skypilot", path=places or sys.path)}


def _of_aws(config: Config) -> Sequence[str]:
    aws = config.pool.cloud.aws
    queues = [region.notice_queue for region in aws.regions.values()]
    return [aws.profile, aws.node_role, *queues]


def _of_gcp(config: Config) -> Sequence[str]:
    gcp = config.pool.cloud.gcp
    return [gcp.project, gcp.service_account]


def _of_azure(config: Config) -> Sequence[str]:
    azure = config.pool.cloud.azure
    regions = azure.regions.values()
    return [azure.subscription, *(r.subnet for r in regions), *(r.resource_group for r in regions)]


FIELD: Final[Mapping[CloudName, FieldKind | None]] = MappingProxyType(
    {
        "local": None,
        "aws": FieldKind(
            versions=_installed("boto3", "botocore"),
            private=_of_aws,
            stand_in=lambda config: config.pool.cloud.aws.endpoint,
        ),
        "gcp": FieldKind(
            versions=_installed("aiohttp", "google-auth"),
            private=_of_gcp,
            stand_in=lambda config: config.pool.cloud.gcp.endpoint,
        ),
        "azure": FieldKind(
            versions=_installed("azure-mgmt-compute", "azure-identity", "azure-core"),
            private=_of_azure,
            stand_in=lambda config: config.pool.cloud.azure.endpoint,
        ),
        "skypilot": FieldKind(
            versions=_skypilot,
            private=lambda config: [config.pool.cloud.skypilot.user_of(config.pool_name)],
            stand_in=lambda config: config.pool.cloud.skypilot.endpoint,
            one_process=True,  # the helper has its home for itself
            cloud=lambda config: config.pool.cloud.skypilot.cloud,
        ),
    }
)
"""By kind; None where there is nothing to test in the field."""
