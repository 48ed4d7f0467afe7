"""The checks of each kind of cloud: what must hold within its table, and between the pools that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cloud.kinds import CloudName
from orchestrator.config.checks.aws import aws_errors, aws_warnings, shared_on_aws
from orchestrator.config.checks.azure import azure_among, azure_errors, azure_warnings
from orchestrator.config.checks.gcp import gcp_errors, gcp_warnings, shared_on_gcp
from orchestrator.config.checks.local import local_among, local_pool_errors
from orchestrator.config.checks.skypilot import sky_among, sky_errors, sky_warnings
from orchestrator.config.errors import Found
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.pool import PoolConfig

PoolCheck = Callable[[tuple[str, ...], PoolConfig], Iterator[Found]]


def _nothing(_at: tuple[str, ...], _pool: PoolConfig) -> Iterator[Found]:
    yield from ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudChecks:
    """What is looked at in a pool of that kind, `at` being the path of the pool; and `among` several pools,
    those of other kinds included."""

    errors: PoolCheck
    warnings: PoolCheck = _nothing
    among: Callable[[ConfigFile], Iterator[Found]]


CHECKS: Final[Mapping[CloudName, CloudChecks]] = MappingProxyType(
    {
        "local": CloudChecks(errors=local_pool_errors, among=local_among),
        "aws": CloudChecks(errors=aws_errors, warnings=aws_warnings, among=shared_on_aws),
        "gcp": CloudChecks(errors=gcp_errors, warnings=gcp_warnings, among=shared_on_gcp),
        "azure": CloudChecks(errors=azure_errors, warnings=azure_warnings, among=azure_among),
        "skypilot": CloudChecks(errors=sky_errors, warnings=sky_warnings, among=sky_among),
    }
)
